package sandbox

import (
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/appliance/guard"
)

func loadGuard(t *testing.T) *guard.Guard {
	t.Helper()
	g, err := guard.Load()
	if err != nil {
		t.Skipf("no guard on this host: %v", err)
	}
	t.Cleanup(func() { g.Close() })
	if g.Tier() == guard.TierNone {
		t.Skipf("no guard on this host: %s", g.Why())
	}
	return g
}

// TestGuarded runs under the real guard: the launcher needs no exception, and
// what is not listed dies even where Landlock would let it run.
func TestGuarded(t *testing.T) {
	b := newBench(t)
	g := loadGuard(t)
	var sc guard.Scope
	watch := func(s guard.Scope) (io.Closer, error) {
		sc = s
		s.Violation = guard.Kill      // what every tier can
		last := s.Exec[len(s.Exec)-1] // /tools/one: Landlock still permits it
		s.Exec = slices.DeleteFunc(slices.Clone(s.Exec), func(n guard.Inode) bool { return n == last })
		return g.Watch(s)
	}
	p := policy()
	p.Require.Tier = "T3"
	p.Process.Exec = []string{"/bin/probe", "/tools/one"}
	box, out := b.start(Spec{Policy: p, Guard: watch}, "exec=/bin/probe print=x", "exec=/tools/one print=x", "print=on", "sleep=60")
	await(t, "agent", func() bool { return strings.Contains(out.String(), "print=on") })
	got := answers(out.String())
	if len(sc.Exec) != 2 || got["exec=/bin/probe print=x"] != "ok print=x: ok x" || got["exec=/tools/one print=x"] != "signal: killed" {
		t.Errorf("scope %+v, outcomes %v", sc, got)
	}
	for prog, want := range map[string]int{"/bin/probe": 0, "/tools/one": 137} {
		if code, err := box.Exec(t.Context(), ExecSpec{Args: []string{prog, "print=x"}}); code != want || err != nil {
			t.Errorf("joining with %s: %d, %v; want %d", prog, code, err, want)
		}
	}
}

// TestLoader: the ELF interpreter may be loaded, not run. Landlock cannot tell
// the two apart; the guard can.
func TestLoader(t *testing.T) {
	b := newBench(t)
	g := loadGuard(t)
	root := filepath.Join(t.TempDir(), "root")
	if err := bring(root, "bash"); err != nil {
		t.Skipf("this host cannot lend its bash: %v", err)
	}
	ld, err := filepath.Glob(filepath.Join(root, "lib*", "ld-linux*"))
	if err != nil || len(ld) != 1 {
		t.Skipf("bash's interpreter is not where it is expected: %v, %v", ld, err)
	}
	in := strings.TrimPrefix(ld[0], root)
	p := policy()
	p.Filesystem.Read = []string{"/usr", "/lib", "/lib64", "/etc", "/dev"}
	p.Process.Exec = []string{"/usr/bin/bash"}
	out := &buffer{}
	box, err := b.l.Start(t.Context(), Spec{
		Name: "loader", Policy: p, Image: Image{Ref: "host", Layers: []string{root}}, Stdout: out, Stderr: out,
		Args: []string{"bash", "-c", in + " /usr/bin/bash -c 'echo esc\"\"aped'; echo status $?"},
		Guard: func(s guard.Scope) (io.Closer, error) {
			s.Violation = guard.Kill
			return g.Watch(s)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if box.Wait(); !strings.Contains(out.String(), "status 137") || strings.Contains(out.String(), "escaped") {
		t.Errorf("ld.so as a program: %q; want a kill", out)
	}
}
