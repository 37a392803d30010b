package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/clawbox/clawbox/bundle/content"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ok[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T { t.Helper(); must(t, err); return v }
}

// rack is a store with a registry in front.
type rack struct {
	*content.Store
	srv *httptest.Server
}

func newRack(t *testing.T) rack {
	t.Helper()
	s := ok(content.Open(filepath.Join(t.TempDir(), "store")))(t)
	srv := httptest.NewServer(New(s, Options{}))
	t.Cleanup(srv.Close)
	return rack{s, srv}
}

// everything is the rule under which most tests push.
var everything = Rule{Who: "loopback", Repos: "**", May: []Right{Pull, Push, Delete}}

// pushRack is a rack that everybody on this host may push to.
func pushRack(t testing.TB, o Options) rack {
	t.Helper()
	s := ok(content.Open(filepath.Join(t.TempDir(), "store")))(t)
	o.Push = true
	if o.Rules == nil {
		o.Rules = []Rule{everything}
	}
	srv := httptest.NewServer(ok(Open(s, o))(t))
	t.Cleanup(srv.Close)
	return rack{s, srv}
}

// patiently waits until a machine that is busy with other things has done it.
func patiently(t testing.TB, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it has not happened within a minute")
		}
	}
}

func (s rack) host() string { return strings.TrimPrefix(s.srv.URL, "http://") }

func (s rack) put(t *testing.T, b []byte) v1.Hash {
	t.Helper()
	h, n, err := v1.SHA256(bytes.NewReader(b))
	must(t, err)
	must(t, s.Put(t.Context(), h, n, bytes.NewReader(b)))
	return h
}

// image stores img and what it is made of.
func (s rack) image(t *testing.T, img v1.Image) v1.Descriptor {
	t.Helper()
	for _, l := range ok(img.Layers())(t) {
		rc := ok(l.Compressed())(t)
		must(t, s.Put(t.Context(), ok(l.Digest())(t), ok(l.Size())(t), rc))
		must(t, rc.Close())
	}
	s.put(t, ok(img.RawConfigFile())(t))
	s.put(t, ok(img.RawManifest())(t))
	return *ok(partial.Descriptor(img))(t)
}

func (s rack) index(t *testing.T, idx v1.ImageIndex) v1.Descriptor {
	t.Helper()
	for _, d := range ok(idx.IndexManifest())(t).Manifests {
		s.image(t, ok(idx.Image(d.Digest))(t))
	}
	s.put(t, ok(idx.RawManifest())(t))
	return *ok(partial.Descriptor(idx))(t)
}

// file stores b as an artifact in the form that bundles use.
func (s rack) file(t *testing.T, title string, b []byte, subject *v1.Descriptor) v1.Descriptor {
	t.Helper()
	empty := []byte("{}")
	cfg := v1.Descriptor{MediaType: types.OCIEmptyJSON, Digest: s.put(t, empty), Size: 2}
	layer := v1.Descriptor{
		MediaType: "application/octet-stream", Digest: s.put(t, b), Size: int64(len(b)),
		Annotations: map[string]string{"org.opencontainers.image.title": title},
	}
	m := ok(json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": types.OCIManifestSchema1, "artifactType": "application/vnd.clawbox.file.v1",
		"config": cfg, "layers": []v1.Descriptor{layer}, "subject": subject, "annotations": map[string]string{"of": title},
	}))(t)
	return v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: s.put(t, m), Size: int64(len(m))}
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (s rack) do(t testing.TB, method, path string, header ...string) answer {
	t.Helper()
	r := ok(http.NewRequestWithContext(t.Context(), method, s.srv.URL+path, nil))(t)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	res := ok(http.DefaultTransport.RoundTrip(r))(t)
	defer res.Body.Close()
	return answer{res.StatusCode, res.Header, string(ok(io.ReadAll(res.Body))(t))}
}

// drain reads all of img; the client compares every digest on the way.
func drain(t *testing.T, img v1.Image) {
	t.Helper()
	ok(img.RawConfigFile())(t)
	for _, l := range ok(img.Layers())(t) {
		rc := ok(l.Compressed())(t)
		if n := ok(io.Copy(io.Discard, rc))(t); n != ok(l.Size())(t) {
			t.Errorf("layer has %d bytes", n)
		}
		must(t, rc.Close())
	}
}

