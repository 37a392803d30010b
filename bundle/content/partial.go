package content

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/internal/durable"
)

const (
	partialDir = "partial" // blobs of known digest under way, by hex
	uploadDir  = "uploads" // blobs of unknown digest under way, by session

	// MaxRedo bounds the bytes that are written again after a power cut.
	MaxRedo = 64 << 20
	// dropCache is the size from which a blob's pages leave the page cache as
	// soon as they are safe: a load of 100 GB should not evict everything else.
	dropCache = 256 << 20
)

// pace is how often a partial blob is made safe, in bytes. While one entry is
// on its way to the disk up to MaxRedo-pace more bytes are taken.
var pace int64 = MaxRedo / 2

// Partial is a blob under way that survives its process: what the journal says
// is safe needs not be written again. It belongs to one goroutine and ends
// with Commit, Close (goes on another time) or Discard.
type Partial struct {
	s    *Store
	path string
	f, j file // j is nil before the first entry
	big  direct
	want v1.Hash
	size int64 // -1: unknown
	n    int64
	sum  hash.Hash

	// What the journal says. While busy is not nil a goroutine writes an
	// entry; safe, seq, j and linked are then its own.
	busy   chan error
	ahead  int64 // bytes of the entry under way, or the last one
	safe   int64
	seq    uint64
	linked bool // the names are flushed
}

// Resume begins the blob h of size bytes, or goes on with one that was begun:
// Size says how many bytes are there. The space for the whole is reserved. A
// blob that somebody else writes at this moment is an ErrBusy.
func (s *Store) Resume(h v1.Hash, size int64) (*Partial, error) {
	if err := check(h); err != nil {
		return nil, err
	}
	if size < 0 {
		return nil, fmt.Errorf("blob %s: size %d: want 0 or more", h, size)
	}
	p := &Partial{s: s, path: filepath.Join(s.path(partialDir), h.Hex), want: h, size: size}
	if err := p.start(os.O_CREATE); err != nil {
		return nil, fmt.Errorf("blob %s: %w", h, err)
	}
	return p, nil
}

// Begun returns how many bytes of the blob h Resume will find safe.
func (s *Store) Begun(h v1.Hash, size int64) int64 {
	path := filepath.Join(s.path(partialDir), h.Hex)
	fi, err := os.Lstat(path)
	if check(h) != nil || err != nil || !fi.Mode().IsRegular() {
		return 0
	}
	j, err := os.Open(path + journal)
	if err != nil {
		return 0
	}
	defer j.Close()
	if e, err := readJournal(j, rawDigest(h), size); err == nil && e.n <= fi.Size() {
		return e.n
	}
	return 0
}

// start opens and locks the file, and goes to what the journal says.
func (p *Partial) start(create int) error {
	if create != 0 { // the folder is missing in a layout that another tool made
		if err := durable.MkdirAll(filepath.Dir(p.path), 0o755); err != nil {
			return err
		}
	}
	if err := p.lock(create); err != nil {
		return err
	}
	err := p.rewind()
	if err == nil {
		err = p.reserve()
	}
	if err != nil {
		return errors.Join(err, p.shut())
	}
	if p.size < 0 || p.size >= 1<<20 {
		p.big.f = p.s.openDirect(p.path)
	}
	return nil
}

// lock opens the file and takes its flock. Whoever drops a partial blob has
// that flock and removes the name; so after a lock the name must still be ours.
func (p *Partial) lock(create int) error {
	for {
		f, err := p.s.disk.open(p.path, os.O_RDWR|create|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if err == unix.EWOULDBLOCK {
				return &BusyError{What: p.path}
			}
			return fmt.Errorf("flock %s: %w", p.path, err)
		}
		if named(f, p.path) {
			p.f = f
			return nil
		}
		f.Close()
	}
}

