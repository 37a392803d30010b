package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/router"
	"github.com/clawbox/clawbox/policies"
)

// maxConns bounds what one sandbox may have open; further connections wait in
// the listener's queue.
const maxConns = 512

// box is one attached sandbox.
type box struct {
	proxy  *Proxy
	agent  Agent
	names  *names
	said   once // used by the DNS goroutine alone
	ctx    context.Context
	cancel context.CancelFunc
	slots  chan struct{}
	wg     sync.WaitGroup
	shut   sync.Once

	// Set by take, then read only.
	lns     []*net.TCPListener
	dns     net.PacketConn
	steered bool
	life    string     // tells this sandbox from the agent's next one
	hints   sync.Mutex // guards diag
	diag    *netlink.Handle

	models *queue // connections for the router; nil: no models
	web    *queue // plain HTTP to named hosts
	calls  *queue // inspected connections
	room   *room  // what their requests may take
	ends   ends
	masks  masks

	mu      sync.Mutex // guards the rest
	conns   map[*conn]bool
	meters  map[string]*meter
	changed chan struct{} // closed by recheck
	digPol  *policies.Policy
	dig     string // digest of digPol

	waiting          atomic.Int64 // refused requests that wait for a turn of denials
	denials, refused router.Pace  // of connections, of DNS names: neither delays the other
}

