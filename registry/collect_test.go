package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/clawbox/clawbox/bundle/content"
)

func (s rack) collect(t testing.TB, o CollectOptions) Collected {
	t.Helper()
	return ok(Collect(t.Context(), s.Store, o))(t)
}

func (s rack) blobs(t testing.TB) (n int) {
	t.Helper()
	must(t, s.Walk(func(v1.Hash, int64) error { n++; return nil }))
	return n
}

// TestCollect: what a release, a slot, a repository or an upload needs stays,
// byte for byte, and the rest goes.
func TestCollect(t *testing.T) {
	s := pushRack(t, Options{})
	release := ok(random.Image(1000, 2))(t)
	must(t, s.Tag("rel:1", s.image(t, release)))
	slot := ok(random.Image(1000, 1))(t)
	slotRoot := s.image(t, slot) // no name any more, and a slot needs it
	_, kept := s.pushImage(t, "a", "1", 100, nil)
	wide := s.wideImage(t, "a") // named by sha512, and its parts, too
	orphan := s.pushBlob(t, "a", noise(50))
	loose := s.put(t, noise(70))
	_, deleted := s.pushImage(t, "b", "1", 200, nil)
	s.send(t, "DELETE", "/v2/b/manifests/"+deleted.Digest.String(), nil).want(t, 202, "")
	u := s.session(t, "a")
	s.send(t, "PATCH", u, []byte("half")).want(t, 202, "")

	all := s.blobs(t)
	roots := []v1.Descriptor{slotRoot}
	if out := s.collect(t, CollectOptions{Roots: roots, Grace: time.Hour}); out.Deleted != 0 || out.Blobs != 0 || s.blobs(t) != all {
		t.Errorf("young things went: %+v", out)
	}
	if out := s.collect(t, CollectOptions{Roots: roots, DryRun: true}); out.Deleted != 4 || out.Blobs != 3 || s.blobs(t) != all {
		t.Errorf("dry run: %+v, %d blobs of %d", out, s.blobs(t), all)
	}
	s.send(t, "HEAD", "/v2/a/blobs/"+orphan.String(), nil).want(t, 200, "")
	s.keepUpload(t, u)
	// The orphan, the loose one, and b's manifest and layer; b's configuration
	// is a's, too. Of names: the orphan and b's two blobs.
	out := s.collect(t, CollectOptions{Roots: roots})
	if out.Deleted != 4 || out.Blobs != 3 || s.blobs(t) != all-4 {
		t.Errorf("%+v, %d blobs of %d", out, s.blobs(t), all)
	}
	for _, h := range []v1.Hash{orphan, loose, deleted.Digest} {
		if _, err := s.Stat(h); err == nil {
			t.Errorf("%s is still there", h)
		}
	}
	if _, err := os.Stat((shelf{filepath.Join(s.Dir(), shelfDir)}).path("b")); err == nil {
		t.Error("the empty repository's folder is still there")
	}
	s.pull(t, "rel", "1")
	s.pull(t, "a", kept.Digest.String())
	s.pull(t, "a", wide)
	if again := s.collect(t, CollectOptions{Roots: roots}); again.Deleted != 0 || again.Blobs != 0 {
		t.Errorf("a second time: %+v", again)
	}
	if out := s.collect(t, CollectOptions{}); out.Deleted != 3 {
		t.Errorf("without the slot: %+v", out)
	}
}

// keepUpload makes sure that a collection without grace doesn't see the
// upload idle: it is one under way.
func (s rack) keepUpload(t *testing.T, location string) {
	t.Helper()
	w := ok(s.Upload(filepath.Base(location)))(t)
	t.Cleanup(func() { must(t, w.Discard()) })
}

// wideImage pushes an image whose every digest is a sha512.
func (s rack) wideImage(t testing.TB, repo string) (ref string) {
	t.Helper()
	push := func(b []byte) v1.Descriptor {
		h := sumOf("sha512", b)
		s.send(t, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+h.String(), b).want(t, 201, "")
		return v1.Descriptor{MediaType: types.OCILayer, Digest: h, Size: int64(len(b))}
	}
	m := plain(push(noise(30)), push(noise(40)), nil)
	ref = sumOf("sha512", m).String()
	s.putManifest(t, repo, ref, m).want(t, 201, "")
	return ref
}

// pull reads a manifest and all its parts, and compares their digests.
func (s rack) pull(t testing.TB, repo, ref string) {
	t.Helper()
	m := s.do(t, "GET", "/v2/"+repo+"/manifests/"+ref).want(t, 200, "")
	d := ok(parseDocument([]byte(m.body), types.MediaType(m.header.Get("Content-Type"))))(t)
	for _, p := range d.parts {
		b := s.do(t, "GET", "/v2/"+repo+"/blobs/"+p.Digest.String()).want(t, 200, "")
		if sumOf(p.Digest.Algorithm, []byte(b.body)) != p.Digest {
			t.Errorf("%s/%s: another blob", repo, p.Digest)
		}
	}
	for _, p := range d.lower {
		s.pull(t, repo, p.Digest.String())
	}
}

