package service

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Cage is what a service may do; what it doesn't name is refused. The zero
// Cage but for UID and GID reads nothing, writes nothing and opens no socket.
type Cage struct {
	UID int `json:"uid"` // of its own, never 0
	GID int `json:"gid"`
	// Keep lists capabilities by name (see capabilities).
	Keep []string `json:"keep,omitempty"`
	// Read and Write are paths, each with all below it. They are opened
	// before the service gives up its privileges and must exist.
	Read  []string `json:"read,omitempty"`
	Write []string `json:"write,omitempty"`
	// Calls are groups of system calls besides the common one (see groups):
	// "write" files, "connect" outwards, "interfaces" (what addresses the
	// machine has), "bpf".
	Calls []string `json:"calls,omitempty"`
	// Ports are those that "connect" may go to over TCP; none: all.
	Ports []uint16 `json:"ports,omitempty"`
	// Files bounds open descriptors; 0: 1024.
	Files uint64 `json:"files,omitempty"`
	// ABI is the kernel's Landlock version; Start fills it in.
	ABI int `json:"abi"`
	// Late leaves the system call filter to Self.Seal.
	Late bool `json:"late,omitempty"`
}

// capabilities are those that a service may keep. Numbers that x/sys lacks
// are from linux/capability.h.
var capabilities = map[string]uintptr{
	"bpf": unix.CAP_BPF, "perfmon": unix.CAP_PERFMON, "net_admin": unix.CAP_NET_ADMIN,
	"dac_read_search": unix.CAP_DAC_READ_SEARCH, "sys_ptrace": unix.CAP_SYS_PTRACE, "sys_resource": unix.CAP_SYS_RESOURCE,
}

// check refuses what would be no cage.
func (c *Cage) check() error {
	if c.UID <= 0 || c.GID <= 0 {
		return fmt.Errorf("uid %d and gid %d; want both above 0: root is no cage", c.UID, c.GID)
	}
	for _, k := range c.Keep {
		if _, ok := capabilities[k]; !ok {
			return fmt.Errorf("capability %q; no service may keep that one", k)
		}
	}
	for _, g := range c.Calls {
		if _, ok := groups[g]; !ok {
			return fmt.Errorf("group of calls %q is not known", g)
		}
	}
	return nil
}

// mask is the capability set that stays.
func (c *Cage) mask() (m uint64) {
	for _, k := range c.Keep {
		m |= 1 << capabilities[k]
	}
	return m
}

// enter confines the calling thread, all but the filter. The thread must be
// locked and must call execve next, or exit.
//
// Every step is a raw call on this thread: the ones of package syscall would
// involve threads that execve is about to end anyway.
func (c *Cage) enter() error {
	rs, err := newRuleset(c) // while root: the service's user can't walk to all of it
	if err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	steps := []struct {
		name string
		do   func() error
	}{
		{"limits", c.limit},
		{"bounding set", c.bound},
		{"user", c.become},
		{"capabilities", c.keep},
		{"no_new_privs", func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }},
		// Cleared by the change of user.
		{"death signal", func() error { return unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0) }},
		{"directory", func() error { return unix.Chdir("/") }},
		{"landlock", rs.restrict},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// maxThreads bounds the threads of one service's user.
const maxThreads = 512

// limit goes through package syscall, which then does not restore the old
// descriptor limit at execve.
func (c *Cage) limit() error {
	files := c.Files
	if files == 0 {
		files = 1024
	}
	for _, l := range []struct {
		what int
		n    uint64
	}{{unix.RLIMIT_CORE, 0}, {unix.RLIMIT_NOFILE, files}, {unix.RLIMIT_NPROC, maxThreads}} {
		var old syscall.Rlimit
		if err := syscall.Getrlimit(l.what, &old); err != nil {
			return err
		}
		l.n = min(l.n, old.Max) // what we are ourselves limited to
		if err := syscall.Setrlimit(l.what, &syscall.Rlimit{Cur: l.n, Max: l.n}); err != nil {
			return fmt.Errorf("resource %d to %d: %w", l.what, l.n, err)
		}
	}
	return nil
}

// securebits make user id 0 a plain user. capabilities(7).
const securebits = 1<<0 | 1<<1 // noroot, locked

// bound drops every capability but the kept ones from the bounding set; the
// kernel answers EINVAL for the first that it doesn't know.
func (c *Cage) bound() error {
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, securebits, 0, 0, 0); err != nil {
		return err
	}
	for n := range uintptr(64) {
		if c.mask()&(1<<n) != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, n, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) && n > unix.CAP_SYS_ADMIN {
			return nil
		}
		if err != nil {
			return fmt.Errorf("capability %d: %w", n, err)
		}
	}
	return nil
}

// become changes groups and user for good.
func (c *Cage) become() error {
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return err
	}
	g, u := uintptr(c.GID), uintptr(c.UID)
	for _, call := range [][4]uintptr{{unix.SYS_SETGROUPS}, {unix.SYS_SETRESGID, g, g, g}, {unix.SYS_SETRESUID, u, u, u}} {
		if _, _, e := unix.RawSyscall(call[0], call[1], call[2], call[3]); e != 0 {
			return fmt.Errorf("call %d: %w", call[0], e)
		}
	}
	return nil
}

// keep leaves the kept capabilities, as ambient ones: those survive execve.
func (c *Cage) keep() error {
	if err := setcaps(c.mask()); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return err
	}
	for _, k := range c.Keep {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, capabilities[k], 0, 0); err != nil {
			return fmt.Errorf("keep %s: %w", k, err)
		}
	}
	return nil
}

var capHeader = unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}

func setcaps(m uint64) error {
	lo, hi := uint32(m), uint32(m>>32)
	d := [2]unix.CapUserData{{Effective: lo, Permitted: lo, Inheritable: lo}, {Effective: hi, Permitted: hi, Inheritable: hi}}
	h := capHeader
	return unix.Capset(&h, &d[0])
}

// getcaps reads the calling thread's effective set, and whether the permitted
// one is the same.
func getcaps() (m uint64, same bool, err error) {
	var d [2]unix.CapUserData
	h := capHeader
	err = unix.Capget(&h, &d[0])
	return uint64(d[0].Effective) | uint64(d[1].Effective)<<32, d[0].Effective == d[0].Permitted && d[1].Effective == d[1].Permitted, err
}

// again confines this thread and executes this program anew. It returns only
// on failure.
func (c *Cage) again(args, env []string) error {
	runtime.LockOSThread()
	if err := c.enter(); err != nil {
		return fmt.Errorf("confine service: %w", err)
	}
	if os.Getppid() == 1 { // the death signal was off for a moment
		return errors.New("confine service: the supervisor is gone")
	}
	return fmt.Errorf("execute this program again: %w", unix.Exec("/proc/self/exe", args, env))
}
