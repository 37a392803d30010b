package guard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// space is a thread in a network namespace of its own, with loopback up and
// every address local.
type space struct {
	netns *os.File
	jobs  chan func()
}

func newSpace(t *testing.T) *space {
	t.Helper()
	s := &space{jobs: make(chan func())}
	errc := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		errc <- s.enter()
		for f := range s.jobs {
			f()
		}
	}()
	if err := <-errc; err != nil {
		if errors.Is(err, unix.EPERM) {
			t.Skipf("no network namespace: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { close(s.jobs); s.netns.Close() })
	return s
}

func (s *space) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for _, dst := range []string{"0.0.0.0/0", "::/0"} {
		_, n, _ := net.ParseCIDR(dst)
		r := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: n, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}
		if err := netlink.RouteAdd(r); err != nil {
			return fmt.Errorf("route %s: %w", dst, err)
		}
	}
	s.netns, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	return err
}

// dial connects from inside. The socket is made on the calling thread, so a
// plain Dialer without fallbacks to other goroutines is needed: raw calls.
func (s *space) dial(to string) (err error) {
	s.do(func() { err = dialRaw(to) })
	return err
}

func dialRaw(to string) error {
	a, err := net.ResolveTCPAddr("tcp", to)
	if err != nil {
		return err
	}
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: a.Port, Addr: [16]byte(a.IP.To16())})
	if v4 := a.IP.To4(); v4 != nil {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: a.Port, Addr: [4]byte(v4)}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return err
	}
	if err := unix.Connect(fd, sa); err != nil {
		return err
	}
	_, err = unix.Write(fd, []byte(to))
	return err
}

// do runs f on the thread inside.
func (s *space) do(f func()) {
	done := make(chan struct{})
	s.jobs <- func() { defer close(done); f() }
	<-done
}

// listen makes a plain TCP listener inside.
func (s *space) listen(t *testing.T, network, addr string) (l net.Listener, raw syscall.RawConn) {
	t.Helper()
	s.do(func() { l, raw = listen(t, network, addr, false) })
	if l == nil {
		t.FailNow()
	}
	return l, raw
}

func (s *space) inside(t *testing.T, multipath bool) (raw syscall.RawConn) {
	s.do(func() { raw = outside(t, multipath) })
	return raw
}

func outside(t *testing.T, multipath bool) syscall.RawConn {
	_, raw := listen(t, "tcp", "127.0.0.1:0", multipath)
	return raw
}

func (s *space) datagram(t *testing.T) (raw syscall.RawConn) {
	s.do(func() {
		u := must(net.ListenPacket("udp", "127.0.0.1:0")).(*net.UDPConn)
		t.Cleanup(func() { u.Close() })
		raw = must(u.SyscallConn())
	})
	return raw
}

func listen(t *testing.T, network, addr string, multipath bool) (net.Listener, syscall.RawConn) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(multipath)
	l, err := lc.Listen(context.Background(), network, addr)
	if err != nil {
		t.Error(err)
		return nil, nil
	}
	t.Cleanup(func() { l.Close() })
	return l, must(l.(*net.TCPListener).SyscallConn())
}

// answer accepts one connection and compares where it meant to go.
func answer(l net.Listener) error {
	l.(*net.TCPListener).SetDeadline(time.Now().Add(5 * time.Second))
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	b := make([]byte, 100)
	n, _ := c.Read(b)
	if got, want := c.LocalAddr().String(), string(b[:n]); got != want {
		return fmt.Errorf("the listener sees %s, the client meant %s", got, want)
	}
	return nil
}

func TestSteer(t *testing.T) {
	ready(t) // skips where there is no BPF
	g := LoadNone("steering does not depend on the tier")
	s := newSpace(t)
	l, raw := s.listen(t, "tcp", ":0")
	c, err := g.Steer(s.netns, raw)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		runtime.GC()
	}
	for _, to := range []string{"10.1.2.3:80", "127.0.0.1:9999", "198.18.255.254:443", "8.8.8.8:65535", "1.1.1.1:1", "[::1]:22", "[fd00::1]:443", "[2001:db8::2]:8080"} {
		errc := make(chan error, 1)
		go func() { errc <- answer(l) }()
		if err := errors.Join(s.dial(to), <-errc); err != nil {
			t.Errorf("%s: %v", to, err)
		}
	}
	s.udp(t)
	if err := dialRaw("127.0.0.1:1"); err == nil { // unreachable where lo is down
		t.Error("the host's own namespace is steered too")
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := s.dial("10.1.2.3:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after Close: %v, want connection refused", err)
	}
}

