package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/singleflight"

	"github.com/clawbox/clawbox/bundle/content"
)

// maxManifest bounds a manifest, in bytes, as registries do.
const maxManifest = 4 << 20

// pool is where a build has its blobs: pulled and made ones in the work store or
// on media that an earlier build wrote, and local files where they are, so that
// neither a model nor a layer is written twice. The bytes of a local file are
// checked when they are written into a part.
type pool struct {
	store  *content.Store
	cache  *cache // nil: none
	looks  *looks // of builds
	flight singleflight.Group

	pullsLate bool // layers may be left for later

	mu    sync.Mutex
	local map[v1.Hash]localBlob
	made  map[v1.Hash][]byte // lists of software, which each build makes anew
	late  map[v1.Hash]late
	seen  map[string]hashed // files that were read by this build, by absolute path
	// unread are digests that stand for those of files which nobody has read yet,
	// and of what names them: other bytes of the same length.
	unread map[string]bool
	lain   map[v1.Hash]*media // on media that earlier builds wrote
}

type localBlob struct {
	path  string
	size  int64
	stamp stamp // of when it was hashed; zero: its content was not looked at yet
}

func (p *pool) addLocal(h v1.Hash, l localBlob) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.local[h] = l
}

func (p *pool) get(h v1.Hash) (localBlob, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, ok := p.local[h]
	return b, ok
}

// stat returns the size of a blob that the pool has.
func (p *pool) stat(h v1.Hash) (int64, error) {
	if b, ok := p.get(h); ok {
		return b.size, nil
	}
	if b, ok := p.fresh(h); ok {
		return int64(len(b)), nil
	}
	n, err := p.store.Stat(h)
	if err != nil {
		if l, _, ok := p.onMedia(h); ok {
			return l.Size, nil
		}
	}
	return n, err
}

// make holds what was made for this build, and is not worth keeping.
func (p *pool) make(b []byte) error {
	h, _, err := v1.SHA256(bytes.NewReader(b))
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.made == nil {
		p.made = map[v1.Hash][]byte{}
	}
	p.made[h] = b
	return err
}

// fresh returns what make holds.
func (p *pool) fresh(h v1.Hash) ([]byte, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, ok := p.made[h]
	return b, ok
}

// leave leaves a layer for later; false when it must be fetched now.
func (p *pool) leave(l late) bool {
	if !p.pullsLate || l.as != asLayer {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.late[l.d.Digest]; !ok {
		p.late[l.d.Digest] = l
	}
	return true
}

func (p *pool) open(h v1.Hash) (*os.File, error) {
	if b, ok := p.get(h); ok {
		return os.Open(b.path)
	}
	return p.store.Open(h)
}

// pooled is a blob of the pool, open for one reading.
type pooled struct {
	io.ReaderAt
	name  string
	f     *os.File // nil when it lies in parts
	close func() error
}

func (p *pooled) Close() error { return p.close() }

// source opens a blob for one reading in order.
func (p *pool) source(h v1.Hash) (*pooled, error) {
	if b, ok := p.fresh(h); ok {
		return &pooled{bytes.NewReader(b), "a list of software", nil, func() error { return nil }}, nil
	}
	f, err := p.open(h)
	if err != nil {
		if l, m, ok := p.onMedia(h); ok {
			in := &inParts{l, m, map[int]*content.BulkReader{}}
			return &pooled{in, m.Files[l.Part-1], nil, in.Close}, nil
		}
		return nil, err
	}
	in := content.NewBulk(f)
	return &pooled{in, f.Name(), f, in.Close}, nil
}

// same says whether f, opened for h, is a local file that was hashed and has not
// been touched since: then it need not be hashed again. One that was touched is
// an error.
func (p *pool) same(h v1.Hash, f *os.File) (bool, error) {
	l, ok := p.get(h)
	if !ok || f == nil || l.stamp == (stamp{}) {
		return false, nil
	}
	st, err := stampOf(f)
	if err == nil && st != l.stamp {
		err = errors.New("size or change time differ")
	}
	return err == nil, err
}

// put stores made bytes and describes them.
func (p *pool) put(ctx context.Context, mt types.MediaType, b []byte) (v1.Descriptor, error) {
	sum := sha256.Sum256(b)
	d := v1.Descriptor{MediaType: mt, Size: int64(len(b)), Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}}
	if p.standsIn(b) {
		p.mu.Lock()
		p.unread[d.Digest.Hex] = true
		p.mu.Unlock()
		return d, p.make(b)
	}
	return d, p.store.Put(ctx, d.Digest, d.Size, bytes.NewReader(b))
}

