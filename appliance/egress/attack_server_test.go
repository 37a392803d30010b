package egress

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// A fault in what net/http calls from goroutines of its own ends a request,
// recorded, and not every sandbox's connections.
func TestFaultWhileDialling(t *testing.T) {
	var boom atomic.Bool
	boom.Store(true)
	l, _ := inspectLab(t, hello200, func(c *Config, _ *holdsConfig) {
		c.Lookup = func(context.Context, string) ([]netip.Addr, error) {
			if boom.Load() {
				panic("a fault")
			}
			return []netip.Addr{netip.MustParseAddr("203.0.113.7")}, nil
		}
	})
	c := l.client(true)
	if st, body, _ := do(t, c, "GET", "https://a.example/", ""); st != 502 || !strings.Contains(body, "internal.panic") {
		t.Errorf("got %d %s", st, body)
	}
	if !contains(l.book.reasons(ledger.KindConnect), "denied internal.panic") {
		t.Errorf("records %v", l.book.reasons(ledger.KindConnect))
	}
	boom.Store(false)
	if st, body, _ := do(t, c, "GET", "https://a.example/", ""); st != 200 {
		t.Errorf("afterwards: got %d %s", st, body)
	}
}

type falling struct{ net.Conn }

func (falling) Read([]byte) (int, error) { panic("a fault") }

func (falling) Close() error { return nil }

