package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// chain makes directories below dir, one in the other, as an agent can whose
// paths the kernel limits but whose working directory it does not, and a file
// in the last.
func chain(t *testing.T, dir string, depth int) {
	t.Helper()
	at, err := openDir(unix.AT_FDCWD, dir)
	for i := 0; i < depth && err == nil; i++ {
		if err = unix.Mkdirat(at, "d", 0o700); err != nil {
			break
		}
		var next int
		next, err = openDir(at, "d")
		unix.Close(at)
		at = next
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(at)
	f, err := unix.Openat(at, "f", unix.O_CREAT|unix.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(f)
}

// few leaves this process n descriptors more than it has.
func few(t *testing.T, n int) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	open, err := os.ReadDir("/proc/self/fd") // with the one that reads it
	if err != nil {
		t.Fatal(err)
	}
	now := unix.Rlimit{Cur: uint64(len(open) - 1 + n), Max: old.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &old) })
}

func TestEraseDeep(t *testing.T) {
	// In memory where there is some: a disk takes 5 times as long.
	base, err := os.MkdirTemp("/dev/shm", "clawbox-sandbox-test-")
	if err != nil {
		base = t.TempDir()
	}
	t.Cleanup(func() { erase(base) }) // os.RemoveAll could not
	top := filepath.Join(base, "files")
	if err := os.Mkdir(top, 0o700); err != nil {
		t.Fatal(err)
	}
	chain(t, top, 20_000)
	few(t, 3)
	if err := erase(top); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(top); !os.IsNotExist(err) {
		t.Errorf("left: %v", err)
	}
}

// TestEraseKinds: every kind of entry goes, and what links name stays.
func TestEraseKinds(t *testing.T) {
	base := t.TempDir()
	out, top := filepath.Join(base, "out"), filepath.Join(base, "files")
	in := filepath.Join(top, "a", "b", "c")
	for _, d := range []string{filepath.Join(out, "deep"), in, filepath.Join(top, "empty"), filepath.Join(top, "d", "d", "d")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	kept := filepath.Join(out, "deep", "kept")
	if err := os.WriteFile(kept, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{top, filepath.Join(top, "a"), in} {
		made := []error{
			os.Symlink(out, filepath.Join(d, "dir")), os.Symlink(kept, filepath.Join(d, "file")), os.Symlink("/nowhere", filepath.Join(d, "none")),
			os.Symlink("..", filepath.Join(d, "up")), os.Symlink(".", filepath.Join(d, "self")), os.Link(kept, filepath.Join(d, "hard")),
			unix.Mkfifo(filepath.Join(d, "fifo"), 0o600), os.WriteFile(filepath.Join(d, "-rf *\n"), nil, 0), os.Mkdir(filepath.Join(d, "shut"), 0),
			os.WriteFile(filepath.Join(d, strings.Repeat("n", 255)), nil, 0),
		}
		for _, err := range made {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := erase(filepath.Join(top, "dir")); err == nil {
		t.Error("a link was followed")
	}
	if err := erase(top); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(top); !os.IsNotExist(err) {
		t.Errorf("left: %v", err)
	}
	if b, err := os.ReadFile(kept); err != nil || string(b) != "x" {
		t.Errorf("what a link named: %q, %v", b, err)
	}
	if err := erase(top); err != nil {
		t.Errorf("an absent directory: %v", err)
	}
}

// TestEraseWide: more entries than are read at a time, in top and below.
func TestEraseWide(t *testing.T) {
	top := filepath.Join(t.TempDir(), "files")
	for _, d := range []string{"", "w"} {
		for _, n := range names(1500) {
			if err := os.MkdirAll(filepath.Join(top, d, n, "sub"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := erase(top); err != nil {
		t.Fatal(err)
	}
}

func names(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = strings.Repeat("x", 1+i%200) + string(rune('a'+i/200))
	}
	return out
}

// TestEraseResists: an entry that cannot go is an error, not a loop.
func TestEraseResists(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skipf("a mount needs root; euid is %d", os.Geteuid())
	}
	top := filepath.Join(t.TempDir(), "files")
	m := filepath.Join(top, "a", "mounted")
	if err := os.MkdirAll(m, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("x", m, "tmpfs", 0, "size=4k"); err != nil {
		t.Skipf("mount: %v", err)
	}
	err := erase(top)
	if e := unix.Unmount(m, unix.MNT_DETACH); e != nil {
		t.Fatal(e)
	}
	if err == nil {
		t.Error("a mounted file system was erased, or went unnoticed")
	}
	if err := erase(top); err != nil {
		t.Errorf("once unmounted: %v", err)
	}
}

func TestRemove(t *testing.T) {
	b := newBench(t)
	b.run(Spec{Name: "one"}, "write=/workspace/f")
	b.run(Spec{Name: "two"}, "print=x")
	got, _, _ := b.run(Spec{Name: "one"}, "mode=/workspace/f")
	if !strings.HasPrefix(got["mode=/workspace/f"], "ok") || b.l.uid["one"] != 700_000 || b.l.uid["two"] != 700_001 {
		t.Errorf("second run: %v, uids %v", got, b.l.uid)
	}
	chain(t, b.l.Files("one", "/workspace"), 2000) // more levels than the kernel takes in a path
	if err := b.l.Remove("one"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(b.l.filesDir("one")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("files after removal: %v", err)
	}
	if err := b.l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := Open(b.l.opt)
	if err != nil {
		t.Fatal(err)
	}
	b.l = l
	if u, err := l.userID("two"); u != 700_001 || err != nil {
		t.Errorf("uid after restart: %d, %v", u, err)
	}
	if u, err := l.userID("three"); u != 700_000 || err != nil {
		t.Errorf("uid given back: %d, %v", u, err)
	}
	box, _ := b.start(Spec{Name: "two"}, "sleep=60")
	if err := l.Remove("two"); err == nil || !strings.Contains(err.Error(), "stop it first") {
		t.Errorf("removal of a running agent: %v", err)
	}
	box.Stop(t.Context(), 0)
	if _, err := Open(b.l.opt); err == nil || !strings.Contains(err.Error(), "in use by another daemon") {
		t.Errorf("second daemon: %v", err)
	}
}