// putJSON is put for a manifest or a config.
func (p *pool) putJSON(ctx context.Context, mt types.MediaType, v any) (v1.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	return p.put(ctx, mt, b)
}

// manifest returns the bytes of a small blob, verified.
func (p *pool) manifest(d v1.Descriptor) ([]byte, error) {
	if b, ok := p.fresh(d.Digest); ok {
		return readManifest(bytes.NewReader(b), d)
	}
	f, err := p.open(d.Digest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readManifest(f, d)
}

func readManifest(r io.Reader, d v1.Descriptor) ([]byte, error) {
	if d.Size > maxManifest {
		return nil, fmt.Errorf("manifest %s: %d bytes, want at most %d", d.Digest, d.Size, maxManifest)
	}
	b, err := io.ReadAll(io.LimitReader(r, d.Size+1))
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	sum := sha256.Sum256(b)
	got := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
	if int64(len(b)) != d.Size || got != d.Digest {
		return nil, &content.MismatchError{Want: d.Digest, Got: got, WantSize: d.Size, GotSize: int64(len(b))}
	}
	return b, nil
}

// children lists what a manifest or index refers to. Anything else is a leaf.
func children(d v1.Descriptor, raw []byte) ([]v1.Descriptor, error) {
	switch {
	case d.MediaType.IsIndex():
		x, err := v1.ParseIndexManifest(bytes.NewReader(raw))
		if err != nil {
			return nil, fmt.Errorf("index %s: %w", d.Digest, err)
		}
		return x.Manifests, nil
	case d.MediaType.IsImage():
		m, err := v1.ParseManifest(bytes.NewReader(raw))
		if err != nil {
			return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
		return append([]v1.Descriptor{m.Config}, m.Layers...), nil
	}
	return nil, fmt.Errorf("%s has media type %.80q, want an OCI or Docker manifest or index", d.Digest, d.MediaType)
}

func isManifest(d v1.Descriptor) bool { return d.MediaType.IsIndex() || d.MediaType.IsImage() }

// maxDepth bounds how deep indexes may nest.
const maxDepth = 4

// walk is walkIn for manifests that are all on this machine.
func walk(d v1.Descriptor, read func(v1.Descriptor) ([]byte, error), visit func(v1.Descriptor) error) error {
	return walkIn(context.Background(), d, read, visit)
}

// walkIn calls visit for d and everything below it, parents first, until ctx
// ends. read returns a manifest's bytes, verified; each manifest is read once,
// however often others name it, and visit hears of each time.
func walkIn(ctx context.Context, d v1.Descriptor, read func(v1.Descriptor) ([]byte, error), visit func(v1.Descriptor) error) error {
	_, err := (&walker{ctx, read, visit, map[manifestKey]int{}}).walk(d, 0)
	return err
}

// manifestKey is what a manifest's bytes are read as.
type manifestKey struct {
	digest v1.Hash
	as     types.MediaType
}

type walker struct {
	ctx   context.Context
	read  func(v1.Descriptor) ([]byte, error)
	visit func(v1.Descriptor) error
	seen  map[manifestKey]int // how deep it is below a manifest that was read
}

// walk returns how deep it is below d.
func (w *walker) walk(d v1.Descriptor, depth int) (below int, err error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	if err := w.visit(d); err != nil {
		return 0, err
	}
	if depth > 0 && !isManifest(d) {
		return 0, nil
	}
	key := manifestKey{d.Digest, d.MediaType}
	below, known := w.seen[key]
	if depth+below > maxDepth {
		return 0, fmt.Errorf("%s: manifests are nested deeper than %d", d.Digest, maxDepth)
	}
	if known {
		return below, nil
	}
	cs, err := w.children(d)
	if err != nil {
		return 0, err
	}
	for _, c := range cs {
		k, err := w.walk(c, depth+1)
		if err != nil {
			return 0, err
		}
		if isManifest(c) {
			below = max(below, k+1)
		}
	}
	w.seen[key] = below
	return below, nil
}

func (w *walker) children(d v1.Descriptor) ([]v1.Descriptor, error) {
	raw, err := w.read(d)
	if err != nil {
		return nil, err
	}
	return children(d, raw)
}

// complete says whether the pool holds d and all that is below it.
func (p *pool) complete(ctx context.Context, d v1.Descriptor) bool {
	return walkIn(ctx, d, p.manifest, func(c v1.Descriptor) error {
		n, err := p.stat(c.Digest)
		if err == nil && n != c.Size {
			err = content.ErrMismatch
		}
		return err
	}) == nil
}
