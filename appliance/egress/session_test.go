package egress

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/holds"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

type holdsConfig = holds.Config

func hello200(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s %s %s", r.Method, r.Host, r.URL.RequestURI())
}

// One rule, several requests on one kept connection: each is judged by the
// policy of its moment, and the server gets what was judged.
func TestInspect(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(map[bool]string{false: "HTTP/1.1", true: "HTTP/2"}[h2], func(t *testing.T) {
			l, site := inspectLab(t, hello200)
			r := policies.HostRule{Host: "a.example", Ports: []int{443}, Protocol: "http", Inspect: true, Calls: []policies.CallRule{{Method: "GET", Path: "/v1/**"}}}
			l.network(allow(r))
			c := l.client(h2)
			st, body, res := do(t, c, "GET", "https://a.example/x/../v1//a%20b?q=1", "")
			if st != 200 || body != "GET a.example /v1/a%20b?q=1" {
				t.Fatalf("got %d %s", st, body)
			}
			if (res.ProtoMajor == 2) != h2 {
				t.Errorf("spoke %s", res.Proto)
			}
			st, body, _ = do(t, c, "POST", "https://a.example/v1/a", "x")
			if st != 403 || !strings.Contains(body, policies.ReasonCallUnlisted) {
				t.Errorf("POST: got %d %s", st, body)
			}
			r.Calls = []policies.CallRule{{Method: "POST", Path: "/v1/**"}}
			l.network(allow(r))
			l.proxy.Recheck("a1")
			if st, body, _ := do(t, c, "POST", "https://a.example/v1/a", "x"); st != 200 {
				t.Errorf("after the reload: got %d %s", st, body)
			}
			if st, body, _ := do(t, c, "GET", "https://a.example/v1/a", ""); st != 403 {
				t.Errorf("after the reload: got %d %s", st, body)
			}
			want := []string{"allowed net.allowed", "allowed call.allowed", "denied call.unlisted", "allowed call.allowed", "denied call.unlisted"}
			if got := l.book.reasons(ledger.KindConnect); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("records %v, want %v on one connection", got, want)
			}
			if n := site.count(); n != 2 {
				t.Errorf("%d requests reached the site", n)
			}
			c.CloseIdleConnections()
			eventually(t, "the closing record", func() bool { return contains(l.book.reasons(ledger.KindConnect), "net.closed") })
		})
	}
}

// The server has to prove the name to this process, as it would to the client.
func TestInspectVerifiesServer(t *testing.T) {
	for _, name := range []string{"b.example", "a.example"} {
		evil := newSite(t, nil, hello200, name) // of an unknown CA, or for another name
		l, _ := inspectLab(t, hello200, func(c *Config, _ *holdsConfig) {
			if name == "b.example" {
				c.Roots = evil.roots
			}
		})
		l.serve(evil.put)
		st, body, _ := do(t, l.client(true), "GET", "https://a.example/", "")
		if st != 502 || !strings.Contains(body, "x509") || evil.count() != 0 {
			t.Errorf("%s: got %d %s; %d requests", name, st, body, evil.count())
		}
	}
}

// What a rule does not have inspected passes with the server's own certificate.
func TestPassThrough(t *testing.T) {
	l, _ := inspectLab(t, hello200)
	l.network(allow(rule("a.example", 443)))
	c := l.client(true)
	if st, body, _ := do(t, c, "GET", "https://a.example/", ""); st != 0 || !strings.Contains(body, "unknown authority") {
		t.Errorf("got %d %s", st, body)
	}
	c.Transport.(*http.Transport).TLSClientConfig.RootCAs = l.proxy.c.Roots
	if st, body, _ := do(t, c, "GET", "https://a.example/any", ""); st != 200 || body != "GET a.example /any" {
		t.Errorf("got %d %s", st, body)
	}
}

func TestInspectGreeting(t *testing.T) {
	l, site := inspectLab(t, hello200)
	l.network(allow(
		policies.HostRule{Host: "a.example", Ports: []int{80, 443, 8443}, Protocol: "http", Inspect: true},
		policies.HostRule{Host: "clear.example", Ports: []int{8443}, Protocol: "http"},
		rule("pass.example", 443),
		policies.HostRule{Host: "raw.example", Ports: []int{443, 7000}, Protocol: "tcp"},
	))
	for name, x := range map[string]struct{ to, send, reason string }{
		"other name":       {"a.example:443", string(hello(t, "b.example")), "net.sni_mismatch"},
		"no name":          {"a.example:443", string(hello(t, "192.0.2.1")), "net.sni_mismatch"},
		"not TLS":          {"a.example:443", "SSH-2.0-x\r\n", "net.protocol"},
		"not TLS or HTTP":  {"a.example:8443", "SSH-2.0-x\r\n", "net.protocol"},
		"binary":           {"a.example:8443", "\x00\x01\x02", "net.protocol"},
		"h2c":              {"a.example:8443", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "net.host_mismatch"},
		"TLS, uninspected": {"clear.example:8443", string(hello(t, "clear.example")), "net.uninspected"},
		"encrypted hello":  {"pass.example:443", string(echHello(t, "pass.example")), "net.ech"},
	} {
		t.Run(name, func(t *testing.T) {
			was := len(l.book.reasons(ledger.KindConnect))
			c := l.connect("tcp", x.to)
			io.WriteString(c, x.send)
			cut(t, c)
			if got := l.book.reasons(ledger.KindConnect)[was:]; len(got) != 1 || got[0] != "denied "+x.reason {
				t.Errorf("records %v, want %s", got, x.reason)
			}
		})
	}
	if site.count() != 0 {
		t.Error("something reached the site")
	}
	l.serve(echo)
	for _, to := range []string{"raw.example:443", "raw.example:7000"} { // explicit: anything
		for _, send := range []string{"\x00raw\n", string(hello(t, "other.example")), "GET / HTTP/1.1\r\nHost: b.example\r\n\r\n"} {
			if !echoes(l.connect("tcp", to), send) {
				t.Errorf("%s: %.10q does not pass", to, send)
			}
		}
	}
}

