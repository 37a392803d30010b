package main

import (
	"context"
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
		src := sources(t, s.pkg)
		if src == "" {
			t.Errorf("%s has no tests", s.pkg)
		}
		for name, why := range s.not {
			if !strings.Contains(src, "func "+name+"(t *testing.T)") || why == "" {
				t.Errorf("%s leaves out %s (%q), which is no test there", s.pkg, name, why)
			}
		}
		known(t, s.pkg, s.quick)
		for _, p := range append(s.programs, prober) {
			if _, err := os.Stat(p + "/main.go"); err != nil {
				t.Error(err)
			}
		}
	}
	for _, b := range boots {
		for pkg, tests := range b.only {
			if !isSuite(pkg) {
				t.Errorf("boot %q runs %s, which is no suite", b.name, pkg)
			}
			known(t, pkg, tests)
		}
	}
}

// known wants each name of a selection to be a test of the package, or to begin
// the name of one.
func known(t *testing.T, pkg, tests string) {
	t.Helper()
	src := sources(t, pkg)
	for name := range strings.SplitSeq(tests, "|") {
		if name != "" && !strings.Contains(src, "\nfunc "+name) {
			t.Errorf("the plan names %s of %s, which is no test there", name, pkg)
		}
	}
}

// sources are a package's tests.
func sources(t *testing.T, pkg string) string {
	t.Helper()
	var src strings.Builder
	files, _ := filepath.Glob(pkg + "/*_test.go")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		src.Write(b)
	}
	return src.String()
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
	pass, end := []event{{Action: "run", Test: "TestA"}, {Action: "pass", Test: "TestA"}}, event{Action: "pass"}
	skip := func(out string) []event {
		return []event{{Action: "output", Test: "TestB", Output: out}, {Action: "skip", Test: "TestB"}}
	}
	for name, c := range map[string]struct {
		events []event
		code   int
		err    error
		ok     bool
	}{
		"passes":              {events: append(pass, end), ok: true},
		"a reason to skip":    {events: append(skip("=== RUN   TestB\n    b_test.go:3: no overlayfs\n"), end), ok: true},
		"skips silently":      {events: append(skip("=== RUN   TestB\n--- SKIP: TestB (0.00s)\n"), end)},
		"nothing ran":         {events: []event{end}},
		"a test fails":        {events: append(pass, event{Action: "fail", Test: "TestC"}, event{Action: "fail"}), code: 1},
		"the binary crashes":  {events: pass, code: 2},
		"it ran out of time":  {events: pass, code: 128 + 9},
		"it ends half-way":    {events: pass},
		"a test does not end": {events: append(pass, event{Action: "run", Test: "TestD"}, end)},
		"it is interrupted":   {events: append(pass, end), err: context.Canceled},
	} {
		r := &result{code: c.code, err: c.err}
		for _, e := range c.events {
			r.add(e, false)
		}
		if r.ok() != c.ok || (r.verdict() == "ok") != c.ok {
			t.Errorf("%s: ok is %v: %+v", name, r.ok(), r)
		}
	}
}

// TestReport: a run that reached another tier, or not all that was planned,
// failed, whatever passed.
func TestReport(t *testing.T) {
	done := func() *result {
		r := &result{pkg: "a"}
		for _, e := range []event{{Action: "pass", Test: "TestA"}, {Action: "pass"}} {
			r.add(e, false)
		}
		return r
	}
	at := func(tier string, rs ...*result) *host {
		return &host{boot: boot{want: "T1"}, facts: facts{Tier: tier}, results: rs}
	}
	cut := done()
	cut.err = context.Canceled
	for name, c := range map[string]struct {
		h      *host
		failed bool
	}{
		"everything":   {at("T1", done(), done()), false},
		"another tier": {at("T3", done(), done()), true},
		"one is left":  {at("T1", done()), true},
		"one was cut":  {at("T1", done(), cut), true},
	} {
		r := &report{hosts: []*host{c.h}, planned: 2}
		var out strings.Builder
		if r.print(&out); r.failed() != c.failed {
			t.Errorf("%s: failed is %v, want %v\n%s", name, !c.failed, c.failed, &out)
		}
		if short := r.ran() < 2; strings.Contains(out.String(), "of 2 packages ran") != short {
			t.Errorf("%s: the report does not say what is missing:\n%s", name, &out)
		}
	}
}

// TestPlanned: options that choose nothing are a mistake, not a success.
func TestPlanned(t *testing.T) {
	if n := (options{}).planned(); n < len(suites)*2 {
		t.Errorf("%d packages are planned in all machines", n)
	}
	if q, all := (options{quick: true}).planned(), (options{}).planned(); q == 0 || q >= all {
		t.Errorf("%d packages are quick, of %d", q, all)
	}
	if _, err := runAll(t.Context(), options{pkg: "no-such-package"}); err == nil {
		t.Error("a package that is no suite passed")
	}
}