// udp: a bound port answers, another does not.
func (s *space) udp(t *testing.T) {
	s.do(func() {
		a, err1 := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		b, err2 := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err := errors.Join(err1, err2); err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(a)
		defer unix.Close(b)
		buf := make([]byte, 1)
		err := errors.Join(
			unix.Bind(a, &unix.SockaddrInet4{Port: 53}),
			unix.Connect(b, &unix.SockaddrInet4{Port: 53, Addr: [4]byte{10, 0, 0, 53}}),
			unix.SetsockoptTimeval(a, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
		if _, e := unix.Write(b, []byte("q")); err == nil {
			err = e
		}
		if _, e := unix.Read(a, buf); err == nil {
			err = e
		}
		if err != nil || buf[0] != 'q' {
			t.Errorf("UDP to a bound port: %v, got %q", err, buf)
		}
		if err := unix.Connect(b, &unix.SockaddrInet4{Port: 54, Addr: [4]byte{10, 0, 0, 53}}); err != nil {
			t.Error(err)
		}
		unix.Write(b, []byte("q"))
		if _, err := unix.Read(b, buf); err != unix.ECONNREFUSED {
			t.Errorf("UDP to an unbound port: %v, want connection refused", err)
		}
	})
}

// TestSteerLetsLocalServersBe: what listens inside is reached by loopback
// addresses, and by no others; where nothing listens the steering's listener
// answers, also when something did before. A namespace can't fill the list.
func TestSteerLetsLocalServersBe(t *testing.T) {
	ready(t)
	g := LoadNone("")
	s, other := newSpace(t), newSpace(t)
	l, raw := s.listen(t, "tcp", ":0")
	mine := steerOrFail(t, g, s, raw)
	defer mine.Close()
	_, rawOther := other.listen(t, "tcp", ":0")
	theirs := steerOrFail(t, g, other, rawOther)
	defer theirs.Close()

	reaches := func(l net.Listener, to string) {
		t.Helper()
		errc := make(chan error, 1)
		go func() { errc <- answer(l) }()
		if err := errors.Join(s.dial(to), <-errc); err != nil {
			t.Errorf("%s: %v", to, err)
		}
	}
	for _, at := range []string{"127.0.0.1:0", "[::1]:0", "127.0.0.9:8080", "0.0.0.0:8081", ":8082"} {
		own, _ := s.listen(t, "tcp", at)
		_, port, _ := net.SplitHostPort(own.Addr().String())
		host, _, _ := net.SplitHostPort(at)
		switch host {
		case "", "0.0.0.0":
			host = "127.0.0.1"
		}
		to := net.JoinHostPort(host, port)
		for range 2 {
			reaches(own, to)
		}
		reaches(l, net.JoinHostPort("10.1.2.3", port))
		reaches(l, net.JoinHostPort("fd00::1", port))
		own.Close()
		reaches(l, to)
	}
	var many []net.Listener
	other.do(func() {
		for range 600 {
			c, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				break
			}
			many = append(many, c)
		}
	})
	own, _ := s.listen(t, "tcp", "127.0.0.1:8080")
	reaches(own, "127.0.0.1:8080")
	for _, c := range many {
		c.Close()
	}
	own.Close()
	if m := locals.parts.Listed; m.NextKey(nil, make([]byte, m.KeySize())) == nil {
		t.Errorf("%v is not empty when everything is closed", m)
	}
	for _, c := range []io.Closer{mine, theirs} {
		wantCounts(t, c, nil)
	}
}

// wantCounts compares how many sockets are listed, by port.
func wantCounts(t *testing.T, c io.Closer, want map[uint32]int32) {
	t.Helper()
	var all int32
	for _, n := range want {
		all += n
	}
	ports, counts := make([]uint32, 1<<16), make([]int32, 1<<16)
	var at ebpf.MapBatchCursor
	if n, err := c.(*steering).lists.BatchLookup(&at, ports, counts, nil); n != len(ports) || err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Fatalf("%d counts, %v", n, err)
	}
	for i, port := range ports {
		w := want[port]
		if port == 0 {
			w = all
		}
		if counts[i] != w {
			t.Errorf("port %d has %d sockets, want %d", port, counts[i], w)
		}
	}
}

