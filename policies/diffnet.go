package policies

import (
	"maps"
	"slices"
	"strings"
	"time"
)

func formatNanos(n int64) string { return formatWall(time.Duration(n)) }

func (d *differ) network() {
	x, y := d.a.Network, d.b.Network
	d.ranked("network.default", "a destination that no rule names", string(x.Default), string(y.Default), string(Hold), string(Deny))
	words := func(rs []HostRule) []string {
		out := make([]string, len(rs))
		for i, r := range rs {
			out[i] = portWords(r, "any port")
		}
		return out
	}
	for _, s := range only(words(y.Deny), words(x.Deny)) {
		d.say(Narrower, "network.deny", "agent must not reach %s any more, whatever else allows it", s)
	}
	for _, s := range only(words(x.Deny), words(y.Deny)) {
		d.say(Wider, "network.deny", "no rule forbids %s any more", s)
	}
	before, after := byTarget(x.Allow), byTarget(y.Allow)
	for _, k := range slices.Sorted(maps.Keys(after)) {
		d.rules(before[k], after[k])
	}
	for _, k := range slices.Sorted(maps.Keys(before)) {
		if after[k] == nil {
			d.rules(before[k], nil)
		}
	}
	d.order(x.Allow, y.Allow)
}

// order says which of two rules that speak for one destination now comes first:
// among equals that one's credentials and budget hold.
func (d *differ) order(x, y []HostRule) {
	was := map[string]int{}
	for i := range x {
		was[x[i].YAML()] = i + 1
	}
	at := make([]int, len(y)) // where each was, from 1; 0: it is new
	for i := range y {
		at[i] = was[y[i].YAML()]
	}
	for j := range y {
		for i := range j {
			a, b := &y[i], &y[j]
			if at[j] > 0 && at[i] > at[j] && a.touches(b) && (a.Budget != b.Budget || !slices.Equal(a.Credentials, b.Credentials)) {
				d.say(Wider, "network.allow", "the rule for %s now comes before the one for %s: where both say the same, credentials and budget are its own", a.words(), b.target())
			}
		}
	}
}

// byTarget groups rules by what they let reach.
func byTarget(rs []HostRule) map[string][]HostRule {
	out := map[string][]HostRule{}
	for _, r := range rs {
		k := r.target()
		out[k] = append(out[k], r)
	}
	return out
}

func (h HostRule) target() string {
	return portWords(HostRule{Host: h.Host, Domain: h.Domain, CIDR: h.CIDR, Ports: h.Ports}, "ports 80 and 443")
}

// rules compares the rules for one target: term by term where there is one on
// each side, else as wholes.
func (d *differ) rules(x, y []HostRule) {
	text := func(rs []HostRule) []string {
		out := make([]string, len(rs))
		for i, r := range rs {
			out[i] = r.YAML()
		}
		return out
	}
	tx, ty := text(x), text(y)
	x = slices.DeleteFunc(slices.Clone(x), func(r HostRule) bool { return slices.Contains(ty, r.YAML()) })
	y = slices.DeleteFunc(slices.Clone(y), func(r HostRule) bool { return slices.Contains(tx, r.YAML()) })
	if len(x) == 1 && len(y) == 1 {
		d.terms(x[0], y[0])
		return
	}
	for _, r := range y {
		d.say(Wider, "network.allow", "agent may now reach %s", r.words())
	}
	for _, r := range x {
		d.gone(&r)
	}
}

// gone says that a rule is there no more. It may also have held others for its
// destination in check: the strictest governs.
func (d *differ) gone(r *HostRule) {
	if i := slices.IndexFunc(d.b.Network.Allow, func(o HostRule) bool { return r.checks(&o) }); i >= 0 {
		d.say(Wider, "network.allow", "agent reaches %s as the rule for %s says, which the one that is gone no longer holds in check", r.words(), d.b.Network.Allow[i].target())
		return
	}
	d.say(Narrower, "network.allow", "agent may no longer reach %s", r.words())
}

