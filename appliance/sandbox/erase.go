package sandbox

import (
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// erase deletes the directory p and everything below it, which an agent may
// have built to resist: it holds two descriptors whatever the depth, where
// os.RemoveAll holds one per level, and follows no link. Nobody else may
// write there meanwhile. That p is absent is no error; after another error,
// what is left can be erased again.
func erase(p string) error {
	fd, err := openDir(unix.AT_FDCWD, p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: p, Err: err}
	}
	e := &eraser{top: os.NewFile(uintptr(fd), p), prefix: rand.Text()}
	err = e.all()
	e.top.Close()
	if err != nil {
		return err
	}
	return os.Remove(p)
}

// eraser makes a tree flat: what a directory in top holds is removed or moved
// up into top, so no directory is ever more than one level away, and each is
// moved once.
type eraser struct {
	top    *os.File
	prefix string // of names in top, so that none is taken
	steps  int    // entries removed or moved
}

// all repeats passes, for entries appear in top while it is read. An entry
// that resists waits for the next pass: a full disk has room for the move of
// a directory once other files are gone. A pass without a step gives up.
func (e *eraser) all() error {
	for {
		before, seen := e.steps, 0
		err := each(e.top, func(name string) error { seen++; return e.drop(name) })
		if seen == 0 || e.steps == before {
			return err
		}
	}
}

// drop removes an entry of top.
func (e *eraser) drop(name string) error {
	at := int(e.top.Fd())
	err := e.unlink(at, name)
	if !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	fd, err := openDir(at, name)
	if err != nil {
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	d := os.NewFile(uintptr(fd), name)
	err = each(d, func(sub string) error { return e.lift(d, sub) })
	d.Close()
	if err != nil {
		return err
	}
	return e.unlink(at, name)
}

// lift removes an entry of d, or moves it into top.
func (e *eraser) lift(d *os.File, name string) error {
	from := int(d.Fd())
	err := e.unlink(from, name)
	if !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	to := e.prefix + strconv.Itoa(e.steps)
	if err := unix.Renameat(from, name, int(e.top.Fd()), to); err != nil {
		return &fs.PathError{Op: "rename", Path: name, Err: err}
	}
	e.steps++
	return nil
}

// unlink removes what is no directory, or an empty one.
func (e *eraser) unlink(at int, name string) error {
	err := unix.Unlinkat(at, name, 0)
	if err == unix.EISDIR {
		err = unix.Unlinkat(at, name, unix.AT_REMOVEDIR)
	}
	if err != nil {
		return &fs.PathError{Op: "unlink", Path: name, Err: err}
	}
	e.steps++
	return nil
}

// each calls do for the entries of d from the first on, some at a time: a
// directory may hold millions. It returns do's first error, after them all.
func each(d *os.File, do func(name string) error) error {
	if _, err := d.Seek(0, io.SeekStart); err != nil {
		return err
	}
	var first error
	for {
		names, err := d.Readdirnames(1024)
		for _, n := range names {
			if err := do(n); err != nil && first == nil {
				first = err
			}
		}
		if err == io.EOF {
			return first
		}
		if err != nil {
			return err
		}
	}
}

func openDir(at int, name string) (int, error) {
	return unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}