// named says whether path is (still) a name of f.
func named(f file, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// rewind goes to the newest entry that the file can keep, and drops what lies
// behind it: nobody knows whether those bytes reached the disk.
func (p *Partial) rewind() (err error) {
	p.n, p.safe, p.ahead, p.sum = 0, 0, 0, sha256.New()
	if p.j, err = p.s.openJournal(p.path); err != nil {
		return err
	}
	fi, err := p.f.Stat()
	if err != nil {
		return err
	}
	if p.j != nil {
		e, err := readJournal(p.j, rawDigest(p.want), p.size)
		if err != nil {
			return err
		}
		p.seq = e.seq
		if h, err := restore(e.sum[:]); e.seq > 0 && err == nil && e.n <= fi.Size() {
			p.n, p.safe, p.ahead, p.sum, p.linked = e.n, e.n, e.n, h, true
		}
	}
	if fi.Size() != p.n {
		return p.f.Truncate(p.n)
	}
	return nil
}

func (p *Partial) reserve() error {
	if p.size-p.n < 1<<20 {
		return nil
	}
	err := unix.Fallocate(int(p.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, p.n, p.size-p.n)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINTR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reserve %d bytes in %s: %w", p.size-p.n, p.s.dir, err)
	}
	return nil
}

// Size returns the number of bytes that are there.
func (p *Partial) Size() int64 { return p.n }

// State returns the sha256 state of what is there, at the border of a block.
func (p *Partial) State() (State, bool) { return stateOf(p.sum) }

// Digest returns the digest of what is there.
func (p *Partial) Digest() v1.Hash { return digestOf(p.sum) }

// Write appends b and hashes it.
func (p *Partial) Write(b []byte) (int, error) {
	if p.size >= 0 && int64(len(b)) > p.size-p.n {
		return 0, p.mismatch(p.n + int64(len(b)))
	}
	n, err := p.big.writeAt(p.f, b, p.n)
	p.sum.Write(b[:n])
	p.n += int64(n)
	if err != nil {
		return n, err
	}
	return n, p.keepPace()
}

// Append adds a piece, which must have been hashed from the state that the
// blob is in: so what Commit compares is the sum of all that was written,
// though it is not computed twice.
func (p *Partial) Append(c Piece) error {
	s, ok := stateOf(p.sum)
	switch {
	case !ok || c.sum == nil || c.off != p.n || c.from != s:
		return fmt.Errorf("blob %s: a piece for byte %d does not continue what is there, %d bytes", p.want, c.off, p.n)
	case p.size >= 0 && int64(len(c.data)) > p.size-p.n:
		return p.mismatch(p.n + int64(len(c.data)))
	}
	if _, err := p.big.writeAt(p.f, c.data, p.n); err != nil {
		return err // p.n and p.sum still fit each other
	}
	p.n, p.sum = p.n+int64(len(c.data)), c.sum
	return p.keepPace()
}

func (p *Partial) mismatch(n int64) error {
	return &MismatchError{Want: p.want, Got: p.Digest(), WantSize: p.size, GotSize: n}
}

// keepPace makes an entry every pace bytes, beside the writing, and waits when
// a power cut would otherwise cost more than MaxRedo.
func (p *Partial) keepPace() error {
	if p.n-p.ahead < pace {
		return nil
	}
	if err := p.wait(); err != nil {
		return err
	}
	e := snapshot(p.seq+1, p.n, p.size, p.want, p.sum)
	p.ahead, p.busy = p.n, make(chan error, 1)
	go func(done chan<- error) { done <- p.record(e) }(p.busy)
	return nil
}

// wait waits for the entry under way.
func (p *Partial) wait() error {
	if p.busy == nil {
		return nil
	}
	err := <-p.busy
	p.busy = nil
	return err
}

// record makes e.n bytes safe: the data, then the entry that vouches for it.
func (p *Partial) record(e entry) (err error) {
	if err := p.f.Sync(); err != nil {
		return err
	}
	if p.j == nil {
		if p.j, err = p.s.createJournal(p.path); err != nil {
			return err
		}
	}
	if _, err := p.j.WriteAt(e.encode(), int64(e.seq%2)*slotStep); err != nil {
		return err
	}
	if err := p.j.Sync(); err != nil {
		return err
	}
	if !p.linked {
		if err := p.s.disk.syncDir(filepath.Dir(p.path)); err != nil {
			return err
		}
		p.linked = true
	}
	if p.size >= dropCache {
		unix.Fadvise(int(p.f.Fd()), p.safe, e.n-p.safe, unix.FADV_DONTNEED) // advice: may fail
	}
	p.safe, p.seq = e.n, e.seq
	return nil
}

// save makes everything that was written safe.
func (p *Partial) save() error {
	if err := p.wait(); err != nil {
		return err
	}
	if p.n == p.safe && p.linked {
		return nil
	}
	return p.record(snapshot(p.seq+1, p.n, p.size, p.want, p.sum))
}

// Close keeps what was written, so that Resume goes on with it.
func (p *Partial) Close() error {
	if p.f == nil {
		return nil
	}
	if p.n == 0 {
		return p.Discard()
	}
	err := p.save()
	if p.size > p.n { // give back the blocks that were reserved
		err = errors.Join(err, p.f.Truncate(p.n))
	}
	return errors.Join(err, p.shut())
}

// shut closes the files.
func (p *Partial) shut() error {
	err := errors.Join(p.wait(), p.big.close())
	for _, f := range []file{p.j, p.f} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	p.f, p.j = nil, nil
	return err
}

// Discard drops what was written. After Commit, Close or Discard it does
// nothing.
func (p *Partial) Discard() error {
	if p.f == nil {
		return nil
	}
	err := p.wait()
	err = errors.Join(err, p.s.drop(p.path))
	return errors.Join(err, p.shut())
}

// drop removes a partial blob, whose flock the caller has. The data goes last:
// its name is the lock.
func (s *Store) drop(path string) (err error) {
	for _, n := range []string{path + journal, path} {
		if e := s.disk.remove(n); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// Commit checks size and digest, flushes, and gives the blob its name. Content
// that is something else is dropped, so that the next Resume begins anew. On
// any other error it is kept.
func (p *Partial) Commit() error {
	if p.f == nil {
		return fmt.Errorf("blob %s: %w", p.want, os.ErrClosed)
	}
	if p.size >= 0 && p.n != p.size || p.Digest() != p.want {
		return errors.Join(p.mismatch(p.n), p.Discard())
	}
	if n, err := p.s.Stat(p.want); err == nil && n == p.n {
		return p.Discard() // somebody else was faster
	}
	if err := p.finish(); err != nil {
		return errors.Join(fmt.Errorf("blob %s: %w", p.want, err), p.shut())
	}
	return p.shut()
}

func (p *Partial) finish() error {
	if err := p.wait(); err != nil {
		return err
	}
	if err := p.f.Chmod(0o444); err != nil {
		return err
	}
	if err := p.f.Sync(); err != nil {
		return err
	}
	if p.size >= dropCache {
		unix.Fadvise(int(p.f.Fd()), 0, 0, unix.FADV_DONTNEED) // advice: may fail
	}
	if err := p.s.adopt(p.path, p.s.Path(p.want)); err != nil {
		return err
	}
	// A journal that a power cut brings back vouches for no file and is swept.
	if err := p.s.disk.remove(p.path + journal); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
