package bundle

import (
	"bytes"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/bundle/manifest"
)

// TestJourney: sources → bundle → media → store, and every byte arrives.
func TestJourney(t *testing.T) {
	out, trust := demo(t)
	m, err := OpenMedia(trust, out)
	if err != nil {
		t.Fatal(err)
	}
	r := m.Release()
	if r.Name != "demo" || r.Sequence != 3 || len(r.Items) != 8 || len(r.Parts) < 6 || !slices.Equal(m.Signers(), []string{"acme"}) {
		t.Errorf("release %+v, signers %v", r, m.Signers())
	}
	if err := m.Verify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	s, c := newStore(t), &counter{}
	if err := m.Load(t.Context(), s, c); err != nil {
		t.Fatal(err)
	}
	if want := r.Size() - between(t, m); c.n != want {
		t.Errorf("loaded %d bytes, want %d", c.n, want)
	}
	sound(t, s, 8)
	src := filepath.Dir(out)
	for _, c := range []struct{ ref, name, file string }{
		{"clawbox:0.1.0", "clawbox", "clawbox.bin"},
		{"rules:0.1.0", "rules.yaml", "rules.yaml"},
		{"tiny:0.1.0", "tiny.gguf", "model/tiny.gguf"},
		{"tiny:0.1.0", "empty.txt", "model/empty.txt"},
	} {
		if !bytes.Equal(blob(t, s, c.ref, c.name), read(t, filepath.Join(src, c.file))) {
			t.Errorf("%s %s differs", c.ref, c.name)
		}
	}
	d, err := s.Resolve("app:0.1.0")
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := image(t, 3, "amd64").Digest(); d.Digest != want {
		t.Errorf("image %s, want %s: the publisher's manifest must not change", d.Digest, want)
	}
	c.n = 0
	if err := m.Load(t.Context(), s, c); err != nil || c.n != 0 {
		t.Errorf("second load read %d bytes, %v; want none", c.n, err)
	}
}

// TestOrder: small things that start an installation come first, models last.
func TestOrder(t *testing.T) {
	out, trust := demo(t)
	m, err := OpenMedia(trust, out)
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, b := range m.index.Blobs {
		for _, it := range m.release.Items {
			if it.Descriptor.Digest == b.Digest {
				order = append(order, it.Name)
			}
		}
	}
	if want := []string{"clawbox", "rules", "app", "app.cyclonedx", "app.spdx", "sbom.cyclonedx", "sbom.spdx", "tiny"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
}

// TestReproducible: same lock and keys, same bytes, wherever it is built.
func TestReproducible(t *testing.T) {
	s, _ := newSigner(t, "acme")
	var trees []map[string]string
	var lock []byte
	for i := range 3 {
		dir := t.TempDir()
		recipe := sources(t, dir)
		// Without a time in the recipe: the first build puts it in the lock.
		write(t, recipe, []byte(strings.Replace(demoRecipe, `, created: "2025-01-02T03:04:05Z"`, "", 1)))
		if i > 0 {
			write(t, filepath.Join(dir, "bundle.lock"), lock)
			t.Setenv("SOURCE_DATE_EPOCH", "1") // the lock is stronger
		}
		_, err := Build(t.Context(), BuildOptions{
			Recipe: recipe, Out: filepath.Join(dir, "out"), Store: filepath.Join(dir, "work"),
			Signers: []manifest.Signer{s}, PartSize: MinPartSize + int64(i/2),
		})
		if err != nil {
			t.Fatal(err)
		}
		lock = read(t, filepath.Join(dir, "bundle.lock"))
		trees = append(trees, tree(t, filepath.Join(dir, "out")))
	}
	if !maps.Equal(trees[0], trees[1]) {
		t.Error("two builds from one lock differ")
	}
	if maps.Equal(trees[0], trees[2]) {
		t.Error("the comparison sees no difference where there is one")
	}
}
