package policies

import (
	"net/netip"
	"slices"
	"strings"
)

// destination is a Request's, normalized once for all rules.
type destination struct {
	name    string
	addr    netip.Addr // the literal that name is, else the zero Addr
	port    int
	leads   netip.Addr // what name leads to; zero: not asked
	closed  []netip.Prefix
	program string
	parents []string
	rules   []*HostRule // the allow rules that name it
}

// look gives the destination of r with the rules that name it, or the code of
// what is wrong with it.
func (p *Policy) look(r Request) (destination, string) {
	d, wrong := at(r)
	for i := range p.Network.Allow {
		if h := &p.Network.Allow[i]; wrong == "" && h.reaches(d) {
			d.rules = append(d.rules, h)
		}
	}
	return d, wrong
}

// at gives the destination of r, or the code of what is wrong with it.
func at(r Request) (destination, string) {
	name, err := NormalizeHost(r.Host)
	if err != nil {
		return destination{}, ReasonHost
	}
	if r.Port < 1 || r.Port > 65535 {
		return destination{}, ReasonPort
	}
	d := destination{name: name, port: r.Port, leads: r.Addr.Unmap().WithZone(""), closed: r.Closed, program: r.Binary, parents: r.Ancestors}
	d.addr, _ = isAddr(name)
	if d.addr.IsValid() && d.leads.IsValid() && d.leads != d.addr {
		return d, ReasonAddress
	}
	return d, ""
}

func (p *Policy) decideConnect(r Request) Decision {
	d, wrong := p.look(r)
	if wrong != "" {
		return deny(wrong)
	}
	return p.decideReach(d)
}

func (p *Policy) decideReach(d destination) Decision {
	if h := p.denial(d); h != nil {
		return h.because(Deny, ReasonDenied, "deny "+h.String())
	}
	if !p.opens(d) {
		return deny(ReasonAddress)
	}
	missing := ReasonUnlisted
	for _, h := range d.rules {
		switch why := p.admits(h, d); {
		case why == "":
			return h.because(Allow, ReasonNet, "allow "+h.String())
		case why == ReasonAddress || missing == ReasonUnlisted:
			missing = why
		}
	}
	// What a name leads to is no question for an operator: the next answer to
	// the same question could be another address.
	if p.Network.Default == Hold && missing != ReasonAddress {
		return Decision{Verdict: Hold, Reason: missing}
	}
	return deny(missing)
}

// because quotes the rule, with its place.
func (h *HostRule) because(v Verdict, reason, rule string) Decision {
	return Decision{Verdict: v, Reason: reason, Rule: place(h.file, h.Line) + rule}
}

// denial finds the deny rule that names d, or the address that it leads to.
func (p *Policy) denial(d destination) *HostRule {
	for i := range p.Network.Deny {
		h := &p.Network.Deny[i]
		if len(h.Ports) > 0 && !slices.Contains(h.Ports, d.port) {
			continue
		}
		if h.denies(d.name, d.addr) || d.leads.IsValid() && h.denies(d.leads.String(), d.leads) {
			return h
		}
	}
	return nil
}

// DenyAddr says whether a deny rule names an address that an allowed name
// turned out to lead to, and which rule. Whoever dials asks this (or Decide,
// with Addr) after resolving a name and before connecting, so that no name is
// a way round a denied network.
func (p *Policy) DenyAddr(addr netip.Addr, port int) (rule string, denied bool) {
	d, wrong := at(Request{Host: addr.WithZone("").String(), Port: port})
	if wrong != "" {
		return "", true
	}
	h := p.denial(d)
	if h == nil {
		return "", false
	}
	return h.because(Deny, ReasonDenied, "deny "+h.String()).Rule, true
}

// admits gives "" when h, which names d, allows it, else the code of what it
// lacks.
func (p *Policy) admits(h *HostRule, d destination) string {
	switch {
	case !h.runs(d):
		return ReasonBinary
	case !p.leads(h, d):
		return ReasonAddress
	}
	return ""
}

func (h *HostRule) reaches(d destination) bool {
	ports := h.Ports
	if len(ports) == 0 {
		ports = defaultPorts
	}
	return slices.Contains(ports, d.port) && (h.Host != "" && h.Host == d.name || h.allows(d.name, d.addr))
}

func (h *HostRule) allows(name string, addr netip.Addr) bool {
	switch {
	case h.Host == "" || !strings.Contains(h.Host, "*"):
		return h.names(name, addr)
	case addr.IsValid():
		// A pattern is no address: by its address a host would dodge the deny
		// rules that name it.
		return false
	case h.Host == "*":
		return true
	}
	if rest, below := strings.CutPrefix(h.Host, "**."); below {
		return len(name) > len(rest)+1 && strings.HasSuffix(name, h.Host[2:])
	}
	return narrow(h.Host, name, '.')
}

// denies reads the pattern widely: a star crosses dots, "*.x" is also x.
func (h *HostRule) denies(name string, addr netip.Addr) bool {
	if h.Host == "" || !strings.Contains(h.Host, "*") {
		return h.names(name, addr)
	}
	rest, glob := strings.CutPrefix(strings.TrimLeft(h.Host, "*"), ".")
	return wide(h.Host, name) || glob && strings.HasPrefix(h.Host, "*") && wide(rest, name)
}

