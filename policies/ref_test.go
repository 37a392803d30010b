package policies

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// The reference: the language as docs/policy.md says it, slow and obvious.

// chain is p and every folder above it; nil for a path that cannot be asked about.
func chain(p string) []string {
	if !strings.HasPrefix(p, "/") || strings.Contains(p, "\x00") || len(p) > 4095 {
		return nil
	}
	at, out := "", []string{"/"}
	for _, c := range strings.Split(p, "/") {
		switch c {
		case "..":
			return nil
		case "", ".":
			continue
		}
		at += "/" + c
		out = append(out, at)
	}
	return out
}

func meet(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}

func refPath(p *Policy, r Request) Verdict {
	c := chain(r.Path)
	if c == nil {
		return Deny
	}
	leaf := c[len(c)-1]
	listed, readable := false, false
	for _, e := range p.Process.Exec {
		for _, folder := range c {
			inside := folder != leaf && strings.TrimSuffix(folder, "/")+"/" == e
			listed = listed || inside
			readable = readable || inside || strings.TrimSuffix(folder, "/")+"/" == e
		}
		listed = listed || leaf == e && leaf != "/"
		readable = readable || leaf == e
	}
	writable := meet(c, p.Filesystem.Write)
	pin, pinned := p.Process.ExecHashes[leaf]
	listed = listed && (!pinned || pin == r.Digest)
	ok := map[Action]bool{
		Read:  meet(c, p.Filesystem.Read) || writable || readable,
		Write: writable,
		Exec:  listed && !writable,
	}[r.Action]
	if ok {
		return Allow
	}
	return Deny
}

// refGlob tries every length of every run; sep ends a "*" and a "?".
func refGlob(p, s string, sep rune) bool {
	if p == "" {
		return s == ""
	}
	if rest, ok := strings.CutPrefix(p, "**"); ok {
		for i := range len(s) + 1 {
			if refGlob(rest, s[i:], sep) {
				return true
			}
		}
		return false
	}
	if p[0] == '*' {
		for i := range len(s) + 1 {
			if refGlob(p[1:], s[i:], sep) {
				return true
			}
			if i < len(s) && rune(s[i]) == sep {
				return false
			}
		}
		return false
	}
	return s != "" && (p[0] == s[0] || p[0] == '?' && rune(s[0]) != sep) && refGlob(p[1:], s[1:], sep)
}

func refWide(p, s string) bool { return refGlob(strings.ToLower(p), strings.ToLower(s), 0) }

// refReadings lists what a reader could take a path pattern for.
func refReadings(p string) []string {
	out := []string{p}
	for i := 0; i < len(out); i++ {
		for at := range out[i] {
			if strings.HasPrefix(out[i][at:], "/**/") {
				if q := out[i][:at] + out[i][at+3:]; !slices.Contains(out, q) {
					out = append(out, q)
				}
			}
		}
	}
	for _, q := range out {
		if trimmed := strings.TrimRight(q, "*"); strings.HasSuffix(trimmed, "/") && trimmed != "/" {
			out = append(out, strings.TrimSuffix(trimmed, "/"))
		}
	}
	return out
}

func refWidePath(p, s string) bool {
	if s != "/" {
		s = strings.TrimSuffix(s, "/")
	}
	return slices.ContainsFunc(refReadings(p), func(q string) bool { return refWide(q, s) })
}

// refHost matches label by label, from the right.
func refHost(r HostRule, host string) bool {
	addr, err := netip.ParseAddr(host)
	if r.CIDR != "" {
		return err == nil && netip.MustParsePrefix(r.CIDR).Contains(addr)
	}
	if err == nil {
		return host == r.Host
	}
	pattern := r.Host
	if r.Domain != "" {
		pattern = r.Domain
	}
	want, got := strings.Split(pattern, "."), strings.Split(host, ".")
	deep := r.Domain != ""
	if want[0] == "**" {
		want[0], deep = "*", true
	}
	if len(got) < len(want) || !deep && len(got) != len(want) {
		return false
	}
	for i := 1; i <= len(want); i++ {
		if !refGlob(want[len(want)-i], got[len(got)-i], '.') {
			return false
		}
	}
	return true
}

