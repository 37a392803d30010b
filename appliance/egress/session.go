package egress

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// session is an inspected connection: each of its requests is judged by
// itself, and goes out over connections of the session's own. One that ends
// TLS speaks TLS to the server too, which has to prove the same name.
type session struct {
	*conn
	far  *waited  // the client's end as it came
	near net.Conn // as http.Server reads it
	sent tally

	mu   sync.Mutex // guards the rest
	ways map[string]*http.Transport
	outs map[*outward]bool // nil: the session has ended
	live map[*call]bool
}

// Bounds of what one client connection may cause.
const (
	maxStreams  = 100              // HTTP/2 requests at once
	maxOutward  = 32               // connections to the server
	tlsPatience = 10 * time.Second // for a handshake, with either side
	idleInside  = 2 * time.Minute
	idleOutside = 30 * time.Second
)

func newSession(c *conn) *session {
	return &session{conn: c, ways: map[string]*http.Transport{}, outs: map[*outward]bool{}, live: map[*call]bool{}}
}

// way is how a call goes out: over HTTP/1.1, or with h2 and over TLS HTTP/2, too.
// Calls whose rules bound where the name may lead share no connection with others.
func (s *session) way(k *call, h2 bool) *http.Transport {
	bound := slices.DeleteFunc(slices.Clone(k.rules), func(r policies.HostRule) bool { return len(r.AllowedIPs) == 0 })
	key := fmt.Sprint(h2)
	for _, r := range bound {
		key += fmt.Sprintf(" %q", r.AllowedIPs)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.ways[key]
	if !ok {
		t = s.transport(h2, bound)
		s.ways[key] = t
	}
	return t
}

// transport connects to the session's one destination only, whatever a
// request names, and where the rules say.
func (s *session) transport(h2 bool, rules []policies.HostRule) *http.Transport {
	t := &http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return s.reach(ctx, rules) },
		TLSClientConfig: &tls.Config{RootCAs: s.box.proxy.c.Roots, ServerName: s.host, MinVersion: tls.VersionTLS12},
		MaxConnsPerHost: maxOutward, MaxIdleConnsPerHost: maxOutward, IdleConnTimeout: idleOutside, TLSHandshakeTimeout: tlsPatience,
		DisableCompression: true, MaxResponseHeaderBytes: answerHead, ExpectContinueTimeout: time.Second,
		Protocols: new(http.Protocols),
		HTTP2:     &http.HTTP2Config{MaxReceiveBufferPerStream: answerWindow, MaxReceiveBufferPerConnection: answersWindow},
	}
	t.Protocols.SetHTTP1(true)
	t.Protocols.SetHTTP2(h2)
	return t
}

// reach makes one more connection to the destination, checked like the first, and
// by the rules of the call that wants it.
func (s *session) reach(ctx context.Context, rules []policies.HostRule) (_ net.Conn, err error) {
	defer caught(&err) // net/http dials in goroutines of its own
	free, why := s.box.outwardRoom()
	if why != nil {
		return nil, why
	}
	nc, to, why := s.dial(ctx, rules...)
	if why != nil {
		free()
		return nil, why
	}
	o := &outward{Conn: nc, c: s.conn, count: &s.sent, to: to.Addr()}
	o.closed = func() { s.forget(o); free() }
	if !s.remember(o) {
		o.Close()
		return nil, net.ErrClosed
	}
	if s.name { // a reload may have come since the look-up, and not seen o
		if why := s.leads(o.to); why != nil {
			o.Close()
			return nil, why
		}
	}
	return o, nil
}

// remember makes o one that recheck and close know; not ok when the session
// has ended.
func (s *session) remember(o *outward) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.outs == nil {
		return false
	}
	s.outs[o] = true
	return true
}

func (s *session) forget(o *outward) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.outs, o)
}

// close ends what the session has open outside.
func (s *session) close() {
	s.mu.Lock()
	outs, ways := s.outs, slices.Collect(maps.Values(s.ways))
	s.outs = nil
	s.mu.Unlock()
	for o := range outs {
		reset(o)
		o.closed()
	}
	for _, t := range ways {
		t.CloseIdleConnections()
	}
}

