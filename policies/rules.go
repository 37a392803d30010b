package policies

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// defaultPorts are those of an allow rule that names none.
var defaultPorts = []int{80, 443}

// hostRules reads allow or deny, which differ in their patterns.
func (d *decoder) hostRules(n *yaml.Node, v Verdict) []HostRule {
	out := []HostRule{}
	d.list(n, "network."+string(v), func(c *yaml.Node) {
		r, ok := d.hostRule(c, v)
		if !ok {
			return
		}
		r.Line, r.file = c.Line, d.file
		out = append(out, r)
	})
	return out
}

func (d *decoder) hostRule(n *yaml.Node, v Verdict) (HostRule, bool) {
	before := len(d.errs)
	var r HostRule
	if n.Kind == yaml.ScalarNode {
		r = d.shortRule(n, v)
	} else {
		r = d.longRule(n, v)
	}
	return r, len(d.errs) == before
}

// shortRule reads "host", "host:port", "[v6]:port".
func (d *decoder) shortRule(n *yaml.Node, v Verdict) (r HostRule) {
	s, ok := d.str(n, "a host rule")
	if !ok {
		return r
	}
	switch {
	case strings.Contains(s, "://"):
		d.fail(n, quote(s), "a host, such as api.example.com:443", "remove the scheme and the path")
		return r
	case strings.Contains(s, "/"):
		d.fail(n, quote(s), "a host, such as api.example.com:443", "write a network as {cidr: "+s+"}")
		return r
	}
	host, port, found := splitPort(s)
	if i := max(strings.LastIndexByte(s, ':'), 0); !found && decimal.MatchString(s[i+1:]) && unbracketed(s[:i]) {
		d.fail(n, quote(s)+", which is an address to one reader and an address with a port to another", "brackets around an IPv6 address that could end in a port",
			"write \"["+s[:i]+"]:"+s[i+1:]+"\" or \"["+s+"]\"")
		return r
	}
	if found {
		p, err := strconv.Atoi(port)
		if err != nil || p < 1 || p > 65535 || strconv.Itoa(p) != port {
			d.fail(n, "port "+quote(port), "a port from 1 to 65535", "correct it, or leave out the colon for ports 80 and 443")
			return r
		}
		r.Ports = []int{p}
	}
	r.Host = d.host(n, host, v)
	return r
}

// unbracketed says whether s is an IPv6 address without brackets.
func unbracketed(s string) bool {
	a, ok := isAddr(s)
	return ok && a.Is6()
}

