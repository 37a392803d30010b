package bundle

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	spdxjson "github.com/spdx/tools-golang/json"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

const libc = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\n"

// withSoftware gives the site an image of two layers, the upper of which takes a
// package of the lower one away.
func (s *site) withSoftware(t *testing.T) {
	t.Helper()
	low := layerOf(t, map[string]string{
		"var/lib/dpkg/status": libc, "etc/os-release": "ID=debian\nVERSION_ID=\"12\"\n",
		"app/node_modules/old/package.json": `{"name":"old","version":"1.0.0"}`,
	})
	img := withLayer(t, low)
	img = addLayer(t, img, layerOf(t, map[string]string{
		"app/.wh.node_modules": "", "srv/node_modules/new/package.json": `{"name":"new","version":"2.0.0","license":"MIT"}`,
	}))
	layoutOf(t, filepath.Join(s.dir, "img"), img)
	s.recipe(t, `{name: app, kind: image, source: "oci-layout:img", ref: "reg.example/team/app:1", licence: MIT, redistributable: true}`,
		`{name: tool, kind: file, source: "file:clawbox.bin", licence: Apache-2.0, redistributable: true}`)
}

// documents are the two forms of an item's list, and the manifests' subjects.
func documents(t *testing.T, st *content.Store, r manifest.Release, item string) (texts [][]byte, subjects []*v1.Descriptor) {
	t.Helper()
	for _, it := range r.Items {
		if it.Kind != "sbom" || !strings.HasPrefix(it.Name, item+".") {
			continue
		}
		d, err := st.Resolve(it.Ref)
		if err != nil || d.Digest != it.Descriptor.Digest {
			t.Fatalf("%s: %v, %v", it.Ref, d, err)
		}
		m, err := v1.ParseManifest(bytes.NewReader(read(t, st.Path(d.Digest))))
		if err != nil || m.ArtifactType != it.Descriptor.ArtifactType || string(m.Layers[0].MediaType) != m.ArtifactType {
			t.Fatalf("%s: %+v, %v", it.Name, m, err)
		}
		texts, subjects = append(texts, read(t, st.Path(m.Layers[0].Digest))), append(subjects, m.Subject)
	}
	if len(texts) != 2 {
		t.Fatalf("%s has %d lists, want CycloneDX and SPDX", item, len(texts))
	}
	return texts, subjects
}

// TestBoms: each image and the whole come with their lists of software, which
// refer to the image, in its repository.
func TestBoms(t *testing.T) {
	s := newSite(t)
	s.withSoftware(t)
	r := s.mustBuild(t)
	st := s.load(t)
	texts, subjects := documents(t, st, r, "app")
	for _, d := range subjects {
		if d == nil || d.Digest != r.Items[0].Descriptor.Digest || d.MediaType != r.Items[0].Descriptor.MediaType {
			t.Errorf("subject %v, want %v", d, r.Items[0].Descriptor)
		}
	}
	for _, it := range r.Items[2:4] {
		if it.Ref != "reg.example/team/app@"+it.Descriptor.Digest.String() {
			t.Errorf("%s is called %s, want a name in the image's repository", it.Name, it.Ref)
		}
	}
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(bytes.NewReader(texts[0]), cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range *(*bom.Components)[0].Components {
		got = append(got, c.Name)
	}
	if strings.Join(got, " ") != "debian libc6 new" || bom.Metadata.Timestamp != "2025-01-02T03:04:05Z" {
		t.Errorf("got %v at %s", got, bom.Metadata.Timestamp)
	}
	doc, err := spdxjson.Read(bytes.NewReader(texts[1]))
	if err != nil || len(doc.Packages) != 4 {
		t.Errorf("%d packages, %v", len(doc.Packages), err)
	}
	whole, subjects := documents(t, st, r, "sbom")
	if subjects[0] != nil || !bytes.Contains(whole[0], []byte(`"libc6"`)) || !bytes.Contains(whole[0], []byte(`"tool"`)) || !bytes.Contains(whole[1], []byte("Apache-2.0")) {
		t.Errorf("the whole: %s", whole[0])
	}
	if _, err := st.Resolve("sbom/demo:0.1.0-spdx"); err != nil {
		t.Error(err)
	}
}

// TestBomsRemembered: lists made of what is remembered are the same bytes as
// those made of what was read.
func TestBomsRemembered(t *testing.T) {
	s := newSite(t)
	s.withSoftware(t)
	s.mustBuild(t)
	first := tree(t, s.opt.Out)
	for _, rehash := range []bool{false, true} {
		s.opt.Rehash = rehash
		s.opt.Out = filepath.Join(s.dir, "again", map[bool]string{true: "b"}[rehash])
		s.mustBuild(t)
		if got := tree(t, s.opt.Out); got["clawbox/release.note"] != first["clawbox/release.note"] {
			t.Errorf("rehash %v: another release", rehash)
		}
	}
}

// TestRepository takes tag and digest off, and leaves ports.
func TestRepository(t *testing.T) {
	for ref, want := range map[string]string{
		"app:1": "app", "app": "app", "h:5000/a/b": "h:5000/a/b", "h:5000/a/b:1.2": "h:5000/a/b", "a/b@sha256:00": "a/b", "a:1@sha256:00": "a",
	} {
		if got := repository(ref); got != want {
			t.Errorf("%s: got %s, want %s", ref, got, want)
		}
	}
}
