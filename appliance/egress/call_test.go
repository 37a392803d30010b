package egress

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

func ruleFor(protocol string, calls ...policies.CallRule) policies.HostRule {
	return policies.HostRule{Host: "a.example", Ports: []int{80, 443}, Protocol: protocol, Inspect: true, Calls: calls}
}

// A denied call is answered as its client library expects it.
func TestDeniedInItsProtocol(t *testing.T) {
	l, site := inspectLab(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"jsonrpc":"2.0","id":1,"result":{}}`)
	})
	for name, x := range map[string]struct {
		rule     policies.HostRule
		ok, no   string
		status   int
		contains string
	}{
		"mcp": {
			ruleFor("mcp", policies.CallRule{Tool: []string{"read_*"}, Args: map[string][]string{"path": {"/data/*"}}}),
			`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read_file","arguments":{"path":"/data/x"}}}`,
			`{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"read_file","arguments":{"path":"/etc/x"}}}`,
			200, `"id":7`,
		},
		"mcp batch": {
			ruleFor("mcp", policies.CallRule{Tool: []string{"read_*"}}),
			`[{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read_file"}}]`,
			`[{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"read_file"}},{"jsonrpc":"2.0","id":8,"method":"tools/call","params":{"name":"rm"}}]`,
			200, `"id":8`,
		},
		"json-rpc": {
			ruleFor("json-rpc", policies.CallRule{RPC: "get*"}),
			`{"jsonrpc":"2.0","id":1,"method":"getBalance"}`, `{"jsonrpc":"2.0","id":"x","method":"send"}`, 200, `"id":"x"`,
		},
		"two methods": {
			ruleFor("json-rpc", policies.CallRule{RPC: "get*"}),
			`{"jsonrpc":"2.0","id":1,"method":"getBalance"}`, `{"jsonrpc":"2.0","id":9,"method":"getBalance","method":"send"}`, 400, `rpc.malformed`,
		},
		"graphql": {
			ruleFor("graphql", policies.CallRule{Operation: "query", Fields: []string{"user", "me"}}),
			`{"query":"{ me { id } }"}`, `{"query":"mutation { drop(id: 1) { ok } }"}`, 200, `"errors"`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			l.network(allow(x.rule))
			was := site.count()
			c := l.client(true)
			const js = "application/json"
			if st, body, _ := do(t, c, "POST", "https://a.example/rpc", x.ok, "Content-Type", js, "Accept", "application/json, text/event-stream"); st != 200 || strings.Contains(body, "error") {
				t.Errorf("allowed: got %d %s", st, body)
			}
			if _, got := site.last(); got != x.ok {
				t.Errorf("the site got %s", got)
			}
			st, body, _ := do(t, c, "POST", "https://a.example/rpc", x.no, "Content-Type", js, "Accept", "application/json, text/event-stream")
			if st != x.status || !strings.Contains(body, x.contains) || !json.Valid([]byte(body)) {
				t.Errorf("denied: got %d %s", st, body)
			}
			if n := site.count() - was; n != 1 {
				t.Errorf("%d requests reached the site", n)
			}
		})
	}
}

// More bodies at once than this process takes into memory are refused, and
// leave nothing behind.
func TestManyBodies(t *testing.T) {
	l, _ := inspectLab(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n)
	})
	l.network(allow(ruleFor("json-rpc")))
	c := l.client(true)
	c.Timeout = 2 * time.Minute // the race detector makes TLS slow
	body := `{"jsonrpc":"2.0","method":"m","params":["` + strings.Repeat("x", 3<<20) + `"]}`
	var wg sync.WaitGroup
	var ok atomic.Int64
	for range 24 { // 72 MiB
		wg.Go(func() {
			st, got, _ := do(t, c, "POST", "https://a.example/", body, "Content-Type", "application/json")
			if st != 200 && !strings.Contains(got, "http.busy") || st == 200 && got != fmt.Sprint(len(body)) {
				t.Errorf("got %d %.200s", st, got)
			}
			if st == 200 {
				ok.Add(1)
			}
		})
	}
	wg.Wait()
	if ok.Load() == 0 {
		t.Error("none went through")
	}
	if st, got, _ := do(t, c, "POST", "https://a.example/", body, "Content-Type", "application/json"); st != 200 {
		t.Errorf("afterwards: got %d %.200s", st, got)
	}
	if st, got, _ := do(t, c, "POST", "https://a.example/", strings.Repeat(" ", 5<<20), "Content-Type", "application/json"); st != 413 {
		t.Errorf("5 MiB: got %d %.200s", st, got)
	}
}

