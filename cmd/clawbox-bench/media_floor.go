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
// CPU-seconds per 10^9 bytes. A new digest takes sum, for it is one chain; what is
// known by the chunk can be held to it two chunks at a time, which takes pair.
type floor struct{ sum, pair, write, read float64 }

const floorSize = 256 * content.BulkSize // bytes, about a gigabyte

func newFloor(dir string) (f floor, err error) {
	path := filepath.Join(dir, "floor")
	defer os.Remove(path)
	bufs := content.Buffers(2)
	buf := bufs[0]
	if _, err := io.ReadFull(rand.NewChaCha8([32]byte{'f'}), buf); err != nil {
		return f, err
	}
	h := sha256.New()
	if f.sum, err = cost(func(int64) error { h.Write(buf); return nil }, nil); err != nil {
		return f, err
	}
	one, other := content.Stretch{From: content.StartState, Data: buf}, content.Stretch{From: content.StartState, Data: bufs[1]}
	copy(other.Data, buf)
	two := func(int64) error { _, _, err := content.Pieces(one, other); return err }
	if f.pair, err = cost(two, nil); err != nil {
		return f, err
	}
	f.pair /= 2
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
	return fmt.Sprintf("one thread on its own takes %.2f CPU-s per GB for one sha256 alone and %.2f for two beside each other, %.2f to read and %.2f to write past the page cache; so nothing that sums each byte is below %.2f for create, whose digest is one chain, %.2f for install, and %.2f for verify",
		f.sum, f.pair, f.read, f.write, f.sum+f.read+f.write, f.pair+f.read+f.write, f.pair+f.read)
}
