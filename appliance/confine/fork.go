package confine

import (
	"fmt"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A second start of Go's runtime would cost more than a millisecond, so the
// agent's process is forked from PID 1, and goes from there to the agent's
// first instruction in system calls alone. The rules are those of package
// syscall's own forkAndExecInChild: after fork there is one thread, other
// threads' locks stay as they were, so nothing may allocate, grow the stack or
// take a lock.

// child is all that the forked process needs.
type child struct {
	*final
	report uintptr // takes one line when it isn't
	// For a process that joins: it waits for Proceed on gate, makes itself a
	// cgroup namespace, and takes standard input for its terminal.
	gate       uintptr
	joins, tty bool
	args       [11]uint64 // struct clone_args (linux/sched.h)
}

// Indices of child.args.
const (
	cloneFlags  = 0
	cloneSignal = 4
	cloneCgroup = 10
)

// noSignals and allSignals are masks of the kernel's 64 signals.
var (
	noSignals  uint64
	allSignals = ^uint64(0)
)

// fork starts the process that becomes f's program. Signals are blocked until
// its handlers are the default ones: Go's must not run in there.
func (c *child) fork() (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var old uint64
	if e := setMask(&allSignals, &old); e != 0 {
		return 0, fmt.Errorf("block signals: %w", e)
	}
	c.args[cloneSignal] = uint64(unix.SIGCHLD)
	pid, e := c.rawFork()
	setMask(&old, nil)
	runtime.KeepAlive(c)
	if e != 0 {
		return 0, fmt.Errorf("fork: %w", e)
	}
	return int(pid), nil
}

//go:noinline
//go:norace
//go:nosplit
func (c *child) rawFork() (uintptr, syscall.Errno) {
	pid, _, e := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&c.args)), unsafe.Sizeof(c.args), 0)
	if e != 0 || pid != 0 {
		return pid, e
	}
	c.run()
	return 0, 0 // not reached
}

// sigaction is the kernel's, all zero: SIG_DFL. Its size on amd64 and arm64.
type sigaction struct{ handler, flags, restorer, mask uint64 }

// run is the child's whole life before the agent.
//
//go:norace
//go:nosplit
func (c *child) run() {
	var def sigaction
	for s := uintptr(1); s <= 64; s++ {
		syscall.RawSyscall6(unix.SYS_RT_SIGACTION, s, uintptr(unsafe.Pointer(&def)), 0, 8, 0, 0) // SIGKILL and SIGSTOP refuse
	}
	at, e := c.enters()
	if e == 0 {
		at, e = c.commit()
	}
	if e == 0 {
		setMask(&noSignals, nil)
		at, e = atExecute, c.execute()
	}
	c.tell(at, e)
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, ExitFailed, 0, 0)
	}
}

// enters is what a process does first that joins a sandbox.
//
//go:norace
//go:nosplit
func (c *child) enters() (stage, syscall.Errno) {
	if !c.joins {
		return 0, 0
	}
	var b [len(Proceed)]byte
	n, _, e := syscall.RawSyscall(unix.SYS_READ, c.gate, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	if e != 0 || n != uintptr(len(b)) {
		return atJoin, max(e, 1)
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP, 0, 0); e != 0 {
		return atJoin, e
	}
	if !c.tty {
		return 0, 0
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0); e != 0 {
		return atTerminal, e
	}
	_, _, e = syscall.RawSyscall(unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	return atTerminal, e
}

// tell reports in two bytes what no formatting can happen for: see Failure.
//
//go:norace
//go:nosplit
func (c *child) tell(at stage, e syscall.Errno) {
	msg := [...]byte{failed, byte(at), byte(e), '\n'}
	syscall.RawSyscall(unix.SYS_WRITE, c.report, uintptr(unsafe.Pointer(&msg[0])), uintptr(len(msg)))
}

// failed begins a forked process's report; no line of text begins with it.
const failed = 0xff

// Failure explains what a forked process has reported on the Spec's channel.
// It is nil when line is no such report.
func Failure(line string) error {
	if len(line) < 3 || line[0] != failed {
		return nil
	}
	at, e := "step "+strconv.Itoa(int(line[1])), syscall.Errno(line[2])
	if int(line[1]) < len(stages) {
		at = stages[line[1]]
	}
	if stage(line[1]) == atExecute {
		return fmt.Errorf("%s the program: %w", at, e)
	}
	return fmt.Errorf("confine: %s: %w", at, e)
}

//go:norace
//go:nosplit
func setMask(to, old *uint64) syscall.Errno {
	_, _, e := syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(to)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
	return e
}
