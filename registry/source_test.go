package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// faulty is a store some of whose blobs are elsewhere, and some can't be read
// to their end.
type faulty struct {
	storeSource
	away, broken v1.Hash
}

func (f faulty) Open(ctx context.Context, h v1.Hash) (Blob, error) {
	if h == f.away {
		return nil, &ElsewhereError{"it is on another stick"}
	}
	b, err := f.storeSource.Open(ctx, h)
	if h == f.broken && err == nil {
		return breaking{b}, nil
	}
	return b, err
}

// breaking fails in its second half.
type breaking struct{ Blob }

func (b breaking) Read(p []byte) (int, error) {
	at, err := b.Seek(0, io.SeekCurrent)
	if err != nil || at >= b.Size()/2 {
		return 0, errors.Join(err, errors.New("the medium is damaged"))
	}
	return b.Blob.Read(p[:min(int64(len(p)), b.Size()/2-at)])
}

// TestOf: another source is served as a store is, with what refers to its
// manifests; what it doesn't have is said in its words, and a blob that can't be
// read to its end is never taken for whole. Nobody can push.
func TestOf(t *testing.T) {
	s := newRack(t)
	big := bytes.Repeat([]byte("x"), 1<<20)
	app := s.file(t, "app", big, nil)
	note := s.file(t, "note", []byte("signature"), &app)
	other := s.file(t, "other", []byte("other"), nil)
	must(t, s.Tag("app:1", app))
	must(t, s.Tag("app-note:1", note))
	must(t, s.Tag("app:2", other))
	h, _, err := v1.SHA256(bytes.NewReader(big))
	must(t, err)
	srv := httptest.NewServer(ok(Of(faulty{storeSource{s.Store}, other.Digest, h}, Options{Push: true, Rules: []Rule{everything}}))(t))
	t.Cleanup(srv.Close)
	r := rack{s.Store, srv}
	if a := r.do(t, "GET", "/v2/app-note/referrers/"+app.Digest.String()); a.status != 200 || !strings.Contains(a.body, note.Digest.String()) {
		t.Errorf("referrers: %d %s", a.status, a.body)
	}
	if a := r.do(t, "GET", "/v2/_catalog"); a.status != 200 || !strings.Contains(a.body, `["app","app-note"]`) {
		t.Errorf("catalog: %d %s", a.status, a.body)
	}
	if a := r.do(t, "GET", "/v2/app/manifests/2"); a.status != 404 || !strings.Contains(a.body, "it is on another stick") {
		t.Errorf("elsewhere: %d %s", a.status, a.body)
	}
	for _, m := range []string{"POST", "PUT", "DELETE"} {
		if a := r.do(t, m, "/v2/app/manifests/1"); a.status != http.StatusMethodNotAllowed {
			t.Errorf("%s: %d %s", m, a.status, a.body)
		}
	}
	res, err := http.Get(srv.URL + "/v2/app/blobs/" + h.String())
	must(t, err)
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err == nil || len(b) != len(big)/2 || !bytes.Equal(b, big[:len(b)]) {
		t.Errorf("a blob that breaks off: %d bytes, %v", len(b), err)
	}
}
