// Package ocitree makes small container images of folders, for the programs and
// tests that bundle a release of their own:
//
//	err := ocitree.Write("image", os.DirFS("root"), v1.Config{Entrypoint: []string{"/bin/sh"}})
//	// in a recipe: source: "oci-layout:image:latest"
package ocitree

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Write makes an OCI layout in the folder to, with one image for linux/amd64 that
// is called latest: root's folders and regular files in one layer, and the
// configuration c. All belongs to root and has no time, so that equal content is
// an equal digest.
func Write(to string, root fs.FS, c v1.Config) error {
	b, err := layer(root)
	if err != nil {
		return err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return err
	}
	f, err := img.ConfigFile()
	if err != nil {
		return err
	}
	f.Architecture, f.OS, f.Config = "amd64", "linux", c
	if img, err = mutate.ConfigFile(img, f); err != nil {
		return err
	}
	p, err := layout.Write(to, empty.Index)
	if err != nil {
		return err
	}
	return p.AppendImage(img, layout.WithPlatform(v1.Platform{OS: f.OS, Architecture: f.Architecture}),
		layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "latest"}))
}

// layer is the tar of a folder, in the order of its names.
func layer(root fs.FS) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		h := &tar.Header{Name: name, Mode: int64(st.Mode().Perm())}
		switch {
		case d.IsDir():
			h.Name, h.Typeflag = name+"/", tar.TypeDir
			return w.WriteHeader(h)
		case !d.Type().IsRegular():
			return fmt.Errorf("image of a folder: %s is %v, want folders and regular files", name, d.Type())
		}
		h.Typeflag, h.Size = tar.TypeReg, st.Size()
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	})
	if err != nil {
		return nil, err
	}
	return b.Bytes(), w.Close()
}
