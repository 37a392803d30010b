package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/appliance/holds"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// book is a Recorder in memory.
type book struct {
	mu   sync.Mutex
	rs   []ledger.Record
	fail error
}

func (b *book) Record(ctx context.Context, rs ...ledger.Record) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail == nil {
		b.rs = append(b.rs, rs...)
	}
	return b.fail
}

func (b *book) breakDown(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = err
}

func (b *book) find(f func(ledger.Record) bool) []ledger.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []ledger.Record
	for _, r := range b.rs {
		if f(r) {
			out = append(out, r)
		}
	}
	return out
}

// reasons lists "verdict reason" of the records of a kind, in order.
func (b *book) reasons(k ledger.Kind) (out []string) {
	for _, r := range b.find(func(r ledger.Record) bool { return r.Kind == k }) {
		out = append(out, string(r.Verdict)+" "+r.Reason)
	}
	return out
}

// lab is a sandbox's namespace with an attached proxy and an outside of fakes.
type lab struct {
	t     testing.TB
	book  *book
	holds *holds.Book
	proxy *Proxy
	ns    *os.File
	at    io.Closer
	agent Agent

	mu     sync.Mutex
	pol    *policies.Policy
	dns    map[string][]netip.Addr
	asked  []string       // names looked up outside
	dialed []string       // addresses dialled outside
	server func(net.Conn) // the other end of every connection
}

// newNetns makes a namespace as the sandbox would, or skips with the errno.
func newNetns(t testing.TB) *os.File {
	t.Helper()
	type res struct {
		f   *os.File
		err error
	}
	c := make(chan res, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			c <- res{nil, err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		c <- res{f, err}
	}()
	r := <-c
	if errors.Is(r.err, unix.EPERM) {
		t.Skipf("unshare(CLONE_NEWNET): %v: needs CAP_SYS_ADMIN", r.err)
	}
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { r.f.Close() })
	return r.f
}

// sharedGuard is loaded once: loading it runs its self-test.
var sharedGuard = sync.OnceValues(func() (*guard.Guard, error) { return guard.Load() })

// steer is the real one, or nil with the reason logged where the kernel has no BPF.
func steer(t testing.TB) *guard.Guard {
	t.Helper()
	g, err := sharedGuard()
	if err != nil {
		t.Fatal(err)
	}
	if g.Tier() == guard.TierNone {
		t.Skipf("no BPF here: %s", g.Why())
	}
	return g
}

type option func(*Config, *holds.Config)

func newLab(t testing.TB, opts ...option) *lab {
	l := &lab{t: t, book: &book{}, dns: map[string][]netip.Addr{}, ns: newNetns(t), server: echo}
	hc := holds.Config{File: t.TempDir() + "/approvals.json", Recorder: l.book, Timeout: time.Minute}
	c := Config{
		Recorder: l.book,
		Lookup: func(_ context.Context, host string) ([]netip.Addr, error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.asked = append(l.asked, host)
			if as := l.dns[host]; as != nil {
				return slices.Clone(as), nil
			}
			return []netip.Addr{netip.MustParseAddr("203.0.113.7")}, nil
		},
		Dial: l.dial,
	}
	for _, o := range opts {
		o(&c, &hc)
	}
	var err error
	if l.holds, err = holds.Open(hc); err != nil {
		t.Fatal(err)
	}
	c.Holds = l.holds
	if l.proxy, err = New(c); err != nil {
		t.Fatal(err)
	}
	l.pol = &policies.Policy{Name: "test", Network: policies.Network{Default: policies.Hold}}
	l.agent = Agent{ID: "a1", UID: os.Getuid(), Policy: l.policy}
	l.attach()
	t.Cleanup(func() {
		if err := l.at.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return l
}

func steered(g *guard.Guard) option { return func(c *Config, _ *holds.Config) { c.Steer = g.Steer } }

func (l *lab) attach() {
	l.t.Helper()
	var err error
	if l.at, err = l.proxy.Attach(l.t.Context(), l.agent, l.ns); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) policy() *policies.Policy {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pol
}

// network changes the policy's network section.
func (l *lab) network(n policies.Network) {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := *l.pol
	q.Network = n
	l.pol = &q
}

// serve sets what answers new connections outside; nil: nothing.
func (l *lab) serve(f func(net.Conn)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.server = f
}

// resolves sets what a name resolves to outside.
func (l *lab) resolves(name string, addrs ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dns[name] = nil
	for _, a := range addrs {
		l.dns[name] = append(l.dns[name], netip.MustParseAddr(a))
	}
}

func (l *lab) dial(_ context.Context, _, addr string) (net.Conn, error) {
	l.mu.Lock()
	l.dialed = append(l.dialed, addr)
	srv := l.server
	l.mu.Unlock()
	if srv == nil {
		return nil, errors.New("nobody there")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return nil, err
	}
	s, err := ln.Accept()
	if err != nil {
		return nil, err
	}
	go func() { defer s.Close(); srv(s) }()
	return c, nil
}

func (l *lab) outside() (asked, dialed []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.asked), slices.Clone(l.dialed)
}

func echo(c net.Conn) { io.Copy(c, c) }

// httpOK answers each request with the Host that it saw.
func httpOK(c net.Conn) {
	br := bufio.NewReader(c)
	for {
		q, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(q.Host), q.Host)
	}
}

