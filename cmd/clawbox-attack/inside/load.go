package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

var _ = register(map[string]func([]string) error{
	"fork-bomb":   func(a []string) error { return forks(atoi(a[0])) },
	"memory-bomb": func(a []string) error { return memoryBomb(atoi(a[0])) },
	"fill":        func(a []string) error { return fill(a[0], atoi(a[1])) },
	"inodes":      func(a []string) error { return inodes(a[0], atoi(a[1])) },
	"descriptors": func(a []string) error { return descriptors(atoi(a[0])) },
	"refusals":    func(a []string) error { return refusals(a[0], atoi(a[1])) },
	"exec-flood":  func(a []string) error { return execFlood(a[0], atoi(a[1])) },
	"shout":       func(a []string) error { return shout(atoi(a[0])) },
	"spin":        func([]string) error { return spin() },
	"deep":        func(a []string) error { return deep(a[0], atoi(a[1])) },
})

// forks starts n processes that stay.
func forks(n int) error {
	var all []*exec.Cmd
	defer func() {
		for _, c := range all {
			c.Process.Kill()
			c.Wait()
		}
	}()
	for i := range n {
		c := exec.Command("/bin/busybox", "sleep", "60")
		if err := c.Start(); err != nil {
			return fmt.Errorf("after %d processes: %w", i, err)
		}
		all = append(all, c)
	}
	return nil
}

// memoryBomb touches n MiB.
func memoryBomb(n int) error {
	var all [][]byte
	for range n {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		all = append(all, b)
	}
	fmt.Println(len(all), "MiB")
	return nil
}

// fill writes n MiB into one file.
func fill(dir string, n int) error {
	f, err := os.Create(dir + "/fill")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	b := make([]byte, 1<<20)
	for i := range n {
		if _, err := f.Write(b); err != nil {
			return fmt.Errorf("after %d MiB: %w", i, err)
		}
	}
	return nil
}

// inodes makes n empty files.
func inodes(dir string, n int) error {
	dir += "/inodes"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for i := range n {
		fd, err := unix.Open(fmt.Sprintf("%s/%d", dir, i), unix.O_CREAT|unix.O_WRONLY, 0o644)
		if err != nil {
			return fmt.Errorf("after %d files: %w", i, err)
		}
		unix.Close(fd)
	}
	return nil
}

func descriptors(n int) error {
	for i := range n {
		if _, err := unix.Open("/dev/null", unix.O_RDONLY, 0); err != nil {
			return fmt.Errorf("after %d descriptors: %w", i, err)
		}
	}
	return nil
}

// refusals is refused n times as fast as it goes, to fill the guard's queue,
// and then tries something worse that the guard may miss.
func refusals(target string, n int) error {
	for range n {
		if fd, err := unix.Open("/secret/noise", unix.O_RDONLY, 0); err == nil {
			unix.Close(fd)
		}
	}
	time.Sleep(1500 * time.Millisecond)
	return steal(target)
}

// execFlood starts an unlisted program from many threads at once; one that
// runs is enough.
func execFlood(name string, n int) error {
	var ran atomic.Int64
	var last atomic.Value
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range n / 8 {
				if err := canary(name); err == nil {
					ran.Add(1)
				} else {
					last.Store(err)
				}
			}
		})
	}
	wg.Wait()
	if ran.Load() > 0 {
		return nil
	}
	return last.Load().(error)
}

// shout writes n MiB to its output.
func shout(n int) error {
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = 'x'
		if i%80 == 79 {
			b[i] = '\n'
		}
	}
	for range n {
		if _, err := os.Stdout.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// spin keeps every processor busy for two seconds and counts the time it got.
func spin() error {
	var before, after unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &before)
	end := time.Now().Add(2 * time.Second)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for time.Now().Before(end) {
			}
		})
	}
	wg.Wait()
	unix.Getrusage(unix.RUSAGE_SELF, &after)
	if d := time.Duration(after.Utime.Nano() - before.Utime.Nano()); d < 1300*time.Millisecond {
		return fmt.Errorf("got %v of processor time in 2 s: %w", d, unix.EAGAIN)
	}
	return nil
}

// deep makes folders in each other, further than a path can name.
func deep(dir string, n int) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	for i := range n {
		if err := unix.Mkdir("d", 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("at depth %d: %w", i, err)
		}
		if err := unix.Chdir("d"); err != nil {
			return fmt.Errorf("at depth %d: %w", i, err)
		}
	}
	return nil
}
