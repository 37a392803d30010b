package content

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/internal/durable"
)

// maxManifest bounds a manifest, in bytes, as registries do.
const maxManifest = 4 << 20

// ErrReferenced says that a blob can't go, as a name refers to it.
var ErrReferenced = errors.New("a name refers to it")

// Walk calls fn for each blob, in no order, until fn returns an error.
func (s *Store) Walk(fn func(h v1.Hash, size int64) error) error {
	d, err := os.Open(s.path("blobs/sha256"))
	if err != nil {
		return fmt.Errorf("content store: %w", err)
	}
	defer d.Close()
	for {
		es, err := d.ReadDir(1024)
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("content store: %w", err)
		}
		for _, e := range es {
			h := v1.Hash{Algorithm: "sha256", Hex: e.Name()}
			fi, err := e.Info()
			if check(h) != nil || err != nil || !fi.Mode().IsRegular() {
				continue // another tool's file, or deleted meanwhile
			}
			if err := fn(h, fi.Size()); err != nil {
				return err
			}
		}
	}
}

// Delete removes the blob h, durably: fs.ErrNotExist when it is absent,
// ErrReferenced when a ref names it (Untag first). What manifests refer to is
// not looked at; that is GC's work.
func (s *Store) Delete(h v1.Hash) error {
	if _, err := s.Stat(h); err != nil {
		return err
	}
	unlock, err := s.lock(unix.LOCK_EX) // Tag has it, too
	if err != nil {
		return fmt.Errorf("content store: %w", err)
	}
	defer unlock()
	ds, err := s.Refs()
	if err != nil {
		return err
	}
	for _, d := range ds {
		if d.Digest == h {
			return fmt.Errorf("delete blob %s: %w: %q; untag it first", h, ErrReferenced, d.Annotations[RefName])
		}
	}
	if err := durable.Remove(s.Path(h)); err != nil {
		return fmt.Errorf("delete blob %s: %w", h, err)
	}
	return nil
}

// GCOptions says what stays.
type GCOptions struct {
	// Roots stay with all that they refer to, beside what the refs name: the
	// items of each slot, a registry's manifests.
	Roots []v1.Descriptor
	// Grace keeps blobs, partial blobs and uploads that were written less than
	// that ago, for whoever has not got to naming them yet.
	Grace time.Duration
	// Waiting, see Exclusive.
	Waiting func(Holder)
	// DryRun deletes nothing.
	DryRun bool
}

// GCReport says what went, or would.
type GCReport struct {
	Kept, Deleted int   // blobs
	Bytes         int64 // of what was deleted, partial blobs included
	Partial       int   // partial blobs and uploads that were dropped
}

// GC deletes every blob that neither a ref nor a root reaches, and abandoned
// partial blobs. It has the store for itself (Exclusive) and waits for those
// who Hold it. A manifest that is a root and can't be read is an error before
// anything is deleted: then nobody knows what it needs.
func (s *Store) GC(ctx context.Context, o GCOptions) (GCReport, error) {
	release, err := s.Exclusive(ctx, o.Waiting)
	if err != nil {
		return GCReport{}, err
	}
	defer release()
	free, err := s.flock(gcFile, unix.LOCK_EX)
	if err != nil {
		return GCReport{}, fmt.Errorf("content store: %w", err)
	}
	defer free()
	refs, err := s.Refs()
	if err != nil {
		return GCReport{}, err
	}
	c := collector{s: s, o: o, before: time.Now().Add(-o.Grace), keep: map[v1.Hash]bool{}}
	for _, d := range append(refs, o.Roots...) {
		if err := c.mark(d, true); err != nil {
			return GCReport{}, fmt.Errorf("collect garbage: %w: nothing was deleted", err)
		}
	}
	if err := c.sweep(ctx); err != nil {
		return c.out, fmt.Errorf("collect garbage: %w", err)
	}
	return c.out, nil
}

type collector struct {
	s      *Store
	o      GCOptions
	before time.Time // what was written later stays
	keep   map[v1.Hash]bool
	out    GCReport
}

