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
	"path"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/internal/legible"
)

// maxDamage bounds how many damages one report names.
const maxDamage = 20

// Verify reads everything once and checks every chunk, so every blob, every
// parity part and root, and that there is nothing in clawbox/ that the release
// doesn't name. It goes on after a damage and reports up to 20 of them, also
// those that parity can repair, and says so. What it can't report any more it
// reads and proves, and does not try to rescue.
//
// Every byte of a part belongs to a chunk that was proved, and is hashed once, or
// is a zero between blobs.
func (m *Media) Verify(ctx context.Context, p Progress) error {
	total := m.release.Size()
	for _, p := range m.release.Parity {
		total += p.Size
	}
	v := verifier{task: orQuiet(p).Start("verify "+m.release.Name, total)}
	v.found(m.strangers()...)
	v.found(m.checkRoots()...)
	for _, name := range m.Lost() {
		v.found(fmt.Errorf("%w: %s is missing or cut off; parity rebuilds it: copy it again before more is lost", manifest.ErrIncomplete, name))
	}
	var jobs []toRead
	for _, b := range m.index.Blobs {
		jobs = append(jobs, toRead{blob: b})
	}
	r := m.reader(func(err error) { v.warned = append(v.warned, err) })
	err := stream(ctx, onMedia(jobs), mediaOnly{r, &v}, v.each)
	if err == nil {
		v.found(r.gaps()...)
		err = v.parity(ctx, m)
	}
	r.close()
	if v.found(v.warned...); err == nil {
		err = errors.Join(v.errs...)
	}
	v.task.Done(err)
	return err
}

// onMedia leaves out what the base has.
func onMedia(jobs []toRead) (out []toRead) {
	for _, j := range jobs {
		if j.blob.Size == 0 || j.blob.OnMedia() > 0 {
			out = append(out, j)
		}
	}
	return out
}

// gaps holds what lies between the blobs against zero. Nobody uses those bytes,
// but a stick that has others is not the one that was written.
func (r *reader) gaps() (errs []error) {
	gs, err := r.m.index.Gaps(r.m.release.Parts)
	if err != nil {
		return []error{err}
	}
	for _, g := range gs {
		p := make([]byte, g.Length)
		path := or(r.m.parts[g.Part-1], manifest.PartName(g.Part))
		s := span{g.Part, g.Offset, g.Length}
		r.turn([]span{s})
		err := r.at(s, p)
		switch {
		case errors.Is(err, errLost): // reported already
		case err != nil:
			errs = append(errs, &manifest.TamperedError{What: path, Part: g.Part, Offset: g.Offset, Detail: err.Error() + "; copy it again"})
		case bytes.Count(p, []byte{0}) != len(p):
			errs = append(errs, &manifest.TamperedError{What: path, Part: g.Part, Offset: g.Offset, Detail: fmt.Sprintf("%d bytes between blobs are not zero; copy it again", g.Length)})
		}
	}
	return errs
}

// mediaOnly gives those chunks that lie on the media.
type mediaOnly struct {
	*reader
	v *verifier
}

// rescue is the reader's until the report is full.
func (r mediaOnly) rescue(ctx context.Context, b manifest.Blob, i int, buf []byte, err error) (content.Piece, error) {
	if len(r.v.errs)+len(r.v.warned) >= maxDamage {
		return content.Piece{}, err
	}
	return r.reader.rescue(ctx, b, i, buf, err)
}

func (r mediaOnly) read(ctx context.Context, b manifest.Blob, i int, buf []byte) error {
	if !b.Source(i).OnMedia() {
		return nil
	}
	return r.reader.read(ctx, b, i, buf)
}

func (r mediaOnly) prove(cs []*chunk) {
	r.reader.prove(slices.DeleteFunc(cs, func(c *chunk) bool { return !c.blob.Source(c.i).OnMedia() }))
}

