package diff

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/bundle/sbom"
	"github.com/clawbox/clawbox/policies"
)

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func put(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b, 0o644)); err != nil {
		t.Fatal(err)
	}
}

// layer is a layer of one file.
func layer(t testing.TB, name, text string) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg})
	_, err2 := w.Write([]byte(text))
	if err := errors.Join(err, err2, w.Close()); err != nil {
		t.Fatal(err)
	}
	return static.NewLayer(b.Bytes(), types.OCIUncompressedLayer)
}

func stanza(name, version, more string) string {
	return fmt.Sprintf("Package: %s\nStatus: install ok installed\nArchitecture: amd64\nVersion: %s\n%s\n", name, version, more)
}

// image has a base layer that never changes, and Debian packages.
func image(t testing.TB, packages string) v1.Image {
	t.Helper()
	img := must(mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64"}))(t)
	return must(mutate.AppendLayers(img, layer(t, "etc/base", strings.Repeat("base", 500)), layer(t, "var/lib/dpkg/status", packages)))(t)
}

// site makes releases.
type site struct {
	dir    string
	signer manifest.Signer
	trust  manifest.Trust
	model  []byte
}

func newSite(t testing.TB) *site {
	t.Helper()
	skey, vkey, err := manifest.GenerateKey("acme")
	if err != nil {
		t.Fatal(err)
	}
	return &site{t.TempDir(), must(manifest.ParseSigner(skey))(t), must(manifest.NewTrust(1, vkey))(t), weights(9 << 20)}
}

// weights is a GGUF file of n bytes with one tensor, from byte 64 on.
func weights(n int) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32([]byte("GGUF"), 3)
	b = le.AppendUint64(le.AppendUint64(b, 1), 0) // tensors, keys
	b = append(le.AppendUint64(b, 1), 'w')
	b = le.AppendUint64(le.AppendUint32(b, 1), uint64(n-64))
	b = le.AppendUint64(le.AppendUint32(b, 24), 0) // I8, at 0
	b = append(b, make([]byte, 64-len(b))...)
	return append(b, bytes.Repeat([]byte("weights "), (n-64)/8)...)
}

// build makes a release from the folder of its version.
func (s *site) build(t testing.TB, version string, sequence int, img v1.Image, policy string, items ...string) string {
	t.Helper()
	dir := filepath.Join(s.dir, version)
	text := fmt.Sprintf("apiVersion: clawbox.io/v1\nkind: Recipe\nmetadata: {name: demo, version: %s, created: \"2026-01-02T03:04:05Z\"}\nsequence: %d\nitems:\n", version, sequence)
	for _, it := range append([]string{
		`{name: app, kind: image, source: "oci-layout:image:latest", platforms: [linux/amd64], licence: MIT, redistributable: true}`,
		`{name: rules, kind: policy, source: "file:rules.yaml", licence: MIT, redistributable: true}`,
		`{name: tiny, kind: model, source: "dir:model", licence: MIT, redistributable: true}`,
	}, items...) {
		text += "  - " + it + "\n"
	}
	put(t, filepath.Join(dir, "recipe.yaml"), []byte(text))
	put(t, filepath.Join(dir, "rules.yaml"), []byte(policy))
	put(t, filepath.Join(dir, "model/tiny.gguf"), s.model)
	put(t, filepath.Join(dir, "note.txt"), []byte("a note\n"))
	p := must(layout.Write(filepath.Join(dir, "image"), empty.Index))(t)
	if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{content.RefName: "latest"})); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "stick")
	must(bundle.Build(t.Context(), bundle.BuildOptions{
		Recipe: filepath.Join(dir, "recipe.yaml"), Out: out, Store: filepath.Join(s.dir, "work"), Signers: []manifest.Signer{s.signer},
	}))(t)
	return out
}

const (
	oldRules = "apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: rules}\nnetwork: {default: deny, allow: [{host: a.example, ports: [443]}]}\n"
	newRules = "apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: rules}\nnetwork: {default: deny, allow: [{host: b.example, ports: [443]}]}\n"
)

// releases builds two that differ in everything that is compared.
func (s *site) releases(t testing.TB) (a, b string) {
	t.Helper()
	a = s.build(t, "1.0.0", 1, image(t, stanza("openssl", "3.0.11-1", "Source: ossl (3)\n")+stanza("gone", "1", "")+stanza("same", "1", "")), oldRules,
		`{name: note, kind: file, source: "file:note.txt", path: share/note.txt, redistributable: true}`)
	copy(s.model[4<<20:], "changed!") // the second of three chunks
	b = s.build(t, "1.1.0", 2, image(t, stanza("openssl", "3.0.13-1~deb12u1", "Source: ossl (3)\n")+stanza("fresh", "2", "")+stanza("same", "1", "")), newRules,
		`{name: extra, kind: file, source: "file:note.txt", path: share/extra.txt, redistributable: true}`)
	return a, b
}

