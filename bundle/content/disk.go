package content

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/clawbox/clawbox/internal/durable"
)

// disk is the seam below every write of a blob. Tests put one in its place
// that records (and then loses what was not flushed), kills the process, or
// answers with EIO and ENOSPC.
type disk interface {
	open(path string, flag int, perm fs.FileMode) (file, error)
	rename(from, to string) error
	remove(path string) error
	syncDir(dir string) error
}

// file is what a writer needs of an *os.File.
type file interface {
	io.ReaderAt
	io.WriterAt
	Chmod(fs.FileMode) error
	Close() error
	Fd() uintptr
	Name() string
	Stat() (fs.FileInfo, error)
	Sync() error
	Truncate(int64) error
}

// realDisk is the disk of every store that isn't under test.
type realDisk struct{}

func (realDisk) open(path string, flag int, perm fs.FileMode) (file, error) {
	f, err := os.OpenFile(path, flag, perm)
	if err != nil {
		return nil, err // not a nil *os.File in an interface
	}
	return f, nil
}

func (realDisk) rename(from, to string) error { return os.Rename(from, to) }
func (realDisk) remove(path string) error     { return os.Remove(path) }
func (realDisk) syncDir(dir string) error     { return durable.SyncDir(dir) }

// adopt gives the flushed file at from its name in blobs/, durably.
func (s *Store) adopt(from, to string) error {
	if err := s.disk.rename(from, to); err != nil {
		return err
	}
	return s.disk.syncDir(filepath.Dir(to))
}
