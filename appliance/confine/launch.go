package confine

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Exit statuses of the launcher itself; the agent's own are passed through,
// and 128 plus the number of the signal that ended it.
const (
	ExitFailed = 125 // the launcher could not confine or start the program; the channel says why
	exitSignal = 128
)

// Mounted is what PID 1 writes on its channel once the sandbox stands and it
// is confined itself.
const Mounted = "mounted\n"

// End is what the daemon writes to PID 1 to have it ask the agent to end
// (SIGTERM).
const End = "end\n"

// Descriptors that the daemon and the launcher's stages hand to each other.
const (
	controlFD = 3 // init: Root in, Mounted or an error out, then End in; end of file ends the sandbox. join: child's pid or an error out, then Proceed in
	specFD    = 4 // Spec in, an error out; closed by the program's start
	pidFD     = 5 // join: pidfd of the sandbox's PID 1
	groupFD   = 6 // join: the sandbox's cgroup v2; behind it, for each v1 hierarchy, "tasks" of the sandbox's group and then of the daemon's
)

// Main is the launcher. args are the program's arguments without its name:
// one of the modes "init", "join" and "pod". It returns the exit status.
//
// It must be called from the main goroutine of a program in which nothing
// else runs: namespaces and restrictions are those of the main thread.
func Main(args []string) int {
	// Everything below restricts this thread and then executes from it.
	runtime.LockOSThread()
	// What the daemon has handed over reaches a child only where a mode says so.
	if err := unix.CloseRange(controlFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		fmt.Fprintf(os.Stderr, "clawbox-launch: close_range: %v; want Linux 5.11 or newer\n", err)
		return ExitFailed
	}
	mode := ""
	if len(args) > 0 {
		mode = args[0]
	}
	run, ok := modes[mode]
	if !ok {
		fmt.Fprintf(os.Stderr, "clawbox-launch: got mode %q; it is started by clawbox serve, with init, join or pod\n", mode)
		return ExitFailed
	}
	code, err := run(args[1:])
	if err != nil {
		ch := os.NewFile(controlFD, "channel")
		fmt.Fprintf(ch, "error: %s: %v\n", mode, err)
		return ExitFailed
	}
	return code
}

// modes are the launcher's stages. Each has its channel at controlFD.
var modes = map[string]func([]string) (int, error){"init": initBox, "join": join, "pod": inContainer}

// initBox is the first process of a sandbox: root at first, its confined
// supervisor before the agent begins. It returns with the agent.
// args say where other sandboxes' mounts are: see letGo.
func initBox(args []string) (int, error) {
	ctl := os.NewFile(controlFD, "control")
	if err := await(args); err != nil {
		return 0, err
	}
	r, err := stand(ctl)
	if err != nil {
		return 0, err
	}
	if _, err := io.WriteString(ctl, Mounted); err != nil {
		return 0, err
	}
	pid, err := begin(&r.Supervisor, unix.SIGKILL)
	if err != nil {
		// Whoever waits for the agent reads the other channel.
		fmt.Fprintf(os.NewFile(specFD, "spec"), "error: init: %v\n", err)
		return ExitFailed, nil
	}
	return supervise(ctl, pid)
}

// spareThreads has the runtime make n threads, which it keeps. Later the agent
// may have taken every task that the sandbox has, and PID 1 must not die for
// want of a thread.
func spareThreads(n int) {
	var here, gone sync.WaitGroup
	leave := make(chan struct{})
	here.Add(n)
	for range n {
		gone.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			here.Done()
			<-leave
		})
	}
	here.Wait()
	close(leave)
	gone.Wait()
}

// await does what is the same for every sandbox, before it is known which one
// this becomes: a launcher that waits has done two thirds of a start.
func await(others []string) error {
	// The daemon has started this process in its cgroups, so the new
	// namespace's root is the sandbox's own cgroup.
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("cgroup namespace: %w", err)
	}
	if err := leaveDaemon(); err != nil {
		return err
	}
	if err := errors.Join(setStage(), letGo(others)); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	spareThreads(2)
	return nil
}

