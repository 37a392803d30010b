package policies

import (
	"net/netip"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Decide answers r. It is total: a request that makes no sense is denied with
// a reason that says so, and so is every request when p is nil.
func (p *Policy) Decide(r Request) Decision {
	if p == nil {
		return deny(ReasonPolicy)
	}
	switch r.Action {
	case Read, Write, Exec:
		return p.decidePath(r)
	case Connect:
		return p.decideConnect(r.Host, r.Port)
	case Infer:
		return p.decideInfer(r.Model, r.Sensitive)
	}
	return deny(ReasonAction)
}

func deny(reason string) Decision { return Decision{Verdict: Deny, Reason: reason} }

// because quotes the rule that decided, with its place.
func (p *Policy) because(v Verdict, reason, rule string) Decision {
	return Decision{Verdict: v, Reason: reason, Rule: p.quoteRule(rule)}
}

func (p *Policy) quoteRule(rule string) string {
	if at := p.at[rule]; at != "" {
		return at + ": " + rule
	}
	return "added: " + rule
}

func (p *Policy) decidePath(r Request) Decision {
	clean, ok := cleanPath(r.Path)
	if !ok {
		return deny(ReasonPath)
	}
	switch r.Action {
	case Read:
		return p.decideRead(clean)
	case Write:
		return p.decideWrite(clean)
	}
	return p.decideExec(clean)
}

// cleanPath refuses ".." instead of resolving it: with a symbolic link in
// front of it, text and kernel would disagree on where it leads.
func cleanPath(s string) (string, bool) {
	if !path.IsAbs(s) || len(s) > 4095 || strings.IndexByte(s, 0) >= 0 || slices.Contains(strings.Split(s, "/"), "..") {
		return "", false
	}
	return path.Clean(s), true
}

func (p *Policy) decideRead(at string) Decision {
	if root, ok := below(at, p.Filesystem.Read); ok {
		return p.because(Allow, ReasonRead, "read "+root)
	}
	if root, ok := below(at, p.Filesystem.Write); ok {
		return p.because(Allow, ReasonRead, "write "+root)
	}
	for _, e := range p.Process.Exec {
		if execCovers(e, at) || at == path.Clean(e) {
			return p.because(Allow, ReasonRead, "exec "+e)
		}
	}
	return deny(ReasonUnreadable)
}

func (p *Policy) decideWrite(at string) Decision {
	if root, ok := below(at, p.Filesystem.Write); ok {
		return p.because(Allow, ReasonWrite, "write "+root)
	}
	if d := p.decideRead(at); d.Verdict == Allow {
		return Decision{Verdict: Deny, Reason: ReasonReadOnly, Rule: d.Rule}
	}
	return deny(ReasonUnreadable)
}

func (p *Policy) decideExec(at string) Decision {
	if root, ok := below(at, p.Filesystem.Write); ok {
		return p.because(Deny, ReasonWritable, "write "+root)
	}
	for _, e := range p.Process.Exec {
		if execCovers(e, at) {
			return p.because(Allow, ReasonExec, "exec "+e)
		}
	}
	return deny(ReasonUnexecutable)
}

func (p *Policy) decideConnect(host string, port int) Decision {
	name, err := NormalizeHost(host)
	if err != nil {
		return deny(ReasonHost)
	}
	if port < 1 || port > 65535 {
		return deny(ReasonPort)
	}
	for _, r := range p.Network.Deny {
		if r.denies(name, port) {
			return p.because(Deny, ReasonDenied, "deny "+r.String())
		}
	}
	for _, r := range p.Network.Allow {
		if r.allows(name, port) {
			return p.because(Allow, ReasonNet, "allow "+r.String())
		}
	}
	if p.Network.Default == Hold {
		return Decision{Verdict: Hold, Reason: ReasonUnlisted}
	}
	return deny(ReasonUnlisted)
}

// DenyAddr says whether a deny rule names an address that an allowed name
// turned out to lead to, and which rule. Whoever dials asks this after
// resolving a name and before connecting, so that no name is a way round
// a denied network.
func (p *Policy) DenyAddr(addr netip.Addr, port int) (rule string, denied bool) {
	d := p.Decide(Request{Action: Connect, Host: addr.WithZone("").String(), Port: port})
	return d.Rule, d.Reason != ReasonNet && d.Reason != ReasonUnlisted
}

func (r HostRule) allows(name string, port int) bool {
	ports := r.Ports
	if len(ports) == 0 {
		ports = defaultPorts
	}
	if !slices.Contains(ports, port) {
		return false
	}
	_, addr := isAddr(name)
	parent, glob := strings.CutPrefix(r.Host, "*.")
	switch {
	case r.Host == "*":
		// Any name, but no address: by its address a host would dodge the
		// deny rules that name it.
		return !addr
	case glob:
		_, rest, _ := strings.Cut(name, ".")
		return !addr && rest == parent
	}
	return r.names(name)
}

func (r HostRule) denies(name string, port int) bool {
	if len(r.Ports) > 0 && !slices.Contains(r.Ports, port) {
		return false
	}
	return r.Host == "*" || r.names(name)
}

// names matches what allow and deny rules have in common.
func (r HostRule) names(name string) bool {
	addr, isaddr := isAddr(name)
	switch {
	case r.CIDR != "":
		net, err := netip.ParsePrefix(r.CIDR)
		return err == nil && isaddr && net.Contains(addr)
	case r.Domain != "":
		return !isaddr && (name == r.Domain || strings.HasSuffix(name, "."+r.Domain))
	}
	return r.Host != "" && name == r.Host
}

func (p *Policy) decideInfer(model string, sensitive bool) Decision {
	if !validModel(model) {
		return deny(ReasonModel)
	}
	for _, r := range p.Inference.Routes {
		if !slices.Contains(r.Models, model) && !slices.Contains(r.Models, "*") {
			continue
		}
		d := p.because(Allow, ReasonInfer, r.String())
		d.Upstream = r.Upstream
		switch {
		case !sensitive || r.Upstream == Local:
		case p.Inference.Sensitive == "strip":
			d.Reason, d.Strip = ReasonStrip, true
		default:
			d.Verdict, d.Reason = Deny, ReasonSensitive
		}
		return d
	}
	return deny(ReasonUnrouted)
}

// Local is the upstream that never leaves the host.
const Local = "local"

func validModel(s string) bool {
	return s != "" && len(s) <= 256 && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// String gives the route as an operator would say it: "route * to local".
func (r Route) String() string {
	return "route " + strings.Join(r.Models, ", ") + " to " + r.Upstream
}
