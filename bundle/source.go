package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/clawbox/clawbox/bundle/manifest"
)

// job is one item being brought into the pool.
type job struct {
	recipe   Recipe
	item     Item
	arg      string    // the source without its scheme
	pin      *LockItem // nil: resolve
	lockPath string
	pool     *pool
	progress Progress
}

// fetched is an item whose blobs are all in the pool.
type fetched struct {
	root      v1.Descriptor
	resolved  v1.Hash // what the source's name stands for
	platforms []string
	packages  []LockPackage   // of debs
	model     *manifest.Model // of models
}

// scheme is a kind of source.
type scheme struct {
	prefix string
	arg    string // for messages
	kinds  []string
	fetch  func(*job, context.Context) (fetched, error)
}

// schemes is filled in init, as the fetchers refer to it in their messages.
var schemes []scheme

func init() {
	schemes = []scheme{
		{"docker://", "REF", []string{"image", "model"}, (*job).registry},
		{"oci-layout:", "DIR[:TAG]", []string{"image", "model"}, (*job).layout},
		{"docker-archive:", "FILE", []string{"image"}, (*job).archive},
		{"dir:", "DIR", []string{"model"}, (*job).modelDir},
		{"file:", "FILE", []string{"file", "policy"}, (*job).file},
		{"https://", "HOST/PATH", []string{"file", "policy"}, (*job).https},
		{"deb:", "FILE", []string{"debs"}, (*job).debs},
	}
}

func splitSource(s string) (scheme, string, bool) {
	for _, sch := range schemes {
		if arg, ok := strings.CutPrefix(s, sch.prefix); ok {
			return sch, arg, true
		}
	}
	return scheme{}, "", false
}

func schemeNames() string { return schemesFor("") }

// schemesFor lists the schemes that fit a kind of item; "" for all.
func schemesFor(kind string) string {
	var s []string
	for _, sch := range schemes {
		if kind == "" || slices.Contains(sch.kinds, kind) {
			s = append(s, sch.prefix+sch.arg)
		}
	}
	return strings.Join(s, ", ")
}

// fetch brings the item in and holds it against its pin.
func (j *job) fetch(ctx context.Context) (fetched, error) {
	sch, arg, _ := splitSource(j.item.Source) // checked with the recipe
	j.arg = arg
	f, err := sch.fetch(j, ctx)
	if err != nil {
		return fetched{}, fmt.Errorf("item %s (%s): %w", j.item.Name, j.item.Source, err)
	}
	if j.item.Kind == "model" && f.model == nil {
		if f.model, err = j.foreignModel(f.root); err != nil {
			return fetched{}, fmt.Errorf("item %s (%s): %w", j.item.Name, j.item.Source, err)
		}
	}
	if p := j.pin; p != nil && !j.pool.stands(f.root.Digest) {
		if got := f.resolved.String(); got != p.Resolved {
			return fetched{}, &LockError{j.lockPath, j.item.Name, got, p.Resolved}
		}
		if got := f.root.Digest.String(); got != p.Root {
			return fetched{}, &LockError{j.lockPath, j.item.Name, "root " + got, p.Root}
		}
	}
	return f, nil
}

// origin is a place that has manifests and blobs by digest.
type origin interface {
	// manifest returns verified bytes.
	manifest(ctx context.Context, d v1.Descriptor) ([]byte, error)
	// blob makes d part of the pool. It is called concurrently.
	blob(ctx context.Context, d v1.Descriptor) error
}

// copyTree brings root, or the platforms of it that the item wants, into the
// pool. One platform makes its manifest the root, several make a smaller
// index; the manifests themselves are never changed.
func (j *job) copyTree(ctx context.Context, o origin, root v1.Descriptor) (fetched, error) {
	f := fetched{root: bare(root), resolved: root.Digest}
	if root.MediaType.IsIndex() && j.item.Kind == "image" {
		picked, err := j.pick(ctx, o, root)
		if err != nil {
			return f, err
		}
		f.root = picked
	}
	read := func(d v1.Descriptor) ([]byte, error) {
		if b, err := j.pool.manifest(d); err == nil {
			return b, nil
		}
		b, err := o.manifest(ctx, d)
		if err != nil {
			return nil, err
		}
		_, err = j.pool.put(ctx, d.MediaType, b)
		return b, err
	}
	var t tally
	if err := walkIn(ctx, f.root, read, t.add); err != nil {
		return f, err
	}
	if err := j.blobs(ctx, o, t.leaves); err != nil {
		return f, err
	}
	var err error
	f.platforms, err = j.platforms(ctx, f.root)
	return f, err
}