// splitPort cuts the port off, unless the colons belong to an IPv6 address.
func splitPort(s string) (host, port string, found bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.HasSuffix(s, "]") {
		return s, "", false
	}
	if _, bare := isAddr(s); bare {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

func (d *decoder) longRule(n *yaml.Node, v Verdict) (r HostRule) {
	keys, before := 0, len(d.errs)
	fields := object{
		"host":   func(c *yaml.Node) { keys++; r.Host = d.hostField(c, v) },
		"domain": func(c *yaml.Node) { keys++; r.Domain = d.domain(c) },
		"cidr":   func(c *yaml.Node) { keys++; r.CIDR = d.cidr(c) },
		"ports":  func(c *yaml.Node) { r.Ports = d.ports(c) },
	}
	if v == Allow {
		d.terms(n, &r, fields)
	}
	d.object(n, "network."+string(v), fields)
	if n.Kind == yaml.MappingNode && keys != 1 {
		d.fail(n, fmt.Sprintf("a rule with %d of host, domain and cidr", keys), "exactly one of them", "write one rule for each destination")
	}
	if v == Allow && len(d.errs) == before {
		d.agreement(n, &r)
	}
	return r
}

func (d *decoder) hostField(n *yaml.Node, v Verdict) string {
	s, ok := d.str(n, "host")
	if !ok {
		return ""
	}
	if h, p, found := splitPort(s); found && !strings.HasPrefix(s, "[") && !strings.Contains(p, "*") {
		d.fail(n, quote(s), "a host without a port", "write {host: "+h+", ports: ["+p+"]}")
		return ""
	}
	return d.host(n, s, v)
}

// host checks an exact name or a pattern.
func (d *decoder) host(n *yaml.Node, s string, v Verdict) string {
	switch {
	case s == "*":
		return s
	case !strings.Contains(s, "*"):
		return d.name(n, s)
	case v == Deny:
		return d.denyGlob(n, s)
	}
	return d.allowGlob(n, s)
}

// allowGlob: stars in the first label only, so that what a pattern covers is
// always below a name that is written out.
func (d *decoder) allowGlob(n *yaml.Node, s string) string {
	first, rest, dotted := strings.Cut(s, ".")
	if !dotted || strings.Contains(rest, "*") || strings.Contains(first, "**") && first != "**" {
		d.fail(n, "the pattern "+quote(s), `an exact host, "*.name" (one label below name), "**.name" (one or more), "a-*.name", or "*"`,
			"write {domain: name} for a name and every name below it")
		return ""
	}
	name := d.name(n, rest)
	if _, addr := isAddr(name); addr {
		d.fail(n, "the pattern "+quote(s)+" over an address", "a name after the star", "write {cidr: ...} for a range of addresses")
		return ""
	}
	first = d.globLabels(n, first)
	if name == "" || first == "" {
		return ""
	}
	return first + "." + name
}

// denyGlob: stars anywhere. It matches widely, so any place is safe.
func (d *decoder) denyGlob(n *yaml.Node, s string) string {
	if strings.Trim(s, "*.0123456789") == "" || strings.Contains(s, ":") {
		d.fail(n, "the pattern "+quote(s), "a pattern of names in a deny rule", "write {cidr: ...} for a range of addresses")
		return ""
	}
	return d.globLabels(n, strings.TrimSuffix(s, "."))
}

// globLabels checks what stands between the stars.
func (d *decoder) globLabels(n *yaml.Node, s string) string {
	low := strings.ToLower(s)
	for _, l := range strings.Split(low, ".") {
		if err := checkLabel("a" + strings.ReplaceAll(l, "*", "") + "a"); err != nil || l == "" {
			d.fail(n, "the pattern "+quote(s), "letters a-z, digits, hyphens, underscores and stars in each label", "write international names in their xn-- form")
			return ""
		}
	}
	return low
}

func (d *decoder) name(n *yaml.Node, s string) string {
	name, err := NormalizeHost(s)
	if err != nil {
		d.fail(n, quote(s)+" ("+strings.TrimPrefix(err.Error(), "got host "+strconv.Quote(s)+", ")+")",
			"a host name such as api.example.com, or an IP address", "correct the name")
		return ""
	}
	return name
}

func (d *decoder) domain(n *yaml.Node) string {
	s, ok := d.str(n, "domain")
	if !ok {
		return ""
	}
	if strings.Contains(s, "*") {
		d.fail(n, "the pattern "+quote(s), "a plain name for domain", "write {domain: "+strings.Trim(s, "*.")+"}: it covers every name below already")
		return ""
	}
	name := d.name(n, s)
	if _, addr := isAddr(name); addr {
		d.fail(n, "the address "+quote(s), "a name for domain", "write {host: "+name+"} for one address or {cidr: ...} for a range")
		return ""
	}
	return name
}

func (d *decoder) cidr(n *yaml.Node) string {
	s, ok := d.str(n, "cidr")
	if !ok {
		return ""
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		d.fail(n, quote(s), "a network such as 10.1.0.0/16 or fd00::/8 for cidr", "write address/prefix-length; for one address use {host: ...}")
	case p.Addr().Is4In6():
		d.fail(n, quote(s), "an IPv4 network in IPv4 form", "write it as a.b.c.d/len")
	case p != p.Masked():
		d.fail(n, quote(s)+", which has bits beyond its prefix", "the network's first address", "write "+p.Masked().String()+", or {host: "+p.Addr().String()+"} for that one address")
	default:
		return p.String()
	}
	return ""
}

// ports reads a list of distinct ports and sorts it: order has no meaning.
func (d *decoder) ports(n *yaml.Node) []int {
	var out []int
	d.list(n, "ports", func(c *yaml.Node) {
		p, ok := d.integer(c, "a port", 1, 65535)
		if ok && slices.Contains(out, p) {
			d.fail(c, fmt.Sprintf("port %d twice", p), "each port once", "remove one of them")
		}
		out = append(out, p)
	})
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		d.fail(n, "an empty list", "at least one port", "leave the field out for the default: 80 and 443 in allow rules, every port in deny rules")
	}
	slices.Sort(out)
	return out
}
