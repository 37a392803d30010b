package ocitree

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"testing"
	"testing/fstest"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// What is in the folder is in the image, and when it was written there is not.
func TestWrite(t *testing.T) {
	tree := func(at time.Time) fs.FS {
		return fstest.MapFS{
			"bin": {Mode: fs.ModeDir | 0o755, ModTime: at}, "bin/sh": {Data: []byte("#!"), Mode: 0o755, ModTime: at}, "etc": {Mode: fs.ModeDir | 0o755, ModTime: at}, "etc/motd": {Data: []byte("hello"), Mode: 0o644, ModTime: at},
		}
	}
	var digests []v1.Hash
	for i, at := range []time.Time{time.Unix(1, 0), time.Unix(2e9, 0)} {
		dir := filepath.Join(t.TempDir(), fmt.Sprint(i))
		if err := Write(dir, tree(at), v1.Config{Entrypoint: []string{"/bin/sh"}}); err != nil {
			t.Fatal(err)
		}
		img := only(t, dir)
		d, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d)
		if got, want := files(t, img), []string{"bin/ 755 ", "bin/sh 755 #!", "etc/ 755 ", "etc/motd 644 hello"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		if c, err := img.ConfigFile(); err != nil || c.OS != "linux" || c.Architecture != "amd64" || !slices.Equal(c.Config.Entrypoint, []string{"/bin/sh"}) {
			t.Errorf("%+v, %v", c, err)
		}
	}
	if digests[0] != digests[1] {
		t.Errorf("equal content has the digests %v", digests)
	}
	link := fstest.MapFS{"a": {Mode: fs.ModeSymlink}}
	if err := Write(t.TempDir(), link, v1.Config{}); err == nil {
		t.Error("a link passes")
	}
}

func only(t *testing.T, dir string) v1.Image {
	t.Helper()
	ix, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := ix.IndexManifest()
	if err != nil || len(m.Manifests) != 1 || m.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "latest" {
		t.Fatalf("%+v, %v", m, err)
	}
	img, err := ix.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func files(t *testing.T, img v1.Image) (out []string) {
	t.Helper()
	ls, err := img.Layers()
	if err != nil || len(ls) != 1 {
		t.Fatal(len(ls), err)
	}
	r, err := ls[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s %o %s", h.Name, h.Mode, b))
	}
}
