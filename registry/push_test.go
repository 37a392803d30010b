package registry

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// send is do with a body; length -1 hides how long it is.
func (s rack) send(t testing.TB, method, path string, body []byte, header ...string) answer {
	t.Helper()
	var rd io.Reader = bytes.NewReader(body)
	if slices.Contains(header, "hidden") {
		rd = struct{ io.Reader }{rd}
		header = slices.DeleteFunc(header, func(s string) bool { return s == "hidden" })
	}
	r := ok(http.NewRequestWithContext(t.Context(), method, s.srv.URL+path, rd))(t)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	res := ok(s.srv.Client().Do(r))(t)
	defer res.Body.Close()
	return answer{res.StatusCode, res.Header, string(ok(io.ReadAll(res.Body))(t))}
}

// expect is send for goroutines that are not the test's own.
func (s rack) expect(method, path string, body []byte, status int) error {
	r, err := http.NewRequest(method, s.srv.URL+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", string(types.OCIManifestSchema1))
	client := http.DefaultClient // of a server in another process
	if c := s.srv.Client(); c != nil {
		client = c
	}
	res, err := client.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != status {
		err = fmt.Errorf("%s %s: got %d %.300s, want %d", method, path, res.StatusCode, b, status)
	}
	return err
}

// want fails unless the answer has the status and, for an error, the code.
func (a answer) want(t testing.TB, status int, code string) answer {
	t.Helper()
	if a.status != status || code != "" && !strings.Contains(a.body, `"code":"`+code+`"`) {
		t.Fatalf("got %d %.300s, want %d %s", a.status, a.body, status, code)
	}
	return a
}

func noise(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// pushBlob pushes in one request.
func (s rack) pushBlob(t testing.TB, repo string, b []byte) v1.Hash {
	t.Helper()
	h := sumOf("sha256", b)
	s.send(t, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+h.String(), b).want(t, 201, "")
	return h
}

// manifest makes an image of one layer; change may spoil it.
func plain(cfg, layer v1.Descriptor, change func(map[string]any)) []byte {
	m := map[string]any{"schemaVersion": 2, "mediaType": types.OCIManifestSchema1, "config": cfg, "layers": []v1.Descriptor{layer}}
	if change != nil {
		change(m)
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

func described(b []byte, alg string) v1.Descriptor {
	return v1.Descriptor{MediaType: types.OCILayer, Digest: sumOf(alg, b), Size: int64(len(b))}
}

// pushImage pushes an image of one layer of n bytes and returns its manifest.
func (s rack) pushImage(t testing.TB, repo, ref string, n int, change func(map[string]any)) ([]byte, v1.Descriptor) {
	t.Helper()
	cfg, layer := []byte("{}"), noise(n)
	m := plain(v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: s.pushBlob(t, repo, cfg), Size: 2},
		v1.Descriptor{MediaType: types.OCILayer, Digest: s.pushBlob(t, repo, layer), Size: int64(n)}, change)
	h := sumOf("sha256", m)
	if ref == "" {
		ref = h.String()
	}
	s.putManifest(t, repo, ref, m).want(t, 201, "")
	return m, v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: h, Size: int64(len(m))}
}

func (s rack) putManifest(t testing.TB, repo, ref string, m []byte) answer {
	t.Helper()
	return s.send(t, "PUT", "/v2/"+repo+"/manifests/"+ref, m, "Content-Type", string(types.OCIManifestSchema1))
}

// session begins an upload and returns its location.
func (s rack) session(t testing.TB, repo string) string {
	t.Helper()
	return s.send(t, "POST", "/v2/"+repo+"/blobs/uploads/", nil).want(t, 202, "").header.Get("Location")
}

// TestUpload pushes a blob in every way, under both kinds of digest.
func TestUpload(t *testing.T) {
	s := pushRack(t, Options{})
	third := func(b []byte, i int) []byte { return b[i*len(b)/3 : (i+1)*len(b)/3] }
	span := func(b []byte, i int) string { return fmt.Sprintf("%d-%d", i*len(b)/3, (i+1)*len(b)/3-1) }
	ways := map[string]func(b []byte, digest string) answer{
		"at once": func(b []byte, d string) answer { return s.send(t, "POST", "/v2/a/blobs/uploads/?digest="+d, b) },
		"at once, length unknown": func(b []byte, d string) answer {
			return s.send(t, "POST", "/v2/a/blobs/uploads/?digest="+d, b, "hidden")
		},
		"no slash": func(b []byte, d string) answer { return s.send(t, "POST", "/v2/a/blobs/uploads?digest="+d, b) },
		"put":      func(b []byte, d string) answer { return s.send(t, "PUT", s.session(t, "a")+"?digest="+d, b) },
		"stream": func(b []byte, d string) answer {
			u := s.send(t, "PATCH", s.session(t, "a"), b, "hidden").want(t, 202, "").header.Get("Location")
			return s.send(t, "PUT", u+"?digest="+d, nil)
		},
		"chunks": func(b []byte, d string) answer {
			u := s.session(t, "a")
			for i := range 3 {
				got := s.send(t, "PATCH", u, third(b, i), "Content-Range", span(b, i)).want(t, 202, "")
				if r := got.header.Get("Range"); r != fmt.Sprintf("0-%d", (i+1)*len(b)/3-1) {
					t.Errorf("chunk %d: Range %s", i, r)
				}
				u = got.header.Get("Location")
			}
			return s.send(t, "PUT", u+"?digest="+d, nil)
		},
		"last chunk in PUT": func(b []byte, d string) answer {
			u := s.session(t, "a")
			s.send(t, "PATCH", u, third(b, 0), "Content-Range", span(b, 0)).want(t, 202, "")
			s.send(t, "PATCH", u, third(b, 1), "Content-Range", span(b, 1), "hidden").want(t, 202, "")
			return s.send(t, "PUT", u+"?digest="+d, third(b, 2), "Content-Range", span(b, 2))
		},
	}
	for way, push := range ways {
		for alg := range algorithms {
			for _, n := range []int{0, 3, 700_001} {
				if n == 0 && strings.Contains(way, "chunk") {
					continue // an empty chunk has no range
				}
				b := noise(n)
				h := sumOf(alg, b)
				a := push(b, h.String()).want(t, 201, "")
				loc := a.header.Get("Location")
				if a.header.Get("Docker-Content-Digest") != h.String() || loc != "/v2/a/blobs/"+h.String() {
					t.Fatalf("%s %s %d: %v", way, alg, n, a.header)
				}
				if got := s.do(t, "GET", loc); got.status != 200 || got.body != string(b) || got.header.Get("Docker-Content-Digest") != h.String() {
					t.Errorf("%s %s %d: pulled %d, %d bytes", way, alg, n, got.status, len(got.body))
				}
				s.send(t, "DELETE", loc, nil).want(t, 202, "")
				s.send(t, "DELETE", loc, nil).want(t, 404, codeBlob)
				if got := s.do(t, "HEAD", loc); got.status != 404 {
					t.Errorf("deleted and there: %d", got.status)
				}
			}
		}
	}
	if us := ok(s.Uploads())(t); len(us) != 0 {
		t.Errorf("uploads left: %v", us)
	}
}

// TestUploadRefused: what the specification wants refused, and what stays of
// the session.
func TestUploadRefused(t *testing.T) {
	s := pushRack(t, Options{})
	b, h := []byte("0123456789"), sumOf("sha256", []byte("0123456789"))
	other := sumOf("sha512", []byte("else"))
	for _, c := range []struct {
		method, path string
		body         []byte
		header       string // Content-Range
		status       int
		code         string
	}{
		{"POST", "/v2/a/blobs/uploads/?digest=" + sumOf("sha256", nil).String(), b, "", 400, codeDigest},
		{"POST", "/v2/a/blobs/uploads/?digest=" + other.String(), b, "", 400, codeDigest},
		{"POST", "/v2/a/blobs/uploads/?digest=sha256:xyz", b, "", 400, codeDigest},
		{"POST", "/v2/a/blobs/uploads/?digest=md5:d41d8cd98f00b204e9800998ecf8427e", b, "", 400, codeDigest},
		{"POST", "/v2/a/blobs/uploads/?mount=zzz", nil, "", 400, codeDigest},
		{"POST", "/v2/a/blobs/uploads/?digest-algorithm=md5", nil, "", 400, codeDigest},
		{"POST", "/v2/A/blobs/uploads/", nil, "", 400, codeName},
		{"POST", "/v2/a/blobs/uploads/x", nil, "", 405, codeUnsupported},
		{"PATCH", "/v2/a/blobs/uploads/0123456789abcdef0123456789abcdef", b, "", 404, codeNoUpload},
		{"PATCH", "/v2/a/blobs/uploads/..", b, "", 404, ""},
		{"PUT", "SESSION", b, "", 400, codeDigest}, // no digest
		{"PUT", "SESSION?digest=" + other.String(), b, "", 400, codeDigest},
		{"PATCH", "OTHER", b, "", 404, codeNoUpload}, // a session of another repository
		{"PATCH", "SESSION", b, "5-14", 416, codeUpload},
		{"PATCH", "SESSION", b, "9-0", 416, codeUpload},
		{"PATCH", "SESSION", b, "bytes 0-9/10", 400, codeUpload},
		{"PATCH", "SESSION", b, "0-8", 400, codeSize},
		{"PATCH", "SESSION", b, "0-99999999999999999999", 400, codeUpload},
		{"PUT", "SESSION?digest=" + h.String(), b, "3-12", 416, codeUpload},
	} {
		u := s.session(t, "a")
		path := strings.Replace(c.path, "SESSION", u, 1)
		if c.path == "OTHER" {
			path = strings.Replace(u, "/v2/a/", "/v2/b/", 1)
		}
		var hd []string
		if c.header != "" {
			hd = []string{"Content-Range", c.header}
		}
		got := s.send(t, c.method, path, c.body, hd...)
		if got.status != c.status || !strings.Contains(got.body, c.code) {
			t.Errorf("%s %s %s: got %d %s, want %d %s", c.method, c.path, c.header, got.status, got.body, c.status, c.code)
		}
		if c.status == 416 {
			st := s.send(t, "GET", u, nil).want(t, 204, "")
			if st.header.Get("Location") != u || st.header.Get("Range") != "0-0" {
				t.Errorf("after 416: %v", st.header)
			}
			s.send(t, "PUT", u+"?digest="+h.String(), b).want(t, 201, "")
		} else {
			s.send(t, "DELETE", u, nil) // most are still there
		}
	}
	if us := ok(s.Uploads())(t); len(us) != 0 {
		t.Errorf("uploads left: %v", us)
	}
	u := s.session(t, "a")
	s.send(t, "DELETE", u, nil).want(t, 204, "")
	s.send(t, "GET", u, nil).want(t, 404, codeNoUpload)
}

// TestResume breaks the connection within a chunk, restarts the registry, and
// goes on where it says.
func TestResume(t *testing.T) {
	s := pushRack(t, Options{})
	b := noise(3 << 20)
	u := s.session(t, "deep/repo")
	conn := ok(net.Dial("tcp", s.host()))(t)
	fmt.Fprintf(conn, "PATCH %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nContent-Range: 0-%d\r\n\r\n", u, len(b), len(b)-1)
	ok(conn.Write(b[:1<<20]))(t)
	patiently(t, func() bool { us := ok(s.Uploads())(t); return len(us) == 1 && us[0].Size == 1<<20 })
	must(t, conn.Close())
	s.srv.Close() // waits for the request

	again := rack{s.Store, httptest.NewServer(ok(Open(s.Store, Options{Push: true, Rules: []Rule{everything}}))(t))}
	t.Cleanup(again.srv.Close)
	var at int
	st := again.send(t, "GET", u, nil).want(t, 204, "")
	ok(fmt.Sscanf(st.header.Get("Range"), "0-%d", &at))(t)
	if at++; at != 1<<20 {
		t.Errorf("%d bytes are kept, want %d", at, 1<<20)
	}
	again.send(t, "PATCH", u, b[at:2<<20], "Content-Range", fmt.Sprintf("%d-%d", at, 2<<20-1)).want(t, 202, "")
	h := sumOf("sha512", b)
	again.send(t, "PUT", u+"?digest="+h.String(), b[2<<20:]).want(t, 201, "")
	if got := again.do(t, "GET", "/v2/deep/repo/blobs/"+h.String()); got.body != string(b) {
		t.Error("another blob came back")
	}
}

// TestOneWriter: a second request in a session is refused while one is in it.
func TestOneWriter(t *testing.T) {
	s := pushRack(t, Options{})
	u := s.session(t, "a")
	pr, pw := io.Pipe()
	done := make(chan int, 1)
	go func() {
		r, _ := http.NewRequest("PATCH", s.srv.URL+u, pr)
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			done <- 0
			return
		}
		res.Body.Close()
		done <- res.StatusCode
	}()
	ok(pw.Write(noise(chunk)))(t) // the request is under way
	patiently(t, func() bool { return s.send(t, "GET", u, nil).status == 409 })
	s.send(t, "PATCH", u, []byte("x")).want(t, 409, codeUpload)
	must(t, pw.Close())
	if st := <-done; st != 202 {
		t.Errorf("the first writer got %d", st)
	}
	st := s.send(t, "GET", u, nil).want(t, 204, "")
	if st.header.Get("Range") != fmt.Sprintf("0-%d", chunk-1) {
		t.Errorf("Range %s", st.header.Get("Range"))
	}
}

// TestVisible: a blob is shown by the repositories that it was pushed to or
// mounted into, and by no other, even when the digest is known.
func TestVisible(t *testing.T) {
	s := pushRack(t, Options{})
	b := noise(100)
	h := s.pushBlob(t, "a", b)
	see := func(repo string, status int) {
		t.Helper()
		if got := s.do(t, "GET", "/v2/"+repo+"/blobs/"+h.String()); got.status != status {
			t.Errorf("%s: %d, want %d", repo, got.status, status)
		}
	}
	see("a", 200)
	see("b", 404)
	// Knowing the digest is not having the content.
	s.send(t, "POST", "/v2/b/blobs/uploads/?digest="+h.String(), []byte("guess")).want(t, 400, codeDigest)
	m := plain(v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: h, Size: 100}, v1.Descriptor{MediaType: types.OCILayer, Digest: h, Size: 100}, nil)
	s.putManifest(t, "b", "1", m).want(t, 404, codeMissing)
	see("b", 404)
	s.send(t, "POST", "/v2/b/blobs/uploads/?mount="+h.String()+"&from=c", nil).want(t, 202, "") // c hasn't got it
	see("b", 404)
	a := s.send(t, "POST", "/v2/b/blobs/uploads/?mount="+h.String()+"&from=a", nil).want(t, 201, "")
	if a.header.Get("Location") != "/v2/b/blobs/"+h.String() {
		t.Errorf("mounted at %s", a.header.Get("Location"))
	}
	see("b", 200)
	s.send(t, "DELETE", "/v2/a/blobs/"+h.String(), nil).want(t, 202, "")
	see("a", 404)
	see("b", 200)
	s.send(t, "POST", "/v2/c/blobs/uploads/?mount="+h.String(), nil).want(t, 201, "") // from anywhere
	see("c", 200)
}