func newBox(p *Proxy, a Agent) *box {
	b := &box{
		proxy: p, agent: a, names: newNames(a.ID), slots: make(chan struct{}, maxConns),
		conns: map[*conn]bool{}, changed: make(chan struct{}), web: newQueue(), calls: newQueue(), room: newRoom(), meters: map[string]*meter{},
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// take duplicates the sockets: whoever made them may give them to the next
// process when this one ends.
func (b *box) take(s *Sockets) error {
	for _, f := range s.TCP {
		l, err := net.FileListener(f)
		if err != nil {
			return fmt.Errorf("take listener: %w", err)
		}
		t, ok := l.(*net.TCPListener)
		if !ok {
			return errors.Join(fmt.Errorf("got a listener of network %s, want tcp", l.Addr().Network()), l.Close())
		}
		b.lns = append(b.lns, t)
	}
	if len(b.lns) == 0 || s.DNS == nil {
		return errors.New("got no listener, or no DNS socket, want what OpenSockets makes")
	}
	c, err := net.FilePacketConn(s.DNS)
	if err != nil {
		return fmt.Errorf("take DNS socket: %w", err)
	}
	b.dns, b.steered = c, s.Steered
	b.life, err = life(b.proxy.c.Boot, b.lns[0])
	return err
}

// start serves what take has.
func (b *box) start() {
	b.wg.Go(func() { b.serveDNS(b.dns) })
	for _, l := range b.lns {
		b.wg.Go(func() { b.accept(l) })
	}
	b.serveQueue(b.web, b.webServer())
	b.serveQueue(b.calls, b.callServer())
	if b.proxy.c.Models != nil {
		b.models = newQueue()
		srv := &http.Server{
			Handler: b.proxy.c.Models(b.agent), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
			ErrorLog: log.New(io.Discard, "", 0), // what an agent sends wrongly is answered, not logged
		}
		b.serveQueue(b.models, srv)
	}
}

func (b *box) serveQueue(q *queue, srv *http.Server) {
	b.wg.Go(func() { _ = srv.Serve(q) }) // ends with the queue
	context.AfterFunc(b.ctx, func() { srv.Close() })
}

// accept takes a slot before a connection, so that the kernel queues what is
// beyond the limit.
func (b *box) accept(l *net.TCPListener) {
	for {
		select {
		case b.slots <- struct{}{}:
		case <-b.ctx.Done():
			return
		}
		c, err := l.AcceptTCP()
		if err != nil {
			<-b.slots
			if b.ctx.Err() != nil || !temporary(err) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors, most likely
			continue
		}
		b.wg.Go(func() {
			defer func() { <-b.slots }()
			b.serve(c)
		})
	}
}

// temporary says whether a socket can still be used after err.
func temporary(err error) bool { return !errors.Is(err, net.ErrClosed) }

// Close ends every connection and forgets the agent's approvals for the session.
func (b *box) Close() error {
	var errs []error
	b.shut.Do(func() {
		b.proxy.mu.Lock()
		delete(b.proxy.boxes, b)
		b.proxy.mu.Unlock()
		b.mu.Lock() // see goes
		b.cancel()
		b.mu.Unlock()
		errs = b.closeSockets()
		b.wg.Wait()
		errs = append(errs, b.proxy.c.Holds.Forget(b.agent.ID))
		if b.diag != nil {
			b.diag.Close()
		}
	})
	return errors.Join(errs...)
}

// closeSockets stops what comes in first, and then what is open.
func (b *box) closeSockets() (errs []error) {
	for _, l := range b.lns {
		errs = append(errs, l.Close())
	}
	if b.dns != nil {
		errs = append(errs, b.dns.Close())
	}
	b.web.Close()
	b.calls.Close()
	if b.models != nil {
		b.models.Close()
	}
	for _, c := range b.open() {
		c.abort()
	}
	return errs
}

// open lists the connections of this moment.
func (b *box) open() []*conn {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Collect(maps.Keys(b.conns))
}

// add makes c known to recheck and Close; not ok when the box is closing.
func (b *box) add(c *conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx.Err() != nil {
		return false
	}
	b.conns[c] = true
	return true
}

func (b *box) remove(c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.conns, c)
}

// changes returns a channel that the next recheck closes.
func (b *box) changes() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

// recheck wakes what is held, which decides again, and judges what is open. It
// returns when what is no longer allowed is closed; the records of that follow.
func (b *box) recheck() {
	b.mu.Lock()
	close(b.changed)
	b.changed = make(chan struct{})
	b.mu.Unlock()
	var over []ledger.Record
	for _, c := range b.open() {
		over = append(over, c.recheck()...)
	}
	if tell := func() { _ = b.recordNow(over...) }; len(over) > 0 && !b.goes(tell) {
		tell()
	}
}

// goes runs f while the box waits for it to end; not ok when it is closing.
func (b *box) goes(f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx.Err() != nil {
		return false
	}
	b.wg.Go(f)
	return true
}

// digest is the present policy's, computed once for each policy.
func (b *box) digest() string {
	p := b.agent.Policy()
	if p == nil {
		return ""
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.digPol != p {
		b.digPol, b.dig = p, p.Digest()
	}
	return b.dig
}

// unsteered says what is missing without steering.
func (b *box) unsteered() ledger.Record {
	return ledger.Record{
		Kind: ledger.KindWeakening, Verdict: ledger.Allowed, Agent: b.agent.ID, Policy: b.digest(), Reason: "net.unsteered",
		Detail: "without BPF only the listed ports are answered; attempts on others fail unrecorded, and ports added by a policy reload wait for the next launch",
		Attrs:  map[string]any{"ports": b.ports()},
	}
}

func (b *box) ports() (ps []int) {
	for _, l := range b.lns {
		ps = append(ps, l.Addr().(*net.TCPAddr).Port)
	}
	return ps
}

// pace lets a refusal wait for its turn. It ends early only with the box.
func (b *box) pace(p *router.Pace) {
	select {
	case <-time.After(p.Turn(time.Now(), 1)):
	case <-b.ctx.Done():
	}
}

// queue is a listener that hands out connections accepted elsewhere.
type queue struct {
	c    chan net.Conn
	done chan struct{}
	once sync.Once
}

func newQueue() *queue { return &queue{c: make(chan net.Conn), done: make(chan struct{})} }

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.c:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

func (q *queue) Addr() net.Addr { return &net.TCPAddr{} }

// put serves c and returns when it is closed.
func (q *queue) put(c net.Conn) {
	w := wait(c)
	q.serve(w, w)
}

// serve serves c, which is w or has it below, and returns when w is closed.
func (q *queue) serve(c net.Conn, w *waited) {
	select {
	case q.c <- c:
		<-w.done
	case <-q.done:
		c.Close()
	}
}

// waited tells when it is closed.
type waited struct {
	net.Conn
	session *session // of an inspected connection
	once    sync.Once
	done    chan struct{}
}

func wait(c net.Conn) *waited { return &waited{Conn: c, done: make(chan struct{})} }

func (w *waited) Close() error {
	err := w.Conn.Close()
	w.once.Do(func() { close(w.done) })
	return err
}
