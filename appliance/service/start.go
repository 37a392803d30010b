package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Spec is one service to start.
type Spec struct {
	Role   string
	Cage   Cage
	Config any        // read by the Role, as JSON
	Files  []*os.File // descriptors for the Role; they stay the caller's
	// Handler answers the service's calls to the supervisor; nil: none.
	Handler Handler
	NetNS   *os.File  // network namespace to run in; nil: the supervisor's
	Cgroup  *os.File  // directory of the cgroup v2 hierarchy to be born in; nil: the supervisor's
	Log     io.Writer // standard output and error; nil: the supervisor's
	Args    []string  // program arguments; nil: "service", Role
}

// Process is a running service.
type Process struct {
	Role  string
	PID   int
	Conn  *Conn
	Proof Proof

	done chan struct{}
	err  error // valid once done
}

// Start runs a service and returns when it has proved its cage and taken its
// configuration. On an error nothing of it is left. ctx bounds the start.
func Start(ctx context.Context, s Spec) (_ *Process, err error) {
	if s.Cage.ABI, err = landlockABI(); err != nil {
		return nil, fmt.Errorf("service %s: %w", s.Role, err)
	}
	if err := s.Cage.check(); err != nil {
		return nil, fmt.Errorf("service %s: %w", s.Role, err)
	}
	ours, theirs, err := Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	p := &Process{Role: s.Role, done: make(chan struct{})}
	started := make(chan error, 1)
	go p.run(s.command(theirs), s.NetNS, started)
	if err := <-started; err != nil {
		ours.Close()
		return nil, fmt.Errorf("service %s: %w", s.Role, err)
	}
	theirs.Close() // or its end would never be noticed
	if p.Conn, err = NewConn(ours, s.Handler); err == nil {
		err = p.configure(ctx, s)
	}
	if err != nil {
		p.Kill()
		return nil, fmt.Errorf("service %s: %w", s.Role, err)
	}
	return p, nil
}

// command is this program with nothing inherited: no variables, no
// descriptors but the socket.
func (s *Spec) command(wire *os.File) *exec.Cmd {
	args := s.Args
	if args == nil {
		args = []string{"service", s.Role}
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = "clawbox"
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{wire}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if s.Log != nil {
		cmd.Stdout, cmd.Stderr = s.Log, s.Log
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if s.Cgroup != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(s.Cgroup.Fd())
	}
	return cmd
}

// run starts the command and stays until it has ended, on a thread of its
// own: Pdeathsig fires when the thread that forked goes, not the process, and
// Go ends threads.
func (p *Process) run(cmd *exec.Cmd, netns *os.File, started chan<- error) {
	runtime.LockOSThread() // for good: the thread ends with this goroutine
	if unix.Gettid() == os.Getpid() {
		// Go never ends the main thread, and it shows the process's namespaces.
		over := make(chan struct{})
		go func() { defer close(over); p.run(cmd, netns, started) }()
		<-over
		runtime.UnlockOSThread()
		return
	}
	if netns != nil {
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			started <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
	}
	if err := cmd.Start(); err != nil {
		started <- err
		return
	}
	p.PID = cmd.Process.Pid
	started <- nil
	p.err = cmd.Wait()
	close(p.done)
}

// configure sends the cage to the first image and the configuration to the
// second.
func (p *Process) configure(ctx context.Context, s Spec) error {
	cage, err := json.Marshal(s.Cage)
	if err != nil {
		return err
	}
	if err := p.Conn.send(ctx, frame{kind: kindCall, method: callCage, body: cage}, nil); err != nil {
		return err
	}
	err = p.Conn.Call(ctx, callStart, s.Config, &p.Proof, s.Files...)
	if err != nil && errors.Is(err, ErrGone) {
		select {
		case <-p.done:
			return fmt.Errorf("it ended before it was ready: %w; its own words are in the log", p.Err())
		case <-time.After(patience):
		}
	}
	return err
}

// Alive asks whether the service still answers, within limit.
func (p *Process) Alive(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return p.Conn.Call(ctx, callAlive, nil, nil)
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how the process ended; valid once Done.
func (p *Process) Err() error {
	if p.err == nil {
		return errors.New("it exited by itself")
	}
	return p.err
}

// End asks the service to finish, waits for it, and kills it when ctx ends
// first. The error is what finishing met.
func (p *Process) End(ctx context.Context) error {
	var word string
	err := p.Conn.Call(ctx, callEnd, nil, &word)
	if err != nil || word != ended {
		err = errors.Join(fmt.Errorf("service %s did not end in order", p.Role), err)
	}
	p.Conn.Close()
	select {
	case <-p.done:
	case <-ctx.Done():
		p.Kill()
	}
	return err
}

// Kill ends the process at once.
func (p *Process) Kill() {
	if p.Conn != nil {
		p.Conn.Close()
	}
	if p.PID <= 0 {
		return // it never ran; and 0 would be our own process group
	}
	select {
	case <-p.done:
		return
	default:
	}
	// Not reaped before done is closed, so the number is still its own.
	_ = unix.Kill(p.PID, unix.SIGKILL)
	<-p.done
}
