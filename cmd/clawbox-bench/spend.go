package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// spent is what one process cost. Bytes are those that went to and came from
// the disk, as /proc/PID/io counts them (write_bytes, read_bytes).
type spent struct {
	wall, cpu     time.Duration
	written, read int64
	rss           int64 // peak resident memory in bytes
	scratch       int64 // most space on the disk in use at once, beyond what stayed, in bytes
}

// spend runs a command with cold file caches. The process is looked at after
// its end and before it is reaped: only then are its counters whole.
func spend(ctx context.Context, dir string, env []string, args ...string) (spent, error) {
	if err := coldCaches(); err != nil {
		return spent{}, err
	}
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	c.Env = append(os.Environ(), env...)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	room := watchRoom(dir)
	t := time.Now()
	if err := c.Start(); err != nil {
		return spent{}, err
	}
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, c.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	s := spent{wall: time.Since(t)}
	io, ioErr := os.ReadFile(fmt.Sprintf("/proc/%d/io", c.Process.Pid))
	err := c.Wait()
	s.scratch = room()
	if err != nil {
		return s, fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, lastLines(out.String(), 20))
	}
	if ioErr != nil {
		return s, ioErr
	}
	s.written, s.read = counter(io, "write_bytes"), counter(io, "read_bytes")
	ru := c.ProcessState.SysUsage().(*syscall.Rusage)
	s.cpu = c.ProcessState.UserTime() + c.ProcessState.SystemTime()
	s.rss = ru.Maxrss << 10
	return s, nil
}

// coldCaches writes what is dirty and drops the page cache.
func coldCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

func counter(io []byte, name string) int64 {
	for line := range strings.Lines(string(io)) {
		if v, ok := strings.CutPrefix(line, name+": "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return n
		}
	}
	return -1
}

// watchRoom looks every 20 ms how much of dir's file system is in use. The
// function that it returns says by how much the peak was above the end.
func watchRoom(dir string) func() int64 {
	used := func() int64 {
		var s unix.Statfs_t
		if unix.Statfs(dir, &s) != nil {
			return 0
		}
		return int64(s.Blocks-s.Bfree) * s.Bsize
	}
	stop, done := make(chan struct{}), make(chan int64)
	go func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		peak := used()
		for {
			select {
			case <-tick.C:
				peak = max(peak, used())
			case <-stop:
				done <- peak
				return
			}
		}
	}()
	return func() int64 {
		unix.Sync()
		end := used()
		close(stop)
		return max(0, <-done-end)
	}
}

func lastLines(s string, n int) string {
	l := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(l[max(0, len(l)-n):], "\n")
}
