package sandbox

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// members lists who is in the sandbox's group of one hierarchy.
func members(t *testing.T, b *Box, root string) []string {
	t.Helper()
	p, err := os.ReadFile(filepath.Join(root, b.g.path, "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(p))
}

// TestJoinsCgroups holds that what joins is in all of the sandbox's cgroups,
// also where these take nobody who is born there, and the daemon and the
// joining launcher in none.
func TestJoinsCgroups(t *testing.T) {
	b := newBench(t)
	box, _ := b.start(Spec{}, "sleep=60")
	before := members(t, box, b.l.h.v2)
	out := &buffer{}
	go box.Exec(t.Context(), ExecSpec{Args: []string{"/bin/probe", "print=on", "sleep=60"}, Stdout: out, Stderr: out})
	await(t, "exec", func() bool { return strings.Contains(out.String(), "print=on") })
	now := members(t, box, b.l.h.v2)
	if len(now) != len(before)+1 {
		t.Fatalf("%v before, %v now; want one more", before, now)
	}
	for _, r := range b.l.h.roots() {
		if m := members(t, box, r); !slices.Equal(slices.Sorted(slices.Values(m)), slices.Sorted(slices.Values(now))) {
			t.Errorf("%s holds %v, the v2 node %v", r, m, now)
		}
	}
	// No task more: the probe begins, and Go's runtime is refused its second thread.
	if err := box.g.set(knob{"pids", "pids.max", "pids.max", "1", "1", false}); err != nil {
		t.Fatal(err)
	}
	full := &buffer{}
	code, err := box.Exec(t.Context(), ExecSpec{Args: []string{"/bin/probe", "print=ran"}, Stdout: full, Stderr: full})
	if err != nil || code != 2 || !strings.Contains(full.String(), "failed to create new OS thread") {
		t.Errorf("in a full sandbox: status %d, %v, %q; want it to begin, and to be bound", code, err, full)
	}
}
