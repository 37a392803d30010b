package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// clone copies a file that nobody writes.
func clone(to, from string) (shared bool, err error) {
	c, err := newCopy(to, from)
	if err != nil {
		return false, err
	}
	return c.shares, errors.Join(c.all(), c.close())
}

// duplicate copies a sparse file: by reference where the host's file system
// can (XFS, btrfs), and otherwise what is not a hole. In that case copying
// again writes only what has changed meanwhile.
type duplicate struct {
	src, dst *os.File
	size     int64
	shares   bool // by reference
}

// newCopy makes the file to, still empty.
func newCopy(to, from string) (c *duplicate, err error) {
	c = &duplicate{}
	if c.src, err = os.Open(from); err != nil {
		return nil, err
	}
	st, err := c.src.Stat()
	if err == nil {
		c.size = st.Size()
		c.dst, err = os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	}
	if err != nil {
		return nil, errors.Join(err, c.src.Close())
	}
	c.shares = unix.IoctlFileClone(int(c.dst.Fd()), int(c.src.Fd())) == nil
	if !c.shares {
		err = c.dst.Truncate(c.size)
	}
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// Copying ahead ends after some rounds, or when little has changed in one.
const (
	aheadRounds = 4
	aheadEnough = 4 << 20 // bytes
)

// ahead copies while src may still change, so that all has little left to do.
func (c *duplicate) ahead() error {
	for range aheadRounds {
		if c.shares {
			return nil
		}
		n, err := c.sync()
		if err != nil || n < aheadEnough {
			return err
		}
	}
	return nil
}

// all makes dst what src is; nobody may write to that meanwhile.
func (c *duplicate) all() error {
	if c.shares {
		return unix.IoctlFileClone(int(c.dst.Fd()), int(c.src.Fd()))
	}
	_, err := c.sync()
	return err
}

// sync writes to dst what differs, and returns how many bytes that was.
func (c *duplicate) sync() (written int64, err error) {
	a, b := make([]byte, 256<<10), make([]byte, 256<<10)
	for off := int64(0); ; {
		start, err := c.data(off)
		if err != nil || start >= c.size {
			return written, err
		}
		end := min(start+int64(len(a)), c.size)
		a, b = a[:end-start], b[:end-start]
		err = errors.Join(readFull(c.src, a, start), readFull(c.dst, b, start))
		if err == nil && !bytes.Equal(a, b) {
			written += int64(len(a))
			_, err = c.dst.WriteAt(a, start)
		}
		if err != nil {
			return written, fmt.Errorf("copy at %d: %w", start, err)
		}
		off = end
	}
}

// data finds the next place from off on where either file has some.
func (c *duplicate) data(off int64) (int64, error) {
	next := c.size
	for _, f := range []*os.File{c.src, c.dst} {
		n, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // none any more
			continue
		}
		if err != nil {
			return 0, err
		}
		next = min(next, n)
	}
	return next, nil
}

func readFull(f *os.File, b []byte, off int64) error {
	n, err := f.ReadAt(b, off)
	if n < len(b) && (err == nil || errors.Is(err, io.EOF)) {
		return io.ErrUnexpectedEOF
	}
	if n == len(b) {
		return nil
	}
	return err
}

func (c *duplicate) close() error {
	return errors.Join(c.src.Close(), c.dst.Close())
}

// allocated is what a sparse file takes, in bytes.
func allocated(file string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: file, Err: err}
	}
	return st.Blocks * 512, nil
}