func refHostDenied(r HostRule, host string) bool {
	if r.Host == "*" {
		return true
	}
	if !strings.Contains(r.Host, "*") {
		return refHost(r, host)
	}
	base, star := strings.CutPrefix(strings.TrimLeft(r.Host, "*"), ".")
	return refWide(r.Host, host) || star && strings.HasPrefix(r.Host, "*") && refWide(base, host)
}

func refPorts(ports []int, port int, none ...int) bool {
	if len(ports) == 0 {
		ports = none
	}
	return len(ports) == 0 || slices.Contains(ports, port)
}

func refReaches(a HostRule, host string, port int) bool {
	_, noAddr := netip.ParseAddr(host)
	if strings.Contains(a.Host, "*") && noAddr == nil {
		return false
	}
	return refPorts(a.Ports, port, 80, 443) && (a.Host == "*" || refHost(a, host))
}

func refRuns(a HostRule, r Request) bool {
	if len(a.Binaries) == 0 {
		return true
	}
	for _, who := range append([]string{r.Binary}, r.Ancestors...) {
		c := chain(who)
		if c == nil {
			continue
		}
		leaf := c[len(c)-1]
		for _, b := range a.Binaries {
			if strings.HasSuffix(b, "/") && leaf+"/" != b && strings.HasPrefix(leaf, b) || refGlob(b, leaf, '/') {
				return true
			}
		}
	}
	return false
}

// refPrivate is a short list, as the generator needs it.
func refPrivate(a netip.Addr) bool {
	return slices.ContainsFunc([]string{"10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "fc00::/7", "64:ff9b::/96"}, func(s string) bool {
		return netip.MustParsePrefix(s).Contains(a)
	})
}

func refLeads(p *Policy, a HostRule, r Request, host string) bool {
	_, noAddr := netip.ParseAddr(host)
	if !r.Addr.IsValid() || noAddr == nil {
		return true
	}
	for _, n := range a.AllowedIPs {
		if netip.MustParsePrefix(n).Contains(r.Addr) {
			return true
		}
	}
	if len(a.AllowedIPs) > 0 {
		return false
	}
	ok := !refPrivate(r.Addr)
	for _, b := range p.Network.Allow {
		ok = ok || refReaches(b, r.Addr.String(), r.Port) && refRuns(b, r)
	}
	return ok
}

func refConnect(p *Policy, r Request) (Verdict, []HostRule, string) {
	host := strings.TrimSuffix(strings.ToLower(r.Host), ".")
	if host == "" || strings.ContainsAny(host, "* ") || r.Port < 1 || r.Port > 65535 {
		return Deny, nil, host
	}
	if lit, err := netip.ParseAddr(host); err == nil && r.Addr.IsValid() && lit != r.Addr {
		return Deny, nil, host
	}
	for _, d := range p.Network.Deny {
		if refPorts(d.Ports, r.Port) && (refHostDenied(d, host) || r.Addr.IsValid() && refHostDenied(d, r.Addr.String())) {
			return Deny, nil, host
		}
	}
	var admit []HostRule
	misled := false
	for _, a := range p.Network.Allow {
		switch {
		case !refReaches(a, host, r.Port) || !refRuns(a, r):
		case !refLeads(p, a, r, host):
			misled = true
		default:
			admit = append(admit, a)
		}
	}
	switch {
	case len(admit) > 0:
		return Allow, admit, host
	case misled:
		return Deny, nil, host
	}
	return p.Network.Default, nil, host
}

