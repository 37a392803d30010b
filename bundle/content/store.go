// Package content is the store: blobs by digest, and names for some of them.
//
// A store is a directory in the OCI image layout 1.0, so that crane and skopeo
// read it and every consumer on the host (registry, unpacker, model engine)
// opens the same bytes:
//
//	oci-layout               {"imageLayoutVersion":"1.0.0"}
//	index.json               refs: descriptors with a ref.name annotation
//	blobs/sha256/<hex>       content, mode 0444
//	tmp/                     blobs being written
//	partial/<hex>            blobs that outlive their writer, each with a .journal
//	uploads/<session>        the same, of digests that nobody knows yet
//	.lock                    flock for index.json and for sweeping tmp
//	.writer                  flock of the one load, build or collection, and who has it
//	.gc                      flock between GC and those who refer to blobs
//
// Write a blob at once with Put, or bit by bit with Create; with Resume what
// was written goes on after a power cut, at most MaxRedo bytes before it:
//
//	s, err := content.Open("/var/lib/clawbox/store")
//	err = s.Put(ctx, digest, size, reader)
//	err = s.Tag("openclaw:0.1.0", descriptor)
//
// The promise: a file under blobs/ has the digest that it is named by. Content
// is hashed while it is written to tmp/, and gets its name only after the
// digest and the size were right and the data was flushed; so neither a power
// cut nor a killed process nor a full disk leaves a torn blob. What a dead
// process left in tmp/ is swept by the next Open; files of living writers are
// told apart by the flock that they hold.
//
// All methods are safe for concurrent use, by goroutines and by processes.
//
// Blobs go by GC, which keeps what refs and roots reach, or one by one by
// Delete.
//
// Limits: only sha256; a disk that rots after the write is not noticed by Stat,
// which looks at the size alone, and a partial blob's safe bytes are not read
// again before it gets its name.
package content

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/internal/durable"
)

const (
	layoutFile = "oci-layout"
	layoutText = `{"imageLayoutVersion":"1.0.0"}`
	indexFile  = "index.json"
	lockFile   = ".lock"
	tmpDir     = "tmp"
)

// ours are the names that create may find after it was cut off.
var ours = []string{lockFile, writerFile, gcFile, tmpDir, partialDir, uploadDir, "blobs", indexFile, layoutFile}

// Store is one OCI layout on disk.
type Store struct {
	dir  string
	disk disk
}

// Open opens the store in dir, and creates an empty one when dir is absent or
// empty. A directory that holds anything else is refused. A store on
// read-only media can be read; it is not swept.
func Open(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("content store: %w", err)
	}
	s := &Store{dir: dir, disk: realDisk{}}
	text, err := os.ReadFile(filepath.Join(dir, layoutFile))
	switch {
	case err == nil:
		if err := checkLayout(dir, text); err != nil {
			return nil, err
		}
	case errors.Is(err, fs.ErrNotExist):
		if err := s.create(); err != nil {
			return nil, fmt.Errorf("content store: create %s: %w", dir, err)
		}
	default:
		return nil, fmt.Errorf("content store: %w", err)
	}
	if err := s.sweep(); err != nil && !readOnly(err) {
		return nil, fmt.Errorf("content store: sweep %s: %w", dir, err)
	}
	return s, nil
}

func readOnly(err error) bool {
	return errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission)
}

var layoutVersion = regexp.MustCompile(`^\s*\{\s*"imageLayoutVersion"\s*:\s*"1\.0\.0"\s*\}\s*$`)

func checkLayout(dir string, text []byte) error {
	if !layoutVersion.Match(text) {
		return fmt.Errorf("content store: %s/%s is %.60q, want %s: not an OCI layout that this version knows",
			dir, layoutFile, text, layoutText)
	}
	return nil
}

