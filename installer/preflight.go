package installer

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/clawbox/clawbox/installer/host"
)

// Severity says what a finding means for the installation.
type Severity string

// A refusal stops the installation before anything is touched; a warning and
// a note do not.
const (
	OK      Severity = "ok"
	Note    Severity = "note"
	Warning Severity = "warning"
	Refusal Severity = "refusal"
)

// Finding is the outcome of one check. Weakening, if set, is the name that the
// operator may accept to turn this refusal into a warning.
type Finding struct {
	Check     string   `json:"check"`
	Severity  Severity `json:"severity"`
	Got       string   `json:"got"`
	Wanted    string   `json:"wanted,omitempty"`
	Remedy    string   `json:"remedy,omitempty"`
	Weakening string   `json:"weakening,omitempty"`
}

func (f Finding) String() string {
	s := fmt.Sprintf("%-8s %-16s got %s", f.Severity, f.Check, f.Got)
	if f.Severity == OK || f.Wanted == "" {
		return s
	}
	s += "; wanted " + f.Wanted
	if f.Remedy != "" {
		s += "; " + f.Remedy
	}
	return s
}

// check is one row of a table. probe names the host probe that it rests on:
// where that failed, the check is a refusal (or what unsure says), since not
// knowing is not the same as being fine.
type check struct {
	name   string
	probe  string
	unsure Severity
	judge  func(q question) Finding
}

// question is what a judge may look at.
type question struct {
	host.Facts
	a Answers
	r Release
}

// Preflight judges a machine for these answers and this release. It is pure.
// The findings are in the tables' order, one per check.
func Preflight(f host.Facts, a Answers, r Release) []Finding {
	var out []Finding
	q := question{f, a, r}
	for _, t := range tables {
		for _, c := range t.checks {
			if t.profile == "" || t.profile == a.Profile {
				out = append(out, c.run(q))
			}
		}
	}
	return out
}

// tables of checks, in order; profile "" is every one.
var tables = []struct {
	profile string
	checks  []check
}{
	{"", machineChecks},
	{"", kernelChecks},
	{"", gpuChecks},
	{"", releaseChecks},
	{"cluster", nodeChecks},
	{"cluster", limitChecks},
	{"cluster", netChecks},
	{"cluster", gpuNodeChecks},
	{"cluster", clusterChecks},
}

func (c check) run(q question) Finding {
	f := c.judge(q)
	if why, failed := q.Failed[c.probe]; failed && c.probe != "bpf" {
		f.Got, f.Severity = "no answer: "+why, c.unsure
		if c.unsure == "" {
			f.Severity = Refusal
		}
		f.Wanted, f.Remedy = cmp.Or(f.Wanted, "an answer"), cmp.Or(f.Remedy, "correct what keeps the probe from its answer")
	}
	f.Check = c.name
	if f.Weakening != "" && f.Severity == Refusal && q.a.accepts(f.Weakening) {
		f.Severity = Warning
		f.Remedy = "accepted by the operator as " + f.Weakening + "; it is recorded"
	} else if f.Weakening != "" && f.Severity == Refusal {
		f.Remedy += fmt.Sprintf(", or accept it: accept: [%s] (%s)", f.Weakening, Weakenings[f.Weakening])
	}
	return f
}

// Refused returns the findings that forbid the installation.
func Refused(fs []Finding) []Finding {
	return slices.DeleteFunc(slices.Clone(fs), func(f Finding) bool { return f.Severity != Refusal })
}

// ErrPreflight is the refusal of a machine: the findings that forbid it.
type ErrPreflight struct{ Findings []Finding }

func (e *ErrPreflight) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "this machine is refused; nothing was changed:")
	for _, f := range e.Findings {
		fmt.Fprintf(&b, "\n  %s: got %s; wanted %s; %s", f.Check, f.Got, f.Wanted, f.Remedy)
	}
	return b.String()
}

// verdict builds a finding: OK when good, else s.
func verdict(good bool, s Severity, got, wanted, remedy string) Finding {
	if good {
		return Finding{Severity: OK, Got: got, Wanted: wanted}
	}
	return Finding{Severity: s, Got: got, Wanted: wanted, Remedy: remedy}
}

// lacking builds a finding about things that should not be: none is good.
func lacking(what string, miss []string, wanted, remedy string) Finding {
	if len(miss) == 0 {
		return Finding{Severity: OK, Got: wanted, Wanted: wanted}
	}
	return Finding{Severity: Refusal, Got: what + " " + list(miss), Wanted: wanted, Remedy: remedy}
}

// inform builds a finding that only informs.
func inform(got string) Finding { return Finding{Severity: Note, Got: got} }

// weak marks a refusal as one that the operator may accept by name.
func (f Finding) weak(name string) Finding {
	if f.Severity == Refusal {
		f.Weakening = name
	}
	return f
}

func list(s []string) string {
	if len(s) == 0 {
		return "none"
	}
	return strings.Join(s, ", ")
}