func refCall(p *Policy, r Request) Verdict {
	v, admit, host := refConnect(p, r)
	if v != Allow {
		return v
	}
	m := r.Message
	if !refMessage(m) {
		return Deny
	}
	for _, a := range p.Network.Allow {
		if !refReaches(a, host, r.Port) || r.Binary != "" && !refRuns(a, r) || a.Path != "" && !refWidePath(a.Path, m.Path) {
			continue
		}
		if slices.ContainsFunc(a.DenyCalls, func(c CallRule) bool { return refDenies(c, m) }) {
			return Deny
		}
	}
	judged, longest := []HostRule{}, 0
	anyInspected := slices.ContainsFunc(admit, HostRule.Inspected)
	for _, a := range admit {
		if (!anyInspected || a.Inspected()) && (a.Path == "" || refGlob(a.Path, m.Path, '/')) {
			judged = append(judged, a)
			longest = max(longest, len(a.Path))
		}
	}
	ok := false
	for _, a := range judged {
		if len(a.Path) < longest {
			continue
		}
		if a.Inspected() && a.Protocol != m.Protocol {
			return Deny
		}
		ok = ok || refLets(a, m)
	}
	if ok {
		return Allow
	}
	return Deny
}

func refMessage(m *Message) bool {
	if m == nil || m.Method == "" || !strings.HasPrefix(m.Path, "/") || strings.Contains(m.Path, "//") {
		return false
	}
	if s := strings.Split(m.Path, "/"); slices.Contains(s, ".") || slices.Contains(s, "..") {
		return false
	}
	switch m.Protocol {
	case "http":
		return true
	case "graphql":
		return m.Operation != ""
	case "websocket":
		return slices.Contains([]string{"", "text", "binary"}, m.Frame)
	case "json-rpc":
		return m.RPC != ""
	case "mcp":
		if m.RPC == "" {
			return slices.Contains([]string{"GET", "POST", "DELETE"}, m.Method)
		}
		return (m.RPC == "tools/call") == (m.Tool != "")
	}
	return false
}

func refLets(a HostRule, m *Message) bool {
	if !a.Inspected() || a.Access == "full" || a.Access == "" && len(a.Calls) == 0 || m.Protocol == "mcp" && m.RPC == "" {
		return true
	}
	safe := map[string]string{
		"http read-only": "GET HEAD OPTIONS", "http read-write": "GET HEAD OPTIONS POST PUT PATCH",
		"graphql read-only": "query", "graphql read-write": "query mutation",
		"websocket read-only": "shake", "websocket read-write": "shake text",
	}[a.Protocol+" "+a.Access]
	does := map[string]string{"http": m.Method, "graphql": m.Operation, "websocket": cmp.Or(m.Frame, "shake")}[m.Protocol]
	if slices.Contains(strings.Fields(safe), does) {
		return true
	}
	graph := false
	for _, c := range slices.Concat(a.Calls, a.DenyCalls) {
		graph = graph || a.Protocol == "websocket" && (c.Operation != "" || c.OperationName != "" || len(c.Fields) > 0)
	}
	if graph && m.Frame == "text" && m.Operation == "control" {
		return true
	}
	return slices.ContainsFunc(a.Calls, func(c CallRule) bool {
		isGraph := c.Operation != "" || c.OperationName != "" || len(c.Fields) > 0
		return (!graph || m.Frame != "text" || isGraph) && refAllows(c, m)
	})
}

// refAllows: each field that is set must hold.
func refAllows(c CallRule, m *Message) bool {
	all := func(patterns, values []string) bool {
		n := 0
		for _, v := range values {
			if slices.ContainsFunc(patterns, func(p string) bool { return refGlob(p, v, 0) }) {
				n++
			}
		}
		return n > 0 && n == len(values)
	}
	real := m.Operation != "" && m.Operation != "control"
	ok := c.Method == "" || c.Method == "*" || c.Method == m.Method || c.Method == "GET" && m.Method == "HEAD"
	ok = ok && (c.Path == "" || refGlob(c.Path, m.Path, '/'))
	for k, ps := range c.Query {
		ok = ok && all(ps, m.Query[k])
	}
	ok = ok && (c.Operation == "" || real && (c.Operation == "*" || c.Operation == m.Operation))
	ok = ok && (c.OperationName == "" || real && refGlob(c.OperationName, m.OperationName, 0))
	ok = ok && (len(c.Fields) == 0 || real && all(c.Fields, m.Fields))
	ok = ok && (c.RPC == "" || m.RPC != "" && refGlob(c.RPC, m.RPC, 0))
	ok = ok && (len(c.Tool)+len(c.Args) == 0 || m.RPC == "tools/call")
	ok = ok && (len(c.Tool) == 0 || all(c.Tool, []string{m.Tool}))
	for k, ps := range c.Args {
		v, is := m.Args[k].(string)
		ok = ok && is && all(ps, []string{v})
	}
	if m.Protocol != "websocket" {
		return ok && c.Frame == ""
	}
	isGraph := c.Operation != "" || c.OperationName != "" || len(c.Fields) > 0
	switch {
	case c.Frame != "":
		return ok && (c.Frame == m.Frame || c.Frame == "*" && m.Frame != "")
	case isGraph:
		return ok && m.Frame == "text"
	case c.Method == "" || c.Method == "*":
		return ok
	}
	return ok && m.Frame == ""
}