// echHello is a hello with the extension of an encrypted one.
func echHello(t *testing.T, name string) []byte {
	t.Helper()
	b := hello(t, name)
	ext := []byte{0xfe, 0x0d, 0, 4, 0, 1, 2, 3}
	b = append(b, ext...)
	grow := func(i int) { n := int(b[i])<<8 + int(b[i+1]) + len(ext); b[i], b[i+1] = byte(n>>8), byte(n) }
	grow(3)
	grow(7)
	exts := 44 + int(b[43])
	exts += 2 + int(b[exts])<<8 + int(b[exts+1])
	exts += 1 + int(b[exts])
	grow(exts)
	if g, done, err := clientHello(b); !g.ech || g.name != name || !done || err != nil {
		t.Fatalf("got %+v %v %v", g, done, err)
	}
	return b
}

// A client that does not trust the sandbox's CA gets nothing, and the ledger says why.
func TestInspectUntrusting(t *testing.T) {
	l, site := inspectLab(t, hello200)
	c := tls.Client(l.connect("tcp", "a.example:443"), &tls.Config{ServerName: "a.example", RootCAs: x509.NewCertPool()})
	if err := c.Handshake(); err == nil {
		t.Error("the handshake went through")
	}
	eventually(t, "a record", func() bool { return contains(l.book.reasons(ledger.KindConnect), "denied net.tls") })
	if site.count() != 0 {
		t.Error("a request reached the site")
	}
}

// Answers arrive as they are sent, and a reload ends one that is no longer allowed.
func TestInspectStreams(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		l, _ := inspectLab(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for i := range 3 {
				fmt.Fprintf(w, "data: %d\n\n", i)
				w.(http.Flusher).Flush()
			}
			<-r.Context().Done()
		})
		res, err := l.client(h2).Get("https://a.example/stream")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		buf := make([]byte, len("data: 0\n\ndata: 1\n\ndata: 2\n\n"))
		if _, err := io.ReadFull(res.Body, buf); err != nil {
			t.Fatalf("got %q, %v", buf, err)
		}
		r := policies.HostRule{Host: "a.example", Ports: []int{443}, Protocol: "http", Inspect: true, DenyCalls: []policies.CallRule{{Path: "/stream"}}}
		l.network(allow(r))
		start := time.Now()
		l.proxy.Recheck("a1")
		if _, err := io.Copy(io.Discard, res.Body); err == nil {
			t.Error("the stream ended in order, want it cut")
		}
		t.Logf("cut after %v", time.Since(start))
		eventually(t, "a record", func() bool { return contains(l.book.reasons(ledger.KindConnect), "denied net.policy_changed") })
	}
}

// A reload closes what is to be inspected from now on, and what leads where it
// may not any more.
func TestReloadCloses(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	l.resolves("a.example", "203.0.113.7")
	for name, n := range map[string]policies.Network{
		"inspected":      allow(policies.HostRule{Host: "a.example", Ports: []int{7000}, Protocol: "http"}),
		"address denied": {Default: policies.Deny, Allow: []policies.HostRule{rule("a.example", 7000)}, Deny: []policies.HostRule{{CIDR: "203.0.113.0/24"}}},
		"other network":  allow(policies.HostRule{Host: "a.example", Ports: []int{7000}, AllowedIPs: []string{"198.51.100.0/24"}}),
	} {
		l.network(allow(rule("a.example", 7000), rule("b.example", 7000)))
		c, stays := l.connect("tcp", "a.example:7000"), l.connect("tcp", "b.example:7000")
		if !echoes(c, "x") || !echoes(stays, "x") {
			t.Fatal("no echo")
		}
		n.Allow = append(n.Allow, rule("b.example", 7000))
		if name == "address denied" {
			l.resolves("b.example", "198.51.100.9")
		}
		l.network(n)
		l.proxy.Recheck("a1")
		if err := cut(t, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: got %v, want a reset", name, err)
		}
		if name != "address denied" && !echoes(stays, "y") {
			t.Errorf("%s: the other connection did not stay", name)
		}
	}
}

func TestCAOfEachSandbox(t *testing.T) {
	l := newLab(t)
	a, err1 := l.proxy.CA("a1")
	again, err2 := l.proxy.CA("a1")
	b, err3 := l.proxy.CA("a2")
	if err := errors.Join(err1, err2, err3); err != nil || string(a) != string(again) || string(a) == string(b) {
		t.Errorf("got %v", err)
	}
	if _, err := l.proxy.CA(""); err == nil {
		t.Error("no agent: want an error")
	}
	// The same seed gives the same key, so a certificate made before a restart
	// still verifies what is signed after it.
	seed := make([]byte, seedBytes)
	x, err1 := newAuthority(seed, "a1")
	y, err2 := newAuthority(seed, "a1")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	leaf, err := y.leaf("a.example")
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(x.cert)
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "a.example"}); err != nil {
		t.Error(err)
	}
	if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "b.example"}); err == nil {
		t.Error("good for another name")
	}
	if _, err := New(Config{Recorder: l.book, Holds: l.holds, Seed: []byte("short")}); err == nil {
		t.Error("a short seed: want an error")
	}
}
