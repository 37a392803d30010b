package bundle

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	"filippo.io/age"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// parallel runs the functions at the same time and waits for all.
func parallel(fs ...func()) {
	var wg sync.WaitGroup
	for _, f := range fs {
		wg.Go(f)
	}
	wg.Wait()
}

// settle gives every stretch that lies on the media its place, and returns the
// payload of each part.
func (b *build) settle(blobs []manifest.Blob) (lens []int64, err error) {
	var sizes []int64
	var at []*manifest.Place
	var total int64
	for _, x := range blobs {
		for _, s := range x.Sources() {
			if s.OnMedia() {
				sizes, total = append(sizes, s.Length), total+s.Length
			}
		}
	}
	per, err := b.payloadPer()
	if err != nil {
		return nil, err
	}
	lens = manifest.SplitParts(total, per)
	places, err := manifest.Places(sizes, lens)
	if err != nil {
		return nil, err
	}
	for i := range places {
		at = append(at, &places[i])
	}
	for i := range blobs {
		x := &blobs[i]
		if !x.Base && len(x.Segments) == 0 {
			x.Part, x.Offset, at = at[0].Part, at[0].Offset, at[1:]
		}
		for k := range x.Segments {
			if s := &x.Segments[k]; s.OnMedia() {
				s.Part, s.Offset, at = at[0].Part, at[0].Offset, at[1:]
			}
		}
	}
	return lens, nil
}

// writeParts writes what lies on the media, one stretch after the other, and
// returns the parts. Sums that blobs lack are filled in; bytes are checked
// against the digests on the way.
func (b *build) writeParts(ctx context.Context, w *partWriter, blobs []manifest.Blob, item func(int) string) ([]manifest.Part, error) {
	var total int64
	for _, n := range w.lens {
		total += n
	}
	task := b.Progress.Start("write "+topDir, total)
	var err error
	for i := range blobs {
		if e := b.copyBlob(ctx, w, &blobs[i], task); e != nil {
			err = fmt.Errorf("item %s: %w", item(i), e)
			break
		}
	}
	err = errors.Join(err, w.close())
	task.Done(err)
	return w.parts, err
}

// copyBlob appends those chunks of a blob that go onto the media.
func (b *build) copyBlob(ctx context.Context, w *partWriter, x *manifest.Blob, task Task) error {
	if x.OnMedia() == 0 {
		return nil
	}
	f, err := b.pool.open(x.Digest)
	if err != nil {
		return err
	}
	defer f.Close()
	raw, err := b.pool.same(x.Digest, f)
	if err != nil {
		return changed(f.Name(), *x, err)
	}
	s := newSummer(x)
	buf := make([]byte, min(x.Size, manifest.ChunkSize))
	for i := range chunkCount(*x) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if s.known && !x.Source(i).OnMedia() {
			continue
		}
		p := buf[:min(x.Size-int64(i)*manifest.ChunkSize, manifest.ChunkSize)]
		if err := readChunk(f, p, int64(i)*manifest.ChunkSize); err != nil {
			return changed(f.Name(), *x, err)
		}
		var serr, werr error
		if raw && s.known {
			werr = w.write(p)
		} else {
			parallel(func() { serr = s.add(i, p) }, func() { werr = w.write(p) })
		}
		if serr != nil {
			return changed(f.Name(), *x, serr)
		} else if werr != nil {
			return werr
		}
		task.Add(int64(len(p)))
	}
	return b.finishBlob(f, s, x)
}

// finishBlob checks the end, and keeps sums that were computed.
func (b *build) finishBlob(f *os.File, s *summer, x *manifest.Blob) error {
	if err := s.done(); err != nil {
		return changed(f.Name(), *x, err)
	}
	if _, err := b.pool.same(x.Digest, f); err != nil {
		return changed(f.Name(), *x, err)
	}
	if n, _ := f.ReadAt(make([]byte, 1), x.Size); n > 0 {
		return changed(f.Name(), *x, errors.New("it has grown"))
	}
	if s.known {
		return nil
	}
	return b.cache.putSums(*x)
}

