package bundle

import (
	"context"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// toRead is a blob to be read, from one of its chunks on.
type toRead struct {
	blob manifest.Blob
	from int
}

// chunk is a piece of a blob on its way through a stream.
type chunk struct {
	blob  manifest.Blob
	i     int
	piece content.Piece
	buf   []byte
	err   error // the chunk is not what was signed, or can't be had
}

// source gives the proved bytes of chunk i of b, in buf.
type source interface {
	// begin may read chunk i of b into buf, beside the caller: chunk will be asked
	// for it next, or after the one that was begun before.
	begin(b manifest.Blob, i int, buf []byte)
	chunk(ctx context.Context, b manifest.Blob, i int, buf []byte) (content.Piece, error)
}

// stream reads blobs chunk by chunk and hands each chunk to each in order; the
// next one is proved meanwhile, and the one after that is read. It holds four
// chunks at most. A chunk's bytes are valid until each returns; each's error ends
// the stream.
func stream(ctx context.Context, jobs []toRead, from source, each func(chunk) error) error {
	return streamIn(ctx, content.Buffers(streamed), jobs, from, each)
}

// streamed is how many buffers a stream needs.
const streamed = 4

// streamIn is stream for who has the buffers.
func streamIn(ctx context.Context, bufs [][]byte, jobs []toRead, from source, each func(chunk) error) error {
	ctx, cancel := context.WithCancel(ctx)
	p := producer{from: from, free: make(chan []byte, len(bufs)), full: make(chan chunk, len(bufs))}
	for _, b := range bufs {
		p.free <- b
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(p.full)
		p.run(ctx, jobs)
	}()
	var err error
	for c := range p.full {
		if err = ctx.Err(); err != nil { // not the chunks that were read ahead either
			break
		}
		if err = each(c); err != nil {
			break
		}
		p.free <- c.buf
	}
	if err == nil {
		err = ctx.Err()
	}
	cancel()
	<-done
	return err
}

// producer reads and proves.
type producer struct {
	from source
	free chan []byte
	full chan chunk
	next *chunk // begun, and not asked for yet
}

func (p *producer) run(ctx context.Context, jobs []toRead) {
	for _, j := range jobs {
		for i := j.from; i < max(1, chunkCount(j.blob)); i++ {
			if !p.begin(ctx, &chunk{blob: j.blob, i: i}) {
				return
			}
		}
	}
	p.begin(ctx, nil)
}

// begin takes a buffer for c and begins it, and then ends the one before; false
// when the context has ended.
func (p *producer) begin(ctx context.Context, c *chunk) bool {
	if c != nil {
		select {
		case c.buf = <-p.free:
		case <-ctx.Done():
			return false
		}
		p.from.begin(c.blob, c.i, c.buf)
	}
	was := p.next
	if p.next = c; was == nil {
		return true
	}
	if ctx.Err() != nil { // select is free to choose when both are ready
		return false
	}
	was.piece, was.err = p.from.chunk(ctx, was.blob, was.i, was.buf)
	p.full <- *was // never blocks: as many places as buffers
	return true
}
