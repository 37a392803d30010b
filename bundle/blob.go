package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// Blob is a blob of a bundle, read straight from the parts, in any order. No
// byte is given out before the chunk that it lies in was proved; what can't be
// had as it was signed is read again, rebuilt from parity, and then an error. It
// holds some 12 MiB once something was read, and belongs to one goroutine.
type Blob struct {
	ctx  context.Context
	b    manifest.Blob
	m    *Media
	r    *reader // nil before the first read
	warn func(error)
	off  int64
	now  int // the chunk in data, -1 before the first
	buf  []byte
	data []byte
}

// OpenBlob opens a blob. One that the bundle doesn't have is fs.ErrNotExist; of
// one that lies in the base of a differential bundle, wholly or in part, the
// error is manifest.ErrNoBase, too. warn, which may be nil, is told of chunks
// that had to be read again or rebuilt. Nothing is read yet.
func (m *Media) OpenBlob(ctx context.Context, h v1.Hash, warn func(error)) (*Blob, error) {
	b, ok := m.blobs[h]
	if !ok {
		return nil, fmt.Errorf("blob %s is not in %s %s: %w", h, m.release.Name, m.release.Version, fs.ErrNotExist)
	}
	if n := b.OnMedia(); n != b.Size {
		return nil, fmt.Errorf("blob %s: %d of its %d bytes are not on these media: the bundle %w, %s: %w",
			h, b.Size-n, b.Size, manifest.ErrNoBase, m.release.Base, fs.ErrNotExist)
	}
	if b.Size == 0 { // of which no chunk is read
		if _, err := prove(b, 0, nil); err != nil {
			return nil, err
		}
	}
	return &Blob{ctx: ctx, b: b, m: m, warn: warn, now: -1}, nil
}

// Size returns the blob's size in bytes.
func (b *Blob) Size() int64 { return b.b.Size }

// Read is io.Reader.
func (b *Blob) Read(p []byte) (int, error) {
	if b.off >= b.b.Size {
		return 0, io.EOF
	}
	i := int(b.off / manifest.ChunkSize)
	if err := b.load(i); err != nil {
		return 0, err
	}
	n := copy(p, b.data[b.off-int64(i)*manifest.ChunkSize:])
	b.off += int64(n)
	return n, nil
}

// Has says whether the byte that Read gives next was read and proved already, or
// there is none: then Read does not touch the media.
func (b *Blob) Has() bool { return b.off >= b.b.Size || b.now == int(b.off/manifest.ChunkSize) }

// load brings chunk i into data, proved.
func (b *Blob) load(i int) error {
	if b.now == i {
		return nil
	}
	if b.r == nil {
		b.r, b.buf = b.m.reader(b.warn), chunkBuffer(b.b.Size)
	}
	b.now = -1
	var p content.Piece
	p, err := b.r.chunk(b.ctx, b.b, i, b.buf)
	if err != nil {
		return err
	}
	b.now, b.data = i, p.Data()
	return nil
}

// chunkBuffer is for the chunks of a blob; for a large one it can go past the
// page cache.
func chunkBuffer(size int64) []byte {
	if size < manifest.Large {
		return make([]byte, size)
	}
	return content.Buffers(1)[0][:min(size, manifest.ChunkSize)]
}

// Seek is io.Seeker.
func (b *Blob) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += b.off
	case io.SeekEnd:
		off += b.b.Size
	}
	if off < 0 {
		return 0, errors.New("seek before the beginning of the blob")
	}
	b.off = off
	return off, nil
}

// Close closes the parts.
func (b *Blob) Close() error {
	if b.r != nil {
		b.r.close()
		b.r = nil
	}
	b.now, b.b.Size = -1, 0
	return nil
}

// Refs returns the items' roots, named as they will be in a store, and the
// manifests that belong to no item and refer to something (such as SBOMs to
// their images), without a name. It reads manifests only.
func (m *Media) Refs(ctx context.Context) (out []v1.Descriptor, err error) {
	seen := map[v1.Hash]bool{}
	for _, it := range m.release.Items {
		d := it.Descriptor
		d.Annotations = map[string]string{content.RefName: it.Ref}
		out = append(out, d)
		for _, h := range m.reach(ctx, it) {
			seen[h] = true
		}
	}
	for _, b := range m.index.Blobs {
		if seen[b.Digest] || b.Size > maxManifest || b.Size == 0 || b.OnMedia() != b.Size {
			continue
		}
		raw, err := m.small(ctx, b.Digest)
		if err != nil {
			return nil, err
		}
		if d, ok := referrer(raw); ok {
			d.Digest, d.Size = b.Digest, b.Size
			out = append(out, d)
		}
	}
	return out, nil
}

// reach lists what an item refers to, as far as that can be read here. Each
// manifest is read once, however often others name it: nobody may have signed
// it (see Contents).
func (m *Media) reach(ctx context.Context, it manifest.Item) (out []v1.Hash) {
	seen, todo := map[v1.Hash]bool{}, []v1.Descriptor{it.Descriptor}
	for len(todo) > 0 && ctx.Err() == nil {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[d.Digest] {
			continue
		}
		seen[d.Digest], out = true, append(out, d.Digest)
		if !isManifest(d) {
			continue
		}
		raw, err := m.manifest(ctx, d)
		if err != nil {
			continue // what is below is not here
		}
		if cs, err := children(d, raw); err == nil {
			todo = append(todo, cs...)
		}
	}
	return out
}

// manifest reads a manifest of the bundle, proved.
func (m *Media) manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	if d.Size > maxManifest {
		return nil, fmt.Errorf("manifest %s: %d bytes, want at most %d", d.Digest, d.Size, maxManifest)
	}
	return m.small(ctx, d.Digest)
}

// small reads a whole blob of at most maxManifest bytes.
func (m *Media) small(ctx context.Context, h v1.Hash) ([]byte, error) {
	b, err := m.OpenBlob(ctx, h, nil)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if b.Size() > maxManifest {
		return nil, fmt.Errorf("blob %s: %d bytes, want at most %d", h, b.Size(), maxManifest)
	}
	return io.ReadAll(b)
}

// Holds says whether all that an item refers to lies on the media, and what is
// the first that doesn't. It reads manifests only.
func (m *Media) Holds(ctx context.Context, it manifest.Item) error {
	return walkIn(ctx, it.Descriptor, func(d v1.Descriptor) ([]byte, error) { return m.manifest(ctx, d) }, func(d v1.Descriptor) error {
		b, err := m.OpenBlob(ctx, d.Digest, nil)
		if err != nil {
			return err
		}
		return b.Close()
	})
}
