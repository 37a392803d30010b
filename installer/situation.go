package installer

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/clawbox/clawbox/appliance/config"
)

// Situation is where an installation stands: for doctor, which judges it.
type Situation struct {
	Release  string `json:"release"` // committed last; "": none
	Sequence int64  `json:"sequence"`
	Begun    string `json:"begun,omitempty"`  // an installation that is not finished
	Change   string `json:"change,omitempty"` // an upgrade or rollback that is not ended
	Touched  bool   `json:"touched"`          // and that has to be taken back, or finished
	Busy     bool   `json:"busy"`             // an installer is at work
	Try      bool   `json:"try"`              // marker: the next start enters a release
	Tried    bool   `json:"tried"`            // marker: one was entered
	Current  string `json:"current"`          // where the link leads
	Slot     string `json:"slot"`             // where it should
	Kept     string `json:"kept,omitempty"`   // what rollback goes back to
	KeptGone bool   `json:"keptGone"`         // and that its slot is missing
	Untold   int    `json:"untold"`           // events that are not on the ledger yet
}

// Situated looks below root; it changes nothing.
func Situated(root string) (s Situation, err error) {
	l := Layout{root}
	h, err := replay(l.Journal())
	if err != nil {
		return s, err
	}
	if h.last != nil {
		s.Release, s.Sequence, s.Slot = h.last.String(), h.last.Sequence, l.slotOf(*h.last)
	}
	if h.open != nil {
		s.Begun = h.open.String()
	}
	c, err := replayChanges(l.Changes())
	if err != nil {
		return s, err
	}
	if c.open != nil {
		s.Change, s.Touched = c.open.String(), c.touched || c.committed
	}
	s.Try, s.Tried = there(l.Try()), there(l.Tried())
	if there(l.Lock()) {
		unlock, err := lock(l.Lock())
		if s.Busy = errors.Is(err, ErrBusy); err == nil {
			unlock()
		}
	}
	if s.Current, err = filepath.EvalSymlinks(l.Current()); err != nil {
		s.Current = "nowhere: " + err.Error()
	}
	var k keptRelease
	if readJSON(l.Kept(), &k) == nil {
		s.Kept, s.KeptGone = k.Release.String(), !there(l.program(k.Release))
	}
	s.Untold = l.untold()
	return s, nil
}

// untold counts events without their mark.
func (l Layout) untold() (n int) {
	es, _ := filepath.Glob(filepath.Join(l.Events(), "*.json")) // the pattern is good
	for _, e := range es {
		if !there(e[:len(e)-len(".json")] + ".entry") {
			n++
		}
	}
	return n
}

// Start says how an installation is started: "systemd" or "none".
func (l Layout) Start() string {
	if there(l.Unit()) {
		return "systemd"
	}
	return "none"
}

// Leftovers are what the kernel holds for an appliance: mounts below its state,
// and folders for cgroups. While it runs they are in use.
func Leftovers(p config.Paths) (mounts, cgroups []string, err error) {
	mounts, err = mountsBelow(p.State)
	if there(p.Pin()) {
		cgroups = append(cgroups, p.Pin())
	}
	return mounts, append(cgroups, Cgroups(p)...), err
}

// Hold keeps other installers away until release is called, or the process ends.
func (l Layout) Hold() (release func(), err error) { return lock(l.Lock()) }

// Committed names the release that was committed last; its digest is of the
// signed release.
func (l Layout) Committed() (version string, sequence int64, digest string, err error) {
	h, err := replay(l.Journal())
	if err != nil || h.last == nil {
		return "", 0, "", cmp.Or(err, errNone(h, l))
	}
	return h.last.Version, h.last.Sequence, h.last.Digest, l.settled()
}

func errNone(h history, l Layout) error {
	if h.last != nil {
		return nil
	}
	return fmt.Errorf("no finished installation below %s: run 'clawbox install' first", l.Prefix)
}

// TellRestored leaves for the ledger that state was put back from a backup.
func (l Layout) TellRestored(operator, detail string) error {
	h, err := replay(l.Journal())
	if err != nil || h.last == nil {
		return cmp.Or(err, errNone(h, l))
	}
	n, err := l.lastEvent()
	if err != nil {
		return err
	}
	return l.tellLedger(Change{ID: n + 1, Kind: Restore, From: *h.last, To: *h.last, Operator: operator}, "restored", detail)
}
