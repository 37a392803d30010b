package serve

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-containerregistry/pkg/crane"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"

	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/registry"
)

const recipe = `apiVersion: clawbox.io/v1
kind: Recipe
metadata: {name: demo, version: %s, created: "2026-01-02T03:04:05Z"}
sequence: %d
items:
  - {name: app, kind: image, source: "oci-layout:image:latest", platforms: [linux/amd64], licence: MIT, redistributable: true}
  - {name: rules, kind: policy, source: "file:rules.yaml", licence: MIT, redistributable: true}
  - {name: tiny, kind: model, source: "dir:model", licence: MIT, redistributable: true}
`

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

// site builds bundles of an image, a policy and a model of two chunks.
type site struct {
	dir   string
	img   v1.Image
	model []byte
	opt   bundle.BuildOptions
	trust manifest.Trust
}

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{dir: t.TempDir(), model: tensor(bytes.Repeat([]byte("weights "), 5<<17+3))}
	put(t, filepath.Join(s.dir, "rules.yaml"), []byte("network: {deny: \"*\"}\n"))
	s.release(t, "1.0.0", 1)
	img := must(random.Image(100_000, 2))(t)
	c := must(img.ConfigFile())(t).DeepCopy()
	c.OS, c.Architecture = "linux", "amd64"
	s.img = must(mutate.ConfigFile(img, c))(t)
	p := must(layout.Write(filepath.Join(s.dir, "image"), empty.Index))(t)
	if err := p.AppendImage(s.img, layout.WithAnnotations(map[string]string{content.RefName: "latest"})); err != nil {
		t.Fatal(err)
	}
	skey, vkey, err := manifest.GenerateKey("acme")
	if err != nil {
		t.Fatal(err)
	}
	s.trust = must(manifest.NewTrust(1, vkey))(t)
	s.opt = bundle.BuildOptions{
		Recipe: filepath.Join(s.dir, "recipe.yaml"), Out: filepath.Join(s.dir, "stick"), Store: filepath.Join(s.dir, "work"),
		Lock: filepath.Join(s.dir, "lock"), Signers: []manifest.Signer{must(manifest.ParseSigner(skey))(t)}, PartSize: bundle.MinPartSize,
	}
	return s
}

// tensor makes b a safetensors file of one tensor, and leaves its size as it is.
func tensor(b []byte) []byte {
	const head = 96
	n := len(b) - 8 - head
	h := fmt.Sprintf("%-*s", head, fmt.Sprintf(`{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}`, n, n))
	copy(b, binary.LittleEndian.AppendUint64(nil, head))
	copy(b[8:], h)
	return b
}

// release writes the recipe and the model of a version.
func (s *site) release(t testing.TB, version string, sequence int) {
	t.Helper()
	put(t, filepath.Join(s.dir, "recipe.yaml"), fmt.Appendf(nil, recipe, version, sequence))
	put(t, filepath.Join(s.dir, "model/tiny.safetensors"), s.model)
}

func (s *site) build(t testing.TB) {
	t.Helper()
	must(bundle.Build(t.Context(), s.opt))(t)
}

// serve opens the media and serves them; log is what the server says.
func (s *site) serve(t testing.TB, ids ...age.Identity) (url string, log *notes) {
	t.Helper()
	m := must(bundle.MediaOptions{Trust: s.trust, Dirs: []string{s.opt.Out}, Identities: ids}.Open())(t)
	log = &notes{}
	src := must(Media(t.Context(), m, slog.New(slog.NewTextHandler(log, nil))))(t)
	srv := httptest.NewServer(must(registry.Of(src, registry.Options{Log: slog.New(slog.NewTextHandler(log, nil))}))(t))
	t.Cleanup(srv.Close)
	return srv.URL, log
}

// notes is a log for several goroutines.
type notes struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (n *notes) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.b.Write(p)
}

func (n *notes) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.b.String()
}

// layers returns the layers of a manifest that the server has.
func layers(t testing.TB, url, ref string) []v1.Descriptor {
	t.Helper()
	b := must(crane.Manifest(strings.TrimPrefix(url, "http://") + "/" + ref))(t)
	return must(v1.ParseManifest(bytes.NewReader(b)))(t).Layers
}

// get asks for a blob, and returns status, body and the error of reading it.
func get(t testing.TB, method, url string, header ...string) (int, []byte, http.Header, error) {
	t.Helper()
	r := must(http.NewRequestWithContext(t.Context(), method, url, nil))(t)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil, nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, b, res.Header, err
}