func TestPullImage(t *testing.T) {
	s := newRack(t)
	img := ok(random.Image(200_000, 3))(t)
	d := s.image(t, img)
	must(t, s.Tag("acme/web:1.2", d))
	for _, ref := range []string{s.host() + "/acme/web:1.2", s.host() + "/acme/web@" + d.Digest.String()} {
		got := ok(crane.Pull(ref))(t)
		drain(t, got)
		if ok(got.Digest())(t) != d.Digest {
			t.Errorf("%s is another image", ref)
		}
	}
	if got := ok(crane.Digest(s.host() + "/acme/web:1.2"))(t); got != d.Digest.String() {
		t.Errorf("digest by HEAD is %s", got)
	}
}

func TestPullIndex(t *testing.T) {
	s := newRack(t)
	idx := ok(random.Index(50_000, 2, 3))(t)
	must(t, s.Tag("multi", s.index(t, idx))) // no tag: latest
	got := ok(remote.Index(ok(name.ParseReference(s.host() + "/multi:latest"))(t)))(t)
	for _, d := range ok(got.IndexManifest())(t).Manifests {
		drain(t, ok(got.Image(d.Digest))(t))
	}
	if ok(got.Digest())(t) != ok(idx.Digest())(t) {
		t.Error("another index")
	}
}

func TestPullArtifactAndRange(t *testing.T) {
	s := newRack(t)
	body := bytes.Repeat([]byte("0123456789"), 50_000)
	must(t, s.Tag("clawbox:1", s.file(t, "bin/clawbox", body, nil)))
	m := ok(crane.Manifest(s.host() + "/clawbox:1"))(t)
	var man v1.Manifest
	must(t, json.Unmarshal(m, &man))
	layer := ok(crane.PullLayer(s.host() + "/clawbox@" + man.Layers[0].Digest.String()))(t)
	rc := ok(layer.Compressed())(t)
	if got := ok(io.ReadAll(rc))(t); !bytes.Equal(got, body) {
		t.Error("layer differs")
	}
	must(t, rc.Close())
	blob := "/v2/clawbox/blobs/" + man.Layers[0].Digest.String()
	for _, c := range []struct {
		header, want, rng string
		status            int
	}{
		{"bytes=10-14", "01234", "bytes 10-14/500000", 206},
		{"bytes=499998-", "89", "bytes 499998-499999/500000", 206},
		{"bytes=-3", "789", "bytes 499997-499999/500000", 206},
		{"bytes=500000-", "", "bytes */500000", 416},
	} {
		a := s.do(t, "GET", blob, "Range", c.header)
		if a.status != c.status || a.header.Get("Content-Range") != c.rng || c.status == 206 && a.body != c.want {
			t.Errorf("%s: %d %q %.30q", c.header, a.status, a.header.Get("Content-Range"), a.body)
		}
	}
	a := s.do(t, "HEAD", blob)
	if a.status != 200 || a.header.Get("Content-Length") != "500000" || a.header.Get("Docker-Content-Digest") != man.Layers[0].Digest.String() || a.body != "" {
		t.Errorf("HEAD: %+v", a)
	}
	if a := s.do(t, "GET", blob, "If-None-Match", a.header.Get("ETag")); a.status != 304 {
		t.Errorf("If-None-Match: %d", a.status)
	}
}

