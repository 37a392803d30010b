package installer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func TestUpgrade(t *testing.T) {
	root := fast(t)
	store := Layout{root}.Store()
	if Runs(root, store) {
		t.Error("nothing is installed, and runs from a store")
	}
	p := begun(t, root)
	if !Runs(root, filepath.Join(store, "..", "store")) || Runs(root, root) || Runs(root, "none") {
		t.Error("the store that the installation runs from")
	}
	edited := strings.Replace(read(t, config.File(root)), "holdSeconds: 120", "holdSeconds: 33", 1)
	write(t, config.File(root), edited)
	m := release(3)
	res, err := upgrade(t.Context(), root, m, ChangeEnv{Service: p})
	if err != nil {
		t.Fatal(err)
	}
	if n := whole(t, root); n != 3 || !strings.Contains(res.To, "0.1.3") || len(p.entered) != 2 {
		t.Errorf("got %d, %+v, entered %v", n, res, p.entered)
	}
	c, _ := config.Load(config.File(root))
	if c.HoldSeconds != 33 || !slices.Equal(c.Engine.Models, []string{"tiny:0.1.3"}) || !strings.Contains(c.Engine.Binary, "0.1.3-3") {
		t.Errorf("got %+v", c)
	}
	if got := events(t, root); !slices.Equal(got, []string{"begun", "tried", "committed"}) {
		t.Errorf("events %q", got)
	}
	// Installing the same media again finds all as it should be.
	a, ok, err := Kept(root, m.Release)
	if !ok || err != nil {
		t.Fatal(err)
	}
	plan, err := NewPlan(goodFacts(root), a, m.Release)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := Run(t.Context(), plan, m.env()); err != nil || r.Mode != "verified" || len(r.Changed) != 0 {
		t.Errorf("install of the same media: %+v, %v", r, err)
	}
	if c, _ := config.Load(config.File(root)); c.HoldSeconds != 33 {
		t.Error("the operator's edit was lost")
	}
}

// What an upgrade may not be is refused with nothing changed.
func TestUpgradeRefused(t *testing.T) {
	root := fast(t)
	p := begun(t, root)
	good := release(3)
	res, err := upgrade(t.Context(), root, good, ChangeEnv{Service: p})
	if err != nil {
		t.Fatal(res, err)
	}
	before := tree(t, root)
	other, late, named, poor := release(3), release(9), release(4), release(4)
	other.Digest = "sha256:" + strings.Repeat("0", 64)
	late.UpgradesFrom = 4
	named.Name = "other"
	poor.Items = poor.Items[1:] // without the main program
	for _, c := range []struct {
		name string
		m    *madeUp
		err  error
		word string
	}{
		{"older", release(2), manifest.ErrRollback, "clawbox rollback"},
		{"same", release(3), ErrInstalled, "clawbox install"},
		{"same number, other content", other, nil, "two contents"},
		{"needs one in between", late, manifest.ErrSkipped, "in between"},
		{"of another name", named, nil, "the same name"},
		{"without programs", poor, nil, mainPath},
	} {
		_, err := upgrade(t.Context(), root, c.m, ChangeEnv{Service: p})
		if err == nil || c.err != nil && !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
	diffTrees(t, tree(t, root), before)
	if _, err := NewUpgrade(goodFacts(root), t.TempDir(), "", good.Release); err == nil || !strings.Contains(err.Error(), "clawbox install") {
		t.Errorf("without an installation: %v", err)
	}
}

// A release that does not hold is taken back, whatever is wrong with it; the
// ledger keeps what it got, and the next upgrade works.
func TestReturn(t *testing.T) {
	bad := func(name string) Gate { return gate{name, errors.New(name + " does not hold")} }
	for _, c := range []struct {
		name string
		do   func(*played, *ChangeEnv)
		word string
	}{
		{"dies", func(p *played, _ *ChangeEnv) { p.dies = true }, "exit status 3"},
		{"dies, and so does the first start after it", func(p *played, _ *ChangeEnv) { p.dies, p.stumbles = true, true }, "exit status 3"},
		{"sick", func(p *played, e *ChangeEnv) { p.sick, e.Deadline = true, 300*time.Millisecond }, "no guard"},
		{"gate", func(_ *played, e *ChangeEnv) { e.Gates = []Gate{bad("tier")} }, "gate tier"},
		{"agents", func(_ *played, e *ChangeEnv) { e.Agents = &crew{names: []string{"ada"}, fail: 1} }, "ada does not start"},
		{"cancelled", func(_ *played, e *ChangeEnv) { e.Gates = []Gate{gate{"ask", context.Canceled}} }, "canceled"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := fast(t)
			p := begun(t, root)
			p.Stop(t.Context())
			p.Start(t.Context()) // twice, so that there is something to lose
			before := read(t, filepath.Join(root, "var/lib/clawbox/agents/ada/agent.json"))
			size := ledgerSize(t, root)
			env := ChangeEnv{Service: p}
			c.do(p, &env)
			_, err := upgrade(t.Context(), root, release(2), env)
			var back *ReturnedError
			if !errors.As(err, &back) || !strings.Contains(err.Error(), c.word) || !strings.Contains(back.From, "0.1.1") {
				t.Fatalf("got %v", err)
			}
			if p.stumbles || p.looks > 0 {
				t.Errorf("stumbles: %t, %d looks left", p.stumbles, p.looks)
			}
			if n := whole(t, root); n != 1 || p.entered[len(p.entered)-1] != 1 {
				t.Errorf("got %d, entered %v", n, p.entered)
			}
			if ledgerSize(t, root) < size {
				t.Error("the ledger was rewound")
			}
			if got := events(t, root); !slices.Equal(got, []string{"begun", "tried", "returned"}) {
				t.Errorf("events %q", got)
			}
			if there(filepath.Join(root, "var/lib/clawbox/agents/new-in/agent.json")) {
				t.Error("a record of the release that was taken back stays in place")
			}
			p.Stop(t.Context())
			if got := read(t, filepath.Join(root, "var/lib/clawbox/agents/ada/agent.json")); got != before {
				t.Errorf("the agent's record is\n%s\nwas\n%s", got, before)
			}
			if _, err := upgrade(t.Context(), root, release(2), ChangeEnv{Service: &played{root: root, stays: true}}); err != nil {
				t.Errorf("the next upgrade: %v", err)
			}
		})
	}
}

