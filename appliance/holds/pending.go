package holds

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// Subject is what is asked for, and for whom.
type Subject struct {
	Agent  string `json:"agent"`
	Host   string `json:"host"` // normalised name, or address
	Port   int    `json:"port"`
	Call   string `json:"call,omitempty"`   // one call on an inspected connection ("GET /v1/x", "tools/call read_file"); "": the connection
	Binary string `json:"binary,omitempty"` // program in the sandbox; "": not known
}

// target is the subject's place in words.
func (s Subject) target() string {
	t := fmt.Sprintf("%s port %d", s.Host, s.Port)
	if s.Call != "" {
		t = s.Call + " on " + t
	}
	return t
}

// Question is something that a policy wants to hold.
type Question struct {
	Subject
	Ancestors []string // of Binary, nearest first
	Policy    string   // its name
	Digest    string   // the policy's digest
	Life      string   // which sandbox; the agent's next one has another. "": not known, and no answer for the session
	Process   ledger.Process
	Reason    string // the policy's code; "": policies.ReasonUnlisted
	Rule      string // what the policy said, with its place, if anything
	// Change is what the policy has to allow for this to pass. Zero: host and
	// port, for Binary where that is known; not with a Call.
	Change policies.HostRule
}

// maxQuestion bounds what one request may put on screens and into the file,
// in bytes: an agent chooses most of it.
const maxQuestion = 8 << 10

// Pending is a held request, as an operator sees it. Apart from Waiting and
// Ended it never changes.
type Pending struct {
	ID     string `json:"id"`     // random; works for one answer
	Digest string `json:"digest"` // of every fact that is shown but Waiting and Ended: "sha256:…"; see Check
	Subject
	Ancestors    []string          `json:"ancestors,omitempty"`
	Process      string            `json:"process,omitempty"` // who asked first; a hint, chosen by the process
	UID          int               `json:"uid"`
	Policy       string            `json:"policy"`
	PolicyDigest string            `json:"policyDigest"`
	Life         string            `json:"life,omitempty"`
	Reason       string            `json:"reason"`         // stable code
	Why          string            `json:"why"`            // the same in words
	Rule         string            `json:"rule,omitempty"` // what the policy said
	Since        time.Time         `json:"since"`
	Until        time.Time         `json:"until"`  // then it is refused
	Allow        policies.HostRule `json:"-"`      // the rule that Always adds: Change, parsed
	Change       string            `json:"change"` // the policy change, as YAML
	Words        string            `json:"words"`  // the policy change, in words
	Waiting      int               `json:"waiting"`
	Ended        bool              `json:"ended,omitempty"` // the sandbox that asked is gone
}

// Scope is how far an answer reaches.
type Scope string

// The scopes.
const (
	Once    Scope = "once"    // who waits; if nobody does, the next one within a minute
	Session Scope = "session" // until the agent's sandbox ends
	Always  Scope = "always"  // from now on: a change of the policy
)

// Answer is what an operator says to a pending request.
type Answer struct {
	Digest   string `json:"digest"` // of the Pending that was shown
	Allow    bool   `json:"allow"`
	Scope    Scope  `json:"scope"` // a denial may be Once (a minute) or Session
	Operator string `json:"operator"`
	Reason   string `json:"reason,omitempty"` // for the client and the ledger; at most 200 bytes
}

// Denial is why something does not pass, for the client.
type Denial struct {
	Code   string // stable
	Detail string // what happened
	Remedy string // what would change it; may be empty
}

// Outcome is what becomes of a question: Again, Allow, or the Denial.
type Outcome struct {
	Allow  bool
	Scope  Scope // of the answer that allowed it
	Again  bool  // the policy changed: decide anew
	Denial Denial
}

// Errors of Answer and Revoke.
var (
	ErrNoPending = errors.New("no such held request")
	ErrChanged   = errors.New("not what was shown")
	ErrAnswer    = errors.New("not an answer")
)