func TestManifestHeadAndAccept(t *testing.T) {
	s := newRack(t)
	d := s.image(t, ok(random.Image(100, 1))(t))
	must(t, s.Tag("a:1", d))
	for _, c := range []struct {
		accept []string
		status int
	}{
		{nil, 200},
		{[]string{"Accept", "*/*"}, 200},
		{[]string{"Accept", "application/*;q=0.5"}, 200},
		{[]string{"Accept", string(types.OCIImageIndex), "Accept", string(d.MediaType)}, 200},
		{[]string{"Accept", string(types.OCIImageIndex) + ", " + string(d.MediaType) + ";q=0.1"}, 200},
		{[]string{"Accept", string(types.OCIImageIndex)}, 404},
		{[]string{"Accept", "text/*"}, 404},
	} {
		for _, ref := range []string{"1", d.Digest.String()} {
			head, get := s.do(t, "HEAD", "/v2/a/manifests/"+ref, c.accept...), s.do(t, "GET", "/v2/a/manifests/"+ref, c.accept...)
			if head.status != c.status || get.status != c.status || head.body != "" {
				t.Errorf("%v: HEAD %d, GET %d", c.accept, head.status, get.status)
			}
			if c.status != 200 {
				continue
			}
			for _, h := range []string{"Content-Type", "Content-Length", "Docker-Content-Digest", "ETag"} {
				if head.header.Get(h) == "" || head.header.Get(h) != get.header.Get(h) {
					t.Errorf("%s: HEAD %q, GET %q", h, head.header.Get(h), get.header.Get(h))
				}
			}
			if got, _, err := v1.SHA256(strings.NewReader(get.body)); err != nil || got != d.Digest || get.header.Get("Content-Type") != string(d.MediaType) {
				t.Errorf("manifest %v as %s", got, get.header.Get("Content-Type"))
			}
		}
	}
}

func TestErrors(t *testing.T) {
	t.Run("for pulling", func(t *testing.T) { testErrors(t, newRack(t)) })
	s := pushRack(t, Options{}) // which looks at what was pushed, too
	s.pushBlob(t, "a", []byte("x"))
	long := "foo:" + strings.Repeat("a", 300)
	for path, want := range map[string]int{"blobs": 404, "manifests": 404, "referrers": 200} {
		s.send(t, "GET", "/v2/a/"+path+"/"+long, nil).want(t, want, "")
	}
	for _, path := range []string{"blobs", "manifests"} {
		s.send(t, "DELETE", "/v2/a/"+path+"/"+long, nil).want(t, 404, "")
	}
}