// Each message of a WebSocket is judged, and what is denied ends it with 1008.
func TestWebSocket(t *testing.T) {
	l, site := inspectLab(t, nil)
	srv := websocket.Server{Handler: func(c *websocket.Conn) {
		var m string
		for websocket.Message.Receive(c, &m) == nil && websocket.Message.Send(c, m) == nil {
		}
	}}
	site.conns.Close() // this test brings its own
	q := newQueue()
	t.Cleanup(func() { q.Close() })
	go http.Serve(q, srv)
	l.serve(q.put)
	r := ruleFor("websocket", policies.CallRule{Method: "GET", Path: "/ws"}, policies.CallRule{Frame: "text"})
	l.network(allow(r))
	dial := func(path string) (*websocket.Conn, error) {
		cfg, err := websocket.NewConfig("ws://a.example"+path, "http://a.example")
		if err != nil {
			t.Fatal(err)
		}
		nc := l.connect("tcp", "a.example:80")
		nc.SetDeadline(time.Now().Add(8 * time.Second))
		return websocket.NewClient(cfg, nc)
	}
	c, err := dial("/ws")
	if err != nil {
		t.Fatal(err)
	}
	var got string
	for _, s := range []string{"one", strings.Repeat("two", 5_000)} {
		if err := websocket.Message.Send(c, s); err != nil {
			t.Fatal(err)
		}
		if err := websocket.Message.Receive(c, &got); err != nil || got != s {
			t.Fatalf("got %.10q %v", got, err)
		}
	}
	if err := websocket.Message.Send(c, []byte("binary")); err != nil {
		t.Fatal(err)
	}
	if err := websocket.Message.Receive(c, &got); err == nil {
		t.Errorf("got %q, want the end", got)
	}
	eventually(t, "a denial in the ledger", func() bool { return len(denials(l)) == 1 })
	if d := denials(l)[0]; d.Attrs["frame"] != "binary" || d.Reason != policies.ReasonCallUnlisted {
		t.Errorf("record %+v", d)
	}
	if _, err := dial("/other"); err == nil {
		t.Error("another path: want an error")
	}
	// A reload counts for the next message, and ends a socket whose opening is
	// not allowed any more.
	a, err1 := dial("/ws")
	b, err2 := dial("/ws")
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	r.DenyCalls = []policies.CallRule{{Frame: "text"}}
	l.network(allow(r))
	l.proxy.Recheck("a1")
	websocket.Message.Send(a, "x")
	if err := websocket.Message.Receive(a, &got); err == nil {
		t.Errorf("after the reload: got %q", got)
	}
	r.DenyCalls = []policies.CallRule{{Path: "/ws"}}
	l.network(allow(r))
	l.proxy.Recheck("a1")
	if err := websocket.Message.Receive(b, &got); err == nil {
		t.Errorf("after the second reload: got %q", got)
	}
	eventually(t, "a record", func() bool { return contains(l.book.reasons(ledger.KindConnect), "denied net.policy_changed") })
}

// A WebSocket's handshake is nothing that a rule for plain HTTP lets through.
func TestUpgradeRefused(t *testing.T) {
	l, site := inspectLab(t, hello200)
	c := l.terminated("http/1.1")
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	if st := answer(bufio.NewReader(c)); st < 400 || site.count() != 0 {
		t.Errorf("got %d, %d requests", st, site.count())
	}
}

const secret = "s3cr3t-0123456789"

func credentialLab(t *testing.T, h http.HandlerFunc) (*lab, *site) {
	l, site := inspectLab(t, h, func(c *Config, _ *holdsConfig) {
		c.Credential = func(agent, name string) (string, bool) { return secret, agent == "a1" && name != "empty" }
	})
	return l, site
}

// withCredentials sets the policy that lists the credential at one path only.
func (l *lab) withCredentials(cs ...policies.Credential) {
	r := ruleFor("http")
	r.Credentials = []string{"key", "other", "empty"}
	open := ruleFor("http")
	open.Path = "/open/**"
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pol = &policies.Policy{Name: "test", Credentials: cs, Network: allow(r, open)}
}

