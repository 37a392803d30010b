package bundle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"maps"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/clawbox/clawbox/bundle/licence"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// hub is a registry that counts, and that can fail or be down.
type hub struct {
	srv   *httptest.Server
	host  string
	epoch atomic.Int64 // counts resets
	t     *testing.T

	mu    sync.Mutex
	blobs map[string]int // blobs that went out, by path
	all   int
	deny  func(path string) int // a status to answer with, or 0
}

// epoch is the key of a connection's epoch.
type epoch struct{}

func newHub(t *testing.T) *hub {
	h := &hub{t: t, blobs: map[string]int{}}
	reg := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		code := 0
		if r.Method == http.MethodGet && r.Context().Value(epoch{}) == h.epoch.Load() {
			h.all++
			if h.deny != nil {
				code = h.deny(r.URL.Path)
			}
		}
		h.mu.Unlock()
		if code != 0 {
			w.WriteHeader(code)
			return
		}
		reg.ServeHTTP(w, r)
		h.served(r)
	}))
	srv.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, epoch{}, h.epoch.Load())
	}
	srv.Start()
	t.Cleanup(srv.Close)
	h.srv = srv
	h.host = strings.TrimPrefix(srv.URL, "http://")
	return h
}

// served counts a blob that went out. One whose client is gone did not: package
// http asks again by itself when a kept connection breaks under a request.
func (h *hub) served(r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	current := r.Context().Value(epoch{}) == h.epoch.Load() && r.Context().Err() == nil
	if r.Method == http.MethodGet && current && strings.Contains(r.URL.Path, "/blobs/") {
		h.blobs[r.URL.Path]++
	}
}

// reset forgets the counts and sets deny. Requests that a failed build gave up
// may still be on their way here; they come over connections of before and
// don't count.
func (h *hub) reset(deny func(string) int) {
	h.epoch.Add(1)
	h.srv.CloseClientConnections()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.blobs, h.all, h.deny = map[string]int{}, 0, deny
}

// forbid is reset with one blob that nobody gets.
func (h *hub) forbid(bad v1.Hash) {
	h.reset(func(p string) int {
		if strings.Contains(p, bad.Hex) {
			return http.StatusForbidden
		}
		return 0
	})
}

func (h *hub) tag(s string) name.Tag {
	h.t.Helper()
	tag, err := name.NewTag(h.host + "/" + s)
	if err != nil {
		h.t.Fatal(err)
	}
	return tag
}

// push uploads an index for the architectures, and an attestation as buildkit
// adds one.
func (h *hub) push(s string, archs map[string]v1.Image) v1.ImageIndex {
	h.t.Helper()
	idx := v1.ImageIndex(empty.Index)
	for _, a := range slices.Sorted(maps.Keys(archs)) {
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: archs[a], Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: a}}})
	}
	idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: image(h.t, 1000, "x"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}})
	if err := remote.WriteIndex(h.tag(s), idx); err != nil {
		h.t.Fatal(err)
	}
	return idx
}

func webItem(h *hub, more string) string {
	return `{name: web, kind: image, source: "docker://` + h.host + `/acme/web:1"` + more + `, redistributable: true}`
}