type gate struct {
	name string
	err  error
}

func (g gate) Name() string                       { return g.name }
func (g gate) Pass(context.Context, Change) error { return g.err }

// crew are agents that do not start a number of times.
type crew struct {
	names   []string
	fail    int
	started []string
}

func (c *crew) Running(context.Context) ([]string, error) { return c.names, nil }
func (c *crew) Start(_ context.Context, names []string) error {
	if c.fail--; c.fail >= 0 {
		return errors.New("ada does not start")
	}
	c.started = append(c.started, names...)
	return nil
}

// Before anything is stopped a failure leaves the installed release running.
func TestUpgradeStopsEarly(t *testing.T) {
	root := fast(t)
	p := begun(t, root)
	m := makeUp(2, "apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: x}\nnetwrok: {}\n")
	_, err := upgrade(t.Context(), root, m, ChangeEnv{Service: p})
	if err == nil || !strings.Contains(err.Error(), "netwrok") || !strings.Contains(err.Error(), "runs on as before") {
		t.Fatalf("got %v", err)
	}
	if n := whole(t, root); n != 1 || !p.Running(t.Context()) || len(p.entered) != 1 {
		t.Errorf("got %d, entered %v", n, p.entered)
	}
}

// Back to the kept release, with the present state or with that of then; and
// forward again.
func TestRollback(t *testing.T) {
	root := fast(t)
	p := begun(t, root)
	if _, err := NewRollback(goodFacts(root), root, "", false); err == nil || !strings.Contains(err.Error(), "no upgrade") {
		t.Errorf("before any upgrade: %v", err)
	}
	agents := &crew{names: []string{"ada"}}
	env := ChangeEnv{Service: p, Agents: agents}
	if _, err := upgrade(t.Context(), root, release(2), env); err != nil {
		t.Fatal(err)
	}
	for _, old := range []bool{true, false, false} {
		was := whole(t, root)
		plan, err := NewRollback(goodFacts(root), root, "Bob", old)
		if err != nil {
			t.Fatal(err)
		}
		res, err := Apply(t.Context(), plan, env)
		if err != nil || res.Kind != Rollback {
			t.Fatal(res, err)
		}
		if n := whole(t, root); n != 3-was {
			t.Errorf("got %d from %d", n, was)
		}
	}
	if len(agents.started) != 4 {
		t.Errorf("agents started: %v", agents.started)
	}
	// A kept slot that somebody changed is put right from the store, or refused.
	prog := filepath.Join(root, "opt/clawbox/slots/0.1.2-2/bin/clawbox")
	write(t, prog, "evil")
	plan, err := NewRollback(goodFacts(root), root, "", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Apply(t.Context(), plan, env); err != nil {
		t.Fatal(err)
	}
	if read(t, prog) == "evil" {
		t.Error("a changed program was entered")
	}
}

// Only the present release and the kept one stay.
func TestPrune(t *testing.T) {
	root := fast(t)
	p := begun(t, root)
	for n := int64(2); n < 5; n++ {
		if n == 4 { // an agent that the operator keeps on an old image
			os.MkdirAll(filepath.Join(root, "var/lib/clawbox/agents/old"), 0o700)
			write(t, filepath.Join(root, "var/lib/clawbox/agents/old/agent.json"), `{"image":"openclaw:0.1.2"}`)
		}
		if _, err := upgrade(t.Context(), root, release(n), ChangeEnv{Service: p}); err != nil {
			t.Fatal(err)
		}
	}
	for dir, want := range map[string]int{"opt/clawbox/slots": 2, "var/lib/clawbox/install/states": 1, "var/lib/clawbox/install/releases": 2} {
		es, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil || len(es) != want {
			t.Errorf("%s: %v, %v; want %d", dir, es, err, want)
		}
	}
	s, err := content.Open(Layout{root}.Store())
	if err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]bool{"tiny:0.1.1": false, "tiny:0.1.2": false, "tiny:0.1.3": true, "tiny:0.1.4": true, "openclaw:0.1.2": true} {
		if _, err := s.Resolve(ref); (err == nil) != want {
			t.Errorf("%s: %v; want it there: %v", ref, err, want)
		}
	}
}

