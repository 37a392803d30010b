package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// buf is memory that the kernel may write to.
var buf = make([]byte, 64<<10)

func at(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }

// sys is an attack that is one system call.
func sys(name string, nr uintptr, args ...uintptr) func([]string) error {
	return func([]string) error { return call(name, nr, args...) }
}

var _ = register(map[string]func([]string) error{
	"unshare":      sys("unshare", unix.SYS_UNSHARE, unix.CLONE_NEWUTS),
	"clone-user":   func([]string) error { return cloneUser() },
	"clone3":       func([]string) error { return clone3() },
	"setns":        func([]string) error { return setns() },
	"ptrace":       func([]string) error { return trace() },
	"vm-write":     func([]string) error { return vmWrite() },
	"proc-mem":     func([]string) error { return procMem() },
	"pidfd-getfd":  func([]string) error { return stealFd() },
	"kcmp":         func([]string) error { return kcmp() },
	"keyctl":       func([]string) error { return keys() },
	"bpf":          func([]string) error { return bpf() },
	"io-uring":     func([]string) error { return ioURing() },
	"perf":         func([]string) error { return perf() },
	"userfaultfd":  sys("userfaultfd", unix.SYS_USERFAULTFD, unix.O_CLOEXEC),
	"mount":        func([]string) error { return unix.Mount("/bin", "/workspace", "", unix.MS_BIND, "") },
	"mount-api":    func([]string) error { return mountAPI() },
	"open-tree":    func([]string) error { return openTree() },
	"remount":      func([]string) error { return remount() },
	"pivot-root":   func([]string) error { return pivot() },
	"chroot":       func([]string) error { return unix.Chroot("/workspace") },
	"umount-mask":  func([]string) error { return unix.Unmount("/proc", unix.MNT_DETACH) },
	"cgroup-mount": func([]string) error { return unix.Mount("none", "/tmp", "cgroup2", 0, "") },
	"setuid":       func([]string) error { return identity() },
	"capset":       func([]string) error { return capset() },
	"ambient": func([]string) error {
		return unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_SYS_ADMIN, 0, 0)
	},
	"seccomp":       func([]string) error { return listener() },
	"module":        func([]string) error { return modules() },
	"reboot":        sys("reboot", unix.SYS_REBOOT, unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_CAD_OFF),
	"clock":         func([]string) error { return clock() },
	"syslog":        func([]string) error { return call("syslog", unix.SYS_SYSLOG, 3, at(buf), uintptr(len(buf))) },
	"hostname":      func([]string) error { return unix.Sethostname([]byte("owned")) },
	"priority":      func([]string) error { return priority() },
	"rlimit":        func([]string) error { return rlimit() },
	"kill":          func(a []string) error { return kill(a) },
	"stop":          func(a []string) error { return signalAll(a, unix.SIGSTOP) },
	"signal-any":    func(a []string) error { return signalAll(a, 0) },
	"tiocsti":       func([]string) error { return typeInto() },
	"sysctl":        func([]string) error { return scribble("/proc/sys/kernel/core_pattern") },
	"memfd-secret":  sys("memfd_secret", unix.SYS_MEMFD_SECRET, 0),
	"fanotify":      sys("fanotify_init", unix.SYS_FANOTIFY_INIT, 0, 0),
	"quota":         sys("quotactl", unix.SYS_QUOTACTL, 0x800001<<8, 0, 0, 0),
	"swap":          func([]string) error { return swap() },
	"move-pages":    sys("move_pages", unix.SYS_MOVE_PAGES, 1, 0, 0, 0, 0, 0),
	"kernel-memory": func([]string) error { return kernelMemory() },
})

// cloneUser starts a child in each sort of namespace.
func cloneUser() error {
	var tries []func() error
	for _, f := range []uintptr{unix.CLONE_NEWUSER, unix.CLONE_NEWNET, unix.CLONE_NEWNS, unix.CLONE_NEWPID, unix.CLONE_NEWCGROUP} {
		tries = append(tries, func() error {
			c := exec.Command("/bin/attack", "canary")
			c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: f}
			if err := c.Run(); err != nil {
				return fmt.Errorf("clone %#x: %w", f, err)
			}
			return nil
		})
	}
	return oneOf(tries...)
}

// clone3 asks for a child in a user namespace, by the call whose flags no
// filter can see.
func clone3() error {
	args := struct{ flags, pidfd, child, parent, signal, stack, size, tls, tid, tids, cgroup uint64 }{flags: unix.CLONE_NEWUTS, signal: uint64(unix.SIGCHLD)}
	pid, _, no := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	if no != 0 {
		return fmt.Errorf("clone3: %w", no)
	}
	if pid == 0 {
		unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
	}
	return nil
}

