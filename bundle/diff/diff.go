// Package diff says what changes from one release to another: of two bundles,
// or of a bundle and what a host has.
//
//	a, err := diff.Bundle(ctx, "old", old)       // old of bundle.MediaOptions.Look
//	b, err := diff.Host(ctx, "host", store, rel) // an installed store
//	r, err := diff.Compare(ctx, a, b, diff.Options{})
//
// Always compared is what the two small files of a bundle say: items that come,
// go or change, blobs that b needs and a lacks, and of large ones the chunks.
// Where the parts are at hand, manifests and policies are read, too, and SBOMs
// that refer to an image; that is some kilobytes per item. With
// Options.Packages the layers of images that changed are read for packages,
// which is as much as those images hold.
//
// Nothing is guessed: what can't be compared is in Notes, with the reason.
//
// Limits: a host doesn't keep an index, so chunks can't be compared with one,
// and what it has is told by the names in its store.
package diff

import (
	"context"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/policies"
)

// What happened to an item, a file or a package.
const (
	Added      = "added"
	Removed    = "removed"
	Changed    = "changed"
	Upgraded   = "upgraded"
	Downgraded = "downgraded"
)

// Options says how much is read.
type Options struct {
	Packages bool // read layers of changed images where there is no SBOM
}

// Report is what changes from A to B.
type Report struct {
	A     Release  `json:"a"`
	B     Release  `json:"b"`
	Same  int      `json:"same"`  // items that are in both, unchanged
	Items []Item   `json:"items"` // the others, in the order of B, then those that go
	Blobs Blobs    `json:"blobs"`
	Notes []string `json:"notes"` // what could not be compared, and why
}

// Release is one side.
type Release struct {
	From     string   `json:"from"` // where it was looked for
	Name     string   `json:"name"`
	Version  string   `json:"version"`
	Sequence int64    `json:"sequence"`
	Digest   string   `json:"digest"` // sha256 of release.note
	Verified bool     `json:"verified"`
	Signers  []string `json:"signers"`        // trusted keys that signed
	Base     string   `json:"base,omitempty"` // the release that it builds upon
}

// Item is an item that is not the same on both sides.
type Item struct {
	Name     string                `json:"name"`
	Kind     string                `json:"kind"`
	Change   string                `json:"change"`         // Added, Removed or Changed
	A        *Root                 `json:"a,omitempty"`    // unless Added
	B        *Root                 `json:"b,omitempty"`    // unless Removed
	About    []string              `json:"about"`          // licence, place and the like, in words
	Layers   *Layers               `json:"layers"`         // of images whose manifests were read
	Files    []File                `json:"files"`          // of models and files
	Policy   []policies.Difference `json:"policy"`         // what agents may do now, and what no longer
	Packages []Package             `json:"packages"`       // of images
	Source   string                `json:"packagesSource"` // "sbom", "layers", or "" when packages were not compared
}

// Root is an item's content on one side.
type Root struct {
	Ref    string `json:"ref"`
	Digest string `json:"digest"`
	Size   int64  `json:"size"` // of all that it refers to, in bytes
}

// Layers counts an image's layers, all platforms together.
type Layers struct {
	A           int   `json:"a"`
	B           int   `json:"b"`
	Shared      int   `json:"shared"` // of B, those that A has
	SharedBytes int64 `json:"sharedBytes"`
	NewBytes    int64 `json:"newBytes"` // of B, those that A lacks
}

// File is a file of a model, or of an item that is one.
type File struct {
	Name   string `json:"name"`
	Change string `json:"change"`
	A      int64  `json:"a"` // bytes
	B      int64  `json:"b"`
}

// Package is a package of an image that is there in other versions.
type Package struct {
	Type   string   `json:"type"` // of package URLs: deb, apk, golang, npm, pypi
	Name   string   `json:"name"`
	Arch   string   `json:"arch,omitempty"`
	Source string   `json:"source,omitempty"` // the source package, by which advisories go
	Change string   `json:"change"`           // Changed: versions that have no order here
	A      []string `json:"a"`                // versions
	B      []string `json:"b"`
}

// Blobs counts the content of both sides.
type Blobs struct {
	Same    Count `json:"same"`
	Missing Count `json:"missing"` // that B needs and A lacks
	Gone    Count `json:"gone"`    // that A has and B doesn't need
	// Chunks is how many bytes of Missing are in chunks that A lacks, too: what a
	// differential bundle (--since) would carry. Nil when A has no index.
	Chunks *int64 `json:"missingChunkBytes"`
	// BaseMissing are blobs that B, a differential bundle, leaves out and A
	// lacks: with any of them B can't be loaded.
	BaseMissing Count `json:"baseMissing"`
}

