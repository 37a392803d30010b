package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/clawbox/clawbox/bundle/content"
)

// pulls is how many blobs of one item are fetched at a time, and how many layers.
var pulls = 3

// blobs brings leaves into the pool, several at a time; those of other items
// that are the same are fetched once.
func (j *job) blobs(ctx context.Context, o origin, leaves []v1.Descriptor) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(pulls)
	for _, d := range leaves {
		g.Go(func() error {
			_, err, _ := j.pool.flight.Do(d.Digest.String(), func() (any, error) { return nil, o.blob(ctx, d) })
			return err
		})
	}
	return g.Wait()
}

// toRegistries connects to registries.
var toRegistries = patient(remote.DefaultTransport)

// registryOrigin is a repository of a registry.
type registryOrigin struct {
	j    *job
	repo name.Repository
}

func (o registryOrigin) options(ctx context.Context) []remote.Option {
	return []remote.Option{
		remote.WithContext(ctx), remote.WithUserAgent("clawbox"), remote.WithTransport(toRegistries),
		// The operator's own docker credentials; they go to the registry and nowhere else.
		remote.WithAuthFromKeychain(authn.DefaultKeychain),
	}
}

func (o registryOrigin) manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	m, err := remote.Get(o.repo.Digest(d.Digest.String()), o.options(ctx)...)
	if err != nil {
		return nil, err
	}
	return readManifest(bytes.NewReader(m.Manifest), d)
}

func (o registryOrigin) blob(ctx context.Context, d v1.Descriptor) error {
	if n, err := o.j.pool.stat(d.Digest); err == nil && n == d.Size {
		return nil
	}
	open := func(ctx context.Context) (io.ReadCloser, error) { return o.get(ctx, d) }
	if o.j.pool.leave(late{d: d, as: lookAs(o.j.item.Kind, d), item: o.j.item.Name, open: open}) {
		return nil
	}
	return retry(ctx, func() error {
		rc, err := open(ctx)
		if err != nil {
			return err
		}
		defer rc.Close()
		task := o.j.progress.Start(fmt.Sprintf("pull %s %.12s", o.j.item.Name, d.Digest.Hex), d.Size)
		err = o.j.store(ctx, d, d.Size, counted{ctx, rc, task})
		task.Done(err)
		return err
	})
}

// get asks for the bytes of a blob. Whoever reads them holds them to the digest:
// that the registry's client does the same would cost a second sum.
func (o registryOrigin) get(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	reg := o.repo.Registry
	auth, err := authn.Resolve(ctx, authn.DefaultKeychain, o.repo)
	if err != nil {
		return nil, err
	}
	t, err := transport.NewWithContext(ctx, reg, auth, transport.NewUserAgent(toRegistries, "clawbox"), []string{o.repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, err
	}
	url := fmt.Sprintf("%s://%s/v2/%s/blobs/%s", reg.Scheme(), reg.RegistryStr(), o.repo.RepositoryStr(), d.Digest)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, http.StatusOK); err != nil {
		return nil, errors.Join(err, resp.Body.Close())
	}
	return resp.Body, nil
}

// registry pulls docker://REF. A pinned item is asked for by digest, and not
// at all when the pool has it already.
func (j *job) registry(ctx context.Context) (fetched, error) {
	ref, err := name.ParseReference(j.arg)
	if err != nil {
		return fetched{}, err
	}
	if j.pin != nil {
		resolved, _ := v1.NewHash(j.pin.Resolved) // checked by loadLock
		if root := j.pin.root(); j.pool.complete(ctx, root) {
			f := fetched{root: root, resolved: resolved}
			f.root.ArtifactType = j.artifactType(root)
			f.platforms, err = j.platforms(ctx, root)
			return f, err
		}
		ref = ref.Context().Digest(j.pin.Resolved)
	}
	o := registryOrigin{j, ref.Context()}
	var d *remote.Descriptor
	err = retry(ctx, func() (err error) { d, err = remote.Get(ref, o.options(ctx)...); return err })
	if err != nil {
		return fetched{}, err
	}
	if d.MediaType.IsSchema1() {
		return fetched{}, fmt.Errorf("%s is a Docker schema 1 manifest, which can't be verified: push it again with a current tool", ref)
	}
	f, err := j.copyTree(ctx, o, v1.Descriptor{MediaType: d.MediaType, Size: d.Size, Digest: d.Digest})
	f.root.ArtifactType = j.artifactType(f.root)
	return f, err
}

// artifactType reads an artifact's type from its manifest; "" for an image.
func (j *job) artifactType(d v1.Descriptor) string {
	raw, err := j.pool.manifest(d)
	if err != nil || !d.MediaType.IsImage() {
		return ""
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return ""
	}
	return m.ArtifactType
}

// permanent is an error that trying again doesn't mend.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// pause is the wait before a second attempt; tests shorten it.
var pause = time.Second

// retry tries three times, as networks do fail; not when the context ended,
// the disk is full, or the server said a definite no.
func retry(ctx context.Context, try func() error) (err error) {
	for i := range 3 {
		if i > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Duration(i) * pause):
			}
		}
		if err = try(); err == nil || hopeless(err) {
			return err
		}
	}
	return fmt.Errorf("after 3 attempts: %w", err)
}

