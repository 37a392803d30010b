package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

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

	// A local file has these in the place of open, and a digest that stands for
	// the one that nobody knows yet.
	abs  string
	file localBlob
}

// lateFile is the size from which a local file is read once only, straight to its
// place: what stands in for its digest has the same length, so its manifest has.
// Two such files with one content are found too late, and the build begins again.
var lateFile int64 = 64 << 20

// errMoved says that what is there belongs elsewhere.
var errMoved = errors.New("bundle: what was written early lies elsewhere than it belongs")

// leaveFile leaves a file for later, and returns what stands for its digest.
func (p *pool) leaveFile(item, abs string, l localBlob) v1.Hash {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s: not read yet: %s %v", topDir, abs, l.stamp))
	h := manifest.Sum(sum).Digest()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unread[h.Hex] = true
	p.late[h] = late{d: v1.Descriptor{Digest: h, Size: l.size}, as: asRaw, item: item, abs: abs, file: l}
	return h
}

// sawFile returns the digest of a file that this build has read.
func (p *pool) sawFile(abs string, st stamp) (v1.Hash, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	x, ok := p.seen[abs]
	return x.Digest, ok && x.Stamp == st
}

func (p *pool) saw(abs string, x hashed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[abs] = x
}

// stands says whether a digest only stands for another one.
func (p *pool) stands(h v1.Hash) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unread[h.Hex]
}

// standsIn says whether made bytes name what only stands for something.
func (p *pool) standsIn(b []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for hex := range p.unread {
		if bytes.Contains(b, []byte(hex)) {
			return true
		}
	}
	return false
}

// begun is what a build remembers of media that it has not finished.
type begun struct {
	Lens  []int64
	Files []written // the parts
	Done  []lain    // blobs that are there, and safe
	Kept  bool      // there are layers among them
}