// strangers names what is in clawbox/ and not in the release, up to maxDamage
// things. It reads directories only, and of one no more than it takes.
func (m *Media) strangers() (errs []error) {
	l := lister{dirs: map[string]bool{partsDir: true, parityDir: true, rootDir: true}, known: map[string]bool{noteFile: true, indexFile: true}}
	for _, p := range m.release.Parts {
		l.known[partsDir+"/"+p.Name] = true
	}
	for _, p := range m.release.Parity {
		l.known[parityDir+"/"+p.Name] = true
	}
	for i := range m.release.Roots {
		l.known[rootDir+"/"+manifest.RootName(int64(i+1))] = true
	}
	for _, d := range m.dirs {
		l.list(top(d), "")
	}
	return l.errs
}

// lister looks for what is not known.
type lister struct {
	dirs, known map[string]bool
	errs        []error
}

// list goes through the directory rel below root, some names at a time.
func (l *lister) list(root, rel string) {
	at := filepath.Join(root, rel)
	d, err := os.OpenFile(at, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	for err == nil && len(l.errs) < maxDamage {
		var es []fs.DirEntry
		if es, err = d.ReadDir(maxDamage); err == nil {
			l.entries(root, rel, es)
		}
	}
	if d != nil {
		d.Close()
	}
	if err != nil && err != io.EOF {
		l.errs = append(l.errs, fmt.Errorf("media: %w", err))
	}
}

func (l *lister) entries(root, rel string, es []fs.DirEntry) {
	for _, e := range es {
		p := path.Join(rel, e.Name())
		switch {
		case e.IsDir() && l.dirs[p]:
			l.list(root, p)
		case !e.IsDir() && l.known[p]:
		case len(l.errs) < maxDamage:
			l.errs = append(l.errs, &manifest.TamperedError{What: legible.Line(filepath.Join(root, p)), Detail: "not named by the release: remove it, and ask who put it there"})
		}
	}
}

// checkRoots holds the roots on the media against the release.
func (m *Media) checkRoots() (errs []error) {
	for i, want := range m.release.Roots {
		name := rootDir + "/" + manifest.RootName(int64(i+1))
		b, err := m.readRoot(int64(i + 1))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			errs = append(errs, fmt.Errorf("%w: %s is missing: copy it again", manifest.ErrIncomplete, name))
		case err != nil:
			errs = append(errs, err)
		default:
			if got := manifest.Sum(sha256.Sum256(b)); got != want.SHA256 {
				errs = append(errs, &manifest.TamperedError{What: name, Detail: fmt.Sprintf("got sha256 %s, want %s: copy it again", got, want.SHA256)})
			}
		}
	}
	return errs
}

// verifier takes the chunks of all blobs, in the order of the parts.
type verifier struct {
	task   Task
	errs   []error
	warned []error // the reader's own
}

func (v *verifier) found(errs ...error) {
	v.errs = append(v.errs, errs...)
	if len(v.errs) > maxDamage {
		v.errs = v.errs[:maxDamage]
	}
}

func (v *verifier) each(c chunk) error {
	if c.err != nil {
		v.found(c.err)
	}
	v.task.Add(int64(len(c.piece.Data())))
	return nil
}

// parity holds the parity parts against their sums.
func (v *verifier) parity(ctx context.Context, m *Media) error {
	for i, p := range m.release.Parity {
		if m.parity[i] == "" {
			continue // reported already
		}
		got, err := m.sum(ctx, m.parity[i], v.task)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			v.found(&manifest.TamperedError{What: m.parity[i], Detail: err.Error() + "; copy it again"})
		case got != p.SHA256:
			v.found(&manifest.TamperedError{What: m.parity[i], Detail: fmt.Sprintf("got sha256 %s, want %s; copy it again", got, p.SHA256)})
		}
	}
	return nil
}

// sum is the sha256 of a file.
func (m *Media) sum(ctx context.Context, path string, t Task) (s manifest.Sum, err error) {
	f, size, err := m.open(path)
	if err != nil {
		return s, err
	}
	defer f.Close()
	h, buf := sha256.New(), make([]byte, 1<<20)
	in := io.NewSectionReader(f, 0, size)
	for {
		if err := ctx.Err(); err != nil {
			return s, err
		}
		n, err := in.Read(buf)
		h.Write(buf[:n])
		t.Add(int64(n))
		if err == io.EOF {
			return manifest.Sum(h.Sum(nil)), nil
		} else if err != nil {
			return s, err
		}
	}
}
