package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// late is a layer that nobody has fetched yet. Its digest and size are known, so
// its place on the media is, and it is pulled straight to there: written once,
// and summed and looked into on the way.
type late struct {
	d    v1.Descriptor
	as   string
	item string
	open func(ctx context.Context) (io.ReadCloser, error)
}

// begun is what a build remembers of media that it has not finished.
type begun struct {
	Lens  []int64
	Files []inode // of the parts
	Done  []lain  // blobs that are there, and safe
}

// inode tells a file from another one of the same name.
type inode struct {
	Path     string
	Dev, Ino uint64
}

// lain is where a blob lies in the parts.
type lain struct {
	Digest v1.Hash
	Size   int64
	Part   int
	Offset int64
}

func lies(x manifest.Blob) lain { return lain{x.Digest, x.Size, x.Part, x.Offset} }

// pullsLate says whether layers may be left for later: their places must not
// depend on what is in them, and in an encrypted part they would.
func (b *build) pullsLate() bool { return len(b.recipients) == 0 && b.Since == nil }

// early is the media under way before all is known that goes on them.
type early struct {
	*outputs
	parts *rawParts
	blobs []manifest.Blob // all that will lie there, but for the lists of software
	key   string          // in the cache

	mu    sync.Mutex
	begun begun
	fresh int64 // bytes since the last record
}

// recordEvery is how many bytes of pulled layers an interruption may cost, beside
// the layers under way.
const recordEvery = 64 << 20

// pullLate pulls the layers that were left for later to their places.
func (b *build) pullLate(ctx context.Context) (err error) {
	if len(b.pool.late) == 0 {
		return nil
	}
	release, err := b.pool.store.Hold()
	if err != nil {
		return err
	}
	defer release()
	e := &early{}
	if e.blobs, err = b.foreseen(); err != nil {
		return err
	}
	lens, err := b.settle(e.blobs)
	if err != nil {
		return err
	}
	if e.outputs, err = openOutputs(b.outs()); err != nil {
		return err
	}
	b.early = e
	w := &writing{build: b, outputs: e.outputs, blobs: e.blobs, lens: lens}
	if err := e.spread(w.sizes(), smallFiles(e.blobs)); err != nil {
		return err
	}
	if e.key, err = w.where(); err != nil {
		return err
	}
	if err := b.goOn(w); err != nil {
		return err
	}
	e.parts = &rawParts{path: func(n int) string { return e.file(n-1, newDir, partsDir, manifest.PartName(n)) }, lens: lens}
	err = b.pullAll(ctx)
	return errors.Join(err, e.record(b.cache), e.parts.close())
}

// foreseen lists all blobs but the lists of software, which come last.
func (b *build) foreseen() (out []manifest.Blob, err error) {
	entries, err := b.plan(b.asked())
	for _, e := range entries {
		x := manifest.Blob{Digest: e.digest, Size: e.size}
		b.cache.sums(&x)
		out = append(out, x)
	}
	return out, err
}

// goOn takes up what an interrupted build left, when the parts are still those
// that it wrote and the blobs belong where it put them; otherwise it begins anew.
func (b *build) goOn(w *writing) error {
	e := b.early
	var was begun
	keep := b.cache.get("begun", e.key, &was) && was.holds()
	if err := e.each(func(dir string) error { return clearOut(dir, keep) }); err != nil {
		return err
	}
	if err := w.makeFolders(); err != nil || !keep {
		return err
	}
	e.begun = was
	e.begun.Done = nil
	for _, x := range e.blobs {
		_, looked := b.pool.looks.get(x.Digest, b.pool.late[x.Digest].as)
		if slices.Contains(was.Done, lies(x)) && looked && (x.Size <= manifest.ChunkSize || len(x.Chunks) > 0) {
			e.begun.Done = append(e.begun.Done, lies(x))
		}
	}
	return nil
}

func (g begun) holds() bool {
	for _, f := range g.Files {
		if got, err := inodeOf(f.Path); err != nil || got != f {
			return false
		}
	}
	return len(g.Files) > 0
}

func inodeOf(path string) (inode, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return inode{}, err
	}
	return inode{path, st.Dev, st.Ino}, nil
}

