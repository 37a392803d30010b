package sbom

import (
	"slices"
	"testing"
	"time"
)

// TestReadBack: what we write of packages is read back, names and versions as
// they were.
func TestReadBack(t *testing.T) {
	want := []Package{
		{Type: "apk", Name: "busybox", Version: "1.36.1-r2", Arch: "x86_64"},
		{Type: "deb", Name: "libssl3", Version: "1:3.0.11~deb12+u2", Arch: "amd64", Source: "openssl"},
		{Type: "golang", Name: "golang.org/x/net", Version: "v0.1.0"},
		{Type: "npm", Name: "@types/node", Version: "20.1.0"},
		{Type: "pypi", Name: "typing-extensions", Version: "4.0"},
	}
	d := Document{Name: "web", Version: "1", Created: time.Unix(0, 0), Parts: []Part{{Name: "web", Kind: "image", Image: Image{
		OS: OS{ID: "debian", Version: "12"}, Packages: want,
	}}}}
	b, err := d.CycloneDX()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadCycloneDX(b)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := ReadCycloneDX([]byte(`{"spdxVersion":"SPDX-2.3"}`)); err == nil {
		t.Error("SPDX was read")
	}
}

// FuzzReadCycloneDX: every package that is read has a type that is known and a
// name.
func FuzzReadCycloneDX(f *testing.F) {
	f.Add([]byte(`{"bomFormat":"CycloneDX","components":[{"purl":"pkg:npm/%40a/b@1?arch=x#y","components":[{"purl":"pkg:deb/debian/c@1%3A2"}]}]}`))
	f.Add([]byte(`{"bomFormat":"CycloneDX","components":[{"purl":"pkg:npm@"},{"purl":"pkg:/@"},{"purl":"pkg:deb/@?%"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		ps, _ := ReadCycloneDX(b)
		for _, p := range ps {
			if _, ok := namespaced[p.Type]; !ok || p.Name == "" {
				t.Errorf("%+v", p)
			}
		}
	})
}
