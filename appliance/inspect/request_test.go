package inspect

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// parse reads a request as a server does: head lines with bare line feeds,
// then the body with its length.
func parse(t *testing.T, head, body string) *http.Request {
	t.Helper()
	text := strings.ReplaceAll(strings.TrimSpace(head), "\n", "\r\n") + "\r\n"
	if body != "" {
		text += fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text + "\r\n" + body)))
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return r
}

// refused wants a *Refusal with the code, complete.
func refused(t *testing.T, name, code string, err error) {
	t.Helper()
	var no *Refusal
	if !errors.As(err, &no) || no.Code != code || no.Status < 400 || no.Detail == "" {
		t.Errorf("%s: got %+v (%v), want a refusal %s", name, no, err, code)
	}
}

func TestRequestHTTP(t *testing.T) {
	r := parse(t, `POST /a/../b//%63?x=1;2 HTTP/1.1
Host: EXAMPLE.com.:8080
Connection: keep-alive, TE
Keep-Alive: 5
TE: trailers
Expect: 100-continue
Proxy-Authorization: Basic eA==
X-Forwarded-For: 10.0.0.1
Upgrade: h2c
HTTP2-Settings: AAMAAABk
Range: bytes=0-9
Authorization: Bearer x
Content-Type: text/plain`, "hello")
	q, msgs, err := Request(r, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if m := msgs[0]; len(msgs) != 1 || m.Protocol != "http" || m.Method != "POST" || m.Path != "/b/c" || m.Query.Get("x") != "1;2" {
		t.Errorf("got %+v", msgs)
	}
	if got := slices.Sorted(maps.Keys(q.Header)); !slices.Equal(got, []string{"Authorization", "Content-Type", "Range"}) {
		t.Errorf("got headers %v", got)
	}
	if q.URL.RequestURI() != "/b/c?x=1%3B2" || q.Host != "example.com:8080" || q.ContentLength != 5 {
		t.Errorf("got %q %q %d", q.URL.RequestURI(), q.Host, q.ContentLength)
	}
	if b, _ := io.ReadAll(q.Body); string(b) != "hello" {
		t.Errorf("got body %q", b)
	}
	if r.Header.Get("Upgrade") == "" || r.Host != "EXAMPLE.com.:8080" {
		t.Error("the request given was changed")
	}
}

// Route reads the head alone, also of what has another protocol.
func TestRoute(t *testing.T) {
	for _, head := range []string{"POST /a/../b?c HTTP/1.1\nHost: a\nUpgrade: h2c", "POST /b?c HTTP/1.1\nHost: a\nUpgrade: websocket\nConnection: Upgrade"} {
		r := parse(t, head, "body")
		m, err := Route(r)
		if err != nil || m.Method != "POST" || m.Path != "/b" || !m.Query.Has("c") {
			t.Errorf("got %+v %v", m, err)
		}
		if b, _ := io.ReadAll(r.Body); string(b) != "body" {
			t.Errorf("the body is %q after it", b)
		}
	}
	_, err := Route(parse(t, "GET /%2e%2e HTTP/1.1\nHost: a", ""))
	refused(t, "path", BadTarget, err)
}

func TestRequestRefuses(t *testing.T) {
	for name, c := range map[string]struct{ head, code string }{
		"method override":          {"POST / HTTP/1.1\nHost: a\nX-HTTP-Method-Override: DELETE", BadHeader},
		"method override, short":   {"POST / HTTP/1.1\nHost: a\nX-Method-Override: DELETE", BadHeader},
		"method override, case":    {"POST / HTTP/1.1\nHost: a\nx-http-METHOD: DELETE", BadHeader},
		"method override, under":   {"POST / HTTP/1.1\nHost: a\nX_HTTP_Method_Override: DELETE", BadHeader},
		"method override, query":   {"POST /?_method=DELETE HTTP/1.1\nHost: a", BadTarget},
		"path override":            {"GET / HTTP/1.1\nHost: a\nX-Original-URL: /admin", BadHeader},
		"path override, rewrite":   {"GET / HTTP/1.1\nHost: a\nX-Rewrite-Url: /admin", BadHeader},
		"length in disguise":       {"POST / HTTP/1.1\nHost: a\nContent_Length: 7", BadHeader},
		"host in disguise":         {"GET / HTTP/1.1\nHost: a\nX_Forwarded_Host: b", BadHeader},
		"httpoxy":                  {"GET / HTTP/1.1\nHost: a\nProxy: http://evil", BadHeader},
		"connection takes a name":  {"GET / HTTP/1.1\nHost: a\nConnection: close, Authorization", BadHeader},
		"connection takes cookies": {"GET / HTTP/1.1\nHost: a\nConnection: Cookie", BadHeader},
		"expectation":              {"GET / HTTP/1.1\nHost: a\nExpect: tea", BadHeader},
		"two authorizations":       {"GET / HTTP/1.1\nHost: a\nAuthorization: a\nAuthorization: b", BadHeader},
		"two types":                {"POST / HTTP/1.1\nHost: a\nContent-Type: a/b\nContent-Type: c/d", BadHeader},
		"unknown method":           {"FOO / HTTP/1.1\nHost: a", BadTarget},
		"lower method":             {"delete / HTTP/1.1\nHost: a", BadTarget},
		"trace":                    {"TRACE / HTTP/1.1\nHost: a", BadTarget},
		"path":                     {"GET /%2e%2e/x HTTP/1.1\nHost: a", BadTarget},
		"host":                     {"GET / HTTP/1.1\nHost: 0x7f.1", BadTarget},
		"websocket where http is":  {"GET / HTTP/1.1\nHost: a\nUpgrade: websocket\nConnection: Upgrade", BadHandshake},
		"websocket among others":   {"GET / HTTP/1.1\nHost: a\nUpgrade: h2c, WebSocket\nConnection: Upgrade", BadHandshake},
	} {
		_, _, err := Request(parse(t, c.head, ""), Options{Protocol: "http"})
		refused(t, name, c.code, err)
	}
	for _, p := range []string{"tcp", "smtp"} {
		if _, _, err := Request(parse(t, "GET / HTTP/1.1\nHost: a", ""), Options{Protocol: p}); err == nil {
			t.Errorf("protocol %q passes", p)
		}
	}
}

// A request as HTTP/2 gives it: no RequestURI tricks of HTTP/1, no headers
// about the connection.
func TestRequestHTTP2(t *testing.T) {
	r := parse(t, "GET /a/./b?c HTTP/1.1\nHost: a\nTE: trailers", "")
	r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/2.0", 2, 0
	q, msgs, err := Request(r, Options{})
	if err != nil || msgs[0].Path != "/a/b" || q.URL.RequestURI() != "/a/b?c" || q.Header.Get("Te") != "trailers" {
		t.Errorf("got %v %v %v", q, msgs, err)
	}
	r.Header.Set("Upgrade", "websocket")
	_, _, err = Request(r, Options{Protocol: "websocket"})
	refused(t, "WebSocket in HTTP/2", BadHandshake, err)
}

const jsonHead = "POST /rpc HTTP/1.1\nHost: a\nContent-Type: application/json"

func TestRPC(t *testing.T) {
	body := ` [{"jsonrpc":"2.0","method":"a","id":1.0},{"jsonrpc":"2.0","method":"b","params":[1]},{"jsonrpc":"2.0","method":"c","id":"x","extra":{"A":1}}] `
	q, msgs, err := Request(parse(t, jsonHead, body), Options{Protocol: "json-rpc"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range msgs {
		if m.Protocol != "json-rpc" || m.Method != "POST" || m.Path != "/rpc" {
			t.Errorf("got %+v", m)
		}
		names = append(names, m.RPC)
	}
	if fmt.Sprint(names) != "[a b c]" || fmt.Sprintf("%s", IDs(q)) != `[1.0 "x"]` {
		t.Errorf("got %v, ids %s", names, IDs(q))
	}
	if b, _ := io.ReadAll(q.Body); string(b) != body || q.ContentLength != int64(len(body)) {
		t.Errorf("the body became %q", b)
	}
}

func TestMCP(t *testing.T) {
	body := `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"read_file","arguments":{"path":"/etc/passwd","n":12345678901234567890,"deep":{"a":[true,null]}},"_meta":{}}}`
	_, msgs, err := Request(parse(t, jsonHead+"\nMcp-Session-Id: s1\nMcp-Method: tools/call\nMcp-Name: read_file", body), Options{Protocol: "mcp"})
	if err != nil {
		t.Fatal(err)
	}
	m := msgs[0]
	if m.RPC != "tools/call" || m.Tool != "read_file" || m.Args["path"] != "/etc/passwd" || fmt.Sprint(m.Args["n"]) != "12345678901234567890" {
		t.Errorf("got %+v", m)
	}
	for name, c := range map[string]struct{ head, body, rpc string }{
		"no arguments": {jsonHead, `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"x"}}`, "tools/call"},
		"notification": {jsonHead, `{"jsonrpc":"2.0","method":"notifications/initialized"}`, "notifications/initialized"},
		"answer":       {jsonHead, `{"jsonrpc":"2.0","id":1,"result":{}}`, ""},
		"stream":       {"GET /mcp HTTP/1.1\nHost: a\nAccept: text/event-stream", "", ""},
		"end":          {"DELETE /mcp HTTP/1.1\nHost: a\nMcp-Session-Id: x", "", ""},
	} {
		_, msgs, err := Request(parse(t, c.head, c.body), Options{Protocol: "mcp"})
		if err != nil || len(msgs) != 1 || msgs[0].RPC != c.rpc {
			t.Errorf("%s: got %+v %v", name, msgs, err)
		}
	}
}

func TestRPCRefuses(t *testing.T) {
	for name, body := range map[string]string{
		"method twice":             `{"jsonrpc":"2.0","method":"safe","method":"tools/call","id":1}`,
		"method twice, escaped":    `{"jsonrpc":"2.0","method":"safe","\u006dethod":"tools/call","id":1}`,
		"method twice, by case":    `{"jsonrpc":"2.0","method":"safe","Method":"tools/call","id":1}`,
		"method by case only":      `{"jsonrpc":"2.0","METHOD":"x","id":1}`,
		"params by long s":         `{"jsonrpc":"2.0","method":"x","param\u017f":{},"id":1}`,
		"name twice":               `{"jsonrpc":"2.0","method":"tools/call","params":{"name":"a","name":"b"},"id":1}`,
		"name by case":             `{"jsonrpc":"2.0","method":"tools/call","params":{"name":"a","Name":"b"},"id":1}`,
		"arguments by case":        `{"jsonrpc":"2.0","method":"tools/call","params":{"name":"a","Arguments":{}},"id":1}`,
		"argument twice":           `{"jsonrpc":"2.0","method":"tools/call","params":{"name":"a","arguments":{"p":1,"p":2}},"id":1}`,
		"argument twice, by case":  `{"jsonrpc":"2.0","method":"tools/call","params":{"name":"a","arguments":{"p":1,"P":2}},"id":1}`,
		"tools/call by case":       `{"jsonrpc":"2.0","method":"Tools/Call","params":{"name":"a"},"id":1}`,
		"no tool":                  `{"jsonrpc":"2.0","method":"tools/call","id":1}`,
		"empty tool":               `{"jsonrpc":"2.0","method":"tools/call","params":{"name":""},"id":1}`,
		"tool no string":           `{"jsonrpc":"2.0","method":"tools/call","params":{"name":["a"]},"id":1}`,
		"arguments a string":       `{"jsonrpc":"2.0","method":"tools/call","params":{"name":"a","arguments":"{}"},"id":1}`,
		"params an array":          `{"jsonrpc":"2.0","method":"tools/call","params":["a"],"id":1}`,
		"params a string":          `{"jsonrpc":"2.0","method":"x","params":"a","id":1}`,
		"version":                  `{"jsonrpc":"1.0","method":"x","id":1}`,
		"version a number":         `{"jsonrpc":2.0,"method":"x","id":1}`,
		"no version":               `{"method":"x","id":1}`,
		"id null":                  `{"jsonrpc":"2.0","method":"x","id":null}`,
		"id an object":             `{"jsonrpc":"2.0","method":"x","id":{}}`,
		"method empty":             `{"jsonrpc":"2.0","method":"","id":1}`,
		"method an array":          `{"jsonrpc":"2.0","method":["x"],"id":1}`,
		"method reserved":          `{"jsonrpc":"2.0","method":"rpc.response","id":1}`,
		"call and answer":          `{"jsonrpc":"2.0","method":"x","result":1,"id":1}`,
		"result and error":         `{"jsonrpc":"2.0","result":1,"error":{},"id":1}`,
		"answer without id":        `{"jsonrpc":"2.0","result":1}`,
		"empty batch":              `[]`,
		"batch in batch":           `[[{"jsonrpc":"2.0","method":"x"}]]`,
		"long batch":               "[" + strings.Repeat(`{"jsonrpc":"2.0","method":"x"},`, maxBatch) + `{"jsonrpc":"2.0","method":"x"}]`,
		"one bad in a batch":       `[{"jsonrpc":"2.0","method":"x"},{"jsonrpc":"2.0"}]`,
		"a string":                 `"x"`,
		"a number in a batch":      `[1]`,
		"two documents":            `{"jsonrpc":"2.0","method":"x"}{"jsonrpc":"2.0","method":"y"}`,
		"two lines":                "{\"jsonrpc\":\"2.0\",\"method\":\"x\"}\n{\"jsonrpc\":\"2.0\",\"method\":\"y\"}",
		"comment":                  `{"jsonrpc":"2.0","method":"x"/*,"method":"y"*/}`,
		"trailing comma":           `{"jsonrpc":"2.0","method":"x",}`,
		"byte order mark":          "\ufeff" + `{"jsonrpc":"2.0","method":"x"}`,
		"UTF-16":                   "{\x00\"\x00j\x00",
		"not UTF-8":                "{\"jsonrpc\":\"2.0\",\"method\":\"x\xff\"}",
		"overlong":                 "{\"jsonrpc\":\"2.0\",\"method\":\"\xc1\xb8\"}",
		"half a character":         `{"jsonrpc":"2.0","method":"x","params":{"\ud800":1}}`,
		"half a character, second": `{"jsonrpc":"2.0","method":"x\udc00"}`,
		"deep":                     `{"jsonrpc":"2.0","method":"x","params":` + strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth) + `}`,
		"very deep":                strings.Repeat("[", 100_000),
		"many values":              `{"jsonrpc":"2.0","method":"x","params":[` + strings.Repeat("0,", maxKeys) + `0]}`,
	} {
		_, _, err := Request(parse(t, jsonHead, body), Options{Protocol: "mcp"})
		refused(t, name, BadRPC, err)
	}
	one := `{"jsonrpc":"2.0","method":"tools/call","params":{"name":"a"},"id":1}`
	for name, c := range map[string]struct{ head, body, code string }{
		"no type":             {"POST / HTTP/1.1\nHost: a", one, BadBody},
		"form":                {"POST / HTTP/1.1\nHost: a\nContent-Type: application/x-www-form-urlencoded", one, BadBody},
		"UTF-7":               {jsonHead + "; charset=utf-7", one, BadBody},
		"compressed":          {jsonHead + "\nContent-Encoding: gzip", one, BadBody},
		"too long, chunked":   {jsonHead + "\nTransfer-Encoding: chunked\n\n" + "7d0\n" + strings.Repeat("x", 2000) + "\n0\n", "", BadBody},
		"cut short":           {jsonHead + "\nContent-Length: 10\n\n{}", "", BadBody},
		"too long":            {jsonHead, one + strings.Repeat(" ", 2000), BadBody},
		"PUT":                 {strings.Replace(jsonHead, "POST", "PUT", 1), one, BadRPC},
		"GET without stream":  {"GET / HTTP/1.1\nHost: a", "", BadRPC},
		"GET with body":       {"GET / HTTP/1.1\nHost: a\nAccept: text/event-stream", one, BadBody},
		"DELETE without id":   {"DELETE / HTTP/1.1\nHost: a", "", BadRPC},
		"session id":          {jsonHead + "\nMcp-Session-Id: a b", one, BadHeader},
		"two session ids":     {jsonHead + "\nMcp-Session-Id: a\nMcp-Session-Id: b", one, BadHeader},
		"other method header": {jsonHead + "\nMcp-Method: tools/list", one, BadRPC},
		"other tool header":   {jsonHead + "\nMcp-Name: b", one, BadRPC},
	} {
		_, _, err := Request(parse(t, c.head, c.body), Options{Protocol: "mcp", MaxBody: 1000})
		refused(t, name, c.code, err)
	}
}

func TestRPCByPost(t *testing.T) {
	for _, m := range []string{"GET", "PUT", "DELETE"} {
		_, _, err := Request(parse(t, strings.Replace(jsonHead, "POST", m, 1), `{"jsonrpc":"2.0","method":"x"}`), Options{Protocol: "json-rpc"})
		refused(t, m, BadRPC, err)
	}
	_, msgs, err := Request(parse(t, jsonHead, `{"jsonrpc":"2.0","id":1,"error":{"code":1}}`), Options{Protocol: "json-rpc"})
	if err != nil || msgs[0].RPC != Answered {
		t.Errorf("an answer: got %+v %v", msgs, err)
	}
}

func TestGraphQL(t *testing.T) {
	const gql = "POST /graphql HTTP/1.1\nHost: a\nContent-Type: application/"
	for name, c := range map[string]struct{ head, body, want string }{
		"shorthand":         {gql + "json", `{"query":"{ viewer { login } }"}`, "query  [viewer]"},
		"aliases":           {gql + "json", `{"query":"query A { harmless: deleteAll, x: viewer { y } }"}`, "query A [deleteAll viewer]"},
		"fragments":         {gql + "json", `{"query":"mutation M { ...F ... on Mutation { b } ... @include(if: true) { c } } fragment F on Mutation { a ...G } fragment G on Mutation { d ...F }"}`, "mutation M [a b c d]"},
		"named":             {gql + "json", `{"query":"query A { a } mutation B { b }","operationName":"B","variables":{"x":1}}`, "mutation B [b]"},
		"one, named":        {gql + "json", `{"query":"query A { a }","operationName":"A","variables":null}`, "query A [a]"},
		"skipped counts":    {gql + "json", `{"query":"{ a @skip(if: true) b }"}`, "query  [a b]"},
		"subscription":      {gql + "json", `{"query":"subscription S { s }"}`, "subscription S [s]"},
		"introspection":     {gql + "json", `{"query":"{ __schema { types { name } } }"}`, "query  [__schema]"},
		"text":              {gql + "graphql", `mutation { a }`, "mutation  [a]"},
		"text, utf-8":       {gql + "graphql; charset=utf-8", `{ a }`, "query  [a]"},
		"own hash":          {gql + "json", `{"query":"{a}","extensions":{"persistedQuery":{"version":1,"sha256Hash":"460c3a93211614ac783c0f1d1bbbcb45a6da87d6421b5c0771772588f1015ff8"}}}`, "query  [a]"},
		"escaped unicode":   {gql + "json", `{"query":"{ \u0061 }"}`, "query  [a]"},
		"string with brace": {gql + "json", `{"query":"{ a(x: \"} mutation { b }\") }"}`, "query  [a]"},
		"comment":           {gql + "json", `{"query":"{ a #} mutation { b }\n c }"}`, "query  [a c]"},
		"block string":      {gql + "json", `{"query":"{ a(x: \"\"\" \\\"\"\" } \"\"\") c }"}`, "query  [a c]"},
		"GET":               {"GET /graphql?query=%7Ba%7D&variables=%7B%7D HTTP/1.1\nHost: a", "", "query  [a]"},
	} {
		_, msgs, err := Request(parse(t, c.head, c.body), Options{Protocol: "graphql"})
		if err != nil || len(msgs) != 1 || msgs[0].Protocol != "graphql" || msgs[0].Path != "/graphql" {
			t.Errorf("%s: got %+v %v", name, msgs, err)
			continue
		}
		if m := msgs[0]; fmt.Sprint(m.Operation, " ", m.OperationName, " ", m.Fields) != c.want {
			t.Errorf("%s: got %+v, want %s", name, m, c.want)
		}
	}
	_, msgs, err := Request(parse(t, gql+"json", `[{"query":"{a}"},{"query":"mutation{b}"}]`), Options{Protocol: "graphql"})
	if err != nil || len(msgs) != 2 || msgs[1].Operation != "mutation" {
		t.Errorf("batch: got %+v %v", msgs, err)
	}
}

func TestGraphQLRefuses(t *testing.T) {
	const gql = "POST /graphql HTTP/1.1\nHost: a\nContent-Type: application/json"
	for name, body := range map[string]string{
		"query twice":           `{"query":"{a}","query":"mutation{b}"}`,
		"query by case":         `{"query":"{a}","Query":"mutation{b}"}`,
		"only another case":     `{"QUERY":"{a}"}`,
		"hash only":             `{"extensions":{"persistedQuery":{"version":1,"sha256Hash":"ab"}}}`,
		"other hash":            `{"query":"{a}","extensions":{"persistedQuery":{"version":1,"sha256Hash":"ab"}}}`,
		"hash by case":          `{"query":"{a}","extensions":{"PersistedQuery":{"sha256Hash":"ab"}}}`,
		"id":                    `{"id":"x"}`,
		"id beside a query":     `{"query":"{a}","id":"x"}`,
		"documentId":            `{"query":"{a}","documentId":"x"}`,
		"doc_id":                `{"query":"{a}","doc_id":"x"}`,
		"several, none named":   `{"query":"query A{a} mutation B{b}"}`,
		"several, empty name":   `{"query":"query A{a} mutation B{b}","operationName":""}`,
		"several, other name":   `{"query":"query A{a} mutation B{b}","operationName":"C"}`,
		"one, other name":       `{"query":"query A{a}","operationName":"C"}`,
		"anonymous of several":  `{"query":"{a} mutation B{b}","operationName":"B"}`,
		"same name twice":       `{"query":"query A{a} mutation A{b}","operationName":"A"}`,
		"fragment twice":        `{"query":"{...F} fragment F on Q{a} fragment F on Q{b}"}`,
		"unknown fragment":      `{"query":"{...F}"}`,
		"no operation":          `{"query":"fragment F on Q{a}"}`,
		"schema":                `{"query":"type Q { a: Int }"}`,
		"empty":                 `{"query":" "}`,
		"no query":              `{"variables":{}}`,
		"query an array":        `{"query":["{a}"]}`,
		"name a number":         `{"query":"{a}","operationName":1}`,
		"variables a string":    `{"query":"{a}","variables":"{}"}`,
		"not closed":            `{"query":"{a"}`,
		"empty selection":       `{"query":"{}"}`,
		"empty batch":           `[]`,
		"one bad in a batch":    `[{"query":"{a}"},{"id":"x"}]`,
		"many tokens":           `{"query":"{` + strings.Repeat("a ", maxTokens) + `}"}`,
		"many fields":           `{"query":"{` + strings.Repeat("a ", maxFields+1) + `}"}`,
		"deep":                  `{"query":"` + strings.Repeat("{a", 5000) + strings.Repeat("}", 5000) + `"}`,
		"invisible in a name":   `{"query":"{ dele\u200bteAll }"}`,
		"NUL":                   `{"query":"{a\u0000}"}`,
		"lone surrogate in it":  `{"query":"{a(x:\"\ud800\")}"}`,
		"multipart-like object": `{"operations":"{}"}`,
	} {
		_, _, err := Request(parse(t, gql, body), Options{Protocol: "graphql"})
		refused(t, name, BadGraphQL, err)
	}
	for name, c := range map[string]struct{ head, body, code string }{
		"mutation by GET":   {"GET /?query=mutation%7Ba%7D HTTP/1.1\nHost: a", "", BadGraphQL},
		"two queries":       {"GET /?query=%7Ba%7D&query=%7Bb%7D HTTP/1.1\nHost: a", "", BadGraphQL},
		"stored by GET":     {"GET /?documentId=x HTTP/1.1\nHost: a", "", BadGraphQL},
		"variables by GET":  {"GET /?query=%7Ba%7D&variables=%7B%22a%22:1,%22a%22:2%7D HTTP/1.1\nHost: a", "", BadGraphQL},
		"GET with body":     {"GET /?query=%7Ba%7D HTTP/1.1\nHost: a\nContent-Type: application/json", `{"query":"mutation{b}"}`, BadBody},
		"both ways":         {strings.Replace(gql, "/graphql", "/graphql?query=%7Bb%7D", 1), `{"query":"{a}"}`, BadGraphQL},
		"both ways, by id":  {strings.Replace(gql, "/graphql", "/graphql?documentId=x", 1), `{"query":"{a}"}`, BadGraphQL},
		"both ways, name":   {strings.Replace(gql, "/graphql", "/graphql?operationname=x", 1), `{"query":"{a}"}`, BadGraphQL},
		"upload":            {"POST / HTTP/1.1\nHost: a\nContent-Type: multipart/form-data; boundary=x", "--x--", BadBody},
		"form":              {"POST / HTTP/1.1\nHost: a\nContent-Type: application/x-www-form-urlencoded", "query={a}", BadBody},
		"DELETE":            {"DELETE / HTTP/1.1\nHost: a", "", BadGraphQL},
		"handshake":         {handshake, "", BadHandshake},
		"text, two at once": {"POST / HTTP/1.1\nHost: a\nContent-Type: application/graphql", "query A{a} mutation B{b}", BadGraphQL},
	} {
		_, _, err := Request(parse(t, c.head, c.body), Options{Protocol: "graphql"})
		refused(t, name, c.code, err)
	}
}

func TestDenial(t *testing.T) {
	why := Reason{Code: "call.denied", Detail: `no "x"`, Rule: "p.yaml:3"}
	ids := []byte(`[{"jsonrpc":"2.0","method":"x","id":"a\"b"},{"jsonrpc":"2.0","method":"y","id":12345678901234567890}]`)
	_, two, err := readCalls(ids, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		protocol string
		n        int
		status   int
		body     string
	}{
		{"mcp", 1, 200, `{"error":{"code":-32001,"data":{"code":"call.denied","detail":"no \"x\"","rule":"p.yaml:3"},"message":"no \"x\""},"id":"a\"b","jsonrpc":"2.0"}`},
		{"json-rpc", 2, 200, `"id":12345678901234567890,"jsonrpc":"2.0"}]`},
		{"mcp", 0, 403, `{"error":{"code":"call.denied","detail":"no \"x\"","rule":"p.yaml:3"}}`},
		{"graphql", 0, 200, `{"errors":[{"extensions":{"code":"call.denied","detail":"no \"x\"","rule":"p.yaml:3"},"message":"no \"x\""}]}`},
		{"http", 2, 403, `{"error":{"code":"call.denied","detail":"no \"x\"","rule":"p.yaml:3"}}`},
	} {
		status, h, body := Denial(c.protocol, why, two[:c.n])
		if status != c.status || !strings.HasSuffix(string(body), c.body) || h.Get("Content-Type") != "application/json" {
			t.Errorf("%s: got %d %s", c.protocol, status, body)
		}
	}
	r := refuse(BadBody, "less", "too much").as(413)
	if status, _, body := Denial("http", r.Why(), nil); status != 413 || string(body) != `{"error":{"code":"http.body","detail":"too much","remedy":"less"}}` {
		t.Errorf("got %d %s", status, body)
	}
}

// What passes as JSON-RPC reads the same with a reader that takes the first
// of two keys, the last, or any case: there is one of each.
func FuzzRPC(f *testing.F) {
	for _, s := range []string{
		`{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"read_file","arguments":{"path":"/x"}}}`, `[{"jsonrpc":"2.0","method":"a"},{"jsonrpc":"2.0","result":1,"id":1}]`,
		`{"jsonrpc":"2.0","method":"x","Method":"y"}`, `{"jsonrpc":"2.0","method":"\ud800"}`, `{"jsonrpc":"2.0","\u006dethod":"x","id":1e400}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		msgs, ids, err := readCalls(b, true)
		if err != nil {
			return
		}
		if len(msgs) == 0 || len(ids) > len(msgs) {
			t.Fatalf("%q: %v %v", b, msgs, ids)
		}
		checkLoose(t, b, msgs)
		if status, _, body := Denial("mcp", Reason{Code: "x"}, ids); status == 403 && len(ids) > 0 {
			t.Fatalf("%q: %s", b, body)
		}
	})
}

func FuzzGraphQL(f *testing.F) {
	for _, s := range []string{
		`query A { harmless: deleteAll ...F } fragment F on Q { a ...F }`, `{a(x:"} mutation {b}")}`, "mutation M($a: I = {b: [1]}) @d(x: $y) { a { b } ... on C @e { f } }", "subscription{a}#x", `{a(x:"""\""" }""")}`,
	} {
		f.Add(s, "A")
		f.Add(s, "")
	}
	f.Fuzz(func(t *testing.T, query, name string) {
		m, err := gqlCall{query: query, name: name}.message()
		if err != nil {
			return
		}
		if m.Operation != "query" && m.Operation != "mutation" && m.Operation != "subscription" || len(m.Fields) == 0 || name != "" && m.OperationName != name {
			t.Fatalf("%q %q: %+v", query, name, m)
		}
		for _, n := range append(slices.Clone(m.Fields), m.OperationName) {
			if n != "" && !strings.Contains(query, n) {
				t.Fatalf("%q: %q is not in it", query, n)
			}
		}
	})
}
