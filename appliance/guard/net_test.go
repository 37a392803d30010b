package guard

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// dials are ways to open a TCP connection, each with its own path through the kernel.
var dials = map[string]func(to netip.AddrPort) error{
	"plain": func(to netip.AddrPort) error { return dial(family(to), to, nil) },
	"bound": func(to netip.AddrPort) error {
		return dial(family(to), to, func(fd int) error { return unix.Bind(fd, sockaddrOf(family(to), netip.AddrPortFrom(to.Addr(), 0))) })
	},
	"mapped": func(to netip.AddrPort) error { return dial(unix.AF_INET6, to, nil) },
	"fast open": func(to netip.AddrPort) error {
		fd, err := unix.Socket(family(to), unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		return unix.Sendto(fd, []byte("x"), unix.MSG_FASTOPEN, sockaddrOf(family(to), to))
	},
	"thread": func(to netip.AddrPort) error {
		done := make(chan error)
		go func() { done <- dial(family(to), to, nil) }()
		return <-done
	},
}

func family(a netip.AddrPort) int {
	if a.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func sockaddrOf(family int, a netip.AddrPort) unix.Sockaddr {
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// dial leaves the connection open until the process ends.
func dial(family int, to netip.AddrPort, prepare func(fd int) error) error {
	fd, err := unix.Socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if prepare != nil {
		if err := prepare(fd); err != nil {
			return err
		}
	}
	return unix.Connect(fd, sockaddrOf(family, to))
}

// dialOut opens a connection, or has a child do it for as many generations as asked.
func dialOut(args []string) error {
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	if n > 0 {
		c := exec.Command("/proc/self/exe", "call", args[0], args[1], strconv.Itoa(n-1))
		c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
		return c.Run()
	}
	if err := dials[args[0]](netip.MustParseAddrPort(args[1])); err != nil {
		return err
	}
	fmt.Println(os.Getpid())
	_, err = os.Stdin.Read(make([]byte, 1)) // until the server has looked
	if err.Error() == "EOF" {
		err = nil
	}
	return err
}

// listenPlain gives a plain TCP listener, or skips where the host lacks the family.
func listenPlain(t testing.TB, addr string) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(t.Context(), "tcp", addr)
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT) {
		t.Skipf("no address to listen on: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// bootTime is the time as a Caller has it.
func bootTime() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) // never fails
	return time.Duration(now.Nano())
}

// meet runs a caller in the cgroup and asks who it is when it is accepted.
func meet(t *testing.T, g *Guard, l net.Listener, cg string, how string, generations int) (pid int, c Caller, known bool) {
	t.Helper()
	h := helper(t, cg, "call", how, l.Addr().String(), strconv.Itoa(generations))
	in := must(h.StdinPipe())
	var out strings.Builder
	h.Stdout = &out
	if err := h.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	addr := func(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }
	c, known = g.Who(filepath.Base(cg), addr(conn.RemoteAddr()), addr(conn.LocalAddr()))
	if _, wrong := g.Who("nobody", addr(conn.RemoteAddr()), addr(conn.LocalAddr())); wrong {
		t.Error("a scope that is not there has a caller")
	}
	in.Close()
	if err := h.Wait(); err != nil {
		t.Fatal(err)
	}
	return must(strconv.Atoi(strings.TrimSpace(out.String()))), c, known
}

// TestWho: whoever accepts a connection knows the process behind it at once,
// its program and those of its ancestors within the scope.
func TestWho(t *testing.T) {
	g := ready(t)
	follow(g)
	cg := cgroup(t, "")
	watch(t, g, cg)
	me := must(Lookup(os.Getpid(), must(os.Executable())))
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(addr, func(t *testing.T) {
			l := listenPlain(t, addr)
			for how := range dials {
				if how == "mapped" && !strings.HasPrefix(addr, "127") {
					continue
				}
				for _, ups := range []int{0, 2, 9} {
					before := bootTime()
					pid, c, ok := meet(t, g, l, cg, how, ups)
					if c.At < before || c.At > bootTime() {
						t.Errorf("%s, generation %d: connected at %v, want %v or soon after", how, ups, c.At, before)
					}
					want := slices.Repeat([]Inode{me}, min(ups, 8))
					if !ok || c.PID != pid || c.Exe != me || !slices.Equal(c.Ancestors, want) || c.UID != os.Getuid() || c.Comm == "" {
						t.Errorf("%s, generation %d: got %+v, %v, want process %d of %v and as many ancestors", how, ups, c, ok, pid, me)
					}
					if ups == 0 && c.PPID != os.Getpid() {
						t.Errorf("%s: parent %d, want %d", how, c.PPID, os.Getpid())
					}
				}
			}
			outside := cgroup(t, "")
			if _, c, ok := meet(t, g, l, outside, "plain", 0); ok {
				t.Errorf("outside of any scope: %+v", c)
			}
		})
	}
}

// attempts of the network, in order, with what the caller and the record see.
// UDP may go to 127.0.0.1:ALLOWED only.
var attempts = []struct {
	name  string
	try   func(tcp, udp, other netip.AddrPort) error
	err   error
	event string // request and protocol
	to    int    // 0 tcp, 1 udp, 2 other, 3 none
}{
	{"tcp", func(tcp, _, _ netip.AddrPort) error { return dial(unix.AF_INET, tcp, nil) }, nil, "connect tcp", 0},
	{"tcp, mapped", func(tcp, _, _ netip.AddrPort) error { return dial(unix.AF_INET6, tcp, nil) }, nil, "connect tcp", 0},
	{"tcp, refused", func(_, _, other netip.AddrPort) error { return dial(unix.AF_INET, other, nil) }, unix.ECONNREFUSED, "connect tcp", 2},
	{"udp", func(_, udp, _ netip.AddrPort) error { return datagram(unix.AF_INET, udp, true) }, nil, "connect udp", 1},
	{"udp, unconnected", func(_, udp, _ netip.AddrPort) error { return datagram(unix.AF_INET, udp, false) }, nil, "sendto udp", 1},
	{"udp, mapped", func(_, udp, _ netip.AddrPort) error { return datagram(unix.AF_INET6, udp, false) }, nil, "sendto udp", 1},
	{"udp elsewhere", func(_, _, o netip.AddrPort) error { return datagram(unix.AF_INET, o, true) }, unix.EPERM, "connect udp", 2},
	{"udp elsewhere, unconnected", func(_, _, o netip.AddrPort) error { return datagram(unix.AF_INET, o, false) }, unix.EPERM, "sendto udp", 2},
	{"udp elsewhere, mapped", func(_, _, o netip.AddrPort) error { return datagram(unix.AF_INET6, o, false) }, unix.EPERM, "sendto udp", 2},
	{"raw", func(_, _, _ netip.AddrPort) error { return socket(unix.SOCK_RAW, unix.IPPROTO_ICMP) }, unix.EPERM, "socket type:3 protocol:1", 3},
	{"multipath", func(_, _, _ netip.AddrPort) error { return socket(unix.SOCK_STREAM, unix.IPPROTO_MPTCP) }, unix.EPERM, "socket type:1 protocol:262", 3},
}

func socket(kind, protocol int) error {
	fd, err := unix.Socket(unix.AF_INET, kind, protocol)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func datagram(family int, to netip.AddrPort, connect bool) error {
	fd, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if connect {
		if err := unix.Connect(fd, sockaddrOf(family, to)); err != nil {
			return err
		}
		_, err := unix.Write(fd, []byte("x"))
		return err
	}
	return unix.Sendto(fd, []byte("x"), 0, sockaddrOf(family, to))
}

// attempt does all of them, and says which went otherwise.
func attempt(args []string) error {
	var to [3]netip.AddrPort
	for i := range to {
		to[i] = netip.MustParseAddrPort(args[i])
	}
	var errs []error
	for _, a := range attempts {
		if err := a.try(to[0], to[1], to[2]); !errors.Is(err, a.err) {
			errs = append(errs, fmt.Errorf("%s: got %v, want %v", a.name, err, a.err))
		}
	}
	return errors.Join(errs...)
}

// TestConnects: every connection and datagram is an event with its address from
// the kernel, and what is not allowed is refused and told.
func TestConnects(t *testing.T) {
	g := ready(t)
	j := follow(g)
	cg := cgroup(t, "")
	tcp := netip.MustParseAddrPort(listenPlain(t, "127.0.0.1:0").Addr().String())
	pc := must(net.ListenPacket("udp4", "127.0.0.1:0"))
	defer pc.Close()
	udp := netip.MustParseAddrPort(pc.LocalAddr().String())
	other := netip.MustParseAddrPort("127.0.0.1:1")
	s := Scope{
		ID: "net", CgroupID: must(CgroupID(cg)), Connects: true, Datagrams: []netip.AddrPort{udp},
		Exec: []Inode{must(Lookup(os.Getpid(), must(os.Executable())))},
	}
	w := must(g.Watch(s))
	h := helper(t, cg, "attempt", tcp.String(), udp.String(), other.String())
	if err := h.Run(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for _, e := range j.all(func(e Event) bool { return e.Kind == Connect }) {
		got = append(got, fmt.Sprint(e.Syscall, " ", e.Protocol, " ", e.Addr, " ", e.Denied, " ", e.PID == h.Process.Pid, e.Scope))
	}
	for _, a := range attempts {
		to := append([]string{tcp.String(), udp.String(), other.String()}, "")[a.to]
		want = append(want, fmt.Sprint(a.event, " ", to, " ", a.err == unix.EPERM, " ", true, "net"))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if g.Lost() != 0 {
		t.Errorf("lost %d", g.Lost())
	}
}

// TestQuiet: without Connects and Datagrams nothing is refused and nothing told.
func TestQuiet(t *testing.T) {
	g := ready(t)
	j := follow(g)
	cg := cgroup(t, "")
	w := watch(t, g, cg)
	pc := must(net.ListenPacket("udp4", "127.0.0.1:0"))
	defer pc.Close()
	if err := helper(t, cg, "send", pc.LocalAddr().String(), "3").Run(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if es := j.all(func(e Event) bool { return e.Kind == Connect }); len(es) > 0 {
		t.Errorf("told: %+v", es)
	}
}

// send sends datagrams until one is refused, and says how many went.
func send(args []string) error {
	to, n := netip.MustParseAddrPort(args[0]), must(strconv.Atoi(args[1]))
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	sent := 0
	for ; sent < n && err == nil; sent++ {
		err = unix.Sendto(fd, []byte("x"), 0, sockaddrOf(unix.AF_INET, to))
	}
	if err == unix.EPERM {
		sent, err = sent-1, nil
	}
	fmt.Print(sent)
	return err
}

// TestUnrecordedConnect: a datagram that can't be reported is not sent.
func TestUnrecordedConnect(t *testing.T) {
	noBrakes(t)
	defer func(n uint32) { connectRing = n }(connectRing)
	connectRing = uint32(os.Getpagesize())
	const n = 5000
	g := load(t)
	cg := cgroup(t, "")
	pc := must(net.ListenPacket("udp4", "127.0.0.1:0"))
	defer pc.Close()
	must(g.Watch(Scope{
		ID: "net", CgroupID: must(CgroupID(cg)), Connects: true,
		Exec: []Inode{must(Lookup(os.Getpid(), must(os.Executable())))},
	}))
	out, err := helper(t, cg, "send", pc.LocalAddr().String(), fmt.Sprint(n)).Output() // nobody drains g.Events()
	if err != nil {
		t.Fatal(err)
	}
	sent := must(strconv.Atoi(string(out)))
	if sent == 0 || sent == n || g.Lost() != 1 {
		t.Errorf("%d of %d were sent, %d lost, want some refused at the first that found no room", sent, n, g.Lost())
	}
	j := follow(g)
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if es := j.all(func(e Event) bool { return e.Kind == Connect }); len(es) != sent {
		t.Errorf("%d events of %d datagrams", len(es), sent)
	}
}
