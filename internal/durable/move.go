package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Move moves the file or folder oldpath to newpath, which must not be a folder
// with something in it. On one file system it is Rename. From one to another it
// copies: beside newpath first, with owners and modes, so that newpath is there
// whole or not at all; oldpath goes last. What a move that was cut off has left
// beside newpath, which may be a secret, goes with the next one to there. Regular
// files, folders and symbolic links only; holes are filled, times and extended
// attributes are lost. One at a time to one newpath.
func Move(oldpath, newpath string) error {
	err := Rename(oldpath, newpath)
	if !errors.Is(err, syscall.EXDEV) {
		return err
	}
	dir := filepath.Dir(newpath)
	tmp := filepath.Join(dir, ".move.tmp-"+filepath.Base(newpath))
	if err := errors.Join(os.RemoveAll(tmp), os.Mkdir(tmp, 0o700)); err != nil {
		return fmt.Errorf("move %s: %w", oldpath, err)
	}
	defer os.RemoveAll(tmp)
	name := filepath.Join(tmp, "copy")
	if err := copyTree(oldpath, name); err != nil {
		return fmt.Errorf("move %s to another file system: %w", oldpath, err)
	}
	if err := os.Rename(name, newpath); err != nil {
		return err
	}
	if err := SyncDir(dir); err != nil {
		return err
	}
	if err := os.RemoveAll(oldpath); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(oldpath))
}

// copyTree copies what is at from, and flushes all of it but its own name.
func copyTree(from, to string) error {
	fi, err := os.Lstat(from)
	if err != nil {
		return err
	}
	switch fi.Mode().Type() {
	case 0:
		err = copyFile(from, to)
	case fs.ModeSymlink:
		var target string
		if target, err = os.Readlink(from); err == nil {
			err = os.Symlink(target, to)
		}
	case fs.ModeDir:
		err = copyFolder(from, to)
	default:
		err = fmt.Errorf("%s is no regular file, folder or symbolic link", from)
	}
	if err != nil {
		return err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if fi.Mode().Type() == fs.ModeSymlink {
		return nil
	}
	// After the owner: a change of it takes set-user-ID bits away.
	if err := os.Chmod(to, fi.Mode()); err != nil {
		return err
	}
	return SyncDir(to) // fsync takes either
}

func copyFolder(from, to string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	es, err := os.ReadDir(from)
	for _, e := range es {
		err = errors.Join(err, copyTree(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())))
	}
	return err
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
