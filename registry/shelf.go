package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/internal/durable"
)

// shelfDir is the folder of the store that holds what was pushed. There:
//
//	repos/NAME/_blobs/ALG-HEX            the repository shows this blob
//	repos/NAME/_manifests/ALG-HEX        … and this manifest
//	repos/NAME/_subjects/ALG-HEX/ALG-HEX … which refers to that one
//	repos/NAME/_tags/TAG                 the tag's digest
//	uploads/                             who began which upload
//	.names                               flock for changes of repos/
//	.collect                             flock: shared by who pushes, exclusive for Collect
//
// Each is one small file, an entry as JSON. No part of a NAME begins with "_".
const shelfDir = "registry"

const (
	blobsIn     = "_blobs"
	manifestsIn = "_manifests"
	subjectsIn  = "_subjects"
	tagsIn      = "_tags"
)

// shelf is what was pushed. Every read is of the files themselves, so another
// process that changes them, such as a collection, is seen at once. The zero
// shelf is empty.
type shelf struct{ dir string }

// entry says where in the store the content of a name is.
type entry struct {
	At   v1.Hash `json:"at"` // sha256
	Type string  `json:"mediaType,omitempty"`
	Size int64   `json:"size"`
}

func (s shelf) path(name string, rest ...string) string {
	return filepath.Join(append([]string{s.dir, "repos", filepath.FromSlash(name)}, rest...)...)
}

// lock takes the shelf for a change of names.
func (s shelf) lock() (unlock func(), err error) { return s.flock(".names", unix.LOCK_EX) }

// flock takes one of the shelf's flocks, unix.LOCK_EX or LOCK_SH, and waits
// for it.
func (s shelf) flock(name string, how int) (unlock func(), err error) {
	// Open for reading: another user may have made it.
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_RDONLY|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("flock %s: %w", f.Name(), err), f.Close())
	}
	return func() { f.Close() }, nil
}

// put writes one file, durably, with v as its JSON.
func (s shelf) put(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := durable.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return durable.WriteFile(path, b, 0o644)
}

// get reads one file into v; false when there is none.
func (s shelf) get(path string, v any) (bool, error) {
	if s.dir == "" {
		return false, nil
	}
	b, err := os.ReadFile(path)
	if absent(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return false, fmt.Errorf("%s: %w: it is not what this registry wrote; remove it, and push again", path, err)
	}
	return true, nil
}

func (s shelf) drop(path string) error {
	err := durable.Remove(path)
	if absent(err) {
		return nil
	}
	return err
}

// absent says of a file that there is none: a digest of an algorithm that is not
// known here may be too long for a name.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENAMETOOLONG)
}

func (s shelf) entry(name, kind string, h v1.Hash) (e entry, ok bool, err error) {
	ok, err = s.get(s.path(name, kind, fileOf(h)), &e)
	return e, ok, err
}

func (s shelf) tag(name, tag string) (h v1.Hash, ok bool, err error) {
	ok, err = s.get(s.path(name, tagsIn, tag), &h)
	return h, ok, err
}

// link shows content in a repository.
func (s shelf) link(name, kind string, h v1.Hash, e entry) error {
	var old entry
	p := s.path(name, kind, fileOf(h))
	if ok, err := s.get(p, &old); err == nil && ok && old == e {
		return nil
	}
	return s.put(p, e)
}

func (s shelf) has(name string) bool {
	for _, k := range []string{tagsIn, manifestsIn, blobsIn} {
		if s.dir == "" {
			return false
		}
		if fi, err := os.Stat(s.path(name, k)); err == nil && fi.IsDir() {
			return true
		}
	}
	return false
}

// list returns the names of the files in a repository's folder, sorted. Files
// that are being written begin with a dot.
func (s shelf) list(path string) ([]string, error) {
	if s.dir == "" {
		return nil, nil
	}
	es, err := os.ReadDir(path)
	if err != nil && !absent(err) {
		return nil, err
	}
	var out []string
	for _, e := range es {
		if !strings.HasPrefix(e.Name(), ".") {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

func (s shelf) digests(path string) ([]v1.Hash, error) {
	names, err := s.list(path)
	var out []v1.Hash
	for _, n := range names {
		if h, ok := digestOf(n); ok {
			out = append(out, h)
		}
	}
	return out, err
}

// repos lists the repositories, sorted.
func (s shelf) repos() (out []string, err error) {
	if s.dir == "" {
		return nil, nil
	}
	root := filepath.Join(s.dir, "repos")
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case !d.IsDir():
			return nil
		case strings.HasPrefix(d.Name(), "_"):
			name, err := filepath.Rel(root, filepath.Dir(p))
			if err != nil {
				return err
			}
			out = append(out, filepath.ToSlash(name))
			return filepath.SkipDir
		}
		return nil
	})
	slices.Sort(out)
	return slices.Compact(out), err
}

// refer notes that the manifest h, in a repository, has a subject.
func (s shelf) refer(name string, subject v1.Hash, d v1.Descriptor) error {
	return s.put(s.path(name, subjectsIn, fileOf(subject), fileOf(d.Digest)), d)
}

// referrers lists the pushed manifests with this subject.
func (s shelf) referrers(name string, subject v1.Hash) (out []v1.Descriptor, err error) {
	dir := s.path(name, subjectsIn, fileOf(subject))
	hs, err := s.digests(dir)
	for _, h := range hs {
		_, shown, eerr := s.entry(name, manifestsIn, h)
		if eerr != nil {
			return nil, eerr
		}
		var d v1.Descriptor
		ok, derr := s.get(filepath.Join(dir, fileOf(h)), &d)
		if derr != nil {
			return nil, derr
		}
		if ok && shown { // a power cut may have left the one without the other
			out = append(out, d)
		}
	}
	return out, err
}
