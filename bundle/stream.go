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
type source func(ctx context.Context, b manifest.Blob, i int, buf []byte) (content.Piece, error)

// stream reads blobs chunk by chunk and hands each chunk to each in order, the
// next one being read and proved meanwhile. It holds three chunks at most. A
// chunk's bytes are valid until each returns; each's error ends the stream.
func stream(ctx context.Context, jobs []toRead, get source, each func(chunk) error) error {
	ctx, cancel := context.WithCancel(ctx)
	free, full := make(chan []byte, 3), make(chan chunk, 3)
	for range cap(free) {
		free <- make([]byte, manifest.ChunkSize)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(full)
		produce(ctx, jobs, get, free, full)
	}()
	var err error
	for c := range full {
		if err = ctx.Err(); err != nil { // not the chunks that were read ahead either
			break
		}
		if err = each(c); err != nil {
			break
		}
		free <- c.buf
	}
	if err == nil {
		err = ctx.Err()
	}
	cancel()
	<-done
	return err
}

func produce(ctx context.Context, jobs []toRead, get source, free <-chan []byte, full chan<- chunk) {
	for _, j := range jobs {
		for i := j.from; i < j.blob.Len(); i++ {
			var buf []byte
			select {
			case buf = <-free:
			case <-ctx.Done():
				return
			}
			if ctx.Err() != nil { // select is free to choose when both are ready
				return
			}
			p, err := get(ctx, j.blob, i, buf)
			full <- chunk{j.blob, i, p, buf, err} // never blocks: as many places as buffers
		}
	}
}