func readChunk(f io.ReaderAt, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func changed(path string, x manifest.Blob, err error) error {
	return fmt.Errorf("%s is not the blob %s of %d bytes that was resolved: %w: it was changed meanwhile or is damaged; build again", path, x.Digest, x.Size, err)
}

// summer computes the sums of a blob's chunks, or holds the chunks against the
// sums that are known.
type summer struct {
	x     *manifest.Blob
	known bool
	at    content.State
	last  content.Piece
	marks []manifest.Mark
	mids  []content.State
}

func newSummer(x *manifest.Blob) *summer {
	return &summer{x: x, known: x.Size <= manifest.ChunkSize || len(x.Chunks) > 0, at: content.StartState}
}

func (s *summer) add(i int, p []byte) (err error) {
	if s.known {
		_, err = s.x.Piece(i, p)
		return err
	}
	if s.last, err = s.at.Piece(int64(i)*manifest.ChunkSize, p); err != nil {
		return err
	}
	s.marks = append(s.marks, manifest.MarkOf(p))
	if int64(i+1)*manifest.ChunkSize < s.x.Size {
		if s.at, err = s.last.State(); err == nil {
			s.mids = append(s.mids, s.at)
		}
	}
	return err
}

// done sets the sums that were computed, when the digest is the right one.
func (s *summer) done() error {
	if s.known {
		return nil
	}
	if got := s.last.Digest(); got != s.x.Digest {
		return fmt.Errorf("its digest is %s", got)
	}
	s.x.Chunks, s.x.States = s.marks, s.mids
	return nil
}

// partWriter fills one part after the other, each encrypted when there are
// recipients.
type partWriter struct {
	path       func(part int) string // of part n, from 1
	lens       []int64               // payload, planned
	recipients []age.Recipient
	parts      []manifest.Part

	f *partFile // the current part, nil between parts
	n int64     // payload in it
}

func (w *partWriter) write(p []byte) error {
	for len(p) > 0 {
		if w.f == nil {
			f, err := createPart(w.path(len(w.parts)+1), w.recipients)
			if err != nil {
				return err
			}
			w.f, w.n = f, 0
		}
		k := int(min(int64(len(p)), w.lens[len(w.parts)]-w.n))
		if _, err := w.f.in.Write(p[:k]); err != nil {
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

// finish flushes the current part.
func (w *partWriter) finish() error {
	f := w.f
	w.f = nil
	p, err := f.finish(manifest.PartName(len(w.parts) + 1))
	if len(w.recipients) > 0 {
		p.Content = w.n
	}
	w.parts = append(w.parts, p)
	return err
}

func (w *partWriter) close() error {
	if w.f == nil {
		return nil
	}
	f := w.f
	w.f = nil
	return f.f.Close()
}

// partFile is one file under parts/ or parity/.
type partFile struct {
	f   *os.File
	n   int64
	sum hash.Hash      // nil: it needs none
	in  io.WriteCloser // where the payload goes in: the file, or what encrypts into it
}

func createPart(path string, rs []age.Recipient) (*partFile, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	p := &partFile{f: f}
	p.in = p
	if len(rs) > 0 {
		if p.in, err = age.Encrypt(p, rs...); err != nil {
			return nil, errors.Join(fmt.Errorf("encrypt: %w", err), f.Close())
		}
	}
	return p, nil
}

// Write adds bytes as they are to lie on the media.
func (p *partFile) Write(b []byte) (n int, err error) {
	if n, err = p.f.Write(b); p.sum != nil {
		p.sum.Write(b[:n])
	}
	p.n += int64(n)
	return n, err
}

// Close does nothing: see finish.
func (p *partFile) Close() error { return nil }

// finish ends the encryption and flushes the file.
func (p *partFile) finish(name string) (manifest.Part, error) {
	err := p.in.Close()
	if err == nil {
		err = p.f.Sync()
	}
	err = errors.Join(err, p.f.Close())
	out := manifest.Part{Name: name, Size: p.n}
	if p.sum != nil {
		out.SHA256 = manifest.Sum(p.sum.Sum(nil))
	}
	return out, err
}

// chunkCount counts chunks also where the sums are not known yet; an empty blob
// has none.
func chunkCount(x manifest.Blob) int {
	return int((x.Size + manifest.ChunkSize - 1) / manifest.ChunkSize)
}
