package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/reedsolomon"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// maxShardMemory bounds what one rebuilding holds, in bytes.
const maxShardMemory = 64 << 20

// rebuilt is part i of the media, computed from the parts that are not lost:
// byte o of all parts and parity parts is one Reed-Solomon code word, and a
// part that is shorter than the longest counts as filled up with zeros.
type rebuilt struct {
	ctx  context.Context // ends it
	r    *reader
	i    int
	lost []int // i among them
}

// ReadAt rebuilds a stretch.
func (w rebuilt) ReadAt(p []byte, off int64) (n int, err error) {
	if err := w.r.code(); err != nil {
		return 0, err
	}
	step := max(64<<10, maxShardMemory/(len(w.r.m.parts)+len(w.r.m.parity)))
	for n < len(p) {
		k := min(step, len(p)-n)
		if err := w.stretch(p[n:n+k], off+int64(n)); err != nil {
			return n, err
		}
		n += k
	}
	return n, nil
}

// code makes the coder; the matrix is the library's default, Vandermonde's.
func (r *reader) code() (err error) {
	if r.coder == nil {
		r.coder, err = reedsolomon.New(len(r.m.parts), len(r.m.parity))
		r.bufs = make([][]byte, len(r.m.parts)+len(r.m.parity))
	}
	return err
}

func (w rebuilt) stretch(p []byte, off int64) error {
	r := w.r
	shards := make([][]byte, len(r.bufs))
	need := make([]bool, len(r.bufs))
	have := 0
	var errs []error
	for i := range shards {
		if have == len(r.m.parts) {
			break // that many suffice
		}
		if slices.Contains(w.lost, i) {
			continue
		}
		if err := w.ctx.Err(); err != nil {
			return err
		}
		if cap(r.bufs[i]) < len(p) {
			r.bufs[i] = make([]byte, len(p))
		}
		if err := r.padded(i, r.bufs[i][:len(p)], off); err != nil {
			r.forget(i)
			errs = append(errs, err)
			continue
		}
		shards[i] = r.bufs[i][:len(p)]
		have++
	}
	if have < len(r.m.parts) {
		return fmt.Errorf("%d of %d parts and parity parts can be read here, want %d: %w", have, len(shards), len(r.m.parts), errors.Join(errs...))
	}
	need[w.i] = true
	if err := r.coder.ReconstructSome(shards, need); err != nil {
		return err
	}
	copy(p, shards[w.i])
	return nil
}

// padded reads file i, and zeros behind its end.
func (r *reader) padded(i int, p []byte, off int64) error {
	_, size := r.m.file(i)
	n := max(0, min(int64(len(p)), size-off))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return full(raw{r, i}, p[:n], off)
}

// mend rebuilds what it can of a chunk until it is what was signed. Nobody says
// which of the parts is wrong, so each in which the chunk lies is taken for
// lost, then several, then one other beside them. Each guess costs the reading of
// all parts, so what came to nothing though all could be read is not tried again.
func (r *reader) mend(ctx context.Context, b manifest.Blob, i int, ss []span, buf []byte) (content.Piece, error) {
	err := errBeyond
	if r.m.beyond.has(b.Digest, i) {
		return content.Piece{}, err
	}
	r.failed = false
	for _, lost := range r.m.guesses(ss) {
		if err := ctx.Err(); err != nil {
			return content.Piece{}, err
		}
		if e := r.fill(ctx, ss, buf, lost); e != nil {
			err = fmt.Errorf("rebuild: %w", e)
			continue
		}
		p, e := prove(b, i, buf)
		if e == nil {
			return p, nil
		}
	}
	if ctx.Err() == nil && !r.failed {
		r.m.beyond.add(b.Digest, i)
	}
	return content.Piece{}, err
}

var errBeyond = errors.New("more is damaged than parity can rebuild")

// beyond remembers chunks that can't be mended, for as long as the media are open:
// each request for one would read all parts many times.
type beyond struct {
	mu sync.Mutex
	at map[chunkKey]bool
}

type chunkKey struct {
	digest v1.Hash
	i      int
}

func (m *beyond) has(h v1.Hash, i int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.at[chunkKey{h, i}]
}

func (m *beyond) add(h v1.Hash, i int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.at == nil {
		m.at = map[chunkKey]bool{}
	}
	m.at[chunkKey{h, i}] = true
}

// fill reads the spans, those in lost parts by rebuilding.
func (r *reader) fill(ctx context.Context, ss []span, buf []byte, lost []int) error {
	for _, s := range ss {
		if err := ctx.Err(); err != nil {
			return err
		}
		var v io.ReaderAt = raw{r, s.part - 1}
		if slices.Contains(lost, s.part-1) {
			v = rebuilt{ctx, r, s.part - 1, lost}
		}
		v, err := r.payload(s.part-1, v)
		if err != nil {
			return err
		}
		if err := full(v, buf[:s.n], s.offset); err != nil {
			return err
		}
		buf = buf[s.n:]
	}
	return nil
}

// guesses lists what may be lost: always what is missing; the parts of ss,
// alone and together; then the same and one more.
func (m *Media) guesses(ss []span) (out [][]int) {
	var missing []int
	for i := range len(m.parts) + len(m.parity) {
		if p, _ := m.file(i); p == "" {
			missing = append(missing, i)
		}
	}
	sets := subsets(ss)
	add := func(set ...int) {
		g := slices.Clone(missing)
		for _, i := range set {
			if !slices.Contains(g, i) {
				g = append(g, i)
			}
		}
		if len(g) <= len(m.parity) {
			out = append(out, g)
		}
	}
	for _, s := range sets {
		add(s...)
	}
	for _, s := range sets {
		for i := range len(m.parts) + len(m.parity) {
			if !slices.Contains(s, i) {
				add(append(slices.Clone(s), i)...)
			}
		}
	}
	return out
}

// subsets lists the parts of ss alone, and then all of them together. A chunk
// lies in two parts as a rule, in more only when parts are smaller than chunks.
func subsets(ss []span) (out [][]int) {
	var all []int
	for _, s := range ss {
		out, all = append(out, []int{s.part - 1}), append(all, s.part-1)
	}
	if len(all) > 1 {
		out = append(out, all)
	}
	return out
}