// newPending writes down what q asks. What can't be written as a rule of a
// policy, and read back, can't be held.
func newPending(q Question, now time.Time, wait time.Duration) (p Pending, err error) {
	p = Pending{
		ID: newID(), Subject: q.Subject, Ancestors: slices.Clone(q.Ancestors), Process: describe(q.Process), UID: q.Process.UID,
		Policy: q.Policy, PolicyDigest: q.Digest, Life: q.Life, Reason: q.Reason, Rule: q.Rule,
		Since: now.UTC().Round(0), Until: now.Add(wait).UTC().Round(0),
		Change: "network: {allow: [" + q.Change.YAML() + "]}",
	}
	p.Why = "the policy " + p.Policy + " lists no rule for " + p.target() + " and holds what it does not list"
	if p.Rule != "" {
		p.Why = "the policy " + p.Policy + " holds it: " + p.Rule
	}
	if p.Allow, err = rule(p.Change); err != nil {
		return p, err
	}
	p.Words = words(p)
	p.Digest = p.digest()
	return p, nil
}

// rule parses a policy change.
func rule(change string) (r policies.HostRule, err error) {
	p, err := policies.Parse("change", []byte("apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: change}\n"+change+"\n"))
	if err != nil {
		return r, err
	}
	if len(p.Network.Allow) != 1 {
		return r, fmt.Errorf("got %d rules in %.200q, want one", len(p.Network.Allow), change)
	}
	r = p.Network.Allow[0]
	r.Line = 0
	return r, nil
}

// words says what Always would change, as `clawbox policy diff` says it.
func words(p Pending) string {
	before := &policies.Policy{Name: p.Policy, Network: policies.Network{Default: policies.Hold}}
	var out []string
	for _, d := range policies.Diff(before, before.WithAllow(p.Allow)) {
		out = append(out, d.Words)
	}
	if len(p.Allow.Binaries) == 0 {
		out = append(out, "from any program")
	}
	return strings.Join(out, ", ") + "; for agent " + p.Agent + ", at every start, in its policy " + p.Policy
}

// digest binds an answer to what was shown.
func (p Pending) digest() string { return shownDigest(p.shown()) }

// key is who asks for what; one Pending answers for all that have the same.
type key struct {
	Subject
	chain string
}

func (p Pending) key() key { return key{p.Subject, chain(p.Ancestors)} }

// chain joins paths; none of them holds a NUL byte.
func chain(as []string) string { return strings.Join(as, "\x00") }

// complete fills in what q leaves out, and refuses what can't be shown and
// kept as it is.
func (q *Question) complete() error {
	if err := q.Subject.check(); err != nil {
		return err
	}
	if all := q.Call + q.Binary + strings.Join(q.Ancestors, ""); !utf8.ValidString(all) || strings.Contains(all, "\x00") {
		// JSON would make different programs look the same.
		return errors.New("a program or call with bytes that are not UTF-8 can't be held")
	}
	if q.Reason == "" {
		q.Reason = policies.ReasonUnlisted
	}
	if strings.ContainsAny(q.Binary, "*?[]{}\\") {
		// In a rule the name of this one program would stand for many.
		return fmt.Errorf("the program's name %.80q has signs that a policy takes for a pattern", q.Binary)
	}
	if q.Change.Host == "" && q.Change.Domain == "" && q.Change.CIDR == "" {
		if q.Call != "" {
			return errors.New("a call came without the rule that would allow it")
		}
		q.Change = policies.HostRule{Host: q.Host, Ports: []int{q.Port}}
		if q.Binary != "" {
			q.Change.Binaries = []string{q.Binary}
		}
	}
	n := len(q.Host) + len(q.Call) + len(q.Binary) + len(chain(q.Ancestors)) + len(q.Rule) + len(q.Change.YAML())
	if n > maxQuestion {
		return fmt.Errorf("the request takes %d bytes to show, at most %d can be held", n, maxQuestion)
	}
	return nil
}

func describe(p ledger.Process) string {
	if p.PID == 0 {
		return ""
	}
	return fmt.Sprintf("%s (pid %d)", strings.ToValidUTF8(p.Comm, "\uFFFD"), p.PID)
}
