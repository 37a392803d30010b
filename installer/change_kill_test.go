package installer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/bundle/content"
)

// changeMain is this binary as an installer that upgrades and kills itself.
func changeMain(root, kill string) int {
	env := ChangeEnv{Service: &played{root: root}, Agents: &crew{names: []string{"ada"}}}
	env.hook = func(step, phase string) {
		if kill == step+":"+phase {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	if _, err := upgrade(context.Background(), root, release(2), env); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func killedUpgrade(t *testing.T, root, kill string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^$")
	cmd.Env = append(os.Environ(), "CLAWBOX_TEST_CHANGE="+root, "CLAWBOX_TEST_KILL="+kill)
	out, _ := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != -1 {
		t.Fatalf("killed at %s: got status %d\n%s", kill, got, out)
	}
}

// Killed around every line of the journal, with the next line torn as a power
// cut tears it or not begun: the next start finds one of the two releases whole,
// and which one changes at the commit alone. Then the upgrade is given again.
func TestChangeKillMatrix(t *testing.T) {
	var points []string
	for _, s := range changeSteps {
		if s.only != nil && !s.only(Change{Kind: Upgrade, Profile: "solo"}) {
			continue
		}
		for _, phase := range []string{"before", "started", "acted", "done"} {
			points = append(points, s.id+":"+phase)
		}
	}
	points = append(points, "commit:before", "commit:done", "finish:done")
	first := fast(t)
	begun(t, first).Stop(t.Context())
	sizeBefore := ledgerSize(t, first)
	for i, kill := range points {
		t.Run(kill, func(t *testing.T) {
			root := filepath.Join(fast(t), "root")
			begun(t, root).Stop(t.Context())
			killedUpgrade(t, root, kill)
			if i%2 == 1 {
				tear(t, Layout{root}.Changes())
			}
			if !release(1).in(collected(t, root)) {
				t.Error("what the installed release needs was collected")
			}
			s, err := Boot(t.Context(), root)
			if err != nil {
				t.Fatal(err)
			}
			want := int64(1)
			if slices.Index(points, "commit:done") <= i {
				want = 2
			}
			if n := whole(t, root); n != want || s.Program != "" && want == 1 {
				t.Errorf("after %s: release %d, %+v; want %d", kill, n, s, want)
			}
			if ledgerSize(t, root) < sizeBefore {
				t.Error("the ledger was rewound")
			}
			again, err := Boot(t.Context(), root)
			if err != nil || again.Program != "" {
				t.Errorf("the start after that: %+v, %v", again, err)
			}
			if want == 2 {
				return
			}
			if _, err := upgrade(t.Context(), root, release(2), ChangeEnv{Service: &played{root: root}}); err != nil || whole(t, root) != 2 {
				t.Errorf("given again: %v", err)
			}
		})
	}
}

// tear leaves the beginning of a line, as a power cut does.
func tear(t *testing.T, journal string) {
	t.Helper()
	f, err := os.OpenFile(journal, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(`{"time":"2026-01-01T00:00:00Z","event":"com`); err != nil {
		t.Fatal(err)
	}
}

// Cut off between any two of a commit's, or a return's, own steps.
func TestChangeCutInside(t *testing.T) {
	for n := range finishing {
		root := filepath.Join(fast(t), "root")
		begun(t, root).Stop(t.Context())
		killedUpgrade(t, root, "commit:done")
		c, err := replayChanges(Layout{root}.Changes())
		if err != nil || !c.committed {
			t.Fatalf("%+v, %v", c, err)
		}
		for _, f := range finishing[:n] {
			if err := f(Layout{root}, *c.open); err != nil {
				t.Fatal(err)
			}
		}
		if s, err := Boot(t.Context(), root); err != nil || whole(t, root) != 2 {
			t.Errorf("after %d steps of the commit: %+v, %v", n, s, err)
		}
	}
	all := SoloState(config.Default("/"), Layout{})
	for n := range all {
		root := filepath.Join(fast(t), "root")
		begun(t, root).Stop(t.Context())
		killedUpgrade(t, root, "gates:done")
		cfg, err := config.Load(config.File(root))
		if err != nil {
			t.Fatal(err)
		}
		c, err := replayChanges(Layout{root}.Changes())
		if err != nil {
			t.Fatal(err)
		}
		if err := restoreState(t.Context(), SoloState(cfg, Layout{root})[:n], c.open.state(Layout{root})); err != nil {
			t.Fatal(err)
		}
		if s, err := Boot(t.Context(), root); err != nil || whole(t, root) != 1 {
			t.Errorf("after %d kinds of state: %+v, %v", n, s, err)
		}
	}
}

// The installed release's image is lost while another one is tried, or the list of
// names is: the start after it never leaves a name on what was refused.
func TestNamesLost(t *testing.T) {
	for what, want := range map[string]string{"image": "", "list": release(1).roots[sharedRef].Digest.String()} {
		root := filepath.Join(fast(t), "root")
		begun(t, root).Stop(t.Context())
		killedUpgrade(t, root, "gates:done")
		l := Layout{root}
		s, err := content.Open(l.Store())
		if err != nil {
			t.Fatal(err)
		}
		path := s.Path(release(1).roots[sharedRef].Digest)
		if what == "list" {
			path = filepath.Join(Change{ID: 1}.state(l), namesFile)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if _, err := Boot(t.Context(), root); err != nil {
			t.Errorf("without the %s: %v", what, err)
		}
		got := ""
		if d, err := s.Resolve(sharedRef); err == nil {
			got = d.Digest.String()
		}
		if got != want {
			t.Errorf("without the %s %s leads to %q; want %q", what, sharedRef, got, want)
		}
	}
}

// Every prefix of the journal, which is every power cut, is decided, and a
// commit that is not whole is none.
func TestChangeJournalTorn(t *testing.T) {
	root := filepath.Join(fast(t), "root")
	begun(t, root).Stop(t.Context())
	killedUpgrade(t, root, "commit:done")
	path := Layout{root}.Changes()
	b := read(t, path)
	for cut := range len(b) {
		write(t, path, b[:cut])
		c, err := replayChanges(path)
		if err != nil || c.committed || c.size > int64(cut) {
			t.Fatalf("cut to %d of %d bytes: %+v, %v", cut, len(b), c, err)
		}
	}
	write(t, path, strings.Replace(b, `"commit"`, `"comit"`, 1))
	if _, err := Boot(t.Context(), root); err == nil || !strings.Contains(err.Error(), "comit") {
		t.Errorf("a journal that can't be read: %v", err)
	}
}

// Somebody else's start never enters a release, and never runs beside a change.
func TestBootWatched(t *testing.T) {
	root := fast(t)
	p := begun(t, root)
	var refused []string
	env := ChangeEnv{Service: p}
	// Between "arm" and "try" whoever comes first enters the release.
	env.hook = func(step, phase string) {
		if phase == "acted" && step != "arm" {
			if _, err := Boot(t.Context(), root); err != nil {
				refused = append(refused, step)
			}
		}
	}
	if _, err := upgrade(t.Context(), root, release(2), env); err != nil {
		t.Fatal(err)
	}
	if want := []string{"stop", "state", "carry", "try", "gates"}; !slices.Equal(refused, want) {
		t.Errorf("starts refused at %q; want %q", refused, want)
	}
}

// State is not put back under an appliance that has not ended yet.
func TestBootWaitsForTheLast(t *testing.T) {
	root := filepath.Join(fast(t), "root")
	begun(t, root).Stop(t.Context())
	killedUpgrade(t, root, "gates:done")
	cfg, err := config.Load(config.File(root))
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := lock(filepath.Join(cfg.Paths.State, stateLock)) // as the sandbox driver takes it
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := Boot(ctx, root); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("under one that runs: %v", err)
	}
	if !there(Layout{root}.Tried()) {
		t.Error("the marker is gone, and nothing was put back")
	}
	time.AfterFunc(100*time.Millisecond, unlock)
	if _, err := Boot(t.Context(), root); err != nil || whole(t, root) != 1 {
		t.Errorf("after it ended: %v", err)
	}
}
