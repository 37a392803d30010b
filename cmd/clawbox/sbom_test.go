package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// imageOf writes an OCI layout with one image, named "x:1", of one layer.
func imageOf(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for n, s := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: n, Size: int64(len(s)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		w.Write([]byte(s))
	}
	w.Close()
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer(b.Bytes(), types.OCIUncompressedLayer))
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", "amd64"
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "x:1"}), layout.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"})); err != nil {
		t.Fatal(err)
	}
}

func TestSBOMVerb(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "layout")
	token := fmt.Sprintf("%s%x", "hf"+"_", sha256.Sum256([]byte("a test's own token")))
	imageOf(t, dir, map[string]string{
		"var/lib/dpkg/status":                "Package: libc6\nStatus: install ok installed\nVersion: 2.36-9\nArchitecture: amd64\n",
		"app/node_modules/left/package.json": `{"name":"left","version":"1.0.0","license":"MIT"}`,
		"app/.env":                           "TOKEN=" + token + "\n",
	})
	first, err := clawbox(t, "sbom", "x:1", "--store", dir)
	if err != nil || !strings.Contains(first, "pkg:deb/debian/libc6@2.36-9?arch=amd64") || !strings.Contains(first, `"specVersion": "1.6"`) {
		t.Fatalf("%v\n%s", err, first)
	}
	if second, _ := clawbox(t, "sbom", "x:1", "--store", dir); second != first {
		t.Error("other bytes the second time")
	}
	if out, err := clawbox(t, "sbom", "x:1", "--store", dir, "--format", "spdx"); err != nil || !strings.Contains(out, `"spdxVersion": "SPDX-2.3"`) {
		t.Errorf("%v\n%s", err, out)
	}
	_, err = clawbox(t, "sbom", "x:1", "--store", dir, "--secrets")
	if err == nil || status(err) != exitRefused || !strings.Contains(err.Error(), "app/.env, byte 6: Hugging Face token") || strings.Contains(err.Error(), token) {
		t.Fatalf("got %v", err)
	}
	_, print, _ := strings.Cut(err.Error(), "fingerprint ")
	if _, err := clawbox(t, "sbom", "x:1", "--store", dir, "--secrets", "--allow-secret", print[:16]); err != nil {
		t.Errorf("allowed, but: %v", err)
	}
	for want, args := range map[int][]string{exitUsage: {"sbom", "x:1", "--store", dir, "--format", "x"}, exitNotFound: {"sbom", "none", "--store", dir}} {
		if _, err := clawbox(t, args...); err == nil || status(err) != want {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// TestDebVerb resolves and downloads from an archive of one package and its
// dependency, and takes nothing that is not what was signed.
func TestDebVerb(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{"/pool/app_1.deb": "the app", "/pool/lib_2.deb": "the library"}
	text := ""
	for _, p := range [][3]string{{"app", "1", "Depends: lib (>= 2), base\n"}, {"lib", "2", ""}} {
		b := files["/pool/"+p[0]+"_"+p[1]+".deb"]
		text += fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: amd64\nFilename: pool/%s_%s.deb\nSize: %d\nSHA256: %x\n%s\n", p[0], p[1], p[0], p[1], len(b), sha256.Sum256([]byte(b)), p[2])
	}
	files["/dists/stable/main/binary-amd64/Packages"] = text
	key, err := openpgp.NewEntity("x", "", "x@example", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA})
	if err != nil {
		t.Fatal(err)
	}
	var ring, signed bytes.Buffer
	if err := key.Serialize(&ring); err != nil {
		t.Fatal(err)
	}
	w, err := clearsign.Encode(&signed, key.PrivateKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(w, "Suite: stable\nSHA256:\n %x %d main/binary-amd64/Packages\n", sha256.Sum256([]byte(text)), len(text))
	w.Close()
	files["/dists/stable/InRelease"] = signed.String()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, ok := files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, b)
	}))
	defer srv.Close()
	put := func(n, s string) {
		if err := os.WriteFile(filepath.Join(dir, n), []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("ring.gpg", ring.String())
	put("manifest", "base\t1.0\n")
	spec := `{apiVersion: clawbox.io/v1, kind: Packages, architecture: amd64, installed: manifest, packages: [app], sources: [{uri: "` + srv.URL + `", suite: stable, components: [main], keyring: ring.gpg}]}`
	put("p.yaml", spec)
	put("bad.yaml", strings.Replace(spec, "kind", "kinds", 1))
	put("kernel.yaml", strings.Replace(spec, "[app]", `["linux-{kernel}"]`, 1))
	to := filepath.Join(dir, "debs")
	run := func(file string) (string, error) {
		return clawbox(t, "deb", "-f", filepath.Join(dir, file), "--download", to, "-o", "json")
	}
	for range 2 { // the second time nothing is fetched again
		out, err := run("p.yaml")
		var p struct{ Files []struct{ Name, URL string } }
		if err != nil || json.Unmarshal([]byte(out), &p) != nil || len(p.Files) != 2 || p.Files[1].URL != srv.URL+"/pool/lib_2.deb" {
			t.Fatalf("%v\n%s", err, out)
		}
		if b, err := os.ReadFile(filepath.Join(to, "lib_2.deb")); err != nil || string(b) != "the library" {
			t.Errorf("got %q, %v", b, err)
		}
	}
	for _, f := range []string{"bad.yaml", "kernel.yaml"} {
		if _, err := run(f); err == nil || status(err) != exitUsage {
			t.Errorf("%s: %v", f, err)
		}
	}
	files["/pool/lib_2.deb"] = "the liberty"
	os.RemoveAll(to)
	if _, err := run("p.yaml"); err == nil || !strings.Contains(err.Error(), "tampered") {
		t.Errorf("tampered: %v", err)
	}
	if es, _ := filepath.Glob(filepath.Join(to, "*lib*")); len(es) != 0 {
		t.Errorf("left %v", es)
	}
	if es, _ := os.ReadDir(to); len(es) != 1 {
		t.Errorf("left %v, want app only", es)
	}
}
