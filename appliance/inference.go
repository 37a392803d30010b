package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/egress"
	"github.com/clawbox/clawbox/appliance/router"
	"github.com/clawbox/clawbox/appliance/service"
)

// Model calls pass three processes: egress takes the connection and hands its
// descriptor to the router, which has the credentials; the router reaches the
// embedded engine through the relay, the one process of ours in the engine's
// network namespace. No port and no path leads there.

// What the router and the relay answer.
const (
	callAgent  = "agent"  // agentInfo: from now on
	callForget = "forget" // ref: the agent's life is over
	callLink   = "link"   // link, one socket: the way to another service
	callConn   = "conn"   // handed, one connection
	callDial   = "dial"   // one socket: joined to the engine
	callKey    = "key"    // file → credential; asked of the supervisor
)

// link names the service at the other end of a socket.
type link struct {
	Peer string `json:"peer"`
}

// handed says whose a connection is; the router sees for itself, see ofAgent.
type handed struct {
	Agent string `json:"agent"`
}

// routerConfig is what the router is started with.
type routerConfig struct {
	Upstreams map[string]config.Upstream `json:"upstreams"`
	Engine    string                     `json:"engine"` // address behind the relay, or ""
	// Records is what an agent's records may take, in bytes: see allowance.
	Records int64 `json:"records"`
}

// routerService decides model calls.
type routerService struct {
	router *router.Router
	agents roster

	mu    sync.Mutex // guards the rest
	relay *service.Conn
	desks map[string]*desk
}

func routerRole(s *service.Self, r *service.Request) (service.Handler, error) {
	var c routerConfig
	if err := r.Decode(&c); err != nil {
		return nil, err
	}
	f, err := r.File(0)
	if err != nil {
		return nil, err
	}
	log, err := dialLedger(f)
	if err != nil {
		return nil, err
	}
	rs := &routerService{desks: map[string]*desk{}}
	direct := &net.Dialer{Timeout: 10 * time.Second}
	rs.router, err = router.New(router.Config{
		Upstreams: c.Upstreams, Recorder: &pacedLog{log, newAllowance("router", c.Records), tellPacedBy(s)},
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if c.Engine != "" && address == c.Engine {
				return rs.dialEngine(ctx)
			}
			return direct.DialContext(ctx, network, address)
		},
		Key: func(file string) (k string, err error) {
			ctx, cancel := context.WithTimeout(context.Background(), callTime)
			defer cancel()
			return k, s.Conn.Call(ctx, callKey, file, &k)
		},
	})
	if err != nil {
		return nil, err
	}
	go func() { // no event, no action
		<-log.c.Done()
		s.Conn.Close()
	}()
	return rs.supervisor, nil
}

// supervisor answers the supervisor.
func (rs *routerService) supervisor(_ context.Context, r *service.Request) (any, error) {
	switch r.Method {
	case callAgent:
		var a agentInfo
		if err := r.Decode(&a); err != nil {
			return nil, err
		}
		_, err := rs.agents.put(a)
		return nil, err
	case callForget:
		var a ref
		if err := r.Decode(&a); err != nil {
			return nil, err
		}
		rs.forget(a.ID)
		return nil, nil
	case callLink:
		return nil, rs.link(r)
	}
	return nil, fmt.Errorf("the router knows no %q", r.Method)
}

// link takes the way to the relay, or to egress.
func (rs *routerService) link(r *service.Request) error {
	var l link
	if err := r.Decode(&l); err != nil {
		return err
	}
	f, err := r.File(0)
	if err != nil {
		return err
	}
	switch l.Peer {
	case "relay":
		c, err := service.NewConn(f, nil)
		if err != nil {
			return err
		}
		rs.mu.Lock()
		old := rs.relay
		rs.relay = c
		rs.mu.Unlock()
		if old != nil {
			old.Close()
		}
		return nil
	case "egress":
		_, err := service.NewConn(f, rs.take)
		return err
	}
	f.Close()
	return fmt.Errorf("the router talks to no %q", l.Peer)
}

// take serves a connection that egress hands over.
func (rs *routerService) take(_ context.Context, r *service.Request) (any, error) {
	var h handed
	if r.Method != callConn {
		return nil, fmt.Errorf("egress may not ask for %q", r.Method)
	}
	if err := r.Decode(&h); err != nil {
		return nil, err
	}
	f, err := r.File(0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ag, err := rs.agents.get(h.Agent)
	if err != nil {
		return nil, err
	}
	c, err := ofAgent(ag, f)
	if err != nil {
		return nil, err
	}
	d, err := rs.desk(ag)
	if err == nil {
		err = d.put(c)
	}
	if err != nil {
		c.Close()
	}
	return nil, err
}

// ofAgent is f as a connection of the agent: egress's word is not enough, the
// socket must have been made in the network namespace of its sandbox.
func ofAgent(ag *listed, f *os.File) (*net.TCPConn, error) {
	from, err := egress.Netns(f)
	if err != nil {
		return nil, err
	}
	if want := ag.net.Load(); from != want || want == 0 {
		return nil, fmt.Errorf("got a connection of network namespace %d for agent %s, want one of its sandbox's, %d", from, ag.id, want)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("got a socket of network %s for agent %s, want a TCP connection", c.LocalAddr().Network(), ag.id)
	}
	return t, nil
}

// desk is where an agent that is still on the list is served. One that went
// meanwhile gets none: the next of its name would be served under its policy.
func (rs *routerService) desk(ag *listed) (*desk, error) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if now, err := rs.agents.get(ag.id); err != nil || now != ag {
		return nil, fmt.Errorf("agent %q is gone", ag.id)
	}
	d := rs.desks[ag.id]
	if d == nil {
		d = newDesk(rs.router.Handler(router.Agent{ID: ag.id, UID: ag.uid, Policy: ag.policy}))
		rs.desks[ag.id] = d
	}
	return d, nil
}

