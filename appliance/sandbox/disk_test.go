package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// needDisks skips where an agent can have no disk of its own, with the proof.
func needDisks(t *testing.T) *bench {
	t.Helper()
	b := newBench(t)
	d := disk{t.TempDir()}
	err := d.open(size{4 << 20, 64})
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		t.Skipf("this host gives no disk: %v", err)
	}
	if err := errors.Join(err, d.detach()); err != nil {
		t.Fatal(err)
	}
	return b
}

// told collects events.
type told struct {
	mu sync.Mutex
	n  map[string]int64
}

func (e *told) tell(v Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.n == nil {
		e.n = map[string]int64{}
	}
	e.n[v.Budget] += v.Count
}

func (e *told) of(budget string) int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.n[budget]
}

// TestDisk: a full disk is one agent's trouble, and is told.
func TestDisk(t *testing.T) {
	b := needDisks(t)
	p := policy()
	p.Budgets.Disk, p.Budgets.Inodes = 16<<20, 300
	var ev told
	box, out := b.start(Spec{Policy: p, Event: ev.tell}, "fill=/workspace/big", "write=/tmp/f", "print=filled", "sleep=60")
	await(t, "fill", func() bool { return strings.Contains(out.String(), "print=filled") })
	got := answers(out.String())
	if got["fill=/workspace/big"] != "ENOSPC" || got["write=/tmp/f"] != "ok" {
		t.Errorf("filling the disk: %v", got)
	}
	st, err := os.Stat(b.l.Files("agent", "/workspace") + "/big")
	if err != nil || st.Size() < 14<<20 || st.Size() > 16<<20 {
		t.Errorf("it took %v bytes, %v; want the budget of 16 MiB, nearly", st.Size(), err)
	}
	await(t, "event disk", func() bool { return ev.of("disk") == 1 })
	other, _ := b.start(Spec{Name: "other", Policy: p}, "write=/workspace/f", "sleep=60")
	if err := box.Stop(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if n := strings.Join(other.Notes(), "; "); !strings.Contains(n, "ext4 file system of its own, 16777216 bytes and 300 inodes") {
		t.Errorf("notes: %s", n)
	}
	// What it has is kept, and inodes are counted.
	box, out = b.start(Spec{Policy: p, Event: ev.tell}, "mode=/workspace/big", "create=/workspace", "print=made", "sleep=60")
	await(t, "create", func() bool { return strings.Contains(out.String(), "print=made") })
	if got := answers(out.String()); got["mode=/workspace/big"] == "ENOENT" || got["create=/workspace"] != "ENOSPC" {
		t.Errorf("second run: %v", got)
	}
	await(t, "event inodes", func() bool { return ev.of("inodes") >= 1 })
	es, _ := os.ReadDir(b.l.Files("agent", "/workspace"))
	if len(es) < 250 || len(es) > 330 {
		t.Errorf("%d files with a budget of 300 inodes", len(es))
	}
	if err := errors.Join(box.Stop(t.Context(), 0), other.Stop(t.Context(), 0)); err != nil {
		t.Error(err)
	}
	if err := errors.Join(b.l.Remove("agent"), b.l.Remove("other")); err != nil {
		t.Error(err)
	}
	if m, _ := (disk{b.l.agentDir("agent")}).mounted(); m || exists(disk{b.l.agentDir("agent")}.image()) {
		t.Error("the disk outlived its agent")
	}
}

// TestDiskChanges: files move into a disk when the policy gets one, and on
// into a larger one; what does not fit is an error that loses nothing.
func TestDiskChanges(t *testing.T) {
	b := needDisks(t)
	b.run(Spec{}, "write=/workspace/kept")
	p := policy()
	for _, size := range []int64{8 << 20, 80 << 20} {
		p.Budgets.Disk = size
		if got, _, why := b.run(Spec{Policy: p}, "mode=/workspace/kept", "write=/workspace/kept"); got["write=/workspace/kept"] != "ok" || got["mode=/workspace/kept"] != "ok -rwxr-xr-x" {
			t.Errorf("with %d bytes: %v, %s", size, got, why)
		}
	}
	b.run(Spec{Policy: p}, "fill=/workspace/big")
	p.Budgets.Disk = 4 << 20
	if _, err := b.l.Start(t.Context(), Spec{Name: "agent", Image: b.image, Policy: p}); err == nil || !strings.Contains(err.Error(), "disk of 4194304 bytes") {
		t.Errorf("a disk too small for its files: %v", err)
	}
	p.Budgets.Disk = 0
	if got, _, _ := b.run(Spec{Policy: p}, "mode=/workspace/big"); !strings.HasPrefix(got["mode=/workspace/big"], "ok") {
		t.Errorf("after the budget is gone: %v", got)
	}
	p.Budgets.DiskWrite = 1 << 20
	box, err := b.l.Start(t.Context(), Spec{Name: "agent", Image: b.image, Policy: p, Args: []string{"sleep=60"}})
	if !b.l.h.io {
		if err == nil || !strings.Contains(err.Error(), "controller io") {
			t.Errorf("a budget that cannot be kept: %v", err)
		}
		return
	}
	// It has no budgets.disk any more, but still its disk.
	if err != nil {
		t.Fatal(err)
	}
	dev, _ := box.disk.device()
	if max, err := os.ReadFile(filepath.Join(b.l.h.v2, box.g.path, "io.max")); err != nil || !strings.Contains(string(max), dev+" rbps=max wbps=1048576") {
		t.Errorf("io.max of %s: %q, %v", dev, max, err)
	}
	if err := box.Stop(t.Context(), 0); err != nil {
		t.Error(err)
	}
}

// TestDiskCrash: the next daemon finds mounts, half a snapshot and half a
// disk, and mends that.
func TestDiskCrash(t *testing.T) {
	b := needDisks(t)
	p := policy()
	p.Budgets.Disk = 8 << 20
	b.run(Spec{Policy: p}, "write=/workspace/f")
	d := disk{b.l.agentDir("agent")}
	snaps := b.l.snapshots("agent")
	if err := errors.Join(d.freeze(), os.MkdirAll(snaps+"/"+snapshotTemp+"1", 0o700), os.WriteFile(d.image()+".new", nil, 0o600), os.WriteFile(d.image()+".restored", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	b.l.h.close()
	b.l.lock.Close() // all that the end of a daemon undoes by itself
	l, err := Open(b.l.opt)
	if err != nil {
		t.Fatal(err)
	}
	b.l = l
	if m, err := d.mounted(); m || err != nil {
		t.Errorf("still mounted, %v", err)
	}
	left, _ := filepath.Glob(snaps + "/.*")
	more, _ := filepath.Glob(d.image() + ".*")
	if len(left)+len(more) > 0 {
		t.Errorf("left: %v %v", left, more)
	}
	if got, _, _ := b.run(Spec{Policy: p}, "mode=/workspace/f"); !strings.HasPrefix(got["mode=/workspace/f"], "ok") {
		t.Errorf("files: %v", got)
	}
}

// TestBombs: each is stopped and told, and meanwhile a neighbour and the host
// go on.
func TestBombs(t *testing.T) {
	b := needDisks(t)
	tests := []struct{ verb, want, event string }{
		{"create=/tmp", "ENOSPC", "scratch"},
		{"fill=/tmp/big", "ENOSPC", "scratch"},
		{"fill=/dev/shm/big", "ENOSPC", "scratch"},
		{"hold=/data/in", "EMFILE", ""},
		{"flood=3", "ok", "output"},
		{"forks=500", "EAGAIN", "processes"},
	}
	for i, x := range tests {
		t.Run(x.verb, func(t *testing.T) {
			p := policy()
			p.Budgets.Memory = 512 << 20
			var ev told
			out := &counter{}
			box, err := b.l.Start(t.Context(), Spec{Name: fmt.Sprintf("bomb-%d", i), Image: b.image, Policy: p, Args: []string{x.verb, "print=over", "sleep=60"}, Stdout: out, Stderr: out, Event: ev.tell})
			if err != nil {
				t.Fatal(err)
			}
			await(t, x.verb, func() bool { return strings.Contains(out.tail(), "print=over") })
			if !strings.Contains(out.tail(), x.verb+": "+x.want) {
				t.Errorf("%q; want %s", out.tail(), x.want)
			}
			if x.event != "" {
				await(t, "event "+x.event, func() bool { return ev.of(x.event) > 0 })
			}
			if got, _, _ := b.run(Spec{Name: "neighbour"}, "write=/workspace/f", "write=/tmp/f"); got["write=/tmp/f"] != "ok" || got["write=/workspace/f"] != "ok" {
				t.Errorf("a neighbour: %v", got)
			}
			if err := box.Stop(t.Context(), 0); err != nil {
				t.Error(err)
			}
		})
	}
}

// counter keeps the end of an output.
type counter struct{ buffer }

func (c *counter) Write(p []byte) (int, error) {
	n := len(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.b.Write(p[max(0, n-4096):])
	if c.b.Len() > 1<<16 {
		c.b.Next(c.b.Len() - 4096)
	}
	return n, nil
}

func (c *counter) tail() string { return c.String() }

// TestStopReturns: an operator who gives up waiting gets an answer.
func TestStopReturns(t *testing.T) {
	b := newBench(t)
	hang := make(chan struct{})
	s := Spec{Event: func(Event) { <-hang }, Policy: policy()}
	s.Policy.Budgets.WallTime = 200 * time.Millisecond
	box, _ := b.start(s, "ignore", "sleep=60")
	time.Sleep(400 * time.Millisecond) // the event's listener hangs by now
	ctx, cancel := withTimeout(t, 300*time.Millisecond)
	defer cancel()
	if err := box.Stop(ctx, 0); err == nil || !strings.Contains(err.Error(), "is not gone yet") {
		t.Errorf("got %v", err)
	}
	close(hang)
	box.Wait()
}

// TestPromised: disks are sparse, and a host that has promised more than it
// has says so.
func TestPromised(t *testing.T) {
	b := needDisks(t)
	p := policy()
	p.Budgets.Disk, p.Budgets.Inodes = 20<<30, 2_000_000
	box, _ := b.start(Spec{Policy: p}, "sleep=60")
	if n, err := allocated(box.disk.image()); err != nil || n > 4<<20 {
		t.Errorf("an empty disk of 20 GiB takes %d bytes, %v; want less than 4 MiB", n, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(b.state, &st); err != nil {
		t.Fatal(err)
	}
	p.Budgets.Disk = 2 * int64(st.Blocks) * st.Bsize // twice the host
	p.Budgets.Inodes = 1000
	more, _ := b.start(Spec{Name: "more", Policy: p}, "sleep=60")
	if !strings.Contains(strings.Join(more.Notes(), "\n"), "may still grow by") {
		t.Errorf("notes: %q", more.Notes())
	}
}
