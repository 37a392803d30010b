package sbom

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Opener opens a blob: of a store, or of a build.
type Opener func(v1.Hash) (*os.File, error)

// Found is one platform's image.
type Found struct {
	Platform string // os/architecture
	Digest   v1.Hash
	Config   []byte // the image's configuration, for the scan for secrets
	Image    Image
}

// maxManifest bounds manifests and configurations, in bytes; maxDepth bounds how
// deep indexes nest.
const (
	maxManifest = 4 << 20
	maxDepth    = 4
)

// ScanImages reads every image below root, which may be an index. A layer that
// several platforms share is read for each. Attestations are passed over.
func ScanImages(ctx context.Context, open Opener, root v1.Descriptor, tee Tee) ([]Found, error) {
	return Images(open, root, func(d v1.Descriptor) (Seen, error) {
		s, err := Layer{d.Digest, func() (io.ReadCloser, error) { return open(d.Digest) }}.read(ctx, tee)
		if err != nil {
			err = fmt.Errorf("layer %s: %w", d.Digest, err)
		}
		return s, err
	})
}

// Images is ScanImages for who has seen the layers already: read gives what one
// told.
func Images(open Opener, root v1.Descriptor, read func(v1.Descriptor) (Seen, error)) ([]Found, error) {
	return images(open, root, read, 0, map[v1.Hash]bool{})
}

// images reads each manifest once, however often indexes name it.
func images(open Opener, d v1.Descriptor, read func(v1.Descriptor) (Seen, error), depth int, seen map[v1.Hash]bool) (out []Found, err error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("%s: indexes nest deeper than %d", d.Digest, maxDepth)
	}
	if seen[d.Digest] {
		return nil, nil
	}
	seen[d.Digest] = true
	raw, err := small(open, d)
	if err != nil {
		return nil, err
	}
	if !d.MediaType.IsIndex() {
		f, err := scanImage(open, d, raw, read)
		return f, err
	}
	x, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("index %s: %w", d.Digest, err)
	}
	for _, m := range x.Manifests {
		if m.Platform != nil && m.Platform.OS == "unknown" { // BuildKit's attestations
			continue
		}
		fs, err := images(open, m, read, depth+1, seen)
		if err != nil {
			return nil, err
		}
		out = append(out, fs...)
	}
	return out, nil
}

func scanImage(open Opener, d v1.Descriptor, raw []byte, read func(v1.Descriptor) (Seen, error)) ([]Found, error) {
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	if m.Config.MediaType != types.OCIConfigJSON && m.Config.MediaType != types.DockerConfigJSON {
		return nil, fmt.Errorf("manifest %s has a config of type %.80q: it is not a container image", d.Digest, m.Config.MediaType)
	}
	f := Found{Digest: d.Digest}
	if f.Config, err = small(open, m.Config); err != nil {
		return nil, err
	}
	c, err := v1.ParseConfigFile(bytes.NewReader(f.Config))
	if err != nil {
		return nil, fmt.Errorf("config %s: %w", m.Config.Digest, err)
	}
	f.Platform = c.OS + "/" + c.Architecture
	var ls []Seen
	var odd []string
	for _, l := range m.Layers {
		if !strings.Contains(string(l.MediaType), "tar") || l.Digest.Algorithm != "sha256" {
			odd = append(odd, fmt.Sprintf("layer %s: of type %.80s", l.Digest, l.MediaType))
			continue
		}
		s, err := read(l)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", d.Digest, err)
		}
		ls = append(ls, s)
	}
	if f.Image, err = Merge(ls...); err != nil {
		return nil, fmt.Errorf("image %s: %w", d.Digest, err)
	}
	f.Image.Unread = append(f.Image.Unread, odd...)
	slices.Sort(f.Image.Unread)
	return []Found{f}, nil
}

// small reads a manifest or a configuration and holds it to its digest.
func small(open Opener, d v1.Descriptor) ([]byte, error) {
	if d.Size > maxManifest {
		return nil, fmt.Errorf("%s: %d bytes, want at most %d", d.Digest, d.Size, maxManifest)
	}
	in, err := open(d.Digest)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	b, err := io.ReadAll(io.LimitReader(in, maxManifest+1))
	if err != nil {
		return nil, err
	}
	if got := describe(d.MediaType, b); got.Digest != d.Digest || got.Size != d.Size {
		return nil, fmt.Errorf("%s: the blob's digest is %s: the store is damaged", d.Digest, got.Digest)
	}
	return b, nil
}
