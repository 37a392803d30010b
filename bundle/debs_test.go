package bundle

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/content"
)

// archive is a signed Debian archive on loopback that counts what is asked for.
type archive struct {
	url string
	key *openpgp.Entity

	mu    sync.Mutex
	files map[string]string
	asked []string
}

func newArchive(t *testing.T) *archive {
	t.Helper()
	key, err := openpgp.NewEntity("archive", "", "a@example", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA})
	if err != nil {
		t.Fatal(err)
	}
	a := &archive{key: key, files: map[string]string{}}
	srv := httptest.NewServer(a)
	t.Cleanup(srv.Close)
	a.url = srv.URL
	return a
}

func (a *archive) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = append(a.asked, r.URL.Path)
	b, ok := a.files[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	fmt.Fprint(w, b)
}

// publish signs an archive of packages: name, version, content, and its needs.
func (a *archive) publish(t *testing.T, packages ...[4]string) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	text := ""
	for _, p := range packages {
		file := fmt.Sprintf("pool/%s_%s_amd64.deb", p[0], p[1])
		a.files["/"+file] = p[2]
		text += fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: amd64\nFilename: %s\nSize: %d\nSHA256: %x\n%s\n", p[0], p[1], file, len(p[2]), sha256.Sum256([]byte(p[2])), p[3])
	}
	a.files["/dists/jammy/main/binary-amd64/Packages"] = text
	var signed bytes.Buffer
	w, err := clearsign.Encode(&signed, a.key.PrivateKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(w, "Suite: jammy\nSHA256:\n %x %d main/binary-amd64/Packages\n", sha256.Sum256([]byte(text)), len(text))
	w.Close()
	a.files["/dists/jammy/InRelease"] = signed.String()
}

// debSite has a list of packages for a kernel, and a recipe that brings them.
func debSite(t *testing.T) (*site, *archive) {
	t.Helper()
	s, a := newSite(t), newArchive(t)
	a.publish(t, [4]string{"driver-550", "550.1-0ubuntu1", "the driver", "Depends: libdrv (>= 2), base\n"}, [4]string{"libdrv", "2.0", "the library", ""},
		[4]string{"modules-5.15.0-100-generic", "1.0", "the modules", ""}, [4]string{"base", "1.0", "already there", ""})
	var ring bytes.Buffer
	if err := a.key.Serialize(&ring); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(s.dir, "ring.gpg"), ring.Bytes())
	write(t, filepath.Join(s.dir, "jammy.manifest"), []byte("base\t1.0\n"))
	write(t, filepath.Join(s.dir, "gpu.yaml"), []byte(`apiVersion: clawbox.io/v1
kind: Packages
architecture: amd64
kernel: 5.15.0-100-generic
branch: "550"
installed: jammy.manifest
sources:
  - {uri: "`+a.url+`", suite: jammy, components: [main], keyring: ring.gpg}
packages: ["driver-{branch}", "modules-{kernel}"]
`))
	s.recipe(t, `{name: gpu, kind: debs, source: "deb:gpu.yaml", licence: LicenseRef-NVIDIA-Driver, redistributable: true}`)
	return s, a
}