// TestCrane pushes and pulls images and indexes with a client.
func TestCrane(t *testing.T) {
	s := pushRack(t, Options{})
	img := ok(random.Image(300_000, 3))(t)
	must(t, crane.Push(img, s.host()+"/acme/web:1.2"))
	got := ok(crane.Pull(s.host() + "/acme/web:1.2"))(t)
	drain(t, got)
	if ok(got.Digest())(t) != ok(img.Digest())(t) {
		t.Error("another image came back")
	}
	idx := ok(random.Index(20_000, 2, 3))(t)
	ref := ok(name.ParseReference(s.host() + "/acme/multi:1"))(t)
	must(t, remote.WriteIndex(ref, idx))
	back := ok(remote.Index(ref))(t)
	for _, d := range ok(back.IndexManifest())(t).Manifests {
		drain(t, ok(back.Image(d.Digest))(t))
	}
	must(t, crane.Copy(s.host()+"/acme/multi:1", s.host()+"/other/multi:2")) // mounts
	ok(crane.Digest(s.host() + "/other/multi:2"))(t)
	must(t, crane.Tag(s.host()+"/acme/web:1.2", "latest"))
	if tags := ok(crane.ListTags(s.host() + "/acme/web"))(t); !slices.Equal(tags, []string{"1.2", "latest"}) {
		t.Errorf("tags %v", tags)
	}
	if cat := ok(crane.Catalog(s.host()))(t); !slices.Equal(cat, []string{"acme/multi", "acme/web", "other/multi"}) {
		t.Errorf("catalog %v", cat)
	}
	must(t, crane.Delete(s.host()+"/acme/web:1.2"))
	must(t, crane.Delete(s.host()+"/acme/web@"+ok(img.Digest())(t).String()))
	if tags := ok(crane.ListTags(s.host() + "/acme/web"))(t); len(tags) != 0 {
		t.Errorf("tags %v after their manifest was deleted", tags)
	}
}