func TestRegistryPlatforms(t *testing.T) {
	h := newHub(t)
	imgs := map[string]v1.Image{"amd64": image(t, 11, "amd64"), "arm64": image(t, 12, "arm64"), "s390x": image(t, 13, "s390x")}
	h.push("acme/web:1", imgs)
	for name, c := range map[string]struct {
		more string
		want []string // platforms; nil: refused
	}{
		"default": {"", []string{"linux/amd64"}},
		"one":     {", platforms: [linux/arm64]", []string{"linux/arm64"}},
		"two":     {", platforms: [linux/arm64, linux/amd64]", []string{"linux/arm64", "linux/amd64"}},
		"absent":  {", platforms: [linux/riscv64]", nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.recipe(t, webItem(h, c.more))
			r, err := s.build(t)
			if c.want == nil {
				if err == nil || !strings.Contains(err.Error(), "only linux/amd64, linux/arm64, linux/s390x") {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			it := r.Items[0]
			if !slices.Equal(it.Platforms, c.want) || it.Ref != h.host+"/acme/web:1" {
				t.Errorf("got %v as %s, want %v", it.Platforms, it.Ref, c.want)
			}
			st := s.load(t)
			if len(c.want) == 1 {
				checkLayers(t, st, it.Ref, imgs[strings.TrimPrefix(c.want[0], "linux/")])
				return
			}
			idx, err := layout.Path(st.Dir()).ImageIndex()
			if err != nil {
				t.Fatal(err)
			}
			sub, err := idx.ImageIndex(it.Descriptor.Digest)
			if err != nil {
				t.Fatal(err)
			}
			m, err := sub.IndexManifest()
			if err != nil || len(m.Manifests) != 2 {
				t.Errorf("%d manifests, %v; want the two that were asked for", len(m.Manifests), err)
			}
		})
	}
}

// TestRegistryLock: a moved tag doesn't change what is built; a renewed lock
// does; and a complete work store needs no registry.
func TestRegistryLock(t *testing.T) {
	h := newHub(t)
	first, second := image(t, 21, "amd64"), image(t, 22, "amd64")
	h.push("acme/web:1", map[string]v1.Image{"amd64": first})
	s := newSite(t)
	s.recipe(t, webItem(h, ""))
	s.mustBuild(t)
	want := tree(t, s.opt.Out)

	h.push("acme/web:1", map[string]v1.Image{"amd64": second})
	s.opt.Store += "2" // an empty work store: everything is pulled again, by digest
	s.mustBuild(t)
	if !maps.Equal(want, tree(t, s.opt.Out)) {
		t.Error("the lock did not hold: a moved tag changed the bundle")
	}
	h.reset(func(string) int { return http.StatusServiceUnavailable })
	s.mustBuild(t)
	if h.all != 0 || !maps.Equal(want, tree(t, s.opt.Out)) {
		t.Errorf("with all blobs at hand the registry was asked %d times", h.all)
	}
	h.reset(nil)
	s.opt.UpdateLock = true
	s.mustBuild(t)
	checkLayers(t, s.load(t), h.host+"/acme/web:1", second)
}

// TestInterruptedPull: blobs that were pulled before a failure are not pulled
// again, and each is pulled once although two items want it.
func TestInterruptedPull(t *testing.T) {
	defer func(n int) { pulls = n }(pulls)
	pulls = 1 // the first layer is there when the second one fails
	h := newHub(t)
	img := image(t, 31, "amd64")
	h.push("acme/web:1", map[string]v1.Image{"amd64": img})
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	bad, err := layers[1].Digest()
	if err != nil {
		t.Fatal(err)
	}
	h.forbid(bad)
	s := newSite(t)
	s.recipe(t, webItem(h, ""), strings.Replace(webItem(h, `, ref: "other:1"`), "name: web", "name: web2", 1))
	if _, err := s.build(t); err == nil || !strings.Contains(err.Error(), "item web") {
		t.Fatalf("got %v, want a failure of web", err)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "bundle.lock")); err == nil {
		t.Error("a failed first build wrote a lock")
	}
	var had []string
	for g := range each[begun](&cache{dir: s.opt.Store + ".cache"}, "begun") {
		for _, l := range g.Done {
			had = append(had, l.Digest.Hex)
		}
	}
	if len(had) == 0 {
		t.Error("nothing of what was pulled was kept")
	}
	h.reset(nil)
	s.mustBuild(t)
	for p, n := range h.blobs {
		if hex := p[strings.LastIndex(p, ":")+1:]; n > 1 || slices.Contains(had, hex) {
			t.Errorf("%s was pulled %d times; there before: %v", p, n, had)
		}
	}
	if n := h.blobs["/v2/acme/web/blobs/"+bad.String()]; n != 1 {
		t.Errorf("the missing layer was pulled %d times: %v", n, h.blobs)
	}
	sound(t, newStoreAt(t, s.opt.Store), 0)
	checkLayers(t, s.load(t), h.host+"/acme/web:1", img)
}