// maxBlobs is more than an index has room for: its entry for a blob takes more
// than 100 bytes.
const maxBlobs = manifest.MaxIndex / 100

// tally is what manifests name, before any of it is fetched: whoever wrote them
// may say what he likes.
type tally struct {
	leaves []v1.Descriptor // each once
	seen   map[v1.Hash]bool
	bytes  int64
}

// add is for a walk. It refuses what no bundle can hold.
func (t *tally) add(d v1.Descriptor) error {
	if d.Digest.Algorithm != "sha256" || d.Size < 0 || d.Size > manifest.MaxTotal {
		return fmt.Errorf("%s of %d bytes: want a sha256 digest and 0 to %d bytes", d.Digest, d.Size, int64(manifest.MaxTotal))
	}
	if t.seen[d.Digest] {
		return nil
	}
	if t.seen == nil {
		t.seen = map[v1.Hash]bool{}
	}
	t.seen[d.Digest] = true
	if t.bytes += d.Size; t.bytes > manifest.MaxTotal || len(t.seen) > maxBlobs {
		return fmt.Errorf("its manifests name %d blobs of %d bytes and more, want at most %d of %d bytes in all: no bundle holds that", len(t.seen), t.bytes, maxBlobs, int64(manifest.MaxTotal))
	}
	if !isManifest(d) {
		t.leaves = append(t.leaves, d)
	}
	return nil
}

// bare drops what a release's descriptor doesn't hold.
func bare(d v1.Descriptor) v1.Descriptor {
	return v1.Descriptor{MediaType: d.MediaType, Size: d.Size, Digest: d.Digest, ArtifactType: d.ArtifactType}
}

// pick chooses the wanted platforms out of an index.
func (j *job) pick(ctx context.Context, o origin, root v1.Descriptor) (v1.Descriptor, error) {
	raw, err := o.manifest(ctx, root)
	if err != nil {
		return v1.Descriptor{}, err
	}
	x, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("index %s: %w", root.Digest, err)
	}
	var picked []v1.Descriptor
	for _, want := range j.wanted() {
		i := slices.IndexFunc(x.Manifests, func(d v1.Descriptor) bool { return matches(d.Platform, want) })
		if i < 0 {
			return v1.Descriptor{}, fmt.Errorf("it has no %s, only %s: name the platforms of item %s", want, platformList(x.Manifests), j.item.Name)
		}
		picked = append(picked, x.Manifests[i])
	}
	if len(picked) == 1 {
		return bare(picked[0]), nil
	}
	x.Manifests = picked
	return j.pool.putJSON(ctx, root.MediaType, x)
}

// wanted is the item's platforms, or linux/amd64.
func (j *job) wanted() []string {
	if len(j.item.Platforms) > 0 {
		return j.item.Platforms
	}
	return []string{"linux/amd64"}
}

// matches compares os, architecture and, if it is asked for, the variant.
func matches(p *v1.Platform, want string) bool {
	if p == nil {
		return false
	}
	f := strings.Split(want, "/")
	return p.OS == f[0] && p.Architecture == f[1] && (len(f) == 2 || p.Variant == f[2])
}

func platformName(p v1.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

func platformList(ds []v1.Descriptor) string {
	var s []string
	for _, d := range ds {
		if d.Platform != nil && d.Platform.OS != "unknown" {
			s = append(s, platformName(*d.Platform))
		}
	}
	if len(s) == 0 {
		return "manifests without a platform"
	}
	return strings.Join(s, ", ")
}

// platforms reads from the image configs what the item really is for, and
// refuses an image that is not what was asked for.
func (j *job) platforms(ctx context.Context, root v1.Descriptor) (out []string, err error) {
	if j.item.Kind != "image" {
		return nil, nil
	}
	err = walkIn(ctx, root, j.pool.manifest, func(d v1.Descriptor) error {
		if d.MediaType != types.OCIConfigJSON && d.MediaType != types.DockerConfigJSON {
			return nil
		}
		raw, err := j.pool.manifest(d)
		if err != nil {
			return err
		}
		c, err := v1.ParseConfigFile(bytes.NewReader(raw))
		if err != nil {
			return fmt.Errorf("image config %s: %w", d.Digest, err)
		}
		out = append(out, platformName(v1.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}))
		return nil
	})
	if err == nil && len(out) == 0 {
		err = errors.New("it is not a container image: its config has another media type")
	}
	for _, w := range j.item.Platforms {
		if err == nil && !slices.ContainsFunc(out, func(s string) bool { return s == w || strings.HasPrefix(s, w+"/") }) {
			err = fmt.Errorf("it is for %s, item %s wants %s", strings.Join(out, ", "), j.item.Name, w)
		}
	}
	return out, err
}
