package guard

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is also the process that misbehaves in a scope: with this
// variable set it does what its arguments say.
const helperEnv = "CLAWBOX_GUARD_HELPER"

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) == "" {
		status := m.Run()
		if g, err := shared(); err == nil {
			if err := g.Close(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				status = 1
			}
		}
		os.Exit(status)
	}
	if err := misbehave(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// misbehave is one way to start a program, or to be refused something.
func misbehave(how string, args []string) error {
	switch how {
	case "exec":
		return syscall.Exec(args[0], args, nil)
	case "spawn":
		return exec.Command(args[0]).Run()
	case "thread":
		return execFromThread(args[0])
	case "memfd":
		return execMemory(args[0])
	case "daemon":
		return execDaemon(args)
	case "cgroup":
		if err := os.WriteFile(args[0]+"/cgroup.procs", []byte("0"), 0); err != nil {
			return err
		}
		return syscall.Exec(args[1], args[1:], nil)
	case "overlay":
		return execOverlay(args[0], args[1])
	case "refused":
		return beRefused(args[0])
	case "fill":
		return fill(args[0])
	case "demand":
		return openOnDemand(args[0])
	case "bench":
		return benchHelper(args)
	case "flood":
		return flood(args)
	case "hide":
		return hide(args[0], args[1])
	case "open":
		return openEveryWay(args[0])
	case "loop":
		return openLoop(args)
	case "pins":
		return holdPins(args)
	case "forget":
		return remember(args)
	case "unix":
		return unixNames(args[0])
	case "trap":
		return trap(args[0])
	case "sleep":
		_, err := os.Stdin.Read(make([]byte, 1))
		if err != io.EOF {
			return err
		}
		return nil
	case "missing":
		return failsWith(args[0], unix.ENOENT)
	case "timed":
		return timed(args)
	case "unprivileged":
		return guardAlone(args)
	case "work":
		return work(args)
	case "call":
		return dialOut(args)
	case "attempt":
		return attempt(args)
	case "send":
		return send(args)
	case "signal":
		return signalStrangers()
	}
	return errors.New("unknown helper " + how)
}

// execFromThread execs from a thread that is not the group's leader.
func execFromThread(name string) error {
	err := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			go func() { // the leader is locked now: this one is not it
				runtime.LockOSThread()
				err <- syscall.Exec(name, []string{name}, nil)
			}()
			select {}
		}
		err <- syscall.Exec(name, []string{name}, nil)
	}()
	return <-err
}

// execMemory copies a program into anonymous memory and runs it from there.
func execMemory(name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	f, err := placeMemory(b)
	if err != nil {
		return err
	}
	empty, _ := unix.BytePtrFromString("")
	_, _, errno := unix.Syscall6(unix.SYS_EXECVEAT, f.Fd(), ptr(empty), ptr(&make([]*byte, 1)[0]), ptr(&make([]*byte, 1)[0]), unix.AT_EMPTY_PATH, 0)
	return errno
}

// execDaemon leaves session and parent behind, then execs.
func execDaemon(args []string) error {
	c := exec.Command("/proc/self/exe", append([]string{"exec"}, args...)...)
	if len(args) > 1 {
		c.Args = append([]string{"/proc/self/exe", "daemon"}, args[1:]...)
	}
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return c.Start()
}

// execOverlay runs name from a read-only overlay in a mount namespace that
// helper made, after the parent has looked at it.
func execOverlay(dir, name string) error {
	for _, m := range [][4]string{
		{"none", "/", "", ""},
		{"tmpfs", dir + "/a", "tmpfs", ""},
		{"overlay", dir + "/m", "overlay", "lowerdir=" + dir + "/a:" + dir + "/b"},
	} {
		flags := uintptr(0)
		if m[2] == "" {
			flags = unix.MS_REC | unix.MS_PRIVATE
		}
		if err := unix.Mount(m[0], m[1], m[2], flags, m[3]); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m[2], m[1], err)
		}
	}
	fmt.Println("mounted")
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		return err
	}
	return syscall.Exec(name, []string{name}, nil)
}

