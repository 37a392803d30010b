package installer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/internal/durable"
)

// undo takes back what a first installation made before its media turned out
// not to be what was signed: such an installation is not one to continue.
// Verified blobs stay in the store, because reading them again may take hours
// and they are what they claim to be; nothing else refers to them. It returns
// how many stay.
func (r *run) undo() (kept int, err error) {
	if r.store != nil {
		if kept, err = blobs(r.store); err != nil {
			return 0, err
		}
	}
	if kept == 0 {
		err = os.RemoveAll(r.l.Store())
	}
	errs := []error{err}
	errs = append(errs, removeAll(r.l.Releases()))
	for _, p := range []string{r.l.Trust(), r.l.Root(), r.l.Answers(), r.l.Journal(), r.l.Lock()} {
		if err := durable.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	// From the leaves up; a folder that holds anything else is not ours to remove.
	for _, d := range slices.Backward(r.l.dirs()) {
		os.Remove(d.path)
	}
	os.Remove(r.l.State())
	return kept, errors.Join(errs...)
}

// spoiled says whether err means that a first installation must be undone.
func (r *run) spoiled(err error) bool {
	_, active := os.Lstat(r.l.Current())
	return errors.Is(err, manifest.ErrTampered) && r.h.last == nil && errors.Is(active, fs.ErrNotExist)
}

// SpoiledError says that media were not what was signed, and that the
// installation from them was taken back.
type SpoiledError struct {
	Blobs int    // verified ones that stay
	Store string // where
	Err   error
}

func (e *SpoiledError) Error() string {
	s := fmt.Sprintf("%v\nnothing is installed: what this run had made was removed", e.Err)
	if e.Blobs > 0 {
		s += fmt.Sprintf("; %d verified blobs stay in %s, so that a run with good media need not read them again", e.Blobs, e.Store)
	}
	return s
}

func (e *SpoiledError) Unwrap() error { return e.Err }
