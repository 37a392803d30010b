package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is its own service: started as "service ROLE" it runs one
// of these.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "service" {
		Main(os.Args[2], map[string]Role{"echo": echo, "captive": captive, "late": late, "unsealed": unsealed, "failing": failing}, os.Args[1:])
	}
	os.Exit(m.Run())
}

func echo(s *Self, r *Request) (Handler, error) {
	return func(ctx context.Context, r *Request) (any, error) {
		switch r.Method {
		case "back": // ask the supervisor
			var out string
			err := s.Conn.Call(ctx, "name", "x", &out)
			return out, err
		case "read": // a descriptor
			f, err := r.File(0)
			if err != nil {
				return nil, err
			}
			defer f.Close()
			b, err := io.ReadAll(f)
			return string(b), err
		case "panic":
			panic("on purpose")
		case "refuse":
			return nil, Errorf("no", "not %d", 7)
		}
		var v any
		err := r.Decode(&v)
		return v, err
	}, nil
}

func failing(*Self, *Request) (Handler, error) { return nil, errors.New("no such model") }

// late proves that nothing is answered before Seal; unsealed forgets it.
func late(s *Self, _ *Request) (Handler, error) {
	if err := unix.Exec("/does/not/exist", nil, nil); !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("before the seal: execve gave %w, want ENOENT", err)
	}
	if err := s.Seal(); err != nil {
		return nil, err
	}
	return echo(s, nil)
}

func unsealed(s *Self, _ *Request) (Handler, error) { return echo(s, nil) }

// captive tries what a service that was taken over would try, and answers with
// the errno of each attempt.
func captive(*Self, *Request) (Handler, error) {
	return func(_ context.Context, r *Request) (any, error) {
		var q struct {
			Ledger, Own, Key string
			Neighbour        int
		}
		if err := r.Decode(&q); err != nil {
			return nil, err
		}
		out := map[string]int{}
		for name, err := range map[string]error{
			"read the ledger":        opening(filepath.Join(q.Ledger, "wal"), unix.O_RDONLY),
			"write the ledger":       opening(filepath.Join(q.Ledger, "wal"), unix.O_WRONLY),
			"add to the ledger":      opening(filepath.Join(q.Ledger, "new"), unix.O_WRONLY|unix.O_CREAT),
			"remove from the ledger": unix.Unlink(filepath.Join(q.Ledger, "wal")),
			"read a key":             opening(q.Key, unix.O_RDONLY),
			"write what it may read": opening(q.Own, unix.O_WRONLY),
			"make it writable":       unix.Chmod(q.Own, 0o777),
			"read memory":            opening(fmt.Sprintf("/proc/%d/mem", q.Neighbour), unix.O_RDONLY),
			"read memory by a call":  call6(unix.SYS_PROCESS_VM_READV, q.Neighbour),
			"trace":                  call(unix.SYS_PTRACE, unix.PTRACE_ATTACH, uintptr(q.Neighbour)),
			"take a descriptor":      call(unix.SYS_PIDFD_OPEN, uintptr(q.Neighbour)),
			"kill":                   unix.Kill(q.Neighbour, unix.SIGKILL),
			"kill by thread":         unix.Tgkill(q.Neighbour, q.Neighbour, unix.SIGKILL),
			"execute":                unix.Exec("/bin/sh", []string{"sh"}, nil),
			"fork":                   call(unix.SYS_CLONE, uintptr(unix.SIGCHLD)),
			"unlimit":                call6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, 1),
			"unlimit from afar":      unlimit(),
			"key ring":               call(unix.SYS_KEYCTL, 0),
			"io_uring":               call(unix.SYS_IO_URING_SETUP, 1),
			"another filter":         call(unix.SYS_SECCOMP, 1),
			"abstract socket":        call(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM),
			"netlink":                call(unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW),
			"inet":                   call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM),
			"own":                    opening(q.Own, unix.O_RDONLY),
		} {
			var e unix.Errno
			errors.As(err, &e)
			out[name] = int(e)
		}
		return out, nil
	}, nil
}

// unlimit changes a limit by an address whose lower half is zero, which is all
// that a filter of 32 bits sees of it.
func unlimit() error {
	const at = 0x7e << 32
	p, _, e := unix.Syscall6(unix.SYS_MMAP, at, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE, ^uintptr(0), 0)
	if e != 0 || p != at {
		return fmt.Errorf("map %#x: got %#x, %w", uint64(at), p, e)
	}
	return call6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, at)
}

func call6(nr uintptr, a ...int) error {
	var x [6]uintptr
	for i, v := range a {
		x[i] = uintptr(v)
	}
	if _, _, e := unix.Syscall6(nr, x[0], x[1], x[2], x[3], x[4], x[5]); e != 0 {
		return e
	}
	return nil
}

// cage is a Cage with a user of its own.
func cage(t testing.TB, uid int) Cage {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("needs root to start a service as another user; got uid %d", os.Geteuid())
	}
	return Cage{UID: uid, GID: uid}
}

func start(t testing.TB, s Spec) *Process {
	t.Helper()
	p, err := Start(short(t), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

func short(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
