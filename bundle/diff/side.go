package diff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// Bounds of what is read into memory, in bytes, and of how deep indexes nest.
const (
	maxManifest = 4 << 20
	maxPolicy   = 1 << 20
	maxSBOM     = 64 << 20
	maxDepth    = 4
)

// Side is one of the two that are compared.
type Side struct {
	Release

	host   bool
	items  []manifest.Item
	need   map[v1.Hash]int64         // all content, with sizes
	index  map[v1.Hash]manifest.Blob // empty for a host
	refs   []v1.Descriptor           // items, and what refers to them
	open   func(context.Context, v1.Hash) (io.ReadCloser, error)
	absent bool // parts are missing, so what can't be read is no surprise
	notes  []string
	store  *content.Store // of a host
}

// Bundle is a bundle, or its two small files alone. It reads manifests as far as
// the parts are there.
func Bundle(ctx context.Context, from string, c *bundle.Contents) (*Side, error) {
	r := c.Release()
	s := &Side{
		Release: Release{From: from, Name: r.Name, Version: r.Version, Sequence: r.Sequence, Digest: c.Digest().String(), Verified: c.Verified, Signers: append([]string{}, c.Signers()...)},
		items:   r.Items, need: map[v1.Hash]int64{}, index: map[v1.Hash]manifest.Blob{}, open: c.Open,
	}
	if r.Base != nil {
		s.Base = r.Base.String()
	}
	for _, b := range c.Blobs() {
		s.need[b.Digest], s.index[b.Digest] = b.Size, b
	}
	all, lost := c.Parts()
	if s.absent = lost > 0; s.absent {
		s.notes = append(s.notes, fmt.Sprintf("%s: %d of %d parts are not there, so what manifests, policies and layers in them say was not compared", from, lost, all))
		return s, nil
	}
	var err error
	s.refs, err = c.Refs(ctx)
	return s, err
}

// Host is what the store of a host has; r is the installed release.
func Host(ctx context.Context, from string, st *content.Store, r Release) (*Side, error) {
	r.From, r.Signers = from, append([]string{}, r.Signers...)
	s := &Side{Release: r, host: true, need: map[v1.Hash]int64{}, index: map[v1.Hash]manifest.Blob{}, store: st}
	s.open = func(_ context.Context, h v1.Hash) (io.ReadCloser, error) { return st.Open(h) }
	var err error
	if s.refs, err = st.Refs(); err != nil {
		return nil, err
	}
	for _, d := range s.refs {
		ref := d.Annotations[content.RefName]
		if ref == "" {
			continue
		}
		if d.Annotations[content.Pinned] != "" {
			_, _ = s.count(ctx, d) // it stays, whether it is whole or not
			continue
		}
		it := manifest.Item{Name: repo(ref), Ref: ref, Kind: s.kind(ctx, d), Descriptor: plain(d)}
		if it.TotalSize, err = s.count(ctx, d); err != nil {
			s.notes = append(s.notes, fmt.Sprintf("%s: %s is not whole there: %v", from, ref, err))
		}
		s.items = append(s.items, it)
	}
	return s, ctx.Err()
}

// plain leaves out what belongs to index.json.
func plain(d v1.Descriptor) v1.Descriptor {
	return v1.Descriptor{MediaType: d.MediaType, Size: d.Size, Digest: d.Digest, ArtifactType: d.ArtifactType}
}

// kinds of artifacts, by their types; a policy is a file, too, see pair.
var kinds = map[string]string{
	bundle.FileArtifact: "file", "application/vnd.cncf.model.manifest.v1+json": "model",
	"application/vnd.cyclonedx+json": "sbom", "application/spdx+json": "sbom",
}

func (s *Side) kind(ctx context.Context, d v1.Descriptor) string {
	if !d.MediaType.IsImage() {
		return "image"
	}
	m, err := s.manifest(ctx, d)
	if err != nil || m.ArtifactType == "" {
		return "image"
	}
	if k, ok := kinds[m.ArtifactType]; ok {
		return k
	}
	return "file"
}

