package main

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// allowed is the one host that the policy lets the agent reach; denied is one
// that it does not. Both lead to the vendor.
const (
	allowed = "allowed.example"
	denied  = "denied.example"
)

var _ = register(map[string]func([]string) error{
	"raw-http":  func(a []string) error { return rawHTTP(a) },
	"sni":       func(a []string) error { return handshake(a[0], a[1], nil) },
	"ech":       func(a []string) error { return hidden(a[0]) },
	"sni-split": func([]string) error { return split() },
	"infer":     func(a []string) error { return infer(a[0]) },
	"fetch":     func(a []string) error { return fetch(a) },
	"repeat":    func(a []string) error { return repeat(a[0], atoi(a[1])) },
})

// requests are what is sent to port 80 of the allowed host. MARK stands where
// only a request that should not pass would carry it.
var requests = map[string]string{
	"other-host":    "GET /MARK HTTP/1.1\r\nHost: denied.example\r\nConnection: close\r\n\r\n",
	"absolute":      "GET http://denied.example/MARK HTTP/1.1\r\nHost: allowed.example\r\nConnection: close\r\n\r\n",
	"absolute-user": "GET http://allowed.example@denied.example/MARK HTTP/1.1\r\nHost: allowed.example\r\nConnection: close\r\n\r\n",
	"two-hosts":     "GET /MARK HTTP/1.1\r\nHost: allowed.example\r\nHost: denied.example\r\nConnection: close\r\n\r\n",
	"folded-host":   "GET /MARK HTTP/1.1\r\nHost: allowed.example\r\n denied.example\r\nConnection: close\r\n\r\n",
	"space-colon":   "GET /MARK HTTP/1.1\r\nHost : denied.example\r\nHost: allowed.example\r\nConnection: close\r\n\r\n",
	"no-host":       "GET /MARK HTTP/1.1\r\nConnection: close\r\n\r\n",
	"pipeline": "GET /first HTTP/1.1\r\nHost: allowed.example\r\n\r\n" +
		"GET /MARK HTTP/1.1\r\nHost: denied.example\r\nConnection: close\r\n\r\n",
	"connect":    "CONNECT MARK.denied.example:443 HTTP/1.1\r\nHost: MARK.denied.example:443\r\n\r\n",
	"h2c":        "GET /MARK HTTP/1.1\r\nHost: denied.example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
	"h2-preface": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00MARK",
	"cl-te": "POST /first HTTP/1.1\r\nHost: allowed.example\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" +
		"GET /MARK HTTP/1.1\r\nHost: denied.example\r\n\r\n",
	"te-te": "POST /first HTTP/1.1\r\nHost: allowed.example\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" +
		"GET /MARK HTTP/1.1\r\nHost: denied.example\r\n\r\n",
	"two-lengths": "POST /first HTTP/1.1\r\nHost: allowed.example\r\nContent-Length: 0\r\nContent-Length: 44\r\n\r\n" +
		"GET /MARK HTTP/1.1\r\nHost: denied.example\r\n\r\n",
	"bare-lf":  "GET /MARK HTTP/1.1\nHost: denied.example\nX: y\n\n",
	"http-0.9": "GET /MARK\r\n",
	"no-http":  "SSH-2.0-MARK\r\n",
	"nul-host": "GET /MARK HTTP/1.1\r\nHost: denied.example\x00.allowed.example\r\nConnection: close\r\n\r\n",
	"post-get": "GET /first HTTP/1.1\r\nHost: allowed.example\r\nContent-Length: 55\r\n\r\n" +
		"POST /MARK HTTP/1.1\r\nHost: denied.example\r\nX: yyyyy\r\n\r\n" +
		"GET /MARK HTTP/1.1\r\nHost: denied.example\r\nConnection: close\r\n\r\n",
}

