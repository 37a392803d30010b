package inspect

import (
	"fmt"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/policies"
)

// What a review found.

// Frames that keep a GraphQL WebSocket alive say so, and only those do.
func TestControlFrames(t *testing.T) {
	base := policies.Message{Protocol: "websocket", Method: "GET", Path: "/"}
	for _, c := range []struct {
		text bool
		body string
		want string
	}{
		{true, `{"type":"connection_init"}`, policies.Control},
		{true, `{"type":"connection_init","payload":{"token":"x"}}`, policies.Control},
		{true, ` {"type":"ping"} `, policies.Control},
		{true, `{"type":"pong","payload":null}`, policies.Control},
		{true, `{"type":"complete","id":"1"}`, policies.Control},
		{true, `{"type":"stop","id":"1"}`, policies.Control},
		{true, `{"type":"connection_terminate"}`, policies.Control},
		{false, `{"type":"ping"}`, ""},
		{true, `{"type":"PING"}`, ""},
		{true, `{"Type":"ping"}`, ""},
		{true, `{"type":"ping","query":"{a}"}`, ""},
		{true, `{"type":"ping","payload":{"query":"mutation {a}"}}`, ""},
		{true, `{"type":"ping","payload":{"QUERY":"mutation {a}"}}`, ""},
		{true, `{"type":"ping","payload":"mutation {a}"}`, ""},
		{true, `[{"type":"ping"}]`, ""},
		{true, `{"type":"data","id":"1"}`, ""},
		{true, `ping`, ""},
		{true, `{"type":"subscribe","id":"1","payload":{"query":"{a}"}}`, "query"},
	} {
		ms, bad := readMessage(base, c.text, []byte(c.body))
		if bad != nil || len(ms) != 1 || ms[0].Operation != c.want {
			t.Errorf("%s: got %+v (%v), want operation %q", c.body, ms, bad, c.want)
		}
	}
}

// Where a rule names operations, a session of a usual client passes, and text
// of no known meaning does not.
func TestGraphQLSession(t *testing.T) {
	p, err := policies.Parse("p.yaml", []byte("apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: p}\nnetwork:\n  allow: [{host: a.example, protocol: websocket, calls: [{method: GET}, {operation: query}]}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	base := policies.Message{Protocol: "websocket", Method: "GET", Path: "/"}
	for body, want := range map[string]policies.Verdict{
		`{"type":"connection_init"}`:                                          policies.Allow,
		`{"type":"subscribe","id":"1","payload":{"query":"{a}"}}`:             policies.Allow,
		`{"type":"ping"}`:                                                     policies.Allow,
		`{"type":"subscribe","id":"2","payload":{"query":"mutation {a}"}}`:    policies.Deny,
		`{"type":"ping","payload":{"query":"mutation {a}"}}`:                  policies.Deny,
		`{"type":"subscription_start","id":"3","query":"subscription { a }"}`: policies.Deny,
		`hello`: policies.Deny,
	} {
		ms, bad := readMessage(base, true, []byte(body))
		if bad != nil {
			t.Errorf("%s: %v", body, bad)
			continue
		}
		d := p.Decide(policies.Request{Action: policies.Call, Host: "a.example", Port: 443, Message: &ms[0]})
		if d.Verdict != want {
			t.Errorf("%s: got %+v, want %s", body, d, want)
		}
	}
}

// COPY and MOVE speak of two paths, and both are judged.
func TestDestination(t *testing.T) {
	const head = "MOVE /a HTTP/1.1\nHost: dav.example:8443\nDestination: %s"
	for dest, want := range map[string][2]string{
		"/b/../c":                             {"/c", "/c"},
		"https://dav.example:8443/b%2Dc":      {"/b-c", "https://dav.example:8443/b-c"},
		"https://DAV.example:8443/%61dmin//x": {"/admin/x", "https://dav.example:8443/admin/x"},
	} {
		q, msgs, err := Request(parse(t, fmt.Sprintf(head, dest), ""), Options{})
		if err != nil || len(msgs) != 2 || msgs[0].Path != "/a" || msgs[1].Path != want[0] || msgs[1].Method != "MOVE" || q.Header.Get("Destination") != want[1] {
			t.Errorf("%s: got %+v, %v", dest, msgs, err)
		}
	}
	for _, dest := range []string{
		"https://other.example/b", "https://dav.example/b", "//other.example/b", "b", "/b?x=1", "/b#x", "ftp://dav.example:8443/b", "/%252e%252e/b", "/..%2fadmin",
		"https://user@dav.example:8443/b", "", "/a\nDestination: /b",
	} {
		_, _, err := Request(parse(t, fmt.Sprintf(head, dest), ""), Options{})
		refused(t, dest, BadHeader, err)
	}
	_, _, err := Request(parse(t, "COPY /a HTTP/1.1\nHost: a", ""), Options{})
	refused(t, "none", BadHeader, err)
	_, _, err = Request(parse(t, "GET /a HTTP/1.1\nHost: a\nDestination: /b", ""), Options{})
	refused(t, "GET", BadHeader, err)
}

// Names and keys that only some servers take for a known one.
func TestLookalikes(t *testing.T) {
	for name, body := range map[string]string{
		"method with a blank": `{"jsonrpc":"2.0","id":1,"method":"tools/call "}`,
		"method with a NUL":   `{"jsonrpc":"2.0","id":1,"method":"tools/call\u0000x"}`,
		"invisible character": `{"jsonrpc":"2.0","id":1,"method":"tools\u200b/call"}`,
		"key cut at a NUL":    `{"jsonrpc":"2.0","id":1,"method":"a","method\u0000":"b"}`,
	} {
		for _, protocol := range []string{"mcp", "json-rpc"} {
			_, _, err := Request(parse(t, "POST / HTTP/1.1\nHost: a\nContent-Type: application/json", body), Options{Protocol: protocol})
			refused(t, name, BadRPC, err)
		}
	}
	for _, h := range []string{"X.Original.URL: /admin", "X_HTTP_Method.Override: DELETE", "X!Rewrite-Url: /"} {
		_, _, err := Request(parse(t, "GET / HTTP/1.1\nHost: a\n"+h, ""), Options{})
		refused(t, h, BadHeader, err)
	}
	// A parameter of the media type does not make JSON of a query.
	_, _, err := Request(parse(t, "POST / HTTP/1.1\nHost: a\nContent-Type: application/graphql; x=json", `{"query":"{a}"}`), Options{Protocol: "graphql"})
	refused(t, "media type", BadGraphQL, err)
	_, msgs, err := Request(parse(t, "POST / HTTP/1.1\nHost: a\nContent-Type: Application/GraphQL; x=json", `{a}`), Options{Protocol: "graphql"})
	if err != nil || strings.Join(msgs[0].Fields, " ") != "a" {
		t.Errorf("got %+v, %v", msgs, err)
	}
}