// TestManifestRefused: a manifest that promises what isn't here is not taken.
func TestManifestRefused(t *testing.T) {
	s := pushRack(t, Options{})
	cfg := v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: s.pushBlob(t, "a", []byte("{}")), Size: 2}
	layer := v1.Descriptor{MediaType: types.OCILayer, Digest: s.pushBlob(t, "a", []byte("layer")), Size: 5}
	good := plain(cfg, layer, nil)
	index := func(ds ...v1.Descriptor) []byte {
		return ok(json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": types.OCIImageIndex, "manifests": ds}))(t)
	}
	set := func(k string, v any) []byte { return plain(cfg, layer, func(m map[string]any) { m[k] = v }) }
	none := sumOf("sha256", []byte("none"))
	img, idx := string(types.OCIManifestSchema1), string(types.OCIImageIndex)
	for what, c := range map[string]struct {
		ref, ct string
		body    []byte
		status  int
		code    string
	}{
		"bad tag":                   {"-x", img, good, 400, codeManifest},
		"long tag":                  {strings.Repeat("x", 129), img, good, 400, codeManifest},
		"other digest":              {none.String(), img, good, 400, codeDigest},
		"bad digest":                {"sha256:baddigeststring", img, good, 400, codeDigest},
		"bad tag parameter":         {sumOf("sha256", good).String() + "?tag=ok&tag=.no", img, good, 400, codeManifest},
		"many tags":                 {sumOf("sha256", good).String() + "?tag=" + strings.Join(strings.Split(strings.Repeat("x", 70), ""), "y&tag="), img, good, 201, ""},
		"unknown type":              {"1", "application/json", good, 400, codeManifest},
		"schema 1":                  {"1", "application/vnd.docker.distribution.manifest.v1+prettyjws", good, 400, codeManifest},
		"type disagrees":            {"1", idx, good, 400, codeManifest},
		"not JSON":                  {"1", img, []byte("{"), 400, codeManifest},
		"two documents":             {"1", img, append(slices.Clone(good), good...), 400, codeManifest},
		"repeated field":            {"1", img, bytes.Replace(good, []byte("{"), []byte(`{"layers":[],`), 1), 400, codeManifest},
		"other spelling":            {"1", img, bytes.Replace(good, []byte(`"layers"`), []byte(`"Layers"`), 1), 400, codeManifest},
		"version 1":                 {"1", img, set("schemaVersion", 1), 400, codeManifest},
		"no config":                 {"1", img, []byte(`{"schemaVersion":2,"layers":[]}`), 400, codeManifest},
		"both kinds":                {"1", img, set("manifests", []v1.Descriptor{}), 400, codeManifest},
		"unknown algorithm":         {"1", img, bytes.Replace(good, []byte("sha256:"), []byte("sha257:"), 1), 400, codeManifest},
		"missing layer":             {"1", img, plain(cfg, v1.Descriptor{MediaType: types.OCILayer, Digest: none, Size: 4}, nil), 404, codeMissing},
		"wrong size":                {"1", img, plain(cfg, v1.Descriptor{MediaType: types.OCILayer, Digest: layer.Digest, Size: 6}, nil), 400, codeManifest},
		"negative size":             {"1", img, plain(cfg, v1.Descriptor{MediaType: types.OCILayer, Digest: layer.Digest, Size: -5}, nil), 400, codeManifest},
		"missing child":             {"1", idx, index(v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: none, Size: 9}), 404, codeMissing},
		"blob as child":             {"1", idx, index(v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: layer.Digest, Size: 5}), 404, codeMissing},
		"too large":                 {"1", img, set("annotations", map[string]string{"x": strings.Repeat("x", maxManifest)}), 413, codeManifest},
		"elsewhere without address": {"1", img, plain(cfg, v1.Descriptor{MediaType: types.OCIRestrictedLayer, Digest: none, Size: 4}, nil), 404, codeMissing},
		"elsewhere":                 {"far", img, plain(cfg, v1.Descriptor{MediaType: types.OCIRestrictedLayer, Digest: none, Size: 4, URLs: []string{"https://store.example/x"}}, nil), 201, ""},
		"parameters":                {"par", img + "; charset=utf-8", good, 201, ""},
		"no type":                   {"untyped", "", good, 201, ""},
		"subject that isn't here":   {"sub", img, set("subject", v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: none, Size: 4}), 201, ""},
	} {
		a := s.send(t, "PUT", "/v2/a/manifests/"+c.ref, c.body, "Content-Type", c.ct)
		if a.status != c.status || !strings.Contains(a.body, c.code) {
			t.Errorf("%s: got %d %.200s, want %d %s", what, a.status, a.body, c.status, c.code)
		}
		if h := sumOf("sha256", c.body); c.status != 201 && what != "other digest" && !bytes.Equal(c.body, good) {
			if _, err := s.Stat(h); err == nil {
				t.Errorf("%s: refused, and in the store", what)
			}
		}
	}
	if a := s.do(t, "GET", "/v2/a/manifests/1"); a.status != 404 {
		t.Errorf("tag of refused manifests: %d", a.status)
	}
	many := make([]string, maxTags+1)
	for i := range many {
		many[i] = fmt.Sprintf("tag=t%d", i)
	}
	s.send(t, "PUT", "/v2/a/manifests/"+sumOf("sha256", good).String()+"?"+strings.Join(many, "&"), good, "Content-Type", img).want(t, 414, codeManifest)
	sparse := pushRack(t, Options{Sparse: true})
	sparse.putManifest(t, "a", "1", good).want(t, 201, "")
}

