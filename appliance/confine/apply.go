package confine

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// limits maps the names of Spec.Limits to resources.
var limits = map[string]int{
	"core":    unix.RLIMIT_CORE,
	"fsize":   unix.RLIMIT_FSIZE,
	"memlock": unix.RLIMIT_MEMLOCK,
	"nofile":  unix.RLIMIT_NOFILE,
	"nproc":   unix.RLIMIT_NPROC,
	"stack":   unix.RLIMIT_STACK,
}

func limitNames() []string { return slices.Sorted(maps.Keys(limits)) }

// extras is what the launcher itself adds to a Spec.
type extras struct {
	// exec is an open file that may still be executed, or nil: PID 1 becomes
	// another image of the launcher.
	exec *os.File
	// scope keeps signals and abstract sockets inside the Landlock domain.
	scope bool
}

// apply confines the calling thread, which must be locked and must call
// execve next, or exit. The package comment explains the order.
func apply(s *Spec, x extras) error {
	rs, err := newRuleset(s.Landlock, x.scope)
	if err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	// Rules are added while privileged: the agent's uid may be unable to
	// walk to a path that it may not list.
	if err := rs.addAll(s.Landlock); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	if x.exec != nil {
		if err := rs.add(int(x.exec.Fd()), fsExec); err != nil {
			return fmt.Errorf("landlock: launcher: %w", err)
		}
	}
	steps := []struct {
		name string
		do   func() error
	}{
		{"limits", func() error { return setLimits(s.Limits) }},
		{"privileges", func() error { return dropPrivileges(s) }},
		{"directory", func() error { return unix.Chdir(s.Dir) }},
		{"no_new_privs", func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }},
		{"dumpable", func() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }},
		{"landlock", rs.restrict},
		{"landlock", func() error { return probeLandlock(s.Landlock) }},
		{"descriptors", func() error { return unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC) }},
		{"seccomp", func() error { return s.installFilter() }},
		{"self-check", func() error { return verify(s) }},
	}
	for _, st := range steps {
		if err := st.do(); err != nil {
			return fmt.Errorf("%s: %w", st.name, err)
		}
	}
	return nil
}

// setLimits goes through package syscall, because that is how Go forgets the
// descriptor limit that it would otherwise restore at execve.
func setLimits(ls []Limit) error {
	for _, l := range ls {
		var old syscall.Rlimit
		r := limits[l.Name]
		if err := syscall.Getrlimit(r, &old); err != nil {
			return fmt.Errorf("read %s: %w", l.Name, err)
		}
		v := l.Value
		if l.Name == "core" {
			v = min(v, old.Max) // a lower one than asked for is as good
		}
		if err := syscall.Setrlimit(r, &syscall.Rlimit{Cur: v, Max: v}); err != nil {
			return fmt.Errorf("%s to %d, hard limit is %d: %w; raise the daemon's limit or lower the policy's", l.Name, v, old.Max, err)
		}
	}
	return nil
}

// securebits make even user id 0 a plain user, for good.
// Source: capabilities(7), "The securebits flags".
const securebits = 1<<0 | 1<<1 | 1<<6 | 1<<7 // noroot, no_cap_ambient_raise, each locked

// dropPrivileges works on the calling thread only: package syscall's Setuid
// and friends would involve all threads, which execve ends anyway.
func dropPrivileges(s *Spec) error {
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, securebits, 0, 0, 0); err != nil {
		return fmt.Errorf("securebits %#x: %w", securebits, err)
	}
	if err := emptyBounding(); err != nil {
		return err
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); e != 0 {
		return fmt.Errorf("drop groups: %w", e)
	}
	g, u := uintptr(s.GID), uintptr(s.UID)
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, g, g, g); e != 0 {
		return fmt.Errorf("gid %d: %w", s.GID, e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, u, u, u); e != 0 {
		return fmt.Errorf("uid %d: %w", s.UID, e)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("ambient capabilities: %w", err)
	}
	var none [2]unix.CapUserData
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	return nil
}

// emptyBounding drops every capability that the kernel knows; it answers
// EINVAL for the first one that it doesn't.
func emptyBounding() error {
	for c := uintptr(0); c < 64; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) && c > unix.CAP_SYS_ADMIN {
			return nil
		}
		if err != nil {
			return fmt.Errorf("bounding set, capability %d: %w", c, err)
		}
	}
	return nil
}

func (s *Spec) installFilter() error {
	fs := make([]unix.SockFilter, len(s.Seccomp))
	for i, in := range s.Seccomp {
		fs[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	p := unix.SockFprog{Len: uint16(len(fs)), Filter: &fs[0]}
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&p)))
	if e != 0 {
		return fmt.Errorf("install filter of %d instructions: %w", len(fs), e)
	}
	return nil
}

// verify reads the restrictions back from the kernel.
func verify(s *Spec) error {
	var caps [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &caps[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	nnp, _, _ := unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0, 0)
	mode, _, _ := unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_GET_SECCOMP, 0, 0, 0, 0, 0)
	uid, _, _ := unix.RawSyscall(unix.SYS_GETUID, 0, 0, 0)
	if caps != [2]unix.CapUserData{} || nnp != 1 || mode != unix.SECCOMP_MODE_FILTER || int(uid) != s.UID {
		return fmt.Errorf("kernel reports capabilities %x, no_new_privs %d, seccomp mode %d, uid %d; want none, 1, %d, %d",
			caps, nnp, mode, uid, unix.SECCOMP_MODE_FILTER, s.UID)
	}
	return nil
}
