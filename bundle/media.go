package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/bundle/manifest"
)

// Media is a bundle on one or several directories, whose signature and index
// have been verified and whose parts are all there with the right size. It
// writes nothing to them.
type Media struct {
	release manifest.Release
	index   manifest.Index
	signers []string
	note    []byte
	dirs    []string
	parts   []string // paths, by number - 1
	blobs   map[v1.Hash]manifest.Blob
}

// OpenMedia opens the bundle below dirs: one directory, or the mount points of
// all the sticks that carry it, in any order. It reads no more than 16 MiB. A
// bundle that trust didn't sign is manifest.ErrUntrusted; one with other bytes
// than were signed, or with files in clawbox/ that the release doesn't name, is
// manifest.ErrTampered; one of which something is missing or cut off is
// manifest.ErrIncomplete, and a part is named with its size.
func OpenMedia(trust manifest.Trust, dirs ...string) (*Media, error) {
	note, err := readNote(dirs)
	if err != nil {
		return nil, err
	}
	r, signers, err := trust.Open(note)
	if err != nil {
		return nil, fmt.Errorf("media %s: %w", strings.Join(dirs, ", "), err)
	}
	m := &Media{release: r, signers: signers, note: note, dirs: slices.Clone(dirs), blobs: map[v1.Hash]manifest.Blob{}}
	if m.index, err = readIndex(r, dirs); err != nil {
		return nil, err
	}
	for _, b := range m.index.Blobs {
		m.blobs[b.Digest] = b
	}
	found := findParts(r, dirs)
	if err := found.err(dirs); err != nil {
		return nil, err
	}
	for _, p := range found {
		m.parts = append(m.parts, p.Path)
	}
	if err := errors.Join(m.strangers()...); err != nil {
		return nil, fmt.Errorf("media: %w", err)
	}
	return m, nil
}

// Release returns the verified release.
func (m *Media) Release() manifest.Release { return m.release }

// Signers returns the names of the trusted keys that signed.
func (m *Media) Signers() []string { return slices.Clone(m.signers) }

// Digest returns the sha256 of release.note: the identity of this release.
func (m *Media) Digest() v1.Hash { return manifest.Sum(sha256.Sum256(m.note)).Digest() }

