package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/reedsolomon"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// mediaFile is an open part.
type mediaFile interface {
	io.ReaderAt
	io.Closer
}

// openPart opens a part, which will be read once and in order: a regular file,
// and nothing that a hostile stick may have in its place.
func openPart(path string) (mediaFile, int64, error) {
	f, err := content.OpenBulk(path)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is a %s, want a regular file", path, describeMode(fi.Mode()))
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
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
	views map[int]view
	coder reedsolomon.Encoder // nil until it is needed
	bufs  [][]byte

	failed bool // some part could not be read, since mend began
}

// view is the payload of an encrypted part, decrypted, and read ahead.
type view struct {
	io.ReaderAt
	ahead *content.Ahead
}

func (m *Media) reader(warn func(error)) *reader {
	if warn == nil {
		warn = func(error) {}
	}
	return &reader{m: m, warn: warn, files: map[int]mediaFile{}, views: map[int]view{}}
}

func (r *reader) close() {
	for i := range r.files {
		r.forget(i)
	}
}

// forget closes part i; what the kernel remembers of it may be as wrong as what
// came over the cable, and goes, too.
func (r *reader) forget(i int) {
	if v, ok := r.views[i]; ok {
		v.ahead.Close() // it reads the file
		delete(r.views, i)
	}
	f, ok := r.files[i]
	if !ok {
		return
	}
	if f, ok := f.(interface{ Forget() }); ok {
		f.Forget()
	}
	f.Close()
	delete(r.files, i)
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
	f, err := w.r.open(w.i)
	if err != nil {
		w.r.failed = true
		return 0, err
	}
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	w.r.failed = true
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// open opens file i, if it isn't.
func (r *reader) open(i int) (mediaFile, error) {
	if f, ok := r.files[i]; ok {
		return f, nil
	}
	path, want := r.m.file(i)
	if path == "" {
		return nil, errLost
	}
	f, n, err := r.m.open(path)
	if err != nil {
		return nil, err
	}
	if n != want {
		f.Close()
		return nil, fmt.Errorf("got %d bytes, want %d", n, want)
	}
	r.files[i] = f
	return f, nil
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

// read reads chunk i of b.
func (r *reader) read(_ context.Context, b manifest.Blob, i int, buf []byte) error {
	_, n := b.Chunk(i)
	ss := spans(r.m.release, b.Source(i))
	r.turn(ss)
	return gather(ss, buf[:n], func(k int, p []byte) error { return r.at(ss[k], p) })
}

// turn closes the parts in which ss do not lie: but for the rebuilding no others
// stay open.
func (r *reader) turn(ss []span) {
	for i := range r.files {
		if r.coder == nil && !slices.ContainsFunc(ss, func(s span) bool { return s.part-1 == i }) {
			r.forget(i)
		}
	}
}

// at reads the bytes of s.
func (r *reader) at(s span, p []byte) error {
	i := s.part - 1
	f, err := r.open(i)
	if err != nil {
		return err
	}
	if r.m.release.Encryption == "" {
		return full(f, p, s.offset)
	}
	v, ok := r.views[i]
	if !ok {
		v.ahead = content.NewAhead(f, r.m.release.Parts[i].Size)
		if v.ReaderAt, err = r.payload(i, v.ahead); err != nil {
			v.ahead.Close()
			return err
		}
		r.views[i] = v
	}
	return full(v, p, s.offset)
}

// afresh reads the bytes of ss and nothing around them: after an error.
func (r *reader) afresh(ss []span) func(k int, p []byte) error {
	return func(k int, p []byte) error {
		s := ss[k]
		r.forget(s.part - 1)
		v, err := r.payload(s.part-1, raw{r, s.part - 1})
		if err != nil {
			return err
		}
		return full(v, p, s.offset)
	}
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
	p, err := stretch(b, i, data).Piece()
	return p, hold(p, err, b, i)
}

// stretch is what is hashed to prove chunk i of b.
func stretch(b manifest.Blob, i int, data []byte) content.Stretch {
	x := content.Stretch{From: content.StartState, Off: int64(i) * manifest.ChunkSize, Data: data}
	if i > 0 {
		x.From = b.States[i-1]
	}
	return x
}

// hold compares what hashing chunk i of b gave with what was signed.
func hold(p content.Piece, err error, b manifest.Blob, i int) error {
	if err != nil {
		return err
	}
	got, want := p.Digest().String(), b.Digest.String()
	if i < len(b.States) {
		s, err := p.State()
		if err != nil {
			return err
		}
		got, want = "the sha256 state "+s.String(), "the sha256 state "+b.States[i].String()
	}
	if got != want {
		return &manifest.TamperedError{What: "blob " + b.Digest.String(), Detail: fmt.Sprintf("got %s, want %s", got, want)}
	}
	return nil
}

// prove proves chunks, two at a time.
func (r *reader) prove(cs []*chunk) {
	for len(cs) > 1 {
		a, b := cs[0], cs[1]
		var err error
		a.piece, b.piece, err = content.Pieces(stretch(a.blob, a.i, a.data()), stretch(b.blob, b.i, b.data()))
		a.err, b.err = hold(a.piece, err, a.blob, a.i), hold(b.piece, err, b.blob, b.i)
		cs = cs[2:]
	}
	for _, c := range cs {
		c.piece, c.err = prove(c.blob, c.i, c.data())
	}
}

// data are the bytes that were read.
func (c *chunk) data() []byte {
	_, n := c.blob.Chunk(c.i)
	return c.buf[:n]
}

// chunk is read, prove and, if need be, rescue, for who wants one chunk.
func (r *reader) chunk(ctx context.Context, b manifest.Blob, i int, buf []byte) (p content.Piece, err error) {
	if err = r.read(ctx, b, i, buf); err == nil {
		_, n := b.Chunk(i)
		p, err = prove(b, i, buf[:n])
	}
	if err != nil {
		return r.rescue(ctx, b, i, buf, err)
	}
	return p, nil
}

// rescue gets a chunk after an error. What can't be read is read again for some
// seconds, what is not what was signed once; then it is rebuilt from parity.
func (r *reader) rescue(ctx context.Context, b manifest.Blob, i int, buf []byte, first error) (p content.Piece, err error) {
	_, n := b.Chunk(i)
	buf = buf[:n]
	ss := spans(r.m.release, b.Source(i))
	err = first
	for try := 0; !errors.Is(err, errLost) && r.again(ctx, err, try); try++ {
		if p, err = provedIf(gather(ss, buf, r.afresh(ss)), b, i, buf); err == nil {
			r.warn(r.m.damage(ctx, b, fmt.Sprintf("%v; it could be read when it was read again", first), ss...))
			return p, nil
		}
	}
	if ctx.Err() != nil {
		return p, ctx.Err()
	}
	if len(r.m.release.Parity) > 0 {
		q, merr := r.mend(ctx, b, i, ss, buf)
		if ctx.Err() != nil {
			return q, ctx.Err()
		}
		if merr == nil {
			r.warn(r.m.damage(ctx, b, fmt.Sprintf("%v; it was rebuilt from parity", err), ss...))
			return q, nil
		}
		err = fmt.Errorf("%w; %w", err, merr)
	}
	return p, r.m.unusable(ctx, b, ss, n, err)
}

// unusable describes a chunk that could be had in no way.
func (m *Media) unusable(ctx context.Context, b manifest.Blob, ss []span, n int64, err error) error {
	if at := (*readError)(nil); errors.As(err, &at) {
		return m.damage(ctx, b, err.Error(), at.span)
	}
	var bad *manifest.TamperedError
	if !errors.As(err, &bad) {
		return m.damage(ctx, b, err.Error(), ss...)
	}
	where := ""
	if k := len(ss); k > 1 {
		where = " to " + manifest.PartName(ss[k-1].part)
	}
	return m.damage(ctx, b, fmt.Sprintf("%d bytes from here%s: %s", n, where, bad.Detail), ss...)
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

// gather fills buf with the spans, each read by read.
func gather(ss []span, buf []byte, read func(k int, p []byte) error) error {
	for k, s := range ss {
		if err := read(k, buf[:s.n]); err != nil {
			return &readError{s, err}
		}
		buf = buf[s.n:]
	}
	return nil
}

// provedIf proves what was read without an error.
func provedIf(err error, b manifest.Blob, i int, buf []byte) (content.Piece, error) {
	if err != nil {
		return content.Piece{}, err
	}
	return prove(b, i, buf)
}

// damage describes bytes of b, over one or several spans, that are not what
// was signed. Any of the parts may be the damaged one, so all are named.
func (m *Media) damage(ctx context.Context, b manifest.Blob, detail string, ss ...span) error {
	if len(ss) == 0 { // an empty blob
		ss = []span{{part: max(1, b.Part), offset: b.Offset}}
	}
	var paths []string
	for _, s := range ss {
		p, _ := m.file(s.part - 1)
		paths = append(paths, or(p, manifest.PartName(s.part)))
	}
	return &manifest.TamperedError{
		What: fmt.Sprintf("blob %s of item %s", b.Digest, m.names.of(ctx, m, b.Digest)), Part: ss[0].part, Offset: ss[0].offset,
		Detail: detail + "; copy " + strings.Join(paths, " and ") + " again from the source, or use another copy of the media",
	}
}

// owners says which items want a blob, for messages. All manifests are read
// once, when the first is asked for.
type owners struct {
	mu sync.Mutex
	by map[v1.Hash][]string // nil: not known yet
}

func (n *owners) of(ctx context.Context, m *Media, h v1.Hash) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.by == nil {
		by := map[v1.Hash][]string{}
		for _, it := range m.release.Items {
			// What can't be read names nothing.
			_ = walkIn(ctx, it.Descriptor, m.readManifest, func(d v1.Descriptor) error {
				if s := by[d.Digest]; len(s) == 0 || s[len(s)-1] != it.Name {
					by[d.Digest] = append(s, it.Name)
				}
				return nil
			})
		}
		if ctx.Err() != nil {
			return "?"
		}
		n.by = by
	}
	return strings.Join(n.by[h], ", ")
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
	ss := spans(m.release, b.Source(0))
	if _, err := provedIf(gather(ss, buf, r.afresh(ss)), b, 0, buf); err != nil {
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
func spans(r manifest.Release, s manifest.Segment) []span {
	return spansIn(func(p int) int64 { return r.Parts[p-1].Payload() }, s)
}

func spansIn(payload func(part int) int64, s manifest.Segment) (out []span) {
	p, at, n := s.Part, s.Offset, s.Length
	for n > 0 {
		size := payload(p)
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