// checks says whether another rule could let more pass if h were not there.
func (h *HostRule) checks(o *HostRule) bool {
	return o.touches(h) && (h.Inspected() || treatment(h) < treatment(o) || h.Budget != LinkBudget{} && h.Budget != o.Budget) && o.YAML() != h.YAML()
}

// words says the whole rule.
func (h HostRule) words() string {
	s := h.target()
	if h.Protocol != "" {
		s += " as " + h.Protocol
	}
	if h.Path != "" {
		s += " on the paths " + h.Path
	}
	switch {
	case !h.Inspected():
	case h.Access == "" && len(h.Calls) == 0, h.Access == "full":
		s += ", for every call"
	default:
		s += ", for " + strings.Join(append(slices.DeleteFunc([]string{h.Access}, empty), callWords(h.Calls)...), "; ")
	}
	if len(h.DenyCalls) > 0 {
		s += ", but not " + strings.Join(callWords(h.DenyCalls), "; ")
	}
	if len(h.Binaries) > 0 {
		s += ", from " + strings.Join(h.Binaries, ", ")
	}
	if len(h.AllowedIPs) > 0 {
		s += ", where it leads to " + strings.Join(h.AllowedIPs, ", ")
	}
	if len(h.Credentials) > 0 {
		s += ", with the credential " + strings.Join(h.Credentials, ", ")
	}
	if h.Inspected() && !h.Inspect {
		s += ", in clear"
	}
	if h.Budget != (LinkBudget{}) {
		s += ", within " + h.Budget.yaml()
	}
	return s
}

func empty(s string) bool { return s == "" }

func callWords(cs []CallRule) []string {
	out := make([]string, len(cs))
	for i, c := range cs {
		out[i] = c.String()
	}
	return out
}

// terms compares two rules for one target.
func (d *differ) terms(x, y HostRule) {
	at := func(field string) string { return "network.allow." + field }
	where := " at " + x.target()
	d.anyOf(at("binaries"), "agent may now use it"+where+" from", "agent may no longer use it"+where+" from", x.Binaries, y.Binaries)
	if x.Protocol != y.Protocol {
		kind := Wider // other messages, at least
		if treatment(&y) < treatment(&x) && !x.Inspected() {
			kind = Narrower
		}
		d.say(kind, at("protocol"), "the protocol%s is now %s, was %s", where, orOpen(y.Protocol), orOpen(x.Protocol))
	}
	if x.Inspect != y.Inspect {
		word := "no longer decrypted"
		switch {
		case y.Inspect:
			word = "now decrypted"
		case y.Inspected():
			word = "now refused"
		}
		d.say(Other, at("inspect"), "TLS%s is %s", where, word)
	}
	if x.Path != y.Path { // it speaks for other requests, and no longer for these
		d.say(Wider, at("path"), "the path that the rule%s is for is now %s, was %s", where, orNone(y.Path), orNone(x.Path))
	}
	d.beside(x, y)
	d.calls(at, where, x, y)
	d.leads(at("allowedIPs"), x, y)
	d.listed(at("credentials"), "have put in"+where+" the credential", x.Credentials, y.Credentials)
	d.bound(at("budget.up"), "bytes sent"+where, x.Budget.Up, y.Budget.Up, formatSize)
	d.bound(at("budget.down"), "bytes received"+where, x.Budget.Down, y.Budget.Down, formatSize)
	d.bound(at("budget.perMinute"), "requests a minute"+where, int64(x.Budget.PerMinute), int64(y.Budget.PerMinute), formatCount)
	d.bound(at("budget.connections"), "connections at once"+where, int64(x.Budget.Connections), int64(y.Budget.Connections), formatCount)
}

