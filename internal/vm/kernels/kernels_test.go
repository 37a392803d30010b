package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPlan holds the plan against the repository: packages and programs exist,
// and what is left out is still a test.
func TestPlan(t *testing.T) {
	t.Chdir("../../..")
	for _, s := range suites {
		var src strings.Builder
		files, _ := filepath.Glob(s.pkg + "/*_test.go")
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			src.Write(b)
		}
		if len(files) == 0 {
			t.Errorf("%s has no tests", s.pkg)
		}
		for name, why := range s.not {
			if !strings.Contains(src.String(), "func "+name+"(t *testing.T)") || why == "" {
				t.Errorf("%s leaves out %s (%q), which is no test there", s.pkg, name, why)
			}
		}
		for _, p := range append(s.programs, prober) {
			if _, err := os.Stat(p + "/main.go"); err != nil {
				t.Error(err)
			}
		}
	}
	for _, b := range boots {
		for _, pkg := range b.only {
			if (options{}).wanted(b, pkg) && !isSuite(pkg) {
				t.Errorf("boot %q runs %s, which is no suite", b.name, pkg)
			}
		}
	}
}

func isSuite(pkg string) bool {
	for _, s := range suites {
		if s.pkg == pkg {
			return true
		}
	}
	return false
}

// TestVerdict: what must make the run fail does.
func TestVerdict(t *testing.T) {
	pass := event{Action: "pass", Test: "TestA"}
	skip := func(out string) []event {
		return []event{{Action: "output", Test: "TestB", Output: out}, {Action: "skip", Test: "TestB"}}
	}
	for name, c := range map[string]struct {
		events []event
		code   int
		ok     bool
	}{
		"passes":             {events: []event{pass}, ok: true},
		"a reason to skip":   {events: append(skip("=== RUN   TestB\n    b_test.go:3: no overlayfs\n"), pass), ok: true},
		"skips silently":     {events: append(skip("=== RUN   TestB\n--- SKIP: TestB (0.00s)\n"), pass)},
		"nothing ran":        {},
		"a test fails":       {events: []event{pass, {Action: "fail", Test: "TestC"}}, code: 1},
		"the binary crashes": {events: []event{pass}, code: 2},
		"it ran out of time": {events: []event{pass}, code: 128 + 9},
	} {
		r := &result{code: c.code}
		for _, e := range c.events {
			r.add(e, false)
		}
		if r.ok() != c.ok {
			t.Errorf("%s: ok is %v: %+v", name, r.ok(), r)
		}
	}
	h := &host{boot: boot{want: "T1"}, facts: facts{Tier: "T3"}}
	if (&report{hosts: []*host{h}}).failed() != true {
		t.Error("another tier than wanted did not fail the run")
	}
}