// stand reads the Root and builds it.
func stand(ctl *os.File) (*Root, error) {
	r, trees, err := receiveRoot(ctl)
	if err != nil {
		return nil, fmt.Errorf("read root: %w", err)
	}
	r.Supervisor.Args = []string{"/launcher"} // executes nothing
	if err := r.Validate(); err != nil {
		return nil, err
	}
	if err := build(&r, trees); err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	return &r, nil
}

// begin reads the Spec, forks the agent's process, and confines this one for
// good. The agent may be first: it has another user id and domain, and PID 1
// reads nothing from it. The daemon learns of success when both are done,
// which is when the last descriptor of the Spec's channel is closed. self
// confines this process, which gets the signal death when its parent ends.
func begin(self *Spec, death unix.Signal) (int, error) {
	ch := os.NewFile(specFD, "spec")
	var s Spec
	if err := receive(ch, &s); err != nil {
		return 0, fmt.Errorf("read spec: %w", err)
	}
	if err := s.Validate(); err != nil {
		return 0, err
	}
	f, err := prepare(&s, extras{scope: true})
	if err != nil {
		return 0, fmt.Errorf("confine: %w", err)
	}
	c := child{final: f, report: ch.Fd()}
	pid, err := c.fork()
	if err != nil {
		return 0, err
	}
	unix.Close(int(f.ruleset))
	// The filter leaves every thread what waiting needs: nothing is opened,
	// executed or connected any more. So the other threads, which the runtime
	// made, need not give up their user id one system call after the other.
	err = deafen()
	if err == nil {
		_, err = apply(self, extras{threads: true})
	}
	if err := errors.Join(err, harden(death)); err != nil {
		return 0, fmt.Errorf("confine PID 1: %w", err)
	}
	return pid, ch.Close()
}

// leaveDaemon gives up what a process inherits from the daemon and no
// namespace covers: its session keyring, and its place in the order in which
// the kernel ends processes when the host runs out of memory.
func leaveDaemon() error {
	// 0 instead of a name: a new, nameless keyring.
	if _, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0); err != nil && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("session keyring: %w", err)
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("500"), 0); err != nil {
		return fmt.Errorf("oom score: %w", err)
	}
	unix.Umask(0o022)
	return nil
}

// supervise is PID 1: it waits for everything, asks the agent to end when the
// daemon says so, and ends with the agent or the daemon. One goroutine and no
// package os/signal: every thread that Go's runtime makes for them costs a
// start as much as five mounts.
func supervise(ctl io.Reader, child int) (int, error) {
	go func() {
		b := make([]byte, len(End))
		for {
			// End of file means that the daemon is gone, and a sandbox without
			// its guardian must not run.
			if _, err := io.ReadFull(ctl, b); err != nil || string(b) != End {
				os.Exit(exitSignal + int(unix.SIGKILL))
			}
			unix.Kill(child, unix.SIGTERM)
		}
	}()
	return reap(child)
}

// deafen gives up Go's handlers of the signals that other processes send. To a
// PID 1 without a handler the kernel delivers none from inside; and before
// Landlock ABI 6 the agent, which has the same user id, may send some.
func deafen() error {
	var def sigaction
	for _, s := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGABRT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGTRAP, unix.SIGSYS, unix.SIGPIPE} {
		if _, _, e := syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&def)), 0, 8, 0, 0); e != 0 {
			return fmt.Errorf("default action of %v: %w", s, e)
		}
	}
	return nil
}

// harden repeats what the change of user has undone.
func harden(death unix.Signal) error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("dumpable: %w", err)
	}
	// Belt to the control channel's braces; the daemon keeps the thread alive
	// that started init, because the kernel watches the thread.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(death), 0, 0, 0); err != nil {
		return fmt.Errorf("parent death signal: %w", err)
	}
	return nil
}

// reap collects every process that ends here and returns when child has.
func reap(child int) (int, error) {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait: %w", err)
		}
		if pid == child {
			return status(ws), nil
		}
	}
}

func status(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return exitSignal + int(ws.Signal())
	}
	return ws.ExitStatus()
}
