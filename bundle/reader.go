package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"filippo.io/age"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/reedsolomon"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// mediaFile is an open part.
type mediaFile interface {
	io.ReaderAt
	io.Closer
}

// openPart opens a part, which will be read once and in order.
func openPart(path string) (mediaFile, int64, error) {
	f, n, err := openFile(path)
	if err != nil {
		return nil, 0, err // not a nil *os.File in an interface
	}
	unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL) // advice: may fail
	return f, n, nil
}

// patience is how long a device may take to come back after a read error: a
// stick that was pulled out, a hub that resets. Four tries in three seconds.
func patience(try int) time.Duration {
	waits := []time.Duration{100 * time.Millisecond, 500 * time.Millisecond, 2500 * time.Millisecond}
	if try < len(waits) {
		return waits[try]
	}
	return -1
}

// readError says which stretch of a chunk can't be read.
type readError struct {
	span
	err error
}

func (e *readError) Error() string { return e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

// errLost says that a part isn't there.
var errLost = errors.New("the part is missing")

// reader reads chunks, one after the other. It holds the part open that it
// reads, and all of them once something had to be rebuilt.
type reader struct {
	m     *Media
	warn  func(error) // told of what was read again or rebuilt
	files map[int]mediaFile
	sizes map[int]int64
	views map[int]io.ReaderAt // payload of a part, decrypted
	coder reedsolomon.Encoder // nil until it is needed
	bufs  [][]byte
	last  int // the part that was read last
}

func (m *Media) reader(warn func(error)) *reader {
	if warn == nil {
		warn = func(error) {}
	}
	return &reader{m: m, warn: warn, files: map[int]mediaFile{}, sizes: map[int]int64{}, views: map[int]io.ReaderAt{}}
}

func (r *reader) close() {
	for i := range r.files {
		r.forget(i)
	}
}

// forget closes part i; what the kernel remembers of it may be as wrong as what
// came over the cable, and goes, too.
func (r *reader) forget(i int) {
	f, ok := r.files[i]
	if !ok {
		return
	}
	if f, ok := f.(*os.File); ok {
		unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // advice: may fail
	}
	f.Close()
	delete(r.files, i)
	delete(r.views, i)
}

// path and size of file i: the parts first, from 0, and then the parity parts.
func (m *Media) file(i int) (path string, size int64) {
	if n := len(m.parts); i >= n {
		return m.parity[i-n], m.release.Parity[i-n].Size
	}
	return m.parts[i], m.release.Parts[i].Size
}

// raw is a part as it lies on the media.
type raw struct {
	r *reader
	i int
}

// ReadAt reads from the media; what lies behind the end is a read error.
func (w raw) ReadAt(p []byte, off int64) (int, error) {
	f, ok := w.r.files[w.i]
	if !ok {
		path, want := w.r.m.file(w.i)
		if path == "" {
			return 0, errLost
		}
		f2, n, err := w.r.m.open(path)
		if err != nil {
			return 0, err
		}
		if n != want {
			f2.Close()
			return 0, fmt.Errorf("got %d bytes, want %d", n, want)
		}
		w.r.files[w.i], f = f2, f2
	}
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// payload returns the payload of part i, decrypted where it is encrypted, out
// of its bytes on the media.
func (r *reader) payload(i int, w io.ReaderAt) (io.ReaderAt, error) {
	p := r.m.release.Parts[i]
	if r.m.release.Encryption == "" {
		return w, nil
	}
	v, n, err := age.DecryptReaderAt(w, p.Size, r.m.ids...)
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	if n != p.Content {
		return nil, fmt.Errorf("decrypt: got %d bytes, want %d", n, p.Content)
	}
	return v, nil
}

// at reads the bytes of s.
func (r *reader) at(s span, p []byte) error {
	i := s.part - 1
	if r.last != i && r.coder == nil { // one part open at a time
		r.forget(r.last)
	}
	r.last = i
	v, ok := r.views[i]
	if !ok {
		var err error
		if v, err = r.payload(i, raw{r, i}); err != nil {
			return err
		}
		r.views[i] = v
	}
	return full(v, p, s.offset)
}

// full fills p; unlike io.ReaderAt it knows no EOF beside all bytes.
func full(v io.ReaderAt, p []byte, off int64) error {
	n, err := v.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// prove hashes data, which is to be chunk i of b, once, and compares the state
// behind it, or the digest at the end, with what was signed. Other bytes are an
// ErrTampered.
func prove(b manifest.Blob, i int, data []byte) (content.Piece, error) {
	from := content.StartState
	if i > 0 {
		from = b.States[i-1]
	}
	p, err := from.Piece(int64(i)*manifest.ChunkSize, data)
	if err != nil {
		return p, err
	}
	got, want := p.Digest().String(), b.Digest.String()
	if i < len(b.States) {
		s, err := p.State()
		if err != nil {
			return p, err
		}
		got, want = "the sha256 state "+s.String(), "the sha256 state "+b.States[i].String()
	}
	if got != want {
		return p, &manifest.TamperedError{What: "blob " + b.Digest.String(), Detail: fmt.Sprintf("got %s, want %s", got, want)}
	}
	return p, nil
}

// chunk reads and proves chunk i of b into buf. What can't be read is read
// again for some seconds, what is not what was signed once; then it is rebuilt
// from parity.
func (r *reader) chunk(ctx context.Context, b manifest.Blob, i int, buf []byte) (content.Piece, error) {
	_, n := b.Chunk(i)
	src, buf := b.Source(i), buf[:n]
	ss := spans(r.m.release, src)
	p, first := r.try(b, i, ss, buf)
	if first == nil {
		return p, nil
	}
	err := first
	for try := 0; !errors.Is(err, errLost) && r.again(ctx, err, try); try++ {
		for _, s := range ss {
			r.forget(s.part - 1)
		}
		if p, err = r.try(b, i, ss, buf); err == nil {
			r.warn(r.m.damage(b, fmt.Sprintf("%v; it could be read when it was read again", first), ss...))
			return p, nil
		}
	}
	if ctx.Err() != nil {
		return p, ctx.Err()
	}
	if len(r.m.release.Parity) > 0 {
		q, merr := r.mend(b, i, ss, buf)
		if merr == nil {
			r.warn(r.m.damage(b, fmt.Sprintf("%v; it was rebuilt from parity", err), ss...))
			return q, nil
		}
		err = fmt.Errorf("%w; %w", err, merr)
	}
	return p, r.m.unusable(b, ss, n, err)
}

// unusable describes a chunk that could be had in no way.
func (m *Media) unusable(b manifest.Blob, ss []span, n int64, err error) error {
	if at := (*readError)(nil); errors.As(err, &at) {
		return m.damage(b, err.Error(), at.span)
	}
	var bad *manifest.TamperedError
	if !errors.As(err, &bad) {
		return m.damage(b, err.Error(), ss...)
	}
	where := ""
	if k := len(ss); k > 1 {
		where = " to " + manifest.PartName(ss[k-1].part)
	}
	return m.damage(b, fmt.Sprintf("%d bytes from here%s: %s", n, where, bad.Detail), ss...)
}

// again says whether another try makes sense, and waits before it.
func (r *reader) again(ctx context.Context, err error, try int) bool {
	if errors.Is(err, manifest.ErrTampered) {
		return try == 0 && ctx.Err() == nil
	}
	wait := r.m.pause(try)
	if wait < 0 {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(wait):
		return true
	}
}

func (r *reader) try(b manifest.Blob, i int, ss []span, buf []byte) (content.Piece, error) {
	rest := buf
	for _, s := range ss {
		if err := r.at(s, rest[:s.n]); err != nil {
			return content.Piece{}, &readError{s, err}
		}
		rest = rest[s.n:]
	}
	return prove(b, i, buf)
}

// damage describes bytes of b, over one or several spans, that are not what
// was signed. Any of the parts may be the damaged one, so all are named.
func (m *Media) damage(b manifest.Blob, detail string, ss ...span) error {
	if len(ss) == 0 { // an empty blob
		ss = []span{{part: max(1, b.Part), offset: b.Offset}}
	}
	var paths []string
	for _, s := range ss {
		p, _ := m.file(s.part - 1)
		paths = append(paths, or(p, manifest.PartName(s.part)))
	}
	item := itemOf(m.release, m.readManifest, b.Digest)
	return &manifest.TamperedError{
		What: fmt.Sprintf("blob %s of item %s", b.Digest, item), Part: ss[0].part, Offset: ss[0].offset,
		Detail: detail + "; copy " + strings.Join(paths, " and ") + " again from the source, or use another copy of the media",
	}
}

// readManifest reads a small blob from the media, verified.
func (m *Media) readManifest(d v1.Descriptor) ([]byte, error) {
	b, ok := m.blobs[d.Digest]
	if !ok || b.Size > maxManifest || b.OnMedia() != b.Size {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, fs.ErrNotExist)
	}
	r := m.reader(nil)
	defer r.close()
	buf := make([]byte, b.Size)
	if _, err := r.try(b, 0, spans(m.release, b.Source(0)), buf); err != nil {
		return nil, err
	}
	return readManifest(bytes.NewReader(buf), d)
}

// span is a stretch of a part's payload.
type span struct {
	part   int // from 1
	offset int64
	n      int64
}

// spans returns the stretches of the parts that hold s, none when it is empty.
// Its Offset may lie behind the end of its part.
func spans(r manifest.Release, s manifest.Segment) (out []span) {
	p, at, n := s.Part, s.Offset, s.Length
	for n > 0 {
		size := r.Parts[p-1].Payload()
		if at >= size {
			p, at = p+1, at-size
			continue
		}
		k := min(n, size-at)
		out = append(out, span{p, at, k})
		n, at = n-k, at+k
	}
	return out
}
