package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/internal/durable"
)

// missing lists dir and those above it that don't exist, the deepest first.
func missing(dir string) (out []string) {
	for dir = filepath.Clean(dir); ; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			return out
		}
		out = append(out, dir)
	}
}

// removeEmpty removes the directories that a failed build made, the deepest
// first, up to the first that somebody uses.
func removeEmpty(dirs []string) error {
	for _, d := range dirs {
		switch err := durable.Remove(d); {
		case errors.Is(err, fs.ErrExist): // not empty
			return nil
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("bundle: %w", err)
		}
	}
	return nil
}

// lockOut keeps two builds from writing into one directory. The lock is on
// the directory itself, so that nothing is left on the media.
func lockOut(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		d.Close()
		return nil, fmt.Errorf("bundle: another build writes into %s: wait for it to end", dir)
	} else if err != nil {
		d.Close()
		return nil, fmt.Errorf("bundle: flock %s: %w", dir, err)
	}
	return func() { d.Close() }, nil
}
