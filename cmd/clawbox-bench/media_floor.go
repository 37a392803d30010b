package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/clawbox/clawbox/bundle/content"
)

// floor is what this machine asks for the least that each step has to do, in
// CPU-seconds per 10^9 bytes: no tool that sums every byte can take less.
type floor struct{ sum, write, read float64 }

const floorSize = 256 * content.BulkSize // bytes, about a gigabyte

func newFloor(dir string) (f floor, err error) {
	path := filepath.Join(dir, "floor")
	defer os.Remove(path)
	buf := content.Buffers(1)[0]
	if _, err := io.ReadFull(rand.NewChaCha8([32]byte{'f'}), buf); err != nil {
		return f, err
	}
	h := sha256.New()
	if f.sum, err = cost(func(int64) error { h.Write(buf); return nil }, nil); err != nil {
		return f, err
	}
	w, err := content.CreateBulk(path, 0o600)
	if err != nil {
		return f, err
	}
	f.write, err = cost(func(off int64) error { _, err := w.WriteAt(buf, off); return err }, w.Sync)
	if err = errors.Join(err, w.Close(), coldCaches()); err != nil {
		return f, err
	}
	r, err := content.OpenBulk(path)
	if err != nil {
		return f, err
	}
	f.read, err = cost(func(off int64) error { _, err := r.ReadAt(buf, off); return err }, nil)
	return f, errors.Join(err, r.Close())
}

// cost is what each does for floorSize bytes, with end behind it.
func cost(each func(off int64) error, end func() error) (float64, error) {
	before := cpuTime()
	for off := int64(0); off < floorSize; off += content.BulkSize {
		if err := each(off); err != nil {
			return 0, err
		}
	}
	if end != nil {
		if err := end(); err != nil {
			return 0, err
		}
	}
	return (cpuTime() - before).Seconds() / (floorSize / 1e9), nil
}

// cpuTime is what this process has used, in user mode and in the kernel.
func cpuTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u) // can't fail
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (f floor) String() string {
	return fmt.Sprintf("one thread on its own takes %.2f CPU-s per GB for sha256 alone, %.2f to read and %.2f to write past the page cache; so nothing that sums each byte is below %.2f for create and install, and %.2f for verify",
		f.sum, f.read, f.write, f.sum+f.read+f.write, f.sum+f.read)
}