// names matches what allow and deny rules have in common.
func (h *HostRule) names(name string, addr netip.Addr) bool {
	switch {
	case h.CIDR != "":
		return addr.IsValid() && within(addr, h.CIDR)
	case h.Domain != "":
		return !addr.IsValid() && (name == h.Domain || len(name) > len(h.Domain) && name[len(name)-len(h.Domain)-1] == '.' && strings.HasSuffix(name, h.Domain))
	}
	return h.Host != "" && name == h.Host
}

// touches says whether two rules could name one destination; where that is not
// clear they could.
func (h *HostRule) touches(o *HostRule) bool {
	ports := func(r *HostRule) []int {
		if len(r.Ports) == 0 {
			return defaultPorts
		}
		return r.Ports
	}
	if !slices.ContainsFunc(ports(h), func(p int) bool { return slices.Contains(ports(o), p) }) {
		return false
	}
	if h.CIDR != "" && o.CIDR != "" {
		a, err := netip.ParsePrefix(h.CIDR)
		b, err2 := netip.ParsePrefix(o.CIDR)
		return err != nil || err2 != nil || a.Overlaps(b)
	}
	covers := func(a, b *HostRule) bool {
		addr, _ := isAddr(b.Host)
		return a.denies(b.Host+b.Domain, addr)
	}
	return strings.Contains(h.Host, "*") && strings.Contains(o.Host, "*") || covers(h, o) || covers(o, h)
}

func within(addr netip.Addr, cidr string) bool {
	net, err := netip.ParsePrefix(cidr)
	return err == nil && net.Contains(addr)
}

// runs says whether the connecting program or one of its ancestors is listed.
// An unknown program is nobody.
func (h *HostRule) runs(d destination) bool {
	if len(h.Binaries) == 0 {
		return true
	}
	for _, pattern := range h.Binaries {
		if covers(pattern, d.program) || slices.ContainsFunc(d.parents, func(a string) bool { return covers(pattern, a) }) {
			return true
		}
	}
	return false
}

// covers matches one entry of Binaries.
func covers(pattern, program string) bool {
	clean, ok := cleanPath(program)
	switch {
	case !ok:
		return false
	case strings.HasSuffix(pattern, "/"):
		return execCovers(pattern, clean)
	}
	return narrow(pattern, clean, '/')
}

// leads says whether the name may lead where it does. A public address is
// what names are for; any other must be listed, or a name that its owner
// points at 10.0.0.1 would be a way into the site.
func (p *Policy) leads(h *HostRule, d destination) bool {
	if !d.leads.IsValid() || d.addr.IsValid() {
		return true
	}
	if len(h.AllowedIPs) > 0 {
		return h.LeadsTo(d.leads)
	}
	if public(d.leads) {
		return true
	}
	literal := destination{name: d.leads.String(), addr: d.leads, port: d.port, program: d.program, parents: d.parents}
	return slices.ContainsFunc(p.Network.Allow, func(r HostRule) bool { return r.reaches(literal) && r.runs(literal) })
}

// opens says whether a rule inside the closed network that d lies in, or leads
// to, lets d there; true where it lies in none. A wide rule is written for what
// stands around the host, not for the cluster that it is a node of.
func (p *Policy) opens(d destination) bool {
	at := d.leads
	if !at.IsValid() {
		at = d.addr
	}
	i := slices.IndexFunc(d.closed, func(n netip.Prefix) bool { return n.Contains(at) })
	if i < 0 {
		return true
	}
	literal := d
	literal.name, literal.addr = at.String(), at
	return slices.ContainsFunc(p.Network.Allow, func(h HostRule) bool {
		return h.inside(d.closed[i]) && h.reaches(literal) && h.runs(d)
	}) || slices.ContainsFunc(d.rules, func(h *HostRule) bool {
		return h.runs(d) && slices.ContainsFunc(h.AllowedIPs, func(n string) bool { return lies(n, d.closed[i]) && within(at, n) })
	})
}

// inside says whether the rule names an address in net, or a network that lies in it.
func (h *HostRule) inside(net netip.Prefix) bool {
	if a, ok := isAddr(h.Host); ok {
		return net.Contains(a)
	}
	return h.CIDR != "" && lies(h.CIDR, net)
}

// lies says whether all of cidr lies in net.
func lies(cidr string, net netip.Prefix) bool {
	p, err := netip.ParsePrefix(cidr)
	return err == nil && p.Bits() >= net.Bits() && net.Contains(p.Addr())
}

// reserved are networks that are not the public internet's, beyond those that
// netip knows: RFC 6598 (carriers), 2544 (benchmarks), 1122 ("this network"),
// 1112 (class E), 6890 (protocol assignments), 6052 and 8215 (NAT64), 3056
// (6to4), 4380 (Teredo), 4193's deprecated forerunner.
var reserved = prefixes("100.64.0.0/10", "198.18.0.0/15", "0.0.0.0/8", "240.0.0.0/4", "192.0.0.0/24",
	"64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "fec0::/10")

func prefixes(ss ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(ss))
	for i, s := range ss {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

func public(a netip.Addr) bool {
	return a.IsGlobalUnicast() && !a.IsPrivate() && !slices.ContainsFunc(reserved, func(p netip.Prefix) bool { return p.Contains(a) })
}
