package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

var _ = register(map[string]func([]string) error{
	"exec":        func(a []string) error { return canary(a[0], a[1:]...) },
	"copy":        func(a []string) error { return runCopy(a[0]) },
	"memfd":       func([]string) error { return memory() },
	"script":      func([]string) error { return script() },
	"exec-fd":     func(a []string) error { return byDescriptor(a[0]) },
	"exec-thread": func(a []string) error { return onThread(a[0]) },
	"daemon":      func(a []string) error { return daemon(a[0]) },
	"mmap-exec":   func([]string) error { return mapped() },
	"x32":         func([]string) error { return x32() },
	"hijack-elf":  func([]string) error { return interpreter() },
})

// canary runs a program and wants to hear that it ran.
func canary(name string, args ...string) error {
	c := exec.Command(name, append(args, "canary")...)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	if bytes.Contains(out.Bytes(), []byte("CANARY")) {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("%s ended well and said %q", name, out.Bytes())
	}
	return err
}

// runCopy copies a listed program to where the agent may write.
func runCopy(dir string) error {
	b, err := os.ReadFile("/bin/attack")
	if err != nil {
		return err
	}
	if err := os.WriteFile(dir+"/copy", b, 0o755); err != nil {
		return err
	}
	return canary(dir + "/copy")
}

// memory runs a program that is in no file, with and without the promise not
// to run it.
func memory() error {
	try := func(flags int) func() error {
		return func() error {
			fd, err := unix.MemfdCreate("x", flags)
			if err != nil {
				return fmt.Errorf("memfd_create: %w", err)
			}
			b, err := os.ReadFile("/bin/attack")
			if err != nil {
				return err
			}
			if _, err := unix.Write(fd, b); err != nil {
				return err
			}
			return fromFd(fd)
		}
	}
	return oneOf(try(0), try(unix.MFD_NOEXEC_SEAL), try(unix.MFD_EXEC))
}

// fromFd runs the open file fd in a child, by its descriptor.
func fromFd(fd int) error {
	return canary(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd))
}

func byDescriptor(name string) error {
	return oneOf(
		func() error {
			fd, err := unix.Open(name, unix.O_PATH, 0)
			if err != nil {
				return err
			}
			return fromFd(fd)
		},
		func() error {
			fd, err := unix.Open(name, unix.O_PATH, 0)
			if err != nil {
				return err
			}
			args := []*byte{nil}
			return call("execveat", unix.SYS_EXECVEAT, uintptr(fd), ptr(""), uintptr(unsafe.Pointer(&args[0])), uintptr(unsafe.Pointer(&args[0])), unix.AT_EMPTY_PATH)
		},
	)
}

// script runs a file that names a listed interpreter in its first line.
func script() error {
	if err := os.WriteFile("/workspace/s", []byte("#!/bin/attack canary\n"), 0o755); err != nil {
		return err
	}
	return canary("/workspace/s")
}

// onThread execs from a thread that is not the process's first.
func onThread(name string) error {
	errs := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() { // stay here, so that the next one is another
			go func() {
				runtime.LockOSThread()
				errs <- syscall.Exec(name, []string{name, "canary"}, nil)
			}()
			select {}
		}
		errs <- syscall.Exec(name, []string{name, "canary"}, nil)
	}()
	return fmt.Errorf("execve: %w", <-errs)
}

// daemon leaves its session and its parent, twice, before it execs.
func daemon(name string) error {
	switch os.Getenv("STEP") {
	case "":
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		c := exec.Command("/bin/attack", "daemon", name)
		c.Env, c.Stdout = []string{"STEP=1"}, w
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := c.Run(); err != nil {
			return err
		}
		w.Close()
		b := make([]byte, 4096)
		n, _ := r.Read(b) // until the grandchild has spoken or is gone
		if bytes.Contains(b[:n], []byte("CANARY")) {
			return nil
		}
		if bytes.Contains(b[:n], []byte("permission denied")) {
			return fmt.Errorf("the daemon: %w", unix.EACCES)
		}
		if bytes.Contains(b[:n], []byte("not permitted")) {
			return fmt.Errorf("the daemon: %w", unix.EPERM)
		}
		return fmt.Errorf("the daemon said %q and was killed", b[:n])
	case "1":
		c := exec.Command("/bin/attack", "daemon", name)
		c.Env, c.Stdout = []string{"STEP=2"}, os.Stdout
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := c.Start(); err != nil {
			return err
		}
		os.Exit(0)
	}
	err := syscall.Exec(name, []string{name, "canary"}, nil)
	fmt.Println(err)
	return err
}

// mapped maps code from a file that the agent wrote.
func mapped() error {
	if err := os.WriteFile("/workspace/code", make([]byte, 4096), 0o755); err != nil {
		return err
	}
	f, err := os.Open("/workspace/code")
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	return nil
}

// x32 makes a system call by the numbers of another ABI, which a filter of
// numbers could miss.
func x32() error {
	if os.Getenv("STEP") == "" {
		c := exec.Command("/bin/attack", "x32")
		c.Env = []string{"STEP=1"}
		out, err := c.CombinedOutput()
		if bytes.Contains(out, []byte("function not implemented")) {
			return fmt.Errorf("x32: %w", unix.ENOSYS)
		}
		if err == nil {
			return nil
		}
		return fmt.Errorf("%w: %s", err, out)
	}
	const x32Bit = 0x40000000
	if err := call("unshare by x32", x32Bit|unix.SYS_UNSHARE, unix.CLONE_NEWUTS); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
	return errors.New("not reached")
}

// interpreter makes a program whose dynamic linker is another program.
func interpreter() error {
	const elf = "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x3e\x00\x01\x00\x00\x00"
	b := make([]byte, 4096)
	copy(b, elf)
	b[32], b[52], b[54], b[56] = 64, 64, 56, 1 // program headers at 64, one of 56 bytes
	ph := b[64:]
	ph[0] = 3 // PT_INTERP
	ph[8], ph[9] = 0, 1
	name := "/bin/other\x00"
	ph[32], ph[40] = byte(len(name)), byte(len(name))
	copy(b[256:], name)
	if err := os.WriteFile("/workspace/elf", b, 0o755); err != nil {
		return err
	}
	return canary("/workspace/elf")
}
