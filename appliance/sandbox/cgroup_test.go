package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// tree makes empty files, as the kernel makes a cgroup's.
func tree(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range files {
		p := filepath.Join(dir, f)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestLimitsV2 checks what is written where on a host with v2 controllers,
// which this project's machines are not: against files, not a kernel.
func TestLimitsV2(t *testing.T) {
	box := "box/a-1/"
	dir := tree(t, "cgroup.subtree_control", "box/cgroup.subtree_control", box+"pids.max", box+"memory.max", box+"memory.swap.max", box+"cpu.max")
	if err := os.WriteFile(filepath.Join(dir, "cgroup.controllers"), []byte("cpuset cpu io memory pids\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	h := &hierarchies{v2: dir, v1: map[string]string{"memory": "/nonexistent"}} // v2 has it, so v1's is not used
	if err := h.check(); err != nil {
		t.Fatal(err)
	}
	g, err := h.newGroup("box", "a-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.limit(limits{tasks: 12, memory: 1 << 20, cpu: 1.5}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"cgroup.subtree_control": "+pids +memory +cpu +io", "box/cgroup.subtree_control": "+pids +memory +cpu +io",
		box + "pids.max": "12", box + "memory.max": "1048576", box + "memory.swap.max": "0", box + "cpu.max": "150000 100000",
	}
	for f, w := range want {
		if b, err := os.ReadFile(filepath.Join(dir, f)); err != nil || string(b) != w {
			t.Errorf("%s: %q, %v; want %q", f, b, err, w)
		}
	}
	for f, text := range map[string]string{
		"pids.current": "3\n", "memory.current": "4096\n", "cpu.stat": "usage_usec 7\nuser_usec 5\n",
		"pids.events": "max 2\n", "memory.events": "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, box, f), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := g.stats(); err != nil || s != (Stats{3, 4096, 7000}) {
		t.Errorf("stats %+v, %v", s, err)
	}
	if s, err := g.strikes(); err != nil || s != (strikes{2, 1}) {
		t.Errorf("strikes %+v, %v", s, err)
	}
}

// TestMissingController: less than asked for is an error that says what.
func TestMissingController(t *testing.T) {
	dir := tree(t, "cgroup.controllers")
	h := &hierarchies{v2: dir, v1: map[string]string{"pids": "/x", "cpu": "/y"}}
	if err := h.check(); err == nil || !strings.Contains(err.Error(), `"memory" is in no hierarchy`) {
		t.Errorf("got %v", err)
	}
	h = &hierarchies{v2: tree(t, "cgroup.subtree_control", "box/cgroup.subtree_control")}
	g, err := h.newGroup("box", "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.limit(limits{tasks: 1, memory: 1}); err == nil || !strings.Contains(err.Error(), "limit pids.max") {
		t.Errorf("a limit that could not be set: %v", err)
	}
}

// TestClose: no cgroup outlives an orderly stop, not even one that a failed
// teardown left, and nothing starts after it.
func TestClose(t *testing.T) {
	b := newBench(t)
	if err := b.l.Close(); err != nil {
		t.Errorf("before any sandbox: %v", err)
	}
	b = newBench(t)
	box, _ := b.start(Spec{}, "sleep=60")
	if err := b.l.Close(); err == nil || !strings.Contains(err.Error(), "agent") {
		t.Errorf("while a sandbox runs: %v", err)
	}
	if err := box.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	for _, r := range b.l.h.roots() {
		if err := os.Mkdir(filepath.Join(r, b.l.parent, "left"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := b.l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range b.l.h.roots() {
		if _, err := os.Stat(filepath.Join(r, b.l.parent)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v; want no %s", r, err, b.l.parent)
		}
	}
	if _, err := b.l.Start(t.Context(), Spec{Name: "late", Policy: policy(), Image: b.image}); err == nil || !strings.Contains(err.Error(), "stopping") {
		t.Errorf("start after close: %v", err)
	}
}
