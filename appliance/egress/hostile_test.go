package egress

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// terminated is a TLS connection in the sandbox with the given protocol.
func (l *lab) terminated(proto string) *tls.Conn {
	l.t.Helper()
	pem, err := l.proxy.CA(l.agent.ID)
	if err != nil {
		l.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	c := tls.Client(l.connect("tcp", "a.example:443"), &tls.Config{ServerName: "a.example", RootCAs: pool, NextProtos: []string{proto}})
	if err := c.Handshake(); err != nil {
		l.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(8 * time.Second))
	return c
}

// Requests that two readers could take for different ones are refused, and
// nothing of them reaches the server: not in clear, not in TLS, not as the
// second request of a connection.
func TestHostileHTTP1(t *testing.T) {
	l, site := inspectLab(t, hello200)
	l.network(allow(policies.HostRule{
		Host: "a.example", Ports: []int{80, 443}, Protocol: "http", Inspect: true,
		Calls: []policies.CallRule{{Method: "GET", Path: "/ok/**"}, {Method: "POST", Path: "/ok/**"}},
	}))
	const host = "Host: a.example\r\n"
	table := map[string]string{
		"CL and TE":          "POST /ok/a HTTP/1.1\r\n" + host + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"two CL":             "POST /ok/a HTTP/1.1\r\n" + host + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"two equal CL":       "POST /ok/a HTTP/1.1\r\n" + host + "Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
		"CL list":            "POST /ok/a HTTP/1.1\r\n" + host + "Content-Length: 1, 1\r\n\r\na",
		"CL sign":            "POST /ok/a HTTP/1.1\r\n" + host + "Content-Length: +1\r\n\r\na",
		"CL hex":             "POST /ok/a HTTP/1.1\r\n" + host + "Content-Length: 0x1\r\n\r\na",
		"TE xchunked":        "POST /ok/a HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"TE twice":           "POST /ok/a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		"TE list":            "POST /ok/a HTTP/1.1\r\n" + host + "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
		"TE space":           "POST /ok/a HTTP/1.1\r\n" + host + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
		"TE tab":             "POST /ok/a HTTP/1.1\r\n" + host + "Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
		"TE folded":          "POST /ok/a HTTP/1.1\r\n" + host + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
		"TE in 1.0":          "POST /ok/a HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"obs-fold":           "GET /ok/a HTTP/1.1\r\n" + host + "X: a\r\n b\r\n\r\n",
		"bare LF":            "GET /ok/a HTTP/1.1\n" + "Host: a.example\n\n",
		"bare LF last":       "GET /ok/a HTTP/1.1\r\n" + host + "X: a\n\r\n",
		"bare CR":            "GET /ok/a HTTP/1.1\r\n" + host + "X: a\rY: b\r\n\r\n",
		"NUL":                "GET /ok/a HTTP/1.1\r\n" + host + "X: a\x00b\r\n\r\n",
		"no colon":           "GET /ok/a HTTP/1.1\r\n" + host + "Xa\r\n\r\n",
		"two hosts":          "GET /ok/a HTTP/1.1\r\n" + host + "Host: b.example\r\n\r\n",
		"no host":            "GET /ok/a HTTP/1.1\r\n\r\n",
		"other host":         "GET /ok/a HTTP/1.1\r\nHost: b.example\r\n\r\n",
		"other port":         "GET /ok/a HTTP/1.1\r\nHost: a.example:8443\r\n\r\n",
		"absolute other":     "GET http://b.example/ok/a HTTP/1.1\r\n" + host + "\r\n",
		"absolute and host":  "GET http://a.example/ok/a HTTP/1.1\r\nHost: b.example\r\n\r\n",
		"userinfo":           "GET http://b.example@a.example/ok/a HTTP/1.1\r\n" + host + "\r\n",
		"connect":            "CONNECT a.example:443 HTTP/1.1\r\n" + host + "\r\n",
		"trace":              "TRACE /ok/a HTTP/1.1\r\n" + host + "\r\n",
		"lower case":         "get /ok/a HTTP/1.1\r\n" + host + "\r\n",
		"HTTP/1.2":           "GET /ok/a HTTP/1.2\r\n" + host + "\r\n",
		"HTTP/2.0":           "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"two spaces":         "GET  /ok/a HTTP/1.1\r\n" + host + "\r\n",
		"override":           "POST /ok/a HTTP/1.1\r\n" + host + "X-HTTP-Method-Override: DELETE\r\nContent-Length: 0\r\n\r\n",
		"rewrite":            "GET /ok/a HTTP/1.1\r\n" + host + "X-Original-URL: /admin\r\n\r\n",
		"hop":                "GET /ok/a HTTP/1.1\r\n" + host + "Connection: Authorization\r\nAuthorization: x\r\n\r\n",
		"dots":               "GET /ok/../admin HTTP/1.1\r\n" + host + "\r\n",
		"encoded dots":       "GET /ok/%2e%2e/admin HTTP/1.1\r\n" + host + "\r\n",
		"encoded slash":      "GET /ok/..%2fadmin HTTP/1.1\r\n" + host + "\r\n",
		"encoded twice":      "GET /ok/%252e%252e/admin HTTP/1.1\r\n" + host + "\r\n",
		"backslash":          "GET /ok/..%5cadmin HTTP/1.1\r\n" + host + "\r\n",
		"semicolon":          "GET /ok/..;/admin HTTP/1.1\r\n" + host + "\r\n",
		"encoded NUL":        "GET /ok/a%00 HTTP/1.1\r\n" + host + "\r\n",
		"overlong":           "GET /ok/%c0%ae%c0%ae/admin HTTP/1.1\r\n" + host + "\r\n",
		"above the root":     "GET /../../ok/a HTTP/1.1\r\n" + host + "\r\n",
		"not listed":         "GET //admin HTTP/1.1\r\n" + host + "\r\n",
		"a long head":        "GET /ok/a HTTP/1.1\r\n" + host + "X: " + strings.Repeat("a", 70<<10) + "\r\n\r\n",
		"many header fields": "GET /ok/a HTTP/1.1\r\n" + host + strings.Repeat("X: a\r\n", 1000) + "\r\n",
	}
	const good = "GET /ok/first HTTP/1.1\r\n" + host + "\r\n"
	for name, send := range table {
		for how, dial := range map[string]func() net.Conn{
			"clear": func() net.Conn { return l.connect("tcp", "a.example:80") },
			"TLS":   func() net.Conn { return l.terminated("http/1.1") },
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				was, denied := site.count(), len(denials(l))
				c := dial()
				c.SetDeadline(time.Now().Add(8 * time.Second))
				io.WriteString(c, send)
				answer(bufio.NewReader(c))
				if n := site.count() - was; n != 0 {
					q, b := site.last()
					t.Fatalf("%d requests reached the site: %s %s %q", n, q.Method, q.RequestURI, b)
				}
				eventually(t, "a denial in the ledger", func() bool { return len(denials(l)) > denied })
				c = dial()
				c.SetDeadline(time.Now().Add(8 * time.Second))
				io.WriteString(c, good)
				br := bufio.NewReader(c)
				if st := answer(br); st != 200 {
					t.Fatalf("the first request: got %d", st)
				}
				io.WriteString(c, send)
				if st := answer(br); st == 200 {
					t.Error("answered 200")
				}
				if n := site.count() - was; n != 1 {
					q, b := site.last()
					t.Fatalf("behind a good request %d reached the site: %s %s %q", n, q.Method, q.RequestURI, b)
				}
			})
		}
	}
}