// TestCollectUntagged: what no tag reaches goes when asked for, except what is
// about something that stays.
func TestCollectUntagged(t *testing.T) {
	s := pushRack(t, Options{})
	_, child := s.pushImage(t, "a", "", 10, nil)
	idx := ok(json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": types.OCIImageIndex, "manifests": []v1.Descriptor{child}}))(t)
	s.send(t, "PUT", "/v2/a/manifests/multi", idx, "Content-Type", string(types.OCIImageIndex)).want(t, 201, "")
	_, signature := s.pushImage(t, "a", "", 11, func(m map[string]any) { m["subject"] = child })
	_, lost := s.pushImage(t, "a", "", 12, nil)
	_, about := s.pushImage(t, "a", "", 13, func(m map[string]any) { m["subject"] = lost })
	if out := s.collect(t, CollectOptions{}); out.Manifests != 0 || out.Deleted != 0 {
		t.Errorf("unasked: %+v", out)
	}
	if out := s.collect(t, CollectOptions{Untagged: true, Grace: time.Hour}); out.Manifests != 0 || out.Deleted != 0 {
		t.Errorf("young: %+v", out)
	}
	if out := s.collect(t, CollectOptions{Untagged: true}); out.Manifests != 2 || out.Blobs != 2 || out.Deleted != 4 {
		t.Errorf("%+v", out)
	}
	for h, status := range map[v1.Hash]int{child.Digest: 200, signature.Digest: 200, lost.Digest: 404, about.Digest: 404} {
		if a := s.do(t, "GET", "/v2/a/manifests/"+h.String()); a.status != status {
			t.Errorf("%s: %d, want %d", h, a.status, status)
		}
	}
	s.pull(t, "a", "multi")
}

// TestReferrersTag: clients that don't know the referrers' API keep lists under
// a tag. They may delete what is listed, and a list goes with its subject.
func TestReferrersTag(t *testing.T) {
	s := pushRack(t, Options{})
	list := func(subject v1.Descriptor, of ...v1.Descriptor) string {
		m := ok(json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": types.OCIImageIndex, "manifests": of}))(t)
		tag := "sha256-" + subject.Digest.Hex
		s.send(t, "PUT", "/v2/a/manifests/"+tag, m, "Content-Type", string(types.OCIImageIndex)).want(t, 201, "")
		return tag
	}
	about := func(n int, subject v1.Descriptor) v1.Descriptor {
		_, d := s.pushImage(t, "a", "", n, func(m map[string]any) { m["subject"] = subject })
		return d
	}
	_, app := s.pushImage(t, "a", "1", 10, nil)
	_, old := s.pushImage(t, "a", "2", 11, nil)
	sig, sbom, oldSig := about(12, app), about(13, app), about(14, old)
	appList, oldList := list(app, sig, sbom), list(old, oldSig)
	s.send(t, "DELETE", "/v2/a/manifests/"+sig.Digest.String(), nil).want(t, 202, "")
	other := about(15, app)
	list(app, sbom, other)
	list(app, sbom) // and the one before doesn't hold the other
	s.send(t, "DELETE", "/v2/a/manifests/"+other.Digest.String(), nil).want(t, 202, "")
	s.send(t, "DELETE", "/v2/a/manifests/2", nil).want(t, 202, "")
	s.collect(t, CollectOptions{Untagged: true})
	for ref, status := range map[string]int{
		appList: 200, sbom.Digest.String(): 200, "1": 200, oldList: 404, old.Digest.String(): 404, oldSig.Digest.String(): 404, sig.Digest.String(): 404,
	} {
		if a := s.do(t, "GET", "/v2/a/manifests/"+ref); a.status != status {
			t.Errorf("%s: %d, want %d", ref, a.status, status)
		}
	}
	s.pull(t, "a", appList)
}

// TestCollectDamage: a manifest that can't be read stops the collection before
// anything is deleted, until it is deleted itself.
func TestCollectDamage(t *testing.T) {
	s := pushRack(t, Options{})
	_, d := s.pushImage(t, "a", "1", 10, nil)
	s.put(t, noise(70))
	must(t, os.Remove(s.Path(d.Digest)))
	n := s.blobs(t)
	if _, err := Collect(t.Context(), s.Store, CollectOptions{}); err == nil || s.blobs(t) != n {
		t.Errorf("collected over a lost manifest: %v, %d blobs of %d", err, s.blobs(t), n)
	}
	s.send(t, "DELETE", "/v2/a/manifests/"+d.Digest.String(), nil).want(t, 202, "")
	s.collect(t, CollectOptions{})
	if s.blobs(t) != 0 {
		t.Errorf("%d blobs are left", s.blobs(t))
	}
}

// TestCollectHostile: whoever may push in one repository neither ends collections
// nor takes a root's parts away.
func TestCollectHostile(t *testing.T) {
	s := pushRack(t, Options{Sparse: true})
	slot := ok(random.Image(1000, 2))(t)
	root := s.image(t, slot) // an item that nothing but CollectOptions names
	junk := v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: s.pushBlob(t, "evil", []byte("no JSON")), Size: 7}
	cfg := v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: s.pushBlob(t, "evil", []byte("{}")), Size: 2}
	s.pushBlob(t, "evil", ok(slot.RawManifest())(t))
	shadow := root
	shadow.MediaType = "application/octet-stream"
	for i := range 16 { // in either order of digests
		nth := func(m map[string]any) { m["annotations"] = map[string]string{"n": fmt.Sprint(i)} }
		for j, m := range [][]byte{
			plain(cfg, junk, nth),
			plain(cfg, cfg, func(m map[string]any) { nth(m); m["subject"] = junk }),
			plain(cfg, shadow, nth),
		} {
			s.putManifest(t, "evil", fmt.Sprintf("t%d.%d", i, j), m).want(t, 201, "")
		}
		idx := ok(json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": types.OCIImageIndex, "manifests": []v1.Descriptor{junk}, "annotations": map[string]string{"n": fmt.Sprint(i)}}))(t)
		s.pushBlob(t, "evil", idx)
		s.send(t, "PUT", fmt.Sprintf("/v2/evil/manifests/i%d", i), idx, "Content-Type", string(types.OCIImageIndex)).want(t, 201, "")
	}
	for _, o := range []CollectOptions{{Grace: time.Hour}, {}, {Untagged: true}} {
		o.Roots = []v1.Descriptor{root}
		s.collect(t, o)
	}
	for _, l := range ok(slot.Layers())(t) {
		ok(s.Stat(ok(l.Digest())(t)))(t)
	}
}

// TestSlowManifest: what a manifest needs is looked for when it has come whole. A
// release may have gone since it began to come.
func TestSlowManifest(t *testing.T) {
	s := pushRack(t, Options{})
	img := ok(random.Image(1000, 1))(t)
	must(t, s.Tag("web:1", s.image(t, img)))
	old := ok(img.Manifest())(t)
	m := plain(old.Config, old.Layers[0], nil)
	pr, pw := io.Pipe()
	r := ok(http.NewRequestWithContext(t.Context(), "PUT", s.srv.URL+"/v2/web/manifests/2", pr))(t)
	r.Header.Set("Content-Type", string(types.OCIManifestSchema1))
	status := make(chan int, 1)
	go func() {
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Error(err)
			status <- 0
			return
		}
		res.Body.Close()
		status <- res.StatusCode
	}()
	ok(pw.Write(m[:10]))(t)
	time.Sleep(100 * time.Millisecond) // the request has begun
	must(t, s.Untag("web:1"))
	s.collect(t, CollectOptions{})
	ok(pw.Write(m[10:]))(t)
	must(t, pw.Close())
	if got := <-status; got != 404 {
		t.Errorf("a manifest whose blobs are gone: %d", got)
	}
}

