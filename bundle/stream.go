package bundle

import (
	"context"
	"runtime"
	"slices"
	"sync"

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
	ended bool  // rescued, or given up, while it was read
	err   error // the chunk is not what was signed, or can't be had
}

// source gives the proved bytes of chunks. read and rescue are called by one
// goroutine, so that one alone has the files; prove is called by another one.
type source interface {
	// read reads chunk i of b into buf.
	read(ctx context.Context, b manifest.Blob, i int, buf []byte) error
	// prove sets piece and err of chunks that were read, which are in order.
	prove(cs []*chunk)
	// rescue gets the proved bytes of a chunk in another way, after err of read or
	// of prove.
	rescue(ctx context.Context, b manifest.Blob, i int, buf []byte, err error) (content.Piece, error)
}

// stream reads blobs chunk by chunk and hands each chunk to each in order. The
// caller's goroutine reads, rescues and calls each, a few chunks at a time, while
// another one proves the chunks that were read before; nobody else reads. After a
// read error no more is read until that chunk is rescued. It holds four chunks at
// most. A chunk's bytes are valid until each returns; each's error ends the stream.
func stream(ctx context.Context, jobs []toRead, from source, each func(chunk) error) error {
	return streamIn(ctx, content.Buffers(streamed), jobs, from, each)
}

// streamed is how many buffers a stream needs: half are read and written while
// half are proved. More of them leave the CPU's cache.
const streamed = 4

// streamIn is stream for who has the buffers.
func streamIn(ctx context.Context, bufs [][]byte, jobs []toRead, from source, each func(chunk) error) error {
	m := mover{from: from, jobs: slices.Clone(jobs), free: slices.Clone(bufs), most: max(1, len(bufs)/2)}
	read, proved := make(chan []chunk, 1), make(chan []chunk, 1) // one batch is under way, so nobody waits to send
	var prover sync.WaitGroup
	prover.Go(func() {
		for cs := range read {
			var todo []*chunk
			for k := range cs {
				if !cs[k].ended {
					todo = append(todo, &cs[k])
				}
			}
			from.prove(todo)
			proved <- cs
		}
	})
	defer prover.Wait() // it has buffers
	defer close(read)
	for busy := false; ; {
		next, err := m.read(ctx)
		if err != nil {
			return err
		}
		var done []chunk
		if busy {
			done = <-proved
		}
		if busy = len(next) > 0; busy {
			read <- next
		}
		if err := m.hand(ctx, done, each); err != nil || !busy && len(done) == 0 {
			return err
		}
	}
}

// mover does all of a stream but the proving. Go's monitor takes the processor
// from a goroutine that seems to run for 10 ms, and counts one that goes from one
// system call to the next as such; so it gives way after each chunk.
type mover struct {
	from source
	jobs []toRead // the first one goes on at its from
	free [][]byte
	most int // chunks that are proved at a time
}

// read reads the next chunks into buffers that are free: none at the end.
func (m *mover) read(ctx context.Context) (out []chunk, err error) {
	for len(m.jobs) > 0 && len(m.free) > 0 && len(out) < m.most {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		j := &m.jobs[0]
		c := chunk{blob: j.blob, i: j.from, buf: m.free[len(m.free)-1]}
		if err := m.from.read(ctx, c.blob, c.i, c.buf); err != nil {
			c.piece, c.err = m.from.rescue(ctx, c.blob, c.i, c.buf, err)
			c.ended = true
		}
		runtime.Gosched() // see mover
		out, m.free = append(out, c), m.free[:len(m.free)-1]
		if j.from++; j.from >= chunkCount(j.blob) {
			m.jobs = m.jobs[1:]
		}
	}
	return out, nil
}

// hand gives chunks that were proved, or are rescued now, to each.
func (m *mover) hand(ctx context.Context, cs []chunk, each func(chunk) error) error {
	for _, c := range cs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if c.err != nil && !c.ended {
			c.piece, c.err = m.from.rescue(ctx, c.blob, c.i, c.buf, c.err)
		}
		if err := ctx.Err(); err != nil { // the rescue's error says less
			return err
		}
		if err := each(c); err != nil {
			return err
		}
		runtime.Gosched()
		m.free = append(m.free, c.buf)
	}
	return nil
}