// children are all the places where a manifest of any kind names other blobs.
type children struct {
	Config    *v1.Descriptor  `json:"config"`
	Subject   *v1.Descriptor  `json:"subject"`
	Layers    []v1.Descriptor `json:"layers"`
	Blobs     []v1.Descriptor `json:"blobs"`
	Manifests []v1.Descriptor `json:"manifests"`
}

// mark keeps d and what it refers to. What a foreign layout lacks is no error:
// it can't be kept.
func (c *collector) mark(d v1.Descriptor, root bool) error {
	// Another algorithm's digest names nothing here: who has such manifests
	// gives their parts as roots, by sha256.
	if c.keep[d.Digest] || d.Digest.Algorithm != "sha256" {
		return nil
	}
	n, err := c.s.Stat(d.Digest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	c.keep[d.Digest] = true
	known := manifestTypes[d.MediaType]
	if !known && (!root || n > maxManifest) {
		return nil
	}
	if n > maxManifest {
		return fmt.Errorf("manifest %s has %d bytes, want at most %d", d.Digest, n, maxManifest)
	}
	b, err := os.ReadFile(c.s.Path(d.Digest))
	if err != nil {
		return err
	}
	var m children
	if err := json.Unmarshal(b, &m); err != nil {
		if known {
			return fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
		return nil // a ref may name anything, also what refers to nothing
	}
	return c.markAll(m)
}

var manifestTypes = map[types.MediaType]bool{
	types.OCIManifestSchema1: true, types.OCIImageIndex: true,
	types.DockerManifestSchema2: true, types.DockerManifestList: true,
	"application/vnd.cncf.model.manifest.v1+json": true,
}

func (c *collector) markAll(m children) error {
	for _, d := range []*v1.Descriptor{m.Config, m.Subject} {
		if d != nil {
			if err := c.mark(*d, d == m.Subject); err != nil {
				return err
			}
		}
	}
	for _, d := range append(m.Layers, m.Blobs...) {
		if err := c.mark(d, false); err != nil {
			return err
		}
	}
	for _, d := range m.Manifests {
		if err := c.mark(d, true); err != nil {
			return err
		}
	}
	return nil
}

func (c *collector) sweep(ctx context.Context) error {
	err := c.s.Walk(func(h v1.Hash, n int64) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if c.keep[h] || c.fresh(c.s.Path(h)) {
			c.out.Kept++
			return nil
		}
		if !c.o.DryRun {
			if err := os.Remove(c.s.Path(h)); err != nil {
				return err
			}
		}
		c.out.Deleted, c.out.Bytes = c.out.Deleted+1, c.out.Bytes+n
		return nil
	})
	if c.out.Deleted > 0 && !c.o.DryRun {
		err = errors.Join(err, c.s.disk.syncDir(c.s.path("blobs/sha256")))
	}
	for _, d := range []string{partialDir, uploadDir} {
		if err == nil {
			err = c.sweepPartial(c.s.path(d))
		}
	}
	return err
}

func (c *collector) fresh(path string) bool {
	fi, err := os.Lstat(path)
	return err != nil || fi.ModTime().After(c.before)
}

// sweepPartial drops what nobody writes and nobody has written for a while.
func (c *collector) sweepPartial(dir string) error {
	es, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range es {
		path := filepath.Join(dir, strings.TrimSuffix(e.Name(), journal))
		if path != filepath.Join(dir, e.Name()) { // goes with its data, or has lost it
			if _, err := os.Lstat(path); err == nil || c.o.DryRun {
				continue
			}
		}
		if c.fresh(filepath.Join(dir, e.Name())) {
			continue
		}
		if err := c.dropPartial(path); err != nil {
			return err
		}
	}
	return nil
}

func (c *collector) dropPartial(path string) error {
	p := Partial{s: c.s, path: path}
	switch err := p.lock(0); {
	case errors.Is(err, ErrBusy):
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return c.s.drop(path)
	case err != nil:
		return err
	}
	if fi, err := p.f.Stat(); err == nil {
		c.out.Bytes += fi.Size()
	}
	c.out.Partial++
	if c.o.DryRun {
		return p.shut()
	}
	return p.Discard()
}
