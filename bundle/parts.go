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
	v1 "github.com/google/go-containerregistry/pkg/v1"

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
	var total int64 // at most manifest.MaxTotal: see plan
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
	if n := total / per; n > manifest.MaxParts {
		return nil, fmt.Errorf("bundle: %s in parts of %s: more than %d parts: make the parts larger (--part-size), or several bundles", Size(total), Size(per), manifest.MaxParts)
	}
	at, lens := manifest.Lay(sizes, per)
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

// payload is where the payload of a bundle is written to.
type payload interface {
	// write puts p where ss says.
	write(ss []span, p []byte) error
	// finish makes everything durable, and returns the parts.
	finish() ([]manifest.Part, error)
	close() error
}

// writeParts writes what lies on the media, one stretch after the other, and
// returns the parts. Sums that blobs lack are filled in; bytes are checked
// against the digests on the way.
func (b *build) writeParts(ctx context.Context, w payload, lens []int64, blobs []manifest.Blob, item func(int) string) (parts []manifest.Part, err error) {
	var total int64
	for _, n := range lens {
		total += n
	}
	task := b.Progress.Start("write "+topDir, total)
	for i := range blobs {
		x := &blobs[i]
		if b.early.has(x) {
			task.Add(x.Size)
			continue
		}
		put := func(k int, p []byte) error {
			return w.write(spansIn(func(p int) int64 { return lens[p-1] }, x.Source(k)), p)
		}
		if e := b.copyBlob(ctx, put, x, task); e != nil {
			err = fmt.Errorf("item %s: %w", item(i), e)
			break
		}
	}
	if err == nil {
		parts, err = w.finish()
	}
	err = errors.Join(err, w.close())
	task.Done(err)
	return parts, err
}

// copyBlob hands those chunks of a blob that go onto the media to put.
func (b *build) copyBlob(ctx context.Context, put func(int, []byte) error, x *manifest.Blob, task Task) error {
	if x.OnMedia() == 0 {
		return nil
	}
	in, err := b.pool.source(x.Digest)
	if err != nil {
		return err
	}
	defer in.Close()
	raw, err := b.pool.same(x.Digest, in.f)
	if err != nil {
		return changed(in.name, *x, err)
	}
	s := newSummer(x)
	var werr error
	p := pass{x: x, in: in, put: func(i int, p []byte) error { werr = put(i, p); return werr }}
	if !raw || !s.known {
		p.sum = s
	}
	if s.known {
		p.skip = func(i int) bool { return !x.Source(i).OnMedia() }
	}
	switch err := p.run(ctx, task); {
	case werr != nil || ctx.Err() != nil:
		return errors.Join(werr, ctx.Err())
	case err != nil:
		return changed(in.name, *x, err)
	}
	return b.finishBlob(in, s, x)
}

// finishBlob checks the end, and keeps sums that were computed.
func (b *build) finishBlob(in *pooled, s *summer, x *manifest.Blob) error {
	if err := s.done(); err != nil {
		return changed(in.name, *x, err)
	}
	if _, err := b.pool.same(x.Digest, in.f); err != nil {
		return changed(in.name, *x, err)
	}
	if n, _ := in.ReadAt(make([]byte, 1), x.Size); in.f != nil && n > 0 {
		return changed(in.name, *x, errors.New("it has grown"))
	}
	if s.known {
		return nil
	}
	return b.cache.putSums(*x)
}

func changed(path string, x manifest.Blob, err error) error {
	return fmt.Errorf("%s is not the blob %s of %d bytes that was resolved: %w: it was changed meanwhile or is damaged; build again", path, x.Digest, x.Size, err)
}

// summer computes the sums of a blob's chunks, or holds the chunks against the
// sums that are known. Of a blob without a digest it learns that, too.
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

// errDigest says that a blob has another digest than it should.
var errDigest = errors.New("its digest is")