// count adds up what lies below d, and takes it for needed.
func (s *Side) count(ctx context.Context, d v1.Descriptor) (n int64, err error) {
	seen := map[v1.Hash]bool{}
	err = s.walk(ctx, d, func(c v1.Descriptor) error {
		if !seen[c.Digest] {
			seen[c.Digest], n = true, n+c.Size
			s.need[c.Digest] = c.Size
		}
		if _, err := s.store.Stat(c.Digest); err != nil {
			return fmt.Errorf("blob %s: %w", c.Digest, fs.ErrNotExist)
		}
		return nil
	})
	return n, err
}

// has says whether the side has a blob.
func (s *Side) has(h v1.Hash, n int64) bool {
	if s.store != nil {
		got, err := s.store.Stat(h)
		return err == nil && got == n
	}
	got, ok := s.need[h]
	return ok && got == n
}

// base says whether the side has what a blob of a differential bundle takes
// from its base.
func (s *Side) base(x manifest.Blob) bool {
	for _, src := range x.Sources() {
		if src.OnMedia() {
			continue
		}
		n := s.need[src.From]
		if s.store != nil {
			n, _ = s.store.Stat(src.From) // 0 with an error
		}
		if n < src.Offset+src.Length {
			return false
		}
	}
	return true
}

// marks are the lengths of the chunks of large blobs, by their marks.
func (s *Side) marks() (out map[manifest.Mark]int64, known bool) {
	out = map[manifest.Mark]int64{}
	for _, b := range s.index {
		for i, m := range b.Chunks {
			_, out[m] = b.Chunk(i)
		}
	}
	return out, !s.host
}

// read returns a small blob, held to its digest.
func (s *Side) read(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, fmt.Errorf("%s: %d bytes, want at most %d", d.Digest, d.Size, limit)
	}
	f, err := s.open(ctx, d.Digest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, d.Size+1))
	if err != nil {
		return nil, err
	}
	if h, n, err := v1.SHA256(bytes.NewReader(b)); err != nil || h != d.Digest || n != d.Size {
		return nil, fmt.Errorf("%s: got %d bytes with digest %s: damaged, or its manifest is wrong", d.Digest, n, h)
	}
	return b, nil
}

func (s *Side) manifest(ctx context.Context, d v1.Descriptor) (*v1.Manifest, error) {
	b, err := s.read(ctx, d, maxManifest)
	if err != nil {
		return nil, err
	}
	return v1.ParseManifest(bytes.NewReader(b))
}

// walk calls visit for d and all below it, parents first. Each manifest is read
// once, however often others name it.
func (s *Side) walk(ctx context.Context, d v1.Descriptor, visit func(v1.Descriptor) error) error {
	return (&walker{s, visit, map[v1.Hash]bool{}}).walk(ctx, d, 0)
}

type walker struct {
	s     *Side
	visit func(v1.Descriptor) error
	read  map[v1.Hash]bool
}

