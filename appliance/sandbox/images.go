package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/internal/durable"
)

// maxManifest bounds an image's index, manifest and configuration, in bytes
// each.
const maxManifest = 8 << 20

// Blobs is where images come from: content.Store.
type Blobs interface {
	Resolve(ref string) (v1.Descriptor, error)
	Open(h v1.Hash) (*os.File, error)
}

// Image is an unpacked image: what it contains and how it wants to be run.
// Its user is ignored: an agent has its own.
type Image struct {
	Ref        string
	Digest     v1.Hash  // of the manifest for this platform
	Layers     []string // directories, topmost first, read-only for everyone
	Entrypoint []string
	Cmd        []string
	Env        []string // NAME=value
	Workdir    string
}

// Images unpacks image layers into a directory, each once, whichever images
// share it. It is safe for concurrent use in one process.
type Images struct {
	dir   string
	blobs Blobs

	mu sync.Mutex // held while a layer is unpacked
}

// OpenImages keeps layers below state, and removes what an unpacking that was
// cut short has left there.
func OpenImages(state string, b Blobs) (*Images, error) {
	im := &Images{dir: filepath.Join(state, "layers"), blobs: b}
	if err := durable.MkdirAll(im.dir, 0o700); err != nil {
		return nil, err
	}
	torn, err := filepath.Glob(filepath.Join(im.dir, tempPrefix+"*"))
	if err != nil {
		return nil, err
	}
	for _, t := range torn {
		if err := os.RemoveAll(t); err != nil {
			return nil, err
		}
	}
	return im, nil
}

// Prepare makes the image that ref names ready to run, on this platform.
func (im *Images) Prepare(ctx context.Context, ref string) (Image, error) {
	img, m, c, err := im.describe(ref)
	if err == nil {
		err = im.fill(ctx, &img, m, c)
	}
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", ref, err)
	}
	return img, nil
}

// Describe is Prepare for an image that somebody else unpacks: it has no
// Layers.
func (im *Images) Describe(ref string) (Image, error) {
	img, _, _, err := im.describe(ref)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", ref, err)
	}
	return img, nil
}

func (im *Images) describe(ref string) (img Image, m *v1.Manifest, c *v1.ConfigFile, err error) {
	d, err := im.blobs.Resolve(ref)
	if err != nil {
		return img, nil, nil, err
	}
	m, h, err := im.manifest(d)
	if err != nil {
		return img, nil, nil, err
	}
	b, err := im.read(m.Config.Digest)
	if err != nil {
		return img, nil, nil, fmt.Errorf("configuration: %w", err)
	}
	if c, err = v1.ParseConfigFile(bytes.NewReader(b)); err != nil {
		return img, nil, nil, fmt.Errorf("configuration %s: %w", m.Config.Digest, err)
	}
	img = Image{Ref: ref, Digest: h, Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, Env: c.Config.Env, Workdir: c.Config.WorkingDir}
	return img, m, c, fits(m, c)
}

func (im *Images) fill(ctx context.Context, img *Image, m *v1.Manifest, c *v1.ConfigFile) error {
	for i, l := range m.Layers {
		dir, err := im.layer(ctx, l.Digest, c.RootFS.DiffIDs[i])
		if err != nil {
			return fmt.Errorf("layer %d, %s: %w", i, l.Digest, err)
		}
		img.Layers = append([]string{dir}, img.Layers...)
	}
	return nil
}

// fits refuses an image that contradicts itself or runs elsewhere.
func fits(m *v1.Manifest, c *v1.ConfigFile) error {
	if len(m.Layers) == 0 || len(m.Layers) != len(c.RootFS.DiffIDs) {
		return fmt.Errorf("it has %d layers and %d layer ids; want the same number, at least 1: is it a container image?", len(m.Layers), len(c.RootFS.DiffIDs))
	}
	if c.OS != "linux" || c.Architecture != runtime.GOARCH {
		return fmt.Errorf("it is for %s/%s, this host is linux/%s: bundle the image for this platform", c.OS, c.Architecture, runtime.GOARCH)
	}
	return nil
}

// manifest follows an index to the manifest for this platform.
func (im *Images) manifest(d v1.Descriptor) (*v1.Manifest, v1.Hash, error) {
	b, err := im.read(d.Digest)
	if err != nil {
		return nil, d.Digest, fmt.Errorf("manifest: %w", err)
	}
	if !d.MediaType.IsIndex() {
		m, err := v1.ParseManifest(bytes.NewReader(b))
		return m, d.Digest, err
	}
	ix, err := v1.ParseIndexManifest(bytes.NewReader(b))
	if err != nil {
		return nil, d.Digest, err
	}
	for _, m := range ix.Manifests {
		if m.MediaType.IsImage() && m.Platform != nil && m.Platform.OS == "linux" && m.Platform.Architecture == runtime.GOARCH {
			return im.manifest(m)
		}
	}
	return nil, d.Digest, fmt.Errorf("index %s has no manifest for linux/%s among %d: bundle the image for this platform", d.Digest, runtime.GOARCH, len(ix.Manifests))
}

// read returns a small blob, checked against its digest.
func (im *Images) read(h v1.Hash) ([]byte, error) {
	f, err := im.blobs.Open(h)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxManifest {
		return nil, fmt.Errorf("%s is larger than %d bytes", h, maxManifest)
	}
	got, _, err := v1.SHA256(bytes.NewReader(b))
	if err == nil && got != h {
		err = fmt.Errorf("got %s, want %s: the store is damaged; 'clawbox verify' names what else is", got, h)
	}
	return b, err
}
