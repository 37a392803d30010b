package appliance

import (
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/guard"
)

func TestFullBudget(t *testing.T) {
	for _, c := range []struct {
		e    guard.Event
		want string
	}{
		{guard.Event{Syscall: "write", Path: "/tmp/x"}, "tmp"},
		{guard.Event{Syscall: "write", Path: "/dev/shm/x"}, "tmp"},
		{guard.Event{Syscall: "write", Path: "/tmpx"}, "disk"},
		{guard.Event{Syscall: "pwritev2", Path: "/workspace/x"}, "disk"},
		{guard.Event{Syscall: "truncate", Path: "x", Dir: "/tmp"}, "tmp"},
		{guard.Event{Syscall: "fallocate"}, "disk"},
		{guard.Event{Syscall: "openat", Path: "/tmp/x"}, "inodes"},
		{guard.Event{Syscall: "openat2", Path: "/workspace/x"}, "inodes"},
		{guard.Event{Syscall: "mkdir", Path: "/workspace/x"}, "inodes"},
		{guard.Event{Syscall: "renameat2", Path: "/workspace/x"}, "inodes"},
		{guard.Event{Syscall: "linkat"}, "inodes"},
	} {
		if got := fullBudget(c.e); got != c.want {
			t.Errorf("%+v hits %s, want %s", c.e, got, c.want)
		}
	}
}

// TestFulls: every hit is counted once, whatever of it is told when, and nothing
// is left when an agent has ended.
func TestFulls(t *testing.T) {
	var mu sync.Mutex
	var told []fullTold
	f := &fulls{tell: func(x fullTold) { mu.Lock(); told = append(told, x); mu.Unlock() }}
	e := guard.Event{Scope: "ada", Syscall: "write", Path: "/tmp/x", Errno: syscall.ENOSPC}
	const n = 1000
	for i := range n {
		e.Skipped = uint64(i % 2)
		f.add(e)
	}
	f.add(guard.Event{Scope: "ada", Syscall: "mkdir", Path: "d", Dir: "/tmp", Errno: syscall.ENOSPC, Skipped: 4})
	f.add(guard.Event{Scope: "bob", Syscall: "write", Path: "/w/x", Errno: syscall.EDQUOT})
	f.drop("ada")
	sum := func() (map[fullOf]int64, int) {
		mu.Lock()
		defer mu.Unlock()
		by := map[fullOf]int64{}
		for _, x := range told {
			by[fullOf{x.Agent, x.Budget}] += x.Count
		}
		return by, len(told)
	}
	by, _ := sum()
	if by[fullOf{"ada", "tmp"}] != n+n/2 || by[fullOf{"ada", "inodes"}] != 5 {
		t.Errorf("told of %v, want %d of tmp and 5 of inodes", by, n+n/2)
	}
	for end := time.Now().Add(time.Minute); by[fullOf{"bob", "disk"}] != 1 && time.Now().Before(end); by, _ = sum() {
		time.Sleep(time.Millisecond)
	}
	if by[fullOf{"bob", "disk"}] != 1 {
		t.Errorf("told of %v, want 1 of bob's disk", by)
	}
	if _, n := sum(); n > 5 {
		t.Errorf("told %d times, want once a second and once at the end", n)
	}
}
