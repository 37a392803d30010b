package host

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Sizes of the speed probes, in bytes. Small enough to be over in a blink on
// any disk, large enough to leave the drive's first cache line behind.
const (
	writeProbe = 16 << 20
	readProbe  = 16 << 20
	fsyncs     = 9
)

// disk describes the file system that the state folder will be on, by the
// nearest folder above it that exists.
func (g *gatherer) disk() error {
	d := &g.f.Disk
	want := filepath.Join(g.f.Root, stateDir)
	p, err := nearest(want)
	if err != nil {
		return err
	}
	d.Path, d.Existing = p, p == want
	var st unix.Statfs_t
	if err := unix.Statfs(p, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", p, err)
	}
	d.Free = int64(st.Bavail) * st.Bsize
	d.Inodes = int64(st.Ffree)
	if st.Files == 0 { // btrfs and vfat make inodes as needed
		d.Inodes = -1
	}
	ms, err := g.mounts()
	if err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(p)
	if err != nil {
		return err
	}
	m := mountOf(ms, real)
	d.FSType = m.fstype
	d.Options = strings.Split(m.options, ",")
	if slices.Contains(strings.Split(m.super, ","), "ro") && !slices.Contains(d.Options, "ro") {
		d.Options = append(d.Options, "ro")
	}
	return nil
}

// nearest walks up from p to a folder that exists.
func nearest(p string) (string, error) {
	for {
		st, err := os.Stat(p)
		if err == nil && st.IsDir() {
			return p, nil
		}
		if err == nil {
			return "", fmt.Errorf("%s: got a file; wanted a folder", p)
		}
		if !errors.Is(err, os.ErrNotExist) || p == "/" {
			return "", err
		}
		p = filepath.Dir(p)
	}
}

// mountOf finds the mount that path is on: the longest mount point above it,
// and of equals the last, which covers the others.
func mountOf(ms []mount, path string) (best mount) {
	for _, m := range ms {
		under := m.point == "/" || path == m.point || strings.HasPrefix(path, m.point+"/")
		if under && len(m.point) >= len(best.point) {
			best = m
		}
	}
	return best
}

// diskSpeed writes to a file that never gets a name, so that nothing is left
// and nothing shows, whatever happens to this process.
func (g *gatherer) diskSpeed() error {
	d := &g.f.Disk
	if d.Path == "" {
		return errors.New("no folder to measure in")
	}
	fd, err := unix.Open(d.Path, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("unnamed file in %s: %w", d.Path, err)
	}
	f := os.NewFile(uintptr(fd), d.Path)
	defer f.Close()
	if d.Free < 4*writeProbe {
		return fmt.Errorf("%s: only %d bytes free", d.Path, d.Free)
	}
	if d.Write, err = writeRate(f); err != nil {
		return err
	}
	d.Fsync, err = fsyncTime(f)
	return err
}

// writeRate returns bytes per second, with the fsync that makes them durable.
func writeRate(f *os.File) (int64, error) {
	buf := make([]byte, 1<<20)
	for i := range buf { // not zeros: some drives compress or skip those
		buf[i] = byte(i * 2654435761 >> 13)
	}
	t := time.Now()
	for range writeProbe / len(buf) {
		if _, err := f.Write(buf); err != nil {
			return 0, err
		}
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	return rate(writeProbe, time.Since(t)), nil
}

func fsyncTime(f *os.File) (time.Duration, error) {
	var ds []time.Duration
	buf := bytes.Repeat([]byte{1}, 4096)
	for i := range fsyncs {
		t := time.Now()
		if _, err := f.WriteAt(buf, int64(i)*4096); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		ds = append(ds, time.Since(t))
	}
	slices.Sort(ds)
	return ds[len(ds)/2], nil
}

// ReadRate measures how fast the file at path comes from its device, in bytes
// per second, over its first 16 MiB. What the page cache holds of it is dropped
// first, where the kernel allows, since memory's speed forecasts nothing.
func ReadRate(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, readProbe, unix.FADV_DONTNEED); err != nil {
		return 0, fmt.Errorf("drop the cache of %s: %w", path, err)
	}
	t := time.Now()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{io.LimitReader(f, readProbe)}, make([]byte, 1<<20))
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, fmt.Errorf("%s is empty: no speed to measure", path)
	}
	return rate(n, time.Since(t)), nil
}

func rate(n int64, d time.Duration) int64 {
	return int64(float64(n) / max(d.Seconds(), 1e-6))
}
