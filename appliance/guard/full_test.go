package guard

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fill runs into the end of a small file system in all ways, as one who has put
// it at dir.
func fill(dir string) error {
	err := errors.Join(
		unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k,nr_inodes=4"),
		os.Chdir(dir))
	if err != nil {
		return err
	}
	if err := os.Mkdir("sub", 0o755); err != nil {
		return err
	}
	f, err := os.Create("sub/big")
	if err != nil {
		return err
	}
	full := func(what string, got error) error {
		if !errors.Is(got, unix.ENOSPC) {
			return fmt.Errorf("%s: got %v, want ENOSPC", what, got)
		}
		return nil
	}
	for err == nil {
		_, err = unix.Write(int(f.Fd()), make([]byte, 4096))
	}
	_, pwrite := unix.Pwrite(int(f.Fd()), []byte("x"), 1<<20)
	if err := errors.Join(full("write", err), full("pwrite", pwrite), full("fallocate", unix.Fallocate(int(f.Fd()), 0, 1<<20, 4096))); err != nil {
		return err
	}
	if err := os.WriteFile("last", nil, 0o600); err != nil {
		return err
	}
	_, open := unix.Open("more", unix.O_CREAT|unix.O_WRONLY, 0o600)
	if err := errors.Join(full("open", open), full("mkdir", unix.Mkdirat(unix.AT_FDCWD, dir+"/dir", 0o700)), full("link", unix.Linkat(unix.AT_FDCWD, "last", unix.AT_FDCWD, "also", 0))); err != nil {
		return err
	}
	for range 1000 { // told in part, counted in full
		if _, err := unix.Write(int(f.Fd()), make([]byte, 4096)); full("write", err) != nil {
			return err
		}
	}
	time.Sleep(1200 * time.Millisecond)
	_, err = unix.Write(int(f.Fd()), make([]byte, 4096))
	return full("write", err)
}

// TestFull: a scope that has used up a file system is told of with what it
// wanted to write to, also where the call named nothing, and with how often.
func TestFull(t *testing.T) {
	g := ready(t)
	j := follow(g)
	dir, cg, other := t.TempDir(), cgroup(t, ""), cgroup(t, "")
	w := watch(t, g, cg)
	for _, c := range []string{cg, other} {
		if err := helper(t, c, "fill", dir).Run(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	mine := func(e Event) bool { return e.Kind == Full && e.Scope == filepath.Base(cg) }
	for _, want := range []struct{ call, path, dir string }{
		{"write", dir + "/sub/big", ""},
		{"pwrite64", dir + "/sub/big", ""},
		{"fallocate", dir + "/sub/big", ""},
		{"openat", "more", dir},
		{"mkdirat", dir + "/dir", ""},
		{"linkat", "last", dir},
	} {
		if len(j.all(func(e Event) bool {
			return mine(e) && e.Syscall == want.call && e.Path == want.path && e.Dir == want.dir && e.Errno == unix.ENOSPC
		})) == 0 {
			t.Errorf("no event like %+v among %+v", want, j.all(mine))
		}
	}
	n, es := uint64(0), j.all(mine)
	for _, e := range es {
		n += 1 + e.Skipped
	}
	if n != 1007 || len(es) > 100 {
		t.Errorf("%d events tell of %d calls, want 1007 of them told by less than 100", len(es), n)
	}
	if es := j.all(func(e Event) bool { return e.Kind == Full && !mine(e) }); len(es) > 0 {
		t.Errorf("events of who is in no scope: %+v", es)
	}
}