// pulled holds what a client gets against what went into the bundle.
func (s *site) pulled(t *testing.T, url string) {
	t.Helper()
	host := strings.TrimPrefix(url, "http://")
	img := must(crane.Pull(host + "/app:1.0.0"))(t)
	for _, l := range must(img.Layers())(t) {
		rc := must(l.Compressed())(t) // verified by the client
		if n, err := io.Copy(io.Discard, rc); err != nil || n != must(l.Size())(t) {
			t.Errorf("layer: %d bytes, %v", n, err)
		}
		rc.Close()
	}
	if got, want := must(img.Digest())(t), must(s.img.Digest())(t); got != want {
		t.Errorf("image %s, want %s", got, want)
	}
	if tags := must(crane.ListTags(host + "/tiny"))(t); len(tags) != 1 || tags[0] != "1.0.0" {
		t.Errorf("tags %v", tags)
	}
	w := layers(t, url, "tiny:1.0.0")[0]
	blob := url + "/v2/tiny/blobs/" + w.Digest.String()
	if n, b, _, err := get(t, "GET", blob); n != 200 || !bytes.Equal(b, s.model) || err != nil {
		t.Errorf("weights: %d, %d bytes, %v", n, len(b), err)
	}
	const at = 4<<20 - 5 // over the border of two chunks, and of parts
	if n, b, _, err := get(t, "GET", blob, "Range", fmt.Sprintf("bytes=%d-%d", at, at+9)); n != 206 || !bytes.Equal(b, s.model[at:at+10]) || err != nil {
		t.Errorf("range: %d, %q, %v", n, b, err)
	}
	if n, b, h, err := get(t, "HEAD", blob); n != 200 || len(b) != 0 || h.Get("Content-Length") != fmt.Sprint(len(s.model)) || err != nil {
		t.Errorf("head: %d, %q, %v", n, h, err)
	}
}

// TestPull: an ordinary client gets every byte, and nothing is written, neither
// by reading nor by trying to push.
func TestPull(t *testing.T) {
	s := newSite(t)
	s.build(t)
	before := list(t, s.dir)
	url, log := s.serve(t)
	s.pulled(t, url)
	if err := crane.Push(s.img, strings.TrimPrefix(url, "http://")+"/other:1"); err == nil {
		t.Error("a push was taken")
	}
	for _, p := range []string{"/v2/nothing/manifests/1", "/v2/app/manifests/2", "/v2/app/blobs/sha256:" + strings.Repeat("0", 64)} {
		if n, b, _, _ := get(t, "GET", url+p); n != 404 {
			t.Errorf("%s: %d %s", p, n, b)
		}
	}
	if after := list(t, s.dir); after != before {
		t.Errorf("files changed:\n%s\nbefore:\n%s", after, before)
	}
	if log.String() != "" {
		t.Errorf("log: %s", log)
	}
}

