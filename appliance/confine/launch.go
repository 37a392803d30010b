package confine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"syscall"

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
	controlFD = 3 // init: Root in, Mounted or an error out, then End in; end of file ends the sandbox. join: child's pid or an error out
	specFD    = 4 // Spec in, an error out; closed by the program's start
	pidFD     = 5 // join: pidfd of the sandbox's PID 1
)

// Main is the launcher. args are the program's arguments without its name:
// one of the modes "init", "join" and "exec". It returns the
// exit status, unless the process has become another program.
//
// It must be called from the main goroutine of a program in which nothing
// else runs: namespaces and restrictions are those of the main thread.
func Main(args []string) int {
	// Everything below restricts this thread and then executes from it.
	runtime.LockOSThread()
	// What the daemon has handed over reaches a child only where a mode says so.
	for fd := controlFD; fd <= pidFD; fd++ {
		unix.CloseOnExec(fd)
	}
	mode := ""
	if len(args) > 0 {
		mode = args[0]
	}
	run, ok := modes[mode]
	if !ok {
		fmt.Fprintf(os.Stderr, "clawbox-launch: got mode %q; it is started by clawbox serve, with init or join\n", mode)
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
var modes = map[string]func([]string) (int, error){"init": initBox, "join": join, "exec": execute}

// initBox is the first process of a sandbox: root at first, its confined
// supervisor before the agent begins. It returns with the agent.
func initBox([]string) (int, error) {
	ctl := os.NewFile(controlFD, "control")
	r, err := stand(ctl)
	if err != nil {
		return 0, err
	}
	if _, err := io.WriteString(ctl, Mounted); err != nil {
		return 0, err
	}
	spareThreads(2)
	pid, err := begin(r)
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

// stand reads the Root and builds it.
func stand(ctl io.Reader) (*Root, error) {
	var r Root
	if err := receive(ctl, &r); err != nil {
		return nil, fmt.Errorf("read root: %w", err)
	}
	r.Supervisor.Args = []string{"/launcher"} // executes nothing
	if err := r.Validate(); err != nil {
		return nil, err
	}
	// The daemon has started this process in its cgroups, so the new
	// namespace's root is the sandbox's own cgroup.
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return nil, fmt.Errorf("cgroup namespace: %w", err)
	}
	if err := leaveDaemon(); err != nil {
		return nil, err
	}
	if err := build(&r); err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	return &r, nil
}

// begin reads the Spec, forks the agent's process, and confines this one for
// good. The agent may be first: it has another user id and domain, and PID 1
// reads nothing from it. The daemon learns of success when both are done,
// which is when the last descriptor of the Spec's channel is closed.
func begin(r *Root) (int, error) {
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
	c := child{f, ch.Fd()}
	pid, err := c.fork()
	if err != nil {
		return 0, err
	}
	unix.Close(int(f.ruleset))
	// The filter leaves every thread what waiting needs: nothing is opened,
	// executed or connected any more. So the other threads, which the runtime
	// made, need not give up their user id one system call after the other.
	_, err = apply(&r.Supervisor, extras{threads: true})
	if err := errors.Join(err, harden()); err != nil {
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

// openSelf opens the launcher's file at a descriptor that no hand-over uses.
func openSelf() (*os.File, error) {
	f, err := os.OpenFile("/proc/self/exe", unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 64)
	if err != nil {
		return nil, fmt.Errorf("hold the launcher: %w", err)
	}
	return os.NewFile(uintptr(fd), "launcher"), nil
}

func selfPath(self *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", self.Fd()) }

func keep(fd int) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
	return err
}

// spawn starts the launcher in exec mode as a child with the Spec channel,
// and lets go of the channel.
func spawn(self *os.File) (int, error) {
	pid, err := syscall.ForkExec(selfPath(self), []string{"clawbox-launch", "exec"}, &syscall.ProcAttr{
		Dir: "/", Env: []string{}, Files: []uintptr{0, 1, 2, specFD},
	})
	if err != nil {
		return 0, fmt.Errorf("start the child: %w", err)
	}
	return pid, unix.Close(specFD)
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

// harden repeats what the change of user has undone.
func harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("dumpable: %w", err)
	}
	// Belt to the control channel's braces; the daemon keeps the thread alive
	// that started init, because the kernel watches the thread.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
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

// join enters a running sandbox. It stays outside the pid namespace and the
// cgroups itself; its child goes in.
func join([]string) (int, error) {
	self, err := openSelf()
	if err != nil {
		return 0, err
	}
	if err := leaveDaemon(); err != nil {
		return 0, err
	}
	// Threads share their root and directory, and a mount namespace can be
	// entered only by one that does not.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return 0, fmt.Errorf("unshare fs: %w", err)
	}
	const all = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	if err := unix.Setns(pidFD, all); err != nil {
		return 0, fmt.Errorf("enter namespaces: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return 0, err
	}
	pid, err := spawn(self)
	if err != nil {
		return 0, err
	}
	ctl := os.NewFile(controlFD, "control")
	if _, err := fmt.Fprintf(ctl, "child %d\n", pid); err != nil {
		return 0, err
	}
	return reap(pid)
}

// execute reads a Spec, confines this process by it and becomes the program.
// Its channel, at controlFD like every mode's, is the Spec's.
func execute([]string) (int, error) {
	ch := os.NewFile(controlFD, "spec")
	var s Spec
	if err := receive(ch, &s); err != nil {
		return 0, fmt.Errorf("read spec: %w", err)
	}
	if err := s.Validate(); err != nil {
		return 0, err
	}
	if s.TTY {
		if err := ownTerminal(); err != nil {
			return 0, err
		}
	}
	if err := forgetLimit(&s); err != nil {
		return 0, err
	}
	if _, err := apply(&s, extras{scope: true}); err != nil {
		return 0, fmt.Errorf("confine: %w", err)
	}
	return 0, fmt.Errorf("execute %s: %w", s.Args[0], syscall.Exec(s.Args[0], s.Args, s.Env))
}

// forgetLimit goes through package syscall, because that is how Go forgets the
// descriptor limit that it would otherwise restore at execve.
func forgetLimit(s *Spec) error {
	for _, l := range s.Limits {
		if l.Name != "nofile" {
			continue
		}
		if err := syscall.Setrlimit(unix.RLIMIT_NOFILE, &syscall.Rlimit{Cur: l.Value, Max: l.Value}); err != nil {
			return fmt.Errorf("nofile to %d: %w", l.Value, err)
		}
	}
	return nil
}

// ownTerminal makes standard input the terminal of a new session.
func ownTerminal() error {
	if _, err := unix.Setsid(); err != nil {
		return fmt.Errorf("new session: %w", err)
	}
	if err := unix.IoctlSetInt(0, unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("controlling terminal: %w", err)
	}
	return nil
}
