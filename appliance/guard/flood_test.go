package guard

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What hide does: rounds refusals, each behind so many misses.
const (
	hideRounds = 40
	hideMisses = 3000
)

// hide is refused a file again and again in a crowd of names that do not exist,
// and misses one more name a while later.
func hide(missing, secret string) error {
	if err := syscall.Setuid(65534); err != nil {
		return err
	}
	for range hideRounds {
		for range hideMisses {
			if err := failsWith(missing, unix.ENOENT); err != nil {
				return err
			}
		}
		if err := failsWith(secret, unix.EACCES); err != nil {
			return err
		}
	}
	time.Sleep(1200 * time.Millisecond)
	return failsWith(missing, unix.ENOENT)
}

// secretIn makes a file that nobody but root may open.
func secretIn(t *testing.T, dir string) string {
	t.Helper()
	chmod(t, dir)
	if err := os.WriteFile(dir+"/secret", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir + "/secret"
}

// TestHide: no number of misses keeps a refusal from the record, and the misses
// are counted to the last.
func TestHide(t *testing.T) {
	g := ready(t)
	j := follow(g)
	cg, dir := cgroup(t, ""), t.TempDir()
	secret, missing := secretIn(t, dir), dir+"/missing"
	w, err := g.Watch(Scope{
		ID: "hide", CgroupID: must(CgroupID(cg)), AuditENOENT: true,
		Exec: []Inode{must(Lookup(os.Getpid(), must(os.Executable())))},
	})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := helper(t, cg, "hide", missing, secret).Run(); err != nil {
		t.Fatal(err)
	}
	most := uint64(missesPerSecond * (time.Since(start).Seconds() + 2))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	es := j.all(func(e Event) bool { return e.Path == secret && e.Errno == unix.EACCES })
	if len(es) != hideRounds {
		t.Errorf("%d of %d refusals were reported", len(es), hideRounds)
	}
	var events, skipped uint64
	for _, e := range j.all(func(e Event) bool { return e.Scope == "hide" && e.Kind == Refused }) {
		if e.Skipped != 0 || e.Errno != unix.ENOENT && e.SkippedMissing != 0 {
			t.Errorf("counts of the wrong sort: %+v", e)
		}
		skipped += e.SkippedMissing
		if e.Path == missing {
			events++
		}
	}
	const all = hideRounds*hideMisses + 1
	others := events + skipped - all // left out too: what the runtime looked for in vain
	if events+skipped < all || others > 100 || events > most {
		t.Errorf("%d misses reported + %d left out, want %d in all and at most %d reported", events, skipped, all, most)
	}
	if g.Lost() != 0 || len(g.LostBy()) != 0 {
		t.Errorf("lost %d, by scope %v", g.Lost(), g.LostBy())
	}
}

// TestCut: a long path comes as its beginning, and says so.
func TestCut(t *testing.T) {
	g := ready(t)
	j := follow(g)
	cg, dir := cgroup(t, ""), t.TempDir()
	secretIn(t, dir)
	w := watch(t, g, cg)
	path := func(n int) string { // to the secret, n bytes long
		return dir + strings.Repeat("/", n-len(dir)-len("secret")) + "secret"
	}
	for _, tt := range []struct {
		n, want int
		cut     bool
	}{{400, 400, false}, {510, 510, false}, {512, 511, true}, {4000, 511, true}} {
		c := helper(t, cg, "flood", path(tt.n), "0")
		if err := c.Run(); err != nil {
			t.Fatal(err)
		}
		e := j.await(t, 1, func(e Event) bool { return e.PID == c.Process.Pid && e.Errno == unix.EACCES })[0]
		if e.Cut != tt.cut || e.Path != path(tt.n)[:tt.want] {
			t.Errorf("of %d bytes: got %d, cut %v, want %d, cut %v", tt.n, len(e.Path), e.Cut, tt.want, tt.cut)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestLostBy: what finds no room is counted for the scope that lost it, and
// each call is an event, left out or lost.
func TestLostBy(t *testing.T) {
	const n = 3000
	defer func(size uint32) { refusalRing = size }(refusalRing)
	refusalRing = uint32(os.Getpagesize())
	g := load(t)
	cg, dir := cgroup(t, ""), t.TempDir()
	secret := secretIn(t, dir)
	w := watch(t, g, cg)
	watch(t, g, cgroup(t, ""))
	if err := helper(t, cg, "flood", secret, fmt.Sprint(n)).Run(); err != nil {
		t.Fatal(err)
	}
	check := func(when string) uint64 {
		t.Helper()
		by := g.LostBy()
		if lost := by[filepath.Base(cg)]; lost == 0 || lost != g.Lost() || len(by) != 1 {
			t.Errorf("%s: by scope %v, want all %d of %s", when, by, g.Lost(), filepath.Base(cg))
		}
		return g.Lost()
	}
	check("watched")
	j := follow(g)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	total := check("scope closed")
	for _, e := range j.all(func(e Event) bool { return e.Path == secret }) {
		total += 1 + e.Skipped
	}
	if total != n+1 {
		t.Errorf("%d calls are accounted for, want %d", total, n+1)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	check("guard closed")
}