// list names every file with its size and time.
func list(t testing.TB, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		if err == nil && !fi.IsDir() {
			fmt.Fprintln(&out, p, fi.Size(), fi.ModTime())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestSealed: an encrypted bundle is served to who holds the server's identity.
func TestSealed(t *testing.T) {
	id := must(age.GenerateX25519Identity())(t)
	s := newSite(t)
	s.opt.Recipients = []string{id.Recipient().String()}
	s.build(t)
	url, _ := s.serve(t, id)
	s.pulled(t, url)
}

// weightsAt finds a part that holds nothing but weights.
func (s *site) weightsAt(t testing.TB) string {
	t.Helper()
	ps := must(filepath.Glob(filepath.Join(s.opt.Out, "clawbox/parts/*")))(t)
	return ps[len(ps)-2]
}

func flip(t testing.TB, path string, off int) {
	t.Helper()
	b := must(os.ReadFile(path))(t)
	b[off] ^= 1
	put(t, path, b)
}

// TestDamage: not one byte of a damaged chunk is sent, the client sees that the
// answer is cut off, and the log names the place.
func TestDamage(t *testing.T) {
	s := newSite(t)
	s.build(t)
	url, log := s.serve(t)
	w := layers(t, url, "tiny:1.0.0")[0]
	part := s.weightsAt(t)
	flip(t, part, 700_000) // in the second chunk
	n, b, _, err := get(t, "GET", url+"/v2/tiny/blobs/"+w.Digest.String())
	if n != 200 || err == nil || len(b) > 4<<20 || !bytes.Equal(b, s.model[:len(b)]) {
		t.Errorf("%d, %d bytes, %v", n, len(b), err)
	}
	if !strings.Contains(log.String(), filepath.Base(part)) {
		t.Errorf("log: %s", log)
	}
	flip(t, part, 700_000)
	s.pulled(t, url)
}

// TestParity: a lost and a damaged part are served from parity, and said.
func TestParity(t *testing.T) {
	s := newSite(t)
	s.opt.Parity = 2
	s.build(t)
	part := s.weightsAt(t)
	if err := os.Remove(part); err != nil {
		t.Fatal(err)
	}
	url, log := s.serve(t)
	flip(t, filepath.Join(filepath.Dir(part), "part-0001"), 1000)
	s.pulled(t, url)
	for _, want := range []string{"a part is lost", filepath.Base(part), "rebuilt from parity"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log lacks %q: %s", want, log)
		}
	}
}

// TestDifference: what the base has is named and not served; the rest is.
func TestDifference(t *testing.T) {
	s := newSite(t)
	s.build(t)
	since := must(bundle.OpenSince(s.trust, s.opt.Out))(t)
	copy(s.model[4<<20:], "changed!") // the second chunk
	s.release(t, "1.1.0", 2)
	s.opt.Out, s.opt.Since, s.opt.UpdateLock = filepath.Join(s.dir, "difference"), since, true
	put(t, filepath.Join(s.dir, "rules.yaml"), []byte("network: {deny: \"*\", allow: [\"example.com:443\"]}\n"))
	s.build(t)
	url, log := s.serve(t)
	for _, ref := range []string{"app", "tiny"} {
		if !strings.Contains(log.String(), ref+":1.1.0") {
			t.Errorf("the log doesn't say that %s is not whole: %s", ref, log)
		}
	}
	w := layers(t, url, "tiny:1.1.0")[0] // its manifest is new, so it is there
	for _, p := range []string{"/v2/app/manifests/1.1.0", "/v2/tiny/blobs/" + w.Digest.String()} {
		n, b, _, err := get(t, "GET", url+p)
		if n != 404 || err != nil || !strings.Contains(string(b), "demo 1.0.0 (sequence 1)") {
			t.Errorf("%s: %d %s, %v", p, n, b, err)
		}
	}
	l := layers(t, url, "rules:1.1.0")[0]
	if n, b, _, err := get(t, "GET", url+"/v2/rules/blobs/"+l.Digest.String()); n != 200 || !strings.Contains(string(b), "example.com") || err != nil {
		t.Errorf("what the difference carries: %d %s, %v", n, b, err)
	}
}

// TestMany: more clients than readers at once, each in its own place.
func TestMany(t *testing.T) {
	s := newSite(t)
	s.build(t)
	url, _ := s.serve(t)
	w := layers(t, url, "tiny:1.0.0")[0]
	var wg sync.WaitGroup
	for i := range 3 * Clients {
		wg.Go(func() {
			at := i * 50_003
			n, b, _, err := get(t, "GET", url+"/v2/tiny/blobs/"+w.Digest.String(), "Range", fmt.Sprintf("bytes=%d-%d", at, at+99))
			if n != 206 || err != nil || !bytes.Equal(b, s.model[at:at+100]) {
				t.Errorf("from %d: %d, %d bytes, %v", at, n, len(b), err)
			}
		})
	}
	wg.Wait()
}

// TestStalled: clients that ask for blobs and read nothing keep no reader from
// others.
func TestStalled(t *testing.T) {
	s := newSite(t)
	s.model = tensor(bytes.Repeat([]byte("weights "), 2<<20)) // 16 MiB: more than sockets hold
	s.release(t, "1.0.0", 1)
	s.build(t)
	url, _ := s.serve(t)
	w := layers(t, url, "tiny:1.0.0")[0]
	path := "/v2/tiny/blobs/" + w.Digest.String()
	for range Clients - 1 {
		c := must(net.Dial("tcp", strings.TrimPrefix(url, "http://")))(t)
		defer c.Close()
		must(0, c.(*net.TCPConn).SetReadBuffer(4096))(t)
		must(fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path))(t)
		must(c.Read(make([]byte, 1)))(t)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r := must(http.NewRequestWithContext(ctx, "GET", url+path, nil))(t)
	res := must(http.DefaultClient.Do(r))(t)
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || !bytes.Equal(b, s.model) {
		t.Errorf("%d bytes for another client, %v", len(b), err)
	}
}
