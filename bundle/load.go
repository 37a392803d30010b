package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// LoadOptions says who hears what of a load. Every field may be left out.
type LoadOptions struct {
	Progress Progress
	// Ready is called as soon as all of an item is in the store, in the order
	// of the media, one at a time, in a goroutine of its own: images are unpacked
	// while weights still stream. An error ends the load. The item's ref is set
	// only at the end of the load.
	Ready func(ctx context.Context, it manifest.Item) error
	// Warn is told of chunks that had to be read again or rebuilt.
	Warn func(error)
	// Beside leaves the store's names where they lead, for a host whose installed
	// release runs by them: each item gets its pin (content.Pin) and no other
	// name.
	Beside bool
	// Items are the names of the items to load; none: all of them.
	Items []string
	// Waiting is told who has the store; the load then waits. Without it, a
	// store in use is a content.ErrBusy.
	Waiting func(content.Holder)
}

// Load brings the bundle into the store in one pass over the parts; see
// LoadWith.
func (m *Media) Load(ctx context.Context, s *content.Store, p Progress) error {
	return m.LoadWith(ctx, s, LoadOptions{Progress: p})
}

// LoadWith brings the bundle into the store in one pass over the parts. Every
// chunk is proved before a byte of it is used, and every byte is written once,
// to the file in which it stays. Blobs that the store has are not read, and a
// blob that was cut off goes on where its journal says that it is safe: at most
// content.MaxRedo bytes are read and written again after a power cut.
//
// The items' refs are set at the very end, when all of their blobs are there.
// On an error no ref has changed; what was proved until then stays for the next
// load.
func (m *Media) LoadWith(ctx context.Context, s *content.Store, o LoadOptions) error {
	if len(o.Items) > 0 {
		var err error
		if m, err = m.only(ctx, s, o.Items); err != nil {
			return fmt.Errorf("load: %w", err)
		}
	}
	release, err := s.Exclusive(ctx, o.Waiting)
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	defer release()
	if err := m.settle(s); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	jobs, total, err := m.missing(s)
	if err == nil {
		err = m.base(s, jobs)
	}
	if err == nil {
		err = m.room(s, total)
	}
	if err != nil {
		return err
	}
	if err := m.run(ctx, s, o, jobs, total); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	return m.tag(s, o.Beside)
}

// run streams the jobs into s.
func (m *Media) run(ctx context.Context, s *content.Store, o LoadOptions, jobs []toRead, total int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	h := newHerald(ctx, m, s, o.Ready, cancel)
	l := loader{m: m, s: s, herald: h, task: orQuiet(o.Progress).Start("load "+m.release.Name, total)}
	r := m.reader(o.Warn)
	err := h.begin()
	if err == nil {
		err = stream(ctx, jobs, &either{r, s}, l.each)
	}
	r.close()
	err = errors.Join(err, l.close())
	err = h.end(err)
	l.task.Done(err)
	return err
}

// either reads what lies on the media from there, and what the base has from
// the store.
type either struct {
	*reader
	s *content.Store
}

