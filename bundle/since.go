package bundle

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"

	"filippo.io/age"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/manifest"
)

// Since is a release that hosts have: what a differential bundle leaves out.
type Since struct {
	base   manifest.Base
	has    map[v1.Hash]int64
	chunks map[manifest.Mark]spot
}

// spot is a chunk of a blob of the base.
type spot struct {
	blob v1.Hash
	off  int64
	n    int64
}

// OpenSince reads the release in dir, which needs release.note and index.json
// only, in dir itself or in dir/clawbox, and holds it against trust. A
// differential release may be the base of a further one: who has it has also
// what it left out.
func OpenSince(trust manifest.Trust, dir string, ids ...age.Identity) (*Since, error) {
	if _, err := os.Lstat(filepath.Join(dir, topDir, noteFile)); err == nil {
		dir = filepath.Join(dir, topDir)
	}
	read := func(name string, limit int64) ([]byte, error) { return readSmall(filepath.Join(dir, name), limit) }
	note, err := read(noteFile, manifest.MaxNote)
	if err != nil {
		return nil, fmt.Errorf("since: %w: want a directory with the release.note and index.json of the release that hosts have", err)
	}
	trust, err = trust.Follow(func(v int64) ([]byte, error) {
		return read(filepath.Join(rootDir, manifest.RootName(v)), manifest.MaxRoot)
	})
	if err != nil {
		return nil, fmt.Errorf("since: %w", err)
	}
	r, _, err := trust.Open(note)
	if err != nil {
		return nil, fmt.Errorf("since %s: %w", dir, err)
	}
	b, err := read(indexFile, manifest.MaxIndex)
	if err != nil {
		return nil, fmt.Errorf("since: %w", err)
	}
	x, err := r.OpenIndex(b, ids...)
	if err != nil {
		return nil, fmt.Errorf("since %s: %w", dir, err)
	}
	return newSince(r, note, x), nil
}

func newSince(r manifest.Release, note []byte, x manifest.Index) *Since {
	s := &Since{
		base: manifest.Base{Name: r.Name, Version: r.Version, Sequence: r.Sequence, Note: sha256.Sum256(note)},
		has:  map[v1.Hash]int64{}, chunks: map[manifest.Mark]spot{},
	}
	for _, b := range x.Blobs {
		s.has[b.Digest] = b.Size
		for i, m := range b.Chunks {
			if _, ok := s.chunks[m]; !ok {
				_, n := b.Chunk(i)
				s.chunks[m] = spot{b.Digest, int64(i) * manifest.ChunkSize, n}
			}
		}
	}
	return s
}

// leaveOut marks what the base has: whole blobs, and chunks of large ones.
func (s *Since) leaveOut(x *manifest.Blob) {
	if n, ok := s.has[x.Digest]; ok && n == x.Size {
		x.Base = true
		return
	}
	var segs []manifest.Segment
	saved := false
	for i, m := range x.Chunks {
		_, n := x.Chunk(i)
		seg := manifest.Segment{Length: n}
		if at, ok := s.chunks[m]; ok && at.n == n {
			seg.From, seg.Offset, saved = at.blob, at.off, true
		}
		segs = joined(segs, seg)
	}
	if saved {
		x.Segments = segs
	}
}

// joined appends a segment, or makes the last one longer where it goes on.
func joined(segs []manifest.Segment, s manifest.Segment) []manifest.Segment {
	if k := len(segs) - 1; k >= 0 {
		l := &segs[k]
		if l.From == s.From && (l.OnMedia() || l.Offset+l.Length == s.Offset) {
			l.Length += s.Length
			return segs
		}
	}
	return append(segs, s)
}

// against leaves out what the base has. Blobs whose chunks are not known yet
// are read for it.
func (b *build) against(ctx context.Context, blobs []manifest.Blob) error {
	if b.Since == nil {
		return nil
	}
	if b.Since.base.Sequence > b.recipe.Sequence {
		return fmt.Errorf("bundle: --since names sequence %d and the recipe has %d: a host that has it would refuse this release; raise the recipe's sequence",
			b.Since.base.Sequence, b.recipe.Sequence)
	}
	for i := range blobs {
		x := &blobs[i]
		if err := b.measure(ctx, x); err != nil {
			return err
		}
		b.Since.leaveOut(x)
	}
	return nil
}

// baseOf is nil for a bundle that stands alone.
func (b *build) baseOf() *manifest.Base {
	if b.Since == nil {
		return nil
	}
	base := b.Since.base
	return &base
}
