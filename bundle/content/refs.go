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
	"strings"
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

// Name is a name for TagAll to set.
type Name struct {
	Ref string
	v1.Descriptor
}

// Pinned is the annotation of a name that Pin has made.
const Pinned = "io.clawbox.pinned"

// Pin is a second name for what ref names, REPOSITORY@DIGEST, which never leads
// elsewhere. While the store has it, the blobs stay and a registry shows them by
// their digest, wherever ref leads. A ref of that form is its own pin.
func Pin(ref string, d v1.Descriptor) Name {
	repo, _, _ := strings.Cut(ref, "@")
	if i := strings.LastIndexByte(repo, ':'); i > strings.LastIndexByte(repo, '/') {
		repo = repo[:i]
	}
	at := "@" + d.Digest.String()
	if len(repo)+len(at) > maxRef { // no registry has names as long as that
		repo = "pinned"
	}
	if repo+at == ref {
		return Name{ref, d}
	}
	return Name{repo + at, annotated(d, Pinned, "true")}
}

func annotated(d v1.Descriptor, key, value string) v1.Descriptor {
	d.Annotations = maps.Clone(d.Annotations)
	if d.Annotations == nil {
		d.Annotations = map[string]string{}
	}
	d.Annotations[key] = value
	return d
}

// Tag makes ref name d, whose blob must be in the store with d's size. A ref
// that exists is moved. It is durable when Tag returns.
func (s *Store) Tag(ref string, d v1.Descriptor) error { return s.TagAll([]Name{{ref, d}}) }

// TagAll is Tag for many names, in one write of index.json: on an error and after
// a power cut all of them are set, or none.
func (s *Store) TagAll(names []Name) error {
	for i := range names {
		if err := CheckRef(names[i].Ref); err != nil {
			return err
		}
	}
	return s.update(func(ds []v1.Descriptor) ([]v1.Descriptor, error) {
		at := places(ds)
		for _, n := range names {
			d, err := s.named(n)
			if err != nil {
				return nil, err
			}
			i, ok := at[n.Ref]
			if !ok {
				i, ds = len(ds), append(ds, d)
			}
			ds[i], at[n.Ref] = d, i
		}
		return ds, nil
	})
}

// places says where in ds each name is; of two that are the same, the first, as
// Resolve has it.
func places(ds []v1.Descriptor) map[string]int {
	at := make(map[string]int, len(ds))
	for i, d := range slices.Backward(ds) {
		at[d.Annotations[RefName]] = i
	}
	return at
}

// Point is TagAll for those of names that lead elsewhere. Without any, index.json
// is not written.
func (s *Store) Point(names []Name) error {
	ds, err := s.Refs()
	if err != nil {
		return err
	}
	at := places(ds)
	names = slices.DeleteFunc(slices.Clone(names), func(n Name) bool {
		i, ok := at[n.Ref]
		return ok && ds[i].Digest == n.Digest && ds[i].Size == n.Size
	})
	if len(names) == 0 {
		return nil
	}
	return s.TagAll(names)
}

// named is n as index.json has it. The caller has the lock that Delete has, too.
func (s *Store) named(n Name) (v1.Descriptor, error) {
	if size, err := s.Stat(n.Digest); err != nil {
		return v1.Descriptor{}, fmt.Errorf("tag %s: %w", n.Ref, err)
	} else if size != n.Size {
		return v1.Descriptor{}, fmt.Errorf("tag %s: descriptor says %d bytes, blob %s has %d", n.Ref, n.Size, n.Digest, size)
	}
	return annotated(n.Descriptor, RefName, n.Ref), nil
}

// Untag forgets refs; the blobs stay. One that doesn't exist is not an error.
func (s *Store) Untag(refs ...string) error {
	gone := map[string]bool{}
	for _, r := range refs {
		gone[r] = r != ""
	}
	return s.update(func(ds []v1.Descriptor) ([]v1.Descriptor, error) {
		return slices.DeleteFunc(ds, func(d v1.Descriptor) bool { return gone[d.Annotations[RefName]] }), nil
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
