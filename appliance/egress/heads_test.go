package egress

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/inspect"
)

// Whatever a client sends: what net/http takes for a request's end is where
// the next head is looked at, and nothing passes that inspect.Head refuses.
func FuzzHeads(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: b\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n",
		"GET / HTTP/1.1\nHost: a\n\n", "\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nX: y\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999999999\r\n\r\n",
	} {
		f.Add([]byte(s), 5)
	}
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		bad := 0
		src := &pieces{string(in), max(1, size%100)}
		h := &heads{Conn: canned{Reader: bytes.NewReader(nil)}, refuse: func(error) { bad++ }}
		h.Conn = pieced{canned{}, src}
		br := bufio.NewReader(h)
		at := 0
		for range 100 {
			r, err := http.ReadRequest(br)
			if err != nil {
				break
			}
			end := headEnd(in[at:])
			if end < 0 || inspect.Head(in[at:at+end]) != nil {
				t.Fatalf("passed: %q", in[at:])
			}
			n, err := io.Copy(io.Discard, r.Body)
			if err != nil || h.open {
				break
			}
			if h.pass != 0 || br.Buffered() != 0 {
				t.Fatalf("after a request in %q: %d bytes may pass unseen, %d have", in[at:], h.pass, br.Buffered())
			}
			at += end + int(n)
		}
		if bad > 1 {
			t.Fatalf("told %d times what was wrong", bad)
		}
	})
}

// pieced is a connection that reads pieces.
type pieced struct {
	canned
	r io.Reader
}

func (p pieced) Read(b []byte) (int, error) { return p.r.Read(b) }

// A head that comes in two halves with a time-out between them is one head.
func TestHeadsGoOnAfterTimeout(t *testing.T) {
	const head = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	src := &halting{parts: []string{head[:9], "", head[9:]}}
	h := &heads{Conn: pieced{canned{}, src}, refuse: func(err error) { t.Error(err) }}
	b := make([]byte, 100)
	if n, err := h.Read(b); n != 0 || err != errHalt {
		t.Fatalf("got %d %v", n, err)
	}
	if n, err := h.Read(b); err != nil || string(b[:n]) != head {
		t.Fatalf("got %q %v", b[:n], err)
	}
}

var errHalt = io.ErrNoProgress

// halting fails once where a part is empty.
type halting struct{ parts []string }

func (h *halting) Read(b []byte) (int, error) {
	if len(h.parts) == 0 {
		return 0, io.EOF
	}
	s := h.parts[0]
	h.parts = h.parts[1:]
	if s == "" {
		return 0, errHalt
	}
	return copy(b, s), nil
}

func TestQuestionRate(t *testing.T) {
	var s seconds
	now := time.Unix(1_800_000_000, 0)
	for i := range 10 {
		if w := s.turn(now, 10); w != 0 {
			t.Fatalf("question %d waits %v", i, w)
		}
	}
	if w := s.turn(now.Add(time.Second/4), 10); w != 3*time.Second/4 {
		t.Errorf("one too many waits %v", w)
	}
	if w := s.turn(now.Add(time.Second), 10); w != 0 {
		t.Errorf("a second later: waits %v", w)
	}
}
