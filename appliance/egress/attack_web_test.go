package egress

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/appliance/ledger"
)

// Plain HTTP to a named host: what a server could take for another host's, or
// for more than one request, is refused or goes out in one form only.
func TestPlainHTTPOneReading(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	l.network(allow(rule("a.example", 80, 8080)))
	got := make(chan *http.Request, 100)
	l.serve(func(c net.Conn) {
		q, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, q.Body)
		got <- q
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})
	const host = "Host: a.example\r\n"
	for name, x := range map[string]struct{ send, reason string }{
		"both lengths":       {"POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "http.header"},
		"two codings":        {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n", "http.header"},
		"two lengths":        {"POST / HTTP/1.1\r\n" + host + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", "http.header"},
		"length with a sign": {"POST / HTTP/1.1\r\n" + host + "Content-Length: +1\r\n\r\na", "http.header"},
		"folded":             {"GET / HTTP/1.1\r\n" + host + "X: a\r\n b\r\n\r\n", "net.host_mismatch"},
		"two hosts in one":   {"GET / HTTP/1.1\r\nHost: a.example:80,b.example\r\n\r\n", "net.host_mismatch"},
		"word for a port":    {"GET / HTTP/1.1\r\nHost: a.example:b\r\n\r\n", "net.host_mismatch"},
		"another port":       {"GET / HTTP/1.1\r\nHost: a.example:8080\r\n\r\n", "net.host_mismatch"},
		"wide letters":       {"GET / HTTP/1.1\r\nHost: \uff41.example\r\n\r\n", "net.host_mismatch"},
	} {
		t.Run(name, func(t *testing.T) {
			was := len(l.book.reasons(ledger.KindConnect))
			c := l.connect("tcp", "a.example:80")
			_, _ = io.WriteString(c, x.send)
			cut(t, c)
			if rs := l.book.reasons(ledger.KindConnect)[was:]; len(rs) != 1 || rs[0] != "denied "+x.reason {
				t.Errorf("records %v, want %s", rs, x.reason)
			}
			if len(got) > 0 {
				t.Errorf("the server got %+v", <-got)
			}
		})
	}
	t.Run("h2c", func(t *testing.T) {
		for _, up := range []string{"h2c", "websocket, h2c", "TLS/1.0"} {
			c := l.connect("tcp", "a.example:80")
			fmt.Fprintf(c, "GET / HTTP/1.1\r\n"+host+"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %s\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n", up)
			cut(t, c)
			if q := <-got; q.Header.Get("Upgrade") != "" || q.Header.Get("Http2-Settings") != "" {
				t.Errorf("%s: the server got %v", up, q.Header)
			}
		}
	})
	t.Run("host in one form", func(t *testing.T) {
		c := l.connect("tcp", "a.example:8080")
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: A.EXAMPLE.:8080\r\n\r\n")
		cut(t, c)
		if q := <-got; q.Host != "a.example:8080" {
			t.Errorf("the server got Host %s", q.Host)
		}
	})
}

// What a client sends after its one request goes nowhere, and is recorded.
func TestPipelinedPlain(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	l.network(allow(rule("a.example", 80)))
	l.serve(httpOK)
	const second = "GET /second HTTP/1.1\r\nHost: denied.example\r\n\r\n"
	for name, x := range map[string]struct {
		send string
		want bool
	}{
		"one":             {"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", false},
		"one with a body": {"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\n\r\nbody", false},
		"two":             {"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n" + second, true},
		"after a body":    {"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\n\r\nbody" + second, true},
		"after chunks":    {"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n" + second, true},
		"chunks":          {"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			was := len(l.book.reasons(ledger.KindConnect))
			c := l.connect("tcp", "a.example:80")
			_, _ = io.WriteString(c, x.send)
			b, _ := io.ReadAll(c)
			if !strings.HasPrefix(string(b), "HTTP/1.1 200") || strings.Count(string(b), "HTTP/1.1") != 1 {
				t.Errorf("got %q", b)
			}
			eventually(t, "the end", func() bool { return contains(l.book.reasons(ledger.KindConnect)[was:], "net.closed") })
			if rs := l.book.reasons(ledger.KindConnect)[was:]; contains(rs, "denied net.pipelined") != x.want {
				t.Errorf("records %v", rs)
			}
		})
	}
}

// The server name of a hello is letters: a server would not fold others.
func TestSNILetters(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	l.network(allow(rule("a.example", 443)))
	c := l.connect("tcp", "a.example:443")
	h := strings.Replace(string(hello(t, "aaa.example")), "aaa.example", "\uff41.example", 1)
	_, _ = io.WriteString(c, h)
	cut(t, c)
	if rs := l.book.reasons(ledger.KindConnect); len(rs) != 1 || rs[0] != "denied net.sni_mismatch" {
		t.Errorf("records %v", rs)
	}
}