func testErrors(t *testing.T, s rack) {
	a, b := s.image(t, ok(random.Image(100, 1))(t)), s.image(t, ok(random.Image(100, 1))(t))
	must(t, s.Tag("a:1", a))
	must(t, s.Tag("b:1", b))
	must(t, s.Tag("Not/OCI:1", a)) // can't be asked for
	loose := s.put(t, []byte("nobody's blob"))
	none := "sha256:" + strings.Repeat("0", 64)
	for _, c := range []struct {
		method, path string
		status       int
		code         string
	}{
		{"GET", "/v2", 200, ""},
		{"GET", "/v2/", 200, ""},
		{"GET", "/", 404, "UNSUPPORTED"},
		{"GET", "/v20/", 404, "UNSUPPORTED"},
		{"GET", "/v2/a/manifests/2", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/a/manifests/.INVALID", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/a/manifests/" + none, 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/a/manifests/sha256:xyz", 400, "DIGEST_INVALID"},
		{"GET", "/v2/a/manifests/sha512:" + strings.Repeat("0", 128), 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/a/manifests/" + b.Digest.String(), 404, "MANIFEST_UNKNOWN"}, // another repository's
		{"GET", "/v2/a/blobs/" + b.Digest.String(), 404, "BLOB_UNKNOWN"},
		{"GET", "/v2/a/blobs/" + loose.String(), 404, "BLOB_UNKNOWN"},
		{"GET", "/v2/a/blobs/" + none, 404, "BLOB_UNKNOWN"},
		{"GET", "/v2/a/blobs/1", 400, "DIGEST_INVALID"},
		{"GET", "/v2/a/blobs/foo:" + strings.Repeat("a", 300), 404, "BLOB_UNKNOWN"},
		{"GET", "/v2/a/manifests/foo:" + strings.Repeat("a", 300), 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/a/referrers/foo:" + strings.Repeat("a", 300), 200, ""},
		{"GET", "/v2/a/blobs/uploads/1", 405, "UNSUPPORTED"},
		{"GET", "/v2/none/manifests/1", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/none/tags/list", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/a/tags/lists", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/Not/OCI/manifests/1", 400, "NAME_INVALID"},
		{"GET", "/v2/a", 404, "NAME_UNKNOWN"},
		{"GET", "/v2/a/tags/list?n=x", 400, "PAGINATION_NUMBER_INVALID"},
		{"GET", "/v2/a/tags/list?n=-1", 400, "PAGINATION_NUMBER_INVALID"},
		{"GET", "/v2/a/referrers/x", 400, "DIGEST_INVALID"},
		{"POST", "/v2/a/blobs/uploads/", 405, "UNSUPPORTED"},
		{"PUT", "/v2/a/manifests/1", 405, "UNSUPPORTED"},
		{"DELETE", "/v2/a/manifests/" + a.Digest.String(), 405, "UNSUPPORTED"},
		{"PATCH", "/v2/a/blobs/uploads/1", 405, "UNSUPPORTED"},
	} {
		got := s.do(t, c.method, c.path)
		if got.status != c.status || got.header.Get("Docker-Distribution-API-Version") != "registry/2.0" {
			t.Errorf("%s %s: %d %s", c.method, c.path, got.status, got.body)
		}
		if c.code == "" {
			continue
		}
		var e struct {
			Errors []struct{ Code, Message string }
		}
		if err := json.Unmarshal([]byte(got.body), &e); err != nil || len(e.Errors) != 1 || e.Errors[0].Code != c.code || e.Errors[0].Message == "" {
			t.Errorf("%s %s: body %s", c.method, c.path, got.body)
		}
		if head := s.do(t, "HEAD", c.path); c.method == "GET" && (head.status != c.status || head.body != "") {
			t.Errorf("HEAD %s: %d %q", c.path, head.status, head.body)
		}
	}
}

// TestNoTraversal asks for files beside the blobs in every way that comes to
// mind.
func TestNoTraversal(t *testing.T) {
	s := newRack(t)
	must(t, s.Tag("a:1", s.image(t, ok(random.Image(100, 1))(t))))
	must(t, os.WriteFile(filepath.Join(s.Dir(), "..", "secret"), []byte("s3cret"), 0o600))
	for _, p := range []string{
		"/v2/a/blobs/../../../secret", "/v2/a/blobs/..%2f..%2f..%2fsecret", "/v2/../secret", "/v2/a/../../secret", "/v2//etc/passwd/manifests/1",
		"/v2/a/blobs/sha256:../../../secret", "/v2/a/blobs/sha256:..%2f..%2f..%2fsecret", "/v2/a/blobs/sha256:%2e%2e%2f%2e%2e%2f%2e%2e%2fsecret",
		"/v2/a/manifests/../../../../secret", "/v2/..%2f..%2fsecret/tags/list", "/v2/a%00/tags/list", "/v2/a/manifests/1%00", "/v2/a/blobs/sha256:" + strings.Repeat("0", 63) + "%2f",
	} {
		r := httptest.NewRequest("GET", p, nil) // the server itself: no client in between that tidies the path
		r.RemoteAddr = "127.0.0.1:1"
		w := httptest.NewRecorder()
		s.srv.Config.Handler.ServeHTTP(w, r)
		if w.Code < 400 || strings.Contains(w.Body.String(), "s3cret") {
			t.Errorf("%s: %d %s", p, w.Code, w.Body)
		}
	}
}

func TestTagsAndCatalog(t *testing.T) {
	s := newRack(t)
	d := s.image(t, ok(random.Image(10, 1))(t))
	var tags, repos []string
	for i := range 7 {
		tags = append(tags, fmt.Sprintf("1.%d", i))
		repos = append(repos, fmt.Sprintf("team%d/app", i))
		must(t, s.Tag("many:"+tags[i], d))
		must(t, s.Tag(repos[i]+":x", d))
	}
	repos = append([]string{"many"}, repos...)
	repo := ok(name.NewRepository(s.host() + "/many"))(t)
	for _, size := range []int{1, 2, 3, 7, 100} {
		got := ok(remote.List(repo, remote.WithPageSize(size)))(t)
		if !slices.Equal(got, tags) {
			t.Errorf("page of %d: tags %v", size, got)
		}
		cat := ok(remote.Catalog(context.Background(), repo.Registry, remote.WithPageSize(size)))(t)
		if !slices.Equal(cat, repos) {
			t.Errorf("page of %d: catalog %v", size, cat)
		}
	}
	for query, want := range map[string]string{
		"?n=2":            `["1.0","1.1"]`,
		"?n=2&last=1.1":   `["1.2","1.3"]`,
		"?last=1.4":       `["1.5","1.6"]`,
		"?n=0":            `[]`,
		"?n=9&last=1.55":  `["1.6"]`,
		"?n=9&last=zzzzz": `[]`,
	} {
		if a := s.do(t, "GET", "/v2/many/tags/list"+query); a.body != `{"name":"many","tags":`+want+`}` {
			t.Errorf("%s: %s", query, a.body)
		}
	}
}

func TestReferrers(t *testing.T) {
	s := newRack(t)
	img := s.image(t, ok(random.Image(10, 1))(t))
	must(t, s.Tag("app:1", img))
	must(t, s.Tag("other:1", s.image(t, ok(random.Image(10, 1))(t))))
	sig := s.file(t, "signature", []byte("sig"), &img)
	must(t, s.Tag("app:1.sig", sig))
	// One without a name, as other tools leave it in index.json, and one about
	// that.
	sbom := s.file(t, "sbom", []byte("sbom"), &sig)
	idx := ok(os.ReadFile(filepath.Join(s.Dir(), "index.json")))(t)
	im := ok(v1.ParseIndexManifest(bytes.NewReader(idx)))(t)
	im.Manifests = append([]v1.Descriptor{sbom}, im.Manifests...)
	must(t, os.WriteFile(filepath.Join(s.Dir(), "index.json"), ok(json.Marshal(im))(t), 0o644))

	repo := ok(name.NewRepository(s.host() + "/app"))(t)
	for subject, want := range map[v1.Hash]v1.Descriptor{img.Digest: sig, sig.Digest: sbom} {
		got := ok(ok(remote.Referrers(repo.Digest(subject.String())))(t).IndexManifest())(t)
		if len(got.Manifests) != 1 || got.Manifests[0].Digest != want.Digest || got.Manifests[0].ArtifactType != "application/vnd.clawbox.file.v1" || got.Manifests[0].Annotations["of"] == "" {
			t.Errorf("referrers of %s: %+v", subject, got.Manifests)
		}
	}
	ok(remote.Get(repo.Digest(sbom.Digest.String())))(t)
	for path, want := range map[string]int{
		"/v2/app/referrers/" + img.Digest.String() + "?artifactType=application%2Fvnd.clawbox.file.v1": 1,
		"/v2/app/referrers/" + img.Digest.String() + "?artifactType=none":                              0,
		"/v2/other/referrers/" + img.Digest.String():                                                   0,
		"/v2/nowhere/referrers/" + img.Digest.String():                                                 0,
	} {
		a := s.do(t, "GET", path)
		var im v1.IndexManifest
		must(t, json.Unmarshal([]byte(a.body), &im))
		if a.status != 200 || len(im.Manifests) != want || im.Manifests == nil || a.header.Get("Content-Type") != string(types.OCIImageIndex) ||
			(a.header.Get("OCI-Filters-Applied") != "") != strings.Contains(path, "?") {
			t.Errorf("%s: %+v", path, a)
		}
	}
}

// TestDamage: a manifest or a blob that isn't what it is called isn't served.
func TestDamage(t *testing.T) {
	s := newRack(t)
	img := ok(random.Image(1000, 1))(t)
	d := s.image(t, img)
	must(t, s.Tag("a:1", d))
	layer := ok(ok(img.Layers())(t)[0].Digest())(t)
	ok(crane.Pull(s.host() + "/a:1"))(t) // the view is there
	spoil := func(h v1.Hash, b []byte) {
		must(t, os.Remove(s.Path(h)))
		if b != nil {
			must(t, os.WriteFile(s.Path(h), b, 0o444))
		}
	}
	short := ok(os.ReadFile(s.Path(layer)))(t)
	spoil(layer, short[:len(short)-1])
	if a := s.do(t, "GET", "/v2/a/blobs/"+layer.String()); a.status != 500 || strings.Contains(a.body, s.Dir()) {
		t.Errorf("torn blob: %+v", a)
	}
	spoil(layer, nil)
	if a := s.do(t, "GET", "/v2/a/blobs/"+layer.String()); a.status != 404 {
		t.Errorf("lost blob: %+v", a)
	}
	man := ok(os.ReadFile(s.Path(d.Digest)))(t)
	spoil(d.Digest, bytes.Replace(man, []byte("sha256:"), []byte("sha257:"), 1))
	if a := s.do(t, "GET", "/v2/a/manifests/1"); a.status != 500 {
		t.Errorf("changed manifest: %+v", a)
	}
	fresh := httptest.NewServer(New(s.Store, Options{})) // also when it was so from the start
	defer fresh.Close()
	if a := (rack{s.Store, fresh}).do(t, "GET", "/v2/a/manifests/1"); a.status != 404 {
		t.Errorf("changed manifest, new view: %+v", a)
	}
}

// TestConfusedManifest: a document that is an index and an image at once is
// nobody's.
func TestConfusedManifest(t *testing.T) {
	s := newRack(t)
	for name, m := range map[string]string{
		"both":   `{"schemaVersion":2,"manifests":[],"layers":[]}`,
		"type":   `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`,
		"broken": `{"schemaVersion":2`,
		"two":    `{"schemaVersion":2}{}`,
	} {
		d := v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: s.put(t, []byte(m)), Size: int64(len(m))}
		must(t, s.Tag(name+":1", d))
		if a := s.do(t, "GET", "/v2/"+name+"/manifests/1"); a.status != 404 {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

// TestNewTagIsSeen: no restart between a load and a pull.
func TestNewTagIsSeen(t *testing.T) {
	s := newRack(t)
	a, b := s.image(t, ok(random.Image(10, 1))(t)), s.image(t, ok(random.Image(10, 1))(t))
	for _, d := range []v1.Descriptor{a, b, a} {
		must(t, s.Tag("app:1", d))
		if got := ok(crane.Digest(s.host() + "/app:1"))(t); got != d.Digest.String() {
			t.Errorf("tag is %s, want %s", got, d.Digest)
		}
	}
}

// TestPinned: what only a pin names can be pulled by its digest, has no tag, and
// isn't a push's to delete.
func TestPinned(t *testing.T) {
	s := pushRack(t, Options{})
	img := ok(random.Image(1000, 2))(t)
	d, other := s.image(t, img), s.image(t, ok(random.Image(10, 1))(t))
	must(t, s.TagAll([]content.Name{content.Pin("ghcr.io/acme/web:1.2", d), {Ref: "ghcr.io/acme/web:1.2", Descriptor: other}}))
	drain(t, ok(crane.Pull(s.host()+"/ghcr.io/acme/web@"+d.Digest.String()))(t))
	if tags := ok(crane.ListTags(s.host() + "/ghcr.io/acme/web"))(t); len(tags) != 1 {
		t.Errorf("tags %q", tags)
	}
	s.send(t, "DELETE", "/v2/ghcr.io/acme/web/manifests/"+d.Digest.String(), nil).want(t, 405, codeDenied)
	s.collect(t, CollectOptions{})
	s.pull(t, "ghcr.io/acme/web", d.Digest.String())
}

func TestSplit(t *testing.T) {
	for ref, want := range map[string]string{
		"openclaw:2026.9.6": "openclaw 2026.9.6 true", "web": "web latest true", "ghcr.io/acme/web:1": "ghcr.io/acme/web 1 true",
		"a/b:c/d": " latest false", "x:": "x  false", ":1": " 1 false", "UP:1": "UP 1 false", "a:b:c": "a:b c false",
		"web@sha256:" + strings.Repeat("a", 64): "web  true", "web:1@sha256:" + strings.Repeat("a", 64): "web  true", "web@x": "web  false",
	} {
		n, tag, good := split(ref)
		if got := fmt.Sprintf("%s %s %v", n, tag, good); got != want && (good || strings.HasSuffix(want, "true")) {
			t.Errorf("%s: %q, want %q", ref, got, want)
		}
	}
}