// TestTouchedPull: what an interrupted build left is believed as far as nobody has
// touched it. What somebody has is held to its digests, and a link that somebody
// put there leads nowhere.
func TestTouchedPull(t *testing.T) {
	defer func(n int) { pulls = n }(pulls)
	pulls = 1
	part := func(s *site) string { return filepath.Join(s.opt.Out, newDir, partsDir, manifest.PartName(1)) }
	for what, c := range map[string]struct {
		touch func(t *testing.T, s *site)
		again int // how often the layer that was there is pulled
	}{
		"nothing": {func(*testing.T, *site) {}, 0},
		"copied": {func(t *testing.T, s *site) { // as after a journey: other times, other inodes
			write(t, part(s)+"2", read(t, part(s)))
			if err := os.Rename(part(s)+"2", part(s)); err != nil {
				t.Fatal(err)
			}
		}, 0},
		"edited": {func(t *testing.T, s *site) {
			for off := int64(0); off < int64(len(read(t, part(s)))); off += 4096 {
				flip(t, part(s), off)
			}
		}, 1},
		"grown": {func(t *testing.T, s *site) { write(t, part(s), append(read(t, part(s)), make([]byte, 8<<20)...)) }, 1},
		"gap": {func(t *testing.T, s *site) {
			for g := range each[begun](&cache{dir: s.opt.Store + ".cache"}, "begun") {
				for _, l := range g.Done {
					if l.Size > manifest.Large {
						flip(t, part(s), l.Offset-1)
						return
					}
				}
			}
			t.Error("no large layer was kept")
		}, 1},
		"stranger": {func(t *testing.T, s *site) { write(t, filepath.Join(filepath.Dir(part(s)), "x"), []byte("x")) }, 0},
		"link of roots": {func(t *testing.T, s *site) {
			root := filepath.Join(s.opt.Out, newDir, rootDir)
			if err := errors.Join(os.Remove(root), os.Symlink(s.dir, root)); err != nil {
				t.Fatal(err)
			}
		}, 0},
		"link of parts": {func(t *testing.T, s *site) {
			dir := filepath.Dir(part(s))
			if err := errors.Join(os.Rename(dir, filepath.Join(s.dir, "elsewhere")), os.Symlink(filepath.Join(s.dir, "elsewhere"), dir)); err != nil {
				t.Fatal(err)
			}
		}, 1},
	} {
		t.Run(what, func(t *testing.T) {
			h := newHub(t)
			img := image(t, 31, "amd64")
			for seed := range int64(2) { // which begin behind a gap
				img = addLayer(t, img, layerOf(t, map[string]string{"a": string(noise(seed, 2<<20))}))
			}
			h.push("acme/web:1", map[string]v1.Image{"amd64": img})
			layers, err := img.Layers()
			if err != nil {
				t.Fatal(err)
			}
			first, _ := layers[2].Digest()
			bad, err := layers[3].Digest()
			if err != nil {
				t.Fatal(err)
			}
			h.forbid(bad)
			s := newSite(t)
			s.opt.PartSize = 16 << 20
			s.recipe(t, webItem(h, ""))
			boss, _ := newSigner(t, "boss")
			n1, err := manifest.SignRoot(s.firstRoot(boss), boss)
			if err != nil {
				t.Fatal(err)
			}
			s.opt.Roots = [][]byte{n1}
			if _, err := s.build(t); err == nil {
				t.Fatal("no failure")
			}
			c.touch(t, s)
			h.reset(nil)
			s.mustBuild(t)
			if n := h.blobs["/v2/acme/web/blobs/"+first.String()]; n != c.again {
				t.Errorf("the layer that was there was pulled %d times, want %d", n, c.again)
			}
			m, err := OpenMedia(s.trust, s.opt.Out)
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Verify(t.Context(), nil); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(filepath.Join(s.dir, manifest.RootName(1))); err == nil {
				t.Error("a root was written to where the link led")
			}
		})
	}
}

// TestPulledOnce: a layer is written once, to the media. A later build, of another
// recipe too, takes it from there as long as nobody touched them.
func TestPulledOnce(t *testing.T) {
	h := newHub(t)
	img := image(t, 37, "amd64")
	h.push("acme/web:1", map[string]v1.Image{"amd64": img})
	s := newSite(t)
	s.recipe(t, webItem(h, ""))
	s.mustBuild(t)
	st := newStoreAt(t, s.opt.Store)
	layers, err := img.Layers()
	must(t, err)
	for _, l := range layers {
		d, err := l.Digest()
		if must(t, err); st.Path(d) != "" {
			if _, err := st.Stat(d); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("layer %s is in the work store, too: %v", d, err)
			}
		}
	}
	h.reset(nil)
	s.recipe(t, webItem(h, ""), `{name: rules, kind: policy, source: "file:rules.yaml", redistributable: true}`)
	s.opt.UpdateLock = true
	first := s.opt.Out
	s.opt.Out += "2"
	s.mustBuild(t)
	if len(h.blobs) > 0 {
		t.Errorf("pulled again: %v", h.blobs)
	}
	checkLayers(t, s.load(t), h.host+"/acme/web:1", img)

	must(t, os.RemoveAll(first), os.RemoveAll(s.opt.Out))
	s.mustBuild(t)
	if len(h.blobs) != len(layers) {
		t.Errorf("without the media %v were pulled, want the %d layers", h.blobs, len(layers))
	}
	checkLayers(t, s.load(t), h.host+"/acme/web:1", img)
	m := s.media(t)
	for i := range m.release.Parts { // touched: no longer what was written
		flip(t, m.parts[i], 1000)
	}
	h.reset(nil)
	s.mustBuild(t)
	must(t, s.media(t).Verify(t.Context(), nil))
	if len(h.blobs) != len(layers) {
		t.Errorf("from touched media %v were pulled, want the %d layers", h.blobs, len(layers))
	}
}

