package main

import (
	"bytes"
	"context"
	"encoding/json"
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
	Wall, CPU     time.Duration
	Written, Read int64
	RSS           int64 // peak resident memory in bytes
	Scratch       int64 // most space on the disk in use at once, beyond what stayed, in bytes
}

// spend runs a command with cold file caches, but for the program itself. It
// does so from a small process: the kernel counts the memory of the process
// that forks as the child's, and ours may hold a registry.
func spend(ctx context.Context, dir string, env []string, args ...string) (spent, error) {
	if err := coldCaches(); err != nil {
		return spent{}, err
	}
	if _, err := os.ReadFile(args[0]); err != nil {
		return spent{}, err
	}
	c := exec.CommandContext(ctx, "/proc/self/exe", append([]string{spendVerb}, args...)...)
	c.Env = append(os.Environ(), env...)
	var out, diag bytes.Buffer
	c.Stdout, c.Stderr = &out, &diag
	room := watchRoom(dir)
	err := c.Run()
	s := spent{Scratch: room()}
	if err != nil {
		return s, fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, lastLines(diag.String(), 20))
	}
	return s, json.Unmarshal(out.Bytes(), &s)
}

// spendVerb makes this program run its arguments and print what they spent.
const spendVerb = "-spend"

// spendHere looks at the process after its end and before it is reaped: only
// then are its counters whole.
func spendHere(args []string) error {
	c := exec.Command(args[0], args[1:]...)
	c.Stdout, c.Stderr = os.Stderr, os.Stderr
	t := time.Now()
	if err := c.Start(); err != nil {
		return err
	}
	var info unix.Siginfo
	for errors.Is(unix.Waitid(unix.P_PID, c.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
	s := spent{Wall: time.Since(t)}
	io, ioErr := os.ReadFile(fmt.Sprintf("/proc/%d/io", c.Process.Pid))
	if err := errors.Join(c.Wait(), ioErr); err != nil {
		return err
	}
	s.Written, s.Read = counter(io, "write_bytes"), counter(io, "read_bytes")
	s.CPU = c.ProcessState.UserTime() + c.ProcessState.SystemTime()
	s.RSS = c.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
	return json.NewEncoder(os.Stdout).Encode(s)
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
