package registry

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
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

// TestSilent: a client that says nothing for long loses its connection, and
// what it has sent is kept.
func TestSilent(t *testing.T) {
	old := idle
	idle = 300 * time.Millisecond
	t.Cleanup(func() { idle = old })
	s := pushRack(t, Options{})
	u := s.session(t, "a")
	conn := ok(net.Dial("tcp", s.host()))(t)
	defer conn.Close()
	fmt.Fprintf(conn, "PATCH %s HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nfive.", u)
	res := ok(http.ReadResponse(bufio.NewReader(conn), nil))(t)
	res.Body.Close()
	st := s.send(t, "GET", u, nil).want(t, 204, "")
	if res.StatusCode != 400 || st.header.Get("Range") != "0-4" {
		t.Errorf("answered %d, Range %s", res.StatusCode, st.header.Get("Range"))
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
