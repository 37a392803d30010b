package policies

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
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
	for _, a := range admit { // a longer path in another spelling
		if len(judged) == 0 || !a.Inspected() || len(a.Path) <= longest || refGlob(a.Path, m.Path, '/') || !refResembles(a.Path, m.Path) {
			continue
		}
		ok = ok && a.Protocol == m.Protocol && refLets(a, m)
	}
	if ok {
		return Allow
	}
	return Deny
}

// refResembles: case and a final slash do not count, and "/a/**" is also "/a".
func refResembles(pattern, path string) bool {
	path = "/" + strings.Trim(strings.ToLower(path), "/")
	pattern = strings.ToLower(pattern)
	folder, below := strings.CutSuffix(pattern, "/**")
	return refGlob("/"+strings.Trim(pattern, "/"), path, '/') || below && folder == path
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
	graph = graph && (m.Frame == "text" || m.Frame != "" && m.Operation != "")
	control := m.Operation == "control"
	named := func(c CallRule) bool { return c.Operation != "" || c.OperationName != "" || len(c.Fields) > 0 }
	if a.Protocol == "websocket" && control && m.Frame == "text" && slices.ContainsFunc(a.Calls, named) {
		return true
	}
	return slices.ContainsFunc(a.Calls, func(c CallRule) bool {
		isGraph := c.Operation != "" || c.OperationName != "" || len(c.Fields) > 0
		return (!graph || control || isGraph) && refAllows(c, m)
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
		var vs []string
		for q, v := range m.Query {
			if strings.EqualFold(k, q) {
				vs = append(vs, v...)
			}
		}
		ok = ok && len(m.Query[k]) > 0 && all(ps, vs)
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
