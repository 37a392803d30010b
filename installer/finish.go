package installer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/internal/durable"
)

// finish puts a committed change in place. It may be cut off anywhere and is
// then done again by the next start.
func (l Layout) finish(c Change, j *journal) error {
	for _, f := range finishing {
		if err := f(l, c); err != nil {
			return err
		}
	}
	return l.drop("committed", j)
}

// finishing is what a commit puts in place, in order. Each may find its work
// done, or half done.
var finishing = []func(Layout, Change) error{
	Layout.placeFiles, Layout.placeReceipt, Layout.placeLinks, Layout.placeRuntime, Layout.placeKept, Layout.placeJournal,
	func(l Layout, c Change) error { return l.tellLedger(c, "committed", "") },
	Layout.prune,
}

// placeFiles copies what was made ready, so that it can be done again.
func (l Layout) placeFiles(Change) error {
	for _, f := range []struct {
		from, to string
		mode     fs.FileMode
	}{
		{nextTrust, l.Trust(), 0o644},
		{nextRoot, l.Root(), 0o644},
		{nextAnswers, l.Answers(), 0o600},
		{"appliance.yaml", l.Config(), 0o640},
	} {
		b, err := os.ReadFile(filepath.Join(l.Next(), f.from))
		if errors.Is(err, fs.ErrNotExist) { // not part of this change
			continue
		}
		if err == nil {
			_, err = ensureFile(f.to, b, f.mode)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// placeReceipt keeps the receipt of a release that was installed before.
func (l Layout) placeReceipt(c Change) error {
	b, err := os.ReadFile(filepath.Join(l.Next(), nextReceipt))
	if err != nil {
		return err
	}
	base := filepath.Join(l.Receipts(), strconv.FormatInt(c.To.Sequence, 10))
	if old, err := os.ReadFile(base + ".json"); err == nil {
		have, err := ParseReceipt(old)
		if err == nil && have.Plan == c.To.Plan && have.Release.Digest == c.To.Digest {
			return nil
		}
		if err := gone(base + ".entry"); err != nil { // it goes on the ledger, too
			return err
		}
	}
	_, err = ensureFile(base+".json", b, 0o600)
	return err
}

// placeLinks is what install's step "activate" does.
func (l Layout) placeLinks(c Change) error {
	slot, err := filepath.Rel(l.Opt(), l.slotOf(c.To))
	if err != nil {
		return err
	}
	_, err = ensureLink(l.Current(), slot)
	return err
}

func (l Layout) placeKept(c Change) error {
	return writeJSON(l.Kept(), keptRelease{Release: c.From, State: c.state(l)})
}

// placeJournal makes the release the installed one for `clawbox install`.
func (l Layout) placeJournal(c Change) error {
	h, err := replay(l.Journal())
	if err != nil || h.last != nil && *h.last == c.To {
		return err
	}
	j, err := openJournal(l.Journal(), h.size)
	if err != nil {
		return err
	}
	defer j.Close()
	if err := j.append(line{Event: "begin", Head: &c.To}); err != nil {
		return err
	}
	return j.append(line{Event: "commit", Head: &c.To, Text: c.Kind})
}

// prune removes slots and kept states that nothing leads back to, and the names
// that their releases have in the store: then 'clawbox registry gc' takes what
// no name refers to.
func (l Layout) prune(c Change) error {
	if err := l.untag(c); err != nil {
		return fmt.Errorf("prune: %w", err)
	}
	from, err := l.ReleaseOf(c.From.Sequence)
	if err != nil {
		return fmt.Errorf("prune: %w", err)
	}
	to, err := l.ReleaseOf(c.To.Sequence)
	if err != nil {
		return fmt.Errorf("prune: %w", err)
	}
	var models []string
	for _, m := range modelFolders(from, to) {
		models = append(models, filepath.Join(l.models(), m))
	}
	for dir, keep := range map[string][]string{
		l.models():   models,
		l.Slots():    {l.slotOf(c.From), l.slotOf(c.To)},
		l.States():   {c.state(l)},
		l.Releases(): {l.release(c.From.Sequence), l.release(c.To.Sequence)},
	} {
		es, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range es {
			p := filepath.Join(dir, e.Name())
			if slices.Contains(keep, p) || strings.HasPrefix(e.Name(), ".") {
				continue
			}
			if err := removeAll(p); err != nil {
				return fmt.Errorf("prune: %w", err)
			}
		}
	}
	return nil
}

// untag takes the names of releases that go, and all pins but those of the
// present and the kept release. A name that one of these has, too, or that an
// agent runs from, stays.
func (l Layout) untag(c Change) error {
	var going []Release
	used, pins := map[string]bool{}, map[string]bool{}
	es, err := filepath.Glob(filepath.Join(l.Releases(), "release-*.json"))
	if err != nil {
		return err
	}
	for _, e := range es {
		var r Release
		if err := readJSON(e, &r); err != nil {
			return err
		}
		if r.Sequence != c.From.Sequence && r.Sequence != c.To.Sequence {
			going = append(going, r)
			continue
		}
		for _, it := range r.Items {
			used[it.Ref], pins[it.pin()] = true, true
		}
	}
	cfg, err := config.Load(l.Config())
	if err != nil {
		return err
	}
	for _, a := range cfg.Agents {
		used[a.Image] = true
	}
	if err := imagesInUse(cfg.Paths.State, used); err != nil {
		return err
	}
	s, err := content.Open(cfg.Paths.Store)
	if err != nil {
		return err
	}
	x, err := indexed(s)
	if err != nil {
		return err
	}
	var gone []string
	for ref, d := range x.refs {
		if d.Annotations[content.Pinned] != "" && !pins[ref] && !used[ref] {
			gone = append(gone, ref)
		}
	}
	for _, r := range going {
		for _, it := range r.Items {
			if !used[it.Ref] {
				gone = append(gone, it.Ref)
			}
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return s.Untag(gone...)
}

// imagesInUse adds what agents' records name.
func imagesInUse(state string, used map[string]bool) error {
	found, err := filepath.Glob(filepath.Join(state, "agents", "*", "agent.json"))
	if err != nil {
		return err
	}
	for _, p := range found {
		var a struct{ Image string }
		if err := readJSON(p, &a); err != nil {
			return err
		}
		used[a.Image] = true
	}
	return nil
}

// removeAll is os.RemoveAll, durable.
func removeAll(p string) error {
	if !there(p) {
		return nil
	}
	if err := os.RemoveAll(p); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(p))
}

// Start is what `clawbox serve` has to do, as Boot decides it.
type Start struct {
	// Program, where set, is to be executed in place of the caller, with
	// `serve --config Config`.
	Program, Config string
	// Said is what was decided, for the log; "": nothing was to be decided.
	Said string
}
