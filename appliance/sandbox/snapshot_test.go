package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func withTimeout(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}

// odd fills a folder with what copies get wrong.
func odd(dir string) error {
	deep := dir
	errs := []error{
		os.WriteFile(dir+"/plain", []byte("plain"), 0o640),
		os.WriteFile(dir+"/a\xff\n\t name", []byte("odd"), 0o600),
		os.Link(dir+"/plain", dir+"/hard"),
		os.Symlink("../plain", dir+"/soft"),
		os.WriteFile(dir+"/suid", nil, 0o644), unix.Chmod(dir+"/suid", 0o4755),
		unix.Mknod(dir+"/fifo", unix.S_IFIFO|0o600, 0), unix.Mknod(dir+"/socket", unix.S_IFSOCK|0o600, 0),
		unix.Setxattr(dir+"/plain", "user.note", []byte("kept"), 0),
		os.WriteFile(dir+"/sparse", nil, 0o600), os.Truncate(dir+"/sparse", 1<<30),
		os.Lchown(dir+"/plain", 700_000, 700_000),
	}
	for range 200 {
		deep += "/d"
		errs = append(errs, os.Mkdir(deep, 0o755))
	}
	return errors.Join(errs...)
}

// picture lists a folder with all that a copy must keep.
func picture(dir string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		sum := ""
		if d.Type().IsRegular() && st.Size < 1<<20 {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			sum = string(b)
		}
		x := make([]byte, 64)
		n, _ := unix.Lgetxattr(p, "user.note", x)
		if !d.IsDir() {
			sum += fmt.Sprint(st.Size, st.Blocks, st.Mtim)
		}
		out = append(out, fmt.Sprintf("%q %o %d:%d n%d %q %s", strings.TrimPrefix(p, dir), st.Mode, st.Uid, st.Gid, st.Nlink, x[:max(n, 0)], sum))
		return nil
	})
	return out, err
}

// TestSnapshots is the conformance test: what comes back is what there was.
func TestSnapshots(t *testing.T) {
	b := needDisks(t)
	p := policy()
	p.Budgets.Disk, p.Budgets.Inodes = 256<<20, 60_000
	if _, err := b.l.Snapshot("agent", "one"); err == nil || !strings.Contains(err.Error(), "set budgets.disk") {
		t.Errorf("without a disk: %v", err)
	}
	box, _ := b.start(Spec{Policy: p}, "write=/workspace/f", "sleep=600")
	dir := b.l.Files("agent", "/workspace")
	if err := odd(dir); err != nil {
		t.Fatal(err)
	}
	many := 5_000
	if os.Getenv("CLAWBOX_TEST_LARGE") != "" {
		many = 50_000 // some 20 s more
	}
	for i := range many {
		if i%500 == 0 {
			os.Mkdir(fmt.Sprintf("%s/many%d", dir, i/500), 0o755)
		}
		if err := os.WriteFile(fmt.Sprintf("%s/many%d/%d", dir, i/500, i), []byte{byte(i)}, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := picture(dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := b.l.Snapshot("agent", "one")
	if err != nil || s.Held == 0 || s.Number != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
	t.Logf("%d files, %d bytes: the agent was held for %v, blocks shared: %v", len(want), s.Bytes, s.Held, s.Shared)
	if _, err := b.l.Snapshot("agent", "one"); err == nil || !strings.Contains(err.Error(), "it exists since") {
		t.Errorf("twice: %v", err)
	}
	if err := b.l.Restore("agent", "one"); err == nil || !strings.Contains(err.Error(), "runs") {
		t.Errorf("restored while it runs: %v", err)
	}
	if err := errors.Join(os.RemoveAll(dir+"/many7"), os.WriteFile(dir+"/plain", []byte("changed"), 0o600), os.WriteFile(dir+"/new", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if s, err = b.l.Snapshot("agent", "two"); err != nil || s.Number != 2 {
		t.Fatalf("%+v, %v", s, err)
	}
	if err := box.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := b.l.Restore("agent", "one"); err != nil {
		t.Fatal(err)
	}
	box, _ = b.start(Spec{Policy: p}, "sleep=600")
	got, err := picture(dir)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%d entries came back of %d, %v; first difference: %s", len(got), len(want), err, difference(got, want))
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Flags&(unix.ST_NOSUID|unix.ST_NODEV|unix.ST_NOEXEC) != unix.ST_NOSUID|unix.ST_NODEV|unix.ST_NOEXEC {
		t.Errorf("mount flags %#x, %v: set-uid bits, devices and programs must stay without effect", st.Flags, err)
	}
	if err := box.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	all, err := b.l.Snapshots("agent")
	if err != nil || len(all) != 2 || all[0].Name != "one" || all[1].Name != "two" {
		t.Errorf("%+v, %v", all, err)
	}
	if err := b.l.RemoveSnapshot("agent", "one"); err != nil {
		t.Error(err)
	}
	if err := b.l.Restore("agent", "one"); err == nil || !strings.Contains(err.Error(), "no snapshot one") {
		t.Errorf("a removed one: %v", err)
	}
	if s, err = b.l.Snapshot("agent", "three"); err != nil || s.Number != 3 || s.Held != 0 {
		t.Errorf("of a stopped agent: %+v, %v", s, err)
	}
	if err := b.l.Remove("agent"); err != nil || exists(b.l.snapshots("agent")) {
		t.Errorf("snapshots outlived their agent: %v", err)
	}
}

func difference(a, b []string) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return a[i] + " / " + b[i]
		}
	}
	return "none in common"
}

// TestSnapshotRoom: snapshots have a budget.
func TestSnapshotRoom(t *testing.T) {
	b := needDisks(t)
	p := policy()
	p.Budgets.Disk = 2 << 20
	b.run(Spec{Policy: p}, "fill=/workspace/f")
	var err error
	for i := 0; err == nil && i < 10; i++ {
		_, err = b.l.Snapshot("agent", fmt.Sprintf("s%d", i))
	}
	if err == nil || !strings.Contains(err.Error(), "times the disk") {
		t.Errorf("got %v", err)
	}
	for _, n := range []string{"../x", "", "A"} {
		if _, err := b.l.Snapshot("agent", n); err == nil || !strings.Contains(err.Error(), "want 1 to 63") {
			t.Errorf("%q: %v", n, err)
		}
	}
}

func TestClone(t *testing.T) {
	dir := t.TempDir()
	data := bytes.Repeat([]byte("x"), 3<<20)
	f, err := os.Create(dir + "/a")
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(data, 40<<20)
	if err := errors.Join(err, f.Truncate(100<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := clone(dir+"/b", dir+"/a"); err != nil {
		t.Fatal(err)
	}
	a, _ := os.ReadFile(dir + "/a")
	b, _ := os.ReadFile(dir + "/b")
	n, err := allocated(dir + "/b")
	if !bytes.Equal(a, b) || err != nil || n > 5<<20 {
		t.Errorf("%d bytes became %d, %d allocated, %v", len(a), len(b), n, err)
	}
}
