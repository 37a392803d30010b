package sandbox

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSnapshotMoment: a snapshot is of one moment, however much is written while
// it is taken: of two files that count in turns, the second is never ahead.
func TestSnapshotMoment(t *testing.T) {
	b := needDisks(t)
	p := policy()
	p.Budgets.Disk = 64 << 20
	box, _ := b.start(Spec{Policy: p}, "sleep=600")
	dir := b.l.Files("agent", "/workspace")
	stop, done := make(chan struct{}), make(chan error, 1)
	var once sync.Once
	end := func() error { once.Do(func() { close(stop) }); return <-done }
	go func() { done <- count(dir, stop) }()
	for end := time.Now().Add(time.Minute); !exists(dir + "/second"); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing was written in a minute")
		}
	}
	for _, name := range []string{"one", "two", "three"} {
		if _, err := b.l.Snapshot("agent", name); err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(end(), box.Stop(t.Context(), 0)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "two", "three"} {
		if err := b.l.Restore("agent", name); err != nil {
			t.Fatal(err)
		}
		box, _ := b.start(Spec{Policy: p}, "sleep=600")
		first, second := counted(t, dir+"/first"), counted(t, dir+"/second")
		if second > first || first > second+1 || first == 0 {
			t.Errorf("%s: %d rounds in the first file, %d in the second", name, first, second)
		}
		if err := box.Stop(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// count writes round numbers all over two files, to one after the other.
func count(dir string, stop <-chan struct{}) error {
	var fs [2]*os.File
	for i, name := range []string{"first", "second"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		defer f.Close()
		fs[i] = f
	}
	for n := uint64(1); ; n++ {
		b := binary.LittleEndian.AppendUint64(nil, n)
		for _, f := range fs {
			// At its end, and at the start: the number of rounds.
			if _, err := f.WriteAt(b, int64(n%1000)*4096+8); err != nil {
				return err
			}
			if _, err := f.WriteAt(b, 0); err != nil {
				return err
			}
		}
		select {
		case <-stop:
			return nil
		default:
		}
	}
}

func counted(t *testing.T, file string) uint64 {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil || len(b) < 8 {
		t.Fatalf("%s: %d bytes, %v", file, len(b), err)
	}
	return binary.LittleEndian.Uint64(b)
}

// TestCopyAgain: copying again writes what has changed, and what has become a
// hole.
func TestCopyAgain(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(dir+"/a", []byte(strings.Repeat("x", 3<<20)), 0o600), os.Truncate(dir+"/a", 64<<20)); err != nil {
		t.Fatal(err)
	}
	c, err := newCopy(dir+"/b", dir+"/a")
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if err := c.ahead(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(dir+"/a", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = f.WriteAt([]byte("y"), 40<<20)
	if err := errors.Join(err, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := c.all(); err != nil {
		t.Fatal(err)
	}
	a, _ := os.ReadFile(dir + "/a")
	b, _ := os.ReadFile(dir + "/b")
	if string(a) != string(b) {
		t.Error("the copy differs")
	}
	if n, err := c.sync(); err != nil || n != 0 && !c.shares {
		t.Errorf("a third time writes %d bytes, %v", n, err)
	}
}

// TestSnapshotShares: where the host's file system shares blocks, so does a
// snapshot.
func TestSnapshotShares(t *testing.T) {
	b := needDisks(t)
	dir := t.TempDir()
	if out, err := exec.Command("truncate", "-s", "512M", dir+"/img").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command("mkfs.xfs", "-q", "-m", "reflink=1", dir+"/img").CombinedOutput(); err != nil {
		t.Skipf("apt-get install xfsprogs: %v: %s", err, out)
	}
	state := filepath.Join(dir, "state")
	if err := os.Mkdir(state, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", "loop", dir+"/img", state).CombinedOutput(); err != nil {
		t.Skipf("this kernel does not mount XFS: %v: %s", err, out)
	}
	defer func() {
		if out, err := exec.Command("umount", state).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	}()
	l, err := Open(Options{State: filepath.Join(state, "s"), Launcher: programs.launcher, UIDBase: 700_000})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(l.Remove("agent"), l.Close()); err != nil {
			t.Error(err)
		}
	}()
	p := policy()
	p.Budgets.Disk = 32 << 20
	box, err := l.Start(t.Context(), Spec{Name: "agent", Image: b.image, Policy: p, Args: []string{"fill=/workspace/f", "sleep=600"}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Snapshot("agent", "one")
	if err != nil || !s.Shared || s.Held == 0 {
		t.Errorf("%+v, %v", s, err)
	}
	t.Logf("%d bytes: writes waited for %v", s.Bytes, s.Held)
	if err := box.Stop(t.Context(), 0); err != nil {
		t.Error(err)
	}
}

// TestHeldStill: who wants to join a sandbox that is held still is told so; a
// short hold is waited for, and a snapshot is taken all the same.
func TestHeldStill(t *testing.T) {
	b := needDisks(t)
	p := policy()
	p.Budgets.Disk = 4 << 20
	box, _ := b.start(Spec{Policy: p}, "sleep=600")
	hold := func(v string) {
		if err := write(filepath.Join(box.g.dir(), "cgroup.freeze"), v); err != nil {
			t.Error(err)
		}
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if on, err := box.g.frozen(); err != nil || on == (v == "1") {
				return
			}
		}
		t.Errorf("cgroup.freeze %s had no effect in a minute", v)
	}
	look := ExecSpec{Args: []string{"/bin/probe", "cwd"}}
	hold("1")
	if _, err := box.Exec(t.Context(), look); err == nil || !strings.Contains(err.Error(), "held still") {
		t.Errorf("joined: %v", err)
	}
	if _, err := b.l.Snapshot("agent", "one"); err != nil {
		t.Error(err)
	}
	if on, err := box.g.frozen(); !on || err != nil {
		t.Errorf("a snapshot let it go: %v", err)
	}
	time.AfterFunc(50*time.Millisecond, func() { hold("0") })
	if code, err := box.Exec(t.Context(), look); code != 0 || err != nil {
		t.Errorf("after a short hold: %d, %v", code, err)
	}
}
