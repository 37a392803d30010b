package confine

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Self confines the whole calling process, all its threads, for a program
// that goes on running, such as a service. Unlike in apply, the
// process keeps its descriptors, and the filter decides whether it may
// execute. It needs a program without cgo.
func Self(s *Spec) error {
	f, err := prepare(s, extras{threads: true})
	if err != nil {
		return err
	}
	defer unix.Close(int(f.ruleset))
	for _, st := range f.everywhere() {
		if err := st.do(); err != nil {
			return fmt.Errorf("%s: %w", stages[st.at], err)
		}
	}
	return nil
}

type step struct {
	at stage
	do func() error
}

// everywhere is commit for all threads of a process. Threads that the runtime
// makes later inherit everything.
func (f *final) everywhere() []step {
	all := func(at stage, trap uintptr, a ...uintptr) step {
		return step{at, func() error { return allThreads(trap, a...) }}
	}
	var out []step
	for i := range f.limits {
		out = append(out, step{atLimits, func() error { return nonzero(f.limits[i].set()) }})
	}
	bits := uintptr(noRoot | noAmbient)
	if f.caps != 0 {
		bits = noRoot
	}
	out = append(out, all(atSecurebits, unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, bits))
	for c := uintptr(0); c <= lastCap(); c++ {
		if f.caps&(1<<c) == 0 {
			out = append(out, all(atBounding, unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c))
		}
	}
	if f.caps != 0 {
		out = append(out, all(atCapabilities, unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1))
	}
	return append(out,
		all(atGroups, unix.SYS_SETGROUPS, 0, 0),
		all(atGroups, unix.SYS_SETRESGID, f.gid, f.gid, f.gid),
		all(atUser, unix.SYS_SETRESUID, f.uid, f.uid, f.uid),
		all(atCapabilities, unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0),
		all(atCapabilities, unix.SYS_CAPSET, uintptr(unsafe.Pointer(&capHeader)), uintptr(unsafe.Pointer(&f.keep[0]))),
		step{atDirectory, func() error { return unix.Chdir(unix.BytePtrToString(f.dir)) }},
		all(atNoNewPrivs, unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1),
		step{atDumpable, func() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }},
		all(atLandlock, unix.SYS_LANDLOCK_RESTRICT_SELF, f.ruleset, 0),
		step{atProbe, f.refusedHere},
		step{atSeccomp, f.synchronize},
		step{atVerify, f.verifiedEverywhere},
	)
}

// allThreads makes one system call on every thread; the runtime ends the
// process if they get different answers.
func allThreads(trap uintptr, a ...uintptr) error {
	var v [6]uintptr
	copy(v[:], a)
	_, _, e := syscall.AllThreadsSyscall6(trap, v[0], v[1], v[2], v[3], v[4], v[5])
	return nonzero(e)
}

func nonzero(e syscall.Errno) error {
	if e != 0 {
		return e
	}
	return nil
}

// lastCap is the highest capability that the kernel knows.
func lastCap() uintptr {
	c := uintptr(unix.CAP_LAST_CAP)
	for ; c < 63; c++ {
		if _, _, e := syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAPBSET_READ, c+1, 0, 0, 0, 0); e != 0 {
			break
		}
	}
	return c
}

func (f *final) refusedHere() error {
	if f.probe && !refused() {
		return unix.EINVAL
	}
	return nil
}

// synchronize installs the filter on all threads at once.
func (f *final) synchronize() error {
	r, _, e := syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, f.sync, uintptr(unsafe.Pointer(&f.filter)))
	if e == 0 && r != 0 {
		return fmt.Errorf("thread %d cannot take the filter", r)
	}
	return nonzero(e)
}

func (f *final) verifiedEverywhere() error {
	if !f.verified() {
		return unix.EINVAL
	}
	for _, q := range []struct{ op, want uintptr }{{unix.PR_GET_NO_NEW_PRIVS, 1}, {unix.PR_GET_SECCOMP, unix.SECCOMP_MODE_FILTER}} {
		r, _, e := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, q.op, 0, 0, 0, 0, 0)
		if e != 0 || r != q.want {
			return errors.Join(unix.EINVAL, nonzero(e))
		}
	}
	return nil
}