// inspect serves the connection request by request until it ends.
func (c *conn) inspect() {
	s := newSession(c)
	defer s.close()
	if !c.begin(s) {
		return
	}
	c.settle()
	start := time.Now()
	if err := s.greet(); err != nil {
		c.end(refuse("net.tls", "trust the sandbox's CA: its file is in SSL_CERT_FILE", "TLS with the client failed: %v", err))
	} else {
		c.box.calls.serve(s.near, s.far)
	}
	up, down := s.sent.sum()
	c.closing(start, map[string]any{"bytes_sent": up, "bytes_received": down})
}

// greet finds how the client speaks: TLS ends here.
func (s *session) greet() error {
	s.far = wait(s.in)
	s.far.session = s
	if s.kind != tlsHello {
		s.near = s.plain(s.far)
		return nil
	}
	ca, err := s.box.proxy.authority(s.box.agent.ID)
	if err != nil {
		return err
	}
	t := tls.Server(s.far, &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, SessionTicketsDisabled: true,
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			// Compared already, as hello.go reads it; crypto/tls has the last word.
			if why := s.same(seen{kind: tlsHello, host: h.ServerName}); why != nil {
				return nil, why
			}
			return ca.leaf(s.host)
		},
	})
	ctx, cancel := context.WithTimeout(s.box.ctx, tlsPatience)
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		return err
	}
	s.near = t
	if t.ConnectionState().NegotiatedProtocol != "h2" {
		s.near = s.plain(t)
	}
	return nil
}

// plain is an HTTP/1 connection whose heads are looked at as they come.
func (s *session) plain(nc net.Conn) *heads {
	return &heads{Conn: nc, session: s, refuse: func(err error) { s.misread(nc, err) }}
}

// misread answers a head that has no single meaning, and ends the connection.
// While another request is under way there is nobody to answer.
func (s *session) misread(nc net.Conn, err error) {
	why := refusedBy(err)
	s.mu.Lock()
	busy := len(s.live) > 0
	s.mu.Unlock()
	s.box.pace(&s.box.denials)
	s.record(why, map[string]any{"op": "traffic"})
	if !busy {
		body := s.body(why)
		_ = nc.SetWriteDeadline(time.Now().Add(2 * time.Second))
		fmt.Fprintf(nc, "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
	}
	if w, ok := nc.(interface{ CloseWrite() error }); ok && !busy {
		_ = w.CloseWrite()
		_ = nc.SetReadDeadline(time.Now().Add(2 * time.Second))
		_, _ = io.CopyN(io.Discard, nc, 1<<20) // unread bytes would turn the close into a reset
	}
	s.near.Close()
}

type sessionKey struct{}

// callServer serves inspected connections, both of HTTP/1 and 2.
func (b *box) callServer() *http.Server {
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Context().Value(sessionKey{}).(*session).serve(w, r)
		}),
		ReadHeaderTimeout: greeting, IdleTimeout: idleInside, MaxHeaderBytes: maxHead,
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: maxStreams, MaxReadFrameSize: 64 << 10, MaxReceiveBufferPerStream: bodyWindow, MaxReceiveBufferPerConnection: bodiesWindow},
		ErrorLog: log.New(io.Discard, "", 0),
		ConnContext: func(ctx context.Context, nc net.Conn) context.Context {
			return context.WithValue(ctx, sessionKey{}, sessionOf(nc))
		},
		DisableGeneralOptionsHandler: true,
	}
}

// sessionOf finds whose connection http.Server was given.
func sessionOf(nc net.Conn) *session {
	switch c := nc.(type) {
	case *heads:
		return c.session
	case *tls.Conn:
		return c.NetConn().(*waited).session
	}
	panic(fmt.Sprintf("egress: a connection of type %T", nc)) // greet makes these two only
}

// recheck judges the requests that are under way by the present policy, and
// gives the records of those that it ended.
func (s *session) recheck() (rs []ledger.Record) {
	s.mu.Lock()
	calls, outs := slices.Collect(maps.Keys(s.live)), slices.Collect(maps.Keys(s.outs))
	s.mu.Unlock()
	for _, o := range outs {
		if s.name && s.leads(o.to) != nil {
			o.Close() // the next request looks the name up again
		}
	}
	for _, k := range calls {
		if why := k.judge(); why != nil {
			why.reason, why.detail = "net.policy_changed", why.detail+" any more"
			if k.cut(why) {
				rs = append(rs, s.entry(ledger.Denied, why.reason, why.detail, describeAll(map[string]any{"op": "traffic"}, k.msgs)))
			}
		}
	}
	return rs
}

// inspected says that a rule has requests looked at.
func inspected(r policies.HostRule) bool { return r.Inspect || r.Inspected() }
