package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/registry"
)

// TestReferrersOfBundle: the lists of software that a bundle brings are found by
// an ordinary client as the image's referrers, in the host's registry.
func TestReferrersOfBundle(t *testing.T) {
	dir := t.TempDir()
	at := func(n string) string { return filepath.Join(dir, n) }
	imageOf(t, at("image"), map[string]string{"var/lib/dpkg/status": "Package: libc6\nStatus: install ok installed\nVersion: 2.36-9\nArchitecture: amd64\n"})
	recipe := `apiVersion: clawbox.io/v1
kind: Recipe
metadata: {name: one, version: 0.1.0}
sequence: 1
items:
  - {name: app, kind: image, source: "oci-layout:image", ref: "team/app:1", licence: MIT, redistributable: true}
`
	if err := os.WriteFile(at("recipe.yaml"), []byte(recipe), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"key", "generate", "acme", "--out", at("acme")},
		{"bundle", "-f", at("recipe.yaml"), "-o", at("stick"), "--key", at("acme.key"), "--store", at("work")},
	} {
		if out, err := clawbox(t, args...); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	m, err := (&mediaFlags{keys: []string{at("acme.pub")}}).open([]string{at("stick")})
	if err != nil {
		t.Fatal(err)
	}
	st, err := content.Open(at("store"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Load(t.Context(), st, nil); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(registry.New(st, registry.Options{}))
	defer srv.Close()
	ref, err := name.NewTag(strings.TrimPrefix(srv.URL, "http://") + "/team/app:1")
	if err != nil {
		t.Fatal(err)
	}
	d, err := remote.Get(ref)
	if err != nil {
		t.Fatal(err)
	}
	x, err := remote.Referrers(ref.Context().Digest(d.Digest.String()))
	if err != nil {
		t.Fatal(err)
	}
	list, err := x.IndexManifest()
	if err != nil || len(list.Manifests) != 2 {
		t.Fatalf("referrers %+v, %v", list, err)
	}
	want := map[string]string{"application/vnd.cyclonedx+json": `"bomFormat"`, "application/spdx+json": `"spdxVersion"`}
	for _, r := range list.Manifests {
		text, err := onlyLayer(ref.Context().Digest(r.Digest.String()))
		if err != nil || !json.Valid(text) || !bytes.Contains(text, []byte(want[r.ArtifactType])) || !bytes.Contains(text, []byte("libc6")) {
			t.Errorf("%s: %v\n%s", r.ArtifactType, err, text)
		}
		delete(want, r.ArtifactType)
	}
	if len(want) != 0 {
		t.Errorf("nobody refers as %v", want)
	}
}

// onlyLayer pulls an artifact of one layer.
func onlyLayer(ref name.Digest) ([]byte, error) {
	img, err := remote.Image(ref)
	if err != nil {
		return nil, err
	}
	ls, err := img.Layers()
	if err != nil || len(ls) != 1 {
		return nil, errors.Join(err, errors.New("want one layer"))
	}
	in, err := ls[0].Compressed()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	return io.ReadAll(in)
}
