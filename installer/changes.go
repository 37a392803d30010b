package installer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/clawbox/clawbox/internal/durable"
)

// Kinds of changes.
const (
	Upgrade   = "upgrade"
	Rollback  = "rollback"
	Uninstall = "uninstall" // only on the ledger
	Restore   = "restore"   // only on the ledger
)

// Change is one way from a release to another, as its journal keeps it.
type Change struct {
	ID       int      `json:"id"` // counts from 1
	Kind     string   `json:"kind"`
	From     head     `json:"from"`
	To       head     `json:"to"`
	Operator string   `json:"operator"`
	Profile  string   `json:"profile"`
	Agents   []string `json:"agents,omitempty"` // that ran before
	// Put is the folder of an earlier state to begin with; "": the present one.
	Put string `json:"put,omitempty"`
}

func (c Change) String() string { return fmt.Sprintf("%s from %s to %s", c.Kind, c.From, c.To) }

// state is the folder with the state from before the change.
func (c Change) state(l Layout) string { return filepath.Join(l.States(), fmt.Sprintf("%06d", c.ID)) }

// Checkpoint is the file with the ledger's head from before the change, which
// the ledger must extend; it is missing where there was no ledger yet.
func (c Change) Checkpoint(l Layout) string { return filepath.Join(c.state(l), "ledger", headFile) }

// changeLine is one line of the journal of changes, JSON.
type changeLine struct {
	Time   time.Time `json:"time"`
	Event  string    `json:"event"` // begin, start, done, fail, return, commit, end
	Step   string    `json:"step,omitempty"`
	Change *Change   `json:"change,omitempty"` // with begin
	Text   string    `json:"text,omitempty"`
}

// changes is what the journal's lines add up to.
type changes struct {
	count     int
	open      *Change // begun and not ended
	stopped   bool    // the appliance was stopped for it
	touched   bool    // state was changed since: it must be put back
	failed    bool    // a step failed: nothing of the release starts any more
	returning string  // why, once that was decided
	committed bool
	size      int64
}

// replayChanges reads the journal of changes.
func replayChanges(path string) (changes, error) {
	var c changes
	var err error
	c.size, err = wholeLines(path, c.apply)
	return c, err
}

func (c *changes) apply(b []byte) error {
	var l changeLine
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		return fmt.Errorf("got a line that is not the journal's: %w; wanted one JSON object; if no upgrade or rollback was under way, move the file away", err)
	}
	if (l.Event == "begin") != (l.Change != nil) || l.Event != "begin" && c.open == nil {
		return fmt.Errorf("got %q out of its place; if no upgrade or rollback was under way, move the file away", l.Event)
	}
	switch l.Event {
	case "begin":
		*c = changes{count: c.count + 1, open: l.Change}
	case "start":
		c.stopped = c.stopped || l.Step == stopping
		c.touched = c.touched || l.Step == touching
	case "return":
		c.returning = l.Text
	case "commit":
		c.committed = true
	case "end":
		*c = changes{count: c.count}
	case "fail":
		c.failed = true
	case "done":
	default:
		return fmt.Errorf("got the event %q; was it written by a newer installer?", l.Event)
	}
	return nil
}

// settled refuses whatever else would be done while a change is half made.
func (l Layout) settled() error {
	c, err := replayChanges(l.Changes())
	if err == nil && c.open != nil && (c.touched || c.committed) {
		err = fmt.Errorf("the %s was cut off; start the appliance once ('clawbox serve' or systemctl start clawbox): that ends it, with one of the two releases whole", *c.open)
	}
	return err
}

// An event is one file for the appliance to put on the ledger: what became of a
// change. Its name gives the order; it is written once.
type event struct {
	Format   string    `json:"format"`
	Time     time.Time `json:"time"`
	Event    string    `json:"event"` // begun, tried, committed, returned
	Kind     string    `json:"kind"`
	From     head      `json:"from"`
	To       head      `json:"to"`
	Operator string    `json:"operator"`
	Reason   string    `json:"reason,omitempty"`
}

// EventFormat heads an event.
const EventFormat = "clawbox.io/change/v1"

var eventOrder = map[string]int{"begun": 1, "tried": 2, "committed": 3, "returned": 3, "removed": 1, "restored": 1}

// lastEvent is the highest number of a change that the ledger is told of. It
// outlives the journal, which an uninstallation takes.
func (l Layout) lastEvent() (n int, err error) {
	es, err := os.ReadDir(l.Events())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	for _, e := range es {
		var k int
		if _, err := fmt.Sscanf(e.Name(), "%06d-", &k); err == nil {
			n = max(n, k)
		}
	}
	return n, err
}

// tellLedger leaves an event for the appliance.
func (l Layout) tellLedger(c Change, what, reason string) error {
	path := filepath.Join(l.Events(), fmt.Sprintf("%06d-%d-%s.json", c.ID, eventOrder[what], what))
	if there(path) {
		return nil
	}
	if err := durable.MkdirAll(l.Events(), 0o700); err != nil {
		return err
	}
	return writeJSON(path, event{EventFormat, time.Now().UTC(), what, c.Kind, c.From, c.To, c.Operator, reason})
}

// Turn is the last thing that became of an upgrade, a rollback or a restore, as
// the ledger is told of it.
type Turn struct {
	Time   time.Time `json:"time"`
	Event  string    `json:"event"` // begun, tried, committed, returned, restored
	Kind   string    `json:"kind"`
	From   string    `json:"from"`
	To     string    `json:"to"`
	Reason string    `json:"reason,omitempty"`
}

// LastTurn is the last turn below root; nil where there was none.
func LastTurn(root string) (*Turn, error) {
	found, err := filepath.Glob(filepath.Join(Layout{root}.Events(), "*.json"))
	if err != nil || len(found) == 0 {
		return nil, err
	}
	var e event
	if err := readJSON(found[len(found)-1], &e); err != nil { // sorted: their names count
		return nil, err
	}
	return &Turn{e.Time, e.Event, e.Kind, e.From.String(), e.To.String(), e.Reason}, nil
}
