package bundle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// script is a source that fails where it is told, and notes what the moving
// goroutine asks for.
type script struct {
	unread, unproved, lost map[int]bool // by chunk
	did                    []string
	held                   map[*byte]int // chunks in buffers
}

var errScript = errors.New("as it was told")

func (s *script) read(_ context.Context, _ manifest.Blob, i int, buf []byte) error {
	s.did = append(s.did, fmt.Sprint("read ", i))
	if was, ok := s.held[&buf[0]]; ok {
		return fmt.Errorf("chunk %d is read over chunk %d", i, was)
	}
	s.held[&buf[0]] = i
	buf[0] = 'r'
	if s.unread[i] {
		return errScript
	}
	return nil
}

func (s *script) prove(cs []*chunk) {
	for _, c := range cs {
		if c.buf[0] != 'r' {
			c.err = fmt.Errorf("chunk %d is proved, and was not read", c.i)
		} else if c.buf[0] = 'p'; s.unproved[c.i] {
			c.err = errScript
		}
	}
}

func (s *script) rescue(_ context.Context, _ manifest.Blob, i int, buf []byte, err error) (content.Piece, error) {
	s.did = append(s.did, fmt.Sprint("rescue ", i))
	if buf[0] = 'p'; s.lost[i] || !errors.Is(err, errScript) {
		return content.Piece{}, err
	}
	return content.Piece{}, nil
}

// TestStream: chunks come in order, each proved or rescued once and in a buffer of
// its own; between a read error and the rescue nothing is read.
func TestStream(t *testing.T) {
	const n = 11
	jobs := []toRead{{blob: manifest.Blob{Size: n * manifest.ChunkSize}, from: 2}}
	all := func(i int) map[int]bool { return map[int]bool{i: true} }
	for _, c := range []struct {
		name string
		s    script
		end  int // the chunk after which each fails, or that is lost
	}{
		{"whole", script{}, n},
		{"unread", script{unread: map[int]bool{3: true, 4: true, 10: true}}, n},
		{"unproved", script{unproved: map[int]bool{2: true, 5: true, 10: true}}, n},
		{"lost", script{unread: all(6), lost: all(6)}, 6},
		{"tampered", script{unproved: all(7), lost: all(7)}, 7},
		{"each fails", script{}, 5},
	} {
		for bufs := 1; bufs <= 5; bufs++ {
			t.Run(fmt.Sprint(c.name, " ", bufs), func(t *testing.T) {
				s := c.s
				s.held = map[*byte]int{}
				var bs [][]byte
				for range bufs {
					bs = append(bs, make([]byte, 1))
				}
				want := jobs[0].from
				err := streamIn(t.Context(), bs, jobs, &s, func(ch chunk) error {
					if ch.i != want || s.held[&ch.buf[0]] != ch.i || ch.buf[0] != 'p' {
						t.Fatalf("got chunk %d, %c, in the buffer of chunk %d; want %d", ch.i, ch.buf[0], s.held[&ch.buf[0]], want)
					}
					if want++; ch.err != nil || ch.i == c.end {
						return errors.Join(errScript, ch.err)
					}
					delete(s.held, &ch.buf[0])
					return nil
				})
				if whole := c.end == n; whole != (err == nil) || !whole && !errors.Is(err, errScript) || want != min(n, c.end+1) {
					t.Errorf("got %v after chunk %d", err, want-1)
				}
				for i, d := range s.did {
					var k int
					if fmt.Sscanf(d, "read %d", &k); s.unread[k] && (i+1 == len(s.did) || s.did[i+1] != fmt.Sprint("rescue ", k)) {
						t.Errorf("no rescue follows %s in %q", d, s.did)
					}
				}
				for i := range s.did {
					if slices.Contains(s.did[i+1:], s.did[i]) {
						t.Errorf("%s twice in %q", s.did[i], s.did)
					}
				}
			})
		}
	}
}

// TestStreamEnds: what is read or proved when the context ends is not handed out.
func TestStreamEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := script{held: map[*byte]int{}}
	got := 0
	err := streamIn(ctx, [][]byte{{0}, {0}, {0}, {0}}, []toRead{{blob: manifest.Blob{Size: 9 * manifest.ChunkSize}}}, &s, func(c chunk) error {
		if got++; got == 3 {
			cancel()
		}
		delete(s.held, &c.buf[0])
		return nil
	})
	if !errors.Is(err, context.Canceled) || got != 3 {
		t.Errorf("got %v and %d chunks, want 3", err, got)
	}
}
