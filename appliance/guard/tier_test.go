package guard

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTiers: each tier that this kernel gives does what it says, and one that
// it does not give has a reason.
func TestTiers(t *testing.T) {
	best := load(t)
	best.Close()
	for _, want := range ladder {
		t.Run(string(want), func(t *testing.T) {
			g, err := Load(Options{Want: want})
			if err != nil {
				t.Fatal(err)
			}
			follow(g)
			defer g.Close()
			t.Logf("wanted %s, got %s: %s", want, g.Tier(), g.Why())
			if g.Tier() < want || g.Tier() != want && !strings.Contains(g.Why(), string(want)+": ") {
				t.Errorf("wanted %s, got %s without a reason: %q", want, g.Tier(), g.Why())
			}
			if best.Tier() <= want && g.Tier() != want {
				t.Errorf("the kernel gives %s, and not the lower %s", best.Tier(), want)
			}
			if (g.hooks != nil) != (g.Tier() < TierTracepoint) {
				t.Errorf("tier %s, hooks %v", g.Tier(), g.hooks)
			}
		})
	}
}

// TestNoLSM: where bpf is not among the kernel's LSMs, or its programs can't be
// attached, a guard that wants T1 gets a lower tier and says why: programs that
// attach and enforce nothing don't count.
func TestNoLSM(t *testing.T) {
	g := ready(t)
	follow(g)
	b, err := os.ReadFile("/sys/kernel/security/lsm")
	listed := slices.Contains(strings.Split(string(b), ","), "bpf")
	t.Logf("tier %s, lsm=%s (%v), why: %s", g.Tier(), b, err, g.Why())
	switch {
	case g.Tier() == TierLSM && err == nil && !listed:
		t.Errorf("T1 is reached with lsm=%s", b)
	case g.Tier() == TierLSM:
		t.Skipf("bpf is among the LSMs here: lsm=%s; the boot without it tests this", b)
	case !strings.HasPrefix(g.Why(), "T1: "):
		t.Errorf("tier %s, and no word about T1: %q", g.Tier(), g.Why())
	case strings.HasPrefix(g.Why(), "T1: load") || strings.HasPrefix(g.Why(), "T1: attach on"):
		for _, errno := range []error{unix.EPERM, unix.EINVAL, unix.EOPNOTSUPP} { // the kernel's own refusal
			if strings.Contains(g.Why(), errno.Error()) {
				return
			}
		}
		t.Errorf("T1 is refused for no reason of the kernel's: %q", g.Why())
	case err == nil && !strings.Contains(g.Why(), "bpf is not in it"):
		t.Errorf("T1 enforces nothing with lsm=%s, and the reason does not say so: %q", b, g.Why())
	}
}

// TestViolation: an unlisted program is refused where that is asked and the tier
// can, and killed otherwise. Either way it is told, and does not run.
func TestViolation(t *testing.T) {
	g := ready(t)
	j := follow(g)
	dir := t.TempDir()
	p := program(t, dir+"/unlisted", dir+"/marker")
	self := must(Lookup(os.Getpid(), must(os.Executable())))
	for _, v := range []Violation{"", Refuse, Kill} {
		cg := cgroup(t, "")
		id := "violation " + string(v)
		w := must(g.Watch(Scope{ID: id, CgroupID: must(CgroupID(cg)), Violation: v, Exec: []Inode{self}}))
		c := helper(t, cg, "exec", p)
		c.Stderr = nil
		err := c.Run()
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		kill := v == Kill || g.hooks == nil
		if killed(err) != kill || err == nil || exists(dir+"/marker") {
			t.Errorf("%q: ended with %v, ran %v, want killed %v", v, err, exists(dir+"/marker"), kill)
		}
		es := j.all(func(e Event) bool { return e.Scope == id && e.Kind == Exec && (e.Killed || e.Denied) })
		if len(es) != 1 {
			t.Fatalf("%q: %d events, want 1", v, len(es))
		}
		e := es[0]
		if e.Killed != kill || e.Denied != (g.hooks != nil) || (e.Errno == unix.EPERM) != !kill || e.File != "unlisted" || e.Path != p {
			t.Errorf("%q: event %+v", v, e)
		}
	}
}

