package egress

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/clawbox/clawbox/appliance/ledger"
)

// web carries plain HTTP to a named host. Request and answer are read and
// written anew, so that this process and the server can't disagree on where
// they end, and each connection carries one: "Connection: close" goes both
// ways and what the client sends after its request goes nowhere. Only an
// answer of 101 (WebSocket) opens the connection for bytes.
type web struct {
	net.Conn // the client's end
	c        *conn
	out      *counted
	follow   follower
	upgraded atomic.Bool
}

func (w *web) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	w.follow.feed(b[:n])
	return n, err
}

// counted counts the bytes of a connection.
type counted struct {
	net.Conn
	up, down atomic.Int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.down.Add(int64(n))
	return n, err
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.up.Add(int64(n))
	return n, err
}

type webKey struct{}

// webServer serves the HTTP connections that a box puts into b.web.
func (b *box) webServer() *http.Server {
	srv := &http.Server{
		Handler:           http.HandlerFunc(serveWeb),
		ReadHeaderTimeout: greeting, MaxHeaderBytes: maxPeek,
		ErrorLog: log.New(io.Discard, "", 0),
		ConnContext: func(ctx context.Context, nc net.Conn) context.Context {
			return context.WithValue(ctx, webKey{}, nc.(*waited).Conn.(*web))
		},
		DisableGeneralOptionsHandler: true,
	}
	srv.SetKeepAlivesEnabled(false)
	return srv
}

// relay carries one request to out and its answer back, within the sandbox's room.
func (c *conn) relay(out net.Conn) (up, down int64) {
	if !c.box.room.calls.TryAcquire(1) {
		c.deny(busy("%d requests of this sandbox are under way already", maxCalls))
		return 0, 0
	}
	defer c.box.room.calls.Release(1)
	w := &web{Conn: c.in, c: c, out: &counted{Conn: out}}
	c.box.web.put(w)
	if w.follow.more.Load() && !w.upgraded.Load() {
		c.write(ledger.Denied, "net.pipelined", "what the client sent after its first request goes nowhere", nil)
	}
	return w.out.up.Load(), w.out.down.Load()
}

// serveWeb compares the host once more, as net/http reads it, and forwards.
func serveWeb(rw http.ResponseWriter, q *http.Request) {
	w := q.Context().Value(webKey{}).(*web)
	if why := w.c.same(seen{kind: http1, host: q.Host}); why != nil {
		w.c.end(why)
		return
	}
	tr := w.transport()
	defer tr.CloseIdleConnections()
	to := &url.URL{Scheme: "http", Host: net.JoinHostPort(w.c.host, strconv.Itoa(w.c.port))}
	p := &httputil.ReverseProxy{
		Transport: quiet{tr}, FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0),
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.URL.RawQuery = to.Scheme, to.Host, r.In.URL.RawQuery
			r.Out.Host = w.c.host // and nothing that only compares equal
			if strings.Contains(r.Out.Host, ":") {
				r.Out.Host = "[" + r.Out.Host + "]"
			}
			if _, _, err := net.SplitHostPort(r.In.Host); err == nil {
				r.Out.Host = to.Host
			}
			onlyWebSocket(r.Out.Header)
		},
		ModifyResponse: func(res *http.Response) error {
			w.upgraded.Store(res.StatusCode == http.StatusSwitchingProtocols)
			return nil
		},
		ErrorHandler: func(rw http.ResponseWriter, _ *http.Request, _ error) {
			why := refuse("net.unreachable", "try again later", "%s port %d gave no answer", w.c.host, w.c.port)
			rw.Header().Set("Content-Type", "application/json")
			rw.WriteHeader(http.StatusBadGateway)
			_, _ = rw.Write(w.c.body(why))
		},
	}
	p.ServeHTTP(rw, q)
}

// onlyWebSocket takes the offer of any other protocol out: over HTTP/2 (h2c) a
// client could go on to other hosts of the server.
func onlyWebSocket(h http.Header) {
	h.Del("Http2-Settings")
	if u := h["Upgrade"]; len(u) > 0 && !(len(u) == 1 && strings.EqualFold(u[0], "websocket")) {
		h.Del("Upgrade")
		h.Del("Connection")
	}
}

var errOnce = errors.New("one request for each connection")

// transport uses the connection that was checked and no other.
func (w *web) transport() *http.Transport {
	var used atomic.Bool
	return &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			if used.Swap(true) {
				return nil, errOnce
			}
			return w.out, nil
		},
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: answerHead, ExpectContinueTimeout: time.Second,
	}
}
