package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/clawbox/clawbox/bundle/content"
)

// target is a registry that takes everything, without a network.
func target(f *testing.F) (*content.Store, http.Handler) {
	s := ok(content.Open(filepath.Join(f.TempDir(), "store")))(f)
	return s, ok(Open(s, Options{Push: true, Rules: []Rule{everything}, Limits: Limits{Blob: 1 << 16}}))(f)
}

func serve(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	r.RemoteAddr = "127.0.0.1:1"
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// FuzzRange: whatever part of a blob is asked for, what comes is that part.
func FuzzRange(f *testing.F) {
	_, h := target(f)
	blob := noise(1000)
	path := "/v2/a/blobs/" + sumOf("sha256", blob).String()
	if w := serve(h, httptest.NewRequest("POST", "/v2/a/blobs/uploads/?digest="+sumOf("sha256", blob).String(), bytes.NewReader(blob))); w.Code != 201 {
		f.Fatal(w.Code, w.Body)
	}
	for _, s := range []string{"bytes=0-", "bytes=5-9", "bytes=-7", "bytes=999-1000", "bytes=1000-", "bytes=9-5", "bytes=0-0,2-2", "bytes=-0", "x", "bytes=" + strings.Repeat("0-,", 99) + "0-", "bytes=00000000000000000000001-2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, rng string) {
		r := httptest.NewRequest("GET", path, nil)
		r.Header.Set("Range", rng)
		w := serve(h, r)
		var from, to int
		switch {
		case w.Code == 200 && w.Body.String() == string(blob), w.Code == 416:
		case w.Code == 206 && strings.HasPrefix(w.Header().Get("Content-Type"), "multipart/byteranges"):
			if w.Body.Len() > 300*(len(blob)+1) { // a part's header has some 150 bytes, a part one at least
				t.Errorf("%q: %d bytes", rng, w.Body.Len())
			}
		case w.Code == 206:
			if _, err := fmt.Sscanf(w.Header().Get("Content-Range"), "bytes %d-%d/1000", &from, &to); err != nil || w.Body.String() != string(blob[from:to+1]) {
				t.Errorf("%q: %s, %d bytes", rng, w.Header().Get("Content-Range"), w.Body.Len())
			}
		default:
			t.Errorf("%q: %d %.100s", rng, w.Code, w.Body)
		}
	})
}

// FuzzContentRange: a chunk's range is two numbers, or refused.
func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"", "0-0", "5-4", "0-999999999999999999", "-1-2", "0-1/2", "bytes 0-1", "0x1-2", " 0-1", "٠-١"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		from, n, err := parseRange(s)
		if err != nil || s == "" {
			return
		}
		if want := fmt.Sprintf("%d-%d", from, from+n-1); from < 0 || n < 1 || plainNumbers(s) != want {
			t.Errorf("%q: %d bytes from %d", s, n, from)
		}
	})
}

var zeros = regexp.MustCompile(`(^|-)0+([0-9])`)

func plainNumbers(s string) string { return zeros.ReplaceAllString(s, "$1$2") }

// FuzzRequest: no path, query or header makes the registry fail or leave the
// rules, and every error is one that the specification knows.
func FuzzRequest(f *testing.F) {
	s, h := target(f)
	codes := regexp.MustCompile(`^\{"errors":\[\{"code":"[A-Z_]+","message":".+"\}\]\}$`)
	d := sumOf("sha256", []byte("x")).String()
	for _, p := range []string{
		"/v2/", "/v2/a/blobs/" + d, "/v2/a/manifests/x", "/v2/a/b/tags/list?n=1&last=x", "/v2/a/referrers/" + d + "?artifactType=x", "/v2/a/blobs/uploads/?digest=" + d,
		"/v2/a/blobs/uploads/?mount=" + d + "&from=b", "/v2/a/blobs/uploads/" + strings.Repeat("0", 32), "/v2/a/manifests/" + d + "?tag=1", "/v2/_catalog?n=0", "/v2/../x", "/v2/a/blobs/../uploads/",
	} {
		for _, m := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
			f.Add(m, p, "0-0", "x")
		}
	}
	f.Add("PUT", "/v2/a/manifests/x", "", `{"schemaVersion":2,"manifests":[]}`)
	f.Fuzz(func(t *testing.T, method, path, header, body string) {
		r, err := http.NewRequest(method, path, strings.NewReader(body))
		if err != nil || !strings.HasPrefix(path, "/") {
			return
		}
		for _, k := range []string{"Content-Range", "Range", "Accept", "If-Match", "If-None-Match"} {
			r.Header.Set(k, header)
		}
		r.Header.Set("Content-Type", string(types.OCIImageIndex))
		w := serve(h, r)
		switch {
		case w.Code >= 500:
			t.Errorf("%s %q: %d %s", method, path, w.Code, w.Body)
		case w.Code >= 400 && w.Code != 416 && w.Code != 412 && !codes.MatchString(w.Body.String()):
			t.Errorf("%s %q: error body %.200s", method, path, w.Body)
		}
		for k, vs := range w.Header() {
			if strings.ContainsAny(strings.Join(vs, ""), "\r\n\x00") {
				t.Errorf("%s %q: header %s is %q", method, path, k, vs)
			}
		}
		if us, err := s.Uploads(); err != nil || len(us) > 200 { // make room
			for _, u := range us {
				if x, err := s.Upload(u.ID); err == nil {
					_ = x.Discard()
				}
			}
		}
	})
}

// FuzzDocument: what is taken for a manifest reads the same in a reader that
// takes names literally and the first or the last of several.
func FuzzDocument(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"a/b","digest":"sha256:`+strings.Repeat("0", 64)+`","size":2},"layers":[]}`), false)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[]}`), true)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[],"Manifests":[],"annotations":{"Size":"x"}}`), true)
	f.Add([]byte(`{"a":[[[{"a":1,"a":2}]]]}`), true)
	f.Fuzz(func(t *testing.T, b []byte, index bool) {
		mt := types.OCIManifestSchema1
		if index {
			mt = types.OCIImageIndex
		}
		d, err := parseDocument(b, mt)
		if err != nil {
			return
		}
		var m map[string]json.RawMessage
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		var layers, lower []json.RawMessage
		_ = json.Unmarshal(m["layers"], &layers)
		_ = json.Unmarshal(m["manifests"], &lower)
		parts := len(layers)
		if c := m["config"]; c != nil && string(c) != "null" {
			parts++
		}
		if len(d.parts) != parts || len(d.lower) != len(lower) || index == (parts > 0) && len(lower)+parts > 0 {
			t.Errorf("%s: %d parts of %d, %d manifests of %d", b, len(d.parts), parts, len(d.lower), len(lower))
		}
	})
}

// FuzzUsers: a line that is taken has a name and a bcrypt hash.
func FuzzUsers(f *testing.F) {
	f.Add("op:$2y$05$" + strings.Repeat("a", 53) + "\n# x\n")
	f.Fuzz(func(t *testing.T, s string) {
		us, err := parseUsers([]byte(s))
		for n, h := range us {
			if err != nil || strings.ContainsAny(n, ":\n ") || len(h) != 60 {
				t.Errorf("%q: %q %q", s, n, h)
			}
		}
	})
}