// beRefused gives up root and tries what nobody may.
func beRefused(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := errors.Join(
		unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", dir+"/readonly", "tmpfs", unix.MS_RDONLY, "")); err != nil {
		return err
	}
	if err := syscall.Setuid(65534); err != nil {
		return err
	}
	check := func(what string, got error, want syscall.Errno) error {
		if !errors.Is(got, want) {
			return fmt.Errorf("%s: got %v, want %v", what, got, want)
		}
		return nil
	}
	_, open := os.Open(dir + "/secret")
	_, relative := os.Open("secret")
	_, missing := os.Open(dir + "/missing")
	_, ro := os.Create(dir + "/readonly/file")
	_, dial := net.Dial("unix", dir+"/socket")
	return errors.Join(
		check("open", open, unix.EACCES), check("relative", relative, unix.EACCES), check("missing", missing, unix.ENOENT),
		check("create", ro, unix.EROFS), check("connect", dial, unix.EACCES),
		check("rename", unix.Rename(dir+"/secret", dir+"/other"), unix.EACCES),
		check("kill", unix.Kill(1, unix.SIGTERM), unix.EPERM),
		check("exec", syscall.Exec(dir+"/secret", []string{"secret"}, nil), unix.EACCES))
}

// flood is refused the same file many times, and once more a while later.
func flood(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	if err := syscall.Setuid(65534); err != nil {
		return err
	}
	for i := range n + 1 {
		if i == n && n > 0 {
			time.Sleep(1200 * time.Millisecond)
		}
		if _, err := unix.Open(args[0], unix.O_RDONLY, 0); err != unix.EACCES {
			return fmt.Errorf("open: %v", err)
		}
	}
	return nil
}

// helper prepares the test binary to misbehave inside the cgroup at dir.
func helper(t testing.TB, dir string, args ...string) *exec.Cmd {
	t.Helper()
	cg, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cg.Close() })
	c := exec.Command("/proc/self/exe", args...)
	c.Env = append(os.Environ(), helperEnv+"=1")
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(cg.Fd())}
	if args[0] == "overlay" || args[0] == "refused" || args[0] == "fill" { // they mount
		c.SysProcAttr.Cloneflags = unix.CLONE_NEWNS
	}
	return c
}

// load gives a Guard, or skips with the refusal that the kernel gave.
func load(t testing.TB) *Guard {
	t.Helper()
	g, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	usable(t, g)
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// usable skips where the kernel refuses BPF, with its words.
func usable(t testing.TB, g *Guard) {
	t.Helper()
	if g.Tier() == TierNone {
		// EACCES is the verifier's: it tells of a program that is wrong.
		for _, reason := range []string{"operation not permitted", "no cgroup2 file system"} {
			if strings.Contains(g.Why(), reason) && !strings.Contains(g.Why(), "permission denied") {
				t.Skipf("the kernel refused: %s", g.Why())
			}
		}
		t.Fatalf("the guard does not load: %s", g.Why())
	}
}

// shared is the Guard of all tests that do not harm it: to load one takes the
// kernel half a second. Its events are in one journal.
var shared = sync.OnceValues(func() (*Guard, error) {
	g, err := Load()
	if err == nil {
		sharedJournal = follow(g)
	}
	return g, err
})

var sharedJournal *journal

// ready gives the shared Guard, or skips with the refusal that the kernel gave.
func ready(t testing.TB) *Guard {
	t.Helper()
	g, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	usable(t, g)
	return g
}

// cgroup makes an empty cgroup that is gone after the test.
func cgroup(t testing.TB, parent string) string {
	t.Helper()
	if parent == "" {
		var err error
		if parent, err = Cgroup2Dir(); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := os.MkdirTemp(parent, "clawbox-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		os.WriteFile(dir+"/cgroup.kill", []byte("1"), 0)
		removeCgroup(dir)
	})
	return dir
}

// watch watches dir with the test binary and the given files listed.
func watch(t testing.TB, g *Guard, dir string, files ...string) *Watch {
	t.Helper()
	id, err := CgroupID(dir)
	if err != nil {
		t.Fatal(err)
	}
	// What a violation does differs from tier to tier, but for a kill.
	s := Scope{ID: filepath.Base(dir), CgroupID: id, Violation: Kill}
	for _, f := range append(files, "/proc/self/exe") {
		if f == "/proc/self/exe" {
			if f, err = os.Executable(); err != nil {
				t.Fatal(err)
			}
		}
		n, err := Lookup(os.Getpid(), f)
		if err != nil {
			t.Fatal(err)
		}
		s.Exec = append(s.Exec, n)
	}
	w, err := g.Watch(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// program writes a probe that creates the file marker.
func program(t testing.TB, name, marker string) string {
	t.Helper()
	if err := os.WriteFile(name, probe(marker, unix.O_CREAT|unix.O_WRONLY), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

// noBrakes lets a scope run into a full ring, where it would be frozen.
func noBrakes(t *testing.T) {
	braking = false
	t.Cleanup(func() { braking = true })
}
