package sbom

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"debug/buildinfo"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	spdxjson "github.com/spdx/tools-golang/json"

	"github.com/clawbox/clawbox/bundle/layer"
)

// member is one member of a test's layer; mode 0 is 0644.
type member struct {
	name, body string
	mode       int64
}

func pack(t testing.TB, ms ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range ms {
		h := &tar.Header{Name: m.name, Mode: m.mode | 0o644, Size: int64(len(m.body)), Typeflag: tar.TypeReg}
		if strings.HasSuffix(m.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, m.body)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func layers(ls ...[]byte) (out []Layer) {
	for _, b := range ls {
		h, _, _ := v1.SHA256(bytes.NewReader(b))
		out = append(out, Layer{h, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }})
	}
	return out
}

func scan(t *testing.T, ls ...[]byte) Image {
	t.Helper()
	img, err := Scan(t.Context(), layers(ls...), nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// told are the packages in short form.
func told(img Image) string {
	var s []string
	for _, p := range img.Packages {
		s = append(s, p.PURL(img.OS))
	}
	return strings.Join(s, "\n")
}

const status = `Package: libc6
Status: install ok installed
Architecture: amd64
Source: glibc (2.36-9)
Version: 2.36-9+deb12u9
Description: GNU C Library
 more text

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
`

func TestScan(t *testing.T) {
	img := scan(t, pack(t,
		member{"etc/os-release", "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n", 0},
		member{"./var/lib/dpkg/status", status, 0},
		member{"var/lib/dpkg/status.d/base", "Package: base-files\nVersion: 12.4\nArchitecture: amd64\n", 0},
		member{"var/lib/dpkg/status.d/base.md5sums", "d41d8cd9  etc/x\n", 0},
		member{"/lib/apk/db/installed", "P:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\no:musl\n\nP:busybox\nV:1.36.1-r29\n", 0},
		member{"app/node_modules/left-pad/package.json", `{"name":"left-pad","version":"1.3.0","license":"WTFPL"}`, 0},
		member{"app/node_modules/@a/b/package.json", `{"name":"@a/b","version":"2.0.0","license":{"type":"MIT"}}`, 0},
		member{"app/node_modules/left-pad/dist/package.json", `{"type":"module"}`, 0},
		member{"app/package-lock.json", `{"lockfileVersion":3,"packages":{"":{"name":"app"},"node_modules/left-pad":{"version":"1.3.0","license":"WTFPL"},"node_modules/x":{"version":"1.0.0","dev":true},"node_modules/y/node_modules/z":{"version":"0.1.0"}}}`, 0},
		member{"usr/lib/python3/dist-packages/PyYAML-6.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: Py_YAML\nVersion: 6.0\nLicense: MIT\n\nlong text\nName: other\n", 0},
		member{"var/lib/rpm/rpmdb.sqlite", "SQLite", 0},
		member{"srv/node_modules/bad/package.json", "{", 0},
	))
	want := `pkg:apk/debian/busybox@1.36.1-r29?distro=debian-12
pkg:apk/debian/musl@1.2.5-r0?arch=x86_64&distro=debian-12
pkg:deb/debian/base-files@12.4?arch=amd64&distro=debian-12
pkg:deb/debian/libc6@2.36-9%2Bdeb12u9?arch=amd64&distro=debian-12
pkg:npm/%40a/b@2.0.0
pkg:npm/left-pad@1.3.0
pkg:npm/z@0.1.0
pkg:pypi/py-yaml@6.0`
	if got := told(img); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if len(img.Unread) != 2 || !strings.Contains(img.Unread[1], "RPM") {
		t.Errorf("unread %v", img.Unread)
	}
	if p := img.Packages[3]; p.Source != "glibc" || p.Path != "var/lib/dpkg/status" {
		t.Errorf("got %+v", p)
	}
}

// TestLayers: what an upper layer replaces, removes or hides counts no more.
func TestLayers(t *testing.T) {
	low := pack(t, member{"a/node_modules/x/package.json", `{"name":"x","version":"1.0.0"}`, 0}, member{"b/node_modules/y/package.json", `{"name":"y","version":"1.0.0"}`, 0})
	for name, c := range map[string]struct {
		upper []member
		want  string
	}{
		"replaced":     {[]member{{"a/node_modules/x/package.json", `{"name":"x","version":"2.0.0"}`, 0}}, "pkg:npm/x@2.0.0\npkg:npm/y@1.0.0"},
		"removed":      {[]member{{"a/node_modules/x/.wh.package.json", "", 0}}, "pkg:npm/y@1.0.0"},
		"folder gone":  {[]member{{"a/.wh.node_modules", "", 0}}, "pkg:npm/y@1.0.0"},
		"opaque":       {[]member{{"b/.wh..wh..opq", "", 0}}, "pkg:npm/x@1.0.0"},
		"opaque, new":  {[]member{{"b/node_modules/z/package.json", `{"name":"z","version":"3.0.0"}`, 0}, {"b/.wh..wh..opq", "", 0}}, "pkg:npm/x@1.0.0\npkg:npm/z@3.0.0"},
		"root opaque":  {[]member{{".wh..wh..opq", "", 0}}, ""},
		"file instead": {[]member{{"a", "text", 0}}, "pkg:npm/y@1.0.0"},
		"same folder":  {[]member{{"a/", "", 0}, {"a/node_modules/", "", 0}}, "pkg:npm/x@1.0.0\npkg:npm/y@1.0.0"},
		"damaged":      {[]member{{"a/node_modules/x/package.json", `{`, 0}}, "pkg:npm/y@1.0.0"},
		"name alike":   {[]member{{"a/.wh.node", "", 0}}, "pkg:npm/x@1.0.0\npkg:npm/y@1.0.0"},
	} {
		if got := told(scan(t, low, pack(t, c.upper...))); got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, c.want)
		}
	}
}

// TestGoBuild holds the stream reader against debug/buildinfo, on this test's
// own program and on Go's tools, which hold the mark twice.
func TestGoBuild(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bins := []string{self}
	if p, err := exec.LookPath("go"); err == nil {
		bins = append(bins, p)
	}
	for _, bin := range bins {
		want, err := buildinfo.ReadFile(bin)
		if err != nil {
			t.Fatal(err)
		}
		in, err := os.Open(bin)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		f := &file{}
		if err := goBuild(iotest.HalfReader(in), f); err != nil {
			t.Fatalf("%s: %v", bin, err)
		}
		if len(f.packages) == 0 || f.packages[0].Name != "stdlib" || "go"+f.packages[0].Version != strings.Fields(want.GoVersion)[0] {
			t.Fatalf("%s: got %v, want %s", bin, f.packages, want.GoVersion)
		}
		for _, m := range want.Deps {
			if m.Replace == nil && !slices.ContainsFunc(f.packages, func(p Package) bool { return p.Name == m.Path && p.Version == m.Version }) {
				t.Errorf("%s: no %s %s", bin, m.Path, m.Version)
			}
		}
	}
	for name, text := range map[string]string{
		"script": "#!/bin/sh\n", "other ELF": "\x7fELF" + strings.Repeat("x", 100000), "short": "\x7fELF",
		"mark only": "\x7fELF" + strings.Repeat("\x00", 12) + goMark + "\x08\x02", "mark, garbage": "\x7fELF" + strings.Repeat("\x00", 12) + goMark + "\x08\x02" + strings.Repeat("\xff", 500),
	} {
		f := &file{}
		if err := goBuild(strings.NewReader(text), f); err != nil || f.packages != nil {
			t.Errorf("%s: %v, %v", name, f.packages, err)
		}
	}
}

func FuzzReaders(f *testing.F) {
	readers := []func(io.Reader, *file) error{dpkg, apk, osRelease, npm, npmLock, python, goBuild}
	for i, s := range []string{status, "P:a\nV:1\n\n", "ID=x", `{"name":"a","version":"1"}`, `{"lockfileVersion":2,"packages":{}}`, "Name: a\nVersion: 1\n", "\x7fELF"} {
		f.Add(i, []byte(s))
	}
	f.Add(6, []byte("\x7fELF000000000000"+goMark+"\x08\x02"+strings.Repeat("\x00", 16)+"\x08go1.26.0\x00"))
	f.Fuzz(func(t *testing.T, i int, b []byte) {
		if i >= 0 && i < len(readers) {
			readers[i](bytes.NewReader(b), &file{})
		}
	})
}

// TestTee: the tee sees every byte of every file, in the same pass.
func TestTee(t *testing.T) {
	big := strings.Repeat("x", 300000)
	b := pack(t, member{"var/lib/dpkg/status", status, 0}, member{"bin/x", "\x7fELF" + big, 0o755}, member{"d/", "", 0}, member{"empty", "", 0})
	got := map[string]int{}
	_, err := Scan(t.Context(), layers(b), func(_ v1.Hash, e layer.Entry) io.Writer {
		got[e.Path] = 0
		return writer(func(p []byte) { got[e.Path] += len(p) })
	})
	if err != nil || len(got) != 3 || got["bin/x"] != len(big)+4 || got["var/lib/dpkg/status"] != len(status) {
		t.Errorf("got %v, %v", got, err)
	}
}

type writer func([]byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }

func TestScanErrors(t *testing.T) {
	good := pack(t, member{"var/lib/dpkg/status", status, 0})
	var z bytes.Buffer
	g := gzip.NewWriter(&z)
	g.Write(good)
	g.Close()
	if got := told(scan(t, z.Bytes())); !strings.Contains(got, "libc6") {
		t.Errorf("gzip: %s", got)
	}
	broken := errors.New("cable")
	for name, r := range map[string]io.Reader{
		"cut tar":    bytes.NewReader(good[:700]),
		"cut gzip":   bytes.NewReader(z.Bytes()[:z.Len()-9]),
		"read error": io.MultiReader(bytes.NewReader(good[:600]), iotest.ErrReader(broken)),
		"garbage":    strings.NewReader(strings.Repeat("garbage ", 100)),
	} {
		_, err := Scan(t.Context(), []Layer{{Open: func() (io.ReadCloser, error) { return io.NopCloser(r), nil }}}, nil)
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Scan(ended, layers(good), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestScanMemory: a layer of many and large files takes memory for its packages
// only.
func TestScanMemory(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 24<<20)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	b := pack(t, member{"bin/big", "\x7fELF" + string(noise), 0o755}, member{"data", string(noise), 0})
	runtime.GC()
	var m0, m1 runtime.MemStats
	runtime.ReadMemStats(&m0)
	scan(t, b)
	runtime.ReadMemStats(&m1)
	if n := m1.TotalAlloc - m0.TotalAlloc; n > 4<<20 {
		t.Errorf("allocated %d bytes", n)
	}
}

func document(t *testing.T) Document {
	t.Helper()
	img := scan(t, pack(t, member{"etc/os-release", "ID=debian\nVERSION_ID=12\n", 0}, member{"var/lib/dpkg/status", status, 0},
		member{"app/node_modules/l/package.json", `{"name":"l","version":"1.0.0","license":"SEE LICENSE IN x"}`, 0}))
	h := v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("ab", 32)}
	return Document{Name: "demo", Version: "0.1.0", Digest: h, Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Parts: []Part{
		{Name: "web", Version: "1.2.0", Kind: "image", Digest: h, Licence: "MIT", Image: img},
		{Name: "tiny", Kind: "model", Digest: h, Licence: "LicenseRef-Open-Model"},
		{Name: "policy", Kind: "policy"},
	}}
}

func TestCycloneDX(t *testing.T) {
	d := document(t)
	b, err := d.CycloneDX()
	if err != nil {
		t.Fatal(err)
	}
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(bytes.NewReader(b), cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	if bom.SpecVersion != cdx.SpecVersion1_6 || len(*bom.Components) != 3 || (*bom.Components)[1].Type != cdx.ComponentTypeMachineLearningModel || bom.Metadata.Timestamp != "2026-01-02T03:04:05Z" {
		t.Errorf("got %s", b)
	}
	refs := map[string]bool{}
	var walk func(cs []cdx.Component)
	walk = func(cs []cdx.Component) {
		for _, c := range cs {
			if refs[c.BOMRef] {
				t.Errorf("bom-ref %s twice", c.BOMRef)
			}
			refs[c.BOMRef] = true
			if c.Components != nil {
				walk(*c.Components)
			}
		}
	}
	walk(*bom.Components)
	for _, dep := range *bom.Dependencies {
		for _, r := range *dep.Dependencies {
			if !refs[r] {
				t.Errorf("dependency on %s, which is not there", r)
			}
		}
	}
	if (*bom.Compositions)[0].Aggregate != cdx.CompositionAggregateComplete {
		t.Error("not complete")
	}
	d.Parts[0].Image.Unread = []string{"var/lib/rpm: x"}
	if b, _ := d.CycloneDX(); !bytes.Contains(b, []byte(`"aggregate": "incomplete"`)) {
		t.Error("unread packages are not said")
	}
}

func TestSPDX(t *testing.T) {
	b, err := document(t).SPDX()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := spdxjson.Read(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if doc.SPDXVersion != "SPDX-2.3" || len(doc.Packages) != 6 || len(doc.OtherLicenses) != 1 || len(doc.Relationships) != 6 {
		t.Errorf("%d packages, %d licences, %d relations\n%s", len(doc.Packages), len(doc.OtherLicenses), len(doc.Relationships), b)
	}
	seen := map[string]bool{}
	for _, p := range doc.Packages {
		if seen[string(p.PackageSPDXIdentifier)] {
			t.Errorf("%s twice", p.PackageSPDXIdentifier)
		}
		seen[string(p.PackageSPDXIdentifier)] = true
	}
}

// TestDeterministic: the same input, the same bytes; and other ones for another
// release.
func TestDeterministic(t *testing.T) {
	write := func(d Document) string {
		a, err := d.CycloneDX()
		b, err2 := d.SPDX()
		if err = errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		return string(a) + string(b)
	}
	first := write(document(t))
	for range 5 {
		if write(document(t)) != first {
			t.Fatal("other bytes")
		}
	}
	d := document(t)
	d.Version = "0.2.0"
	if write(d) == first {
		t.Error("another version has the same bytes")
	}
	if strings.Contains(first, time.Now().Format("2006-01-02")) {
		t.Error("it holds today's date")
	}
}

func TestArtifact(t *testing.T) {
	doc, err := document(t).SPDX()
	if err != nil {
		t.Fatal(err)
	}
	subject := describe("application/vnd.oci.image.manifest.v1+json", []byte("{}"))
	raw, d, err := Artifact(SPDXType, "web.spdx.json", doc, &subject)
	if err != nil {
		t.Fatal(err)
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil || m.ArtifactType != SPDXType || m.Subject.Digest != subject.Digest || m.Layers[0].Size != int64(len(doc)) || d.Size != int64(len(raw)) {
		t.Errorf("got %s, %v", raw, err)
	}
}

// TestRealSystem reads this machine's own package database, where there is one,
// and counts against dpkg itself.
func TestRealSystem(t *testing.T) {
	b, err := os.ReadFile("/var/lib/dpkg/status")
	if err != nil {
		t.Skipf("no dpkg here: %v", err)
	}
	out, err := exec.Command("dpkg-query", "-W", "-f", "${Status}|${Package}|${Version}\n").Output()
	if err != nil {
		t.Skipf("dpkg-query: %v", err)
	}
	want := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "install ok installed|"); ok {
			want[p] = true
		}
	}
	img := scan(t, pack(t, member{"var/lib/dpkg/status", string(b), 0}))
	for _, p := range img.Packages {
		if !want[p.Name+"|"+p.Version] {
			t.Errorf("dpkg doesn't know %s %s", p.Name, p.Version)
		}
	}
	if len(img.Packages) < len(want) {
		t.Errorf("got %d packages, dpkg has %d", len(img.Packages), len(want))
	}
}
