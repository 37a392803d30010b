// Package doctor says what is wrong with an installed appliance, whether it
// runs or not, why, and what to do.
//
//	f := doctor.Look(ctx, "/")     // facts, gathered without changing anything
//	for _, r := range doctor.Judge(f) {
//		fmt.Println(r)
//	}
//
// Looking and judging are apart, so that every check is tested with a machine
// that fails it. What could not be looked at is in Facts.Failed under the name
// of the look, and the checks that rest on it say so instead of guessing.
//
// A check is a row of a table (checks.go). A profile with more to look at adds
// rows, folders with certificates (Facts.Certificates) and looks.
//
// Limits: a ledger larger than FullVerify is only held to its signed head here;
// 'clawbox audit verify' reads all of it. Blobs are looked at by name and size;
// 'clawbox install' with the media hashes them.
package doctor

import "fmt"

// State is a check's outcome.
type State string

// Failure means that something does not work or is not safe, Warning that it
// will be so, or is not as it should be; Note only informs.
const (
	OK      State = "ok"
	Note    State = "note"
	Warning State = "warning"
	Failure State = "failure"
)

// Result is one check.
type Result struct {
	Check  string `json:"check"`
	State  State  `json:"state"`
	Got    string `json:"got"`
	Cause  string `json:"cause,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}

func (r Result) String() string {
	s := fmt.Sprintf("%-8s %-14s %s", r.State, r.Check, r.Got)
	if r.Cause != "" {
		s += "\n                        cause:  " + r.Cause
	}
	if r.Remedy != "" {
		s += "\n                        remedy: " + r.Remedy
	}
	return s
}

// check is one row of the table. look names what it rests on.
type check struct {
	name, look string
	judge      func(Facts) Result
}

// Judge holds facts against the table. It is pure: one result a check, in
// order.
func Judge(f Facts) (out []Result) {
	for _, c := range checks {
		var r Result
		if why, failed := f.Failed[c.look]; failed {
			r = Result{State: Failure, Got: "no answer", Cause: why, Remedy: "correct that, and ask again"}
		} else {
			r = c.judge(f)
		}
		r.Check = c.name
		out = append(out, r)
	}
	return out
}

// Failed says whether something has to be done.
func Failed(rs []Result) bool {
	for _, r := range rs {
		if r.State == Failure {
			return true
		}
	}
	return false
}

func good(format string, args ...any) Result {
	return Result{State: OK, Got: fmt.Sprintf(format, args...)}
}

func note(format string, args ...any) Result {
	return Result{State: Note, Got: fmt.Sprintf(format, args...)}
}

// bad is a failure or a warning: what there is, why, and what to do.
func bad(s State, got, cause, remedy string) Result { return Result{"", s, got, cause, remedy} }