func (w *walker) walk(ctx context.Context, d v1.Descriptor, depth int) error {
	if err := errors.Join(ctx.Err(), w.visit(d)); err != nil {
		return err
	}
	if w.read[d.Digest] {
		return nil
	}
	if depth > maxDepth {
		return errors.New("manifests are nested too deep")
	}
	below, err := w.s.below(ctx, d)
	if err != nil {
		return err
	}
	w.read[d.Digest] = below != nil
	for _, c := range below {
		if err := w.walk(ctx, c, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// below lists what a manifest or an index names; nil for anything else.
func (s *Side) below(ctx context.Context, d v1.Descriptor) ([]v1.Descriptor, error) {
	switch {
	case d.MediaType.IsIndex():
		b, err := s.read(ctx, d, maxManifest)
		if err != nil {
			return nil, err
		}
		x, err := v1.ParseIndexManifest(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		return append([]v1.Descriptor{}, x.Manifests...), nil
	case d.MediaType.IsImage():
		m, err := s.manifest(ctx, d)
		if err != nil {
			return nil, err
		}
		return append([]v1.Descriptor{m.Config}, m.Layers...), nil
	}
	return nil, nil
}

// leaves lists the layers below an item, each once.
func (s *Side) leaves(ctx context.Context, it *manifest.Item) (out []leaf, err error) {
	type key struct {
		name   string
		digest v1.Hash
	}
	seen := map[key]bool{}
	err = s.walk(ctx, it.Descriptor, func(d v1.Descriptor) error {
		k := key{d.Annotations["org.opencontainers.image.title"], d.Digest}
		if d.MediaType.IsIndex() || d.MediaType.IsImage() || configs[d.MediaType] || seen[k] {
			return nil
		}
		seen[k] = true
		out = append(out, leaf{k.name, d})
		return nil
	})
	return out, err
}

// configs are the media types of configurations, which are no layers.
var configs = map[types.MediaType]bool{
	types.OCIConfigJSON: true, types.DockerConfigJSON: true, "application/vnd.oci.empty.v1+json": true,
	"application/vnd.cncf.model.config.v1+json": true,
}

// couple is an item on both sides, or on one.
type couple struct{ a, b *manifest.Item }

// pair finds for each item of b the one of a: by name, and where one side is a
// host, by its name in the store, of which the installed version counts first.
// SBOMs are left out: they only tell of the others.
func pair(a, b *Side) (out []couple) {
	used := map[*manifest.Item]bool{}
	for i := range b.items {
		it := &b.items[i]
		if it.Kind == "sbom" || used[it] || b.host && slices.ContainsFunc(out, func(c couple) bool { return c.b != nil && c.b.Name == it.Name }) {
			continue
		}
		p := couple{b: it, a: a.find(it, b)}
		if p.a != nil {
			used[p.a] = true
		}
		p.b = b.best(p)
		if a.host || b.host {
			p = p.told()
		}
		out = append(out, p)
	}
	for i := range a.items {
		it := &a.items[i]
		if it.Kind == "sbom" || used[it] || a.host && slices.ContainsFunc(out, func(c couple) bool { return c.a != nil && repo(c.a.Ref) == repo(it.Ref) }) {
			continue
		}
		out = append(out, couple{a: it})
	}
	return out
}

// find is the item of s that it, of the side o, stands for.
func (s *Side) find(it *manifest.Item, o *Side) (best *manifest.Item) {
	for i := range s.items {
		c := &s.items[i]
		switch {
		case !s.host && !o.host:
			if c.Name == it.Name {
				return c
			}
		case repo(c.Ref) != repo(it.Ref), c.Descriptor.ArtifactType != it.Descriptor.ArtifactType: // two forms of a list lie in one repository
		case c.Descriptor.Digest == it.Descriptor.Digest:
			return c
		case best == nil, strings.HasSuffix(c.Ref, ":"+s.Version), c.Ref == it.Ref && !strings.HasSuffix(best.Ref, ":"+s.Version):
			best = c
		}
	}
	return best
}

// best prefers, among a host's versions of an item, the installed one.
func (s *Side) best(p couple) *manifest.Item {
	if !s.host {
		return p.b
	}
	for i := range s.items {
		if c := &s.items[i]; c.Name == p.b.Name && strings.HasSuffix(c.Ref, ":"+s.Version) {
			return c
		}
	}
	return p.b
}

// told gives the item of a host the kind that the bundle says: it knows
// policies from files.
func (p couple) told() couple {
	switch {
	case p.a == nil || p.b == nil:
	case p.a.Kind == "file":
		p.a.Kind = p.b.Kind
	case p.b.Kind == "file":
		p.b.Kind = p.a.Kind
	}
	return p
}

// repo is a name in a store without its tag.
func repo(ref string) string {
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		return ref[:i]
	}
	return ref
}