// TestCollectBeside pushes while collections run all the time, without any
// grace: what got its name is whole, also content that was garbage a moment
// before.
func TestCollectBeside(t *testing.T) {
	s := pushRack(t, Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	same := noise(5000) // pushed, deleted and pushed again by all
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			// Names of blobs that no manifest uses yet stay; bytes have no grace.
			_, err := Collect(t.Context(), s.Store, CollectOptions{keepNames: true})
			if err != nil && !errors.Is(err, content.ErrBusy) {
				ended <- fmt.Errorf("collection %d: %w", n, err)
				return
			}
		}
	}()
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			for j := range 6 {
				if err := s.churn(fmt.Sprintf("r%d", i), fmt.Sprintf("t%d", j), same); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	must(t, <-ended)
	for i := range 3 {
		for j := range 6 {
			s.pull(t, fmt.Sprintf("r%d", i), fmt.Sprintf("t%d", j))
		}
	}
}

// churn pushes an image with a layer that others push and delete, too.
func (s rack) churn(repo, tag string, same []byte) error {
	push := func(b []byte) (v1.Descriptor, error) {
		h := sumOf("sha256", b)
		err := s.expect("POST", "/v2/"+repo+"/blobs/uploads/?digest="+h.String(), b, 201)
		return v1.Descriptor{MediaType: types.OCILayer, Digest: h, Size: int64(len(b))}, err
	}
	other := repo + "-gone"
	h := sumOf("sha256", same)
	first := s.expect("POST", "/v2/"+other+"/blobs/uploads/?digest="+h.String(), same, 201)
	gone := s.expect("DELETE", "/v2/"+other+"/blobs/"+h.String(), nil, 202)
	layer, err1 := push(same)
	cfg, err2 := push([]byte(repo + tag))
	cfg.MediaType = types.OCIConfigJSON
	return errors.Join(first, gone, err1, err2, s.expect("PUT", "/v2/"+repo+"/manifests/"+tag, plain(cfg, layer, nil), 201))
}