// beside says what a narrower rule means where others speak for its destination:
// what it no longer speaks for is theirs, and what it now inspects too.
func (d *differ) beside(x, y HostRule) {
	if slices.Equal(x.Binaries, y.Binaries) && slices.Equal(x.AllowedIPs, y.AllowedIPs) && x.Path == y.Path && x.Protocol == y.Protocol {
		return
	}
	i := slices.IndexFunc(d.b.Network.Allow, func(o HostRule) bool {
		return (x.checks(&o) || o.touches(&y) && o.Inspected() && y.Inspected()) && o.YAML() != y.YAML()
	})
	if i >= 0 {
		d.say(Wider, "network.allow", "what the rule for %s no longer governs, the rule for %s does", x.target(), d.b.Network.Allow[i].words())
	}
}

// leads compares allowedIPs, of which an empty list means public addresses:
// neither covers the other.
func (d *differ) leads(field string, x, y HostRule) {
	if len(x.AllowedIPs) == 0 && len(y.AllowedIPs) == 0 {
		return
	}
	if len(x.AllowedIPs) == 0 || len(y.AllowedIPs) == 0 {
		d.say(Wider, field, "the addresses that %s may lead to are now %s, were %s", x.target(), leadWords(y), leadWords(x))
		return
	}
	d.anyOf(field, x.target()+" may now lead to", x.target()+" may no longer lead to", x.AllowedIPs, y.AllowedIPs)
}

func leadWords(h HostRule) string {
	if len(h.AllowedIPs) == 0 {
		return "public ones"
	}
	return strings.Join(h.AllowedIPs, ", ")
}

func orOpen(protocol string) string {
	if protocol == "" {
		return "not inspected"
	}
	return protocol
}

// calls compares access, calls and denyCalls.
func (d *differ) calls(at func(string) string, where string, x, y HostRule) {
	d.ranked(at("access"), "access"+where, accessOrFull(x), accessOrFull(y), "full", "read-write", "read-only", "")
	cx, cy := yamls(x.Calls), yamls(y.Calls)
	for i, c := range y.Calls {
		if !slices.Contains(cx, cy[i]) {
			d.say(Wider, at("calls"), "agent may now call %s%s", c, where)
		}
	}
	for i, c := range x.Calls {
		if !slices.Contains(cy, cx[i]) {
			d.say(Narrower, at("calls"), "agent may no longer call %s%s", c, where)
		}
	}
	nx, ny := yamls(x.DenyCalls), yamls(y.DenyCalls)
	for i, c := range y.DenyCalls {
		if !slices.Contains(nx, ny[i]) {
			d.say(Narrower, at("denyCalls"), "agent must not call %s%s any more", c, where)
		}
	}
	for i, c := range x.DenyCalls {
		if !slices.Contains(ny, nx[i]) {
			d.say(Wider, at("denyCalls"), "no rule forbids %s%s any more", c, where)
		}
	}
}

func accessOrFull(h HostRule) string {
	if h.Access == "" && len(h.Calls) == 0 && h.Inspected() {
		return "full"
	}
	return h.Access
}

func yamls(cs []CallRule) []string {
	out := make([]string, len(cs))
	for i, c := range cs {
		out[i] = c.YAML()
	}
	return out
}

// anyOf compares lists of which an empty one means anything.
func (d *differ) anyOf(field, now, noLonger string, x, y []string) {
	switch {
	case slices.Equal(x, y):
	case len(y) == 0:
		d.say(Wider, field, "%s anything, was %s", now, strings.Join(x, ", "))
	case len(x) == 0:
		d.say(Narrower, field, "%s anything but %s", noLonger, strings.Join(y, ", "))
	default:
		for _, s := range only(y, x) {
			d.say(Wider, field, "%s %s", now, s)
		}
		for _, s := range only(x, y) {
			d.say(Narrower, field, "%s %s", noLonger, s)
		}
		if len(only(x, y))+len(only(y, x)) == 0 {
			d.say(Same, field, "%s the same, in another order", now)
		}
	}
}