// TestLateKey: a layer with key material is refused, and what was pulled of it
// does not stay.
func TestLateKey(t *testing.T) {
	h := newHub(t)
	img, err := mutate.AppendLayers(image(t, 39, "amd64"), static.NewLayer(layerOf(t, map[string]string{"etc/key": planted["NVIDIA API key"][1]}), types.OCILayer))
	must(t, err)
	h.push("acme/web:1", map[string]v1.Image{"amd64": img})
	s := newSite(t)
	s.recipe(t, webItem(h, ""))
	var se *licence.SecretError
	if _, err := s.build(t); !errors.As(err, &se) || len(se.Findings) != 1 {
		t.Errorf("got %v, want a SecretError", err)
	}
	if es, err := os.ReadDir(s.opt.Out); err == nil && len(es) > 0 {
		t.Errorf("left %v", es)
	}
	if _, err := s.build(t); !errors.As(err, &se) {
		t.Errorf("the second time: %v", err)
	}
}

// TestLyingRegistry: other bytes under a digest are refused and not kept.
func TestLyingRegistry(t *testing.T) {
	h := newHub(t)
	img := image(t, 41, "amd64")
	h.push("acme/web:1", map[string]v1.Image{"amd64": img})
	layers, _ := img.Layers()
	evil, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	good := "http://" + h.host
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, evil.Hex) {
			w.Write(noise(1, 1000))
			return
		}
		resp, err := http.Get(good + r.URL.Path)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		maps.Copy(w.Header(), resp.Header)
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	}))
	defer srv.Close()
	s := newSite(t)
	s.recipe(t, strings.Replace(webItem(h, ""), h.host, strings.TrimPrefix(srv.URL, "http://"), 1))
	if _, err := s.build(t); err == nil {
		t.Error("accepted")
	}
	sound(t, newStoreAt(t, s.opt.Store), 0)
	if _, err := OpenMedia(s.trust, s.opt.Out); err == nil {
		t.Error("there is a bundle")
	}
}