// has says whether the blob lies where it belongs.
func (e *early) has(x manifest.Blob) bool {
	if e == nil {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Contains(e.begun.Done, lies(x))
}

// pullAll pulls several layers at a time; one by one where a file can't be
// written but from its beginning on.
func (b *build) pullAll(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(pulls)
	if inOrder(b.Out) {
		g.SetLimit(1)
	}
	for i := range b.early.blobs {
		x := &b.early.blobs[i]
		l, ok := b.pool.late[x.Digest]
		if !ok || b.early.has(*x) {
			continue
		}
		g.Go(func() error {
			if err := retry(ctx, func() error { return b.pullOne(ctx, l, x) }); err != nil {
				return fmt.Errorf("item %s: layer %.12s: %w", l.item, x.Digest.Hex, err)
			}
			return b.early.add(b.cache, *x)
		})
	}
	return g.Wait()
}

// inOrder tells file systems that have no holes: FAT and exFAT write zeros where
// something is passed over.
func inOrder(dir string) bool {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	return err == nil && (st.Type == unix.MSDOS_SUPER_MAGIC || st.Type == unix.EXFAT_SUPER_MAGIC)
}

// pullOne pulls a layer to its place.
func (b *build) pullOne(ctx context.Context, l late, x *manifest.Blob) (err error) {
	in, err := l.open(ctx)
	if err != nil {
		return err
	}
	defer in.Close()
	task := b.Progress.Start(fmt.Sprintf("pull %s %.12s", l.item, x.Digest.Hex), x.Size)
	defer func() { task.Done(err) }()
	p := pass{x: x, in: inTurn{in}, sum: newSummer(x), put: func(i int, data []byte) error {
		return b.early.parts.write(spansIn(func(n int) int64 { return b.early.parts.lens[n-1] }, x.Source(i)), data)
	}}
	if _, ok := b.pool.looks.get(x.Digest, l.as); !ok {
		p.look = newLooking(ctx, l.as, -1)
	}
	if err := p.run(ctx, task); err != nil {
		if p.look != nil {
			p.look.stop()
		}
		return mismatched(*x, err)
	}
	if n, _ := in.Read(make([]byte, 1)); n > 0 {
		return &content.MismatchError{Want: x.Digest, WantSize: x.Size, GotSize: x.Size + 1}
	}
	return b.pulled(&p, l)
}

// pulled keeps what a whole layer has shown.
func (b *build) pulled(p *pass, l late) error {
	if p.look != nil {
		out, ok, err := p.look.done()
		if err != nil {
			return err
		}
		if ok {
			if err := b.pool.looks.put(p.x.Digest, l.as, out, true); err != nil {
				return err
			}
		}
	}
	if err := p.sum.done(); err != nil {
		return mismatched(*p.x, err)
	}
	if p.sum.known {
		return nil
	}
	return b.cache.putSums(*p.x)
}

// mismatched makes other bytes than the digest's an error that no other try will
// mend.
func mismatched(x manifest.Blob, err error) error {
	var te *manifest.TamperedError
	if errors.As(err, &te) || errors.Is(err, errDigest) {
		return fmt.Errorf("%w: %w", &content.MismatchError{Want: x.Digest, WantSize: -1}, err)
	}
	return err
}

// inTurn is a stream that is read in order.
type inTurn struct{ r io.Reader }

func (s inTurn) ReadAt(p []byte, _ int64) (int, error) { return io.ReadFull(s.r, p) }

// add notes that a blob is there, and records that now and then.
func (e *early) add(c *cache, x manifest.Blob) error {
	e.mu.Lock()
	e.begun.Done = append(e.begun.Done, lies(x))
	e.fresh += x.Size
	due := e.fresh >= recordEvery
	e.mu.Unlock()
	if !due {
		return nil
	}
	return e.record(c)
}

// record makes what is there safe, and then says so.
func (e *early) record(c *cache) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fresh == 0 {
		return nil
	}
	if err := e.parts.flush(); err != nil {
		return err
	}
	e.begun.Lens, e.begun.Files = e.parts.lens, nil
	for i := range e.parts.lens {
		if f, err := inodeOf(e.parts.path(i + 1)); err == nil {
			e.begun.Files = append(e.begun.Files, f)
		}
	}
	e.fresh = 0
	return c.put("begun", e.key, e.begun)
}

// fits says whether all that is there lies where the finished plan wants it.
func (e *early) fits(w *writing) bool {
	want := map[v1.Hash]lain{}
	for _, x := range w.blobs {
		want[x.Digest] = lies(x)
	}
	for _, l := range e.begun.Done {
		if want[l.Digest] != l {
			return false
		}
	}
	return len(w.lens) >= len(e.parts.lens)
}

// drop removes what was pulled: it must not stay.
func (b *build) drop() error {
	if b.early == nil {
		return nil
	}
	return b.early.each(func(dir string) error { return os.RemoveAll(filepath.Join(dir, newDir)) })
}

// media are places where earlier builds put blobs: the pool has them as long as
// nobody touches the parts.
type media struct {
	m     memory
	known bool // whether it holds is known
	ok    bool
}

// rememberMedia finds the media that the cache knows.
func (p *pool) rememberMedia() {
	p.lain = map[v1.Hash]*media{}
	for m := range each[memory](p.cache, "media") {
		at := &media{m: m}
		for _, l := range m.Blobs {
			p.lain[l.Digest] = at
		}
	}
}

// onMedia returns where a blob lies on media that are here.
func (p *pool) onMedia(h v1.Hash) (l lain, m *memory, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := p.lain[h]
	if at == nil {
		return l, nil, false
	}
	if !at.known {
		at.known, at.ok = true, at.m.holds()
	}
	i := slices.IndexFunc(at.m.Blobs, func(l lain) bool { return l.Digest == h })
	return at.m.Blobs[i], &at.m, at.ok
}

// inParts reads a blob out of parts.
type inParts struct {
	at    lain
	m     *memory
	files map[int]*content.BulkReader
}

func (r *inParts) ReadAt(p []byte, off int64) (n int, err error) {
	seg := manifest.Segment{Part: r.at.Part, Offset: r.at.Offset + off, Length: min(int64(len(p)), r.at.Size-off)}
	for _, s := range spansIn(func(n int) int64 { return r.m.Parts[n-1].Size }, seg) {
		f, ok := r.files[s.part]
		if !ok {
			if f, err = content.OpenBulk(r.m.Files[s.part-1]); err != nil {
				return n, err
			}
			r.files[s.part] = f
		}
		k, err := f.ReadAt(p[n:n+int(s.n)], s.offset)
		if n += k; k < int(s.n) {
			return n, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (r *inParts) Close() (err error) {
	for f := range maps.Values(r.files) {
		err = errors.Join(err, f.Close())
	}
	return err
}