// refDenies: each field that is set must hold in some reading.
func refDenies(c CallRule, m *Message) bool {
	some := func(patterns, values []string) bool {
		for _, v := range values {
			for _, p := range patterns {
				if refWide(p, v) {
					return true
				}
			}
		}
		return false
	}
	real := m.Operation != "" && m.Operation != "control"
	ok := c.Method == "" || refWide(c.Method, m.Method) || c.Method == "GET" && m.Method == "HEAD"
	ok = ok && (c.Path == "" || refWidePath(c.Path, m.Path))
	for k, ps := range c.Query {
		var vs []string
		for q, v := range m.Query {
			if strings.EqualFold(k, q) {
				vs = append(vs, v...)
			}
		}
		ok = ok && some(ps, vs)
	}
	ok = ok && (c.Operation == "" || real && refWide(c.Operation, m.Operation))
	ok = ok && (c.OperationName == "" || real && refWide(c.OperationName, m.OperationName))
	ok = ok && (len(c.Fields) == 0 || real && some(c.Fields, m.Fields))
	ok = ok && (c.RPC == "" || m.RPC != "" && refWide(c.RPC, m.RPC))
	ok = ok && (len(c.Tool)+len(c.Args) == 0 || m.RPC == "tools/call")
	ok = ok && (len(c.Tool) == 0 || some(c.Tool, []string{m.Tool}))
	for k, ps := range c.Args {
		var vs []string
		for a, v := range m.Args {
			if s, is := v.(string); is && strings.EqualFold(k, a) {
				vs = append(vs, s)
			}
			for _, x := range asList(v) {
				if s, is := x.(string); is && strings.EqualFold(k, a) {
					vs = append(vs, s)
				}
			}
		}
		ok = ok && some(ps, vs)
	}
	return ok && (c.Frame == "" || c.Frame == m.Frame || c.Frame == "*" && m.Frame != "")
}

func asList(v any) []any { l, _ := v.([]any); return l }

func refInfer(p *Policy, r Request) (Verdict, string, bool) {
	for _, route := range p.Inference.Routes {
		for _, m := range route.Models {
			if r.Model == "" || m != r.Model && m != "*" {
				continue
			}
			if r.Sensitive && route.Upstream != "local" && p.Inference.Sensitive == "deny" {
				return Deny, route.Upstream, false
			}
			return Allow, route.Upstream, r.Sensitive && route.Upstream != "local"
		}
	}
	return Deny, "", false
}

// world makes small random policies and requests that often meet.
type world struct{ *rand.Rand }

func pick[T any](w world, of ...T) T { return of[w.IntN(len(of))] }

func some[T any](w world, gen func() T) []T {
	out := make([]T, w.IntN(4))
	for i := range out {
		out[i] = gen()
	}
	return out
}

func (w world) path() string {
	s := ""
	for range 1 + w.IntN(3) {
		s += "/" + pick(w, "a", "b", "ab")
	}
	return s
}

func (w world) host() string {
	s := pick(w, "a", "b", "ab", "xn--bcher-kva")
	for range w.IntN(3) {
		s = pick(w, "a", "b", "ab") + "." + s
	}
	return pick(w, s, s, s, "10.0.0.1", "10.0.1.1", "fd00::1")
}

