package installer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/clawbox/clawbox/internal/durable"
)

// The places of a change from one release to another. All of them are root's
// alone.
func (l Layout) in(p string) string { return filepath.Join(l.Install(), p) }

func (l Layout) Changes() string  { return l.in("changes") }   // the journal of changes
func (l Layout) Try() string      { return l.in("try") }       // marker: the next start tries a release
func (l Layout) Tried() string    { return l.in("tried") }     // marker: that release was entered
func (l Layout) Next() string     { return l.in("next") }      // what takes effect with the commit
func (l Layout) Kept() string     { return l.in("kept.json") } // the release to go back to
func (l Layout) States() string   { return l.in("states") }    // state as it was before a change
func (l Layout) Releases() string { return l.in("releases") }  // what each installed release holds
func (l Layout) TrialLog() string { return l.in("trial.log") } // what a release said that was tried in the foreground

// NextConfig is the configuration under which a release is tried.
func (l Layout) NextConfig() string { return filepath.Join(l.Next(), "appliance.yaml") }

// Root is the publisher's root, where releases are trusted by one.
func (l Layout) Root() string { return l.at("etc/clawbox/root.note") }

// Events are what the appliance puts on its ledger about changes.
func (l Layout) Events() string { return filepath.Join(l.Receipts(), "changes") }

func (l Layout) release(sequence int64) string {
	return filepath.Join(l.Releases(), "release-"+strconv.FormatInt(sequence, 10)+".json")
}

// keepRelease remembers what a release holds, for the upgrade that follows on
// it and for doctor.
func (l Layout) keepRelease(r Release) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = durable.MkdirAll(l.Releases(), 0o700)
	}
	if err == nil {
		_, err = ensureFile(l.release(r.Sequence), append(b, '\n'), 0o600)
	}
	return err
}

// ReleaseOf reads what the installed release with this sequence holds.
func (l Layout) ReleaseOf(sequence int64) (Release, error) {
	var r Release
	err := readJSON(l.release(sequence), &r)
	if errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("%w; run 'clawbox install' with the media of the installed release once, which writes it", err)
	}
	if err == nil && r.Sequence != sequence {
		err = fmt.Errorf("%s: got the release with sequence %d", l.release(sequence), r.Sequence)
	}
	return r, err
}

// readJSON reads a file that this package wrote.
func readJSON(path string, into any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// writeJSON is its counterpart: durable, and for root alone.
func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(path, append(b, '\n'), 0o600)
}

// gone removes files that may be missing.
func gone(paths ...string) error {
	for _, p := range paths {
		if err := durable.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// there says whether something is at path.
func there(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