// written is a part as it was when what it holds was recorded.
type written struct {
	Path  string
	Stamp stamp
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
	sums  map[v1.Hash]manifest.Blob // of what this build wrote
	begun begun
	fresh int64 // bytes since the last record
	kept  bool  // layers came over the network: an error leaves them for the next build
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
	e := &early{sums: map[v1.Hash]manifest.Blob{}}
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
	e.parts = &rawParts{path: func(n int) string { return e.file(n-1, newDir, partsDir, manifest.PartName(n)) }, lens: lens}
	if err := b.goOn(ctx, w); err != nil {
		return err
	}
	err = b.pullAll(ctx)
	return errors.Join(err, e.end(b.cache))
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

// goOn takes up what an interrupted build left, where the blobs belong where it
// put them. It believes parts that nobody has touched since they were recorded;
// the blobs in others are read and held to their digests, as the stick may have
// been elsewhere.
func (b *build) goOn(ctx context.Context, w *writing) error {
	e := b.early
	var was begun
	var keep []string
	if b.cache.get("begun", e.key, &was) && e.there(was) && (was.same() || e.empty(was)) {
		for _, f := range was.Files {
			keep = append(keep, f.Path)
		}
	}
	if err := e.each(func(dir string) error { return clearOut(dir, keep) }); err != nil {
		return err
	}
	if err := w.makeFolders(); err != nil || keep == nil {
		return err
	}
	e.begun, e.kept = was, was.Kept
	e.begun.Done = nil
	same := was.same()
	for _, x := range e.blobs {
		as := b.pool.late[x.Digest].as
		if _, ok := b.pool.get(x.Digest); ok {
			as = asRaw
		}
		_, looked := b.pool.looks.get(x.Digest, as)
		if !slices.Contains(was.Done, lies(x)) || !looked || x.Size > manifest.ChunkSize && len(x.Chunks) == 0 {
			continue
		}
		if same || b.proved(ctx, x) {
			e.begun.Done = append(e.begun.Done, lies(x))
		}
	}
	return ctx.Err()
}

// there says whether the parts of g are files that this build would write to, in
// folders that lead nowhere else.
func (e *early) there(g begun) bool {
	paths := e.partPaths()
	for _, f := range g.Files {
		i := slices.Index(paths, f.Path)
		if st, err := stampAt(f.Path); err != nil || i < 0 || st.Size > e.parts.lens[i] {
			return false
		}
		for _, dir := range []string{filepath.Dir(f.Path), filepath.Dir(filepath.Dir(f.Path))} {
			if fi, err := os.Lstat(dir); err != nil || !fi.IsDir() {
				return false
			}
		}
	}
	return len(g.Files) > 0
}

// partPaths are the paths of all parts.
func (e *early) partPaths() (out []string) {
	for i := range e.parts.lens {
		out = append(out, e.parts.path(i+1))
	}
	return out
}

// same says whether nobody has touched the parts.
func (g begun) same() bool {
	for _, f := range g.Files {
		if got, err := stampAt(f.Path); err != nil || got != f.Stamp {
			return false
		}
	}
	return true
}

// empty says whether there is nothing between the blobs, where nobody will write.
func (e *early) empty(g begun) bool {
	var sizes []int64
	for _, x := range e.blobs {
		sizes = append(sizes, x.Size)
	}
	_, gaps, err := manifest.Places(sizes, e.parts.lens)
	for _, at := range gaps {
		if !slices.ContainsFunc(g.Files, func(f written) bool { return f.Path == e.parts.path(at.Part) }) {
			continue // not written yet
		}
		in, buf := e.written(lain{Part: at.Part, Offset: at.Offset, Size: at.Length}), make([]byte, at.Length)
		n, rerr := in.ReadAt(buf, 0)
		if rerr == io.EOF {
			rerr = nil
		}
		if err = errors.Join(err, rerr, in.Close()); err != nil || bytes.Count(buf[:n], []byte{0}) != n {
			return false
		}
	}
	return err == nil
}

// written reads what lies there in the parts.
func (e *early) written(l lain) *inParts {
	m := &memory{Files: e.partPaths()}
	for _, n := range e.parts.lens {
		m.Parts = append(m.Parts, manifest.Part{Size: n})
	}
	return &inParts{l, m, map[int]*content.BulkReader{}}
}

// proved says whether the blob lies where it belongs, by reading it.
func (b *build) proved(ctx context.Context, x manifest.Blob) bool {
	in := b.early.written(lies(x))
	defer in.Close()
	task := b.Progress.Start(fmt.Sprintf("read again %.12s", x.Digest.Hex), x.Size)
	p := pass{x: &x, in: in, sum: newSummer(&x)}
	err := p.run(ctx, task)
	if err == nil {
		err = p.sum.done()
	}
	task.Done(err)
	return err == nil
}

// has says whether the blob lies where it belongs, and fills in its sums.
func (e *early) has(x *manifest.Blob) bool {
	if e == nil {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if s, ok := e.sums[x.Digest]; ok {
		x.Chunks, x.States = s.Chunks, s.States
	}
	return slices.Contains(e.begun.Done, lies(*x))
}

// pullAll pulls several layers at a time; one by one where a file can't be
// written but from its beginning on.
func (b *build) pullAll(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(pulls)
	if inOrder(b.Out) {
		g.SetLimit(1)
	}
	var files []*manifest.Blob
	for i := range b.early.blobs {
		x := &b.early.blobs[i]
		l, ok := b.pool.late[x.Digest]
		if !ok || b.early.has(x) {
			continue
		}
		if l.abs != "" {
			files = append(files, x)
			continue
		}
		g.Go(func() error {
			if err := retry(ctx, func() error { return b.pullOne(ctx, l, x) }); err != nil {
				return fmt.Errorf("item %s: layer %.12s: %w", l.item, x.Digest.Hex, err)
			}
			return b.early.addLayer(b.cache, *x)
		})
	}
	g.Go(func() error { return b.readFiles(ctx, files) })
	return g.Wait()
}

// readFiles reads local files to their places, one after the other.
func (b *build) readFiles(ctx context.Context, xs []*manifest.Blob) error {
	for _, x := range xs {
		l := b.pool.late[x.Digest]
		if err := b.readOne(ctx, l, x); err != nil {
			return fmt.Errorf("item %s: %s: %w", l.item, l.file.path, err)
		}
	}
	return nil
}

// readOne reads a file to its place. Its digest is known then.
func (b *build) readOne(ctx context.Context, l late, x *manifest.Blob) (err error) {
	f, err := os.Open(l.abs)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := stampOf(f)
	if err != nil {
		return err
	}
	settled := st.settled(time.Now())
	task := b.Progress.Start("write "+l.item+"/"+filepath.Base(l.abs), x.Size)
	defer func() { task.Done(err) }()
	at := manifest.Blob{Size: x.Size, Part: x.Part, Offset: x.Offset}
	r := reading{pool: b.pool, sum: true, as: asRaw, put: b.early.put(&at)}
	h, err := r.readInto(ctx, f, &at, task)
	if now, e := stampOf(f); err == nil && (e != nil || now != st || st != l.file.stamp) {
		err = errors.Join(e, errors.New("it changed while it was read: build again when it is complete"))
	}
	if err != nil {
		return err
	}
	b.pool.saw(l.abs, hashed{st, h})
	if err := b.pool.looks.put(h, asRaw, r.out, settled); err != nil {
		return err
	}
	if settled {
		err = b.cache.put("files", l.abs, hashed{st, h})
	}
	return errors.Join(err, b.early.add(b.cache, at))
}

// put writes the chunks of x to where they belong.
func (e *early) put(x *manifest.Blob) func(int, []byte) error {
	return func(i int, data []byte) error {
		return e.parts.write(spansIn(func(n int) int64 { return e.parts.lens[n-1] }, x.Source(i)), data)
	}
}

// again fetches those items whose files were read meanwhile.
func (b *build) again(ctx context.Context) error {
	b.pool.pullsLate = false
	was := b.pool.unread
	b.pool.unread = map[string]bool{}
	for i, it := range b.recipe.Items {
		if !was[b.items[i].root.Digest.Hex] {
			continue
		}
		pin, err := b.lock.find(b.Lock, it)
		if err != nil {
			return err
		}
		if b.items[i], err = b.job(it, pin).fetch(ctx); err != nil {
			return err
		}
	}
	return nil
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
	p := pass{x: x, in: inTurn{in}, sum: newSummer(x), put: b.early.put(x)}
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
	e.sums[x.Digest] = x
	e.fresh += x.Size
	due := e.fresh >= recordEvery
	e.mu.Unlock()
	if !due {
		return nil
	}
	return e.record(c)
}

func (e *early) addLayer(c *cache, x manifest.Blob) error {
	e.mu.Lock()
	e.kept = true
	e.mu.Unlock()
	return e.add(c, x)
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
	return e.save(c)
}

// end is record when nothing more is written: nobody needs to read again what is
// there, unless somebody touches it.
func (e *early) end(c *cache) error {
	if err := errors.Join(e.parts.flush(), e.parts.close()); err != nil || len(e.begun.Done) == 0 {
		return err
	}
	return e.save(c)
}

func (e *early) save(c *cache) error {
	e.begun.Lens, e.begun.Files, e.begun.Kept = e.parts.lens, nil, e.kept
	for _, p := range e.partPaths() {
		if st, err := stampAt(p); err == nil {
			e.begun.Files = append(e.begun.Files, written{p, st})
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

// leave decides about what is there after an error: layers stay, for the next
// build to go on with, unless the disk is full.
func (b *build) leave(err error) error {
	if b.early.kept && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return nil
	}
	return b.drop()
}

// drop removes what is there: it must not stay.
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