func (w world) rule(v Verdict) HostRule {
	r := HostRule{Ports: pick(w, nil, []int{443}, []int{443}, []int{22, 8443})}
	h := w.host()
	_, addr := isAddr(h)
	switch w.IntN(6) {
	case 0:
		r.CIDR = pick(w, "10.0.0.0/24", "10.0.0.0/8", "fd00::/8", "93.184.0.0/16")
	case 1:
		if r.Domain = h; addr {
			r.Domain, r.Host = "", h
		}
	case 2:
		r.Host = "*"
		if v == Deny && r.Ports == nil {
			r.Ports = []int{443}
		}
	case 3:
		r.Host = h
		if !addr {
			r.Host = pick(w, "*.", "**.", "a*.") + h
		}
		if v == Deny {
			r.Host = pick(w, "*.a", "a*", "*b*", "*.*.b", "**.ab")
		}
	default:
		r.Host = h
	}
	if v == Allow {
		w.terms(&r)
	}
	return r
}

// terms gives most rules something that narrows them.
func (w world) terms(r *HostRule) {
	if w.IntN(3) == 0 {
		r.Binaries = pick(w, []string{"/a"}, []string{"/a/"}, []string{"/b", "/*/b"}, []string{"/**/a"}, []string{"/**"})
	}
	if r.CIDR == "" && r.named() && w.IntN(4) == 0 {
		r.AllowedIPs = pick(w, []string{"10.0.0.0/24"}, []string{"93.184.216.34/32"}, []string{"fd00::/8", "10.0.0.0/8"})
	}
	r.Protocol = pick(w, "", "", "tcp", "http", "http", "http", "graphql", "websocket", "mcp", "json-rpc")
	if !r.Inspected() {
		return
	}
	r.Inspect = w.IntN(4) > 0
	r.Path = pick(w, "", "", "", "/a", "/a/**", "/*/b")
	if r.Protocol != "mcp" && r.Protocol != "json-rpc" {
		r.Access = pick(w, "", "", "read-only", "read-write", "full")
	}
	r.Calls = some(w, func() CallRule { return w.call(r.Protocol) })
	if w.IntN(2) == 0 {
		r.DenyCalls = some(w, func() CallRule { return w.call(r.Protocol) })
	}
}

func (w world) glob() string { return pick(w, "a", "b", "*", "a*", "*b", "?", "A") }

func (w world) globs() []string { return pick(w, []string{w.glob()}, []string{w.glob(), w.glob()}) }

func (w world) pathGlob() string {
	return pick(w, "/a", "/a/*", "/a/**", "/*", "/**/b", "/a/**/b", "/**/a/**/b", "**", "/", "/A/b", "/a*")
}

func (w world) request2() CallRule {
	c := CallRule{Method: pick(w, "GET", "POST", "DELETE", "*"), Path: pick(w, "", w.pathGlob())}
	if w.IntN(4) == 0 {
		c.Query = map[string][]string{pick(w, "q", "Q"): w.globs()}
	}
	return c
}

func (w world) call(protocol string) CallRule {
	graph := CallRule{Operation: pick(w, "*", "query", "mutation")}
	if w.IntN(2) == 0 {
		graph.OperationName = w.glob()
	}
	if w.IntN(2) == 0 {
		graph.Fields = w.globs()
	}
	switch protocol {
	case "graphql":
		return graph
	case "websocket":
		shake := CallRule{Method: "GET", Path: pick(w, "", w.pathGlob())}
		return pick(w, graph, shake, shake, CallRule{Frame: pick(w, "text", "binary", "*"), Path: pick(w, "", w.pathGlob())})
	case "mcp":
		c := CallRule{Tool: w.globs()}
		if w.IntN(2) == 0 {
			c.Args = map[string][]string{pick(w, "q", "Q"): w.globs()}
		}
		return pick(w, c, c, CallRule{RPC: pick(w, "tools/*", "a", "*", "notifications/*")})
	case "json-rpc":
		return CallRule{RPC: w.glob()}
	}
	return w.request2()
}