func TestFaultWhileReading(t *testing.T) {
	for name, r := range map[string]io.Reader{"head": &heads{Conn: falling{}}, "body": &spotter{ReadCloser: falling{}}} {
		if _, err := r.Read(make([]byte, 10)); err == nil || !strings.Contains(err.Error(), "a fault") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// raw answers each request on a connection with bytes.
func raw(answer func(*http.Request) string) func(net.Conn) {
	return func(c net.Conn) {
		br := bufio.NewReader(c)
		for {
			q, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, q.Body)
			_, _ = io.WriteString(c, answer(q))
		}
	}
}

// hostileLab is a site behind TLS that answers with any bytes; the agent's
// requests to it carry a credential.
func hostileLab(t *testing.T, answer func(*http.Request) string) *lab {
	l, site := credentialLab(t, hello200)
	cert, ca := issue(t, "a.example")
	site.roots.AddCert(ca)
	l.serve(tlsRaw(cert, raw(answer)))
	l.withCredentials(policies.Credential{Name: "key"})
	return l
}

func zipped(s string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = io.WriteString(z, s)
	_ = z.Close()
	return b.String()
}

// Whatever form a server's answer has, the agent does not read its credential
// from it, and neither does who reads the ledger.
func TestSecretStaysOut(t *testing.T) {
	has := func(q *http.Request) string { return q.Header.Get("Authorization") }
	for name, x := range map[string]struct {
		answer func(*http.Request) string
		status int
		want   string
	}{
		"status line": {func(q *http.Request) string { return has(q) + "\r\n\r\n" }, 502, "not well formed"},
		"header line": {func(q *http.Request) string { return "HTTP/1.1 200 OK\r\n" + has(q) + "\r\n\r\n" }, 502, "not well formed"},
		"status":      {func(q *http.Request) string { return "HTTP/1.1 2" + has(q) + " OK\r\n\r\n" }, 502, "not well formed"},
		"reason":      {func(q *http.Request) string { return "HTTP/1.1 200 " + has(q) + "\r\nContent-Length: 2\r\n\r\nok" }, 200, "ok"},
		"early hints": {func(q *http.Request) string {
			return "HTTP/1.1 103 Early\r\nLink: " + has(q) + "\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
		}, 200, "ok"},
		"endless hints": {func(q *http.Request) string {
			return strings.Repeat("HTTP/1.1 103 Early\r\nLink: x\r\n\r\n", 20_000) + "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
		}, 502, "not well formed"},
		"trailer": {func(q *http.Request) string {
			return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n2\r\nok\r\n0\r\nX-End: " + has(q) + "\r\n\r\n"
		}, 200, "ok"},
		"unannounced": {func(q *http.Request) string {
			return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-End: " + has(q) + "\r\n\r\n"
		}, 200, "ok"},
		"location": {func(q *http.Request) string {
			return "HTTP/1.1 302 Found\r\nLocation: /?t=" + secret + "\r\nContent-Length: 0\r\n\r\n"
		}, 302, ""},
		"packed": {func(q *http.Request) string {
			z := zipped("you sent " + has(q))
			return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", len(z), z)
		}, 200, "you sent Bearer ****"},
		"packed, empty": {func(q *http.Request) string {
			return "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n"
		}, 200, ""},
		"packed twice": {func(q *http.Request) string {
			return "HTTP/1.1 200 OK\r\nContent-Encoding: gzip, gzip\r\nContent-Length: 1\r\n\r\nx"
		}, 502, "net.credential"},
		"packed by br": {func(q *http.Request) string {
			return "HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\nx"
		}, 502, "net.credential"},
		"protocol change": {func(q *http.Request) string { return "HTTP/1.1 101 Switching\r\n\r\n" + has(q) }, 502, "net.protocol"},
		"upgrade": {func(q *http.Request) string {
			return "HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n" + has(q)
		}, 502, "net.protocol"},
	} {
		t.Run(name, func(t *testing.T) {
			l := hostileLab(t, x.answer)
			c := l.client(true)
			c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			st, body, res := do(t, c, "GET", "https://a.example/", "", "Authorization", "Bearer "+l.proxy.Placeholder("a1", "key"))
			if st != x.status || !strings.Contains(body, x.want) {
				t.Errorf("got %d %.300s", st, body)
			}
			if all := fmt.Sprint(body, res); strings.Contains(all, secret) || res != nil && strings.Contains(fmt.Sprint(res.Header, res.Trailer), secret) {
				t.Errorf("the agent gets the secret: %.300s", all)
			}
			c.CloseIdleConnections()
			eventually(t, "the end", func() bool { return contains(l.book.reasons(ledger.KindConnect), "net.closed") })
			for _, r := range l.book.find(func(ledger.Record) bool { return true }) {
				if s := fmt.Sprintf("%+v", r); strings.Contains(s, secret) || len(s) > 4000 {
					t.Errorf("the ledger holds the secret, or too much: %.300s", s)
				}
			}
		})
	}
}

// Refused requests wait for their turn in this process, and so there is an end
// to how many do.
func TestRefusedFlood(t *testing.T) {
	l, site := inspectLab(t, hello200)
	r := ruleFor("http", policies.CallRule{Method: "GET", Path: "/ok"})
	l.network(allow(r))
	var wg sync.WaitGroup
	var cs []*http.Client
	for range 16 {
		c := l.client(true)
		c.Timeout = time.Minute
		if st, body, _ := do(t, c, "GET", "https://a.example/ok", ""); st != 200 { // one connection for all that follows
			t.Fatalf("got %d %s", st, body)
		}
		cs = append(cs, c)
	}
	for _, c := range cs {
		for range 90 {
			wg.Go(func() { do(t, c, "GET", "https://a.example/no", "") })
		}
	}
	if st, body, _ := do(t, l.client(true), "GET", "https://a.example/ok", ""); st != 200 {
		t.Errorf("what is allowed, meanwhile: got %d %s", st, body)
	}
	eventually(t, "a connection closed for it", func() bool { return contains(l.book.reasons(ledger.KindConnect), "denied http.flood") })
	var box *box
	for b := range l.proxy.boxes {
		box = b
	}
	if n := box.waiting.Load(); n > maxWaiting+1 {
		t.Errorf("%d wait", n)
	}
	for _, c := range box.open() {
		c.abort()
	}
	box.cancel() // ends the waiting
	wg.Wait()
	if n := site.count(); n != 17 {
		t.Errorf("%d requests reached the site", n)
	}
}

// A server that repeats the handshake's credential in its frames shows it to
// nobody.
func TestSecretInFrames(t *testing.T) {
	l, site := credentialLab(t, nil)
	site.conns.Close()
	cert, ca := issue(t, "a.example")
	site.roots.AddCert(ca)
	q := newQueue()
	t.Cleanup(func() { q.Close() })
	go http.Serve(q, websocket.Server{Handler: func(c *websocket.Conn) {
		_ = websocket.Message.Send(c, "you are "+c.Request().Header.Get("Authorization"))
	}})
	l.serve(tlsRaw(cert, q.put))
	r := ruleFor("websocket")
	r.Credentials = []string{"key"}
	l.mu.Lock()
	l.pol = &policies.Policy{Name: "test", Credentials: []policies.Credential{{Name: "key"}}, Network: allow(r)}
	l.mu.Unlock()
	cfg, err := websocket.NewConfig("wss://a.example/", "https://a.example")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Header = http.Header{"Authorization": {"Bearer " + l.proxy.Placeholder("a1", "key")}}
	c, err := websocket.NewClient(cfg, l.terminated("http/1.1"))
	if err != nil {
		t.Fatal(err)
	}
	var got string
	if err := websocket.Message.Receive(c, &got); err != nil || got != "you are Bearer "+strings.Repeat("*", len(secret)) {
		t.Errorf("got %q %v", got, err)
	}
}

// What a server says before its answer stays here, as it would pass unmasked.
func TestHintsStayHere(t *testing.T) {
	l := hostileLab(t, func(q *http.Request) string {
		return "HTTP/1.1 103 Early\r\nLink: " + q.Header.Get("Authorization") + "\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	})
	c := l.terminated("http/1.1")
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: a.example\r\nAuthorization: %s\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", l.proxy.Placeholder("a1", "key"))
	b, _ := io.ReadAll(c) // ends: after chunks nothing more is read
	if s := string(b); !strings.HasPrefix(s, "HTTP/1.1 200 ") || !strings.HasSuffix(s, "ok") || strings.Contains(s, secret) || !strings.Contains(s, "Connection: close") {
		t.Errorf("got %q", s)
	}
}