// calls are what is sent to hosts whose rule judges each message: of
// api.example the policy allows GET below /public, of tools.example the MCP
// tool search.
var calls = map[string]string{
	"api-post":      "POST /public/MARK HTTP/1.1\r\nHost: api.example\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
	"api-path":      get("/admin/MARK"),
	"api-dots":      get("/public/../admin/MARK"),
	"api-encoded":   get("/public/%2e%2e/admin/MARK"),
	"api-slash":     get("/public/..%2fadmin/MARK"),
	"api-backslash": get("/public/..%5cadmin/MARK"),
	"api-semicolon": get("/public/..;/admin/MARK"),
	"api-nul":       get("/public/%00/../../admin/MARK"),
	"api-double":    get("//admin/MARK"),
	"api-overlong":  get("/public/%c0%ae%c0%ae/admin/MARK"),
	"api-fragment":  get("/admin/MARK#/public/x"),
	"api-override":  "GET /public/x HTTP/1.1\r\nHost: api.example\r\nX-HTTP-Method-Override: DELETE\r\nX-Original-URL: /admin/MARK\r\nConnection: close\r\n\r\n",
	"api-second":    "GET /public/x HTTP/1.1\r\nHost: api.example\r\n\r\n" + get("/admin/MARK"),
	"api-smuggled":  "GET /public/x HTTP/1.1\r\nHost: api.example\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + get("/admin/MARK"),
	"mcp-tool":      rpc(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"delete_all","arguments":{"x":"MARK"}}}`),
	"mcp-batch":     rpc(`[{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search"}},{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"delete_all","arguments":{"x":"MARK"}}}]`),
	"mcp-twice":     rpc(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search","name":"delete_all","arguments":{"x":"MARK"}}}`),
	"mcp-escaped":   rpc(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"\u0064elete_all","arguments":{"x":"MARK"}}}`),
	"mcp-case":      rpc(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search","Name":"delete_all","arguments":{"x":"MARK"}}}`),
	"mcp-behind":    rpc(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search"}}{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"delete_all","arguments":{"x":"MARK"}}}`),
}

func get(path string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: api.example\r\nConnection: close\r\n\r\n"
}

// rpc is a POST whose length is right once MARK is replaced.
func rpc(body string) string {
	body = strings.ReplaceAll(body, "MARK", mark())
	return fmt.Sprintf("POST /mcp HTTP/1.1\r\nHost: tools.example\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
}

// find gives a request and where it goes.
func find(name string) (addr, raw string, err error) {
	if raw, ok := requests[name]; ok {
		return allowed + ":80", raw, nil
	}
	raw, ok := calls[name]
	switch {
	case !ok:
		return "", "", fmt.Errorf("no request is called %s", name)
	case strings.HasPrefix(name, "mcp-"):
		return "tools.example:80", raw, nil
	}
	return "api.example:80", raw, nil
}

// repeat asks for a page n times in a row, and wants it each time.
func repeat(addr string, n int) error {
	os.Setenv("MARK", "page") // the first ones may come out
	for i := range n {
		if err := tcp([]string{addr}); err != nil {
			return fmt.Errorf("request %d: %w", i+1, err)
		}
	}
	return nil
}

// rawHTTP sends each of the named requests. It succeeds when an answer that is
// no refusal echoes the mark: the vendor repeats what it was asked.
func rawHTTP(names []string) error {
	var ways []func() error
	for _, n := range names {
		addr, raw, err := find(n)
		if err != nil {
			return err
		}
		ways = append(ways, func() error {
			b, err := ask(addr, strings.ReplaceAll(raw, "MARK", mark()))
			if echoed(b) {
				return nil
			}
			if err == nil || len(b) > 0 {
				err = errors.New(string(b[:min(len(b), 300)]))
			}
			return fmt.Errorf("%s: %w", n, timedOut(err))
		})
	}
	return oneOf(ways...)
}

// echoed says whether the vendor, and not a refusal, repeats the mark.
func echoed(b []byte) bool {
	words, _, _ := bytes.Cut(b, []byte(`{"error"`))
	_, said, ok := bytes.Cut(words, []byte("VENDOR "))
	return ok && bytes.Contains(said, []byte(mark()))
}

// handshake speaks TLS to an address under a name, "" for none. The mark is in
// what it says first; the vendor echoes.
func handshake(addr, name string, ech []byte) error {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return timedOut(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	lowest := uint16(tls.VersionTLS12)
	if ech != nil {
		lowest = tls.VersionTLS13
	}
	t := tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true, EncryptedClientHelloConfigList: ech, MinVersion: lowest})
	if err := t.Handshake(); err != nil {
		return timedOut(fmt.Errorf("handshake: %w", err))
	}
	if ech != nil && !t.ConnectionState().ECHAccepted {
		return errors.New("the hidden name was not accepted")
	}
	if _, err := fmt.Fprintf(t, "GET /%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", mark(), denied); err != nil {
		return err
	}
	b := make([]byte, 1024)
	n, err := t.Read(b)
	return answer(b[:n], err)
}

// hidden shows the allowed name and hides the other one in an encrypted hello.
func hidden(list string) error {
	ech, err := hex.DecodeString(list)
	if err != nil {
		return err
	}
	return handshake(allowed+":443", denied, ech)
}

// splitter sends what it is given in TLS records of 5 bytes.
type splitter struct {
	net.Conn
	first bool
}

func (s *splitter) Write(b []byte) (int, error) {
	if !s.first || len(b) < 6 {
		return s.Conn.Write(b)
	}
	s.first = false
	var out []byte
	for rest := b[5:]; len(rest) > 0; {
		n := min(5, len(rest))
		out = append(append(out, b[0], b[1], b[2], 0, byte(n)), rest[:n]...)
		rest = rest[n:]
	}
	for ; len(out) > 0; out = out[min(7, len(out)):] {
		if _, err := s.Conn.Write(out[:min(7, len(out))]); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// split spreads the denied name over many records and packets.
func split() error {
	c, err := net.DialTimeout("tcp", allowed+":443", patience)
	if err != nil {
		return timedOut(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	t := tls.Client(&splitter{c, true}, &tls.Config{ServerName: denied, InsecureSkipVerify: true})
	if err := t.Handshake(); err != nil {
		return timedOut(fmt.Errorf("handshake: %w", err))
	}
	fmt.Fprintf(t, "GET /%s HTTP/1.0\r\n\r\n", mark())
	b := make([]byte, 1024)
	n, err := t.Read(b)
	return answer(b[:n], err)
}

// infer asks the router for a model that nobody gave to the agent.
func infer(model string) error {
	body := `{"model":"` + model + `","messages":[{"role":"user","content":"hi"}]}`
	b, err := ask("inference.local:80", fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: inference.local\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body))
	return answer(b, err)
}

// fetch gets URLs as an ordinary client does, without following redirects.
func fetch(urls []string) error {
	c := &http.Client{Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	var ways []func() error
	for _, u := range urls {
		ways = append(ways, func() error {
			r, err := c.Get(strings.ReplaceAll(u, "MARK", mark()))
			if err != nil {
				return timedOut(err)
			}
			defer r.Body.Close()
			b := make([]byte, 400)
			n, _ := r.Body.Read(b)
			if r.StatusCode == http.StatusOK {
				return nil
			}
			return fmt.Errorf("%s: %s", r.Status, b[:n])
		})
	}
	return oneOf(ways...)
}