// TestUpdate: a list is replaced in one step, again and again, and no program
// that is on both lists is ever hurt.
func TestUpdate(t *testing.T) {
	g := load(t)
	follow(g)
	cg, dir := cgroup(t, ""), t.TempDir()
	both, one := program(t, dir+"/both", dir+"/both.out"), program(t, dir+"/one", dir+"/one.out")
	s := Scope{ID: "update", CgroupID: must(CgroupID(cg)), Violation: Kill}
	with := func(files ...string) Scope {
		s := s
		for _, f := range files {
			s.Exec = append(s.Exec, must(Lookup(os.Getpid(), f)))
		}
		return s
	}
	w := must(g.Watch(with(both)))
	stop, done := make(chan bool), make(chan error)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			lists := [][]string{{both, one}, {both}}
			if err := w.Update(with(lists[i%2]...)); err != nil {
				done <- err
				return
			}
		}
	}()
	f := must(os.Open(both))
	defer f.Close()
	for i := range 200 {
		if st, _, err := runIn(cg, f); err != nil || st.ExitStatus() != probeStatus {
			t.Fatalf("run %d: %v, wait status %#x", i, err, uint32(st))
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, listed := range []bool{true, false, true} {
		files := []string{both}
		if listed {
			files = append(files, one)
		}
		if err := w.Update(with(files...)); err != nil {
			t.Fatal(err)
		}
		f := must(os.Open(one))
		if st, _, err := runIn(cg, f); err != nil || st.Signaled() == listed {
			t.Errorf("listed %v: %v, wait status %#x", listed, err, uint32(st))
		}
		f.Close()
	}
	var keys []witnessAllowed
	var k witnessAllowed
	if err := each(g.objs.Allow, &k, func(uint8) { keys = append(keys, k) }); err != nil || len(keys) != 2 {
		t.Errorf("%d entries, want those of one list: %v", len(keys), err)
	}
	for _, bad := range []Scope{{ID: "other", CgroupID: s.CgroupID}, {ID: s.ID, CgroupID: s.CgroupID, Readable: []string{"../x"}}} {
		if err := w.Update(bad); err == nil {
			t.Errorf("update to %+v is accepted", bad)
		}
	}
	if err := errors.Join(w.Update(with(both)), w.Close()); err != nil {
		t.Fatal(err)
	}
	if err := w.Update(with(both)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("update after Close: %v", err)
	}
}

// TestReadable: absent names are no event in readable folders, however they are
// nested, and are one everywhere else.
func TestReadable(t *testing.T) {
	g := ready(t)
	j := follow(g)
	cg := cgroup(t, "")
	dir := t.TempDir()
	chmod(t, dir)
	w := must(g.Watch(Scope{
		ID: "readable", CgroupID: must(CgroupID(cg)), AuditENOENT: true,
		Exec:     []Inode{must(Lookup(os.Getpid(), must(os.Executable())))},
		Readable: []string{"/usr", "/lib/", dir + "/a", dir + "/a/b/c"}, Hidden: []string{dir + "/a/b"},
	}))
	long := strings.Repeat("x", 240)
	for _, tt := range []struct {
		name string
		told bool
	}{
		{"/usr/none", false},
		{"/usr/none/", false},
		{"/usrx", true},
		{"/usr/../root/none", true},
		{"/usr/.../none", true}, // more than needed, never less
		{"/none", true},
		{dir + "/a", false}, // the folder itself
		{dir + "/ab", true},
		{dir + "/a/none", false},
		{dir + "/a/" + long, false},
		{dir + "/a/b/none", true},
		{dir + "/a/b/c/none", false},
		{dir + "/a//b/none", true},
		{dir + "//a/none", true},
		{dir + "/a/./b/none", true},
		{dir + "/a/.b/none", false},
		{dir + "/a/.", true},
		{"usr/none", true},
		{"/usr/" + long + "/" + long + "/" + strings.Repeat("y", 100), true}, // cut
	} {

		c := helper(t, cg, "missing", tt.name)
		if err := c.Run(); err != nil {
			t.Fatal(err)
		}
		g.settle()
		es := j.all(func(e Event) bool {
			return e.PID == c.Process.Pid && e.Errno == unix.ENOENT && strings.HasPrefix(tt.name, e.Path) && len(e.Path) > 0
		})
		es = slices.DeleteFunc(es, func(e Event) bool { return e.Path != tt.name && !e.Cut })
		if got := len(es) > 0; got != tt.told {
			t.Errorf("%.80s: told %v, want %v", tt.name, got, tt.told)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDir: a relative name comes with the folder that it was relative to, spelled
// by the kernel, and counts as what both are together.
func TestDir(t *testing.T) {
	g := ready(t)
	j := follow(g)
	cg, dir := cgroup(t, ""), t.TempDir()
	deep := dir + strings.Repeat("/d", 3)
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	w := must(g.Watch(Scope{
		ID: "dir", CgroupID: must(CgroupID(cg)), AuditENOENT: true, Readable: []string{dir + "/d/d"},
		Exec: []Inode{must(Lookup(os.Getpid(), must(os.Executable())))},
	}))
	for i, tt := range []struct {
		in, name string
		told     bool
	}{{dir, "none", true}, {dir, "d/d/x", false}, {dir, "d/none", true}, {deep, "none", false}, {deep, "../x", true}, {"/", "none", true}, {"/tmp", "none", true}} {
		c := helper(t, cg, "missing", tt.name)
		c.Dir = tt.in
		if err := c.Run(); err != nil {
			t.Fatal(err)
		}
		g.settle()
		es := j.all(func(e Event) bool { return e.PID == c.Process.Pid && e.Path == tt.name })
		if (len(es) > 0) != tt.told || tt.told && es[0].Dir != tt.in {
			t.Errorf("%d: %s in %s: got %+v, want told %v", i, tt.name, tt.in, es, tt.told)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}
