package egress

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/appliance/holds"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// Sockets outlive who serves them: a second Proxy takes the same ones over,
// without touching the namespace, and a connection made in between waits.
func TestServeTakesOver(t *testing.T) {
	l := newLab(t)
	ns := newNetns(t)
	o := SocketOptions{Ports: []int{7000}}
	if g, err := sharedGuard(); err == nil && g.Tier() != guard.TierNone {
		o.Steer = g.Steer
	}
	s, land, err := OpenSockets(ns, o)
	if err != nil {
		t.Fatal(err)
	}
	l.network(allow(rule("203.0.113.5", 7000)))
	a := l.agent
	a.ID = "a2"
	dial := func() (c net.Conn, err error) {
		werr := within(ns, func() error { c, err = net.Dial("tcp", "203.0.113.5:7000"); return nil })
		return c, errors.Join(werr, err)
	}
	for range 3 {
		c, err := dial() // nobody serves yet
		if err != nil {
			t.Fatal(err)
		}
		at, err := l.proxy.Serve(t.Context(), a, s)
		if err != nil {
			t.Fatal(err)
		}
		if !echoes(c, "x") {
			t.Error("no echo")
		}
		if err := at.Close(); err != nil {
			t.Error(err)
		}
		if err := cut(t, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("got %v, want a reset", err)
		}
		c.Close()
	}
	if err := errors.Join(land.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	if _, err := dial(); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("after Close: got %v, want ENETUNREACH", err)
	}
}

// Serve takes only what OpenSockets makes.
func TestServeRefuses(t *testing.T) {
	l := newLab(t)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	sock := os.NewFile(uintptr(fd), "unix")
	t.Cleanup(func() { sock.Close() })
	for name, s := range map[string]*Sockets{
		"nothing": {}, "no DNS": {TCP: []*os.File{}}, "a file": {TCP: []*os.File{file}, DNS: file}, "a unix socket": {TCP: []*os.File{sock}, DNS: sock},
	} {
		if at, err := l.proxy.Serve(t.Context(), l.agent, s); err == nil {
			at.Close()
			t.Errorf("%s: want an error", name)
		}
	}
	if at, err := l.proxy.Serve(t.Context(), Agent{}, &Sockets{}); err == nil {
		at.Close()
		t.Error("no agent: want an error")
	}
}

// A connection to the router's name is handed over with who made it, and is
// the taker's from then on.
func TestHandoff(t *testing.T) {
	var who ledger.Process
	got := make(chan *os.File, 1)
	l := newLab(t, func(c *Config, _ *holds.Config) {
		c.Handoff = func(c *net.TCPConn, a Agent, p ledger.Process) error {
			f, err := c.File()
			who = p
			got <- f
			return err
		}
		c.Who = whois(Caller{PID: 7, PPID: 1, UID: 1000, Comm: "claw", Binary: "/bin/claw"})
	})
	c := l.connect("tcp", InferenceHost+":80")
	f := <-got
	defer f.Close()
	in, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	go echo(in)
	if !echoes(c, "x") {
		t.Error("no echo from the taker")
	}
	if who != (ledger.Process{PID: 7, PPID: 1, UID: 1000, Comm: "claw"}) {
		t.Errorf("handed over as %+v", who)
	}
}

// whois answers the same for every connection of the lab's agent.
func whois(w Caller) func(string, netip.AddrPort, netip.AddrPort) (Caller, bool) {
	w.At = 1
	return func(agent string, client, server netip.AddrPort) (Caller, bool) {
		return w, agent == "a1" && client.IsValid() && server.IsValid()
	}
}

// sinceBoot is the time as a Caller has it.
func sinceBoot() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) // never fails
	return time.Duration(now.Nano())
}

