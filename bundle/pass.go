package bundle

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// pass is one reading of a blob: each chunk is read, summed, looked into and
// handed on, others being read meanwhile. It is a source for one stream.
type pass struct {
	x    *manifest.Blob
	in   io.ReaderAt
	sum  *summer                     // nil: its sums are not needed
	look *looking                    // nil: it needs no look
	skip func(i int) bool            // nil: every chunk is read
	put  func(i int, p []byte) error // nil: nobody wants the bytes
}

// spare keeps buffers from pass to pass: an image set has hundreds of layers.
var spare = sync.Pool{New: func() any { b := content.Buffers(streamed); return &b }}

// run makes the pass.
func (p *pass) run(ctx context.Context, task Task) error {
	bufs := [][]byte{nil}
	if p.x.Size >= manifest.Large {
		b := spare.Get().(*[][]byte)
		defer spare.Put(b)
		bufs = *b
	} else {
		bufs[0] = make([]byte, p.x.Size)
	}
	return streamIn(ctx, bufs, []toRead{{blob: *p.x}}, p, func(c chunk) error {
		if c.err != nil || p.skips(c.i) {
			return c.err
		}
		data := c.buf[:p.len(c.i)]
		if p.put != nil {
			if err := p.put(c.i, data); err != nil {
				return err
			}
		}
		task.Add(int64(len(data)))
		return nil
	})
}

func (p *pass) len(i int) int64 {
	return min(p.x.Size-int64(i)*manifest.ChunkSize, manifest.ChunkSize)
}

func (p *pass) skips(i int) bool { return p.skip != nil && p.skip(i) }

func (p *pass) read(_ context.Context, _ manifest.Blob, i int, buf []byte) error {
	if p.skips(i) {
		return nil
	}
	return full(p.in, buf[:p.len(i)], int64(i)*manifest.ChunkSize)
}

// rescue knows no other way.
func (p *pass) rescue(_ context.Context, _ manifest.Blob, _ int, _ []byte, err error) (content.Piece, error) {
	return content.Piece{}, err
}

// prove sums and looks at the same time, where both have something to do.
func (p *pass) prove(cs []*chunk) {
	for _, c := range cs {
		if c.err = p.see(c.i, c.buf[:p.len(c.i)]); c.err != nil {
			return // the stream ends here
		}
	}
}

func (p *pass) see(i int, data []byte) error {
	if p.skips(i) {
		return nil
	}
	var serr, lerr error
	add := func() { serr = p.sum.add(i, data) }
	see := func() { _, lerr = p.look.Write(data) }
	switch {
	case p.look == nil || p.look.most >= 0 && p.look.n >= p.look.most:
		if p.sum != nil {
			add()
		}
	case p.sum == nil:
		see()
	default:
		parallel(add, see)
	}
	return errors.Join(serr, lerr)
}
