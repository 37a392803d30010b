package guard

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func ptr[T any](p *T) uintptr { return uintptr(unsafe.Pointer(p)) }

func killed(err error) bool {
	exit := (*exec.ExitError)(nil)
	return errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// TestExec tries the ways to start a program that are known to slip past
// weaker schemes.
func TestExec(t *testing.T) {
	g := ready(t)
	j := follow(g)
	cg, dir := cgroup(t, ""), t.TempDir()
	nested := cgroup(t, cg)
	marker := filepath.Join(dir, "marker")
	listed := program(t, dir+"/listed", marker)
	unlisted := program(t, dir+"/unlisted", marker)
	copied := program(t, dir+"/copy-of-listed", marker)
	script := func(name, interpreter string) string {
		if err := os.WriteFile(dir+name, []byte("#!"+interpreter+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return dir + name
	}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Link(listed, dir+"/hard"))
	must(os.Symlink(listed, dir+"/soft"))
	must(os.Symlink(unlisted, dir+"/soft-unlisted"))
	loader, touch := dynamic(t)
	watch(t, g, cg, listed, touch)

	for _, tt := range []struct {
		name string
		args []string
		runs bool
		file string // base name of what was loaded
	}{
		{"listed", []string{"exec", listed}, true, "listed"},
		{"unlisted", []string{"exec", unlisted}, false, "unlisted"},
		{"copy", []string{"exec", copied}, false, "copy-of-listed"},
		{"hard link", []string{"exec", dir + "/hard"}, true, "hard"},
		{"symbolic link", []string{"exec", dir + "/soft"}, true, "listed"},
		{"symbolic link to unlisted", []string{"exec", dir + "/soft-unlisted"}, false, "unlisted"},
		{"script", []string{"exec", script("/script", listed)}, true, "listed"},
		{"script of unlisted", []string{"exec", script("/script2", unlisted)}, false, "unlisted"},
		{"script of script of unlisted", []string{"exec", script("/script3", dir+"/script2")}, false, "unlisted"},
		{"memfd", []string{"memfd", listed}, false, "memfd:clawbox-probe"},
		{"dynamic", []string{"exec", touch, marker}, true, "touch"},
		{"dynamic linker", []string{"exec", loader, touch, marker}, false, filepath.Base(loader)},
		{"child", []string{"spawn", unlisted}, false, "unlisted"},
		{"thread", []string{"thread", unlisted}, false, "unlisted"},
		{"daemon", []string{"daemon", "", unlisted}, false, "unlisted"},
		{"nested cgroup", []string{"cgroup", nested, unlisted}, false, "unlisted"},
		{"nested cgroup, listed", []string{"cgroup", nested, listed}, true, "listed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			os.Remove(marker)
			before := len(j.all(func(e Event) bool { return e.File == tt.file }))
			c := helper(t, cg, tt.args...)
			c.Stderr = nil // "spawn" tells of the killed child
			err := c.Run()
			es := j.await(t, before+1, func(e Event) bool { return e.File == tt.file })
			e := es[len(es)-1]
			if e.Killed == tt.runs || e.Kind != Exec || e.Errno != 0 || e.Scope != filepath.Base(cg) {
				t.Errorf("event %+v, want Killed %v", e, !tt.runs)
			}
			if exists(marker) != tt.runs {
				t.Errorf("the program ran: %v, want %v", exists(marker), tt.runs)
			}
			if tt.args[0] == "spawn" || tt.args[0] == "daemon" {
				return // a descendant was killed
			}
			if e.PID != c.Process.Pid || killed(err) == tt.runs {
				t.Errorf("process %d ended with %v, want process %d killed: %v", c.Process.Pid, err, e.PID, !tt.runs)
			}
		})
	}
	if n := g.Lost(); n != 0 {
		t.Errorf("lost %d events", n)
	}
}

// dynamic finds a dynamically linked program and its linker.
func dynamic(t *testing.T) (loader, touch string) {
	t.Helper()
	touch, err := filepath.EvalSymlinks("/usr/bin/touch")
	if err != nil {
		t.Skipf("no dynamically linked program to try: %v", err)
	}
	b, err := os.ReadFile(touch)
	if err != nil {
		t.Fatal(err)
	}
	_, s, ok := strings.Cut(string(b), "/lib")
	if !ok {
		t.Skip("/usr/bin/touch names no dynamic linker")
	}
	s, _, _ = strings.Cut("/lib"+s, "\x00")
	if loader, err = filepath.EvalSymlinks(s); err != nil {
		t.Fatal(err)
	}
	return loader, touch
}

// TestFirstInstruction makes sure that none of many killed programs got as far
// as its first system call, and that each has its event.
func TestFirstInstruction(t *testing.T) {
	const n = 500
	g := ready(t)
	j := follow(g)
	cg, dir := cgroup(t, ""), t.TempDir()
	watch(t, g, cg)
	f, err := os.Open(program(t, dir+"/unlisted", dir+"/marker"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range n {
		st, _, err := runIn(cg, f)
		if err != nil {
			t.Fatal(err)
		}
		if st.Signal() != unix.SIGKILL {
			t.Fatalf("run %d: wait status %#x, want SIGKILL", i, uint32(st))
		}
	}
	es := j.await(t, n, func(e Event) bool { return e.Killed })
	pids := map[int]bool{}
	for _, e := range es {
		pids[e.PID] = true
	}
	if len(es) != n || len(pids) != n || g.Lost() != 0 {
		t.Errorf("%d events of %d processes, %d lost, want %d", len(es), len(pids), g.Lost(), n)
	}
	if exists(dir + "/marker") {
		t.Error("a killed program created its file")
	}
}

// TestInit: the kernel spares the first process of a pid namespace most
// signals, but not this one.
func TestInit(t *testing.T) {
	g := ready(t)
	j := follow(g)
	cg, dir := cgroup(t, ""), t.TempDir()
	watch(t, g, cg)
	c := helper(t, cg, "exec", program(t, dir+"/unlisted", dir+"/marker"))
	c.SysProcAttr.Cloneflags = unix.CLONE_NEWPID
	if err := c.Run(); !killed(err) || exists(dir+"/marker") {
		t.Errorf("ended with %v, ran: %v", err, exists(dir+"/marker"))
	}
	j.await(t, 1, func(e Event) bool { return e.Killed })
}

// TestScopes: what one scope may run another may not, and the rest of the host
// is left alone.
func TestScopes(t *testing.T) {
	g := ready(t)
	j := follow(g)
	a, b, other, dir := cgroup(t, ""), cgroup(t, ""), cgroup(t, ""), t.TempDir()
	pa, pb := program(t, dir+"/a", dir+"/a.out"), program(t, dir+"/b", dir+"/b.out")
	watch(t, g, a, pa)
	watch(t, g, b, pb)
	for _, tt := range []struct {
		cgroup, prog string
		runs         bool
	}{{a, pa, true}, {a, pb, false}, {b, pb, true}, {b, pa, false}, {other, pa, true}, {other, pb, true}} {
		err := helper(t, tt.cgroup, "exec", tt.prog).Run()
		if killed(err) == tt.runs {
			t.Errorf("%s in %s: %v, want to run: %v", tt.prog, tt.cgroup, err, tt.runs)
		}
	}
	j.await(t, 8, func(e Event) bool { return e.Kind == Exec }) // helper and program each, but for "other"
	if es := j.all(func(e Event) bool { return e.Scope != filepath.Base(a) && e.Scope != filepath.Base(b) }); len(es) > 0 {
		t.Errorf("events from outside: %+v", es)
	}
}

// TestDevices lists a whole file system.
func TestDevices(t *testing.T) {
	g := ready(t)
	follow(g)
	cg, dir := cgroup(t, ""), t.TempDir()
	n, err := Lookup(os.Getpid(), program(t, dir+"/p", dir+"/marker"))
	if err != nil {
		t.Fatal(err)
	}
	self := must(Lookup(os.Getpid(), must(os.Executable())))
	w, err := g.Watch(Scope{ID: "dev", Violation: Kill, CgroupID: must(CgroupID(cg)), Exec: []Inode{self}, ExecDevices: []uint64{n.Dev}})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := helper(t, cg, "exec", dir+"/p").Run(); killed(err) || !exists(dir+"/marker") {
		t.Errorf("on the listed device: %v, ran: %v", err, exists(dir+"/marker"))
	}
	if err := helper(t, cg, "memfd", dir+"/p").Run(); !killed(err) {
		t.Errorf("on another device: %v, want killed", err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestGarbage: what nobody refers to any more still enforces. The Guard is
// not given to a test clean-up, which would keep it reachable.
func TestGarbage(t *testing.T) {
	load(t) // skips where there is no BPF
	cg, dir := cgroup(t, ""), t.TempDir()
	p := program(t, dir+"/unlisted", dir+"/marker")
	held.Lock()
	others := maps.Clone(held.m)
	held.Unlock()
	forget(t, must(CgroupID(cg)))
	for range 5 {
		runtime.GC()
		time.Sleep(time.Millisecond) // let cleanups run
	}
	if err := helper(t, cg, "exec", p).Run(); !killed(err) {
		t.Errorf("after garbage collection: %v, want killed", err)
	}
	held.Lock()
	all := slices.Collect(maps.Keys(held.m))
	held.Unlock()
	for _, v := range all {
		if g, ok := v.(*Guard); ok && !has(others, v) {
			g.Close()
		}
	}
}

func has(m map[any]struct{}, k any) bool { _, ok := m[k]; return ok }

// forget watches a scope and keeps no reference to anything.
func forget(t *testing.T, cgroup uint64) {
	g, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	_, err = g.Watch(Scope{ID: "forgotten", Violation: Kill, CgroupID: cgroup, Exec: []Inode{must(Lookup(os.Getpid(), must(os.Executable())))}})
	if err != nil {
		t.Fatal(err)
	}
}

// TestClose gives everything back.
func TestClose(t *testing.T) {
	g := load(t)
	follow(g)
	cg, dir := cgroup(t, ""), t.TempDir()
	w := watch(t, g, cg)
	p := program(t, dir+"/unlisted", dir+"/marker")
	if g.exit == nil {
		t.Error("sys_exit is not attached while a scope is watched")
	}
	if _, err := g.Watch(w.s); err == nil || !strings.Contains(err.Error(), "already watched") {
		t.Errorf("the same cgroup twice: %v", err)
	}
	for range 2 {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if g.exit != nil {
		t.Error("sys_exit stays attached with nothing to watch")
	}
	if err := helper(t, cg, "exec", p).Run(); killed(err) || !exists(dir+"/marker") {
		t.Errorf("after Close: %v, ran: %v", err, exists(dir+"/marker"))
	}
	it := g.objs.Allow.Iterate()
	var k witnessAllowed
	var v uint8
	if it.Next(&k, &v) {
		t.Errorf("a list entry was left behind: %+v", k)
	}
}

// TestUnrecorded: a program start that can't be reported does not happen.
func TestUnrecorded(t *testing.T) {
	noBrakes(t)
	defer func(n uint32) { execRing = n }(execRing)
	execRing = uint32(os.Getpagesize())
	g := load(t)
	cg, dir := cgroup(t, ""), t.TempDir()
	p := program(t, dir+"/listed", dir+"/marker")
	watch(t, g, cg, p)
	f := must(os.Open(p))
	defer f.Close()
	for i := range 2000 { // nobody drains g.Events()
		st, _, err := runIn(cg, f)
		if err != nil {
			t.Fatal(err)
		}
		if st.Signaled() {
			if g.Lost() == 0 {
				t.Error("killed for want of a record, but nothing is counted as lost")
			}
			t.Logf("killed after %d unread events", i)
			follow(g) // or Close complains
			return
		}
	}
	t.Error("2000 programs ran without a record")
}

// TestRefuse: contradictions get an error that says what to do.
func TestRefuse(t *testing.T) {
	g := ready(t)
	root, err := Cgroup2Dir()
	if err != nil {
		t.Fatal(err)
	}
	top, cg := must(CgroupID(root)), must(CgroupID(cgroup(t, "")))
	for _, tt := range []struct {
		s    Scope
		want string
	}{
		{Scope{CgroupID: cg}, "no ID"},
		{Scope{ID: "x"}, "no cgroup with id 0"},
		{Scope{ID: "x", CgroupID: 1 << 40}, "take it from CgroupID"},
		{Scope{ID: "x", CgroupID: top}, "can't be a scope"},
		{Scope{ID: "x", CgroupID: cg, Exec: []Inode{{Dev: 1}}}, "ExecDevices"},
	} {
		if _, err := g.Watch(tt.s); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: got %v, want %q", tt.s, err, tt.want)
		}
	}
	if _, err := CgroupID(t.TempDir()); err == nil || !strings.Contains(err.Error(), "no cgroup v2 directory") {
		t.Errorf("CgroupID of a plain directory: %v", err)
	}
}

// TestNone: without BPF there is no pretending.
func TestNone(t *testing.T) {
	g := LoadNone("the operator said so")
	if g.Tier() != TierNone || g.Why() != "the operator said so" {
		t.Errorf("tier %s, why %q", g.Tier(), g.Why())
	}
	if _, err := g.Watch(Scope{ID: "x", CgroupID: 1}); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), g.Why()) {
		t.Errorf("Watch: %v", err)
	}
	if err := g.Close(); err != nil || g.Lost() != 0 {
		t.Errorf("Close: %v, lost %d", err, g.Lost())
	}
	if _, open := <-g.Events(); open {
		t.Error("an event from nowhere")
	}
}