func (e *either) read(ctx context.Context, b manifest.Blob, i int, buf []byte) error {
	src := b.Source(i)
	if src.OnMedia() {
		return e.reader.read(ctx, b, i, buf)
	}
	f, err := e.s.Open(src.From)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := full(f, buf[:src.Length], src.Offset); err != nil {
		return fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return nil
}

func (e *either) rescue(ctx context.Context, b manifest.Blob, i int, buf []byte, err error) (content.Piece, error) {
	src := b.Source(i)
	if src.OnMedia() {
		return e.reader.rescue(ctx, b, i, buf, err)
	}
	if errors.Is(err, manifest.ErrTampered) {
		err = fmt.Errorf("chunk %d of blob %s lies in the store, in blob %s at %d, and is damaged there: %w; load the full bundle, not the difference to %s",
			i, b.Digest, src.From, src.Offset, err, e.m.release.Base)
	}
	return content.Piece{}, err
}

// settle ends blobs of which nothing was missing but the last step.
func (m *Media) settle(s *content.Store) error {
	for _, b := range m.index.Blobs {
		if b.Size == 0 || s.Begun(b.Digest, b.Size) != b.Size {
			continue
		}
		w, err := s.Resume(b.Digest, b.Size)
		if err == nil {
			err = w.Commit()
		}
		if err != nil && !errors.Is(err, content.ErrMismatch) { // that one was dropped, and is loaded anew
			return err
		}
	}
	return nil
}

// missing lists what the store lacks, in the order of the media, and how many
// bytes that is.
func (m *Media) missing(s *content.Store) (jobs []toRead, total int64, err error) {
	for _, b := range m.index.Blobs {
		if n, err := s.Stat(b.Digest); err == nil && n == b.Size {
			continue
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, 0, fmt.Errorf("load: %w", err)
		}
		j := toRead{blob: b}
		if n := s.Begun(b.Digest, b.Size); n%manifest.ChunkSize == 0 && n < b.Size {
			j.from = int(n / manifest.ChunkSize)
		}
		jobs, total = append(jobs, j), total+b.Size-int64(j.from)*manifest.ChunkSize
	}
	return jobs, total, nil
}

// Missing returns the number of bytes that Load would write to s.
func (m *Media) Missing(s *content.Store) (int64, error) {
	_, n, err := m.missing(s)
	return n, err
}

// base refuses a differential bundle on a host that lacks what it builds upon,
// before anything is written.
func (m *Media) base(s *content.Store, jobs []toRead) error {
	for _, j := range jobs {
		for _, src := range j.blob.Sources() {
			if src.OnMedia() {
				continue
			}
			if n, err := s.Stat(src.From); err == nil && n >= src.Offset+src.Length {
				continue
			}
			return fmt.Errorf("load: %w: blob %s is not in the store %s; load %s first, or the full bundle of %s %s",
				manifest.ErrNoBase, src.From, s.Dir(), m.release.Base, m.release.Name, m.release.Version)
		}
	}
	return nil
}

func (m *Media) room(s *content.Store, want int64) error {
	have, err := free(s.Dir())
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	if have < want {
		return fmt.Errorf("load: the store %s has %s free, the bundle needs %s: free some, or put the store on a larger disk", s.Dir(), Size(have), Size(want))
	}
	return nil
}

// loader writes the chunks of one blob after the other.
type loader struct {
	m      *Media
	s      *content.Store
	herald *herald
	task   Task
	w      *content.Partial // the current blob, nil between blobs
}

func (l *loader) each(c chunk) (err error) {
	if c.err != nil {
		return c.err
	}
	if l.w == nil {
		if l.w, err = l.begin(c); err != nil {
			return l.full(err)
		}
	}
	if err := l.w.Append(c.piece); err != nil {
		return l.full(err)
	}
	l.task.Add(int64(len(c.piece.Data())))
	if c.i < c.blob.Len()-1 {
		return nil
	}
	w := l.w
	l.w = nil
	if err := w.Commit(); err != nil {
		return l.full(err)
	}
	return l.herald.next(c.blob.Digest)
}

// begin opens the blob at the chunk c. The store is ours, so the blob stands
// where missing found it; one that ends within a chunk begins anew.
func (l *loader) begin(c chunk) (*content.Partial, error) {
	w, err := l.s.Resume(c.blob.Digest, c.blob.Size)
	if err != nil || w.Size() == int64(c.i)*manifest.ChunkSize {
		return w, err
	}
	if err := w.Discard(); err != nil {
		return nil, err
	}
	return l.s.Resume(c.blob.Digest, c.blob.Size)
}

// full says of a full disk what is needed.
func (l *loader) full(err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	_, need, merr := l.m.missing(l.s)
	have, ferr := free(l.s.Dir())
	if merr != nil || ferr != nil {
		return err
	}
	return fmt.Errorf("the store %s is full: %w; it has %s free and still needs %s: free some, and load again: it goes on where it stopped",
		l.s.Dir(), err, Size(have), Size(need))
}

// close keeps a blob that was not finished, for the next load.
func (l *loader) close() error {
	if l.w == nil {
		return nil
	}
	return l.w.Close()
}

// tag names the items in the store, all of them or none, after checking that all
// that they refer to is there.
func (m *Media) tag(s *content.Store, beside bool) error {
	p := &pool{store: s}
	for _, it := range m.release.Items {
		if err := complete(p, it); err != nil {
			return fmt.Errorf("load: item %s: %w: the bundle was built incomplete; get another", it.Name, err)
		}
	}
	var names []content.Name
	for _, it := range m.release.Items {
		n := content.Name{Ref: it.Ref, Descriptor: it.Descriptor}
		if beside {
			n = content.Pin(it.Ref, it.Descriptor)
		}
		names = append(names, n)
	}
	if err := s.Point(names); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	return nil
}

// complete holds an item against the store.
func complete(p *pool, it manifest.Item) error {
	return walk(it.Descriptor, p.manifest, func(d v1.Descriptor) error {
		n, err := p.stat(d.Digest)
		if err == nil && n != d.Size {
			err = fmt.Errorf("blob %s has %d bytes, its manifest says %d", d.Digest, n, d.Size)
		}
		return err
	})
}