// collected is the store below root after a collection without grace: what no
// name leads to is gone.
func collected(t *testing.T, root string) *content.Store {
	t.Helper()
	s, err := content.Open(Layout{root}.Store())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.GC(t.Context(), content.GCOptions{}); err != nil {
		t.Fatal(err)
	}
	return s
}

// whether the store has all of a made-up release.
func (m *madeUp) in(s *content.Store) bool {
	for h := range m.blobs {
		if _, err := s.Stat(v1.Hash{Algorithm: "sha256", Hex: h}); err != nil {
			return false
		}
	}
	return true
}

// Two releases give one name to different images. It leads to the one in place
// while the other is loaded, tried and taken back, and whatever is collected
// meanwhile, both ways stay open until the release is pruned.
func TestSharedNames(t *testing.T) {
	root := fast(t)
	p := begun(t, root)
	one, two, three := release(1), release(2), release(3)
	named(t, Layout{root}, 1)
	s := collected(t, root)
	for _, it := range one.Items { // an installation from before there were pins
		if err := s.Untag(it.pin()); err != nil {
			t.Fatal(err)
		}
	}
	leads := func(when string, want *madeUp) {
		s := collected(t, root)
		if d, err := s.Resolve(sharedRef); err != nil || d.Digest != want.roots[sharedRef].Digest {
			t.Errorf("%s: %s leads to %s, %v; want release %d's", when, sharedRef, d.Digest, err, want.Sequence)
		}
	}
	env := ChangeEnv{Service: p, Gates: []Gate{gate{"x", errors.New("does not hold")}}}
	env.hook = func(step, phase string) {
		switch {
		case phase != "acted" && step != "commit":
		case slices.Index([]string{"carry", "arm", "try", "gates", "commit"}, step) < 0:
			leads("before the state is touched, after "+step, one)
		default:
			leads("in the trial, after "+step, two)
		}
		if s := collected(t, root); phase == "acted" && !(one.in(s) && (two.in(s) || step == "server")) {
			t.Errorf("after %s something was collected", step)
		}
	}
	if _, err := upgrade(t.Context(), root, two, env); err == nil {
		t.Fatal("a gate that does not hold passed")
	}
	leads("taken back", one)
	if n := whole(t, root); n != 1 {
		t.Errorf("release %d is in place", n)
	}
	env.Gates = nil
	if _, err := upgrade(t.Context(), root, two, env); err != nil {
		t.Fatal(err)
	}
	for _, want := range []*madeUp{one, two} { // back, and forward again
		plan, err := NewRollback(goodFacts(root), root, "Bob", want == one)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Apply(t.Context(), plan, ChangeEnv{Service: p}); err != nil {
			t.Fatal(err)
		}
		leads("rolled back", want)
		if s := collected(t, root); whole(t, root) != want.Sequence || !one.in(s) || !two.in(s) {
			t.Error("a release that is kept was collected")
		}
	}
	if _, err := upgrade(t.Context(), root, three, ChangeEnv{Service: p}); err != nil {
		t.Fatal(err)
	}
	if s := collected(t, root); whole(t, root) != 3 || one.in(s) || !two.in(s) || !three.in(s) {
		t.Errorf("pruned: one %v, two %v, three %v", one.in(s), two.in(s), three.in(s))
	}
}

// A name that the operator gave to something else is taken by a release that
// holds, and given back by one that doesn't.
func TestNameOfOthers(t *testing.T) {
	root := fast(t)
	p := begun(t, root)
	s, err := content.Open(Layout{root}.Store())
	if err != nil {
		t.Fatal(err)
	}
	own := v1.Descriptor{Size: 6, Digest: (&madeUp{blobs: map[string][]byte{}}).blob([]byte("my own"))}
	if err := errors.Join(s.Put(t.Context(), own.Digest, 6, strings.NewReader("my own")), s.Tag("late:1", own)); err != nil {
		t.Fatal(err)
	}
	env := ChangeEnv{Service: p, Gates: []Gate{gate{"x", errors.New("does not hold")}}}
	env.hook = func(string, string) { collected(t, root) }
	if _, err := upgrade(t.Context(), root, release(2), env); err == nil {
		t.Fatal("a gate that does not hold passed")
	}
	if d, err := collected(t, root).Resolve("late:1"); err != nil || d.Digest != own.Digest {
		t.Errorf("late:1 leads to %s, %v; want %s", d.Digest, err, own.Digest)
	}
	if _, err := upgrade(t.Context(), root, release(2), ChangeEnv{Service: p}); err != nil || whole(t, root) != 2 {
		t.Errorf("the upgrade after it: %v", err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}