// openFile opens a regular file for reading, and nothing that a hostile stick
// may have in its place: no link, device or pipe.
func openFile(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
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

// readTop reads clawbox/name in dir, at most limit bytes.
func readTop(dir, name string, limit int64) ([]byte, error) {
	f, n, err := openFile(filepath.Join(dir, topDir, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if n > limit {
		return nil, &manifest.TamperedError{What: f.Name(), Detail: fmt.Sprintf("%d bytes, want at most %d", n, limit)}
	}
	return io.ReadAll(io.LimitReader(f, limit))
}

// readNote finds release.note; where several sticks have one, they must agree.
func readNote(dirs []string) (note []byte, err error) {
	if len(dirs) == 0 {
		return nil, errors.New("media: no directory given: name where the bundle is mounted")
	}
	from := ""
	for _, d := range dirs {
		if _, err := os.Stat(filepath.Join(d, topDir)); err != nil {
			return nil, fmt.Errorf("media: %w: there is no bundle in %s; is the stick mounted?", err, d)
		}
		b, err := readTop(d, noteFile, manifest.MaxNote)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, fmt.Errorf("media: %w", err)
		case len(b) == 0:
			return nil, fmt.Errorf("media: %w: %s is empty: copy the bundle again", manifest.ErrIncomplete, filepath.Join(d, topDir, noteFile))
		case note != nil && !bytes.Equal(note, b):
			return nil, fmt.Errorf("media: %s and %s carry different releases: give the sticks of one only", from, d)
		default:
			note, from = b, d
		}
	}
	if note == nil {
		return nil, fmt.Errorf("media: %w (%w): no %s/%s in %s, as after an interrupted build or copy: copy the bundle again",
			manifest.ErrIncomplete, fs.ErrNotExist, topDir, noteFile, strings.Join(dirs, ", "))
	}
	return note, nil
}

// readIndex takes the first index.json; every copy must be the right one, or
// the stick that has it is not of this release.
func readIndex(r manifest.Release, dirs []string) (x manifest.Index, err error) {
	found := false
	for _, d := range dirs {
		b, err := readTop(d, indexFile, manifest.MaxIndex)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return x, fmt.Errorf("media: %w", err)
		}
		if x, err = r.OpenIndex(b); err != nil {
			return x, fmt.Errorf("media %s: %w: copy the bundle again", d, err)
		}
		found = true
	}
	if !found {
		return x, fmt.Errorf("media: %w (%w): no %s/%s in %s: copy the bundle again", manifest.ErrIncomplete, fs.ErrNotExist, topDir, indexFile, strings.Join(dirs, ", "))
	}
	return x, nil
}

// PartInfo says where a part is. Path is empty when it is nowhere; Got is -1
// then, and otherwise the size that was found.
type PartInfo struct {
	Name string `json:"name"`
	Size int64  `json:"size"` // wanted, in bytes
	Got  int64  `json:"got"`
	Path string `json:"path,omitempty"`
}

type partList []PartInfo

// findParts looks for each part in each directory. One with the right size is
// preferred; nothing is read.
func findParts(r manifest.Release, dirs []string) (out partList) {
	for _, p := range r.Parts {
		i := PartInfo{Name: p.Name, Size: p.Size, Got: -1}
		for _, d := range dirs {
			path := filepath.Join(d, topDir, partsDir, p.Name)
			fi, err := os.Lstat(path)
			if err != nil || !fi.Mode().IsRegular() || i.Got == p.Size {
				continue
			}
			i.Path, i.Got = path, fi.Size()
		}
		out = append(out, i)
	}
	return out
}

// err names every part that is missing or has another size.
func (l partList) err(dirs []string) error {
	var errs []error
	for _, p := range l {
		switch {
		case p.Got < 0:
			errs = append(errs, fmt.Errorf("%w: %s of %d bytes is missing in %s: plug in the stick that has it", manifest.ErrIncomplete, p.Name, p.Size, strings.Join(dirs, ", ")))
		case p.Got < p.Size:
			errs = append(errs, fmt.Errorf("%w: %s: got %d bytes, want %d: copy it again", manifest.ErrIncomplete, p.Path, p.Got, p.Size))
		case p.Got > p.Size:
			errs = append(errs, &manifest.TamperedError{What: p.Path, Detail: fmt.Sprintf("got %d bytes, want %d: copy it again", p.Got, p.Size)})
		}
	}
	if len(errs) > maxDamage {
		errs = append(errs[:maxDamage], fmt.Errorf("and %d more", len(errs)-maxDamage))
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("media: %w", errors.Join(errs...))
}

// reader reads stretches of the payload, with one part open at a time.
type reader struct {
	m    *Media
	part int
	f    *os.File
}

func (r *reader) close() {
	if r.f != nil {
		r.f.Close()
		r.f = nil
	}
}

// read fills buf with n bytes from byte off of b.
func (r *reader) read(b manifest.Blob, off int64, buf []byte) error {
	for _, s := range spans(r.m.release, b, off, int64(len(buf))) {
		if err := r.at(s, buf[:s.n]); err != nil {
			return r.m.damage(b, err.Error(), s)
		}
		buf = buf[s.n:]
	}
	return nil
}

func (r *reader) at(s span, p []byte) error {
	if r.f == nil || r.part != s.part {
		r.close()
		f, n, err := openFile(r.m.parts[s.part-1])
		if err != nil {
			return err
		}
		r.f, r.part = f, s.part
		if want := r.m.release.Parts[s.part-1].Size; n != want {
			return fmt.Errorf("got %d bytes, want %d", n, want)
		}
	}
	_, err := r.f.ReadAt(p, s.offset)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// damage describes bytes of b, over one or several spans, that are not what
// was signed. Any of the parts may be the damaged one, so all are named.
func (m *Media) damage(b manifest.Blob, detail string, ss ...span) error {
	var paths []string
	for _, s := range ss {
		paths = append(paths, m.parts[s.part-1])
	}
	item := itemOf(m.release, m.readManifest, b.Digest)
	return &manifest.TamperedError{
		What: fmt.Sprintf("blob %s of item %s", b.Digest, item), Part: ss[0].part, Offset: ss[0].offset,
		Detail: detail + "; copy " + strings.Join(paths, " and ") + " again from the source, or use another copy of the media",
	}
}

// mismatch describes a chunk of n bytes, from byte off of b, whose sum isn't
// the one that was signed.
func (m *Media) mismatch(b manifest.Blob, off, n int64, sums string) error {
	ss := spans(m.release, b, off, n)
	if len(ss) == 0 { // an empty blob
		ss = []span{place(m.release, b, off)}
	}
	where := ""
	if k := len(ss); k > 1 {
		where = " to " + manifest.PartName(ss[k-1].part)
	}
	return m.damage(b, fmt.Sprintf("%d bytes from here%s have %s", n, where, sums), ss...)
}

// readManifest reads a small blob from the media, verified.
func (m *Media) readManifest(d v1.Descriptor) ([]byte, error) {
	b, ok := m.blobs[d.Digest]
	if !ok || b.Size > maxManifest {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, fs.ErrNotExist)
	}
	r := reader{m: m}
	defer r.close()
	buf := make([]byte, 0, b.Size)
	for _, s := range spans(m.release, b, 0, b.Size) {
		buf = buf[:len(buf)+int(s.n)]
		if err := r.at(s, buf[len(buf)-int(s.n):]); err != nil {
			return nil, err
		}
	}
	return readManifest(bytes.NewReader(buf), d)
}

// chunk is a piece of a blob on its way through a stream.
type chunk struct {
	blob manifest.Blob
	i    int
	data []byte
	err  error // the chunk is not what was signed
}

// stream reads blobs chunk by chunk, verifies each chunk, and hands it to each
// in order, the next one being read meanwhile. It holds three chunks at most.
// data is valid until each returns; each's error ends the stream.
func (m *Media) stream(ctx context.Context, blobs []manifest.Blob, each func(chunk) error) error {
	ctx, cancel := context.WithCancel(ctx)
	free, full := make(chan []byte, 3), make(chan chunk, 3)
	for range cap(free) {
		free <- make([]byte, manifest.ChunkSize)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(full)
		m.produce(ctx, blobs, free, full)
	}()
	var err error
	for c := range full {
		if err = ctx.Err(); err != nil { // not the chunks that were read ahead either
			break
		}
		if err = each(c); err != nil {
			break
		}
		free <- c.data[:cap(c.data)]
	}
	if err == nil {
		err = ctx.Err()
	}
	cancel()
	<-done
	return err
}

func (m *Media) produce(ctx context.Context, blobs []manifest.Blob, free <-chan []byte, full chan<- chunk) {
	r := reader{m: m}
	defer r.close()
	for _, b := range blobs {
		for i := range b.Len() {
			var buf []byte
			select {
			case buf = <-free:
			case <-ctx.Done():
				return
			}
			if ctx.Err() != nil { // select is free to choose when both are ready
				return
			}
			full <- r.chunk(b, i, buf) // never blocks: as many places as buffers
		}
	}
}

// chunk reads and verifies chunk i of b.
func (r *reader) chunk(b manifest.Blob, i int, buf []byte) chunk {
	want, n := b.Chunk(i)
	off := int64(i) * manifest.ChunkSize
	c := chunk{blob: b, i: i, data: buf[:n]}
	if c.err = r.read(b, off, c.data); c.err != nil {
		return c
	}
	if got := manifest.Sum(sha256.Sum256(c.data)); got != want {
		c.err = r.m.mismatch(b, off, n, fmt.Sprintf("sha256 %s, want %s", got, want))
	}
	return c
}

// place is where byte off of b lies.
func place(r manifest.Release, b manifest.Blob, off int64) span {
	if s := spans(r, b, off, 1); b.Size > 0 {
		return s[0]
	}
	return span{part: b.Part, offset: b.Offset}
}
