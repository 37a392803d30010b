package content

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// aligned is what the page cache can be passed by with: a multiple of every
// block size that disks have.
const aligned = 4096

// direct moves large, aligned stretches of a file past the page cache
// (O_DIRECT), and the rest through it. Weights that are read or written once
// need no cache, evict what does, and fill it at a price: on a virtual machine
// whose host takes free memory back, 1.5 to 4 CPU-seconds per gigabyte were
// measured, and 0.2 past it. A file system that can't do it (some overlays,
// FUSE) gets plain reads and writes.
type direct struct {
	f   file // the same file, opened with O_DIRECT; nil when that can't be had
	off atomic.Bool
}

// openDirect opens path once more. That it fails is no error.
func (s *Store) openDirect(path string) file {
	f, err := s.disk.open(path, os.O_WRONLY|unix.O_DIRECT|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil
	}
	return f
}

// part returns how many bytes from the beginning of b may go past the cache.
func (d *direct) part(b []byte, off int64) int {
	if d.f == nil || d.off.Load() || len(b) < aligned || off%aligned != 0 || uintptr(unsafe.Pointer(&b[0]))%aligned != 0 {
		return 0
	}
	return len(b) &^ (aligned - 1)
}

// writeAt writes b at off of the file that plain is.
func (d *direct) writeAt(plain io.WriterAt, b []byte, off int64) (n int, err error) {
	if k := d.part(b, off); k > 0 {
		n, err = d.f.WriteAt(b[:k], off)
		if errors.Is(err, unix.EINVAL) && n == 0 { // a larger block size, or a change of mind
			d.off.Store(true)
			err = nil
		}
		if err != nil || n == len(b) {
			return n, err
		}
	}
	k, err := plain.WriteAt(b[n:], off+int64(n))
	return n + k, err
}

// readAt reads b at off of the file that plain is.
func (d *direct) readAt(plain io.ReaderAt, b []byte, off int64) (n int, err error) {
	if k := d.part(b, off); k > 0 {
		n, err = d.f.ReadAt(b[:k], off)
		if errors.Is(err, unix.EINVAL) && n == 0 {
			d.off.Store(true)
			err = nil
		}
		if err != nil || n == len(b) {
			return n, err
		}
	}
	k, err := plain.ReadAt(b[n:], off+int64(n))
	return n + k, err
}

func (d *direct) close() error {
	if d.f == nil {
		return nil
	}
	f := d.f
	d.f = nil
	return f.Close()
}