// TestGhost: whoever connects from the port of a connection whose client is gone
// is not taken for its opener, and neither is who has connected later.
func TestGhost(t *testing.T) {
	const git = "/usr/bin/git"
	before := func(*testing.T, *lab, *net.TCPConn) time.Duration { return 1 }
	option := func(level, name, value int) func(*testing.T, *lab, *net.TCPConn) time.Duration {
		return func(t *testing.T, l *lab, c *net.TCPConn) time.Duration {
			must(t, onDescriptor(c, func(fd int) error { return unix.SetsockoptInt(fd, level, name, value) }))
			must(t, c.Close())
			return sinceBoot()
		}
	}
	for name, x := range map[string]struct {
		leave func(*testing.T, *lab, *net.TCPConn) time.Duration // when the listed program connects
		any   bool                                               // the rule is for any program
		want  bool
	}{
		"there":  {before, false, true},
		"closed": {option(unix.IPPROTO_TCP, unix.TCP_LINGER2, -1), false, false},
		"reset": {func(t *testing.T, _ *lab, c *net.TCPConn) time.Duration {
			must(t, c.SetLinger(0))
			must(t, c.Close())
			return sinceBoot()
		}, false, false},
		// The server's side of these two looks as if the client were there.
		"vanished": {vanish, false, false},
		"younger": {func(*testing.T, *lab, *net.TCPConn) time.Duration {
			time.Sleep(200 * time.Millisecond)
			return sinceBoot()
		}, false, false},
		"unknown": {func(*testing.T, *lab, *net.TCPConn) time.Duration { return 0 }, false, false},
		// One that has said all it will is nobody in particular.
		"half":      {func(t *testing.T, _ *lab, c *net.TCPConn) time.Duration { must(t, c.CloseWrite()); return 1 }, false, false},
		"half, any": {func(t *testing.T, _ *lab, c *net.TCPConn) time.Duration { must(t, c.CloseWrite()); return 1 }, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			asked, at := make(chan bool), make(chan time.Duration)
			l := newLab(t, func(c *Config, _ *holds.Config) {
				c.Who = func(string, netip.AddrPort, netip.AddrPort) (Caller, bool) {
					asked <- true
					return Caller{At: <-at, PID: 7, Binary: git}, true
				}
			}, steered(steer(t)))
			got := make(chan string, 1)
			l.serve(func(c net.Conn) {
				b := make([]byte, 5)
				_, _ = io.ReadFull(c, b)
				got <- string(b)
			})
			r := policies.HostRule{Host: "db.example", Ports: []int{7000}, Protocol: "tcp", Binaries: []string{git}}
			if x.any {
				r.Binaries = nil
			}
			l.network(allow(r))
			c := l.connect("tcp", "db.example:7000").(*net.TCPConn)
			if _, err := io.WriteString(c, "FLUSH"); err != nil {
				t.Fatal(err)
			}
			<-asked
			at <- x.leave(t, l, c)
			if x.want {
				if s := <-got; s != "FLUSH" {
					t.Errorf("the server got %q", s)
				}
				return
			}
			eventually(t, "a refusal", func() bool { return contains(l.book.reasons(ledger.KindConnect), policies.ReasonBinary) })
			if _, dialed := l.outside(); len(dialed) > 0 {
				t.Errorf("it was let out to %v", dialed)
			}
		})
	}
}

// onDescriptor runs f on a connection's descriptor.
func onDescriptor(c *net.TCPConn, f func(fd int) error) (err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) })
	return errors.Join(cerr, err)
}

// vanish ends the client without a word to the server: it gives up on a window
// that stays full. It returns when the port is free.
func vanish(t *testing.T, l *lab, c *net.TCPConn) time.Duration {
	t.Helper()
	for junk := make([]byte, 64<<10); ; {
		must(t, c.SetWriteDeadline(time.Now().Add(500*time.Millisecond)))
		if _, err := c.Write(junk); errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	must(t, onDescriptor(c, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 1) }))
	from := c.LocalAddr().(*net.TCPAddr)
	must(t, c.Close())
	eventually(t, "a free port", func() bool {
		err := within(l.ns, func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Bind(fd, &unix.SockaddrInet4{Port: from.Port, Addr: from.AddrPort().Addr().Unmap().As4()})
		})
		return err == nil
	})
	return sinceBoot()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