func (rs *routerService) forget(id string) {
	rs.mu.Lock()
	rs.agents.drop(id)
	d := rs.desks[id]
	delete(rs.desks, id)
	rs.mu.Unlock()
	if d != nil {
		d.srv.Close()
	}
	rs.router.Forget(id)
}

func (rs *routerService) dialEngine(ctx context.Context) (net.Conn, error) {
	rs.mu.Lock()
	relay := rs.relay
	rs.mu.Unlock()
	if relay == nil {
		return nil, errors.New("there is no way to the engine")
	}
	return dialThrough(ctx, relay, callDial)
}

// dialThrough makes a connection by handing its other end to a service.
func dialThrough(ctx context.Context, to *service.Conn, method string) (net.Conn, error) {
	ours, theirs, err := service.Pair()
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	err = to.Call(ctx, method, nil, nil, theirs)
	if err := errors.Join(err, theirs.Close()); err != nil {
		return nil, err
	}
	return net.FileConn(ours)
}

// maxModelConns bounds the connections of one agent to the router.
const maxModelConns = 256

// desk serves one agent's connections.
type desk struct {
	srv   *http.Server
	conns chan net.Conn
	slots chan struct{}
	done  chan struct{}
	once  sync.Once
}

func newDesk(h http.Handler) *desk {
	d := &desk{conns: make(chan net.Conn), slots: make(chan struct{}, maxModelConns), done: make(chan struct{})}
	d.srv = &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: log.New(io.Discard, "", 0), // what an agent sends wrongly is answered, not logged
	}
	go d.srv.Serve(d) // ends with Close
	return d
}

func (d *desk) put(c net.Conn) error {
	select {
	case d.slots <- struct{}{}:
	default:
		return fmt.Errorf("%d connections to the router are open already", maxModelConns)
	}
	select {
	case d.conns <- &slotted{Conn: c, free: func() { <-d.slots }}:
		return nil
	case <-d.done:
		<-d.slots
		return net.ErrClosed
	}
}

// Accept, Close and Addr make a desk the listener of its own server.
func (d *desk) Accept() (net.Conn, error) {
	select {
	case c := <-d.conns:
		return c, nil
	case <-d.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (d *desk) Close() error {
	d.once.Do(func() { close(d.done) })
	return nil
}

// Addr is nobody's.
func (d *desk) Addr() net.Addr { return &net.TCPAddr{} }

// slotted gives its slot back when it is closed.
type slotted struct {
	net.Conn
	once sync.Once
	free func()
}

func (s *slotted) Close() error {
	err := s.Conn.Close()
	s.once.Do(s.free)
	return err
}

// relayConfig is what the relay is started with.
type relayConfig struct {
	Engine string `json:"engine"`
}

// relayRole joins sockets that it is given to the engine, and does nothing
// else. It lives in the engine's network namespace.
func relayRole(_ *service.Self, r *service.Request) (service.Handler, error) {
	var c relayConfig
	if err := r.Decode(&c); err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, r *service.Request) (any, error) {
		if r.Method != callDial {
			return nil, fmt.Errorf("the relay knows no %q", r.Method)
		}
		f, err := r.File(0)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in, err := net.FileConn(f)
		if err != nil {
			return nil, err
		}
		out, err := (&net.Dialer{Timeout: callTime}).DialContext(ctx, "tcp", c.Engine)
		if err != nil {
			in.Close()
			return nil, err
		}
		go join(in, out)
		return nil, nil
	}
	return func(ctx context.Context, r *service.Request) (any, error) {
		if r.Method != callLink {
			return dial(ctx, r)
		}
		f, err := r.File(0)
		if err == nil {
			_, err = service.NewConn(f, dial)
		}
		return nil, err
	}, nil
}

// join copies both ways until both sides are done.
func join(a, b net.Conn) {
	var wg sync.WaitGroup
	for _, p := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			_, err := io.Copy(p[0], p[1])
			if cw, ok := p[0].(interface{ CloseWrite() error }); ok && err == nil {
				cw.CloseWrite()
				return
			}
			a.Close() // a torn stream must not look complete
			b.Close()
		})
	}
	wg.Wait()
	a.Close()
	b.Close()
}
