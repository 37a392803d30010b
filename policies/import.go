package policies

import (
	"cmp"
	"fmt"
	"slices"

	"go.yaml.in/yaml/v4"
)

// The kinds of a Change.
const (
	Wider    = "wider"    // the policy allows what the source did not
	Narrower = "narrower" // it denies what the source allowed
	Lost     = "lost"     // it cannot say this
	Same     = "same"     // said in other words
)

// Change is one place where the canonical form of a policy does not mean, or
// not say, what its source did.
type Change struct {
	Kind string `json:"kind"`
	Line int    `json:"line"` // in the source; 0: what the source is silent about
	What string `json:"what"` // the source's field or value
	Now  string `json:"now"`  // what became of it
}

// String gives the change in one line.
func (c Change) String() string {
	at := ""
	if c.Line > 0 {
		at = fmt.Sprintf("line %d: ", c.Line)
	}
	return c.Kind + ": " + at + c.What + ": " + c.Now
}

// Import reads a policy in any dialect, as Parse does, and reports what does
// not mean in it what it meant in its own. Parse of such a source gives the
// same policy without the report.
func Import(name string, src []byte) (*Policy, []Change, error) {
	d := &decoder{file: name, set: map[string]*yaml.Node{}}
	p, err := d.parse(src, nil)
	if err != nil {
		return nil, nil, err
	}
	slices.SortStableFunc(d.changes, func(a, b Change) int { return cmp.Compare(a.Line, b.Line) })
	return p, d.changes, nil
}

// note records a change of meaning, once for each place and text.
func (d *decoder) note(kind string, n *yaml.Node, what, now string) {
	c := Change{Kind: kind, What: what, Now: now}
	if n != nil {
		c.Line = n.Line
	}
	if !slices.Contains(d.changes, c) {
		d.changes = append(d.changes, c)
	}
}

// closedNotes says what a dialect that cannot speak of it gets from the
// preset sandbox.
func (d *decoder) closedNotes() {
	b := d.p.Budgets
	d.note(Wider, nil, "model calls", "the source cannot speak of them; the embedded model may be called, within the closed budget (inference.routes: [] forbids it)")
	d.note(Narrower, nil, "what the source does not bound", fmt.Sprintf("the closed budgets hold: %d tasks, %s of memory, %s cores, %s on disk, %s of running time",
		b.Processes, formatSize(b.Memory), formatCPU(b.CPU), formatLimit(b.Disk), formatWall(b.WallTime)))
}