// answer reads one response whole and returns its status, 0 for none.
func answer(br *bufio.Reader) int {
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

func denials(l *lab) []ledger.Record {
	return l.book.find(func(r ledger.Record) bool { return r.Kind == ledger.KindConnect && r.Verdict == ledger.Denied })
}

// An upgrade to anything but a WebSocket is left out, as a server may: what
// follows is HTTP/1.1.
func TestOtherUpgrades(t *testing.T) {
	l, site := inspectLab(t, hello200)
	for _, head := range []string{"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", "Connection: Upgrade\r\nUpgrade: foo\r\n"} {
		c := l.connect("tcp", "a.example:80")
		c.SetDeadline(time.Now().Add(8 * time.Second))
		io.WriteString(c, "GET /ok/a HTTP/1.1\r\nHost: a.example\r\n"+head+"\r\n")
		br := bufio.NewReader(c)
		st := answer(br)
		q, _ := site.last()
		if st != 200 || len(q.Header["Upgrade"])+len(q.Header["Http2-Settings"]) > 0 {
			t.Errorf("%q: got %d, the site saw %v", head, st, q.Header)
		}
		io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
		if st := answer(br); st == 200 {
			t.Errorf("%q: HTTP/2 is spoken", head)
		}
	}
}

// Requests one behind the other in one write are two requests, judged each.
func TestPipelined(t *testing.T) {
	l, site := inspectLab(t, hello200)
	l.network(allow(policies.HostRule{
		Host: "a.example", Ports: []int{80}, Protocol: "http", Calls: []policies.CallRule{{Path: "/ok/**"}},
	}))
	const host = " HTTP/1.1\r\nHost: a.example\r\n"
	for name, x := range map[string]struct {
		send string
		want []string
	}{
		"plain":         {"GET /ok/1" + host + "\r\nGET /no/2" + host + "\r\nGET /ok/3" + host + "Connection: close\r\n\r\n", []string{"/ok/1", "/ok/3"}},
		"in a body":     {"POST /ok/1" + host + "Content-Length: 45\r\n\r\nGET /ok/x" + host + "\r\nabcdefGET /ok/3" + host + "Connection: close\r\n\r\n", []string{"/ok/1", "/ok/3"}},
		"after chunks":  {"POST /ok/1" + host + "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\nGET /ok/2" + host + "\r\n", []string{"/ok/1"}},
		"after trailer": {"POST /ok/1" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\nHost: b.example\r\n\r\nGET /ok/2" + host + "\r\n", []string{"/ok/1"}},
	} {
		t.Run(name, func(t *testing.T) {
			was := site.count()
			c := l.connect("tcp", "a.example:80")
			c.SetDeadline(time.Now().Add(8 * time.Second))
			io.WriteString(c, x.send)
			out, _ := io.ReadAll(c)
			site.mu.Lock()
			defer site.mu.Unlock()
			var got []string
			for _, q := range site.seen[was:] {
				got = append(got, q.RequestURI)
				if len(q.Trailer) > 0 {
					t.Errorf("trailer %v", q.Trailer)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(x.want) {
				t.Errorf("reached the site: %v, want %v; answers %s", got, x.want, out)
			}
		})
	}
}

// HTTP/2 as no library sends it: CONNECT, headers of HTTP/1's framing, pseudo
// headers that disagree, streams that are opened and reset in a loop.
func TestHostileHTTP2(t *testing.T) {
	l, site := inspectLab(t, hello200)
	type h = []hpack.HeaderField
	f := func(kv ...string) (out h) {
		for i := 0; i < len(kv); i += 2 {
			out = append(out, hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
		}
		return out
	}
	for name, fields := range map[string]h{
		"connect":          f(":method", "CONNECT", ":authority", "a.example:443"),
		"extended connect": f(":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":path", "/", ":authority", "a.example"),
		"other authority":  f(":method", "GET", ":scheme", "https", ":path", "/", ":authority", "b.example"),
		"no authority":     f(":method", "GET", ":scheme", "https", ":path", "/"),
		"host differs":     f(":method", "GET", ":scheme", "https", ":path", "/", "host", "b.example"),
		"transfer":         f(":method", "POST", ":scheme", "https", ":path", "/", ":authority", "a.example", "transfer-encoding", "chunked"),
		"connection":       f(":method", "GET", ":scheme", "https", ":path", "/", ":authority", "a.example", "connection", "upgrade"),
		"upper case":       f(":method", "GET", ":scheme", "https", ":path", "/", ":authority", "a.example", "X-Y", "z"),
		"line in value":    f(":method", "GET", ":scheme", "https", ":path", "/", ":authority", "a.example", "x", "a\r\nhost: b"),
		"line in path":     f(":method", "GET", ":scheme", "https", ":path", "/ HTTP/1.1\r\nHost: b", ":authority", "a.example"),
		"path of dots":     f(":method", "GET", ":scheme", "https", ":path", "/..%2f..%2fadmin", ":authority", "a.example"),
		"two paths":        f(":method", "GET", ":scheme", "https", ":path", "/", ":path", "/b", ":authority", "a.example"),
		"late pseudo":      f(":method", "GET", ":scheme", "https", "x", "y", ":path", "/", ":authority", "a.example"),
		"absolute path":    f(":method", "GET", ":scheme", "https", ":path", "https://b.example/", ":authority", "a.example"),
	} {
		t.Run(name, func(t *testing.T) {
			c := l.terminated("h2")
			fr := preface(t, c)
			open(t, fr, 1, fields)
			for { // until an answer that is not 200, a reset or the end
				x, err := fr.ReadFrame()
				if err != nil {
					break
				}
				if _, ok := x.(*http2.RSTStreamFrame); ok {
					break
				}
				if m, ok := x.(*http2.MetaHeadersFrame); ok {
					if s := m.PseudoValue("status"); s < "400" {
						t.Errorf("answered %s", s)
					}
					break
				}
			}
			if n := site.count(); n != 0 {
				q, _ := site.last()
				t.Fatalf("reached the site: %s %s %s %v", q.Method, q.Host, q.RequestURI, q.Header)
			}
		})
	}
	t.Run("rapid reset", func(t *testing.T) {
		c := l.terminated("h2")
		fr := preface(t, c)
		const n = 20_000
		sent := 0
		for i := range n {
			if open(t, fr, uint32(2*i+1), f(":method", "GET", ":scheme", "https", ":path", "/", ":authority", "a.example")) != nil ||
				fr.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel) != nil {
				break
			}
			sent++
		}
		if sent == n {
			for {
				if _, err := fr.ReadFrame(); err != nil {
					break
				}
			}
		}
		t.Logf("%d streams were opened, %d requests reached the site", sent, site.count())
		if got := site.count(); got > n/2 {
			t.Errorf("%d of %d reset requests reached the site", got, n)
		}
		if st, _, _ := do(t, l.client(true), "GET", "https://a.example/", ""); st != 200 {
			t.Errorf("afterwards: got %d", st)
		}
	})
}

func preface(t *testing.T, c net.Conn) *http2.Framer {
	t.Helper()
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	fr := http2.NewFramer(c, c)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := fr.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return fr
}

// open sends the headers of a request without a body.
func open(t *testing.T, fr *http2.Framer, id uint32, fields []hpack.HeaderField) error {
	t.Helper()
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	enc.SetMaxDynamicTableSize(0)
	for _, f := range fields {
		if err := enc.WriteField(f); err != nil {
			t.Fatal(err)
		}
	}
	return fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b.Bytes(), EndStream: true, EndHeaders: true})
}