func (s *site) side(t testing.TB, dir string, trust manifest.Trust) *Side {
	t.Helper()
	c := must(bundle.MediaOptions{Trust: trust, Dirs: []string{dir}}.Look())(t)
	return must(Bundle(t.Context(), dir, c))(t)
}

func find(t testing.TB, r Report, name string) Item {
	t.Helper()
	i := slices.IndexFunc(r.Items, func(it Item) bool { return it.Name == name })
	if i < 0 {
		t.Fatalf("no item %s in %+v", name, r.Items)
	}
	return r.Items[i]
}

// checkAll holds a report of releases against what was changed.
func checkAll(t *testing.T, r Report) {
	t.Helper()
	app := find(t, r, "app")
	if l := app.Layers; l == nil || l.A != 2 || l.B != 2 || l.Shared != 1 || l.SharedBytes == 0 || l.NewBytes == 0 {
		t.Errorf("layers %+v", l)
	}
	var got []string
	for _, p := range app.Packages {
		got = append(got, fmt.Sprint(p.Change, " ", p.Name, " ", p.Source, p.A, p.B))
	}
	want := []string{"added fresh [] [2]", "removed gone [1] []", "upgraded openssl ossl[3.0.11-1] [3.0.13-1~deb12u1]"}
	if !slices.Equal(got, want) {
		t.Errorf("packages %q, want %q", got, want)
	}
	if p := fmt.Sprint(find(t, r, "rules").Policy); !strings.Contains(p, "wider: agent may now reach b.example") || !strings.Contains(p, "narrower: agent may no longer reach a.example") {
		t.Errorf("policy %s", p)
	}
	if f := find(t, r, "tiny").Files; !slices.Equal(f, []File{{"tiny.gguf", Changed, 9 << 20, 9 << 20}}) {
		t.Errorf("files %+v", f)
	}
	if find(t, r, "extra").Change != Added || find(t, r, "note").Change != Removed {
		t.Errorf("items %+v", r.Items)
	}
}

// TestBundles: everything that changes between two bundles is told, and how
// much B needs is what a differential bundle then carries.
func TestBundles(t *testing.T) {
	s := newSite(t)
	a, b := s.releases(t)
	r := must(Compare(t.Context(), s.side(t, a, s.trust), s.side(t, b, s.trust), Options{Packages: true}))(t)
	checkAll(t, r)
	if !r.A.Verified || !slices.Equal(r.B.Signers, []string{"acme"}) || len(r.Notes) != 0 {
		t.Errorf("%+v", r)
	}
	since := must(bundle.OpenSince(s.trust, a))(t)
	rel := must(bundle.Build(t.Context(), bundle.BuildOptions{
		Recipe: filepath.Join(s.dir, "1.1.0/recipe.yaml"), Out: filepath.Join(s.dir, "difference"), Store: filepath.Join(s.dir, "work"),
		Signers: []manifest.Signer{s.signer}, Since: since,
	}))(t)
	if r.Blobs.Chunks == nil {
		t.Fatalf("no chunks in %+v", r.Blobs)
	}
	// Beside the chunks the media have what is passed over before large ones.
	n, gaps := *r.Blobs.Chunks, int64(r.Blobs.Missing.Count*manifest.Block)
	if n > rel.Size() || n <= rel.Size()-gaps || n >= r.Blobs.Missing.Bytes {
		t.Errorf("a differential bundle has %d bytes; the report says %d of %+v", rel.Size(), n, r.Blobs)
	}
	if n := r.Blobs.Gone.Count; n == 0 {
		t.Error("no blob goes")
	}
	back := must(Compare(t.Context(), s.side(t, b, s.trust), s.side(t, a, s.trust), Options{Packages: true}))(t)
	if p := find(t, back, "app").Packages; !slices.ContainsFunc(p, func(p Package) bool { return p.Name == "openssl" && p.Change == Downgraded }) {
		t.Errorf("backwards: %+v", p)
	}
	same := must(Compare(t.Context(), s.side(t, a, s.trust), s.side(t, a, s.trust), Options{}))(t)
	if same.Same != 4 || len(same.Items) != 0 || same.Blobs.Missing.Count != 0 {
		t.Errorf("a release and itself: %+v", same)
	}
	var text bytes.Buffer
	if err := r.Print(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"signed by acme", "upgraded deb openssl amd64 (source ossl): 3.0.13-1~deb12u1, was 3.0.11-1", "agent may now reach b.example"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("text lacks %q:\n%s", want, &text)
		}
	}
}