// query asks the sandbox's resolver.
func (l *lab) query(name string, typ dnsmessage.Type) (dnsmessage.RCode, []netip.Addr) {
	l.t.Helper()
	code, out, err := l.lookup(name, typ)
	if err != nil {
		l.t.Fatal(err)
	}
	return code, out
}

// lookup is query for goroutines that must not end the test. Like a C library
// it asks again when no answer comes: in a crowd the kernel drops datagrams.
func (l *lab) lookup(name string, typ dnsmessage.Type) (dnsmessage.RCode, []netip.Addr, error) {
	q := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true}, Questions: []dnsmessage.Question{
		{Name: dnsmessage.MustNewName(name + "."), Type: typ, Class: dnsmessage.ClassINET},
	}}
	b, err := q.Pack()
	if err != nil {
		return 0, nil, err
	}
	var answer []byte
	for range 5 {
		if answer, err = l.tryAsk(b); err != nil || answer != nil {
			break
		}
	}
	if err != nil {
		return 0, nil, err
	}
	if answer == nil {
		return 0, nil, fmt.Errorf("the resolver says nothing about %s", name)
	}
	var m dnsmessage.Message
	if err := m.Unpack(answer); err != nil {
		return 0, nil, err
	}
	if m.ID != 7 || !m.Response || len(m.Questions) != 1 || m.Questions[0].Name.String() != name+"." {
		return 0, nil, fmt.Errorf("not an answer: %+v", m)
	}
	var out []netip.Addr
	for _, a := range m.Answers {
		switch r := a.Body.(type) {
		case *dnsmessage.AResource:
			out = append(out, netip.AddrFrom4(r.A))
		case *dnsmessage.AAAAResource:
			out = append(out, netip.AddrFrom16(r.AAAA))
		}
	}
	return m.RCode, out, nil
}

// tryAsk sends one packet to the resolver and returns the answer, nil for none.
func (l *lab) tryAsk(b []byte) ([]byte, error) {
	buf := make([]byte, 1500)
	c, err := l.tryConnect("udp", resolver)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if _, err := c.Write(b); err != nil {
		return nil, err
	}
	c.SetReadDeadline(time.Now().Add(2 * time.Second))
	n, err := c.Read(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, nil
	}
	return buf[:n], err
}

func (l *lab) tryConnect(network, addr string) (c net.Conn, err error) {
	werr := within(l.ns, func() error { c, err = net.DialTimeout(network, addr, 5*time.Second); return nil })
	return c, errors.Join(werr, err)
}

// connect opens a socket in the sandbox, to an address or "name:port".
func (l *lab) connect(network, addr string) net.Conn {
	l.t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := netip.ParseAddr(host); err != nil {
		code, as := l.query(host, dnsmessage.TypeA)
		if len(as) != 1 {
			l.t.Fatalf("%s: got %v %v, want one address", host, code, as)
		}
		addr = net.JoinHostPort(as[0].String(), port)
	}
	c, err := l.tryConnect(network, addr)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	return c
}

// get makes an HTTP request to "name:port" with a Host header and returns the
// status and the body; status 0 is a connection that was cut.
func (l *lab) get(addr, host string) (int, string) {
	l.t.Helper()
	c := l.connect("tcp", addr)
	c.SetDeadline(time.Now().Add(8 * time.Second))
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

// echoes says whether bytes come back over c, as a line where they are text.
func echoes(c net.Conn, s string) bool {
	if methodByte(s[0]) && !strings.HasSuffix(s, "\n") {
		s += "\n"
	}
	c.SetDeadline(time.Now().Add(5 * time.Second))
	defer c.SetDeadline(time.Time{})
	if _, err := io.WriteString(c, s); err != nil {
		return false
	}
	buf := make([]byte, len(s))
	_, err := io.ReadFull(c, buf)
	return err == nil && string(buf) == s
}

// cut waits until the proxy ends c, and returns how.
func cut(t *testing.T, c net.Conn) error {
	t.Helper()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	_, err := io.Copy(io.Discard, c)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the connection is still open")
	}
	return err
}

// eventually polls, for things that follow soon.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for range 1000 {
		if f() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

// hello is a real ClientHello for a server name.
func hello(t testing.TB, name string) []byte {
	t.Helper()
	a, b := net.Pipe()
	go func() {
		tls.Client(a, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
		a.Close()
	}()
	buf := make([]byte, 16<<10)
	n, err := b.Read(buf)
	b.Close()
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func allow(rs ...policies.HostRule) policies.Network {
	return policies.Network{Default: policies.Deny, Allow: rs}
}

func rule(host string, ports ...int) policies.HostRule {
	return policies.HostRule{Host: host, Ports: ports}
}

func one(t *testing.T, l *lab) holds.Pending {
	t.Helper()
	eventually(t, "one pending request", func() bool { return len(l.holds.List()) == 1 })
	return l.holds.List()[0]
}

func contains(list []string, s string) bool {
	return slices.ContainsFunc(list, func(x string) bool { return strings.Contains(x, s) })
}
