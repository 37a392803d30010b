package guard

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// trap has seccomp kill this process for the call of the given number.
func trap(number string) error {
	nr, err := strconv.ParseUint(number, 0, 32)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return err
	}
	code, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 4}, // seccomp_data.nr
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(nr), SkipFalse: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
	})
	if err != nil {
		return err
	}
	var fs []unix.SockFilter
	for _, i := range code {
		fs = append(fs, unix.SockFilter{Code: i.Op, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	p := unix.SockFprog{Len: uint16(len(fs)), Filter: &fs[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&p)), 0, 0); err != nil {
		return err
	}
	_, _, errno := unix.RawSyscall(uintptr(nr), 0, 0, 0)
	return fmt.Errorf("it lives: %w", errno)
}

// TestTrapped: who dies of seccomp leaves an event, and who gets SIGSYS from
// somebody else leaves none.
func TestTrapped(t *testing.T) {
	g := ready(t)
	j := follow(g)
	cg := cgroup(t, "")
	w := watch(t, g, cg)
	calls := map[string]string{strconv.Itoa(unix.SYS_ACCT): "acct", strconv.Itoa(unix.SYS_SCHED_GETPARAM): fmt.Sprint("call:", unix.SYS_SCHED_GETPARAM)}
	if x32Bit != 0 {
		calls[strconv.Itoa(x32Bit+39)] = fmt.Sprint("foreign:", x32Bit+39)
	}
	for nr, name := range calls {
		c := helper(t, cg, "trap", nr)
		c.Stderr = nil
		err := c.Run()
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGSYS {
			t.Errorf("%s: %v, want death by SIGSYS", name, err)
		}
		es := j.await(t, 1, func(e Event) bool { return e.Kind == Trapped && e.PID == c.Process.Pid })
		if len(es) != 1 || es[0].Syscall != name || es[0].Scope != filepath.Base(cg) || es[0].Args[0] == 0 {
			t.Errorf("%s: events %+v", name, es)
		}
	}
	c := helper(t, cg, "sleep")
	c.Stderr = nil // the runtime's farewell
	in := must(c.StdinPipe())
	defer in.Close()
	if err := errors.Join(c.Start(), c.Process.Signal(unix.SIGSYS)); err != nil {
		t.Fatal(err)
	}
	c.Wait()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if es := j.all(func(e Event) bool { return e.Kind == Trapped && e.PID == c.Process.Pid }); len(es) > 0 {
		t.Errorf("a signal of somebody else's: %+v", es)
	}
}

// unixNames connects to names in dir of which only one has somebody behind it,
// and sends to one that has not.
func unixNames(dir string) error {
	for _, tt := range []struct {
		name string
		want error
	}{{dir + "/socket", nil}, {dir + "/absent", unix.ENOENT}, {dir + "/left", unix.ECONNREFUSED}, {"@" + dir, unix.ECONNREFUSED}} {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: tt.name}); err != tt.want {
			return fmt.Errorf("%s: %w", tt.name, err)
		}
		unix.Close(fd)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrUnix{Name: dir + "/absent"}); err != unix.ENOENT {
		return fmt.Errorf("sendto: %w", err)
	}
	return nil
}

// TestUnixNames: with Scope.Connects a name of AF_UNIX is told, whoever is there;
// without it, it is not.
func TestUnixNames(t *testing.T) {
	g := ready(t)
	j := follow(g)
	dir := t.TempDir()
	l := must(net.Listen("unix", dir+"/socket"))
	defer l.Close()
	left := must(net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/left"}))
	left.SetUnlinkOnClose(false)
	left.Close()
	for _, on := range []bool{true, false} {
		cg := cgroup(t, "")
		id := fmt.Sprint("names ", on)
		w := must(g.Watch(Scope{ID: id, CgroupID: must(CgroupID(cg)), Connects: on, Exec: []Inode{must(Lookup(os.Getpid(), must(os.Executable())))}}))
		if err := helper(t, cg, "unix", dir).Run(); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		got := map[string]syscall.Errno{}
		for _, e := range j.all(func(e Event) bool { return e.Scope == id && e.Protocol == "unix" && e.Kind == Connect && !e.Denied }) {
			got[e.Syscall+" "+e.Addr] = e.Errno
		}
		want := map[string]syscall.Errno{
			"connect unix:" + dir + "/socket": 0, "connect unix:" + dir + "/absent": unix.ENOENT, "connect unix:" + dir + "/left": unix.ECONNREFUSED,
			"connect unix:@" + dir: unix.ECONNREFUSED, "sendto unix:" + dir + "/absent": unix.ENOENT,
		}
		if !on {
			want = map[string]syscall.Errno{}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("connects %v: got %v, want %v", on, got, want)
		}
	}
}
