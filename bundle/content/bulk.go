package content

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// BulkSize is the unit in which bulk files move, in bytes.
const BulkSize = 4 << 20

// BulkReader reads a large file that nobody will read again soon: past the page
// cache where offset, length and memory are multiples of 4096 bytes, and
// through it elsewhere. ReadAt is safe for concurrent use as long as no file
// system changes its mind about direct reads.
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
	unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL) // advice: may fail
	b := &BulkReader{f: f}
	if d, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0); err == nil {
		b.d = direct{d}
	}
	return b, nil
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
	return &Ahead{r: r, size: size, now: window{off: -1, b: make([]byte, 0, BulkSize)}, free: make([]byte, BulkSize)}
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

// BulkWriter writes a large file once and in order, past the page cache. It
// gathers BulkSize bytes; Sync writes what is gathered, through the cache once
// the file has an odd length.
type BulkWriter struct {
	f   *os.File
	d   direct
	buf []byte
	n   int64 // bytes written before buf
}

// CreateBulk makes path, which must not exist.
func CreateBulk(path string, perm os.FileMode) (*BulkWriter, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return nil, err
	}
	w := &BulkWriter{f: f, buf: make([]byte, 0, BulkSize)}
	if d, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT|unix.O_NOFOLLOW, 0); err == nil {
		w.d = direct{d}
	}
	return w, nil
}

// Write is io.Writer.
func (w *BulkWriter) Write(p []byte) (n int, err error) {
	for n < len(p) {
		k := copy(w.buf[len(w.buf):cap(w.buf)], p[n:])
		w.buf = w.buf[:len(w.buf)+k]
		n += k
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

func (w *BulkWriter) flush() error {
	n, err := w.d.writeAt(w.f, w.buf, w.n)
	if err != nil {
		return err
	}
	w.n, w.buf = w.n+int64(n), w.buf[:0]
	return nil
}

// Sync writes what was gathered and makes the bytes of the file durable.
func (w *BulkWriter) Sync() error {
	if err := w.flush(); err != nil {
		return err
	}
	return w.f.Sync()
}

// Close closes the file; what was not flushed by Sync is lost.
func (w *BulkWriter) Close() error { return errors.Join(w.d.close(), w.f.Close()) }
