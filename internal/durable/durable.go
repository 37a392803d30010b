// Package durable writes files that survive power loss.
//
// A rename is atomic but not durable: after a power cut the name may be back
// at the old file, or, when the data was not flushed first, at an empty one.
// Every function here therefore flushes the data, then the name (by fsync of
// the directory that holds it), and returns only after both:
//
//	err := durable.WriteFile("/etc/clawbox/appliance.yaml", data, 0o644)
//
// On an error the old content is still in place and no temporary file
// remains. A failed fsync is reported and never retried: Linux may have
// dropped the dirty pages already, so a second fsync that succeeds proves
// nothing.
//
// Limits: the disk must obey flushes; a file system without directory fsync
// (some network file systems) yields an error instead of a false promise.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// WriteFile replaces path with data, atomically. The mode is perm exactly:
// the umask does not apply. The parent directory must exist. When path is a
// symbolic link the link is replaced, not its target.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".tmp-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := fill(f, data, perm); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	return SyncDir(dir)
}

// fill writes, sets the mode, flushes and closes f.
func fill(f *os.File, data []byte, perm fs.FileMode) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Rename moves oldpath to newpath, replacing a file there, and flushes both
// parents. The content of oldpath must have been flushed by its writer.
func Rename(oldpath, newpath string) error {
	if err := os.Rename(oldpath, newpath); err != nil {
		return err
	}
	return syncParents(oldpath, newpath)
}

// Exchange lets a and b, on one file system, trade places in one step, and flushes
// both parents. Where the file system cannot, the error is EINVAL.
func Exchange(a, b string) error {
	if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
		return &os.LinkError{Op: "exchange", Old: a, New: b, Err: err}
	}
	return syncParents(a, b)
}

// Link makes newpath another name of the file oldpath. It fails with
// fs.ErrExist when newpath exists.
func Link(oldpath, newpath string) error {
	if err := os.Link(oldpath, newpath); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(newpath))
}

// Symlink makes newpath a symbolic link to target, replacing a file or link
// there atomically: the way to switch from one slot to another.
func Symlink(target, newpath string) error {
	dir := filepath.Dir(newpath)
	// A private directory gives a name that nobody else has taken.
	tmp, err := os.MkdirTemp(dir, ".link.tmp-*")
	if err != nil {
		return fmt.Errorf("link %s: %w", newpath, err)
	}
	defer os.RemoveAll(tmp)
	name := filepath.Join(tmp, "link")
	if err := os.Symlink(target, name); err != nil {
		return fmt.Errorf("link %s: %w", newpath, err)
	}
	if err := os.Rename(name, newpath); err != nil {
		return fmt.Errorf("link %s: %w", newpath, err)
	}
	return SyncDir(dir)
}

// Remove deletes one file or empty directory. A missing path is an error, as
// with os.Remove.
func Remove(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// Mkdir makes one directory. The umask applies.
func Mkdir(path string, perm fs.FileMode) error {
	if err := os.Mkdir(path, perm); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// MkdirAll makes path and the parents that are missing, each flushed into the
// one above it. An existing directory is left as it is.
func MkdirAll(path string, perm fs.FileMode) error {
	path = filepath.Clean(path)
	fi, err := os.Stat(path)
	switch {
	case err == nil && fi.IsDir():
		return nil
	case err == nil:
		return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := MkdirAll(filepath.Dir(path), perm); err != nil {
		return err
	}
	err = Mkdir(path, perm)
	if errors.Is(err, fs.ErrExist) { // made by someone else meanwhile
		return MkdirAll(path, perm)
	}
	return err
}

// SyncDir flushes the names in dir: creations, renames and removals.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("flush directory: %w", err)
	}
	if err := d.Sync(); err != nil {
		return errors.Join(fmt.Errorf("flush directory: %w", err), d.Close())
	}
	return d.Close()
}

func syncParents(a, b string) error {
	da, db := filepath.Dir(a), filepath.Dir(b)
	if err := SyncDir(db); err != nil || da == db {
		return err
	}
	return SyncDir(da)
}