// done sets the sums that were computed, when the digest is the right one.
func (s *summer) done() error {
	if s.known {
		return nil
	}
	got := s.last.Digest()
	if s.x.Digest == (v1.Hash{}) {
		s.x.Digest = got
	}
	if got != s.x.Digest {
		return fmt.Errorf("%w %s", errDigest, got)
	}
	if s.x.Size > manifest.ChunkSize {
		s.x.Chunks, s.x.States = s.marks, s.mids
	}
	return nil
}

// rawParts are parts whose bytes are the payload. Stretches are written in any
// order, and by several goroutines.
type rawParts struct {
	path func(part int) string // of part n, from 1
	lens []int64

	mu    sync.Mutex
	files map[int]*content.BulkFile
	order []int // of files, the oldest first
}

// openParts bounds how many parts are open at the same time.
const openParts = 64

func (w *rawParts) write(ss []span, p []byte) error {
	for _, s := range ss {
		f, err := w.file(s.part)
		if err != nil {
			return err
		}
		if _, err := f.WriteAt(p[:s.n], s.offset); err != nil {
			return err
		}
		p = p[s.n:]
	}
	return nil
}

// file opens part n.
func (w *rawParts) file(n int) (*content.BulkFile, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f, ok := w.files[n]; ok {
		return f, nil
	}
	if len(w.order) == openParts {
		if err := w.end(w.order[0]); err != nil {
			return nil, err
		}
		w.order = w.order[1:]
	}
	f, err := content.CreateBulk(w.path(n), 0o644)
	if err != nil {
		return nil, err
	}
	if w.files == nil {
		w.files = map[int]*content.BulkFile{}
	}
	w.files[n], w.order = f, append(w.order, n)
	return f, nil
}

// end makes part n durable and closes it.
func (w *rawParts) end(n int) error {
	f := w.files[n]
	delete(w.files, n)
	return errors.Join(f.Sync(), f.Close())
}

// flush makes what was written durable.
func (w *rawParts) flush() (err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.files {
		err = errors.Join(err, f.Sync())
	}
	return err
}

func (w *rawParts) finish() (out []manifest.Part, err error) {
	if err := w.flush(); err != nil {
		return nil, err
	}
	for i, want := range w.lens {
		fi, err := os.Lstat(w.path(i + 1))
		if err != nil {
			return nil, err
		}
		if fi.Size() != want {
			return nil, fmt.Errorf("%s has %d bytes, want %d", w.path(i+1), fi.Size(), want) // a fault of ours
		}
		out = append(out, manifest.Part{Name: manifest.PartName(i + 1), Size: want})
	}
	return out, nil
}

func (w *rawParts) close() (err error) {
	for _, f := range w.files {
		err = errors.Join(err, f.Close())
	}
	w.files = nil
	return err
}

// partWriter fills one encrypted part after the other; what lies between the
// stretches is zero.
type partWriter struct {
	path       func(part int) string // of part n, from 1
	lens       []int64               // payload, planned
	recipients []age.Recipient
	parts      []manifest.Part

	f *partFile // the current part, nil between parts
	n int64     // payload in it
}

func (w *partWriter) write(ss []span, p []byte) error {
	for _, s := range ss {
		for len(w.parts)+1 < s.part || w.n < s.offset {
			gap := w.lens[len(w.parts)] - w.n // of a part that ends with one
			if len(w.parts)+1 == s.part {
				gap = s.offset - w.n
			}
			if err := w.add(make([]byte, gap)); err != nil {
				return err
			}
		}
		if err := w.add(p[:s.n]); err != nil {
			return err
		}
		p = p[s.n:]
	}
	return nil
}

func (w *partWriter) add(p []byte) error {
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
			if err := w.end(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *partWriter) finish() ([]manifest.Part, error) { return w.parts, nil }

// end flushes the current part.
func (w *partWriter) end() error {
	f := w.f
	w.f = nil
	p, err := f.finish(manifest.PartName(len(w.parts) + 1))
	p.Content, w.n = w.n, 0
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
