package bundle

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

const demoRecipe = `apiVersion: clawbox.io/v1
kind: Recipe
metadata: {name: demo, version: 0.1.0, created: "2025-01-02T03:04:05Z"}
sequence: 3
items:
  - {name: tiny, kind: model, source: "dir:model", licence: MIT, redistributable: true}
  - {name: app, kind: image, source: "oci-layout:image:latest", platforms: [linux/amd64], licence: Apache-2.0, redistributable: true}
  - {name: clawbox, kind: file, source: "file:clawbox.bin", path: bin/clawbox, mode: "0755", redistributable: true}
  - {name: rules, kind: policy, source: "file:rules.yaml", redistributable: true}
`

// noise is n bytes that are always the same for one seed.
func noise(seed int64, n int) []byte {
	b := make([]byte, n)
	rand.New(rand.NewSource(seed)).Read(b)
	return b
}

// gguf is a file of n bytes with one tensor of noise, from byte 64 on.
func gguf(seed int64, n int) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32([]byte("GGUF"), 3)
	b = le.AppendUint64(b, 1) // tensors
	b = le.AppendUint64(b, 0) // keys
	b = append(le.AppendUint64(b, 1), 'w')
	b = le.AppendUint32(b, 1) // dimensions
	b = le.AppendUint64(b, uint64(n-64))
	b = le.AppendUint32(b, 24) // I8
	b = le.AppendUint64(b, 0)
	b = append(b, make([]byte, 64-len(b))...)
	return append(b, noise(seed, n-64)...)
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// image makes a small image for one platform, always the same for one seed.
func image(t testing.TB, seed int64, arch string) v1.Image {
	t.Helper()
	img, err := random.Image(100_000, 2, random.WithSource(rand.NewSource(seed)))
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", arch
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	return img
}

// sources lays out all that demoRecipe names, and returns the recipe's path.
func sources(t testing.TB, dir string) string {
	t.Helper()
	write(t, filepath.Join(dir, "recipe.yaml"), []byte(demoRecipe))
	write(t, filepath.Join(dir, "clawbox.bin"), noise(1, 300_000))
	write(t, filepath.Join(dir, "rules.yaml"), []byte("network: {deny: \"*\"}\n"))
	write(t, filepath.Join(dir, "model/tiny.gguf"), gguf(2, 5<<20+17)) // two chunks, six parts
	write(t, filepath.Join(dir, "model/config.json"), []byte("{}"))
	write(t, filepath.Join(dir, "model/empty.txt"), nil)
	p, err := layout.Write(filepath.Join(dir, "image"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(image(t, 3, "amd64"), layout.WithAnnotations(map[string]string{content.RefName: "latest"})); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "recipe.yaml")
}

func newSigner(t testing.TB, name string) (manifest.Signer, manifest.Trust) {
	t.Helper()
	skey, vkey, err := manifest.GenerateKey(name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := manifest.ParseSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := manifest.NewTrust(1, vkey)
	if err != nil {
		t.Fatal(err)
	}
	return s, tr
}

// demo builds the demo bundle below a fresh directory: out/clawbox.
func demo(t testing.TB) (out string, trust manifest.Trust) {
	t.Helper()
	dir := t.TempDir()
	s, trust := newSigner(t, "acme")
	out = filepath.Join(dir, "out")
	_, err := Build(t.Context(), BuildOptions{
		Recipe: sources(t, dir), Out: out, Store: filepath.Join(dir, "work"), Signers: []manifest.Signer{s}, PartSize: MinPartSize,
	})
	if err != nil {
		t.Fatal(err)
	}
	return out, trust
}

func newStore(t testing.TB) *content.Store {
	t.Helper()
	s, err := content.Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// tree maps every file below dir to mode and content.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		out[rel] = fmt.Sprintf("%v %s", fi.Mode(), read(t, p))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// copyTree copies dir's files, so that a test may damage them.
func copyTree(t testing.TB, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// flip changes one byte of a file in place, and back.
func flip(t testing.TB, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

// sound fails the test unless every blob of s is what its name says, nothing
// is left in tmp, and s has the given number of refs.
func sound(t testing.TB, s *content.Store, refs int) {
	t.Helper()
	es, err := os.ReadDir(filepath.Join(s.Dir(), "blobs/sha256"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		h := v1.Hash{Algorithm: "sha256", Hex: e.Name()}
		f, err := s.Open(h)
		if err != nil {
			t.Fatal(err)
		}
		got, _, err := v1.SHA256(f)
		f.Close()
		if err != nil || got != h {
			t.Errorf("blob %s has digest %s, %v", h, got, err)
		}
	}
	if es, _ := os.ReadDir(filepath.Join(s.Dir(), "tmp")); len(es) > 0 {
		t.Errorf("left in tmp: %v", es)
	}
	if ds, err := s.Refs(); err != nil || len(ds) != refs {
		t.Errorf("%d refs, %v; want %d", len(ds), err, refs)
	}
}

// blob reads an item's only layer, or the one titled name.
func blob(t testing.TB, s *content.Store, ref, name string) []byte {
	t.Helper()
	d, err := s.Resolve(ref)
	if err != nil {
		t.Fatal(err)
	}
	m, err := v1.ParseManifest(bytes.NewReader(read(t, s.Path(d.Digest))))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		if name == "" || l.Annotations[titleNote] == name {
			return read(t, s.Path(l.Digest))
		}
	}
	t.Fatalf("%s has no layer %q", ref, name)
	return nil
}

// counter is a Progress that counts.
type counter struct{ n int64 }

func (c *counter) Start(string, int64) Task { return c }
func (c *counter) Add(n int64)              { c.n += n }
func (c *counter) Done(error)               {}

func newStoreAt(t testing.TB, dir string) *content.Store {
	t.Helper()
	s, err := content.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
