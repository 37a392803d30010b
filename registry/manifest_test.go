package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

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
	idx := ok(json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": types.OCIImageIndex,
		"manifests": []v1.Descriptor{{MediaType: types.DockerManifestSchema2, Digest: child, Size: ok(img.Size())(t)}},
	}))(t)
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

// TestRecord: each change is told before it is made, and isn't made when that
// fails.
func TestRecord(t *testing.T) {
	var mu sync.Mutex
	var got []string
	var fail error
	s := pushRack(t, Options{Record: func(_ context.Context, c Change) error {
		mu.Lock()
		defer mu.Unlock()
		ref := c.Ref
		if strings.Contains(ref, ":") {
			ref = "digest"
		}
		got = append(got, fmt.Sprintf("%s %s %s %s", c.Who, c.Right, c.Repo, ref))
		return fail
	}})
	b := []byte("blob")
	m := plain(described([]byte("{}"), "sha256"), described(b, "sha256"), nil)
	blob, man := "/v2/a/blobs/"+sumOf("sha256", b).String(), "/v2/a/manifests/"+sumOf("sha256", m).String()
	s.pushBlob(t, "a", []byte("{}"))
	steps := []struct {
		do     func() answer
		status int
		see    string // what shows that it was done
	}{
		{func() answer { return s.send(t, "POST", "/v2/a/blobs/uploads/?digest="+sumOf("sha256", b).String(), b) }, 201, blob},
		{func() answer {
			return s.send(t, "POST", "/v2/c/blobs/uploads/?from=a&mount="+sumOf("sha256", b).String(), nil)
		}, 201, strings.Replace(blob, "/a/", "/c/", 1)},
		{func() answer { return s.putManifest(t, "a", "1", m) }, 201, "/v2/a/manifests/1"},
		{func() answer { return s.send(t, "DELETE", "/v2/a/manifests/1", nil) }, 202, "/v2/a/manifests/1"},
		{func() answer { return s.send(t, "DELETE", man, nil) }, 202, man},
		{func() answer { return s.send(t, "DELETE", blob, nil) }, 202, blob},
	}
	for _, c := range steps {
		before := s.do(t, "HEAD", c.see).status
		fail = errors.New("the ledger is full")
		if a := c.do().want(t, 500, codeUnknown); strings.Contains(a.body, "ledger is full") {
			t.Errorf("%s: the client is told why", c.see)
		}
		if after := s.do(t, "HEAD", c.see).status; after != before {
			t.Errorf("%s: not recorded, and done: %d, then %d", c.see, before, after)
		}
		fail = nil
		c.do().want(t, c.status, "")
		if after := s.do(t, "HEAD", c.see).status; after == before {
			t.Errorf("%s: still %d", c.see, after)
		}
	}
	want := strings.Fields("push:a:digest push:a:digest push:a:digest push:c:digest push:c:digest push:a:digest push:a:digest push:a:1 delete:a:1 delete:a:1 delete:a:digest delete:a:digest delete:a:digest delete:a:digest")
	for i := range want {
		want[i] = "127.0.0.1 " + strings.ReplaceAll(want[i], ":", " ")
	}
	if !slices.Equal(got, want) {
		t.Errorf("recorded:\n%s", strings.Join(got, "\n"))
	}
}
