package installer

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/content"
)

// Two releases may give one name in the store to different content: a tag that
// was pushed again, a model whose ref has no version. What the names lead to is
// the installed release's, so a change moves them with the state: after "carry"
// was begun and not before, with a list of what they led to, which a return, also
// one after a power cut, puts back. What either release needs has pins besides
// (content.Pin): names that no release moves.

// namesFile is the list, in the folder of a change's state.
const namesFile = "names.json"

// led is one name of the list, and what it led to; nil: it was not there.
type led struct {
	Ref string         `json:"ref"`
	To  *v1.Descriptor `json:"to"`
}

// index is what the store names.
type index struct {
	refs    map[string]v1.Descriptor
	digests map[v1.Hash]v1.Descriptor
}

func indexed(s *content.Store) (index, error) {
	ds, err := s.Refs()
	x := index{map[string]v1.Descriptor{}, map[v1.Hash]v1.Descriptor{}}
	for _, d := range slices.Backward(ds) { // of two, Resolve takes the first
		if ref := d.Annotations[content.RefName]; ref != "" {
			x.refs[ref], x.digests[d.Digest] = d, d
		}
	}
	return x, err
}

// find is an item as the store has it: by its pin, its name, or whatever else
// leads to its digest.
func (x index) find(it Item) (v1.Descriptor, bool) {
	for _, ref := range []string{it.pin(), it.Ref} {
		if d, ok := x.refs[ref]; ok && d.Digest == it.Digest {
			return plain(d), true
		}
	}
	d, ok := x.digests[it.Digest]
	return plain(d), ok
}

// pin is the name of an item's pin.
func (it Item) pin() string { return content.Pin(it.Ref, v1.Descriptor{Digest: it.Digest}).Ref }

// plain leaves out what belongs to one name.
func plain(d v1.Descriptor) v1.Descriptor {
	d.Annotations = maps.Clone(d.Annotations)
	delete(d.Annotations, content.RefName)
	delete(d.Annotations, content.Pinned)
	return d
}

// held are a release's items as the store has them, under their names in the
// release, wherever these lead now. It fails where something is not there.
func held(s *content.Store, r Release) ([]content.Name, error) {
	x, err := indexed(s)
	if err != nil {
		return nil, err
	}
	var out []content.Name
	for _, it := range r.Items {
		d, ok := x.find(it)
		if !ok {
			got := "nothing"
			if other, ok := x.refs[it.Ref]; ok {
				got = other.Digest.String()
			}
			return nil, fmt.Errorf("%s: got %s in the store; wanted %s, which was signed; load the media of %s again ('clawbox load')", it.Ref, got, it.Digest, r)
		}
		out = append(out, content.Name{Ref: it.Ref, Descriptor: d})
	}
	return out, nil
}

// pin gives what the store has of a release its pins. Content that is not named
// any more is passed over: it can't be kept.
func pin(s *content.Store, r Release) error {
	x, err := indexed(s)
	if err != nil {
		return err
	}
	var add []content.Name
	for _, it := range r.Items {
		if d, ok := x.find(it); ok {
			add = append(add, content.Pin(it.Ref, d))
		}
	}
	return s.Point(add)
}

// point makes a release's names lead to what was signed for it.
func point(s *content.Store, r Release) error {
	names, err := held(s, r)
	if err != nil {
		return err
	}
	return s.Point(names)
}

// keepNames lists what the names of the other release lead to now, and pins it.
func (c *changing) keepNames(s *content.Store) error {
	x, err := indexed(s)
	if err != nil {
		return err
	}
	var list []led
	var pins []content.Name
	for _, it := range c.run.Release.Items {
		if d, ok := x.refs[it.Ref]; ok {
			list, pins = append(list, led{it.Ref, &d}), append(pins, content.Pin(it.Ref, plain(d)))
		} else {
			list = append(list, led{it.Ref, nil})
		}
	}
	if err := s.Point(pins); err != nil {
		return err
	}
	return writeJSON(filepath.Join(c.change.state(c.l), namesFile), list)
}

// namesBack puts the list back. A name whose content is lost goes: an agent that
// does not start is better than one that runs what was refused.
func (l Layout) namesBack(c Change) error {
	s, err := content.Open(l.Store())
	if err != nil {
		return err
	}
	var list []led
	err = readJSON(filepath.Join(c.state(l), namesFile), &list)
	if errors.Is(err, fs.ErrNotExist) { // of an installer that kept none
		from, err := l.ReleaseOf(c.From.Sequence)
		if err != nil {
			return err
		}
		return point(s, from)
	}
	x, xerr := indexed(s)
	if err := errors.Join(err, xerr); err != nil {
		return err
	}
	var back []content.Name
	var gone []string
	for _, n := range list {
		_, now := x.refs[n.Ref]
		switch {
		case n.To != nil && has(s, *n.To):
			back = append(back, content.Name{Ref: n.Ref, Descriptor: *n.To})
		case now:
			gone = append(gone, n.Ref)
		}
	}
	if err := s.Point(back); err != nil || len(gone) == 0 {
		return err
	}
	return s.Untag(gone...)
}

func has(s *content.Store, d v1.Descriptor) bool {
	n, err := s.Stat(d.Digest)
	return err == nil && n == d.Size
}

// Runs says whether store is the one that an installation below root runs from.
func Runs(root, store string) bool {
	l := Layout{root}
	ours, err := os.Stat(l.Store())
	if err != nil || !there(l.Journal()) {
		return false
	}
	st, err := os.Stat(store)
	return err == nil && os.SameFile(ours, st)
}