// TestTagParameters: one push may set several tags, and each may be a sha512.
func TestTagParameters(t *testing.T) {
	s := pushRack(t, Options{})
	m, _ := s.pushImage(t, "a", "first", 10, nil)
	for alg := range algorithms {
		h := sumOf(alg, m)
		a := s.putManifest(t, "a", h.String()+"?tag="+alg+"-1&tag="+alg+"-2", m).want(t, 201, "")
		if a.header.Get("OCI-Tag") != alg+"-1, "+alg+"-2" || a.header.Get("Docker-Content-Digest") != h.String() {
			t.Errorf("%s: %v", alg, a.header)
		}
		got := s.do(t, "GET", "/v2/a/manifests/"+alg+"-2")
		if got.body != string(m) || got.header.Get("Docker-Content-Digest") != h.String() {
			t.Errorf("%s by tag: %d %v", alg, got.status, got.header)
		}
	}
	if a := s.do(t, "GET", "/v2/a/tags/list"); !strings.Contains(a.body, `["first","sha256-1","sha256-2","sha512-1","sha512-2"]`) {
		t.Errorf("tags: %s", a.body)
	}
}

// TestDeleteKeepsWhole: what another manifest here needs stays.
func TestDeleteKeepsWhole(t *testing.T) {
	s := pushRack(t, Options{})
	m, d := s.pushImage(t, "a", "1", 50, nil)
	idx := ok(json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": types.OCIImageIndex, "manifests": []v1.Descriptor{d}}))(t)
	s.send(t, "PUT", "/v2/a/manifests/multi", idx, "Content-Type", string(types.OCIImageIndex)).want(t, 201, "")
	doc := ok(parseDocument(m, types.OCIManifestSchema1))(t)
	layer := "/v2/a/blobs/" + doc.parts[0].Digest.String()
	s.send(t, "DELETE", layer, nil).want(t, 405, codeDenied)
	s.send(t, "DELETE", "/v2/a/manifests/"+d.Digest.String(), nil).want(t, 405, codeDenied)
	s.send(t, "DELETE", "/v2/a/manifests/multi", nil).want(t, 202, "")
	s.send(t, "DELETE", "/v2/a/manifests/multi", nil).want(t, 404, codeNoManifest)
	s.send(t, "DELETE", "/v2/a/manifests/"+d.Digest.String(), nil).want(t, 405, codeDenied) // the index is there
	s.send(t, "DELETE", "/v2/a/manifests/"+sumOf("sha256", idx).String(), nil).want(t, 202, "")
	s.send(t, "DELETE", "/v2/a/manifests/"+d.Digest.String(), nil).want(t, 202, "")
	s.send(t, "DELETE", "/v2/a/manifests/"+d.Digest.String(), nil).want(t, 404, codeNoManifest)
	s.send(t, "DELETE", layer, nil).want(t, 202, "")
	if a := s.do(t, "GET", "/v2/a/manifests/1"); a.status != 404 {
		t.Errorf("tag of a deleted manifest: %d", a.status)
	}
	s.send(t, "DELETE", "/v2/none/manifests/1", nil).want(t, 404, codeNoName)
	s.send(t, "DELETE", "/v2/a/manifests/sha256:x", nil).want(t, 400, codeDigest)
}

// TestRelease: nobody who pushes changes what an installed release means.
func TestRelease(t *testing.T) {
	s := pushRack(t, Options{})
	img := ok(random.Image(100, 1))(t)
	rel := s.index(t, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img}))
	must(t, s.Tag("app:1", rel))
	before := ok(s.Resolve("app:1"))(t)
	m, own := s.pushImage(t, "app", "2", 10, nil)
	s.putManifest(t, "app", "1", m).want(t, 405, codeDenied)
	s.putManifest(t, "app", own.Digest.String()+"?tag=3&tag=1", m).want(t, 405, codeDenied)
	s.send(t, "DELETE", "/v2/app/manifests/1", nil).want(t, 405, codeDenied)
	s.send(t, "DELETE", "/v2/app/manifests/"+rel.Digest.String(), nil).want(t, 405, codeDenied)
	layer := ok(ok(img.Layers())(t)[0].Digest())(t)
	s.send(t, "DELETE", "/v2/app/blobs/"+layer.String(), nil).want(t, 405, codeDenied)
	if after := ok(s.Resolve("app:1"))(t); after.Digest != before.Digest {
		t.Error("the release's tag has moved")
	}
	if refs := ok(s.Refs())(t); len(refs) != 1 {
		t.Errorf("a push has changed index.json: %v", refs)
	}
	if a := s.do(t, "GET", "/v2/app/tags/list"); !strings.Contains(a.body, `["1","2"]`) {
		t.Errorf("tags: %s", a.body)
	}
	// An index over the release's image outlives the release.
	child := ok(img.Digest())(t)
	idx := ok(json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": types.OCIImageIndex,
		"manifests": []v1.Descriptor{{MediaType: types.DockerManifestSchema2, Digest: child, Size: ok(img.Size())(t)}}}))(t)
	s.send(t, "PUT", "/v2/app/manifests/mine", idx, "Content-Type", string(types.OCIImageIndex)).want(t, 201, "")
	must(t, s.Untag("app:1"))
	got := ok(remote.Index(ok(name.ParseReference(s.host() + "/app:mine"))(t)))(t)
	drain(t, ok(got.Image(child))(t))
}