// The server gets the secret where the placeholder stood, and only there.
func TestCredentials(t *testing.T) {
	l, site := credentialLab(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Repeated", r.Header.Get("Authorization"))
		fmt.Fprintf(w, "you sent %s, %s", r.Header.Get("Authorization"), r.Header.Get("X-Api-Key"))
	})
	l.withCredentials(policies.Credential{Name: "key"}, policies.Credential{Name: "other", Header: "X-Api-Key"}, policies.Credential{Name: "empty"}, policies.Credential{Name: "unlisted"})
	ph := l.proxy.Placeholder("a1", "key")
	basic := func(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte("me:"+s)) }
	for name, x := range map[string]struct {
		path, body string
		head       []string
		want       string // what the server has to see; "": nothing
	}{
		"bearer":          {"/", "", []string{"Authorization", "Bearer " + ph}, "Bearer " + secret},
		"basic":           {"/", "", []string{"Authorization", basic(ph)}, basic(secret)},
		"own header":      {"/", "", []string{"X-Api-Key", l.proxy.Placeholder("a1", "other")}, secret},
		"other header":    {"/", "", []string{"Authorization", l.proxy.Placeholder("a1", "other")}, ""},
		"no value":        {"/", "", []string{"Authorization", l.proxy.Placeholder("a1", "empty")}, ""},
		"not listed":      {"/", "", []string{"Authorization", l.proxy.Placeholder("a1", "unlisted")}, ""},
		"another agent's": {"/", "", []string{"Authorization", l.proxy.Placeholder("a2", "key")}, ""},
		"unknown":         {"/", "", []string{"Authorization", placeholderMark + strings.Repeat("0", 32)}, ""},
		"cut off":         {"/", "", []string{"Authorization", ph[:len(ph)-1]}, ""},
		"capitals":        {"/", "", []string{"Authorization", strings.ToUpper(ph)}, ""},
		"two":             {"/", "", []string{"Authorization", ph + ph}, ""},
		"other endpoint":  {"/open/x", "", []string{"Authorization", "Bearer " + ph}, ""},
		"query":           {"/?k=" + ph, "", nil, ""},
		"path":            {"/" + ph, "", nil, ""},
		"header's name":   {"/", "", []string{ph, "x"}, ""},
		"body":            {"/", `{"k":"` + ph + `"}`, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			was, denied := site.count(), len(denials(l))
			st, body, res := do(t, l.client(true), "POST", "https://a.example"+x.path, x.body, x.head...)
			if x.want != "" {
				q, _ := site.last()
				if st != 200 || site.count() != was+1 || q.Header.Get("Authorization")+q.Header.Get("X-Api-Key") != x.want {
					t.Fatalf("got %d %s, the server saw %v", st, body, q.Header)
				}
				if all := body + res.Header.Get("X-Repeated"); strings.Contains(all, secret) || strings.Contains(all, base64.StdEncoding.EncodeToString([]byte("me:"+secret))) {
					t.Errorf("the answer holds the secret: %s", all)
				}
				return
			}
			if st == 200 || site.count() != was {
				t.Errorf("got %d %s", st, body)
			}
			ds := denials(l)
			if len(ds) != denied+1 || ds[denied].Reason != "net.credential" {
				t.Errorf("records %+v", ds[denied:])
			}
		})
	}
	if st, body, _ := do(t, l.client(false), "GET", "http://a.example/", "", "Authorization", "Bearer "+ph); st != 403 || !strings.Contains(body, "net.credential") {
		t.Errorf("in clear: got %d %s", st, body)
	}
	// A large body is on its way when the placeholder is seen, and never ends.
	st, body, _ := do(t, l.client(true), "POST", "https://a.example/", strings.Repeat("x", 2*smallBody)+ph)
	if _, got := site.last(); st == 200 || strings.Contains(got, ph) {
		t.Errorf("a large body: got %d %s", st, body)
	}
	for _, r := range l.book.find(func(ledger.Record) bool { return true }) {
		if strings.Contains(fmt.Sprintf("%+v", r), secret) {
			t.Errorf("the ledger holds the secret: %+v", r)
		}
	}
	names := l.book.find(func(r ledger.Record) bool { return r.Attrs["credentials"] != nil })
	if len(names) != 3 {
		t.Errorf("%d records name the credential that was put in, want 3", len(names))
	}
}

// pieces reads a text a few bytes at a time.
type pieces struct {
	s string
	n int
}

func (p *pieces) Read(b []byte) (int, error) {
	if p.s == "" {
		return 0, io.EOF
	}
	n := copy(b, p.s[:min(p.n, len(p.s))])
	p.s = p.s[n:]
	return n, nil
}