func hopeless(err error) bool {
	var te *transport.Error
	var pe *os.PathError
	var never permanent
	return errors.Is(err, context.Canceled) || errors.Is(err, content.ErrMismatch) || errors.As(err, &pe) ||
		errors.As(err, &never) || errors.As(err, &te) && !te.Temporary()
}

// layoutOrigin is an OCI layout that somebody else made. Its blobs are used
// where they are.
type layoutOrigin struct {
	j   *job
	dir string
}

func (o layoutOrigin) path(h v1.Hash) (string, error) {
	if h.Algorithm != "sha256" || !sha256Form.MatchString(h.Hex) {
		return "", fmt.Errorf("digest %.80q: want sha256:<64 hex digits>", h)
	}
	return filepath.Join(o.dir, "blobs", h.Algorithm, h.Hex), nil
}

func (o layoutOrigin) manifest(_ context.Context, d v1.Descriptor) ([]byte, error) {
	p, err := o.path(d.Digest)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readManifest(f, d)
}

func (o layoutOrigin) blob(_ context.Context, d v1.Descriptor) error {
	p, err := o.path(d.Digest)
	if err != nil {
		return err
	}
	fi, err := os.Stat(p)
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() || fi.Size() != d.Size {
		return &content.MismatchError{Want: d.Digest, WantSize: d.Size, GotSize: fi.Size()}
	}
	o.j.pool.addLocal(d.Digest, localBlob{path: p, size: d.Size})
	return nil
}

// layout takes oci-layout:DIR[:TAG].
func (j *job) layout(ctx context.Context) (fetched, error) {
	dir, tag := j.arg, ""
	if i := strings.LastIndex(dir, ":"); i > strings.LastIndex(dir, "/") {
		dir, tag = dir[:i], dir[i+1:]
	}
	o := layoutOrigin{j, j.recipe.path(dir)}
	raw, err := readSmall(filepath.Join(o.dir, "index.json"), maxManifest)
	if err != nil {
		return fetched{}, err
	}
	x, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return fetched{}, fmt.Errorf("%s/index.json: %w", o.dir, err)
	}
	d, err := byTag(x.Manifests, tag)
	if err != nil {
		return fetched{}, fmt.Errorf("%s/index.json: %w", o.dir, err)
	}
	f, err := j.copyTree(ctx, o, d)
	f.root.ArtifactType = j.artifactType(f.root)
	return f, err
}

// byTag finds the descriptor of that name; without a name, the only one.
func byTag(ds []v1.Descriptor, tag string) (v1.Descriptor, error) {
	var names []string
	for _, d := range ds {
		n := d.Annotations[content.RefName]
		if tag != "" && (n == tag || strings.HasSuffix(n, ":"+tag)) {
			return d, nil
		}
		names = append(names, fmt.Sprintf("%q", n))
	}
	if tag == "" && len(ds) == 1 {
		return ds[0], nil
	}
	return v1.Descriptor{}, fmt.Errorf("no single manifest for tag %q among %d (%s): name one as oci-layout:DIR:TAG",
		tag, len(ds), strings.Join(names, ", "))
}

// archive takes what docker save wrote. Its layers are stored uncompressed, as
// they are known by that digest: compressing would cost time on both sides
// and make the bytes depend on the compressor.
func (j *job) archive(ctx context.Context) (fetched, error) {
	img, err := tarball.ImageFromPath(j.recipe.path(j.arg), nil)
	if err != nil {
		return fetched{}, err
	}
	raw, err := img.RawConfigFile()
	if err != nil {
		return fetched{}, err
	}
	config, err := j.pool.put(ctx, types.OCIConfigJSON, raw)
	if err != nil {
		return fetched{}, err
	}
	layers, err := img.Layers()
	if err != nil {
		return fetched{}, err
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: config}
	for _, l := range layers {
		d, err := j.archiveLayer(ctx, l)
		if err != nil {
			return fetched{}, err
		}
		m.Layers = append(m.Layers, d)
	}
	root, err := j.pool.putJSON(ctx, m.MediaType, m)
	if err != nil {
		return fetched{}, err
	}
	f := fetched{root: root, resolved: root.Digest}
	f.platforms, err = j.platforms(ctx, root)
	return f, err
}

// archiveLayer stores one layer; its diff id is its digest.
func (j *job) archiveLayer(ctx context.Context, l v1.Layer) (v1.Descriptor, error) {
	h, err := l.DiffID()
	if err != nil {
		return v1.Descriptor{}, err
	}
	if _, err := j.pool.store.Stat(h); err != nil {
		rc, err := l.Uncompressed()
		if err != nil {
			return v1.Descriptor{}, err
		}
		defer rc.Close()
		task := j.progress.Start(fmt.Sprintf("unpack %s %.12s", j.item.Name, h.Hex), -1)
		err = j.store(ctx, v1.Descriptor{MediaType: types.OCIUncompressedLayer, Digest: h}, -1, counted{ctx, rc, task})
		task.Done(err)
		if err != nil {
			return v1.Descriptor{}, err
		}
	}
	n, err := j.pool.store.Stat(h)
	return v1.Descriptor{MediaType: types.OCIUncompressedLayer, Digest: h, Size: n}, err
}