// Count is a number of blobs and their size.
type Count struct {
	Count int   `json:"count"`
	Bytes int64 `json:"bytes"`
}

func (c *Count) add(n int64) { c.Count, c.Bytes = c.Count+1, c.Bytes+n }

// Compare says what changes when b takes the place of a.
func Compare(ctx context.Context, a, b *Side, o Options) (Report, error) {
	d := &comparison{ctx: ctx, a: a, b: b, o: o}
	d.out = Report{A: a.Release, B: b.Release, Items: []Item{}, Notes: slices.Concat([]string{}, a.notes, b.notes)}
	d.blobs()
	for _, p := range pair(a, b) {
		if err := d.item(p); err != nil {
			return Report{}, err
		}
	}
	return d.out, ctx.Err()
}

type comparison struct {
	ctx  context.Context
	a, b *Side
	o    Options
	out  Report
}

func (d *comparison) note(format string, args ...any) {
	d.out.Notes = append(d.out.Notes, fmt.Sprintf(format, args...))
}

// blobs compares what lies below all items.
func (d *comparison) blobs() {
	var out Blobs
	chunks, known := d.a.marks()
	var carried int64
	for h, n := range d.b.need {
		if d.a.has(h, n) {
			out.Same.add(n)
			continue
		}
		out.Missing.add(n)
		x := d.b.index[h]
		carried += lacking(x, n, chunks)
		if x.Size == n && x.OnMedia() < n && !d.a.base(x) {
			out.BaseMissing.add(n)
		}
	}
	for h, n := range d.a.need {
		if _, ok := d.b.need[h]; !ok {
			out.Gone.add(n)
		}
	}
	if known {
		out.Chunks = &carried
	} else {
		d.note("%s keeps no index, so chunks of large blobs were not compared", d.a.From)
	}
	d.out.Blobs = out
}

// lacking counts the bytes of a blob of n bytes whose chunks are not among
// those that are there.
func lacking(x manifest.Blob, n int64, chunks map[manifest.Mark]int64) (out int64) {
	if len(x.Chunks) == 0 {
		return n
	}
	for i, m := range x.Chunks {
		if _, k := x.Chunk(i); chunks[m] != k {
			out += k
		}
	}
	return out
}

// item compares one pair.
func (d *comparison) item(p couple) error {
	switch {
	case p.a == nil:
		d.out.Items = append(d.out.Items, Item{Name: p.b.Name, Kind: p.b.Kind, Change: Added, B: root(p.b)}.filled())
		return nil
	case p.b == nil:
		d.out.Items = append(d.out.Items, Item{Name: p.a.Name, Kind: p.a.Kind, Change: Removed, A: root(p.a)}.filled())
		return nil
	}
	it := Item{Name: p.b.Name, Kind: p.b.Kind, Change: Changed, A: root(p.a), B: root(p.b), About: d.about(p)}
	if p.a.Descriptor.Digest == p.b.Descriptor.Digest {
		if len(it.About) == 0 {
			d.out.Same++
			return nil
		}
		d.out.Items = append(d.out.Items, it.filled())
		return nil
	}
	if err := d.content(p, &it); err != nil {
		return err
	}
	d.out.Items = append(d.out.Items, it.filled())
	return nil
}

// filled makes nil lists empty, for JSON.
func (it Item) filled() Item {
	it.About, it.Files = append([]string{}, it.About...), append([]File{}, it.Files...)
	it.Policy, it.Packages = append([]policies.Difference{}, it.Policy...), append([]Package{}, it.Packages...)
	return it
}

func root(it *manifest.Item) *Root {
	return &Root{it.Ref, it.Descriptor.Digest.String(), it.TotalSize}
}

// about compares what the release says about an item. A host doesn't keep it.
func (d *comparison) about(p couple) (out []string) {
	if d.a.host || d.b.host {
		return nil
	}
	for _, c := range []struct{ what, a, b string }{
		{"kind", p.a.Kind, p.b.Kind},
		{"licence", p.a.Licence, p.b.Licence},
		{"place", p.a.Path, p.b.Path},
		{"mode", p.a.Mode, p.b.Mode},
		{"platforms", strings.Join(p.a.Platforms, " "), strings.Join(p.b.Platforms, " ")},
		{"may be passed on", fmt.Sprint(p.a.Redistributable), fmt.Sprint(p.b.Redistributable)},
	} {
		if c.a != c.b {
			out = append(out, fmt.Sprintf("%s is now %s, was %s", c.what, orNone(c.b), orNone(c.a)))
		}
	}
	return out
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// leaf is a blob below an item, and what names it there.
type leaf struct {
	name string
	desc v1.Descriptor
}