func setns() error {
	fd, err := unix.Open("/proc/self/ns/uts", unix.O_RDONLY, 0)
	if err != nil {
		fd = 0
	}
	return call("setns", unix.SYS_SETNS, uintptr(fd), unix.CLONE_NEWUTS)
}

// victim is another process of the attacker.
func victim(f func(pid int) error) error {
	c := exec.Command("/bin/attack", "sleep")
	if err := c.Start(); err != nil {
		return err
	}
	defer func() {
		c.Process.Kill()
		c.Wait()
	}()
	return f(c.Process.Pid)
}

func trace() error {
	return victim(func(pid int) error {
		return oneOf(
			func() error { return call("ptrace", unix.SYS_PTRACE, unix.PTRACE_SEIZE, 1, 0, 0) },
			func() error { return call("ptrace", unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, 0) },
		)
	})
}

func vmWrite() error {
	return victim(func(pid int) error {
		local := unix.Iovec{Base: &buf[0]}
		local.SetLen(1)
		// The child is this program, and has the same segments: its code is at
		// the same place. Reading it is enough.
		remote := unix.RemoteIovec{Base: 0x400000, Len: 1}
		read := func() error {
			_, err := unix.ProcessVMReadv(pid, []unix.Iovec{local}, []unix.RemoteIovec{remote}, 0)
			return err
		}
		err := read()
		for end := time.Now().Add(time.Second); err == unix.EFAULT && time.Now().Before(end); err = read() {
			time.Sleep(time.Millisecond) // it has been told to execute, and has no segments yet
		}
		if err == nil {
			return nil
		}
		_, werr := unix.ProcessVMWritev(pid, []unix.Iovec{local}, []unix.RemoteIovec{remote}, 0)
		return oneOf(func() error { return fmt.Errorf("process_vm_readv: %w", err) }, func() error {
			if werr == nil {
				return nil
			}
			return fmt.Errorf("process_vm_writev: %w", werr)
		})
	})
}

func procMem() error {
	return oneOf(
		func() error { return steal("/proc/1/environ") },
		func() error {
			f, err := os.OpenFile("/proc/1/mem", os.O_RDWR, 0)
			if err != nil {
				return err
			}
			return f.Close()
		},
		func() error { _, err := os.Readlink("/proc/1/exe"); return err },
	)
}

func stealFd() error {
	return victim(func(pid int) error {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return err
		}
		return call("pidfd_getfd", unix.SYS_PIDFD_GETFD, uintptr(fd), 1, 0)
	})
}

func kcmp() error {
	return victim(func(pid int) error {
		return call("kcmp", unix.SYS_KCMP, uintptr(os.Getpid()), uintptr(pid), 1 /* KCMP_VM */, 0, 0)
	})
}

func keys() error {
	return oneOf(
		func() error {
			return call("add_key", unix.SYS_ADD_KEY, ptr("user"), ptr("x"), at(buf), 1, ^uintptr(2) /* the session's ring */)
		},
		func() error { return call("keyctl", unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, ^uintptr(2), 1) },
		func() error { return call("request_key", unix.SYS_REQUEST_KEY, ptr("user"), ptr("x"), 0, ^uintptr(2)) },
	)
}

func bpf() error {
	attr := make([]byte, 128)
	attr[0], attr[4], attr[8], attr[12] = 2, 4, 4, 1 // an array of one
	return call("bpf", unix.SYS_BPF, 0, at(attr), uintptr(len(attr)))
}

func ioURing() error {
	params := make([]byte, 120)
	return call("io_uring_setup", unix.SYS_IO_URING_SETUP, 4, at(params))
}

func perf() error {
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK}
	attr.Size = uint32(unsafe.Sizeof(attr))
	_, err := unix.PerfEventOpen(&attr, 0, -1, -1, 0)
	if err != nil {
		return fmt.Errorf("perf_event_open: %w", err)
	}
	return nil
}

