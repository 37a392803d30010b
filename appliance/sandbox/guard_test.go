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
// what is not listed does not run even where Landlock would let it. It dies, or
// gets EPERM where the policy asks for that and the tier can.
func TestGuarded(t *testing.T) {
	b := newBench(t)
	g := loadGuard(t)
	for v, want := range map[guard.Violation]string{guard.Kill: "signal: killed", guard.Refuse: refusal(g)} {
		var sc guard.Scope
		watch := func(s guard.Scope) (io.Closer, error) {
			sc = s
			s.Violation = v
			last := s.Exec[len(s.Exec)-1] // /tools/one: Landlock still permits it
			s.Exec = slices.DeleteFunc(slices.Clone(s.Exec), func(n guard.Inode) bool { return n == last })
			return g.Watch(s)
		}
		p := policy()
		p.Require.Tier = "T3"
		p.Process.Exec = []string{"/bin/probe", "/tools/one"}
		box, out := b.start(Spec{Name: string(v), Policy: p, Guard: watch}, "exec=/bin/probe print=x", "exec=/tools/one print=x", "print=on", "sleep=60")
		await(t, "agent", func() bool { return strings.Contains(out.String(), "print=on") })
		got := answers(out.String())
		if len(sc.Exec) != 2 || got["exec=/bin/probe print=x"] != "ok print=x: ok x" || got["exec=/tools/one print=x"] != want {
			t.Errorf("%s: scope %+v, outcomes %v, want %s", v, sc, got, want)
		}
		if code, err := box.Exec(t.Context(), ExecSpec{Args: []string{"/bin/probe", "print=x"}}); code != 0 || err != nil {
			t.Errorf("%s: joining with a listed program: %d, %v", v, code, err)
		}
		code, err := box.Exec(t.Context(), ExecSpec{Args: []string{"/tools/one", "print=x"}})
		if killed := code == 137 && err == nil; killed != (want == "signal: killed") || code == 0 {
			t.Errorf("%s: joining with an unlisted program: %d, %v; want %s", v, code, err, want)
		}
		if err := box.Stop(t.Context(), 0); err != nil {
			t.Error(err)
		}
	}
}

// refusal is what a spawned program that the guard refuses ends with.
func refusal(g *guard.Guard) string {
	if g.Tier() == guard.TierTracepoint {
		return "signal: killed" // T3 cannot refuse, only end
	}
	return "EPERM"
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
