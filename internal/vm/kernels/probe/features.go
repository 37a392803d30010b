package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/guard"
)

// features are tried, each by the smallest call that tells. The answer is
// "yes", a value, or the error.
var featureTests = map[string]func() string{
	"bpf: ring buffer":         func() string { return say(features.HaveMapType(ebpf.RingBuf)) },
	"bpf: cgroup sock_addr":    func() string { return say(features.HaveProgramType(ebpf.CGroupSockAddr)) },
	"bpf: sk_lookup":           func() string { return say(features.HaveProgramType(ebpf.SkLookup)) },
	"bpf: cgroup storage, new": func() string { return say(features.HaveMapType(ebpf.CGroupStorage)) },
	"bpf: task storage":        func() string { return say(features.HaveMapType(ebpf.TaskStorage)) },
	"bpf: raw tracepoint":      func() string { return say(features.HaveProgramType(ebpf.RawTracepoint)) },
	"bpf: get_current_ancestor_cgroup_id in raw_tp": func() string {
		return say(features.HaveProgramHelper(ebpf.RawTracepoint, asm.FnGetCurrentAncestorCgroupId))
	},
	"bpf: send_signal": func() string {
		return say(features.HaveProgramHelper(ebpf.RawTracepoint, asm.FnSendSignal))
	},
	"bpf: LSM programs load":      func() string { return say(features.HaveProgramType(ebpf.LSM)) },
	"btf of the kernel":           func() string { return say(exists("/sys/kernel/btf/vmlinux")) },
	"namespaces: user, by nobody": func() string { return say(userns()) },
	"cgroup.kill":                 func() string { return say(inCgroup("cgroup.kill")) },
	"overlayfs":                   func() string { return say(filesystem("overlay")) },
	"xfs":                         func() string { return say(filesystem("xfs")) },
	"seccomp: user notification":  func() string { return say(action(unix.SECCOMP_RET_USER_NOTIF)) },
	"seccomp: kill process":       func() string { return say(action(unix.SECCOMP_RET_KILL_PROCESS)) },
	"openat2":                     func() string { return say(answers(unix.SYS_OPENAT2)) },
	"mount_setattr":               func() string { return say(answers(unix.SYS_MOUNT_SETATTR)) },
	"cachestat (6.5)":             func() string { return say(answers(unix.SYS_CACHESTAT)) },
	"statmount (6.8)":             func() string { return say(answers(unix.SYS_STATMOUNT)) },
	"lsm_get_self_attr (6.8)":     func() string { return say(answers(unix.SYS_LSM_GET_SELF_ATTR)) },
	"mseal (6.10)":                func() string { return say(answers(unix.SYS_MSEAL)) },
	"vm.memfd_noexec":             func() string { return value("/proc/sys/vm/memfd_noexec") },
	"io_uring_disabled":           func() string { return value("/proc/sys/kernel/io_uring_disabled") },
	"yama.ptrace_scope":           func() string { return value("/proc/sys/kernel/yama/ptrace_scope") },
	"unprivileged_bpf_disabled":   func() string { return value("/proc/sys/kernel/unprivileged_bpf_disabled") },
	"unprivileged_userns_clone":   func() string { return value("/proc/sys/kernel/unprivileged_userns_clone") },
	"perf_event_paranoid":         func() string { return value("/proc/sys/kernel/perf_event_paranoid") },
}

func say(err error) string {
	if err == nil {
		return "yes"
	}
	if errors.Is(err, ebpf.ErrNotSupported) {
		return "no"
	}
	return "no: " + err.Error()
}

func value(name string) string {
	b, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return "absent"
	}
	return fmt.Sprintf("%.40s", trimmed(b, err))
}

func trimmed(b []byte, err error) string {
	if err != nil {
		return err.Error()
	}
	for len(b) > 0 && b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	return string(b)
}

func exists(name string) error {
	_, err := os.Stat(name)
	return err
}

// userns makes a user namespace as an ordinary user: this program again, which
// then starts one.
func userns() error {
	c := exec.Command("/proc/self/exe", "userns")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %.60s", err, out)
	}
	return nil
}

func startInUserns() error {
	c := exec.Command("/bin/true")
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
	}
	return c.Run()
}

// inCgroup looks for a file of the cgroup v2 interface in a cgroup of its own.
func inCgroup(file string) error {
	dir, err := guard.Cgroup2Dir()
	if err != nil {
		return err
	}
	d, err := os.MkdirTemp(dir, "clawbox-probe-")
	if err != nil {
		return err
	}
	defer os.Remove(d)
	return exists(d + "/" + file)
}

// filesystem asks for a mount context: ENODEV means that there is no such type.
func filesystem(name string) error {
	fd, err := unix.Fsopen(name, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// action asks whether seccomp knows what a filter may return.
func action(a uint32) error {
	const getActionAvail = 2 // SECCOMP_GET_ACTION_AVAIL
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, getActionAvail, 0, uintptr(unsafe.Pointer(&a)))
	if errno != 0 {
		return errno
	}
	return nil
}

// answers calls with arguments that no kernel accepts: all but ENOSYS shows
// that the call exists.
func answers(nr uintptr) error {
	bad := ^uintptr(0)
	if _, _, errno := unix.Syscall6(nr, bad, bad, bad, bad, bad, bad); errno == unix.ENOSYS {
		return errno
	}
	return nil
}