func mountAPI() error {
	fd, err := unix.Fsopen("tmpfs", 0)
	if err != nil {
		return fmt.Errorf("fsopen: %w", err)
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return err
	}
	m, err := unix.Fsmount(fd, 0, 0)
	if err != nil {
		return err
	}
	return unix.MoveMount(m, "", unix.AT_FDCWD, "/tmp", unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func openTree() error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/bin", unix.OPEN_TREE_CLONE)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	return unix.MoveMount(fd, "", unix.AT_FDCWD, "/workspace", unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func remount() error {
	return oneOf(
		func() error { return unix.Mount("none", "/workspace", "", unix.MS_REMOUNT, "") },
		func() error {
			a := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_NOEXEC}
			return unix.MountSetattr(unix.AT_FDCWD, "/workspace", 0, &a)
		},
	)
}

func pivot() error {
	if err := os.MkdirAll("/workspace/old", 0o755); err != nil {
		return err
	}
	return unix.PivotRoot("/workspace", "/workspace/old")
}

func identity() error {
	return oneOf(
		func() error { return call("setuid", unix.SYS_SETUID, 0) },
		func() error { return call("setresgid", unix.SYS_SETRESGID, 0, 0, 0) },
		func() error { return call("setgroups", unix.SYS_SETGROUPS, 1, at(buf)) },
	)
}

func capset() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: 1 << unix.CAP_SYS_ADMIN, Permitted: 1 << unix.CAP_SYS_ADMIN}}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}

// listener asks for a filter that hands system calls to its maker.
func listener() error {
	allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	prog := unix.SockFprog{Len: 1, Filter: &allow}
	const setModeFilter, newListener = 1, 8
	return call("seccomp", unix.SYS_SECCOMP, setModeFilter, newListener, uintptr(unsafe.Pointer(&prog)))
}

// modules hands the kernel code that it must not even look at: ENOEXEC means
// that it did.
func modules() error {
	looked := func(name string, nr uintptr, args ...uintptr) func() error {
		return func() error {
			err := call(name, nr, args...)
			if no := errnos(err); len(no) == 1 && (no[0] == "ENOEXEC" || no[0] == "EINVAL" || no[0] == "EBADF") {
				return nil
			}
			return err
		}
	}
	return oneOf(
		looked("init_module", unix.SYS_INIT_MODULE, at(buf), 64, ptr("")),
		looked("kexec_load", unix.SYS_KEXEC_LOAD, 0, 1<<20, 0, 0),
	)
}

// clock sets the time to what it is.
func clock() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
		return err
	}
	return call("clock_settime", unix.SYS_CLOCK_SETTIME, unix.CLOCK_REALTIME, uintptr(unsafe.Pointer(&now)))
}

func priority() error {
	return oneOf(
		func() error { return call("setpriority", unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, 0, ^uintptr(19)) },
		func() error {
			p := int32(50)
			return call("sched_setscheduler", unix.SYS_SCHED_SETSCHEDULER, 0, unix.SCHED_FIFO, uintptr(unsafe.Pointer(&p)))
		},
	)
}

// rlimit wants more descriptors than the policy of the suite gives.
func rlimit() error {
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 4096, Max: 4096}, nil); err != nil {
		return fmt.Errorf("prlimit64: %w", err)
	}
	return nil
}

// kill ends processes of the host by their numbers there. The control sends
// the signal that only asks whether it may.
func kill(pids []string) error {
	if os.Getenv("CONTROL") != "" {
		return signalAll(pids, 0)
	}
	return signalAll(pids, unix.SIGKILL)
}

func signalAll(pids []string, s unix.Signal) error {
	if os.Getenv("CONTROL") != "" {
		s = 0
	}
	var ways []func() error
	for _, p := range pids {
		pid, err := strconv.Atoi(p)
		if err != nil {
			return err
		}
		ways = append(ways, func() error { return unix.Kill(pid, s) })
	}
	return oneOf(ways...)
}

// typeInto puts characters into the terminal of whoever looks.
func typeInto() error {
	return call("ioctl TIOCSTI", unix.SYS_IOCTL, 0, unix.TIOCSTI, ptr("x"))
}

func swap() error {
	if err := os.WriteFile("/workspace/swap", make([]byte, 64<<10), 0o600); err != nil {
		return err
	}
	err := call("swapon", unix.SYS_SWAPON, ptr("/workspace/swap"), 0)
	if no := errnos(err); len(no) == 1 && no[0] == "EINVAL" { // it was looked at: no signature
		return nil
	}
	return err
}

// kernelMemory reads what tells of the kernel and the machine.
func kernelMemory() error {
	return oneOf(
		func() error { return steal("/proc/kallsyms") },
		func() error { _, err := os.Open("/dev/mem"); return err },
		func() error { _, err := os.Open("/dev/kmsg"); return err },
		func() error { return steal("/sys/kernel/notes") },
	)
}