// hostileHub serves the blobs, root as the tag 1, and says who asked for a layer.
func hostileHub(t *testing.T, root v1.Descriptor, blobs map[v1.Hash][]byte) (host string, layers *atomic.Int64) {
	t.Helper()
	layers = &atomic.Int64{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		h, err := v1.NewHash(path.Base(r.URL.Path))
		if err != nil {
			h = root.Digest
		}
		b, ok := blobs[h]
		if !ok {
			layers.Add(1)
			w.WriteHeader(http.StatusNotFound)
			return
		}
		var m struct {
			MediaType string `json:"mediaType"`
		}
		if json.Unmarshal(b, &m) == nil {
			w.Header().Set("Content-Type", m.MediaType)
		}
		w.Write(b)
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://"), layers
}

// jsonBlob adds v to blobs.
func jsonBlob(t *testing.T, blobs map[v1.Hash][]byte, mt types.MediaType, v any) v1.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	h, n, err := v1.SHA256(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	blobs[h] = b
	return v1.Descriptor{MediaType: mt, Digest: h, Size: n, Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}
}

// imageOf is the manifest of an image whose layers have these sizes, and which
// nobody has.
func imageOf(t *testing.T, blobs map[v1.Hash][]byte, sizes ...int64) v1.Descriptor {
	t.Helper()
	config := jsonBlob(t, blobs, types.OCIConfigJSON, map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": []string{}}})
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: bare(config), Layers: []v1.Descriptor{}}
	for i, n := range sizes {
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: types.OCILayer, Digest: v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%064x", i+1)}, Size: n})
	}
	return jsonBlob(t, blobs, m.MediaType, m)
}

// TestSizesFromRegistry: a manifest may say any size; one that no bundle can hold
// is refused before it costs anything.
func TestSizesFromRegistry(t *testing.T) {
	for _, sizes := range [][]int64{{1 << 57}, {2 << 20, math.MaxInt64}, {-1}, {manifest.MaxTotal, 1}, {1 << 49}} {
		blobs := map[v1.Hash][]byte{}
		host, layers := hostileHub(t, imageOf(t, blobs, sizes...), blobs)
		s := newSite(t)
		s.recipe(t, `{name: web, kind: image, source: "docker://`+host+`/web:1", redistributable: true}`)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := s.build(t)
		runtime.ReadMemStats(&after)
		if err == nil || layers.Load() > 0 {
			t.Errorf("%v: %v, %d layers asked for", sizes, err, layers.Load())
		}
		if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 64 {
			t.Errorf("%v: %d MiB were allocated", sizes, n)
		}
	}
}

// TestNestedIndexes: an index that names another one many times, and that the next
// one, costs the reading of each once.
func TestNestedIndexes(t *testing.T) {
	blobs := map[v1.Hash][]byte{}
	d := imageOf(t, blobs)
	for level := range 4 {
		x := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
		for range map[bool]int{true: 1, false: 80}[level == 3] { // of the last one a platform is taken
			x.Manifests = append(x.Manifests, d)
		}
		d = jsonBlob(t, blobs, x.MediaType, x)
	}
	host, _ := hostileHub(t, d, blobs)
	s := newSite(t)
	s.recipe(t, `{name: web, kind: image, source: "docker://`+host+`/web:1", redistributable: true}`)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s.mustBuild(t)
	runtime.ReadMemStats(&after)
	if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 256 {
		t.Errorf("%d MiB were allocated", n)
	}
}

// TestWalk: how often manifests are read, how deep they may nest whichever way
// they are come to, and that it ends with its context.
func TestWalk(t *testing.T) {
	blobs := map[v1.Hash][]byte{}
	chain := []v1.Descriptor{imageOf(t, blobs)}
	for range maxDepth {
		x := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{chain[len(chain)-1]}}
		chain = append(chain, jsonBlob(t, blobs, x.MediaType, x))
	}
	reads := 0
	read := func(d v1.Descriptor) ([]byte, error) { reads++; return blobs[d.Digest], nil }
	all := func(v1.Descriptor) error { return nil }
	if err := walkIn(t.Context(), chain[maxDepth], read, all); err != nil || reads != maxDepth+1 {
		t.Errorf("got %v and %d reads, want %d", err, reads, maxDepth+1)
	}
	deep := jsonBlob(t, blobs, types.OCIImageIndex, v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: chain}) // the shallow ones first
	if err := walkIn(t.Context(), deep, read, all); err == nil || !strings.Contains(err.Error(), "deeper") {
		t.Errorf("nested deeper than %d: %v", maxDepth, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := walkIn(ctx, chain[1], read, func(v1.Descriptor) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestEndlessDownload: a server that never ends a file fills no disk.
func TestEndlessDownload(t *testing.T) {
	was := maxDownload
	maxDownload = 3 << 20
	defer func() { maxDownload = was }()
	var sent atomic.Int64
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/said" {
			w.Header().Set("Content-Length", fmt.Sprint(int64(4<<20)))
		}
		for b := make([]byte, 64<<10); sent.Load() < 64<<20; sent.Add(int64(len(b))) {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	}))
	defer srv.Close()
	old := client.Transport
	client.Transport = srv.Client().Transport
	defer func() { client.Transport = old }()
	for _, p := range []string{"/endless", "/said"} {
		s := newSite(t)
		s.recipe(t, `{name: tool, kind: file, source: "`+srv.URL+p+`", sha256: `+strings.Repeat("a", 64)+`, redistributable: true}`)
		sent.Store(0)
		if _, err := s.build(t); err == nil || !strings.Contains(err.Error(), "want at most") {
			t.Errorf("%s: got %v", p, err)
		}
		if n := sent.Load(); n > 32<<20 {
			t.Errorf("%s: %d bytes were taken", p, n)
		}
	}
}

