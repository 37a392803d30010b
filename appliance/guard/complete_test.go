package guard

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// crowd is how many opens, connects and execs TestComplete makes: fewer of what
// takes longer, 20,000 of each with CLAWBOX_LONG=1, and a quarter with -short.
func crowd() (opens, connects, execs int) {
	if os.Getenv("CLAWBOX_LONG") != "" {
		return 20000, 20000, 20000
	}
	if testing.Short() {
		return 5000, 300, 50
	}
	return 20000, 1000, 200
}

// work makes n opens, connects or execs from two threads, and says how many
// succeeded.
func work(args []string) error {
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	one := deeds[args[0]]
	const threads = 2
	var wg sync.WaitGroup
	var did [threads]int
	for i := range threads {
		wg.Go(func() {
			for range n / threads {
				if one(args[1]) == nil {
					did[i]++
				}
			}
		})
	}
	wg.Wait()
	fmt.Print(did[0] + did[1])
	return nil
}

// deeds are what is counted and timed.
var deeds = map[string]func(string) error{"open": openOne, "connect": connectOne, "exec": execOne}

func openOne(name string) error {
	fd, err := unix.Open(name, unix.O_RDONLY, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// connectOne leaves no port behind in TIME_WAIT.
func connectOne(to string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	return unix.Connect(fd, sockaddrOf(unix.AF_INET, netip.MustParseAddrPort(to)))
}

func execOne(name string) error {
	pid, err := syscall.ForkExec(name, []string{name}, nil)
	if err != nil {
		return err
	}
	var st syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &st, 0, nil); err != nil {
		return err
	}
	if st.ExitStatus() != probeStatus {
		return fmt.Errorf("wait status %#x", uint32(st))
	}
	return nil
}

// hangUp answers connections by ending them.
func hangUp(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		c.Read(make([]byte, 1)) // until the client has hung up
		c.Close()
	}
}

// busy keeps every core busy until the result is called.
func busy() func() {
	var stop atomic.Bool
	for range runtime.NumCPU() {
		go func() {
			for !stop.Load() {
			}
		}()
	}
	return func() { stop.Store(true) }
}

// TestComplete: as many events as deeds, none lost, with every core busy and a
// second scope that floods the rings all the while.
func TestComplete(t *testing.T) {
	g := load(t)
	j := followSome(g, func(e Event) bool { return e.Scope != "flood" }) // too many to keep
	dir := t.TempDir()
	file := dir + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	prog := program(t, dir+"/prog", dir+"/marker")
	l := listenPlain(t, "127.0.0.1:0")
	go hangUp(l)
	opens, connects, execs := crowd()
	defer busy()()
	flood := cgroup(t, "")
	fw := must(g.Watch(Scope{
		ID: "flood", CgroupID: must(CgroupID(flood)), AuditOpens: true,
		Exec: []Inode{must(Lookup(os.Getpid(), must(os.Executable())))},
	}))
	defer fw.Close()
	c := helper(t, flood, "work", "open", file, strconv.Itoa(1<<30))
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Kill()
	for _, tt := range []struct {
		what, at string
		n        int
		fits     func(Event) bool
	}{
		{"open", file, opens, func(e Event) bool { return e.Kind == Opened && e.Path == file }},
		{"connect", l.Addr().String(), connects, func(e Event) bool { return e.Kind == Connect && e.Addr == l.Addr().String() && !e.Denied }},
		{"exec", prog, execs, func(e Event) bool { return e.Kind == Exec && e.Path == prog && !e.Killed }},
	} {
		t.Run(tt.what, func(t *testing.T) {
			cg := cgroup(t, "")
			w := must(g.Watch(Scope{
				ID: filepath.Base(cg), CgroupID: must(CgroupID(cg)), AuditOpens: true, Connects: true,
				Exec: []Inode{must(Lookup(os.Getpid(), must(os.Executable()))), must(Lookup(os.Getpid(), prog))},
			}))
			out, err := helper(t, cg, "work", tt.what, tt.at, strconv.Itoa(tt.n)).Output()
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			did := must(strconv.Atoi(string(out)))
			es := len(j.all(func(e Event) bool { return e.Scope == filepath.Base(cg) && tt.fits(e) }))
			t.Logf("%d deeds, %d events, lost %v", did, es, g.LostBy())
			if did != tt.n || es != tt.n || g.LostBy()[filepath.Base(cg)] != 0 {
				t.Errorf("%d of %d %ss succeeded and %d are told, lost %v", did, tt.n, tt.what, es, g.LostBy())
			}
		})
	}
	// It is frozen again and again, and killed at worst: that is one event.
	t.Logf("of the flood lost %v", g.LostBy())
	if n := g.Lost(); n != g.LostBy()["flood"] || n > 4 {
		t.Errorf("lost %d: %v", n, g.LostBy())
	}
}
