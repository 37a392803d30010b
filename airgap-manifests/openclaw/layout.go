package ocimage

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// config is what a runtime learns from the image. The user is nobody; a sandbox
// gives one of its own.
func (b *builder) config() v1.Config {
	return v1.Config{
		User:       "65534:65534",
		WorkingDir: "/workspace",
		Entrypoint: []string{"/usr/local/bin/openclaw"},
		Cmd:        []string{"--help"},
		Env: []string{
			"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/workspace", "TMPDIR=/tmp", "LANG=C.UTF-8", "SHELL=/bin/bash",
		},
		Labels: map[string]string{
			"org.opencontainers.image.title":    "OpenClaw",
			"org.opencontainers.image.version":  "2026.9.6",
			"org.opencontainers.image.licenses": "MIT",
			"org.opencontainers.image.source":   "https://github.com/openclaw/openclaw",
		},
	}
}

// image joins the layers.
func (b *builder) image(layers []*layer) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	var adds []mutate.Addendum
	for _, l := range layers {
		adds = append(adds, mutate.Addendum{Layer: l, History: v1.History{
			Created: v1.Time{Time: b.epoch}, CreatedBy: "clawbox ocimage: " + l.Name,
		}})
	}
	img, err := mutate.Append(img, adds...)
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Created, cf.Config = "linux", runtime.GOARCH, v1.Time{Time: b.epoch}, b.config()
	return mutate.ConfigFile(img, cf)
}

// writeLayout puts the image into OutLayout, beside it first, so that a reader sees the
// old image or the new one. Layers are linked from the cache where possible.
func (b *builder) writeLayout(layers []*layer) (string, error) {
	img, err := b.image(layers)
	if err != nil {
		return "", err
	}
	digest, err := img.Digest()
	if err != nil {
		return "", err
	}
	if b.current(digest, layers) {
		return digest.String(), nil
	}
	tmp := b.OutLayout + ".new"
	defer os.RemoveAll(tmp) // nothing, once renamed
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	p, err := layout.Write(tmp, empty.Index)
	if err != nil {
		return "", err
	}
	if err := b.linkBlobs(tmp, layers); err != nil {
		return "", err
	}
	name := layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": b.Tag})
	platform := layout.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH})
	if err := p.AppendImage(img, name, platform); err != nil {
		return "", err
	}
	if err := os.RemoveAll(b.OutLayout); err != nil {
		return "", err
	}
	return digest.String(), os.Rename(tmp, b.OutLayout)
}

// current tells whether OutLayout holds the image already.
func (b *builder) current(digest v1.Hash, layers []*layer) bool {
	ix, err := layout.ImageIndexFromPath(b.OutLayout)
	if err != nil {
		return false
	}
	m, err := ix.IndexManifest()
	if err != nil || len(m.Manifests) != 1 || m.Manifests[0].Digest != digest || m.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != b.Tag {
		return false
	}
	for _, l := range layers {
		fi, err := os.Stat(blob(b.OutLayout, l.Hash))
		if err != nil || fi.Size() != l.Bytes {
			return false
		}
	}
	return true
}

func blob(dir string, h v1.Hash) string { return filepath.Join(dir, "blobs", h.Algorithm, h.Hex) }

// linkBlobs gives the layers their names in the layout. Where links don't work,
// AppendImage copies.
func (b *builder) linkBlobs(dir string, layers []*layer) error {
	for _, l := range layers {
		to := blob(dir, l.Hash)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.Link(l.path, to); err != nil && !os.IsExist(err) {
			fmt.Fprintf(b.Log, "ocimage: %v: copying instead\n", err)
		}
	}
	return nil
}

func sorted(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
