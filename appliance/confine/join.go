package confine

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Proceed is what the daemon writes to a joining process, through the control
// channel, once it holds a pidfd of it.
const Proceed = "!"

// join enters a running sandbox. It stays outside the pid namespace and the
// cgroups itself; its child goes in, and from fork to the program in raw
// system calls, as the agent did: a second start of Go's runtime would cost a
// millisecond, and the guard would kill a launcher inside. Its argument is the
// number of cgroup v1 hierarchies at groupFD.
func join(args []string) (int, error) {
	v1 := 0
	if len(args) == 1 {
		v1, _ = strconv.Atoi(args[0])
	}
	if err := enterBox(); err != nil {
		return 0, err
	}
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
	c := child{final: f, report: ch.Fd(), gate: controlFD, joins: true, tty: s.TTY}
	pid, err := c.born(v1)
	if err != nil {
		return 0, err
	}
	ctl := os.NewFile(controlFD, "control")
	if _, err := fmt.Fprintf(ctl, "child %d\n", pid); err != nil {
		return 0, err
	}
	// From now on these are the child's alone, and what it reads is not for us.
	for fd := controlFD; fd <= groupFD+2*v1; fd++ {
		unix.Close(fd)
	}
	unix.Close(int(f.ruleset))
	return reap(pid)
}

// enterBox moves this thread, and later children, to where PID 1 is.
func enterBox() error {
	if err := leaveDaemon(); err != nil {
		return err
	}
	// Threads share their root and directory, and a mount namespace can be
	// entered only by one that does not.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare fs: %w", err)
	}
	// Not the cgroup namespace: where cgroups are delegated to namespaces, the
	// kernel lets nobody in there move what is outside. The child makes itself
	// one that shows the same.
	const all = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	if err := unix.Setns(pidFD, all); err != nil {
		return fmt.Errorf("enter namespaces: %w", err)
	}
	return unix.Chdir("/")
}

// born forks c inside the sandbox's cgroups, because moving another process
// waits for a grace period of RCU, 5 to 10 ms. Only where they are full, which
// does not bind who is moved, it is born outside and moved: an operator must
// be able to look at a fork bomb.
func (c *child) born(v1 int) (int, error) {
	err := enter(groupFD+1, v1, "0")
	pid := 0
	if err == nil {
		c.args[cloneFlags], c.args[cloneCgroup] = unix.CLONE_INTO_CGROUP, groupFD
		pid, err = c.fork()
	}
	// A launcher that cannot go back ends here, and the child reads the end of
	// its channel.
	if back := enter(groupFD+1+v1, v1, "0"); back != nil {
		return 0, errors.Join(err, back)
	}
	if !errors.Is(err, unix.EAGAIN) {
		return pid, err
	}
	c.args[cloneFlags] = 0
	if pid, err = c.fork(); err != nil {
		return 0, err
	}
	procs, err := unix.Openat(groupFD, "cgroup.procs", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("enter cgroup: %w", err)
	}
	defer unix.Close(procs)
	num := strconv.Itoa(pid)
	return pid, errors.Join(enter(procs, 1, num), enter(groupFD+1, v1, num))
}

// enter moves a thread, this one for "0", into n cgroups; their "tasks" are
// open from descriptor fd on.
func enter(fd, n int, thread string) error {
	for i := range n {
		if _, err := unix.Pwrite(fd+i, []byte(thread), 0); err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
	}
	return nil
}
