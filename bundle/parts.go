package bundle

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/internal/durable"
)

// parallel runs the functions at the same time and waits for all.
func parallel(fs ...func()) {
	var wg sync.WaitGroup
	for _, f := range fs {
		wg.Go(f)
	}
	wg.Wait()
}

// writeParts writes the blobs one after the other and returns the index and
// the parts. Blobs are checked against their digests on the way.
func (b *build) writeParts(ctx context.Context, dir string, blobs []entry) (manifest.Index, []manifest.Part, error) {
	sizes := make([]int64, len(blobs))
	var total int64
	for i, e := range blobs {
		sizes[i] = e.size
		total += e.size
	}
	w := &partWriter{dir: dir, lens: manifest.SplitParts(total, b.PartSize)}
	at, err := manifest.Places(sizes, w.lens)
	if err != nil {
		return manifest.Index{}, nil, err
	}
	index := manifest.Index{Format: manifest.IndexFormat}
	task := b.Progress.Start("write "+topDir, total)
	for i, e := range blobs {
		chunks, states, cerr := b.copyBlob(ctx, w, e, task)
		if cerr != nil {
			err = fmt.Errorf("item %s: %w", e.item, cerr)
			break
		}
		index.Blobs = append(index.Blobs, manifest.Blob{Digest: e.digest, Size: e.size, Part: at[i].Part, Offset: at[i].Offset, Chunks: chunks, States: states})
	}
	err = errors.Join(err, w.close())
	if err == nil {
		err = durable.SyncDir(dir)
	}
	task.Done(err)
	return index, w.parts, err
}

// copyBlob appends one blob and returns its chunk sums, and the states between
// its chunks; none for a blob of one chunk.
func (b *build) copyBlob(ctx context.Context, w *partWriter, e entry, task Task) (sums []manifest.Sum, states []content.State, err error) {
	f, err := b.pool.open(e.digest)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	at, last := content.StartState, content.Piece{}
	buf := make([]byte, min(e.size, manifest.ChunkSize))
	for left := e.size; left > 0; {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		p := buf[:min(left, manifest.ChunkSize)]
		if _, err := io.ReadFull(f, p); err != nil {
			return nil, nil, changed(f.Name(), e, err)
		}
		var sum manifest.Sum
		var perr error
		parallel(func() { sum = sha256.Sum256(p) }, func() { last, perr = at.Piece(e.size-left, p) }, func() { err = w.write(p) })
		if err := errors.Join(err, perr); err != nil {
			return nil, nil, err
		}
		if left > manifest.ChunkSize {
			if at, err = last.State(); err != nil {
				return nil, nil, err
			}
			states = append(states, at)
		}
		sums, left = append(sums, sum), left-int64(len(p))
		task.Add(int64(len(p)))
	}
	if e.size > 0 && last.Digest() != e.digest {
		return nil, nil, changed(f.Name(), e, fmt.Errorf("its digest is %s", last.Digest()))
	}
	if n, _ := f.Read(make([]byte, 1)); n > 0 {
		return nil, nil, changed(f.Name(), e, errors.New("it has grown"))
	}
	if len(sums) < 2 {
		return nil, nil, nil
	}
	return sums, states, nil
}

func changed(path string, e entry, err error) error {
	return fmt.Errorf("%s is not the blob %s of %d bytes that was resolved: %w: it was changed meanwhile or is damaged; build again", path, e.digest, e.size, err)
}

// partWriter fills one part after the other.
type partWriter struct {
	dir   string
	lens  []int64 // planned
	parts []manifest.Part

	f   *os.File // the current part, nil between parts
	n   int64    // bytes in it
	sum hash.Hash
}

func (w *partWriter) write(p []byte) error {
	for len(p) > 0 {
		if w.f == nil {
			if err := w.next(); err != nil {
				return err
			}
		}
		k := int(min(int64(len(p)), w.lens[len(w.parts)]-w.n))
		var err error
		parallel(func() { _, err = w.f.Write(p[:k]) }, func() { w.sum.Write(p[:k]) })
		if err != nil {
			return err
		}
		w.n, p = w.n+int64(k), p[k:]
		if w.n == w.lens[len(w.parts)] {
			if err := w.finish(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *partWriter) next() (err error) {
	w.n, w.sum = 0, sha256.New()
	name := filepath.Join(w.dir, manifest.PartName(len(w.parts)+1))
	w.f, err = os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	return err
}

// finish flushes the current part.
func (w *partWriter) finish() error {
	w.parts = append(w.parts, manifest.Part{Name: manifest.PartName(len(w.parts) + 1), Size: w.n, SHA256: manifest.Sum(w.sum.Sum(nil))})
	err := w.f.Sync()
	return errors.Join(err, w.close())
}

func (w *partWriter) close() error {
	if w.f == nil {
		return nil
	}
	f := w.f
	w.f = nil
	return f.Close()
}
