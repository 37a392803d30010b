package durable

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// names lists dir, so that a test sees leftovers.
func names(t *testing.T, dir string) []string {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range es {
		out = append(out, e.Name())
	}
	return out
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "f")
	defer syscall.Umask(syscall.Umask(0o077))
	for i, c := range []struct {
		data string
		perm fs.FileMode
	}{{"one", 0o644}, {"", 0o600}, {"longer than before", 0o444}, {"x", 0o755}} {
		if err := WriteFile(p, []byte(c.data), c.perm); err != nil {
			t.Fatal(i, err)
		}
		got, err := os.ReadFile(p)
		if err != nil || string(got) != c.data {
			t.Fatalf("%d: got %q, %v; want %q", i, got, err, c.data)
		}
		if fi, _ := os.Stat(p); fi.Mode().Perm() != c.perm {
			t.Errorf("%d: mode %v, want %v", i, fi.Mode().Perm(), c.perm)
		}
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left over: %q", got)
	}
}

// TestWriteFileFails: the old state stays and no temporary file remains.
func TestWriteFileFails(t *testing.T) {
	dir := t.TempDir()
	busy := filepath.Join(dir, "busy")
	if err := os.MkdirAll(filepath.Join(busy, "child"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(busy, []byte("x"), 0o644); err == nil {
		t.Error("replaced a directory that is not empty")
	}
	if got := names(t, dir); len(got) != 1 || got[0] != "busy" {
		t.Errorf("left over: %q", got)
	}
	err := WriteFile(filepath.Join(dir, "none", "f"), nil, 0o644)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

// TestFillNoSpace needs neither root nor a full disk:
// /dev/full refuses every write.
func TestFillNoSpace(t *testing.T) {
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skipf("open /dev/full: %v", err)
	}
	if err := fill(f, []byte("x"), 0o666); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
}

func TestRenameLinkRemove(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "sub", "b")
	if err := MkdirAll(filepath.Dir(b), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(a, []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Link(a, b); err != nil {
		t.Fatal(err)
	}
	if err := Link(a, b); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second link: got %v, want fs.ErrExist", err)
	}
	if err := Remove(b); err != nil {
		t.Fatal(err)
	}
	if err := Rename(a, b); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(a); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("old name still there: %v", err)
	}
	if got, _ := os.ReadFile(b); !bytes.Equal(got, []byte("1")) {
		t.Errorf("got %q", got)
	}
}

func TestExchange(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "sub/b")
	for p, text := range map[string]string{filepath.Join(a, "in"): "first", b: "second"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o700), os.WriteFile(p, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := Exchange(a, b); err != nil {
		t.Fatal(err)
	}
	x, err := os.ReadFile(a)
	y, err2 := os.ReadFile(filepath.Join(b, "in"))
	if string(x) != "second" || string(y) != "first" {
		t.Errorf("got %q, %v and %q, %v", x, err, y, err2)
	}
	if err := Exchange(a, filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want %v", err, fs.ErrNotExist)
	}
}

func TestSymlinkSwitches(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "current")
	for _, to := range []string{"slot-a", "slot-b", "slot-a"} {
		if err := Symlink(to, p); err != nil {
			t.Fatal(err)
		}
		if got, err := os.Readlink(p); err != nil || got != to {
			t.Errorf("got %q, %v; want %q", got, err, to)
		}
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left over: %q", got)
	}
}

func TestMkdirAll(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "a", "b", "c")
	for range 2 {
		if err := MkdirAll(p, 0o750); err != nil {
			t.Fatal(err)
		}
	}
	f := filepath.Join(dir, "file")
	if err := os.WriteFile(f, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{f, filepath.Join(f, "x")} {
		if err := MkdirAll(bad, 0o755); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("MkdirAll(%s) = %v, want ENOTDIR", bad, err)
		}
	}
}
