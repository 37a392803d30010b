package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/internal/durable"
)

// cache remembers across builds what reading showed: the digest of a local file
// that has not changed since, the sums of a blob's chunks, and what lies on the
// media. It is as trusted as the work store that it lies beside, by the same
// user; losing it costs time only.
type cache struct {
	dir string
	off bool // remember, but believe nothing
}

// stamp tells a file from a changed one, as git does: no program can write to a
// file and leave its change time, short of setting the clock.
type stamp struct {
	Dev, Ino     uint64
	Size         int64
	Mtime, Ctime int64 // nanoseconds since 1970
}

func stampOf(f *os.File) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return stamp{}, &fs.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return stamp{st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()}, nil
}

func stampAt(path string) (stamp, error) {
	f, _, err := openFile(path)
	if err != nil {
		return stamp{}, err
	}
	defer f.Close()
	return stampOf(f)
}

// settled says that the file has not been changed for so long that a further
// change will show in its stamp: times in it are as coarse as the kernel's tick.
func (s stamp) settled(now time.Time) bool { return now.UnixNano()-s.Ctime > 100e6 }

// path names an entry.
func (c *cache) path(kind, key string) string {
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(c.dir, kind, hex.EncodeToString(sum[:]))
}

// get reads an entry; one that is damaged is none.
func (c *cache) get(kind, key string, v any) bool {
	return c != nil && c.read(c.path(kind, key), v)
}

func (c *cache) read(path string, v any) bool {
	if c.off {
		return false
	}
	b, err := os.ReadFile(path)
	if err != nil || len(b) < sha256.Size {
		return false
	}
	sum := sha256.Sum256(b[sha256.Size:])
	return bytes.Equal(sum[:], b[:sha256.Size]) && json.Unmarshal(b[sha256.Size:], v) == nil
}

// each gives the entries of a kind.
func each[T any](c *cache, kind string) iter.Seq[T] {
	return func(yield func(T) bool) {
		if c == nil {
			return
		}
		es, _ := os.ReadDir(filepath.Join(c.dir, kind)) // none: nothing is remembered
		for _, e := range es {
			var v T
			if c.read(filepath.Join(c.dir, kind, e.Name()), &v) && !yield(v) {
				return
			}
		}
	}
}

func (c *cache) put(kind, key string, v any) error {
	if c == nil {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("build cache: %w", err)
	}
	p := c.path(kind, key)
	if err := durable.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		return fmt.Errorf("build cache: %w", err)
	}
	sum := sha256.Sum256(b)
	return durable.WriteFile(p, append(sum[:], b...), 0o600)
}

// sums fills in what is known of a blob's chunks, and says whether all is.
func (c *cache) sums(x *manifest.Blob) bool {
	if x.Size <= manifest.ChunkSize || len(x.Chunks) > 0 {
		return true
	}
	var got manifest.Blob
	if !c.get("sums", x.Digest.String(), &got) || got.Digest != x.Digest || got.Size != x.Size {
		return false
	}
	if n := chunkCount(*x); len(got.Chunks) != n || len(got.States) != n-1 {
		return false
	}
	x.Chunks, x.States = got.Chunks, got.States
	return true
}

func (c *cache) putSums(x manifest.Blob) error {
	return c.put("sums", x.Digest.String(), manifest.Blob{Digest: x.Digest, Size: x.Size, Chunks: x.Chunks, States: x.States})
}

// hashed is what hashing a local file showed.
type hashed struct {
	Stamp  stamp
	Digest v1.Hash
}