// TestDebs: the closure for a clean target comes as pinned files; from the lock
// it is the same without the archive, whatever that has by then.
func TestDebs(t *testing.T) {
	s, a := debSite(t)
	r := s.mustBuild(t)
	it := r.Items[0]
	if it.Kind != "debs" || it.Path != "debs/gpu" || it.Mode != "0644" || it.Descriptor.ArtifactType != DebsArtifact {
		t.Errorf("got %+v", it)
	}
	st := s.load(t)
	want := map[string]string{"driver-550_550.1-0ubuntu1_amd64.deb": "the driver", "libdrv_2.0_amd64.deb": "the library", "modules-5.15.0-100-generic_1.0_amd64.deb": "the modules"}
	for name, text := range want {
		if got := blob(t, st, "gpu:0.1.0", name); string(got) != text {
			t.Errorf("%s: got %q", name, got)
		}
	}
	d, err := st.Resolve("gpu:0.1.0")
	if err != nil {
		t.Fatal(err)
	}
	if m, err := v1.ParseManifest(bytes.NewReader(read(t, st.Path(d.Digest)))); err != nil || len(m.Layers) != len(want) {
		t.Errorf("%d packages, want %d, %v", len(m.Layers), len(want), err)
	}
	lock := string(read(t, filepath.Join(s.dir, "bundle.lock")))
	for _, w := range []string{"name: libdrv", "version: '2.0'", fmt.Sprintf("sha256: %x", sha256.Sum256([]byte("the library"))), "550.1-0ubuntu1"} {
		if !strings.Contains(lock, w) {
			t.Errorf("no %q in the lock:\n%s", w, lock)
		}
	}
	whole, _ := documents(t, st, r, "sbom")
	if !bytes.Contains(whole[0], []byte("pkg:deb/debian/libdrv@2.0?arch=amd64")) {
		t.Errorf("the list of software lacks the packages: %s", whole[0])
	}

	a.publish(t, [4]string{"driver-550", "550.2-0ubuntu1", "a newer driver", ""}, [4]string{"modules-5.15.0-100-generic", "1.0", "the modules", ""})
	a.asked = nil
	first := tree(t, s.opt.Out)
	s.opt.Out += "2"
	s.mustBuild(t)
	if len(a.asked) > 0 || tree(t, s.opt.Out)["clawbox/release.note"] != first["clawbox/release.note"] {
		t.Errorf("from the lock it asked for %v, or made another release", a.asked)
	}
	s.opt.Store += "2" // another machine: by digest, and without the index
	a.files["/pool/driver-550_550.1-0ubuntu1_amd64.deb"] = "the driver"
	s.mustBuild(t)
	for _, p := range a.asked {
		if !strings.HasPrefix(p, "/pool/") {
			t.Errorf("asked for %s", p)
		}
	}
	s.opt.UpdateLock = true
	s.mustBuild(t)
	if lock := string(read(t, filepath.Join(s.dir, "bundle.lock"))); !strings.Contains(lock, "550.2-0ubuntu1") || strings.Contains(lock, "libdrv") {
		t.Errorf("the renewed lock:\n%s", lock)
	}
}

// TestDebsRefused: what was not signed, or is not what was signed, and lists
// that changed under the lock.
func TestDebsRefused(t *testing.T) {
	fresh := func(change func(s *site, a *archive)) error {
		s, a := debSite(t)
		change(s, a)
		_, err := s.build(t)
		return err
	}
	if err := fresh(func(_ *site, a *archive) { a.files["/pool/libdrv_2.0_amd64.deb"] = "the liberty" }); !errors.Is(err, content.ErrMismatch) {
		t.Errorf("another package: %v", err)
	}
	if err := fresh(func(_ *site, a *archive) { delete(a.files, "/pool/libdrv_2.0_amd64.deb") }); err == nil || !strings.Contains(err.Error(), "libdrv_2.0_amd64.deb") {
		t.Errorf("no package: %v", err)
	}
	if err := fresh(func(_ *site, a *archive) {
		p := "/dists/jammy/main/binary-amd64/Packages"
		a.files[p] = strings.Replace(a.files[p], "Version: 2.0", "Version: 2.1", 1)
	}); err == nil || !strings.Contains(err.Error(), "InRelease says") {
		t.Errorf("another index: %v", err)
	}
	if err := fresh(func(s *site, a *archive) {
		other := newArchive(t)
		var ring bytes.Buffer
		other.key.Serialize(&ring)
		write(t, filepath.Join(s.dir, "ring.gpg"), ring.Bytes())
	}); err == nil || !strings.Contains(err.Error(), "not signed by a key") {
		t.Errorf("another key: %v", err)
	}
	s, _ := debSite(t)
	s.mustBuild(t)
	write(t, filepath.Join(s.dir, "jammy.manifest"), []byte("base\t1.0\nlibdrv\t2.0\n"))
	var le *LockError
	if _, err := s.build(t); !errors.As(err, &le) || le.Item != "gpu" {
		t.Errorf("another target: %v", err)
	}
}

// TestPackagesTraps: each mistake in a list of packages is named.
func TestPackagesTraps(t *testing.T) {
	s, _ := debSite(t)
	file := filepath.Join(s.dir, "gpu.yaml")
	good := string(read(t, file))
	for name, c := range map[string]struct{ old, new, want string }{
		"unknown field": {"kernel:", "kernal:", "unknown field"},
		"kind":          {"kind: Packages", "kind: Recipe", `kind "Recipe"`},
		"no keyring":    {", keyring: ring.gpg", "", "without uri, suite or keyring"},
		"no packages":   {`["driver-{branch}", "modules-{kernel}"]`, "[]", "no packages"},
		"no kernel":     {"kernel: 5.15.0-100-generic\n", "", "name the target's kernel"},
		"nothing to do": {`["driver-{branch}", "modules-{kernel}"]`, "[base]", "has all of these packages already"},
		"not there":     {`"modules-{kernel}"`, "nowhere", "wants nowhere"},
	} {
		write(t, file, []byte(strings.Replace(good, c.old, c.new, 1)))
		if _, err := s.build(t); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}