func (w world) message() *Message {
	m := &Message{Protocol: pick(w, inspected...), Method: pick(w, "GET", "GET", "POST", "HEAD", "DELETE", "")}
	if w.IntN(30) == 0 {
		return pick(w, nil, &Message{}, &Message{Protocol: "smtp", Method: "GET", Path: "/"})
	}
	m.Path = pick(w, w.path(), w.path(), w.path(), "/", w.path()+"/", "/A", "//a", "/a/../b", "a")
	if w.IntN(3) == 0 {
		m.Query = url.Values{pick(w, "q", "Q"): pick(w, []string{"a"}, []string{"a", "b"}, []string{})}
	}
	switch m.Protocol {
	case "graphql", "websocket":
		if w.IntN(5) > 0 {
			m.Operation, m.OperationName = pick(w, "query", "mutation", "subscription", "control"), pick(w, "", "a", "ab")
			m.Fields = pick(w, nil, []string{"a"}, []string{"a", "b"})
		}
		if m.Protocol == "websocket" {
			m.Frame = pick(w, "", "text", "text", "binary", "odd")
		}
	case "mcp", "json-rpc":
		m.RPC = pick(w, "", "a", "b", "notifications/a", "tools/call")
		if m.Protocol == "mcp" && (m.RPC == "tools/call" || w.IntN(10) == 0) {
			m.RPC, m.Tool = "tools/call", pick(w, "a", "b", "ab", "")
			m.Args = pick(w, nil, map[string]any{"q": "a"}, map[string]any{"Q": "b"}, map[string]any{"q": []any{"a"}})
		}
	}
	return m
}

func (w world) policy(base *Policy) *Policy {
	p := *base
	p.at = nil
	p.Filesystem = Filesystem{Read: append(some(w, w.path), "/c"), Write: some(w, w.path), Workdir: "/c"}
	p.Process.Exec = some(w, func() string { return w.path() + pick(w, "", "/") })
	p.Process.ExecHashes = nil
	if i := slices.IndexFunc(p.Process.Exec, func(e string) bool { return !strings.HasSuffix(e, "/") }); i >= 0 && w.IntN(2) == 0 {
		p.Process.ExecHashes = map[string]string{p.Process.Exec[i]: "sha256:" + pin}
	}
	p.Network = Network{
		Default: pick(w, Deny, Hold),
		Allow:   some(w, func() HostRule { return w.rule(Allow) }),
		Deny:    some(w, func() HostRule { return w.rule(Deny) }),
	}
	p.Inference.Routes = some(w, func() Route {
		return Route{Models: pick(w, []string{"*"}, []string{"m"}, []string{"n", "m"}), Upstream: pick(w, "local", "cloud")}
	})
	p.Inference.Sensitive = pick(w, "deny", "strip")
	return &p
}

func (w world) request() Request {
	p, h := w.path(), w.host()
	addr := netip.MustParseAddr(pick(w, "93.184.216.34", "10.0.0.1", "10.0.1.1", "127.0.0.1", "fd00::1", "2606:2800::1", "64:ff9b::1"))
	return Request{
		Action:    pick(w, Read, Write, Exec, Connect, Connect, Call, Call, Call, Call, Infer),
		Digest:    pick(w, "", "sha256:"+pin),
		Binary:    pick(w, "", "/a", "/a/b", "/b/a/b", "/b", "a", "/a/../b"),
		Ancestors: pick(w, nil, nil, []string{"/c", "/a"}),
		Addr:      pick(w, netip.Addr{}, netip.Addr{}, addr),
		Message:   w.message(),
		Path:      pick(w, p, p, p, p, "/", p+"/", "/."+p, p+"/../a", p[1:], ""),
		Host:      pick(w, h, h, h, h, strings.ToUpper(h), h+" ", "", "*"),
		Port:      pick(w, 443, 443, 80, 22, 8443, 0, 65536),
		Model:     pick(w, "m", "n", "o", ""),
		Sensitive: w.IntN(2) == 0,
	}
}

