package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var _ = register(map[string]func([]string) error{
	"pace":  func(a []string) error { return pace(a[0]) },
	"flood": func(a []string) error { return flood(a[0]) },
	"bite":  func(a []string) error { return floods[a[0]]() },
})

// pace works as an agent does, in small steps, and says how long the slowest of
// a hundred takes.
func pace(d string) error {
	span, err := time.ParseDuration(d)
	if err != nil {
		return err
	}
	var took []time.Duration
	for end := time.Now().Add(span); time.Now().Before(end) || len(took) < 20; {
		t0 := time.Now()
		if err := work(); err != nil {
			return err
		}
		took = append(took, time.Since(t0))
	}
	slices.Sort(took)
	return fmt.Errorf("p99 in us: %d", took[len(took)*99/100].Microseconds())
}

func work() error {
	if err := exec.Command("/bin/busybox", "true").Run(); err != nil {
		return err
	}
	if err := os.WriteFile("/workspace/work", make([]byte, 4096), 0o644); err != nil {
		return err
	}
	return os.Remove("/workspace/work")
}

// floods take what there is of one thing, once.
var floods = map[string]func() error{
	"forks":  func() error { return forks(500) },
	"memory": func() error { return memoryBomb(1024) },
	"disk":   func() error { return fill("/workspace", 600) },
}

// flood takes all of it again and again until it is ended. Each time is a
// process of its own, because the kernel ends the one that takes the memory.
func flood(what string) error {
	for {
		err := exec.Command("/bin/attack", "bite", what).Run()
		var ee *exec.ExitError
		if err != nil && !errors.As(err, &ee) && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, syscall.ENOMEM) {
			return err
		}
	}
}