// hash returns the digest, the size and the stamp of an open regular file, from
// the cache when the file is as it was. It looks into it, and computes the sums
// of the chunks, in the same reading.
func (j *job) hash(ctx context.Context, f *os.File, what string) (localBlob, v1.Hash, error) {
	fi, err := f.Stat()
	if err != nil {
		return localBlob{}, v1.Hash{}, err
	}
	if !fi.Mode().IsRegular() {
		return localBlob{}, v1.Hash{}, fmt.Errorf("%s is a %s, want a regular file", f.Name(), describeMode(fi.Mode()))
	}
	st, err := stampOf(f)
	if err != nil {
		return localBlob{}, v1.Hash{}, err
	}
	abs, err := filepath.Abs(f.Name())
	if err != nil {
		return localBlob{}, v1.Hash{}, err
	}
	l := localBlob{path: f.Name(), size: st.Size, stamp: st}
	var known hashed
	if j.pool.cache.get("files", abs, &known) && known.Stamp == st {
		if _, ok := j.pool.looks.get(known.Digest, asRaw); ok {
			return l, known.Digest, nil
		}
	}
	if h, ok := j.pool.sawFile(abs, st); ok {
		return l, h, nil
	}
	if st.Size >= lateFile && j.pool.pullsLate {
		return l, j.pool.leaveFile(j.item.Name, abs, l), nil
	}
	settled := st.settled(time.Now())
	r := reading{pool: j.pool, sum: true, as: asRaw}
	task := j.progress.Start("hash "+what, st.Size)
	h, err := r.read(ctx, f, st.Size, task)
	if now, e := stampOf(f); err == nil && (e != nil || now != st) {
		err = errors.Join(e, fmt.Errorf("%s changed while it was read: build again when it is complete", f.Name()))
	}
	task.Done(err)
	if err != nil {
		return l, h, err
	}
	j.pool.saw(abs, hashed{st, h})
	keep := settled && st.Size >= cachedFile
	if err := j.pool.looks.put(h, asRaw, r.out, keep); err != nil || !keep {
		return l, h, err
	}
	return l, h, j.pool.cache.put("files", abs, hashed{st, h})
}

// cachedFile is the size from which it is remembered what a local file showed.
const cachedFile = 1 << 20

// reading is one pass over a file.
type reading struct {
	pool *pool
	sum  bool   // digest it, and remember the sums of the chunks
	as   string // what it is looked at as
	put  func(i int, p []byte) error
	out  look
}

// read reads size bytes of f, sums and looks. The digest is zero without sum.
func (r *reading) read(ctx context.Context, f *os.File, size int64, task Task) (v1.Hash, error) {
	return r.readInto(ctx, f, &manifest.Blob{Size: size}, task)
}

// readInto is read that tells what it learns in x, too.
func (r *reading) readInto(ctx context.Context, f *os.File, x *manifest.Blob, task Task) (v1.Hash, error) {
	end := int64(-1) // of what is looked at
	if r.as == asRaw {
		end = tensors(f, x.Size)
	}
	in := content.NewBulk(f)
	defer in.Release()
	p := pass{x: x, in: in, look: newLooking(ctx, r.as, end), put: r.put}
	if r.sum {
		p.sum = &summer{x: x, at: content.StartState}
	} else if end >= 0 {
		p.skip = func(i int) bool { return int64(i)*manifest.ChunkSize >= end }
	}
	if err := p.run(ctx, task); err != nil {
		p.look.stop()
		return v1.Hash{}, err
	}
	err := r.end(&p)
	return x.Digest, err
}

// end takes what the pass showed.
func (r *reading) end(p *pass) (err error) {
	if r.out, _, err = p.look.done(); err != nil || p.sum == nil {
		return err
	}
	if err := p.sum.done(); err != nil {
		return err
	}
	if p.x.Size <= manifest.ChunkSize {
		return nil
	}
	return r.pool.cache.putSums(*p.x)
}

// measure fills in the sums of a blob's chunks, reading it when the cache
// doesn't have them.
func (b *build) measure(ctx context.Context, x *manifest.Blob) error {
	if b.cache.sums(x) {
		return nil
	}
	in, err := b.pool.source(x.Digest)
	if err != nil {
		return err
	}
	defer in.Close()
	p := pass{x: x, in: in, sum: newSummer(x)}
	if err := p.run(ctx, quiet{}); err != nil {
		return changed(in.name, *x, err)
	}
	if err := p.sum.done(); err != nil {
		return changed(in.name, *x, err)
	}
	return b.cache.putSums(*x)
}
