package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/licence"
)

// drawn is n letters and digits as a key has them; no secret is written out
// here, or scanners of code hosts would find it.
func drawn(seed uint64, n int) string {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	r, b := rand.New(rand.NewPCG(seed, 1)), make([]byte, n)
	for i := range b {
		b[i] = letters[r.IntN(len(letters))]
	}
	b[n/2] = '7'
	return string(b)
}

// planted are files with a secret: what is found, the secret, and the file.
var planted = func() map[string][2]string {
	ngc, hf, pem, auth := "nvapi-"+drawn(1, 64), "hf"+"_"+drawn(2, 34), drawn(3, 64), drawn(4, 40)
	return map[string][2]string{
		"NVIDIA API key":       {ngc, "export NGC_CLI=" + ngc + "\n"},
		"Hugging Face token":   {hf, "token: " + hf + "\n"},
		"private key":          {pem, "-----BEGIN " + "PRIVATE KEY-----\n" + pem + "\n" + drawn(5, 64) + "\n-----END " + "PRIVATE KEY-----\n"},
		"registry credentials": {auth, `{"auths":{"nvcr.io":{"auth":"` + auth + `"}}}`},
	}
}()

// layerOf packs files into a layer.
func layerOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, n := range slices.Sorted(maps.Keys(files)) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: n, Size: int64(len(files[n])), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		w.Write([]byte(files[n]))
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// withLayer adds a layer to the test's image.
func withLayer(t testing.TB, raw []byte) v1.Image {
	t.Helper()
	return addLayer(t, image(t, 3, "amd64"), raw)
}

func addLayer(t testing.TB, img v1.Image, raw []byte) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(img, static.NewLayer(raw, types.DockerLayer))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// layoutOf makes dir a layout with one image, called latest.
func layoutOf(t testing.TB, dir string, img v1.Image) {
	t.Helper()
	p, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = p.AppendImage(img, layout.WithAnnotations(map[string]string{content.RefName: "latest"}))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// places are where a secret may hide: each puts it there and returns the item.
var places = map[string]func(t *testing.T, s *site, text string) (item, file string){
	"file": func(t *testing.T, s *site, text string) (string, string) {
		write(t, filepath.Join(s.dir, "env"), []byte(text))
		return `{name: x, kind: file, source: "file:env", redistributable: true}`, "x, byte"
	},
	"large file": func(t *testing.T, s *site, text string) (string, string) {
		write(t, filepath.Join(s.dir, "env"), append(append(noise(9, 5<<20), text...), noise(8, 99)...))
		return `{name: x, kind: file, source: "file:env", redistributable: true}`, "x, byte 5242"
	},
	"model": func(t *testing.T, s *site, text string) (string, string) {
		write(t, filepath.Join(s.dir, "model/sub/notes.txt"), []byte(text))
		return `{name: x, kind: model, source: "dir:model", redistributable: true}`, "sub/notes.txt, byte"
	},
	"layout": func(t *testing.T, s *site, text string) (string, string) {
		layoutOf(t, filepath.Join(s.dir, "img"), withLayer(t, layerOf(t, map[string]string{"root/.env": text})))
		return `{name: x, kind: image, source: "oci-layout:img", redistributable: true}`, ", root/.env, byte"
	},
	"archive": func(t *testing.T, s *site, text string) (string, string) {
		tag, err := name.NewTag("example.com/app:1")
		if err == nil {
			err = tarball.WriteToFile(filepath.Join(s.dir, "x.tar"), tag, withLayer(t, layerOf(t, map[string]string{"root/.env": text})))
		}
		if err != nil {
			t.Fatal(err)
		}
		return `{name: x, kind: image, source: "docker-archive:x.tar", redistributable: true}`, ", root/.env, byte"
	},
	"registry": func(t *testing.T, s *site, text string) (string, string) {
		h := newHub(t)
		if err := remote.Write(h.tag("x:1"), withLayer(t, layerOf(t, map[string]string{"root/.env": text}))); err != nil {
			t.Fatal(err)
		}
		return `{name: x, kind: image, source: "docker://` + h.host + `/x:1", redistributable: true}`, ", root/.env, byte"
	},
	"configuration": func(t *testing.T, s *site, text string) (string, string) {
		img := image(t, 3, "amd64")
		c, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		c = c.DeepCopy()
		c.Config.Labels = map[string]string{"notes": text}
		if img, err = mutate.ConfigFile(img, c); err != nil {
			t.Fatal(err)
		}
		layoutOf(t, filepath.Join(s.dir, "img"), img)
		return `{name: x, kind: image, source: "oci-layout:img", redistributable: true}`, "configuration, byte"
	},
}

// TestPlantedKeys: key material is refused wherever it lies, named without being
// told, and nothing that a refused build leaves tells it.
func TestPlantedKeys(t *testing.T) {
	for where, put := range places {
		for rule, p := range planted {
			if where == "configuration" && rule == "registry credentials" {
				continue // its quotes are escaped there, so it reads otherwise
			}
			t.Run(where+" "+rule, func(t *testing.T) {
				s := newSite(t)
				var log bytes.Buffer
				s.opt.Progress = NewProgress(&log, false)
				item, file := put(t, s, p[1])
				s.recipe(t, item)
				_, err := s.build(t)
				var se *licence.SecretError
				if !errors.As(err, &se) || se.Findings[0].Rule != rule || se.Findings[0].Item != "x" || !strings.Contains(err.Error(), file) {
					t.Fatalf("got %v, want %s in %s", err, rule, file)
				}
				s.tellsNothing(t, p[0], err.Error()+log.String())
				if _, err := os.Stat(filepath.Join(s.dir, "bundle.lock")); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("a refused build left a lock: %v", err)
				}
				if _, err := s.build(t); !errors.As(err, &se) { // what is remembered is refused, too
					t.Errorf("the second time: %v", err)
				}
				var ks []string
				for _, f := range se.Findings {
					ks = append(ks, fmt.Sprintf(`{fingerprint: "%s", why: "a test's own"}`, f.Fingerprint))
				}
				s.recipe(t, strings.TrimSuffix(item, "}")+", allowedKeys: ["+strings.Join(ks, ", ")+"]}")
				if r := s.mustBuild(t); len(r.Items[0].AllowedKeys) != len(ks) {
					t.Errorf("the release doesn't say what was let through: %+v", r.Items[0])
				}
			})
		}
	}
}

