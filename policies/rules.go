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

// denyGlob is why deny rules have no patterns: readers disagree whether
// "*.evil.example" covers evil.example itself, or a.b.evil.example, and a
// denial must never match less than its reader expects.
const denyGlob = `an exact host, a domain, or "*" in a deny rule`

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
	keys := 0
	d.object(n, "network."+string(v), object{
		"host":   func(c *yaml.Node) { keys++; r.Host = d.hostField(c, v) },
		"domain": func(c *yaml.Node) { keys++; r.Domain = d.domain(c) },
		"cidr":   func(c *yaml.Node) { keys++; r.CIDR = d.cidr(c) },
		"ports":  func(c *yaml.Node) { r.Ports = d.ports(c) },
	})
	if n.Kind == yaml.MappingNode && keys != 1 {
		d.fail(n, fmt.Sprintf("a rule with %d of host, domain and cidr", keys), "exactly one of them", "write one rule for each destination")
	}
	return r
}

func (d *decoder) hostField(n *yaml.Node, v Verdict) string {
	s, ok := d.str(n, "host")
	if !ok {
		return ""
	}
	if h, p, found := splitPort(s); found && !strings.HasPrefix(s, "[") {
		d.fail(n, quote(s), "a host without a port", "write {host: "+h+", ports: ["+p+"]}")
		return ""
	}
	return d.host(n, s, v)
}

// host checks an exact name, "*", or in allow rules "*.name".
func (d *decoder) host(n *yaml.Node, s string, v Verdict) string {
	rest, glob := strings.CutPrefix(s, "*.")
	switch {
	case s == "*":
		return s
	case v == Deny && strings.Contains(s, "*"):
		d.fail(n, "the pattern "+quote(s), denyGlob,
			"write {domain: "+strings.Trim(s, "*.")+"} to deny that name and every name below it")
		return ""
	case strings.Contains(rest, "*"):
		d.fail(n, "the pattern "+quote(s), `an exact host, "*.name" (one label below name) or "*"`,
			"write {domain: name} for a name and every name below it")
		return ""
	}
	name := d.name(n, rest)
	if _, addr := isAddr(name); glob && addr {
		d.fail(n, "the pattern "+quote(s)+" over an address", "a name after the star", "write {cidr: ...} for a range of addresses")
		return ""
	}
	if glob && name != "" {
		return "*." + name
	}
	return name
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

// String gives the rule as an operator would say it: "api.example.com:443",
// "domain evil.example", "10.1.0.0/16:443,8443".
func (r HostRule) String() string {
	s := r.Host
	switch {
	case r.Domain != "":
		s = "domain " + r.Domain
	case r.CIDR != "":
		s = r.CIDR
	case strings.Contains(s, ":"):
		s = "[" + s + "]"
	}
	for i, p := range r.Ports {
		s += string(":,"[min(i, 1)]) + strconv.Itoa(p)
	}
	return s
}

// YAML gives the rule in canonical form: {host: api.example.com, ports: [443]}.
func (r HostRule) YAML() string {
	key, val := "host", r.Host
	switch {
	case r.Domain != "":
		key, val = "domain", r.Domain
	case r.CIDR != "":
		key, val = "cidr", r.CIDR
	}
	s := "{" + key + ": " + scalar(val)
	if len(r.Ports) > 0 {
		s += ", ports: [" + joinInts(r.Ports) + "]"
	}
	return s + "}"
}

func joinInts(ns []int) string {
	out := make([]string, len(ns))
	for i, n := range ns {
		out[i] = strconv.Itoa(n)
	}
	return strings.Join(out, ", ")
}

// WithAllow returns a copy of p that also allows r, as when an operator
// approves a destination. Deny rules still win. A rule that could not have
// been written in a policy (see docs/policy.md) adds nothing.
func (p *Policy) WithAllow(r HostRule) *Policy {
	q := *p
	q.Network.Allow = slices.Clone(p.Network.Allow)
	if r.Host != "" && (r.Domain != "" || r.CIDR != "") || r.Domain != "" && r.CIDR != "" {
		return &q // YAML would name one of them only
	}
	d := decoder{file: "approval", set: map[string]*yaml.Node{}}
	var n yaml.Node
	if err := yaml.Load([]byte(r.YAML()), &n); err != nil || len(n.Content) != 1 {
		return &q
	}
	clean, ok := d.hostRule(n.Content[0], Allow)
	clean.Line, clean.file = 0, ""
	known := slices.ContainsFunc(q.Network.Allow, func(h HostRule) bool { return h.YAML() == clean.YAML() })
	if ok && !known {
		q.Network.Allow = append(q.Network.Allow, clean)
	}
	return &q
}

// place puts a rule's file and line before its text.
func place(file string, line int) string {
	if line == 0 || file == "" {
		return "added: "
	}
	return file + ":" + strconv.Itoa(line) + ": "
}

// String gives the entry as an operator would say it: "GET /repos/**".
func (c CallRule) String() string {
	words := []string{c.Method, c.Path, c.Operation, c.OperationName, strings.Join(c.Fields, ","), c.RPC, strings.Join(c.Tool, ","), c.Frame}
	return strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), " ")
}