// TestReadsLittle: packages come out of the lists that the bundle brings, and a
// layer is read only where those can't be; damage is found then, and said.
func TestReadsLittle(t *testing.T) {
	s := newSite(t)
	a, b := s.releases(t)
	m := must(bundle.MediaOptions{Trust: s.trust, Dirs: []string{b}}.Look())(t)
	l := must(must(image(t, stanza("openssl", "3.0.13-1~deb12u1", "Source: ossl (3)\n")+stanza("fresh", "2", "")+stanza("same", "1", "")).Layers())(t)[1].Digest())(t)
	part := filepath.Join(b, "clawbox/parts/part-0001")
	raw := must(os.ReadFile(part))(t)
	at := func(h v1.Hash) manifest.Blob {
		return m.Blobs()[slices.IndexFunc(m.Blobs(), func(x manifest.Blob) bool { return x.Digest == h })]
	}
	damage := func(h v1.Hash, off int64) {
		raw[at(h).Offset+off] ^= 1
		put(t, part, raw)
	}
	damage(l, 600)
	r := must(Compare(t.Context(), s.side(t, a, s.trust), s.side(t, b, s.trust), Options{Packages: true}))(t)
	if app := find(t, r, "app"); app.Layers.Shared != 1 || app.Source != "sbom" || len(app.Packages) != 3 || len(r.Notes) != 0 {
		t.Errorf("%+v, notes %q", app, r.Notes)
	}
	items := m.Release().Items
	x := at(items[slices.IndexFunc(items, func(it manifest.Item) bool { return it.Name == "app.cyclonedx" })].Descriptor.Digest)
	list := must(v1.ParseManifest(bytes.NewReader(raw[x.Offset : x.Offset+x.Size])))(t)
	damage(list.Layers[0].Digest, 100)
	r = must(Compare(t.Context(), s.side(t, a, s.trust), s.side(t, b, s.trust), Options{Packages: true}))(t)
	if app := find(t, r, "app"); app.Source != "" || len(app.Packages) != 0 || len(r.Notes) != 2 || !strings.Contains(r.Notes[0], "an SBOM could not be read") || !strings.Contains(r.Notes[1], "part-0001") {
		t.Errorf("%+v, notes %q", app, r.Notes)
	}
}

// TestNotesOnly: of two small files everything in them is compared, and it is
// said what is not. Nobody vouches for them without a key.
func TestNotesOnly(t *testing.T) {
	s := newSite(t)
	a, b := s.releases(t)
	bare := filepath.Join(s.dir, "bare")
	for _, name := range []string{"release.note", "index.json"} {
		put(t, filepath.Join(bare, name), must(os.ReadFile(filepath.Join(a, "clawbox", name)))(t))
	}
	whole := must(Compare(t.Context(), s.side(t, a, s.trust), s.side(t, b, s.trust), Options{}))(t)
	r := must(Compare(t.Context(), s.side(t, bare, manifest.Trust{}), s.side(t, b, s.trust), Options{}))(t)
	if r.A.Verified || len(r.A.Signers) != 0 || !r.B.Verified {
		t.Errorf("%+v, %+v", r.A, r.B)
	}
	if r.Blobs.Missing != whole.Blobs.Missing || *r.Blobs.Chunks != *whole.Blobs.Chunks || len(r.Items) != len(whole.Items) {
		t.Errorf("%+v, want as %+v", r.Blobs, whole.Blobs)
	}
	if len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "1 of 1 parts are not there") {
		t.Errorf("notes %q", r.Notes)
	}
	var text bytes.Buffer
	r.Print(&text)
	if !strings.Contains(text.String(), "SIGNATURE NOT CHECKED") {
		t.Errorf("%s", &text)
	}
	if n := whole.Notes; len(n) != 0 {
		t.Errorf("notes %q", n)
	}
	other := newSite(t)
	if _, err := (bundle.MediaOptions{Trust: other.trust, Dirs: []string{bare}}).Look(); !errors.Is(err, manifest.ErrUntrusted) {
		t.Errorf("another key: %v", err)
	}
}

// loaded is a store that has a bundle.
func (s *site) loaded(t testing.TB, dir string) *content.Store {
	t.Helper()
	st := must(content.Open(filepath.Join(t.TempDir(), "store")))(t)
	m := must(bundle.OpenMedia(s.trust, dir))(t)
	if err := m.Load(t.Context(), st, nil); err != nil {
		t.Fatal(err)
	}
	return st
}

