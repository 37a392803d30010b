package bundle

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"path/filepath"

	"github.com/clawbox/clawbox/bundle/manifest"
)

// maxDamage bounds how many damages one report names.
const maxDamage = 20

// Verify reads everything and checks every chunk, every blob and every part,
// and that there is nothing in clawbox/ that the release doesn't name. It goes
// on after a damage and reports up to 20 of them.
func (m *Media) Verify(ctx context.Context, p Progress) error {
	v := verifier{m: m, task: orQuiet(p).Start("verify "+m.release.Name, m.release.Size()), blob: sha256.New(), part: sha256.New(), at: 1}
	v.found(m.strangers()...)
	err := m.stream(ctx, m.index.Blobs, v.each)
	if err == nil {
		err = errors.Join(v.errs...)
	}
	v.task.Done(err)
	return err
}

// strangers names what is in clawbox/ and not in the release, up to maxDamage
// things. It reads directories only.
func (m *Media) strangers() (errs []error) {
	known := map[string]bool{".": true, noteFile: true, indexFile: true, partsDir: true}
	for _, p := range m.release.Parts {
		known[partsDir+"/"+p.Name] = true
	}
	for _, d := range m.dirs {
		root := filepath.Join(d, topDir)
		err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, _ := filepath.Rel(root, p) // p is below root
			isDir := rel == "." || rel == partsDir
			if known[rel] && e.IsDir() == isDir {
				return nil
			}
			if len(errs) == maxDamage {
				return fs.SkipAll
			}
			errs = append(errs, &manifest.TamperedError{What: p, Detail: "not named by the release: remove it, and ask who put it there"})
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("media: %w", err))
		}
	}
	return errs
}

// verifier takes the chunks of all blobs, in the order of the parts.
type verifier struct {
	m    *Media
	task Task
	errs []error

	blob, part hash.Hash
	at         int   // the current part, from 1
	n          int64 // bytes seen of it
	bad        bool  // damage in it was reported already
	badBlob    bool
}

func (v *verifier) found(errs ...error) {
	v.bad, v.badBlob = v.bad || len(errs) > 0, v.badBlob || len(errs) > 0
	v.errs = append(v.errs, errs...)
	if len(v.errs) > maxDamage {
		v.errs = v.errs[:maxDamage]
	}
}

func (v *verifier) each(c chunk) error {
	if c.i == 0 {
		v.blob.Reset()
		v.badBlob = false
	}
	if c.err != nil {
		v.found(c.err)
	}
	parallel(func() { v.blob.Write(c.data) }, func() { v.feed(c) })
	if c.i == c.blob.Len()-1 && !v.badBlob {
		if got := manifest.Sum(v.blob.Sum(nil)).Digest(); got != c.blob.Digest {
			v.found(v.m.damage(c.blob, "the whole blob has digest "+got.String(), place(v.m.release, c.blob, 0)))
		}
	}
	v.task.Add(int64(len(c.data)))
	return nil
}

// feed gives the chunk to the sum of the part that it lies in.
func (v *verifier) feed(c chunk) {
	data := c.data
	for _, s := range spans(v.m.release, c.blob, int64(c.i)*manifest.ChunkSize, int64(len(data))) {
		v.part.Write(data[:s.n])
		data = data[s.n:]
		v.n += s.n
		p := v.m.release.Parts[v.at-1]
		if v.n < p.Size {
			continue
		}
		if got := manifest.Sum(v.part.Sum(nil)); got != p.SHA256 && !v.bad {
			v.errs = append(v.errs, &manifest.TamperedError{What: p.Name, Detail: fmt.Sprintf("got sha256 %s, want %s", got, p.SHA256)})
		}
		// A chunk may run over the border: its damage counts for both sides.
		v.part.Reset()
		v.at, v.n, v.bad = v.at+1, 0, c.err != nil
	}
}