// TestSteerCountsTogether: two sockets of one port that begin to listen, and end,
// at the same moment on two processors are two, and then none.
func TestSteerCountsTogether(t *testing.T) {
	ready(t)
	s := newSpace(t)
	_, raw := s.listen(t, "tcp", ":0")
	st := steerOrFail(t, LoadNone(""), s, raw)
	defer st.Close()
	const pairs, port = 200, 20000 // below what a namespace may have listed
	want := map[uint32]int32{}
	var fds [2][pairs]int
	s.do(func() {
		for i := range fds {
			for k := range pairs {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				if err == nil {
					err = unix.Bind(fd, &unix.SockaddrInet4{Port: port + k, Addr: [4]byte{127, 0, 0, byte(1 + i)}})
				}
				if err != nil {
					t.Fatal(err)
				}
				fds[i][k], want[port+uint32(k)] = fd, 2
			}
		}
	})
	for range 20 { // a lost count shows in one round of a few
		together(pairs, func(i, k int) error { return unix.Listen(fds[i][k], 1) })
		wantCounts(t, st, want)
		// It ends listening, and leaves socket and port.
		together(pairs, func(i, k int) error { return unix.Shutdown(fds[i][k], unix.SHUT_RDWR) })
		wantCounts(t, st, nil)
		if t.Failed() {
			break
		}
	}
	for i := range fds {
		for _, fd := range fds[i] {
			unix.Close(fd)
		}
	}
}

// together runs f for 0 and 1 at the same moment, n times.
func together(n int, f func(i, k int) error) {
	var turn [2]atomic.Int64
	var wg sync.WaitGroup
	for i := range turn {
		wg.Go(func() {
			for k := range n {
				for at := turn[i].Add(1); turn[1-i].Load() < at; {
					runtime.Gosched()
				}
				_ = f(i, k) // the counts tell
			}
		})
	}
	wg.Wait()
}

func steerOrFail(t *testing.T, g *Guard, s *space, raw syscall.RawConn) io.Closer {
	t.Helper()
	c, err := g.Steer(s.netns, raw)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestSteerRefuses: what can't be steered is refused, never let through.
func TestSteerRefuses(t *testing.T) {
	ready(t)
	g := LoadNone("")
	s := newSpace(t)
	l, raw := s.listen(t, "tcp4", "127.0.0.1:0")
	c, err := g.Steer(s.netns, raw)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := s.dial("[fd00::1]:443"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("IPv6 to an IPv4 listener: %v, want connection refused", err)
	}
	l.Close()
	if err := s.dial("10.1.2.3:80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after the listener closed: %v, want connection refused", err)
	}

	for _, tt := range []struct {
		name  string
		netns *os.File
		tcp   syscall.RawConn
		want  string
	}{
		{"from outside", s.netns, outside(t, false), "another network namespace"},
		{"multipath", s.netns, s.inside(t, true), "SetMultipathTCP(false)"},
		{"UDP", s.netns, s.datagram(t), "want a listening TCP socket"},
		{"no namespace", must(os.Open("/dev/null")), s.inside(t, false), "want an open /proc/PID/ns/net"},
	} {
		if c, err := g.Steer(tt.netns, tt.tcp); err == nil {
			c.Close()
			t.Errorf("%s: steered", tt.name)
		} else if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

// The kernel gives the number of a namespace that is gone to the next one, and the
// end of the first may come later than that.
func TestListOfTheNext(t *testing.T) {
	ready(t)              // skips where there is no BPF
	const space = 1 << 31 // no namespace has it
	first, err := locals.begin(space)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	next, err := locals.begin(space)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	has := func() (id ebpf.MapID) {
		if err := locals.parts.Spaces.Lookup(uint32(space), &id); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Fatal(err)
		}
		return id
	}
	want, err := idOf(next)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		end  *ebpf.Map
		want ebpf.MapID
	}{{first, want}, {next, 0}, {first, 0}} {
		if err := locals.end(space, x.end); err != nil || has() != x.want {
			t.Errorf("got list %d, %v; want %d", has(), err, x.want)
		}
	}
}
