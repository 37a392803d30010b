package registry

import (
	"bytes"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/bundle/content"
)

// TestLimits: uploads that nobody finishes are bounded in number and bytes,
// per client and together.
func TestLimits(t *testing.T) {
	dir := t.TempDir()
	users := filepath.Join(dir, "users")
	must(t, os.WriteFile(users, []byte(cheap(t, "a", "a")+cheap(t, "b", "b")+cheap(t, "c", "c")), 0o600))
	h := ok(Open(ok(content.Open(filepath.Join(dir, "s")))(t), Options{
		Push: true, Users: ok(OpenUsers(users))(t), Rules: []Rule{{"user:*", "**", []Right{Pull, Push}}},
		Limits: Limits{Uploads: 3, UploadsPerClient: 2, Blob: 1000, Staged: 1500, StagedPerClient: 1200},
	}))(t)
	ask := func(who, method, path string, n int, hidden bool) answer {
		var body io.Reader = bytes.NewReader(make([]byte, n))
		if hidden {
			body = struct{ io.Reader }{body}
		}
		r := httptest.NewRequest(method, path, body)
		r.SetBasicAuth(who, who)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return answer{w.Code, w.Header(), w.Body.String()}
	}
	begin := func(who string, status int) string {
		t.Helper()
		return ask(who, "POST", "/v2/x/blobs/uploads/", 0, false).want(t, status, "").header.Get("Location")
	}
	a1, a2 := begin("a", 202), begin("a", 202)
	begin("a", 429)
	b1 := begin("b", 202)
	begin("c", 429)
	ask("c", "POST", "/v2/x/blobs/uploads/?digest="+sumOf("sha256", nil).String(), 0, false).want(t, 429, codeTooMany)
	for _, hidden := range []bool{false, true} {
		ask("a", "PATCH", a1, 1001, hidden).want(t, 413, codeSize)
	}
	ask("a", "PATCH", a1, 1000, false).want(t, 202, "")
	ask("a", "PATCH", a1, 1, false).want(t, 413, codeSize)
	ask("a", "PATCH", a2, 201, false).want(t, 429, codeTooMany)
	ask("a", "PATCH", a2, 200, true).want(t, 202, "")
	ask("b", "PATCH", b1, 301, true).want(t, 429, codeTooMany)
	ask("a", "DELETE", a2, 0, false).want(t, 204, "")
	ask("b", "PATCH", b1, 301, true).want(t, 202, "")
	zeros := sumOf("sha256", make([]byte, 1000))
	ask("a", "PUT", a1+"?digest="+zeros.String(), 0, false).want(t, 201, "")
	begin("a", 202) // what is finished doesn't count
	ask("b", "POST", "/v2/x/blobs/uploads/?digest="+zeros.String(), 1000, true).want(t, 429, codeTooMany)
	ask("b", "DELETE", b1, 0, false).want(t, 204, "")
	ask("b", "POST", "/v2/x/blobs/uploads/?digest="+zeros.String(), 1000, true).want(t, 201, "")
}

// TestAge: an upload that nothing came for is dropped, also after a restart;
// one that is written to is not.
func TestAge(t *testing.T) {
	s := ok(content.Open(filepath.Join(t.TempDir(), "s")))(t)
	sh := shelf{filepath.Join(s.Dir(), shelfDir)}
	must(t, os.MkdirAll(filepath.Join(sh.dir, "uploads"), 0o755))
	tab := ok(openSessions(s, sh, Limits{}))(t)
	idler, w := ok(tab.begin("r", "c"))(t), ok(tab.begin("r", "c"))(t)
	old, busy := idler.ID(), w.ID()
	must(t, idler.Close())
	tab = ok(openSessions(s, sh, Limits{}))(t) // a restart
	if len(tab.all) != 2 || tab.all[old].Repo != "r" || tab.all[old].Client != "c" {
		t.Fatalf("after a restart: %v", tab.all)
	}
	tab.expire(time.Now().Add(23 * time.Hour))
	if !tab.in(old, "r") {
		t.Error("dropped too early")
	}
	tab.expire(time.Now().Add(25 * time.Hour))
	if tab.in(old, "r") || !tab.in(busy, "r") {
		t.Errorf("after a day: %v", tab.all)
	}
	must(t, w.Close())
	tab.expire(time.Now().Add(25 * time.Hour))
	us, files := ok(s.Uploads())(t), ok(sh.list(tab.dir))(t)
	if len(us) != 0 || len(files) != 0 {
		t.Errorf("left: %v %v", us, files)
	}
	must(t, os.WriteFile(filepath.Join(tab.dir, strings.Repeat("0", 32)), []byte(`{"repo":"r"}`), 0o600)) // its bytes were lost
	ok(openSessions(s, sh, Limits{}))(t)
	if files := ok(sh.list(tab.dir))(t); len(files) != 0 {
		t.Errorf("left: %v", files)
	}
}