// about makes a request that has to do with p.
func (w world) about(p *Policy) Request {
	r := w.request()
	for path := range p.Process.ExecHashes {
		if r.Action == Exec {
			r.Path = path
		}
	}
	if len(p.Network.Allow) == 0 || w.IntN(4) == 0 {
		return r
	}
	h := p.Network.Allow[w.IntN(len(p.Network.Allow))]
	r.Host, r.Port = strings.NewReplacer("**", "b.a", "*", "a").Replace(h.Host+h.Domain), 443
	if h.CIDR != "" {
		r.Host = "10.0.0.1"
	}
	if len(h.Ports) > 0 {
		r.Port = h.Ports[0]
	}
	for h.Inspected() && (r.Message == nil || r.Message.Protocol != h.Protocol) {
		r.Message = w.message()
	}
	return r
}

func refDecide(p *Policy, r Request) (v Verdict, upstream string, strip bool) {
	switch r.Action {
	case Connect:
		v, _, _ := refConnect(p, r)
		return v, "", false
	case Call:
		return refCall(p, r), "", false
	case Infer:
		return refInfer(p, r)
	}
	return refPath(p, r), "", false
}

func agree(p *Policy, r Request) error {
	d := p.Decide(r)
	v, up, strip := refDecide(p, r)
	if d.Verdict != v || d.Upstream != up || d.Strip != strip {
		return fmt.Errorf("%s: got %+v, the reference says %s %q %v, under\n%s", r, d, v, up, strip, p.YAML())
	}
	return nil
}

// Decide against the reference on 100,000 pairs, and the laws that hold for
// every policy.
func TestDecideAgainstReference(t *testing.T) {
	base := preset(t, "sandbox")
	seen, reasons, parsed := map[Verdict]int{}, map[string]int{}, 0
	for seed := range uint64(5000) {
		w := world{rand.New(rand.NewPCG(seed, 1))}
		p := w.policy(base)
		var again *Policy
		if seed%4 == 0 {
			if q, err := Parse("again.yaml", p.YAML()); err == nil {
				again = q
				parsed++
			}
		}
		for range 20 {
			r := w.about(p)
			d := p.Decide(r)
			seen[d.Verdict]++
			reasons[d.Reason]++
			if err := agree(p, r); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if again != nil && again.Decide(r).Verdict != d.Verdict {
				t.Fatalf("seed %d: %s: parsed again, %+v became %+v\n%s", seed, r, d, again.Decide(r), p.YAML())
			}
			if err := w.laws(p, r, d); err != nil {
				t.Fatalf("seed %d: %s: %v\n%s", seed, r, err, p.YAML())
			}
		}
	}
	for _, v := range []Verdict{Allow, Deny, Hold} {
		if seen[v] < 2000 {
			t.Errorf("the generator is too narrow: %v", seen)
		}
	}
	for code := range meanings {
		if reasons[code] < 50 && code != ReasonPolicy && code != ReasonAction && code != ReasonModel {
			t.Errorf("the generator is too narrow: %s came %d times", code, reasons[code])
		}
	}
	if parsed < 200 { // the others contradict themselves, such as read inside write
		t.Errorf("only %d of 1250 random policies parse", parsed)
	}
}

// laws: one more denial never opens anything, one more allowance never
// overrides a denial, and opens connections only.
func (w world) laws(p *Policy, r Request, d Decision) error {
	q := *p
	q.Network.Deny = append(slices.Clone(p.Network.Deny), w.rule(Deny))
	if n := q.Decide(r); n.Verdict != d.Verdict && n.Verdict != Deny {
		return fmt.Errorf("one more deny rule turned %s into %s", d.Verdict, n.Verdict)
	}
	if len(p.Network.Allow) > 0 {
		q = *p
		q.Network.Allow = slices.Clone(p.Network.Allow)
		h := &q.Network.Allow[w.IntN(len(q.Network.Allow))]
		h.DenyCalls = append(slices.Clone(h.DenyCalls), w.call(pick(w, inspected...)))
		if n := q.Decide(r); n.Verdict != d.Verdict && n.Verdict != Deny {
			return fmt.Errorf("one more entry in denyCalls turned %s into %s", d.Verdict, n.Verdict)
		}
	}
	q = *p
	q.Network.Allow = append(slices.Clone(p.Network.Allow), w.rule(Allow))
	n := q.Decide(r)
	opens := slices.Contains([]string{ReasonUnlisted, ReasonBinary, ReasonAddress}, d.Reason)
	if r.Action != Call && n.Verdict != d.Verdict && !opens || d.Reason == ReasonDenied && n.Verdict != Deny || d.Reason == ReasonCallDenied && n.Verdict != Deny {
		return fmt.Errorf("one more allow rule turned %+v into %+v", d, n)
	}
	return nil
}

