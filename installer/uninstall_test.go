package installer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Without purge the ledger, keys and agents' data stay, byte for byte; an
// installation on top of them goes on with the same key.
func TestUninstall(t *testing.T) {
	root := fast(t)
	p := begun(t, root)
	l := Layout{root}
	key, ada := read(t, l.LedgerS()), read(t, filepath.Join(root, "var/lib/clawbox/agents/ada/agent.json"))
	r, err := NewRemoval(root, false)
	if err != nil {
		t.Fatal(err)
	}
	before := tree(t, root)
	told := false
	if err := Remove(t.Context(), r, RemoveEnv{Operator: "Ann", Service: p, Tell: func(context.Context) error { told = true; return nil }}); err != nil {
		t.Fatal(err)
	}
	if !told || p.Running(t.Context()) {
		t.Errorf("told %v, running %v", told, p.Running(t.Context()))
	}
	after := tree(t, root)
	for path := range after {
		if _, ok := before[path]; !ok && !strings.Contains(path, "receipts/changes") {
			t.Errorf("%s came", path)
		}
	}
	for _, gone := range []string{"usr/local/bin/clawbox", "opt/clawbox", "etc/clawbox/appliance.yaml", "var/lib/clawbox/store", "var/lib/clawbox/install"} {
		if there(filepath.Join(root, gone)) {
			t.Errorf("%s stays", gone)
		}
	}
	for _, s := range r.Stays {
		if !there(s.Path) {
			t.Errorf("%s is gone", s.Path)
		}
	}
	if read(t, l.LedgerS()) != key || read(t, filepath.Join(root, "var/lib/clawbox/agents/ada/agent.json")) != ada {
		t.Error("the key or an agent's record changed")
	}
	if got := events(t, root); !slices.Equal(got, []string{"removed"}) {
		t.Errorf("events %q", got)
	}
	m := release(1)
	if _, err := Run(t.Context(), planFor(t, root, m), m.env()); err != nil {
		t.Fatal(err)
	}
	if read(t, l.LedgerS()) != key {
		t.Error("a new installation made another key: it can't go on with the ledger")
	}
	if _, err := upgrade(t.Context(), root, release(2), ChangeEnv{Service: &played{root: root}}); err != nil {
		t.Fatal(err)
	}
	if got := events(t, root); !slices.Equal(got, []string{"removed", "begun", "tried", "committed"}) {
		t.Errorf("events after that %q", got)
	}
}

// With purge nothing stays; and cut off anywhere it goes on.
func TestPurge(t *testing.T) {
	root := fast(t)
	p := begun(t, root)
	write(t, filepath.Join(root, "var/lib/clawbox/ledger.before-restore-1"), "")
	all, err := NewRemoval(root, true)
	if err != nil || len(all.Stays) > 0 {
		t.Fatalf("%+v, %v", all.Stays, err)
	}
	some := all
	some.Remove = all.Remove[:len(all.Remove)/2]
	for _, r := range []Removal{some, all} {
		if err := Remove(t.Context(), r, RemoveEnv{Operator: "Ann", Service: p}); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"opt/clawbox", "etc/clawbox", "var/lib/clawbox", "run/clawbox", "usr/local/bin/clawbox"} {
		if there(filepath.Join(root, d)) {
			t.Errorf("%s stays", d)
		}
	}
	if _, err := NewRemoval(root, true); err == nil || !strings.Contains(err.Error(), "nothing of an installation") {
		t.Errorf("again: %v", err)
	}
}

// An appliance that does not stop keeps everything.
func TestUninstallNeedsStop(t *testing.T) {
	root := fast(t)
	p := begun(t, root)
	r, err := NewRemoval(root, true)
	if err != nil {
		t.Fatal(err)
	}
	before := tree(t, root)
	if err := Remove(t.Context(), r, RemoveEnv{Operator: "Ann", Service: stubborn{p}}); err == nil {
		t.Error("removed under a running appliance")
	}
	diffTrees(t, tree(t, root), before)
	if err := Remove(t.Context(), r, RemoveEnv{Service: p}); err == nil || !strings.Contains(err.Error(), "operator") {
		t.Errorf("without an operator: %v", err)
	}
	if _, err := os.Stat(filepath.Join(root, "var/lib/clawbox/ledger")); err != nil {
		t.Error(err)
	}
}

type stubborn struct{ *played }

func (stubborn) Stop(context.Context) error { return errors.New("it does not end") }