// create lays out an empty store; oci-layout comes last and makes it one.
func (s *Store) create() error {
	if err := durable.MkdirAll(s.dir, 0o755); err != nil {
		return err
	}
	if err := s.onlyOurs(); err != nil {
		return err
	}
	unlock, err := s.lock(unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	for _, d := range []string{"blobs/sha256", tmpDir, partialDir, uploadDir} {
		if err := durable.MkdirAll(filepath.Join(s.dir, d), 0o755); err != nil {
			return err
		}
	}
	// Another process may have been first, and may have tagged already.
	if _, err := os.Lstat(s.path(indexFile)); errors.Is(err, fs.ErrNotExist) {
		if err := s.writeIndex(nil); err != nil {
			return err
		}
	}
	return durable.WriteFile(s.path(layoutFile), []byte(layoutText), 0o644)
}

// onlyOurs refuses to turn somebody's directory into a store.
func (s *Store) onlyOurs() error {
	es, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range es {
		switch n := e.Name(); {
		case slices.Contains(ours, n):
		case strings.HasPrefix(n, "."+indexFile), strings.HasPrefix(n, "."+layoutFile): // cut-off writes
		default:
			return fmt.Errorf("it holds %q and no %s: choose an empty directory or an OCI layout", n, layoutFile)
		}
	}
	return nil
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

// Dir returns the store's absolute directory.
func (s *Store) Dir() string { return s.dir }

// lock takes the flock of index.json and tmp/, and waits for it.
func (s *Store) lock(how int) (unlock func(), err error) { return s.flock(lockFile, how) }

// flock takes one of the store's flocks, unix.LOCK_EX or LOCK_SH.
func (s *Store) flock(name string, how int) (unlock func(), err error) {
	f, err := os.OpenFile(s.path(name), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("flock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

var hex64 = regexp.MustCompile(`^[0-9a-f]{64}$`)

// check refuses digests that can't be a file name here.
func check(h v1.Hash) error {
	if h.Algorithm != "sha256" || !hex64.MatchString(h.Hex) {
		return fmt.Errorf("digest %.80q: want sha256:<64 lower-case hex digits>", h.String())
	}
	return nil
}

// Path returns where the blob h is or would be; "" for a malformed digest.
// Readers may open it; nobody may write it.
func (s *Store) Path(h v1.Hash) string {
	if check(h) != nil {
		return ""
	}
	return filepath.Join(s.dir, "blobs", h.Algorithm, h.Hex)
}

// Stat returns the size of the blob h in bytes; the error is fs.ErrNotExist
// when the store doesn't have it.
func (s *Store) Stat(h v1.Hash) (int64, error) {
	if err := check(h); err != nil {
		return 0, err
	}
	fi, err := os.Lstat(s.Path(h))
	if err != nil {
		return 0, fmt.Errorf("blob %s: %w", h, err)
	}
	if !fi.Mode().IsRegular() {
		return 0, fmt.Errorf("blob %s: %s is a %s, want a regular file", h, s.Path(h), fi.Mode().Type())
	}
	return fi.Size(), nil
}

// Open opens the blob h for reading; fs.ErrNotExist when it is absent.
func (s *Store) Open(h v1.Hash) (*os.File, error) {
	if err := check(h); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(s.Path(h), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", h, err)
	}
	return f, nil
}

// Put stores what r gives as the blob h of size bytes (-1: unknown). It is
// durable when Put returns. A blob that is present already is not written
// again, and r is then not read at all; so r's content is not checked either.
// Content that is not h fails with ErrMismatch and leaves nothing.
func (s *Store) Put(ctx context.Context, h v1.Hash, size int64, r io.Reader) error {
	if n, err := s.Stat(h); err == nil && (size < 0 || n == size) {
		return nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	w, err := s.Create(h, size)
	if err != nil {
		return err
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, WithContext(ctx, r), make([]byte, 1<<20)); err != nil {
		return errors.Join(fmt.Errorf("blob %s: %w", h, err), w.Abort())
	}
	return w.Commit()
}

// WithContext is r until ctx ends, and then an error.
func WithContext(ctx context.Context, r io.Reader) io.Reader { return ctxReader{ctx, r} }

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
