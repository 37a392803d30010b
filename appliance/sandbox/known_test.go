package sandbox

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/appliance/guard"
)

// TestKnown holds what is kept between starts against what is looked up, and
// that nothing is kept which an agent could have influenced.
func TestKnown(t *testing.T) {
	b := newBench(t)
	p := policy()
	p.Process.Exec = []string{"/bin/", "/tools/"}
	var first, again *Box
	first, _ = b.start(Spec{Policy: p}, "exit=0")
	first.Wait()
	if len(b.l.known) != 1 {
		t.Fatalf("%d answers kept; want 1", len(b.l.known))
	}
	again, _ = b.start(Spec{Policy: p}, "exit=0")
	again.Wait()
	if !reflect.DeepEqual(first.spec, again.spec) || !slices.Equal(first.notes, again.notes) {
		t.Errorf("the second start differs:\n%+v\n%+v", first.spec, again.spec)
	}
	// Another policy, and another uid, are no reason to take the first one's.
	q := *p
	q.Process.Exec = []string{"/bin/probe"}
	other, _ := b.start(Spec{Name: "other", Policy: &q}, "exit=0")
	other.Wait()
	if other.spec.UID == first.spec.UID || slices.Equal(other.spec.Landlock.Exec, first.spec.Landlock.Exec) {
		t.Errorf("another agent got %+v", other.spec)
	}
	// A pinned content is compared, whatever is known.
	r := *p
	r.Process.ExecHashes = map[string]string{"/bin/probe": "sha256:" + strings.Repeat("0", 64)}
	r.Process.Exec = []string{"/bin/", "/tools/", "/bin/probe"}
	plain := r
	plain.Process.ExecHashes = nil
	ok, _ := b.start(Spec{Policy: &plain}, "exit=0")
	ok.Wait()
	if _, err := b.l.Start(t.Context(), Spec{Name: "agent", Image: b.image, Policy: &r}); err == nil || !strings.Contains(err.Error(), "policy test wants sha256:000") {
		t.Errorf("pinned: %v", err)
	}
	// Where the agent has made the link, it leads nowhere.
	q.Filesystem.Read = append(slices.Clone(p.Filesystem.Read), "/workspace/door")
	if err := os.Symlink("/private", filepath.Join(b.l.Files("agent", "/workspace"), "door")); err != nil {
		t.Fatal(err)
	}
	out, _, _ := b.run(Spec{Policy: &q}, "read=/workspace/door/key", "read=/private/key")
	for k, v := range out {
		if strings.HasPrefix(v, "ok") {
			t.Errorf("%s: %s; the agent widened its own policy", k, v)
		}
	}
}

// TestInodes compares with the guard's own look-up.
func TestInodes(t *testing.T) {
	b := newBench(t)
	box, _ := b.start(Spec{}, "sleep=60")
	paths := []string{"/bin/probe", "/usr/bin/hidden", "/tools/one", "/data/in", "/dev/null", "/proc/cpuinfo", "/tmp", "/workspace"}
	got, err := inodes(box.PID(), paths)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range paths {
		if want, err := guard.Lookup(box.PID(), p); err != nil || got[i] != want {
			t.Errorf("%s: got %v, the guard says %v, %v", p, got[i], want, err)
		}
	}
}
