package guard

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pinDir is a place for pins that is gone after the test, or a skip where no
// BPF file system can be mounted.
func pinDir(t *testing.T) string {
	t.Helper()
	ready(t)
	return ownPins(t, os.Geteuid())
}

// holdPins loads with pins, watches a cgroup and waits to be killed.
func holdPins(args []string) error {
	g, err := Load(Options{Pin: args[0]})
	if err != nil {
		return err
	}
	follow(g)
	s, err := pinnedScope(args[1])
	if err != nil {
		return err
	}
	if _, err := g.Watch(s); err != nil {
		return err
	}
	fmt.Println("holding", g.Tier())
	select {}
}

func pinnedScope(cg string) (s Scope, err error) {
	self, err := os.Executable()
	if err != nil {
		return s, err
	}
	n, err := Lookup(os.Getpid(), self)
	if err != nil {
		return s, err
	}
	id, err := CgroupID(cg)
	return Scope{ID: "pinned", CgroupID: id, Cgroup: cg, Violation: Kill, Exec: []Inode{n}, AuditOpens: true}, err
}

// killedHolder is a loader that was killed while it watched cg.
func killedHolder(t *testing.T, dir, cg string) {
	t.Helper()
	h := exec.Command("/proc/self/exe", "pins", dir, cg)
	h.Env = append(os.Environ(), helperEnv+"=1")
	h.Stderr = os.Stderr
	out := must(h.StdoutPipe())
	if err := h.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	if !strings.HasPrefix(line, "holding") {
		t.Fatalf("the loader said %q", line)
	}
	if _, err := Load(Options{Pin: dir}); !errors.Is(err, errPins) || !strings.Contains(err.Error(), "another guard") {
		t.Errorf("a second guard beside the first: %v", err)
	}
	h.Process.Kill()
	h.Wait()
}

