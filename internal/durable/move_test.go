package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// elsewhere is a folder on another file system than the tests' folder.
func elsewhere(t *testing.T) string {
	t.Helper()
	device := func(path string) uint64 {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Skipf("there is no %s to be the other file system: %v", path, err)
		}
		return st.Dev
	}
	const shm = "/dev/shm"
	if device(shm) == device(t.TempDir()) {
		t.Skipf("%s and the folder for temporary files are on one file system", shm)
	}
	dir, err := os.MkdirTemp(shm, "clawbox-test-*")
	if err != nil {
		t.Skipf("%s is not writable: %v", shm, err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestMove: a tree arrives as it was, on the same file system and on another,
// and takes the place of a file.
func TestMove(t *testing.T) {
	for name, dst := range map[string]func(*testing.T) string{"same": (*testing.T).TempDir, "other": elsewhere} {
		t.Run(name, func(t *testing.T) {
			src, dst := t.TempDir(), dst(t)
			tree := filepath.Join(src, "tree")
			for _, d := range []string{tree, filepath.Join(tree, "sub")} {
				if err := os.Mkdir(d, 0o750); err != nil {
					t.Fatal(err)
				}
			}
			file := filepath.Join(tree, "sub", "f")
			if err := os.WriteFile(file, []byte("text"), 0o640); err != nil {
				t.Fatal(err)
			}
			owned := os.Geteuid() == 0
			if owned {
				if err := os.Chown(file, 12, 34); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Symlink("sub/f", filepath.Join(tree, "link")); err != nil {
				t.Fatal(err)
			}
			to := filepath.Join(dst, "tree")
			if err := Move(tree, to); err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(filepath.Join(to, "link")); err != nil || string(b) != "text" {
				t.Errorf("got %q, %v", b, err)
			}
			fi, err := os.Stat(filepath.Join(to, "sub", "f"))
			if err != nil || fi.Mode() != 0o640 {
				t.Fatalf("got %v, %v", fi, err)
			}
			if st := fi.Sys().(*syscall.Stat_t); owned && (st.Uid != 12 || st.Gid != 34) {
				t.Errorf("got owner %d:%d", st.Uid, st.Gid)
			}
			if fi, err := os.Stat(filepath.Join(to, "sub")); err != nil || fi.Mode().Perm() != 0o750 {
				t.Errorf("got %v, %v", fi, err)
			}
			if got := append(names(t, src), names(t, dst)...); len(got) != 1 {
				t.Errorf("left over: %q", got)
			}
			one := filepath.Join(src, "one")
			if err := os.WriteFile(one, []byte("one"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := Move(one, filepath.Join(to, "sub", "f")); err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(filepath.Join(to, "sub", "f")); err != nil || string(b) != "one" {
				t.Errorf("got %q, %v", b, err)
			}
		})
	}
}

// TestMoveFails: both places are as they were.
func TestMoveFails(t *testing.T) {
	src, dst := t.TempDir(), elsewhere(t)
	pipe := filepath.Join(src, "tree", "pipe")
	if err := errors.Join(os.Mkdir(filepath.Dir(pipe), 0o755), syscall.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := Move(filepath.Join(src, "tree"), filepath.Join(dst, "tree")); err == nil {
		t.Error("moved a pipe to another file system")
	}
	if _, err := os.Lstat(pipe); err != nil {
		t.Error(err)
	}
	if got := names(t, dst); len(got) != 0 {
		t.Errorf("left over: %q", got)
	}
	if err := Move(filepath.Join(src, "none"), filepath.Join(dst, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

// TestMoveAfterCut: what a move that was cut off left is gone after the next one.
func TestMoveAfterCut(t *testing.T) {
	src, dst := t.TempDir(), elsewhere(t)
	to := filepath.Join(dst, "key")
	left := filepath.Join(dst, ".move.tmp-key")
	if err := errors.Join(os.Mkdir(left, 0o700), os.WriteFile(filepath.Join(left, "copy"), []byte("secret"), 0o600), os.WriteFile(filepath.Join(src, "key"), []byte("key"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := Move(filepath.Join(src, "key"), to); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(to); err != nil || string(b) != "key" {
		t.Errorf("got %q, %v", b, err)
	}
	if got := names(t, dst); len(got) != 1 {
		t.Errorf("left over: %q", got)
	}
}
