package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

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

// closing says when a blob was closed.
type closing struct {
	storeSource
	closed chan v1.Hash
}

func (c closing) Open(ctx context.Context, h v1.Hash) (Blob, error) {
	b, err := c.storeSource.Open(ctx, h)
	return closed{b, h, c.closed}, err
}

type closed struct {
	Blob
	h  v1.Hash
	to chan v1.Hash
}

func (c closed) Close() error {
	c.to <- c.h
	return c.Blob.Close()
}

// TestStalled: a client that does not take what it asked for is given up, one that
// takes it slowly is not, nor is a connection that rests between two answers.
func TestStalled(t *testing.T) {
	old := slowest
	slowest = 500 * time.Millisecond
	t.Cleanup(func() { slowest = old })
	s := newRack(t)
	big := bytes.Repeat([]byte("x"), 24<<20) // more than sockets hold
	must(t, s.Tag("app:1", s.file(t, "app", big, nil)))
	h := sumOf("sha256", big)
	src := closing{storeSource{s.Store}, make(chan v1.Hash, 8)}
	srv := httptest.NewServer(ok(Of(src, Options{}))(t))
	t.Cleanup(srv.Close)
	c := ok(net.Dial("tcp", srv.Listener.Addr().String()))(t)
	defer c.Close()
	must(t, c.(*net.TCPConn).SetReadBuffer(4096))
	ok(fmt.Fprintf(c, "GET /v2/app/blobs/%s HTTP/1.1\r\nHost: x\r\n\r\n", h))(t)
	for end, shut := time.After(10*time.Second), false; !shut; {
		select {
		case got := <-src.closed:
			shut = got == h // others are manifests
		case <-end:
			t.Fatal("the blob is open as long as the client likes")
		}
	}
	for range 2 { // over one connection
		res := ok(http.Get(srv.URL + "/v2/app/blobs/" + h.String()))(t)
		n, b := 0, make([]byte, 1<<20)
		for begin := time.Now(); ; time.Sleep(30 * time.Millisecond) {
			k, err := io.ReadFull(res.Body, b)
			if n += k; err != nil {
				if n != len(big) || time.Since(begin) < slowest {
					t.Errorf("%d bytes in %v, %v", n, time.Since(begin), err)
				}
				break
			}
		}
		res.Body.Close()
		time.Sleep(slowest + 100*time.Millisecond)
	}
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
