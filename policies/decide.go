package policies

import (
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
		return p.decideConnect(r)
	case Call:
		return p.decideCall(r)
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
	return p.decideExec(clean, r.Digest)
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

// decideExec: a pinned program is that content or none, whichever entry
// covers its path.
func (p *Policy) decideExec(at, digest string) Decision {
	if root, ok := below(at, p.Filesystem.Write); ok {
		return p.because(Deny, ReasonWritable, "write "+root)
	}
	for _, e := range p.Process.Exec {
		if !execCovers(e, at) {
			continue
		}
		if pin := p.Process.ExecHashes[at]; pin != "" && pin != digest {
			return p.because(Deny, ReasonHash, "exec "+at)
		}
		return p.because(Allow, ReasonExec, "exec "+e)
	}
	return deny(ReasonUnexecutable)
}

func (p *Policy) decideInfer(model string, sensitive bool) Decision {
	if !validModel(model) {
		return deny(ReasonModel)
	}
	r, ok := routeOf(p.Inference.Routes, model)
	if !ok {
		return deny(ReasonUnrouted)
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

// routeOf is the route of calls for a model: the first that names it. For the
// model "*" it is that of models which no route names.
func routeOf(rs []Route, model string) (Route, bool) {
	for _, r := range rs {
		if slices.Contains(r.Models, model) || slices.Contains(r.Models, "*") {
			return r, true
		}
	}
	return Route{}, false
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