// smallDisk mounts a tmpfs of that many bytes.
func smallDisk(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("mount tmpfs: %v: a full disk needs root and a mount", err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// TestFree: what is to stay free does, also of who hides how much will come, of
// many at a time and of manifests.
func TestFree(t *testing.T) {
	const free = 32 << 20
	begin := func() (rack, func() int64) {
		dir := smallDisk(t, 64<<20)
		s := ok(content.Open(filepath.Join(dir, "store")))(t)
		srv := httptest.NewServer(ok(Open(s, Options{Push: true, Rules: []Rule{everything}, Limits: Limits{Free: free}}))(t))
		t.Cleanup(srv.Close)
		return rack{s, srv}, func() int64 {
			var st unix.Statfs_t
			must(t, unix.Statfs(dir, &st))
			return int64(st.Bavail) * st.Bsize
		}
	}
	r, left := begin()
	a := r.session(t, "a")
	r.send(t, "PATCH", a, make([]byte, 40<<20), "hidden").want(t, 507, codeDenied)
	if n := left(); n < free-free/8 || n > free+free/8 {
		t.Errorf("%d bytes are left of a disk of which %d are to stay free", n, free)
	}
	r.send(t, "DELETE", a, nil).want(t, 204, "")
	var wg sync.WaitGroup
	for range 8 { // each of which fits
		u := r.session(t, "a")
		wg.Go(func() { _ = r.expect("PATCH", u, make([]byte, 16<<20), 202) })
	}
	wg.Wait()
	if n := left(); n < free-free/8 {
		t.Errorf("after many uploads %d bytes are left; want %d", n, free)
	}

	r, left = begin()
	cfg := v1.Descriptor{MediaType: types.OCIConfigJSON, Digest: r.pushBlob(t, "a", []byte("{}")), Size: 2}
	full := 0
	for i := range 12 {
		m := plain(cfg, cfg, func(m map[string]any) {
			m["annotations"] = map[string]string{"n": fmt.Sprint(i), "x": strings.Repeat("x", 4<<20-1000)}
		})
		if r.putManifest(t, "a", fmt.Sprint("t", i), m).status == 507 {
			full++
		}
	}
	if n := left(); n < free-1<<20 || full == 0 {
		t.Errorf("after manifests %d bytes are left, %d were refused; want %d", n, full, free)
	}
}

// TestFullDisk: a push onto a full disk is told so, and goes on when there is
// room again.
func TestFullDisk(t *testing.T) {
	dir := smallDisk(t, 4<<20)
	s := ok(content.Open(filepath.Join(dir, "store")))(t)
	srv := httptest.NewServer(ok(Open(s, Options{Push: true, Rules: []Rule{everything}, Limits: Limits{Free: -1}}))(t))
	t.Cleanup(srv.Close)
	r := rack{s, srv}
	filler := filepath.Join(dir, "filler")
	must(t, os.WriteFile(filler, make([]byte, 2<<20), 0o600))
	b := noise(3 << 20)
	u := r.session(t, "a")
	r.send(t, "PATCH", u, b).want(t, 507, codeDenied)
	must(t, os.Remove(filler))
	var at int
	ok(fmt.Sscanf(r.send(t, "GET", u, nil).want(t, 204, "").header.Get("Range"), "0-%d", &at))(t)
	if at++; at == 1 {
		at = 0 // nothing, or a byte: the client can't tell
		r.send(t, "DELETE", u, nil).want(t, 204, "")
		u = r.session(t, "a")
	}
	h := sumOf("sha256", b)
	r.send(t, "PUT", u+"?digest="+h.String(), b[at:]).want(t, 201, "")
	if got := r.do(t, "GET", "/v2/a/blobs/"+h.String()); got.body != string(b) {
		t.Error("another blob came back")
	}
	// The default keeps a gigabyte free, of which this disk has none.
	strict := httptest.NewServer(ok(Open(s, Options{Push: true, Rules: []Rule{everything}}))(t))
	t.Cleanup(strict.Close)
	rack{s, strict}.send(t, "POST", "/v2/a/blobs/uploads/?digest="+h.String(), b).want(t, 507, codeDenied)
}
