package installer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/installer/host"
)

// Gate is one proof that a release which is tried has to pass.
type Gate interface {
	Name() string
	// Pass returns nil once the proof holds, and an error as soon as it can't
	// any more. ctx ends at the deadline.
	Pass(ctx context.Context, c Change) error
}

// Agents are the governed programs, across a change.
type Agents interface {
	// Running names those that run now.
	Running(ctx context.Context) ([]string, error)
	// Start starts them again; an error is about at least one that did not.
	Start(ctx context.Context, names []string) error
}

// ChangeEnv is what a change works with besides its plan. Only Load, and for
// an upgrade Trust, have no sensible zero value.
type ChangeEnv struct {
	Trust manifest.Trust // of the host, after the change
	// Load brings the release's blobs into the store, verified, and pins them; it
	// moves no name (LoadBeside). nil for a rollback.
	Load   func(context.Context, *content.Store) error
	Verify func(context.Context) error // as Env.Verify

	Service Service       // nil: ServiceOf
	State   []Snapshotter // nil: StateOf
	Agents  Agents        // nil: none are known
	Cluster Cluster       // of a server; nil: the program of the slot that runs
	Gates   []Gate        // after health, before agents
	// Tell tells a running appliance that there are events for its ledger; nil
	// leaves that to its next start.
	Tell     func(context.Context) error
	Deadline time.Duration // for all gates together; 0: three minutes, fifteen on a cluster
	Remark   string        // goes on the ledger with the beginning
	Progress func(Event)

	hook func(step, phase string) // as Env.hook
}

// ChangePlan is what Apply will do, as data.
type ChangePlan struct {
	Kind     string        `json:"kind"`
	From     string        `json:"from"`
	To       string        `json:"to"`
	Operator string        `json:"operator"`
	Notes    []string      `json:"notes"` // what can't be carried over
	Steps    []Step        `json:"steps"`
	Plan     Plan          `json:"plan"` // the other release's, as if installed
	Config   config.Config `json:"-"`

	change    Change
	carry     *carrier
	was       config.Config
	datastore string // folder of the state whose K3s is put back; "": the present one goes on
}

// ErrInstalled says that what is offered is what runs already.
var ErrInstalled = errors.New("it is installed already")

// NewUpgrade decides how to get from what is installed below root to a release
// that the host trusts. It changes nothing.
func NewUpgrade(f host.Facts, root, operator string, to Release) (ChangePlan, error) {
	l := Layout{root}
	last, from, err := l.installed()
	if err != nil {
		return ChangePlan{}, err
	}
	if last.Sequence == to.Sequence && last.Digest == to.Digest {
		return ChangePlan{}, fmt.Errorf("%w: %s; 'clawbox install' with the same media verifies and repairs it", ErrInstalled, last)
	}
	if last.Name != to.Name {
		return ChangePlan{}, fmt.Errorf("got a release of %s, installed is %s; wanted a later one of the same name", to.Name, last)
	}
	if last.Sequence == to.Sequence {
		return ChangePlan{}, fmt.Errorf("got %s %s with sequence %d, installed is %s: one sequence number, two contents; wanted a higher one; ask the publisher which one is right", to.Name, to.Version, to.Sequence, last)
	}
	if err := manifest.CheckStep(from.step(), to.step()); err != nil {
		return ChangePlan{}, err
	}
	return l.change(f, Change{Kind: Upgrade, From: last, Operator: operator}, from, to)
}

func (r Release) step() manifest.Step {
	return manifest.Step{Sequence: r.Sequence, UpgradesFrom: r.UpgradesFrom, Components: r.Components}
}

// keptRelease is what Rollback goes back to.
type keptRelease struct {
	Release head   `json:"release"`
	State   string `json:"state"` // folder with the state from before it was left
}

