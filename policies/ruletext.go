package policies

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// String gives the rule as an operator would say it: "api.example.com:443",
// "domain evil.example", "10.1.0.0/16:443,8443", "api.example.com:443 as http
// below /v1/** for /usr/bin/git".
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
	if r.Protocol != "" {
		s += " as " + r.Protocol
	}
	if r.Path != "" {
		s += " at " + r.Path
	}
	if len(r.Binaries) > 0 {
		s += " for " + strings.Join(r.Binaries, ", ")
	}
	return s
}

// pair is one "key: value" of a flow mapping; an empty value leaves it out.
type pair struct{ key, val string }

func flowMap(ps ...pair) string {
	var out []string
	for _, p := range ps {
		if p.val != "" {
			out = append(out, p.key+": "+p.val)
		}
	}
	return "{" + strings.Join(out, ", ") + "}"
}

// opt writes a value, or nothing for an empty one.
func opt(s string) string {
	if s == "" {
		return ""
	}
	return scalar(s)
}

func optFlow(ss []string) string {
	if len(ss) == 0 {
		return ""
	}
	return flow(ss)
}

func optInt(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func optSize(n int64) string {
	if n == 0 {
		return ""
	}
	return formatSize(n)
}

func optInts(ns []int) string {
	if len(ns) == 0 {
		return ""
	}
	out := make([]string, len(ns))
	for i, n := range ns {
		out[i] = strconv.Itoa(n)
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// YAML gives the rule in canonical form: {host: api.example.com, ports: [443]}.
func (r HostRule) YAML() string {
	ps := []pair{
		{"host", opt(r.Host)},
		{"domain", opt(r.Domain)},
		{"cidr", opt(r.CIDR)},
		{"ports", optInts(r.Ports)},
		{"binaries", optFlow(r.Binaries)},
		{"protocol", opt(r.Protocol)},
	}
	if r.Host+r.Domain+r.CIDR == "" {
		ps[0].val = `""` // not a rule; Parse says so
	}
	if r.Inspected() != r.Inspect {
		ps = append(ps, pair{"inspect", strconv.FormatBool(r.Inspect)})
	}
	access := r.Access
	if r.Inspected() && access == "" && len(r.Calls) == 0 {
		access = "full"
	}
	ps = append(ps, pair{"path", opt(r.Path)}, pair{"access", opt(access)}, pair{"calls", optCalls(r.Calls)}, pair{"denyCalls", optCalls(r.DenyCalls)},
		pair{"allowedIPs", optFlow(r.AllowedIPs)}, pair{"credentials", optFlow(r.Credentials)})
	if b := r.Budget; b != (LinkBudget{}) {
		ps = append(ps, pair{"budget", b.yaml()})
	}
	return flowMap(ps...)
}

func (b LinkBudget) yaml() string {
	return flowMap(pair{"up", optSize(b.Up)}, pair{"down", optSize(b.Down)}, pair{"perMinute", optInt(b.PerMinute)}, pair{"connections", optInt(b.Connections)})
}

func optCalls(cs []CallRule) string {
	out := make([]string, len(cs))
	for i, c := range cs {
		out[i] = c.YAML()
	}
	if len(out) == 0 {
		return ""
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// YAML gives the entry in canonical form: {method: GET, path: "/repos/**"}.
func (c CallRule) YAML() string {
	return flowMap(pair{"method", opt(c.Method)}, pair{"path", opt(c.Path)}, pair{"query", table(c.Query)},
		pair{"operation", opt(c.Operation)}, pair{"operationName", opt(c.OperationName)}, pair{"fields", optFlow(c.Fields)},
		pair{"rpc", opt(c.RPC)}, pair{"tool", optFlow(c.Tool)}, pair{"args", table(c.Args)}, pair{"frame", opt(c.Frame)})
}

// table writes patterns by name, in the order of the names.
func table(m map[string][]string) string {
	var ps []pair
	for _, k := range slices.Sorted(maps.Keys(m)) {
		ps = append(ps, pair{scalar(k), flow(m[k])})
	}
	if len(ps) == 0 {
		return ""
	}
	return flowMap(ps...)
}

// String gives the entry as an operator would say it: "GET /repos/**".
func (c CallRule) String() string {
	words := []string{
		c.Method, c.Path, tableWords("?", c.Query), c.Operation, c.OperationName, strings.Join(c.Fields, ","),
		c.RPC, strings.Join(c.Tool, ","), tableWords("with ", c.Args),
	}
	if c.Frame != "" {
		words = append(words, c.Frame+" frames")
	}
	return strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), " ")
}

func tableWords(before string, m map[string][]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+strings.Join(m[k], "|"))
	}
	if len(out) == 0 {
		return ""
	}
	return before + strings.Join(out, "&")
}

// place puts a rule's file and line before its text.
func place(file string, line int) string {
	if line == 0 || file == "" {
		return "added: "
	}
	return file + ":" + strconv.Itoa(line) + ": "
}

// WithAllow returns a copy of p that also allows r, as when an operator
// approves a destination. Deny rules still win. A rule that could not have
// been written in this policy (see docs/policy.md) adds nothing.
func (p *Policy) WithAllow(r HostRule) *Policy {
	q := *p
	q.Network.Allow = slices.Clone(p.Network.Allow)
	if r.Host != "" && (r.Domain != "" || r.CIDR != "") || r.Domain != "" && r.CIDR != "" {
		return &q // YAML would name one of them only
	}
	d := decoder{file: "approval", p: &q, set: map[string]*yaml.Node{}}
	var n yaml.Node
	if err := yaml.Load([]byte(r.YAML()), &n); err != nil || len(n.Content) != 1 {
		return &q
	}
	clean, ok := d.hostRule(n.Content[0], Allow)
	clean.Line, clean.file = 0, ""
	known := slices.ContainsFunc(q.Network.Allow, func(h HostRule) bool { return h.YAML() == clean.YAML() })
	if !ok || known {
		return &q
	}
	before := q.Network.Allow
	q.Network.Allow = append(slices.Clip(before), clean)
	if d.finishRules(); len(d.errs) > 0 {
		q.Network.Allow = before
	}
	return &q
}