// FuzzDifferential lets the fuzzer choose the seeds.
func FuzzDifferential(f *testing.F) {
	base := preset(f, "sandbox")
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		w := world{rand.New(rand.NewPCG(a, b))}
		p := w.policy(base)
		for range 5 {
			if err := agree(p, w.about(p)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// narrow and wide against the obvious ones, on all short patterns and texts.
func TestGlobs(t *testing.T) {
	var patterns, texts []string
	var grow func(out *[]string, alphabet, s string, n int)
	grow = func(out *[]string, alphabet, s string, n int) {
		*out = append(*out, s)
		for i := 0; i < len(alphabet) && n > 0; i++ {
			grow(out, alphabet, s+alphabet[i:i+1], n-1)
		}
	}
	grow(&patterns, "a/*?", "", 5)
	grow(&texts, "aA/", "", 4)
	for _, p := range patterns {
		for _, s := range texts {
			if got, want := narrow(p, s, '/'), refGlob(p, s, '/'); got != want {
				t.Fatalf("narrow %q %q: got %v", p, s, got)
			}
			if got, want := thorough(p, s, '/', exactly), refGlob(p, s, '/'); got != want {
				t.Fatalf("thorough %q %q: got %v", p, s, got)
			}
			if got, want := thorough(p, s, 0, sameLetter), refWide(p, s); got != want {
				t.Fatalf("thorough, wide %q %q: got %v", p, s, got)
			}
			if got, want := wide(p, s), refWide(p, s); got != want {
				t.Fatalf("wide %q %q: got %v", p, s, got)
			}
			if got, want := widePath(p, s), refWidePath(p, s); got != want {
				t.Fatalf("widePath %q %q: got %v", p, s, got)
			}
			if narrow(p, s, '/') && !widePath(p, s) {
				t.Fatalf("%q in a denial matches less than in an allowance: %q", p, s)
			}
		}
	}
}

// What an agent sends cannot make one decision cost seconds: the quick matcher
// alone would need 10^11 steps here.
func TestGlobPatience(t *testing.T) {
	long := strings.Repeat("a", 1<<16)
	for _, p := range []string{"**a*b", "*a*a*a*b", "**a*a/**a*b"} {
		if narrow(p, long, '/') || wide(p, long) || widePath("/"+p, "/"+long) {
			t.Errorf("%q matched", p)
		}
	}
	if !narrow("**a*", long, '/') || !wide("*A*a", long) {
		t.Error("no match")
	}
}

// FuzzGlobs holds both matchers to one answer, on any bytes.
func FuzzGlobs(f *testing.F) {
	f.Add("/a/**/b*", "/a/\xff/é")
	f.Fuzz(func(t *testing.T, p, s string) {
		if len(p) > 64 || len(s) > 256 {
			return
		}
		for _, sep := range []rune{0, '/'} {
			if run(p, s, sep, exactly) != thorough(p, s, sep, exactly) || run(p, s, sep, sameLetter) != thorough(p, s, sep, sameLetter) {
				t.Errorf("%q %q %q: the two matchers differ", p, s, sep)
			}
		}
		if narrow(p, s, '/') && !widePath(p, s) {
			t.Errorf("%q in a denial matches less than in an allowance: %q", p, s)
		}
	})
}
