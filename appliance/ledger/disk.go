package ledger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// An op is one change to the log's directory. All of them go through one
// method, so that a test can stop, repeat and reorder them.
type op struct {
	verb verb
	path string // relative to the log's directory
	to   string // for rename
	data []byte // for write and grow
	at   int64  // for grow and trim
}

type verb string

const (
	write   verb = "write"   // create or replace, flushed on return; the name is not
	grow    verb = "grow"    // put data at an offset, not flushed
	flush   verb = "flush"   // flush what grow put there
	trim    verb = "trim"    // cut at an offset, not flushed
	rename  verb = "rename"  // replace to by path; not flushed
	mkdir   verb = "mkdir"   // make a directory, unless it is there; not flushed
	remove  verb = "remove"  // delete a file, if it is there; not flushed
	syncDir verb = "syncdir" // flush a directory's names
)

// A disk changes the directory. The ops of one call don't depend on each
// other and may be done in any order, calls are done in order. It needn't be
// safe for concurrent use.
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
	if len(ops) > 1 && ops[0].verb == write {
		return d.writeAll(ops)
	}
	for _, o := range ops {
		if err := d.one(o); err != nil {
			return err
		}
	}
	return nil
}

// writeAll writes files and then flushes them. All are on their way before the
// first is waited for, and there before the first is flushed: then one commit of
// the file system's journal is for all of them, and the other flushes find
// nothing left to do.
func (d *osDisk) writeAll(ops []op) (err error) {
	fs := make([]*os.File, 0, len(ops))
	defer func() {
		for _, f := range fs {
			err = errors.Join(err, f.Close())
		}
	}()
	for _, o := range ops {
		f, err := create(filepath.Join(d.dir, o.path), o.data)
		if err != nil {
			return err
		}
		fs = append(fs, f)
		if err := syncRange(f, unix.SYNC_FILE_RANGE_WRITE); err != nil {
			return err
		}
	}
	for _, f := range fs {
		if err := syncRange(f, unix.SYNC_FILE_RANGE_WAIT_BEFORE); err != nil {
			return err
		}
	}
	for _, f := range fs {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return nil
}

// syncRange begins to write a whole file, or waits for that. It makes nothing
// durable.
func syncRange(f *os.File, how int) error {
	for {
		err := unix.SyncFileRange(int(f.Fd()), 0, 0, how)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return &os.PathError{Op: "sync_file_range", Path: f.Name(), Err: err}
		}
	}
}

func (d *osDisk) one(o op) error {
	p := filepath.Join(d.dir, o.path)
	switch o.verb {
	case write:
		return writeFile(p, o.data)
	case grow, flush, trim:
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
		f, err := os.OpenFile(filepath.Join(d.dir, o.path), os.O_WRONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		d.tail, d.name = f, o.path
	}
	switch o.verb {
	case flush:
		return fdatasync(d.tail)
	case trim:
		return d.tail.Truncate(o.at)
	}
	_, err := d.tail.WriteAt(o.data, o.at)
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
	f, err := create(path, b)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// create writes a file and leaves it open, to be flushed.
func create(path string, b []byte) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(b); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
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
