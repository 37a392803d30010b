package policies

import (
	"encoding/json"
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

// What a review found: each rule below reads stricter than it once was.

const attacked = `apiVersion: clawbox.io/v1
kind: AgentPolicy
metadata: {name: attacked}
network:
  allow:
    - {host: plain.example, protocol: http, access: full, denyCalls: [{path: "/admin/**"}, {query: {force: ["1"]}}, {query: {user_id: ["1"]}}]}
    - {host: query.example, protocol: http, calls: [{method: GET, query: {user_id: ["7"], file: ["/data/*"]}}]}
    - {host: paths.example, protocol: http, access: full}
    - {host: paths.example, protocol: http, path: "/admin/**", access: read-only}
    - {host: paths.example, protocol: graphql, path: /graphql, access: read-only}
    - host: tools.example
      protocol: mcp
      calls: [{tool: [read], args: {path: ["/data/*"]}}, {tool: [find], args: {a.b: ["x"]}}, {tool: [open], args: {num: ["9007199254740993"]}}]
    - host: wide.example
      protocol: mcp
      access: full
      denyCalls: [{tool: [read], args: {path: ["/etc/*"]}}, {args: {num: ["1"]}}]
    - {host: sock.example, protocol: websocket, calls: [{method: GET}, {operation: query}, {frame: binary}]}
`

func TestDodges(t *testing.T) {
	p := mustParse(t, attacked)
	http := func(method, target string) Message {
		at, query, _ := strings.Cut(target, "?")
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		return Message{Protocol: "http", Method: method, Path: at, Query: q}
	}
	tool := func(name, args string) Message {
		m := Message{Protocol: "mcp", Method: "POST", Path: "/", RPC: toolCall, Tool: name}
		d := json.NewDecoder(strings.NewReader(args))
		d.UseNumber()
		if err := d.Decode(&m.Args); err != nil {
			t.Fatal(err)
		}
		return m
	}
	frame := func(kind, operation string) Message {
		return Message{Protocol: "websocket", Method: "GET", Path: "/", Frame: kind, Operation: operation}
	}
	for _, c := range []struct {
		host string
		m    Message
		want Verdict
	}{
		// Servers in Java drop what follows a semicolon in a segment.
		{"plain", http("GET", "/admin;v=1/users"), Deny},
		{"plain", http("GET", "/;x/admin;v=1"), Deny},
		{"plain", http("GET", "/a;admin/users"), Allow},
		// Windows drops dots and blanks behind a name, and reads what follows a colon as a stream.
		{"plain", http("GET", "/admin./users"), Deny},
		{"plain", http("GET", "/admin. ./users"), Deny},
		{"plain", http("GET", "/admin /users"), Deny},
		{"plain", http("GET", "/ admin/users"), Deny},
		{"plain", http("GET", "/admin::$DATA"), Deny},
		{"plain", http("GET", "/admin:v.;x/users"), Deny},
		{"plain", http("GET", `/admin\users`), Deny},
		{"plain", http("GET", "/.admin/users"), Allow},
		{"plain", http("GET", "/admin.d/users"), Allow},
		{"plain", http("GET", "/a:admin/users"), Allow},
		// Others fold letters that look alike, or decode once more.
		{"plain", http("GET", "/ａdmin/users"), Deny},
		{"plain", http("GET", "/ＡＤＭＩＮ．/users"), Deny},
		{"plain", http("GET", "/ad\u00admin\u200b/users"), Deny},
		{"plain", http("GET", "/%61dmin/users"), Deny},
		{"plain", http("GET", "/%2561dmin/100%"), Deny},
		{"plain", http("GET", "/x%2F..%2Fadmin/users"), Deny},
		{"plain", http("GET", "/administrator:x/users"), Allow},
		// Servers in PHP, Ruby and Node take these for "force" and "user_id".
		{"plain", http("GET", "/x?force[]=1"), Deny},
		{"plain", http("GET", "/x?FORCE[0]=1"), Deny},
		{"plain", http("GET", "/x?user.id=1"), Deny},
		{"plain", http("GET", "/x?user+id=1"), Deny},
		{"plain", http("GET", "/x?force=0"), Allow},
		// Every spelling of an allowed parameter has to match.
		{"query", http("GET", "/x?user_id=7&file=/data/a"), Allow},
		{"query", http("GET", "/x?user_id=7&user.id=8&file=/data/a"), Deny},
		{"query", http("GET", "/x?user_id=7&USER_ID=8&file=/data/a"), Deny},
		{"query", http("GET", "/x?user_id=7&user_id[]=8&file=/data/a"), Deny},
		{"query", http("GET", "/x?user_id=7&file=/data/../etc/shadow"), Deny},
		{"query", http("GET", "/x?user_id=7&file=/data/%252e%252e/etc/shadow"), Deny},
		{"query", http("GET", "/x?user_id=7&file=/data/..\\etc"), Deny},
		{"query", http("GET", "/x?user_id=7&file=/data/a..b"), Allow},
		// A stricter rule for a path is not dodged by another spelling of it.
		{"paths", http("POST", "/other"), Allow},
		{"paths", http("GET", "/Admin/users"), Allow},
		{"paths", http("POST", "/admin./users"), Deny},
		{"paths", http("POST", "/ａdmin/users"), Deny},
		{"paths", http("GET", "/admin./users"), Allow},
		{"paths", http("POST", "/admin/users"), Deny},
		{"paths", http("POST", "/Admin/users"), Deny},
		{"paths", http("POST", "/admin;v=1/users"), Deny},
		{"paths", http("POST", "/admin"), Deny},
		{"paths", http("POST", "/graphql/"), Deny},
		{"paths", http("POST", "/GraphQL"), Deny},
		{"paths", http("POST", "/graphql/x"), Allow},
		// Arguments that are paths.
		{"tools", tool("read", `{"path": "/data/x"}`), Allow},
		{"tools", tool("read", `{"path": "/data/../etc/shadow"}`), Deny},
		{"tools", tool("read", `{"path": "/data/x/.."}`), Deny},
		{"tools", tool("read", `{"path": "/data/%2e%2E/etc/shadow"}`), Deny},
		{"wide", tool("read", `{"path": "/srv/x"}`), Allow},
		{"wide", tool("read", `{"path": "//etc/shadow"}`), Deny},
		{"wide", tool("read", `{"path": "/etc/./shadow"}`), Deny},
		{"wide", tool("read", `{"path": "/srv/../etc/shadow"}`), Deny},
		{"wide", tool("read", `{"path": "../../etc/shadow"}`), Deny},
		{"wide", tool("read", `{"path": "file:///etc/shadow"}`), Deny},
		{"wide", tool("read", `{"path": "file://localhost/%65tc/shadow"}`), Deny},
		{"wide", tool("read", `{"path": " /etc/shadow"}`), Deny},
		// Both readings of a dotted name.
		{"tools", tool("find", `{"a.b": "x"}`), Allow},
		{"tools", tool("find", `{"a": {"b": "x"}}`), Allow},
		{"tools", tool("find", `{"a.b": "x", "a": {"b": "evil"}}`), Deny},
		{"tools", tool("find", `{"a.b": "x", "A": {"B": "evil"}}`), Deny},
		{"tools", tool("find", `{"a.b": "x", "a": {"b": ["evil"]}}`), Deny},
		// Other ways to write a number.
		{"tools", tool("open", `{"num": 9007199254740993}`), Allow},
		{"wide", tool("x", `{"num": 2}`), Allow},
		{"wide", tool("x", `{"num": 1}`), Deny},
		{"wide", tool("x", `{"num": 1.0}`), Deny},
		{"wide", tool("x", `{"num": 10e-1}`), Deny},
		{"wide", tool("x", `{"num": "1.0"}`), Deny},
		// Operations in binary frames, which many servers read as text.
		{"sock", frame("text", "query"), Allow},
		{"sock", frame("binary", ""), Allow},
		{"sock", frame("binary", "mutation"), Deny},
		{"sock", frame("text", Control), Allow},
	} {
		r := Request{Action: Call, Host: c.host + ".example", Port: 443, Message: &c.m}
		if d := p.Decide(r); d.Verdict != c.want {
			t.Errorf("%s %s %s %v %v %v: got %s, %s, %s, want %s", c.host, c.m.Method, c.m.Path, c.m.Query, c.m.Args, c.m.Frame, d.Verdict, d.Reason, d.Rule, c.want)
		}
	}
}

// Whose credentials and budget a request has is the rule's that allows it.
func TestEndpointAllows(t *testing.T) {
	p := mustParse(t, `apiVersion: clawbox.io/v1
kind: AgentPolicy
metadata: {name: two}
credentials: [{name: key, env: KEY}]
network:
  allow:
    - {host: "*.example", protocol: http, access: read-only, credentials: [key]}
    - {host: api.example, protocol: http, access: full}
`)
	for method, want := range map[string]int{"GET": 1, "DELETE": 0} {
		h, ok := p.Endpoint(Request{Action: Call, Host: "api.example", Port: 443, Message: &Message{Protocol: "http", Method: method, Path: "/"}})
		if !ok || len(h.Credentials) != want {
			t.Errorf("%s: got %s, want a rule with %d credentials", method, h, want)
		}
	}
}

// A host and a port without brackets is another address than it reads as.
func TestBareAddressAndPort(t *testing.T) {
	for _, s := range []string{"2001:db8::1:443", "fd00::7:8080"} {
		for _, list := range []string{"allow", "deny"} {
			_, err := Parse("t.yaml", []byte("network: {"+list+": ["+`"`+s+`"`+"]}\n"))
			if err == nil || !strings.Contains(err.Error(), "["+s[:strings.LastIndexByte(s, ':')]+"]") {
				t.Errorf("%s %s: got %v, want a refusal that shows the brackets", list, s, err)
			}
		}
	}
	mustParse(t, "network: {allow: [\"2001:db8::1\", \"[2001:db8::1]:443\", \"fd00::dead\"]}\n")
}

// Endpoints of OpenShell's that are left out, or said otherwise, never make
// the rest wider.
func TestImportNoWider(t *testing.T) {
	const head = "version: 1\nnetwork_policies: {a: {binaries: [{path: /**}], endpoints: ["
	for _, end := range []string{
		"{host: a.example, port: 443, protocol: rest, access: full}, {host: a.example, port: 443, protocol: rest, path: '/admin[0-9]/**', access: read-only}",
		"{host: '*.example', port: 443, protocol: rest, access: full}, {host: a.example, port: 443, protocol: rest, path: '/x', rules: [{allow: {path: /x}}]}",
		"{host: a.example, port: 443, protocol: rest, access: full}, {host: a.example, port: 443, protocol: rest, access: read-only, tls: skip, deny_rules: [{method: POST, path: /x}]}",
	} {
		if p, _, err := Import("o.yaml", []byte(head+end+"]}}\n")); err == nil {
			t.Errorf("%s: taken over as %s", end, p.YAML())
		}
	}
	p, cs, err := Import("o.yaml", []byte(head+"{host: r.example, port: 443, protocol: json-rpc, rules: [{allow: {method: 'a.{b,c}'}}, {allow: {method: 'ok.*'}}], deny_rules: [{method: 'a.{b,c}'}, {method: '[d]rop'}]},"+
		"{host: m.example, port: 443, protocol: mcp, mcp: {allow_all_known_mcp_methods: true}}]}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	checkCanonical(t, p)
	for _, c := range []struct {
		m    Message
		want Verdict
	}{
		{Message{Protocol: "json-rpc", Method: "POST", Path: "/", RPC: "a.b"}, Deny},
		{Message{Protocol: "json-rpc", Method: "POST", Path: "/", RPC: "drop"}, Deny},
		{Message{Protocol: "json-rpc", Method: "POST", Path: "/", RPC: "ok.x"}, Allow},
		{Message{Protocol: "mcp", Method: "POST", Path: "/", RPC: "tools/list"}, Allow},
		{Message{Protocol: "mcp", Method: "POST", Path: "/", RPC: toolCall, Tool: "x"}, Allow},
		{Message{Protocol: "mcp", Method: "POST", Path: "/", RPC: "vendor/exec"}, Deny},
	} {
		host := map[string]string{"json-rpc": "r.example", "mcp": "m.example"}[c.m.Protocol]
		if d := p.Decide(Request{Action: Call, Host: host, Port: 443, Binary: "/a", Message: &c.m}); d.Verdict != c.want {
			t.Errorf("%s %s: got %s, want %s (%v)", c.m.RPC, c.m.Tool, d.Verdict, c.want, cs)
		}
	}
}

// A rule that goes and held another one in check makes the policy wider.
func TestDiffOfARestraint(t *testing.T) {
	const head = "apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: d}\nnetwork:\n  allow:\n"
	for _, c := range []struct{ stays, goes, kind string }{
		{"{host: a.example, ports: [443]}", "{host: a.example, ports: [443], protocol: http, access: read-only}", Wider},
		{"{domain: example, ports: [443]}", "{host: a.example, protocol: http, access: read-only}", Wider},
		{"{host: \"*\", ports: [443]}", "{domain: a.example, ports: [443], protocol: http, access: read-only}", Wider},
		{"{host: \"*.example\", protocol: http, access: full}", "{host: a.example, protocol: http, path: /admin, access: read-only}", Wider},
		{"{cidr: 10.0.0.0/8}", "{cidr: 10.1.0.0/16, protocol: http, access: read-only, inspect: false}", Wider},
		{"{cidr: 10.0.0.0/8}", "{host: 10.1.0.1, protocol: http, access: read-only, inspect: false}", Wider},
		{"{host: b.example, ports: [443]}", "{host: a.example, protocol: http, access: read-only}", Narrower},
		{"{domain: example, ports: [8443]}", "{host: a.example, protocol: http, access: read-only}", Narrower},
		{"{domain: example}", "{host: a.example}", Narrower},
	} {
		before, after := mustParse(t, head+"    - "+c.stays+"\n    - "+c.goes+"\n"), mustParse(t, head+"    - "+c.stays+"\n")
		ds := Diff(before, after)
		if len(ds) != 1 || ds[0].Kind != c.kind {
			t.Errorf("%s beside %s goes: got %+v, want %s", c.goes, c.stays, ds, c.kind)
		}
	}
}

// TestClosed: wide rules don't lead into networks that are closed, rules inside
// them do, for the programs that they name.
func TestClosed(t *testing.T) {
	p := mustParse(t, `apiVersion: clawbox.io/v1
kind: AgentPolicy
metadata: {name: closed}
network:
  default: hold
  allow:
    - {cidr: 10.0.0.0/8, ports: [443]}
    - {cidr: 10.43.0.0/16, ports: [8443]}
    - {cidr: 10.43.7.0/24, ports: [443], binaries: [/usr/bin/git]}
    - {host: 10.43.8.1, ports: [443]}
    - {host: any.example}
    - {host: in.example, allowedIPs: [10.43.9.0/24]}
    - {host: wide.example, allowedIPs: [10.0.0.0/8]}
    - {host: public.example, allowedIPs: [198.51.0.0/16]}
  deny: [{host: 10.43.8.1, ports: [8443]}]
`)
	closed := []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("198.51.100.0/24")}
	for _, c := range []struct {
		host   string
		port   int
		binary string
		addr   string
		want   Verdict
		reason string
	}{
		{"10.1.2.3", 443, "", "", Allow, ReasonNet},
		{"10.43.0.1", 443, "", "", Deny, ReasonAddress},
		{"::ffff:10.43.0.1", 443, "", "", Deny, ReasonAddress},
		{"10.43.0.1", 9, "", "", Deny, ReasonAddress}, // and is not held
		{"10.43.0.1", 8443, "", "", Allow, ReasonNet},
		{"10.43.8.1", 443, "", "", Allow, ReasonNet},
		{"10.43.8.1", 8443, "", "", Deny, ReasonDenied},
		{"10.43.7.1", 443, "", "", Deny, ReasonAddress}, // though another rule is for any program
		{"10.43.7.1", 443, "/usr/bin/git", "", Allow, ReasonNet},
		{"198.51.100.7", 443, "", "", Deny, ReasonAddress},
		{"any.example", 443, "", "10.1.2.3", Allow, ReasonNet},
		{"any.example", 443, "", "10.43.0.1", Deny, ReasonAddress},
		{"any.example", 443, "", "10.43.8.1", Allow, ReasonNet},
		{"any.example", 443, "", "10.43.7.1", Deny, ReasonAddress},
		{"any.example", 443, "/usr/bin/git", "10.43.7.1", Allow, ReasonNet},
		{"any.example", 443, "", "198.51.100.7", Deny, ReasonAddress},
		{"any.example", 443, "", "198.51.101.7", Allow, ReasonNet},
		{"in.example", 443, "", "10.43.9.9", Allow, ReasonNet},
		{"wide.example", 443, "", "10.43.9.9", Deny, ReasonAddress},
		{"wide.example", 443, "", "10.1.2.3", Allow, ReasonNet},
		{"public.example", 443, "", "198.51.100.7", Deny, ReasonAddress},
		{"held.example", 443, "", "10.43.9.9", Deny, ReasonAddress},
		{"held.example", 443, "", "", Hold, ReasonUnlisted},
	} {
		r := Request{Action: Connect, Host: c.host, Port: c.port, Binary: c.binary, Closed: closed}
		if c.addr != "" {
			r.Addr = netip.MustParseAddr(c.addr)
		}
		if d := p.Decide(r); d.Verdict != c.want || d.Reason != c.reason {
			t.Errorf("%s:%d by %q to %q: got %s %s, want %s %s", c.host, c.port, c.binary, c.addr, d.Verdict, d.Reason, c.want, c.reason)
		}
	}
}
