package content

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BulkSize is the unit in which bulk files move, in bytes.
const BulkSize = 4 << 20

// hugePage is what a page table of amd64 and of arm64 can map at once, in bytes.
const hugePage = 2 << 20

// Buffers returns n buffers of BulkSize bytes that can go past the page cache.
// They lie on huge pages where the kernel has some: a direct read or write then
// pins two of them instead of 1024, and costs half.
func Buffers(n int) (out [][]byte) {
	slab := make([]byte, n*BulkSize+hugePage)
	slab = slab[-uintptr(unsafe.Pointer(&slab[0]))&(hugePage-1):][:n*BulkSize]
	unix.Madvise(slab, unix.MADV_HUGEPAGE) // advice: may fail
	for i := range n {
		out = append(out, slab[i*BulkSize:(i+1)*BulkSize:(i+1)*BulkSize])
	}
	return out
}

// BulkReader reads a large file that nobody will read again soon: past the page
// cache where offset, length and memory are multiples of 4096 bytes, and
// through it elsewhere. ReadAt is safe for concurrent use.
type BulkReader struct {
	f *os.File
	d direct
}

// OpenBulk opens path, which must not be a link, for reading.
func OpenBulk(path string) (*BulkReader, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return NewBulk(f), nil
}

// NewBulk reads an open file, which is closed with it.
func NewBulk(f *os.File) *BulkReader {
	unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM) // advice: may fail. What is read ahead would be read twice
	b := &BulkReader{f: f}
	// Through /proc, so that it is the same file whatever its name now means.
	if d, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDONLY|unix.O_DIRECT|unix.O_NONBLOCK, 0); err == nil {
		b.d.f = d
	}
	return b
}

// Stat describes the file.
func (b *BulkReader) Stat() (os.FileInfo, error) { return b.f.Stat() }

// ReadAt is io.ReaderAt.
func (b *BulkReader) ReadAt(p []byte, off int64) (int, error) { return b.d.readAt(b.f, p, off) }

// Forget drops what the kernel remembers of the file, so that the next read
// asks the device.
func (b *BulkReader) Forget() {
	unix.Fadvise(int(b.f.Fd()), 0, 0, unix.FADV_DONTNEED) // advice: may fail
}

// Release closes what NewBulk opened, and leaves the file.
func (b *BulkReader) Release() error { return b.d.close() }

// Close closes the file.
func (b *BulkReader) Close() error { return errors.Join(b.d.close(), b.f.Close()) }

// Ahead reads a file in windows of BulkSize, in order and each once, one window
// ahead of who asks. It is for one goroutine and must be closed before what it
// reads.
type Ahead struct {
	r    io.ReaderAt
	size int64
	now  window
	next chan window // the window under way; nil when there is none
	free []byte
}

type window struct {
	off int64
	b   []byte
	err error
}

// NewAhead reads r, of size bytes, ahead.
func NewAhead(r io.ReaderAt, size int64) *Ahead {
	b := Buffers(2)
	return &Ahead{r: r, size: size, now: window{off: -1, b: b[0][:0]}, free: b[1]}
}

// ReadAt is io.ReaderAt. Behind the end it returns io.EOF, as a file does.
func (a *Ahead) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		at := off + int64(n)
		if at >= a.size {
			return n, io.EOF
		}
		if start := at - at%BulkSize; a.now.off != start {
			a.turn(start)
		}
		k := 0
		if skip := int(at - a.now.off); skip < len(a.now.b) {
			k = copy(p[n:], a.now.b[skip:])
		}
		if n += k; k == 0 {
			err := a.now.err
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			a.now.off = -1 // another time it is read again
			return n, err
		}
	}
	return n, nil
}

// turn makes the window at start the current one, and begins the one behind it.
func (a *Ahead) turn(start int64) {
	old := a.now
	if w, ok := a.wait(); ok && w.off == start {
		a.now = w
	} else {
		if ok {
			a.free = w.b
		}
		a.now = a.read(a.free, start)
	}
	a.free = old.b
	if next := start + BulkSize; next < a.size && a.now.err == nil {
		buf := a.free
		a.free, a.next = nil, make(chan window, 1)
		go func(done chan<- window) { done <- a.read(buf, next) }(a.next)
	}
}

func (a *Ahead) read(buf []byte, off int64) window {
	buf = buf[:min(BulkSize, a.size-off)]
	n, err := a.r.ReadAt(buf, off)
	if n == len(buf) {
		err = nil
	}
	return window{off, buf[:n], err}
}

func (a *Ahead) wait() (w window, ok bool) {
	if a.next == nil {
		return w, false
	}
	w = <-a.next
	a.next = nil
	return w, true
}

// Close waits for the window under way.
func (a *Ahead) Close() error {
	a.wait()
	return nil
}

// BulkFile is a file that is written once, stretch by stretch and past the
// page cache where place, length and memory are multiples of 4096 bytes. WriteAt
// is safe for concurrent use; a block that two stretches share goes through the
// cache.
type BulkFile struct {
	f *os.File
	d direct
}

// CreateBulk opens path for writing, and makes it when it is absent.
func CreateBulk(path string, perm os.FileMode) (*BulkFile, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, perm)
	if err != nil {
		return nil, err
	}
	w := &BulkFile{f: f}
	if d, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT|unix.O_NOFOLLOW, 0); err == nil {
		w.d.f = d
	}
	return w, nil
}

// WriteAt is io.WriterAt.
func (w *BulkFile) WriteAt(p []byte, off int64) (int, error) { return w.d.writeAt(w.f, p, off) }

// Sync makes the bytes of the file durable.
func (w *BulkFile) Sync() error { return w.f.Sync() }

// Stat describes the file.
func (w *BulkFile) Stat() (os.FileInfo, error) { return w.f.Stat() }

// Close closes the file.
func (w *BulkFile) Close() error { return errors.Join(w.d.close(), w.f.Close()) }