// tellsNothing looks for a secret in the output, in the bundle, and in all that
// the work store knows beside the blobs.
func (s *site) tellsNothing(t *testing.T, secret, said string) {
	t.Helper()
	for _, part := range []string{secret, secret[:20], secret[len(secret)-20:]} {
		if strings.Contains(said, part) {
			t.Errorf("the output tells the secret: %s", said)
		}
		for _, dir := range []string{s.opt.Store, s.opt.Store + ".cache", s.opt.Out} {
			if _, err := os.Stat(dir); err != nil {
				continue
			}
			for p, b := range tree(t, dir) {
				if !strings.HasPrefix(p, "blobs/") && strings.Contains(b, part) {
					t.Errorf("%s/%s tells the secret", dir, p)
				}
			}
		}
	}
}

// TestWeightsAreNotScanned: the tensors of weights are passed over, as they can't
// hold text by accident; headers are scanned, and a file that only begins like
// weights is scanned whole.
func TestWeightsAreNotScanned(t *testing.T) {
	p := planted["Hugging Face token"]
	for name, c := range map[string]struct {
		text func() []byte
		bad  bool
	}{
		"in the tensor":     {func() []byte { b := gguf(1, 2<<20); copy(b[1<<20:], p[1]); return b }, false},
		"header, no tensor": {func() []byte { b := gguf(1, 2<<20); b[8] = 9; copy(b[1<<20:], p[1]); return b }, true},
		"safetensors": {func() []byte {
			h := `{"__metadata__":{"note":"` + p[0] + `"},"w":{"dtype":"I8","shape":[8],"data_offsets":[0,8]}}`
			return append(append([]byte{byte(len(h)), 0, 0, 0, 0, 0, 0, 0}, h...), make([]byte, 8)...)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			write(t, filepath.Join(s.dir, "w"), c.text())
			s.recipe(t, `{name: x, kind: file, source: "file:w", redistributable: true}`)
			_, err := s.build(t)
			var se *licence.SecretError
			if errors.As(err, &se) != c.bad || !c.bad && err != nil {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestPulledWeights: a stream that begins like weights is looked into when it is
// in the store, as only its header can tell.
func TestPulledWeights(t *testing.T) {
	for bad, text := range map[bool]string{true: "GGUF and no header\n" + planted["Hugging Face token"][1], false: string(gguf(4, 1<<20))} {
		s := newSite(t)
		write(t, filepath.Join(s.dir, "w"), []byte(text))
		srv := s.https(t)
		h, _, err := v1.SHA256(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		s.recipe(t, `{name: x, kind: file, source: "`+srv+`/w", sha256: `+h.Hex+`, redistributable: true}`)
		_, err = s.build(t)
		var se *licence.SecretError
		if errors.As(err, &se) != bad || !bad && err != nil {
			t.Errorf("got %v, want a refusal: %v", err, bad)
		}
	}
}

// https serves the site's files, to clients of this test.
func (s *site) https(t *testing.T) string {
	t.Helper()
	srv := httptest.NewTLSServer(http.FileServer(http.Dir(s.dir)))
	old := client.Transport
	client.Transport = srv.Client().Transport
	t.Cleanup(func() { client.Transport = old; srv.Close() })
	return srv.URL
}

// TestLooksOnce: bytes are read once to be summed and looked into, a layer that
// two images share too, and not at all when nothing has changed.
func TestLooksOnce(t *testing.T) {
	s := newSite(t)
	shared := layerOf(t, map[string]string{"a": strings.Repeat("text ", 400_000)})
	layoutOf(t, filepath.Join(s.dir, "one"), withLayer(t, shared))
	layoutOf(t, filepath.Join(s.dir, "two"), withLayer(t, shared))
	s.recipe(t, `{name: one, kind: image, source: "oci-layout:one", redistributable: true}`, `{name: two, kind: image, source: "oci-layout:two", ref: "two:1", redistributable: true}`,
		`{name: tiny, kind: model, source: "dir:model", redistributable: true}`)
	time.Sleep(200 * time.Millisecond)
	l := &tasks{}
	s.opt.Progress = l
	s.mustBuild(t)
	seen := map[string]int{}
	for _, n := range l.names {
		seen[n]++
	}
	looked := 0
	for n, k := range seen {
		if k > 1 {
			t.Errorf("%s: %d times", n, k)
		}
		if strings.Contains(n, "layer") {
			looked++
		}
	}
	if looked != 3 || seen["hash tiny/tiny.gguf"] != 1 {
		t.Errorf("did %v, want three layers, each once", l.names)
	}
	again := &tasks{}
	s.opt.Progress = again
	s.mustBuild(t)
	for _, n := range again.names {
		if strings.Contains(n, "layer") || strings.Contains(n, "gguf") || strings.Contains(n, "write") {
			t.Errorf("nothing changed, and it did %q", n)
		}
	}
}

// TestBrokenLayer: what no host could unpack is no part of a bundle.
func TestBrokenLayer(t *testing.T) {
	good := layerOf(t, map[string]string{"a": "text"})
	for name, raw := range map[string][]byte{"cut": good[:len(good)-12], "no tar": noise(5, 2000)} {
		s := newSite(t)
		layoutOf(t, filepath.Join(s.dir, "img"), withLayer(t, raw))
		s.recipe(t, `{name: x, kind: image, source: "oci-layout:img", redistributable: true}`)
		if _, err := s.build(t); err == nil || !strings.Contains(err.Error(), "item x, layer ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestManyFindings: a layer of some KB that unpacks to hundreds of thousands of
// findings is refused, and costs no more than a few thousand do.
func TestManyFindings(t *testing.T) {
	const key = "AKIA" + "Q2W3E4R5T6Y7UZIO" + "\n"
	s := newSite(t)
	layoutOf(t, filepath.Join(s.dir, "img"), withLayer(t, layerOf(t, map[string]string{"a": strings.Repeat(key, 400_000)})))
	print := licence.Fingerprint([]byte(strings.TrimSpace(key)))
	s.recipe(t, `{name: x, kind: image, source: "oci-layout:img", redistributable: true, allowedKeys: [{fingerprint: "`+print+`", why: "a test's"}]}`)
	_, err := s.build(t)
	var found *licence.SecretError
	if !errors.As(err, &found) || len(found.Findings) != 1 || !strings.Contains(err.Error(), "too many to allow") {
		t.Errorf("allowed by its fingerprint: got %v", err)
	}
	s.recipe(t, `{name: x, kind: image, source: "oci-layout:img", redistributable: true}`)
	if _, err := s.build(t); !errors.As(err, &found) || len(found.Findings) > licence.MaxFindings {
		t.Errorf("got %d findings, want at most %d", len(found.Findings), licence.MaxFindings)
	}
}
