package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/internal/durable"
)

// Output is one more directory that takes parts, such as a second stick.
type Output struct {
	Dir  string
	Size int64 // bytes that may be used; 0: what is free
}

// outputs are the directories that a build writes to, the first one Out.
type outputs struct {
	list []Output
	made []string // directories that this run made, per output the deepest first
	held []func()
	dirs []int // of file n: first the parts, then the parity parts
}

// openOutputs makes the directories and locks them against other builds.
func openOutputs(list []Output) (o *outputs, err error) {
	o = &outputs{list: list}
	for _, d := range list {
		o.made = append(o.made, missing(d.Dir)...)
		err := durable.MkdirAll(d.Dir, 0o755)
		if err != nil {
			err = fmt.Errorf("bundle: %w", err)
		} else {
			var unlock func()
			if unlock, err = lockOut(d.Dir); err == nil {
				o.held = append(o.held, unlock)
			}
		}
		if err != nil {
			return nil, errors.Join(err, o.close(err))
		}
	}
	return o, nil
}

// close unlocks; after an error it removes the directories that were made.
func (o *outputs) close(err error) error {
	for _, unlock := range o.held {
		unlock()
	}
	if err != nil {
		return removeEmpty(o.made)
	}
	return nil
}

// each does f for every output.
func (o *outputs) each(f func(dir string) error) error {
	for _, d := range o.list {
		if err := f(d.Dir); err != nil {
			return err
		}
	}
	return nil
}

// spread decides where each file goes, in order: into the first directory that
// still has room. files are sizes in bytes; every directory also gets the small
// files, of at most small bytes.
func (o *outputs) spread(files []int64, small int64) error {
	o.dirs = nil
	return o.spreadMore(files, small)
}

// spreadMore is spread when the first of the files are in their places already.
func (o *outputs) spreadMore(files []int64, small int64) error {
	var room []int64
	for i, d := range o.list {
		have, err := free(d.Dir)
		if err != nil {
			return fmt.Errorf("bundle: %w", err)
		}
		for k, at := range o.dirs {
			if at == i {
				d.Size = max(d.Size-files[k], min(d.Size, 1))
			}
		}
		if d.Size > 0 {
			have = min(have, d.Size)
		}
		room = append(room, have-small)
	}
	at := 0
	if n := len(o.dirs); n > 0 {
		at = o.dirs[n-1]
	}
	for _, n := range files[len(o.dirs):] {
		for at < len(room) && room[at] < n {
			at++
		}
		if at == len(room) {
			return o.full(files, small)
		}
		room[at] -= n
		o.dirs = append(o.dirs, at)
	}
	if room[0] < 0 {
		return o.full(files, small)
	}
	return nil
}

// full says what is there and what would be needed.
func (o *outputs) full(files []int64, small int64) error {
	var have, want int64
	for _, d := range o.list {
		n, err := free(d.Dir)
		if err != nil {
			return fmt.Errorf("bundle: %w", err)
		}
		if d.Size > 0 {
			n = min(n, d.Size)
		}
		have, want = have+n, want+small
	}
	for _, n := range files {
		want += n
	}
	hint := ""
	if _, err := os.Lstat(filepath.Join(o.list[0].Dir, topDir)); err == nil {
		hint = ", or remove the old bundle in it first (it is kept until the new one is complete)"
	}
	if len(o.list) > 1 {
		hint += "; a part goes into one directory whole: smaller parts (--part-size) fit better"
	}
	return fmt.Errorf("bundle: %s has %s free, the bundle needs %s: free some, or choose another directory%s", o.names(), Size(have), Size(want), hint)
}

func (o *outputs) names() string {
	s := ""
	for i, d := range o.list {
		if i > 0 {
			s += ", "
		}
		s += d.Dir
	}
	return s
}

// file is where file n lies: below top in its directory.
func (o *outputs) file(n int, top, folder, name string) string {
	return filepath.Join(o.list[o.dirs[n]].Dir, top, folder, name)
}

// clearOut removes what an interrupted build left in dir. When it was cut off
// between the two renames of swap, the old bundle is put back. Of what was being
// built the parts with the paths in keep stay.
func clearOut(dir string, keep []string) error {
	old, cur := filepath.Join(dir, oldDir), filepath.Join(dir, topDir)
	if _, err := os.Lstat(cur); errors.Is(err, fs.ErrNotExist) {
		if err := durable.Rename(old, cur); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("bundle: %w", err)
		}
	}
	if err := os.RemoveAll(old); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	if err := removeBut(filepath.Join(dir, newDir), keep); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	return nil
}

// removeBut removes path and all that is below it, but for the paths in keep and
// the folders that lead there. It follows no link.
func removeBut(path string, keep []string) error {
	leads := slices.ContainsFunc(keep, func(k string) bool { return k == path || strings.HasPrefix(k, path+"/") })
	fi, err := os.Lstat(path)
	if !leads || err != nil || !fi.IsDir() {
		if leads || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return os.RemoveAll(path)
	}
	es, err := os.ReadDir(path)
	for _, e := range es {
		err = errors.Join(err, removeBut(filepath.Join(path, e.Name()), keep))
	}
	return err
}

// free returns the bytes that may be written below dir.
func free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// swap puts the new bundle in the place of the old one: at once where the file
// system can exchange two names, otherwise with a moment in which there is no
// bundle. At no time are parts of both under one name.
func swap(out string) error {
	from, to, old := filepath.Join(out, newDir), filepath.Join(out, topDir), filepath.Join(out, oldDir)
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
	switch {
	case err == nil:
		if err := durable.SyncDir(out); err != nil {
			return err
		}
		return os.RemoveAll(from)
	case errors.Is(err, unix.ENOENT):
		return durable.Rename(from, to)
	case !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS): // FAT and exFAT say EINVAL
		return &os.LinkError{Op: "exchange", Old: from, New: to, Err: err}
	}
	if err := durable.Rename(to, old); err != nil {
		return err
	}
	if err := durable.Rename(from, to); err != nil {
		return errors.Join(err, durable.Rename(old, to))
	}
	return os.RemoveAll(old)
}

// smallFiles bounds note, index and roots, in bytes.
func smallFiles(blobs []manifest.Blob) int64 {
	n := int64(manifest.MaxNote)
	for _, x := range blobs {
		n += 200 + int64(chunkCount(x))*110
	}
	return n
}
