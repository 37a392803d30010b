package content

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
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

// ErrMismatch says that content is not what its digest or size promised.
var ErrMismatch = errors.New("content does not match its digest")

// MismatchError is an ErrMismatch with what was got and wanted. A WantSize of
// -1 means that no size was asked for.
type MismatchError struct {
	Want, Got         v1.Hash
	WantSize, GotSize int64
}

func (e *MismatchError) Error() string {
	if e.WantSize >= 0 && e.GotSize != e.WantSize {
		return fmt.Sprintf("blob %s: got %d bytes, want %d: the source is damaged or was changed; nothing was kept",
			e.Want, e.GotSize, e.WantSize)
	}
	return fmt.Sprintf("blob %s: content has digest %s: the source is damaged or was changed; nothing was kept", e.Want, e.Got)
}

// Is makes errors.Is(err, ErrMismatch) true.
func (e *MismatchError) Is(target error) bool { return target == ErrMismatch }

// Writer writes one blob. It ends with Commit or Abort, and belongs to one
// goroutine.
type Writer struct {
	s    *Store
	f    file    // in tmp/, holds a flock until it is closed
	want v1.Hash // zero: whatever it turns out to be
	size int64   // -1: unknown
	n    int64
	sum  hash.Hash
}

// Create begins the blob h of size bytes. The zero h means that the digest is
// learned by writing (see Writer.Digest), and size -1 that the length is.
// Space for a known size is reserved, so that a full disk is met at once.
func (s *Store) Create(h v1.Hash, size int64) (*Writer, error) {
	if h != (v1.Hash{}) {
		if err := check(h); err != nil {
			return nil, err
		}
	}
	if size < -1 {
		return nil, fmt.Errorf("blob %s: size %d: want 0 or more, or -1 for unknown", h, size)
	}
	f, err := s.temp()
	if err != nil {
		return nil, fmt.Errorf("content store: %w", err)
	}
	w := &Writer{s: s, f: f, want: h, size: size, sum: sha256.New()}
	if err := w.reserve(); err != nil {
		return nil, errors.Join(fmt.Errorf("blob %s: reserve %d bytes in %s: %w", h, size, s.dir, err), w.Abort())
	}
	return w, nil
}

// temp makes a locked file in tmp/. The store's shared lock covers the moment
// between creation and flock, in which a sweep would take it for abandoned.
func (s *Store) temp() (file, error) {
	unlock, err := s.lock(unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer unlock()
	name := filepath.Join(s.path(tmpDir), "blob-"+rand.Text())
	f, err := s.disk.open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("flock %s: %w", f.Name(), err), f.Close(), s.disk.remove(name))
	}
	return f, nil
}

// reserve asks the file system for the whole blob; one that can't reserve
// says so when it is full.
func (w *Writer) reserve() error {
	if w.size < 1<<20 {
		return nil
	}
	err := unix.Fallocate(int(w.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, w.size)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINTR) {
		return nil
	}
	return err
}

// Write adds p. More bytes than promised are an ErrMismatch at once.
func (w *Writer) Write(p []byte) (int, error) {
	if w.size >= 0 && int64(len(p)) > w.size-w.n {
		return 0, w.mismatch(w.n + int64(len(p)))
	}
	n, err := w.f.WriteAt(p, w.n)
	w.sum.Write(p[:n])
	w.n += int64(n)
	return n, err
}

// Digest returns the digest of what was written so far.
func (w *Writer) Digest() v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(w.sum.Sum(nil))}
}

// Size returns the number of bytes written so far.
func (w *Writer) Size() int64 { return w.n }

func (w *Writer) mismatch(n int64) error {
	return &MismatchError{Want: w.want, Got: w.Digest(), WantSize: w.size, GotSize: n}
}

// Commit checks size and digest, flushes the data and gives the blob its
// name. Whatever it returns, the writer is done; on an error nothing remains.
func (w *Writer) Commit() error {
	got := w.Digest()
	if w.want == (v1.Hash{}) {
		w.want = got
	}
	if got != w.want || w.size >= 0 && w.n != w.size {
		return errors.Join(w.mismatch(w.n), w.Abort())
	}
	if n, err := w.s.Stat(w.want); err == nil && n == w.n {
		return w.Abort() // somebody else was faster
	}
	if err := w.finish(); err != nil {
		return errors.Join(fmt.Errorf("blob %s: %w", w.want, err), w.Abort())
	}
	return nil
}

func (w *Writer) finish() error {
	if err := w.f.Chmod(0o444); err != nil {
		return err
	}
	if err := w.f.Sync(); err != nil {
		return err
	}
	// The flock is held over the rename: a sweep must not see the file free.
	if err := w.s.adopt(w.f.Name(), w.s.Path(w.want)); err != nil {
		return err
	}
	return w.f.Close()
}

// Abort drops what was written. After Commit or Abort it does nothing.
func (w *Writer) Abort() error {
	err := w.s.disk.remove(w.f.Name())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if cerr := w.f.Close(); !errors.Is(cerr, os.ErrClosed) {
		err = errors.Join(err, cerr)
	}
	return err
}

// sweep removes what dead writers left in tmp/, and cut-off writes of the
// files that only a holder of the lock writes.
func (s *Store) sweep() error {
	unlock, err := s.lock(unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	for _, n := range []string{indexFile, layoutFile} {
		old, _ := filepath.Glob(s.path("." + n + ".tmp-*")) // the pattern is well-formed
		for _, p := range old {
			if err := os.Remove(p); err != nil {
				return err
			}
		}
	}
	return s.sweepBlobs()
}

func (s *Store) sweepBlobs() error {
	es, err := os.ReadDir(s.path(tmpDir))
	if errors.Is(err, fs.ErrNotExist) { // a layout made by another tool
		return durable.MkdirAll(s.path(tmpDir), 0o755)
	}
	for _, e := range es {
		if rerr := removeStale(filepath.Join(s.path(tmpDir), e.Name())); rerr != nil {
			err = errors.Join(err, rerr)
		}
	}
	return err
}

// removeStale deletes path unless a living writer holds its flock.
func removeStale(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // its writer has just finished
	} else if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		return nil
	} else if err != nil {
		return fmt.Errorf("flock %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
