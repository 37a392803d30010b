package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// TestList holds the suite's data together: enough attacks, each with one name,
// a subcommand, an expectation, a record or a reason for none, and a control or
// a reason for none.
func TestList(t *testing.T) {
	var src strings.Builder
	for _, f := range []string{"paths", "exec", "kernel", "net", "http", "load", "neighbour"} {
		b, err := os.ReadFile("inside/" + f + ".go")
		if err != nil {
			t.Fatal(err)
		}
		src.Write(b)
	}
	seen := map[string]bool{}
	for _, a := range all() {
		if seen[a.name] || a.tries == "" {
			t.Errorf("%s: twice, or without words", a.name)
		}
		seen[a.name] = true
		if a.outside() == (len(a.args) > 0) {
			t.Errorf("%s: want arguments or a driver", a.name)
		}
		if !a.outside() && !regexp.MustCompile(`(?m)^\t"`+regexp.QuoteMeta(a.args[0])+`":`).MatchString(src.String()) {
			t.Errorf("%s: inside has no %q", a.name, a.args[0])
		}
		if !a.outside() && len(a.want.errnos) == 0 && a.want.say == "" {
			t.Errorf("%s: nothing is expected of it", a.name)
		}
		if (len(a.records) == 0) != (a.silent != "") {
			t.Errorf("%s: want records, or why there is none", a.name)
		}
		for _, r := range a.records {
			if r == (record{}) || r == (record{Kind: r.Kind}) && r.Kind == "" {
				t.Errorf("%s: a record that matches everything", a.name)
			}
		}
	}
	if len(seen) < 60 {
		t.Errorf("%d attacks, want 60 or more", len(seen))
	}
}

// TestJudgement: what must count as a success of the attacker, or as a failure
// for the wrong reason, does.
func TestJudgement(t *testing.T) {
	for name, c := range map[string]struct {
		w  want
		o  outcome
		ok bool
	}{
		"refused":                 {errno("EPERM"), outcome{spoke: true, Errnos: []string{"EPERM"}}, true},
		"every way":               {errno("EPERM", "EROFS"), outcome{spoke: true, Errnos: []string{"EPERM", "EROFS"}}, true},
		"it worked":               {errno("EPERM"), outcome{spoke: true, OK: true}, false},
		"the wrong reason":        {errno("EPERM"), outcome{spoke: true, Errnos: []string{"ENOENT"}}, false},
		"one way for another":     {errno("EPERM"), outcome{spoke: true, Errnos: []string{"EPERM", "EINVAL"}}, false},
		"no errno at all":         {errno("EPERM"), outcome{spoke: true, Say: "hm"}, false},
		"it never ran":            {errno("EPERM"), outcome{Code: 127}, false},
		"it never ran, any words": {says("."), outcome{Code: 1}, false},
		"killed":                  {killed("EPERM"), outcome{Code: 137}, true},
		"killed by a filter":      {killed(), outcome{Code: 159}, true},
		"not killed":              {killed(), outcome{spoke: true, Say: "x"}, false},
		"refused instead":         {killed("EPERM"), outcome{spoke: true, Errnos: []string{"EPERM"}}, true},
		"the right words":         {says("403.*net"), outcome{spoke: true, Say: "403\nnet.unlisted"}, true},
		"other words":             {says("403"), outcome{spoke: true, Say: "404"}, false},
	} {
		if got := c.w.holds(c.o); (got == "") != c.ok {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestParse(t *testing.T) {
	o := parse([]byte("noise\nATTACK {\"ok\":false,\"errnos\":[\"EPERM\"]}\n"), 0)
	if !o.spoke || o.OK || len(o.Errnos) != 1 {
		t.Errorf("%+v", o)
	}
	if o := parse([]byte("CANARY\n"), 0); !o.OK {
		t.Error("a program that ran in the attacker's place counts as refused")
	}
	if o := parse(nil, 137); o.spoke || !o.killed() {
		t.Errorf("%+v", o)
	}
}

func TestRecordMatches(t *testing.T) {
	e := ledger.Record{Kind: ledger.KindExec, Verdict: ledger.Denied, Reason: "kernel.eacces", Path: "/bin/other", Detail: "execve refused: permission denied"}
	for name, c := range map[string]struct {
		r  record
		ok bool
	}{
		"by path":      {ran("/bin/other"), true},
		"by call":      {refused("execve"), true},
		"two kinds":    {record{Kind: "exec|file"}, true},
		"another path": {ran("/bin/sh"), false},
		"allowed":      {record{Kind: "exec", Verdict: "allowed"}, false},
		"another kind": {record{Kind: "file"}, false},
	} {
		if c.r.matches(e) != c.ok {
			t.Errorf("%s: %v", name, !c.ok)
		}
	}
}

// The policies of the suite are policies.
func TestPolicies(t *testing.T) {
	for name, text := range map[string]string{prey: preyPolicy, other: otherPolicy, waiter: waiterPolicy, lone: lonePolicy} {
		if _, err := policies.Parse(name+".yaml", []byte(text)); err != nil {
			t.Error(err)
		}
	}
}
