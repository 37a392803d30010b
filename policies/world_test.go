package policies

import (
	"math/rand/v2"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

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
