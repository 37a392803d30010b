package egress

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// teed is a connection that notes what is read.
type teed struct {
	net.Conn
	r io.Reader
}

func (t teed) Read(b []byte) (int, error) { return t.r.Read(b) }

// A request behind the first one, kept alive or pipelined, hidden in a body or
// behind a refused upgrade, reaches nobody.
func TestOneRequestEach(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	l.network(allow(rule("a.example", 80, 8080)))
	var raw atomic.Value
	l.serve(func(c net.Conn) {
		var b strings.Builder
		raw.Store("")
		httpOK(teed{c, io.TeeReader(c, &b)})
		raw.Store(b.String())
	})
	const second = "GET /second HTTP/1.1\r\nHost: b.example\r\n\r\n"
	for name, first := range map[string]string{
		"pipelined":  "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
		"keep-alive": "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: keep-alive\r\n\r\n",
		"HTTP/1.0":   "GET / HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive\r\n\r\n",
		"after body": "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc",
		"no upgrade": "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
	} {
		for _, port := range []string{"80", "8080"} {
			t.Run(name+" "+port, func(t *testing.T) {
				raw.Store("none")
				c := l.connect("tcp", "a.example:"+port)
				c.SetDeadline(time.Now().Add(5 * time.Second))
				if port == "8080" {
					time.Sleep(400 * time.Millisecond) // taken for silent
				}
				io.WriteString(c, first+second)
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil || resp.StatusCode != 200 {
					t.Fatalf("got %v %v", resp, err)
				}
				io.WriteString(c, second)
				eventually(t, "the server's end", func() bool { s := raw.Load().(string); return s != "" && s != "none" })
				if s := raw.Load().(string); strings.Contains(s, "second") || strings.Count(s, "Host:") != 1 {
					t.Errorf("the server saw %q", s)
				}
			})
		}
	}
}

// A WebSocket opens the connection for bytes both ways.
func TestUpgrade(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	l.network(allow(rule("a.example", 80)))
	l.serve(func(c net.Conn) {
		br := bufio.NewReader(c)
		if _, err := http.ReadRequest(br); err == nil {
			fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			io.Copy(c, br)
		}
	})
	c := l.connect("tcp", "a.example:80")
	c.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	br := bufio.NewReader(c)
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 101 {
		t.Fatalf("got %v %v", resp, err)
	}
	fmt.Fprint(c, "ping")
	b := make([]byte, 4)
	if _, err := io.ReadFull(br, b); err != nil || string(b) != "ping" {
		t.Errorf("got %q %v", b, err)
	}
	c.Close()
	eventually(t, "the closing record", func() bool { return contains(l.book.reasons("connect"), "net.closed") })
}
