package ledger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// An op is one change to the log's directory. All of them go through one
// method, so that a test can stop, repeat and reorder them.
type op struct {
	verb verb
	path string // relative to the log's directory
	to   string // for rename
	data []byte // for write and grow
}

type verb string

const (
	write   verb = "write"   // create or replace, flushed on return; the name is not
	grow    verb = "grow"    // append, not flushed
	flush   verb = "flush"   // flush what grow added
	rename  verb = "rename"  // replace to by path; not flushed
	mkdir   verb = "mkdir"   // make a directory, unless it is there; not flushed
	remove  verb = "remove"  // delete a file, if it is there; not flushed
	syncDir verb = "syncdir" // flush a directory's names
)

// A disk changes the directory. The ops of one call don't depend on each
// other and may be done at once, calls are done in order. It needn't be safe
// for concurrent use.
type disk interface {
	do(...op) error
}

// osDisk is the real one. It keeps the file that grows open: fsync on a
// descriptor opened later might not report an earlier write-back error.
type osDisk struct {
	dir  string
	tail *os.File
	name string // of tail
}

func (d *osDisk) do(ops ...op) error {
	if len(ops) == 1 {
		return d.one(ops[0])
	}
	errs := make([]error, len(ops))
	var wg sync.WaitGroup
	for i, o := range ops { // flushes at the same time share the journal's commit
		wg.Go(func() { errs[i] = d.one(o) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (d *osDisk) one(o op) error {
	p := filepath.Join(d.dir, o.path)
	switch o.verb {
	case write:
		return writeFile(p, o.data)
	case grow, flush:
		return d.extend(o)
	case rename:
		to := filepath.Join(d.dir, o.to)
		if o.to == d.name {
			if err := d.Close(); err != nil {
				return err
			}
		}
		return os.Rename(p, to)
	case mkdir:
		if err := os.Mkdir(p, 0o700); !errors.Is(err, os.ErrExist) {
			return err
		}
		return nil
	case remove:
		if err := os.Remove(p); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	case syncDir:
		return flushDir(p)
	}
	return fmt.Errorf("unknown disk operation %q", o.verb)
}

func (d *osDisk) extend(o op) error {
	if d.name != o.path {
		if err := d.Close(); err != nil {
			return err
		}
		f, err := os.OpenFile(filepath.Join(d.dir, o.path), os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		d.tail, d.name = f, o.path
	}
	if o.verb == flush {
		return fdatasync(d.tail)
	}
	_, err := d.tail.Write(o.data)
	return err
}

func (d *osDisk) Close() error {
	if d.tail == nil {
		return nil
	}
	err := d.tail.Close()
	d.tail, d.name = nil, ""
	return err
}

func fdatasync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
	}
}

func writeFile(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func flushDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lockDir takes the directory for one writer, or with how LOCK_SH looks
// whether there is one. EWOULDBLOCK means that somebody has it.
func lockDir(dir string, how int) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		return nil, errors.Join(&os.PathError{Op: "flock", Path: dir, Err: err}, f.Close())
	}
	return f, nil
}