// TestSlowServer: whoever takes a connection and says nothing is left.
func TestSlowServer(t *testing.T) {
	for what, tr := range map[string]http.RoundTripper{"files": client.Transport, "registries": toRegistries} {
		if d := tr.(*http.Transport).ResponseHeaderTimeout; d <= 0 || d > headerTimeout {
			t.Errorf("%s: a server may take %v to begin an answer, want at most %v", what, d, headerTimeout)
		}
	}
}

// TestLayoutTags: which manifest oci-layout:DIR[:TAG] means, and that a
// damaged layout never becomes a bundle.
func TestLayoutTags(t *testing.T) {
	s := newSite(t)
	p, err := layout.FromPath(filepath.Join(s.dir, "image"))
	if err != nil {
		t.Fatal(err)
	}
	img := image(t, 51, "amd64")
	if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{content.RefName: "example.com/app:v2"})); err != nil {
		t.Fatal(err)
	}
	s.opt.UpdateLock = true
	for src, ok := range map[string]bool{
		"image:latest": true, "image:v2": true, "image": false, "image:v3": false, "nowhere": false,
	} {
		s.recipe(t, `{name: app, kind: image, source: "oci-layout:`+src+`", redistributable: true}`)
		if _, err := s.build(t); (err == nil) != ok {
			t.Errorf("%s: %v", src, err)
		}
	}
	s.recipe(t, `{name: app, kind: image, source: "oci-layout:image:v2", redistributable: true}`)
	s.mustBuild(t)
	layers, _ := img.Layers()
	h, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	blob := filepath.Join(s.dir, "image/blobs/sha256", h.Hex)
	flip(t, blob, 10)
	s.mustBuild(t) // nothing of it is read: the parts have the right bytes
	s.opt.Rehash = true
	if _, err := s.build(t); err == nil || !strings.Contains(err.Error(), "item app") {
		t.Errorf("damaged layer: %v", err)
	}
	if err := os.Truncate(blob, 5); err != nil {
		t.Fatal(err)
	}
	if _, err := s.build(t); !errors.Is(err, content.ErrMismatch) {
		t.Errorf("cut-off layer: %v, want ErrMismatch", err)
	}
}

func TestHTTPS(t *testing.T) {
	body := noise(61, 100_000)
	gets := 0
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch gets++; r.URL.Path {
		case "/good":
			w.Write(body)
		case "/moved":
			http.Redirect(w, r, "/good", http.StatusFound)
		case "/down":
			http.Redirect(w, r, "http://"+r.Host+"/good", http.StatusFound)
		default:
			http.NotFound(w, r)
		}
	}))
	defer srv.Close()
	old := client.Transport
	client.Transport = srv.Client().Transport
	defer func() { client.Transport = old }()
	h, _, err := v1.SHA256(strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	for path, c := range map[string]struct{ sum, want string }{
		"/good": {h.Hex, ""}, "/moved": {h.Hex, ""}, "/none": {h.Hex, "404"}, "/down": {h.Hex, "away from https"},
		"/good?other": {strings.Repeat("a", 64), "does not match"},
	} {
		s := newSite(t)
		s.recipe(t, `{name: tool, kind: file, source: "`+srv.URL+path+`", sha256: `+c.sum+`, redistributable: true}`)
		_, err := s.build(t)
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) && !(c.want == "does not match" && errors.Is(err, content.ErrMismatch)) {
				t.Errorf("%s: got %v, want %q", path, err, c.want)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		gets = 0
		s.mustBuild(t)
		if gets != 0 {
			t.Errorf("%s: downloaded again %d times", path, gets)
		}
		if got := blob(t, s.load(t), "tool:0.1.0", ""); string(got) != string(body) {
			t.Errorf("%s: other content", path)
		}
	}
}

func TestFileSum(t *testing.T) {
	s := newSite(t)
	s.recipe(t, `{name: tool, kind: file, source: "file:clawbox.bin", sha256: `+strings.Repeat("a", 64)+`, redistributable: true}`)
	if _, err := s.build(t); err == nil || !strings.Contains(err.Error(), "the recipe wants aaaa") {
		t.Errorf("got %v", err)
	}
	for _, src := range []string{"none", "model", "/dev/null"} {
		s.recipe(t, `{name: tool, kind: file, source: "file:`+src+`", redistributable: true}`)
		if _, err := s.build(t); err == nil {
			t.Errorf("%s: accepted", src)
		}
	}
}
