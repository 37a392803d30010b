package egress

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/appliance/holds"
	"github.com/clawbox/clawbox/appliance/ledger"
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
	return func(agent string, client, server netip.AddrPort) (Caller, bool) {
		return w, agent == "a1" && client.IsValid() && server.IsValid()
	}
}