// TestHost: a host is compared by what its store has; B needs what a load then
// writes.
func TestHost(t *testing.T) {
	s := newSite(t)
	a, b := s.releases(t)
	st := s.loaded(t, a)
	host := func() *Side {
		return must(Host(t.Context(), "host", st, Release{Name: "demo", Version: "1.0.0", Sequence: 1, Verified: true}))(t)
	}
	r := must(Compare(t.Context(), host(), s.side(t, b, s.trust), Options{Packages: true}))(t)
	checkAll(t, r)
	m := must(bundle.OpenMedia(s.trust, b))(t)
	if want := must(m.Missing(st))(t); r.Blobs.Missing.Bytes != want || want == 0 || r.Blobs.Chunks != nil {
		t.Errorf("%+v, a load would write %d", r.Blobs, want)
	}
	if err := m.Load(t.Context(), st, nil); err != nil {
		t.Fatal(err)
	}
	// Now it holds both; the installed one counts.
	r = must(Compare(t.Context(), host(), s.side(t, b, s.trust), Options{Packages: true}))(t)
	if r.Blobs.Missing.Count != 0 {
		t.Errorf("%+v", r.Blobs)
	}
	r = must(Compare(t.Context(), s.side(t, a, s.trust), host(), Options{}))(t)
	if find(t, r, "extra").Change != Added {
		t.Errorf("from a bundle to the host: %+v", r.Items)
	}
}

// TestBaseMissing: a host that lacks what a differential bundle builds upon is
// told so.
func TestBaseMissing(t *testing.T) {
	s := newSite(t)
	a, _ := s.releases(t)
	since := must(bundle.OpenSince(s.trust, a))(t)
	out := filepath.Join(s.dir, "difference")
	must(bundle.Build(t.Context(), bundle.BuildOptions{
		Recipe: filepath.Join(s.dir, "1.1.0/recipe.yaml"), Out: out, Store: filepath.Join(s.dir, "work"), Signers: []manifest.Signer{s.signer}, Since: since,
	}))(t)
	with, without := s.loaded(t, a), must(content.Open(filepath.Join(t.TempDir(), "empty")))(t)
	for st, missing := range map[*content.Store]bool{with: false, without: true} {
		h := must(Host(t.Context(), "host", st, Release{Version: "1.0.0", Verified: true}))(t)
		r := must(Compare(t.Context(), h, s.side(t, out, s.trust), Options{}))(t)
		if (r.Blobs.BaseMissing.Count > 0) != missing || r.B.Base != "demo 1.0.0 (sequence 1)" {
			t.Errorf("missing %v: %+v", missing, r.Blobs)
		}
	}
}

// TestSBOM: where both sides carry SBOMs of an image, no layer is read.
func TestSBOM(t *testing.T) {
	var sides [2]*Side
	for i, version := range []string{"1.0.0", "1.1.0"} {
		st := must(content.Open(filepath.Join(t.TempDir(), "store")))(t)
		blob := func(b []byte) v1.Descriptor {
			h, n, err := v1.SHA256(bytes.NewReader(b))
			if err := errors.Join(err, st.Put(t.Context(), h, n, bytes.NewReader(b))); err != nil {
				t.Fatal(err)
			}
			return v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: h, Size: n}
		}
		img := image(t, "no package list at all "+version) // would be unreadable
		blob(must(img.RawConfigFile())(t))
		app := blob(must(img.RawManifest())(t))
		doc := sbom.Document{Name: "app", Created: time.Unix(0, 0), Parts: []sbom.Part{{Name: "app", Kind: "image", Image: sbom.Image{
			Packages: []sbom.Package{{Type: "npm", Name: "left-pad", Version: version}},
		}}}}
		raw := must(doc.CycloneDX())(t)
		blob(raw)
		blob([]byte("{}"))
		note, _, err := sbom.Artifact(sbom.CycloneDXType, "app.cdx.json", raw, &app)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(st.Tag("app:"+version, app), st.Tag("app-sbom:"+version, blob(note))); err != nil {
			t.Fatal(err)
		}
		sides[i] = must(Host(t.Context(), "host", st, Release{Version: version}))(t)
	}
	r := must(Compare(t.Context(), sides[0], sides[1], Options{Packages: true}))(t)
	app := find(t, r, "app")
	if app.Source != "sbom" || len(app.Packages) != 1 || app.Packages[0].Change != Upgraded {
		t.Errorf("%+v, notes %q", app, r.Notes)
	}
}

// TestPrintIsLegible: titles of layers are anybody's words, as nobody need have
// signed what is compared.
func TestPrintIsLegible(t *testing.T) {
	evil := "a\x1b[8m\nall is well\tb\u202e"
	r := Report{Items: []Item{{
		Name: "m", Kind: "model", A: &Root{Ref: evil}, B: &Root{Ref: evil}, About: []string{evil}, Policy: []policies.Difference{{Words: evil}},
		Files: []File{{Name: evil}}, Source: evil, Packages: []Package{{Name: evil, Arch: evil}},
	}}, Notes: []string{evil}}
	var b bytes.Buffer
	if err := r.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"\x1b", "\nall is well", "well\t", "\u202e"} {
		if strings.Contains(b.String(), bad) {
			t.Errorf("%q in %q", bad, b.String())
		}
	}
}