// NewRollback decides how to get back to the kept release. With old its state
// of that time is put back, too; otherwise the present one goes on.
func NewRollback(f host.Facts, root, operator string, old bool) (ChangePlan, error) {
	l := Layout{root}
	last, from, err := l.installed()
	if err != nil {
		return ChangePlan{}, err
	}
	var k keptRelease
	if err := readJSON(l.Kept(), &k); errors.Is(err, fs.ErrNotExist) {
		return ChangePlan{}, fmt.Errorf("no release is kept beside %s: there was no upgrade", last)
	} else if err != nil {
		return ChangePlan{}, err
	}
	to, err := l.ReleaseOf(k.Release.Sequence)
	if err != nil {
		return ChangePlan{}, err
	}
	c := Change{Kind: Rollback, From: last, Operator: operator}
	if old {
		c.Put = k.State
	}
	p, err := l.change(f, c, from, to)
	if err == nil && p.change.Profile == "cluster" && !old && goesDown(from, to) {
		p.datastore = k.State
		p.Notes = append(p.Notes, fmt.Sprintf("K3s goes from %s to %s, which can't read what the later one wrote: the cluster's objects are put back to what they were when %s was left; what was made on the cluster since is not in it, tenants' volumes stay on the disk", from.k3sVersion(), to.k3sVersion(), k.Release))
	}
	return p, err
}

// installed is the release that was committed last.
func (l Layout) installed() (head, Release, error) {
	h, err := replay(l.Journal())
	if err != nil {
		return head{}, Release{}, err
	}
	if h.last == nil {
		return head{}, Release{}, fmt.Errorf("no finished installation below %s (no commit in %s): run 'clawbox install' first", l.Prefix, l.Journal())
	}
	r, err := l.ReleaseOf(h.last.Sequence)
	return *h.last, r, err
}

// change makes the plan.
func (l Layout) change(f host.Facts, c Change, from, to Release) (ChangePlan, error) {
	kept, err := LoadAnswers(l.Answers(), from)
	if err != nil {
		return ChangePlan{}, err
	}
	was, err := config.Load(l.Config())
	if err != nil {
		return ChangePlan{}, err
	}
	if c.Operator == "" {
		c.Operator = kept.Operator
	}
	p := ChangePlan{Kind: c.Kind, From: c.From.String(), carry: newCarrier(l, from, to), was: was, Operator: c.Operator}
	a := p.carry.answers(kept)
	if p.Plan, err = NewPlan(f, a, to); err != nil {
		return ChangePlan{}, err
	}
	c.Profile = a.Profile
	c.To = head{to.Name, to.Version, to.Sequence, to.Digest, p.Plan.Digest}
	p.To, p.change, p.Config = c.To.String(), c, p.carry.config(was, a)
	if err := errors.Join(ValidOperator(c.Operator), p.Config.Validate()); err != nil {
		return ChangePlan{}, fmt.Errorf("the configuration for %s: %w", c.To, err)
	}
	p.Notes = p.carry.notes
	for _, s := range changeSteps {
		if s.only == nil || s.only(c) {
			p.Steps = append(p.Steps, Step{ID: s.id, Title: s.title, Why: s.why})
		}
	}
	return p, nil
}

// Print writes the plan for people.
func (p ChangePlan) Print(w io.Writer) error {
	pr := &printer{w: w}
	pr.f("%s from %s\n     to %s\n\n", p.Kind, p.From, p.To)
	for i, s := range p.Steps {
		pr.f("%3d. %s\n     %s\n", i+1, s.Title, s.Why)
	}
	for _, n := range p.Notes {
		pr.f("\nnote: %s", n)
	}
	pr.f("\nIf a gate does not pass in time, or the power goes, the next start is %s again, with the state that it had; the ledger keeps what happened.\n", p.From)
	return pr.err
}

// ChangeResult is the outcome of a change that ended well.
type ChangeResult struct {
	Kind    string   `json:"kind"`
	From    string   `json:"from"`
	To      string   `json:"to"`
	Agents  []string `json:"agents"` // started again
	Notes   []string `json:"notes"`
	Seconds float64  `json:"seconds"` // without an appliance: from stop to the last gate
	Next    string   `json:"next"`
}

// ReturnedError says that a release was tried, why it was not kept, and that
// the one before is in place again.
type ReturnedError struct {
	Kind, From, To string
	Step           string
	Err            error
}

func (e *ReturnedError) Error() string {
	return fmt.Sprintf("the %s to %s was taken back: %s: %v\n%s is in place again, with the state that it had; the ledger has the reason", e.Kind, e.To, e.Step, e.Err, e.From)
}

func (e *ReturnedError) Unwrap() error { return e.Err }

// slotOf is where a release of the journal has its programs.
func (l Layout) slotOf(h head) string { return l.Slot(h.Version, h.Sequence) }

// program is a release's main program.
func (l Layout) program(h head) string { return filepath.Join(l.slotOf(h), mainPath) }