// TestPins: enforcement outlives the loader, and the next one takes over what
// happened meanwhile.
func TestPins(t *testing.T) {
	dir, cg, files := pinDir(t), cgroup(t, ""), t.TempDir()
	p := program(t, files+"/unlisted", files+"/marker")
	opened := files + "/opened"
	if err := os.WriteFile(opened, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	killedHolder(t, dir, cg)
	hold := helper(t, cg, "call", "plain", "127.0.0.1:1", "0") // refused: it ends at once
	hold.Stderr = nil
	if err := hold.Run(); killed(err) {
		t.Errorf("a listed program, with nobody watching: %v", err)
	}
	dead := func(when string) {
		t.Helper()
		if err := helper(t, cg, "exec", p).Run(); !killed(err) || exists(files+"/marker") {
			t.Errorf("%s: %v, ran: %v, want killed", when, err, exists(files+"/marker"))
		}
	}
	dead("nobody watching")
	if n, err := loop(t, cg, opened, 100); n != 100 || err != nil {
		t.Errorf("opens with nobody watching: %d, %v", n, err)
	}
	sleeper := sleepIn(t, cg)
	g, err := Load(Options{Pin: dir})
	if err != nil {
		t.Fatal(err)
	}
	j := follow(g)
	if as := g.Adopted(); len(as) != 1 || as[0].ID() != "pinned" {
		t.Fatalf("taken over: %v", as)
	}
	gone := j.await(t, 1, func(e Event) bool { return e.Kind == Exec && e.Killed })
	if gone[0].Scope != "pinned" || gone[0].File != "unlisted" {
		t.Errorf("the event of the time between: %+v", gone[0])
	}
	j.await(t, 100, func(e Event) bool { return e.Kind == Opened && e.Path == opened })
	dead("taken over")
	w := must(g.Watch(must(pinnedScope(cg))))
	if len(g.Adopted()) != 0 {
		t.Error("a claimed scope is still adopted")
	}
	dead("claimed")
	if len(j.await(t, 3, func(e Event) bool { return e.Killed })) != 3 || g.Lost() != 0 {
		t.Errorf("lost %d", g.Lost())
	}
	sleeper()
	if err := errors.Join(w.Close(), g.Close()); err != nil {
		t.Fatal(err)
	}
	if len(pinned(dir)) > 0 {
		t.Error("the pins are left behind")
	}
	if err := helper(t, cg, "exec", p).Run(); killed(err) {
		t.Errorf("after Close: %v", err)
	}
}

// remembered is how many of its events the guard of remember puts on record.
const remembered = 30

// remember receives what happens in a scope, and puts a part of it on record: it
// prints these events' numbers, and is killed when it has received them all.
func remember(args []string) error {
	g, err := Load(Options{Pin: args[0], Acknowledge: true})
	if err != nil {
		return err
	}
	s, err := pinnedScope(args[1])
	if err != nil {
		return err
	}
	if _, err := g.Watch(s); err != nil {
		return err
	}
	fmt.Println("holding", g.Tier())
	n := 0
	for e := range g.Events() {
		if e.Kind != Opened || e.Path != args[2] {
			continue
		}
		if n++; n <= remembered {
			fmt.Println(e.Seq)
		}
		if n == remembered {
			g.Acknowledge(e)
		}
		if n == 100 {
			fmt.Println("all")
		}
	}
	return nil
}

// TestAcknowledge: what a guard had received and not put on record when it was
// killed, the next one delivers again, and nothing else: with the numbers that
// follow.
func TestAcknowledge(t *testing.T) {
	dir, cg := pinDir(t), cgroup(t, "")
	file := t.TempDir() + "/opened"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h := exec.Command("/proc/self/exe", "forget", dir, cg, file)
	h.Env = append(os.Environ(), helperEnv+"=1")
	h.Stderr = os.Stderr
	out := bufio.NewScanner(must(h.StdoutPipe()))
	if err := h.Start(); err != nil {
		t.Fatal(err)
	}
	if !out.Scan() || !strings.HasPrefix(out.Text(), "holding") {
		t.Fatalf("the loader said %q", out.Text())
	}
	sleeper := sleepIn(t, cg)
	if n, err := loop(t, cg, file, 100); n != 100 || err != nil {
		t.Fatalf("opens: %d, %v", n, err)
	}
	var last uint64
	for out.Scan() && out.Text() != "all" {
		last = must(strconv.ParseUint(out.Text(), 10, 64))
	}
	h.Process.Kill()
	h.Wait()
	g := must(Load(Options{Pin: dir, Acknowledge: true}))
	j := follow(g)
	es := j.await(t, 100-remembered, func(e Event) bool { return e.Kind == Opened && e.Path == file })
	if len(es) != 100-remembered || es[0].Seq <= last || g.Lost() != 0 {
		t.Errorf("%d events are delivered again from %d on, want %d behind %d; lost %d", len(es), es[0].Seq, 100-remembered, last, g.Lost())
	}
	slot := g.Adopted()[0].slot
	if n, _ := g.mem.filled(slot, ringOpens); n <= 0 {
		t.Errorf("%d bytes of the ring are filled before an acknowledgement", n)
	}
	all := j.all(func(Event) bool { return true })
	g.Acknowledge(all[len(all)-1])
	for _, q := range g.queues {
		if q.consumed() != q.next && len(q.out) == 0 {
			t.Errorf("ring %d: released up to %d of %d", q.which, q.consumed(), q.next)
		}
	}
	if n, _ := g.mem.filled(slot, ringOpens); n != 0 {
		t.Errorf("%d bytes of the ring are filled after the acknowledgement", n)
	}
	sleeper()
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	g.Acknowledge(all[0]) // does no harm
}

// TestCloseKeepsUntold: an orderly end loses nothing that is not on record yet.
func TestCloseKeepsUntold(t *testing.T) {
	dir, cg := pinDir(t), cgroup(t, "")
	old := patience
	patience = 100 * time.Millisecond
	t.Cleanup(func() { patience = old })
	file := t.TempDir() + "/opened"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	opened := func(e Event) bool { return e.Kind == Opened && e.Path == file }
	g := must(Load(Options{Pin: dir, Acknowledge: true}))
	j := follow(g)
	audit(t, g, cg)
	if n, err := loop(t, cg, file, 100); n != 100 || err != nil {
		t.Fatalf("opens: %d, %v", n, err)
	}
	j.await(t, 100, opened)
	if err := g.Close(); err == nil || !strings.Contains(err.Error(), "next guard") {
		t.Errorf("close with everything untold: %v", err)
	}
	g = must(Load(Options{Pin: dir, Acknowledge: true}))
	j = follow(g)
	es := j.await(t, 100, opened)
	if len(es) != 100 || es[0].Scope == "" {
		t.Errorf("%d events are delivered again, of scope %q", len(es), es[0].Scope)
	}
	all := j.all(func(Event) bool { return true })
	g.Acknowledge(all[len(all)-1])
	if err := g.Close(); err != nil {
		t.Errorf("close with everything told: %v", err)
	}
	if exists(dir + "/set_" + digest()) {
		t.Error("pins stay when everything is told")
	}
}

// TestHurry: whoever gathers events until they are asked for is asked by the
// close of a scope, and by one that stands still for want of room.
func TestHurry(t *testing.T) {
	dir, cg := pinDir(t), cgroup(t, "")
	file := t.TempDir() + "/opened"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	g := must(Load(Options{Pin: dir, Acknowledge: true}))
	t.Cleanup(func() { g.Close() })
	hurries := make(chan int, 1)
	go func() {
		n := 0
		for e := range g.Events() {
			for more := true; more; {
				select {
				case e, more = <-g.Events():
				case <-g.Hurry():
					n, more = n+1, false
				}
			}
			g.Acknowledge(e)
		}
		hurries <- n
	}()
	w := audit(t, g, cg)
	atomic.StoreUint64(&g.mem.common.Share[ringOpens], 8<<20)
	if n, err := loop(t, cg, file, 20000); n != 20000 || err != nil {
		t.Fatalf("opens, of which a quarter of a share holds half: %d, %v", n, err)
	}
	start := time.Now()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d >= patience {
		t.Errorf("the close of a scope waited for %v", d)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	t.Logf("asked %d times", <-hurries)
}

// sleepIn keeps a process in cg until the result is called.
func sleepIn(t *testing.T, cg string) func() {
	t.Helper()
	c := helper(t, cg, "sleep")
	in := must(c.StdinPipe())
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return func() { in.Close(); c.Wait() }
}

// TestStalePins: what holds nobody any more is cleared away, and so is what a
// loader left half made. Another version that holds somebody is not touched.
func TestStalePins(t *testing.T) {
	ready(t)
	dir, cg := ownPins(t, os.Geteuid()), cgroup(t, "")
	killedHolder(t, dir, cg)
	if err := os.Mkdir(dir+"/new_0123", 0o700); err != nil {
		t.Fatal(err)
	}
	g, err := Load(Options{Pin: dir})
	if err != nil {
		t.Fatal(err)
	}
	follow(g)
	if n := len(g.Adopted()); n != 0 || exists(dir+"/new_0123") {
		t.Errorf("%d scopes of the dead, half made: %v", n, exists(dir+"/new_0123"))
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	killedHolder(t, dir, cg)
	sleeper := sleepIn(t, cg)
	sets := must(filepath.Glob(dir + "/set_*"))
	if err := os.Rename(sets[0], dir+"/set_0123"); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(Options{Pin: dir}); err == nil || !strings.Contains(err.Error(), "another version") || !exists(dir+"/set_0123/map_labels") {
		t.Errorf("a set of another version: %v", err)
	}
	sleeper()
	for range 100 { // the kernel needs a moment to forget the process
		if g, err = Load(Options{Pin: dir}); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	follow(g)
	if err := g.Close(); err != nil || len(pinned(dir)) > 0 {
		t.Errorf("Close: %v, left behind: %v", err, pinned(dir))
	}
}

// TestPinRefuses: a directory that can't hold pins is an error, and no lower tier.
func TestPinRefuses(t *testing.T) {
	ready(t)
	dir := t.TempDir()
	if _, err := Load(Options{Pin: dir}); !errors.Is(err, errPins) || !strings.Contains(err.Error(), "/sys/fs/bpf") {
		t.Errorf("a directory of another file system: %v", err)
	}
	if _, err := Load(Options{Want: "T9"}); err == nil || !strings.Contains(err.Error(), `"T9"`) {
		t.Errorf("an unknown tier: %v", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || fs.Type == unix.BPF_FS_MAGIC {
		t.Errorf("%s was mounted over: %v", dir, err)
	}
}