// TestPushedReferrers: in either order, filtered, in pages, and gone with the
// manifest.
func TestPushedReferrers(t *testing.T) {
	s := pushRack(t, Options{})
	subject := v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: sumOf("sha256", []byte("later")), Size: 5}
	about := func(kind string, notes map[string]string) v1.Hash {
		m, d := s.pushImage(t, "a", "", 9, func(m map[string]any) { m["subject"], m["artifactType"], m["annotations"] = subject, kind, notes })
		a := s.putManifest(t, "a", "tagged", m).want(t, 201, "")
		if a.header.Get("OCI-Subject") != subject.Digest.String() {
			t.Errorf("OCI-Subject %q", a.header.Get("OCI-Subject"))
		}
		return d.Digest
	}
	list := func(path string) (ds []v1.Descriptor, pages int) {
		for path != "" {
			a := s.do(t, "GET", path)
			var im v1.IndexManifest
			must(t, json.Unmarshal([]byte(a.body), &im))
			if len(a.body) > maxManifest || a.status != 200 {
				t.Fatalf("%s: %d, %d bytes", path, a.status, len(a.body))
			}
			ds, pages = append(ds, im.Manifests...), pages+1
			path = ""
			if l := a.header.Get("Link"); l != "" {
				path = strings.TrimPrefix(strings.TrimSuffix(l, `>; rel="next"`), "<")
			}
		}
		return ds, pages
	}
	all := "/v2/a/referrers/" + subject.Digest.String()
	sbom := about("application/vnd.example.sbom", map[string]string{"k": "v"})
	about("application/vnd.example.signature", nil)
	if ds, _ := list(all); len(ds) != 2 {
		t.Errorf("referrers: %v", ds)
	}
	ds, _ := list(all + "?artifactType=" + url.QueryEscape("application/vnd.example.sbom"))
	if len(ds) != 1 || ds[0].Digest != sbom || ds[0].Annotations["k"] != "v" || ds[0].ArtifactType != "application/vnd.example.sbom" {
		t.Errorf("filtered: %v", ds)
	}
	for range 4 {
		about("application/vnd.example.big", map[string]string{"x": strings.Repeat("x", 900_000)})
	}
	if ds, pages := list(all); len(ds) != 6 || pages < 2 {
		t.Errorf("%d referrers on %d pages", len(ds), pages)
	}
	if ds, pages := list(all + "?artifactType=application/vnd.example.big"); len(ds) != 4 || pages < 2 {
		t.Errorf("filtered: %d referrers on %d pages", len(ds), pages)
	}
	s.send(t, "DELETE", "/v2/a/manifests/"+sbom.String(), nil).want(t, 202, "")
	if ds, _ := list(all + "?artifactType=application/vnd.example.sbom"); len(ds) != 0 {
		t.Errorf("deleted: %v", ds)
	}
	if ds, _ := list("/v2/b/referrers/" + subject.Digest.String()); len(ds) != 0 {
		t.Errorf("another repository's: %v", ds)
	}
}

// TestCondition: two clients that change one tag notice each other.
func TestCondition(t *testing.T) {
	s := pushRack(t, Options{})
	m1, d1 := s.pushImage(t, "a", "", 1, nil)
	m2, d2 := s.pushImage(t, "a", "", 2, nil)
	put := func(m []byte, header ...string) int {
		return s.send(t, "PUT", "/v2/a/manifests/t", m, append(header, "Content-Type", string(types.OCIManifestSchema1))...).status
	}
	for i, c := range []struct {
		m      []byte
		header []string
		status int
	}{
		{m1, []string{"If-Match", etag(d1.Digest)}, 412},
		{m1, []string{"If-Match", "*"}, 412},
		{m1, []string{"If-None-Match", "*"}, 201},
		{m2, []string{"If-None-Match", "*"}, 412},
		{m2, []string{"If-Match", etag(d2.Digest)}, 412},
		{m2, []string{"If-Match", etag(d2.Digest) + ", " + etag(d1.Digest)}, 201},
		{m1, []string{"If-Match", etag(d1.Digest)}, 412},
		{m1, nil, 201},
	} {
		if got := put(c.m, c.header...); got != c.status {
			t.Errorf("%d: %v: %d, want %d", i, c.header, got, c.status)
		}
	}
}
