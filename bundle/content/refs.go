package content

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"unicode"
	"unicode/utf8"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/internal/durable"
)

// RefName is the annotation that holds a descriptor's name in index.json (OCI
// image-spec, annotations.md).
const RefName = "org.opencontainers.image.ref.name"

const (
	maxIndex = 16 << 20 // bytes of index.json
	maxRef   = 512      // bytes of one name
)

// CheckRef says whether ref can name something in a store: 1 to 512 bytes of
// UTF-8 without spaces and control characters.
func CheckRef(ref string) error {
	if ref == "" || len(ref) > maxRef || !utf8.ValidString(ref) {
		return fmt.Errorf("ref %.80q: want 1 to %d bytes of UTF-8", ref, maxRef)
	}
	for _, r := range ref {
		if unicode.IsSpace(r) || !unicode.IsPrint(r) {
			return fmt.Errorf("ref %.80q: it holds %q: spaces and control characters are not allowed", ref, r)
		}
	}
	return nil
}

// Resolve returns the descriptor that ref names; fs.ErrNotExist when there is
// none.
func (s *Store) Resolve(ref string) (v1.Descriptor, error) {
	ds, err := s.Refs()
	if err != nil {
		return v1.Descriptor{}, err
	}
	if i := find(ds, ref); i >= 0 {
		return ds[i], nil
	}
	return v1.Descriptor{}, fmt.Errorf("ref %.80q in %s: %w", ref, s.dir, fs.ErrNotExist)
}

// find returns the place of ref, or -1. The empty ref names nothing.
func find(ds []v1.Descriptor, ref string) int {
	if ref == "" {
		return -1
	}
	return slices.IndexFunc(ds, func(d v1.Descriptor) bool { return d.Annotations[RefName] == ref })
}

// Refs returns every descriptor in index.json, in its order. One written by
// another tool may have no name.
func (s *Store) Refs() ([]v1.Descriptor, error) {
	f, err := os.Open(s.path(indexFile))
	if err != nil {
		return nil, fmt.Errorf("content store: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxIndex+1))
	if err != nil {
		return nil, fmt.Errorf("content store: %w", err)
	}
	if len(b) > maxIndex {
		return nil, fmt.Errorf("content store: %s is larger than %d bytes", f.Name(), maxIndex)
	}
	m, err := v1.ParseIndexManifest(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("content store: parse %s: %w", f.Name(), err)
	}
	return m.Manifests, nil
}

// Tag makes ref name d, whose blob must be in the store with d's size. A ref
// that exists is moved. It is durable when Tag returns.
func (s *Store) Tag(ref string, d v1.Descriptor) error {
	if err := CheckRef(ref); err != nil {
		return err
	}
	d.Annotations = maps.Clone(d.Annotations)
	if d.Annotations == nil {
		d.Annotations = map[string]string{}
	}
	d.Annotations[RefName] = ref
	return s.update(func(ds []v1.Descriptor) ([]v1.Descriptor, error) {
		// Under the lock: Delete has it, too.
		if n, err := s.Stat(d.Digest); err != nil {
			return nil, fmt.Errorf("tag %s: %w", ref, err)
		} else if n != d.Size {
			return nil, fmt.Errorf("tag %s: descriptor says %d bytes, blob %s has %d", ref, d.Size, d.Digest, n)
		}
		if i := find(ds, ref); i >= 0 {
			ds[i] = d
			return ds, nil
		}
		return append(ds, d), nil
	})
}

// Untag forgets ref; the blobs stay. A ref that doesn't exist is not an error.
func (s *Store) Untag(ref string) error {
	return s.update(func(ds []v1.Descriptor) ([]v1.Descriptor, error) {
		return slices.DeleteFunc(ds, func(d v1.Descriptor) bool { return ref != "" && d.Annotations[RefName] == ref }), nil
	})
}

// update rewrites index.json under the lock.
func (s *Store) update(change func([]v1.Descriptor) ([]v1.Descriptor, error)) error {
	unlock, err := s.lock(unix.LOCK_EX)
	if err != nil {
		return fmt.Errorf("content store: %w", err)
	}
	defer unlock()
	ds, err := s.Refs()
	if err != nil {
		return err
	}
	if ds, err = change(ds); err != nil {
		return err
	}
	return s.writeIndex(ds)
}

func (s *Store) writeIndex(ds []v1.Descriptor) error {
	if ds == nil {
		ds = []v1.Descriptor{} // "manifests": null is not valid
	}
	b, err := json.MarshalIndent(v1.IndexManifest{
		SchemaVersion: 2,
		MediaType:     types.OCIImageIndex,
		Manifests:     ds,
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("content store: %w", err)
	}
	if len(b) >= maxIndex {
		return fmt.Errorf("content store: %s would have %d bytes, more than %d: remove refs first", indexFile, len(b), maxIndex)
	}
	return durable.WriteFile(s.path(indexFile), append(b, '\n'), 0o644)
}
