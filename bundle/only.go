package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// only is the same media with no more than the named items and what they refer
// to. Manifests that a differential bundle leaves out are read from s.
func (m *Media) only(ctx context.Context, s *content.Store, names []string) (*Media, error) {
	out := *m
	out.release.Items, out.index.Blobs, out.names = nil, nil, &owners{}
	need := map[v1.Hash]bool{}
	for _, it := range m.release.Items {
		if !slices.Contains(names, it.Name) {
			continue
		}
		out.release.Items = append(out.release.Items, it)
		err := walkIn(ctx, it.Descriptor, func(d v1.Descriptor) ([]byte, error) { return m.manifestOr(ctx, s, d) }, func(d v1.Descriptor) error {
			need[d.Digest] = true
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("item %s: %w", it.Name, err)
		}
	}
	if len(out.release.Items) != len(slices.Compact(slices.Sorted(slices.Values(names)))) {
		return nil, fmt.Errorf("items %s: the bundle doesn't have all of them: want some of %s", strings.Join(names, ", "), strings.Join(itemNames(m.release.Items), ", "))
	}
	for _, b := range m.index.Blobs {
		if need[b.Digest] {
			out.index.Blobs = append(out.index.Blobs, b)
		}
	}
	return &out, nil
}

// manifestOr reads a manifest from the media, or from the base's store.
func (m *Media) manifestOr(ctx context.Context, s *content.Store, d v1.Descriptor) ([]byte, error) {
	raw, err := m.manifest(ctx, d)
	if !errors.Is(err, manifest.ErrNoBase) {
		return raw, err
	}
	raw, err = (&pool{store: s}).manifest(d)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: load %s first, or the full bundle", manifest.ErrNoBase, m.release.Base)
	}
	return raw, err
}

func itemNames(items []manifest.Item) (out []string) {
	for _, it := range items {
		out = append(out, it.Name)
	}
	return out
}
