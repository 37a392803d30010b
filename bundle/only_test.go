package bundle

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/clawbox/clawbox/bundle/manifest"
)

// TestOnly: some items become an OCI layout that other tools read, with their
// blobs and no others.
func TestOnly(t *testing.T) {
	out, trust := demo(t)
	m, err := OpenMedia(trust, out)
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	if err := m.LoadWith(t.Context(), s, LoadOptions{Items: []string{"app", "none"}}); err == nil {
		t.Error("an item that isn't there was loaded")
	}
	if err := m.LoadWith(t.Context(), s, LoadOptions{Items: []string{"app", "app"}}); err != nil {
		t.Fatal(err)
	}
	sound(t, s, 1)
	x, err := layout.ImageIndexFromPath(s.Dir())
	if err != nil {
		t.Fatal(err)
	}
	want, _ := image(t, 3, "amd64").Digest()
	img, err := x.Image(want)
	if err != nil {
		t.Fatal(err)
	}
	ls, err := img.Layers()
	if err != nil || len(ls) != 2 {
		t.Fatalf("%d layers, %v", len(ls), err)
	}
	n := 0
	if err := s.Walk(func(v1.Hash, int64) error { n++; return nil }); err != nil || n != 4 { // manifest, config, two layers
		t.Errorf("%d blobs, %v, want 4", n, err)
	}
	if err := m.Load(t.Context(), s, nil); err != nil {
		t.Fatal(err)
	}
	sound(t, s, 8)
}

// TestOpenBlob: a blob is read from any place, and not past its end; one that
// the bundle doesn't have is not there.
func TestOpenBlob(t *testing.T) {
	out, trust := demo(t)
	m, err := OpenMedia(trust, out)
	if err != nil {
		t.Fatal(err)
	}
	want := read(t, filepath.Join(filepath.Dir(out), "model/tiny.gguf"))
	h, _, _ := v1.SHA256(bytes.NewReader(want))
	b, err := m.OpenBlob(t.Context(), h, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, at := range []int64{int64(len(want)) - 3, 0, manifest.ChunkSize - 1, manifest.ChunkSize} {
		if _, err := b.Seek(at, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(b)
		if err != nil || !bytes.Equal(got, want[at:]) {
			t.Errorf("from %d: %d bytes, %v", at, len(got), err)
		}
	}
	if n, err := b.Seek(0, io.SeekEnd); n != b.Size() || n != int64(len(want)) || err != nil {
		t.Errorf("the end is at %d, %v", n, err)
	}
	if _, err := b.Seek(-1, io.SeekStart); err == nil {
		t.Error("there is something before the beginning")
	}
	if _, err := m.OpenBlob(t.Context(), v1.Hash{Algorithm: "sha256", Hex: "00"}, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an unknown blob: %v", err)
	}
}
