package content

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
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
// who Hold it. A manifest that can't be read, or whose bytes are not its
// digest's, is an error before anything is deleted: nobody knows what it needs.
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
	c := collector{s: s, o: o, before: time.Now().Add(-o.Grace), keep: map[v1.Hash]bool{}, read: map[v1.Hash]bool{}}
	for _, d := range append(refs, o.Roots...) {
		if err := c.mark(d); err != nil {
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
	read   map[v1.Hash]bool // what these refer to is kept, too
	out    GCReport
}

// found is something to keep. Of what nothing but a list of layers names, only
// the types that are known are read.
type found struct {
	v1.Descriptor
	read bool
}

var manifestTypes = map[types.MediaType]bool{
	types.OCIManifestSchema1: true, types.OCIImageIndex: true,
	types.DockerManifestSchema2: true, types.DockerManifestList: true,
	"application/vnd.cncf.model.manifest.v1+json": true,
}

// mark keeps a root and what it refers to. What a foreign layout lacks is no
// error: it can't be kept.
func (c *collector) mark(root v1.Descriptor) error {
	if n, err := c.s.Stat(root.Digest); err == nil && n > maxManifest && manifestTypes[root.MediaType] {
		return fmt.Errorf("manifest %s has %d bytes, want at most %d", root.Digest, n, maxManifest)
	}
	for todo := []found{{root, true}}; len(todo) > 0; {
		f := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		below, err := c.visit(f)
		if err != nil {
			return err
		}
		todo = append(todo, below...)
	}
	return nil
}

// visit keeps f, and returns what it refers to, once: that is not done with
// when f was met as a layer, whose bytes are nobody's business.
func (c *collector) visit(f found) ([]found, error) {
	// Another algorithm's digest names nothing here: who has such manifests
	// gives their parts as roots, by sha256.
	if check(f.Digest) != nil || c.read[f.Digest] {
		return nil, nil
	}
	n, err := c.s.Stat(f.Digest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	c.keep[f.Digest] = true
	if n > maxManifest || !f.read && !manifestTypes[f.MediaType] {
		return nil, nil // nobody reads a larger one
	}
	c.read[f.Digest] = true
	return c.below(f.Descriptor)
}

// below lists what the manifest d refers to. Bytes that are no manifest refer to
// nothing, whatever type somebody gave them, when they are those that the digest
// promises; a manifest that isn't is an error.
func (c *collector) below(d v1.Descriptor) ([]found, error) {
	b, err := os.ReadFile(c.s.Path(d.Digest))
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(b); d.MediaType != "" && hex.EncodeToString(sum[:]) != d.Digest.Hex {
		return nil, fmt.Errorf("manifest %s is damaged, so nobody knows what it needs: bring it again, or take its name away", d.Digest)
	}
	var m children
	wrong := (*json.UnmarshalTypeError)(nil) // of one field: the others were read
	if err := json.Unmarshal(b, &m); err != nil && !errors.As(err, &wrong) {
		return nil, nil
	}
	var out []found
	for _, l := range []struct {
		of   []child
		read bool
	}{{[]child{m.Config}, false}, {m.Layers, false}, {m.Blobs, false}, {[]child{m.Subject}, true}, {m.Manifests, true}} {
		for _, x := range l.of {
			alg, hex, _ := strings.Cut(x.Digest, ":")
			out = append(out, found{v1.Descriptor{MediaType: x.MediaType, Digest: v1.Hash{Algorithm: alg, Hex: hex}}, l.read})
		}
	}
	return out, nil
}

// children are all the places where a manifest of any kind names other blobs.
type children struct {
	Config    child   `json:"config"`
	Subject   child   `json:"subject"`
	Layers    []child `json:"layers"`
	Blobs     []child `json:"blobs"`
	Manifests []child `json:"manifests"`
}

// child is a descriptor whose digest may be anything: one that this store can't
// have must not hide the others.
type child struct {
	MediaType types.MediaType `json:"mediaType"`
	Digest    string          `json:"digest"`
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
