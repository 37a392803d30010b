package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/confine"
)

// ExecSpec asks for one more program in a running sandbox, under the same
// confinement as the agent.
type ExecSpec struct {
	Args []string // Args[0] is looked up in the sandbox's PATH
	Env  []string // NAME=value, over the agent's
	// TTY gives the program a terminal: Stdin and Stdout are its other side,
	// Stderr is not used.
	TTY            bool
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Resize         <-chan Size // sizes of the terminal; may be nil
}

// Size is a terminal's, in characters.
type Size struct{ Rows, Cols uint16 }

// Exec runs a program in the sandbox and returns its exit status. When ctx is
// done, the program is killed.
func (b *Box) Exec(ctx context.Context, e ExecSpec) (int, error) {
	code, err := b.exec(ctx, e)
	if err != nil {
		return code, fmt.Errorf("sandbox %s: exec: %w", b.name, err)
	}
	return code, nil
}

func (b *Box) exec(ctx context.Context, e ExecSpec) (int, error) {
	s, err := b.joinSpec(e)
	if err == nil {
		err = b.awake(ctx)
	}
	if err != nil {
		return confine.ExitFailed, err
	}
	files, err := b.ways()
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err != nil {
		return confine.ExitFailed, err
	}
	cmd := exec.Command(b.l.opt.Launcher, "join", strconv.Itoa(len(b.l.h.home)))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = afterwards
	st, err := b.streams(cmd, e)
	if err != nil {
		return confine.ExitFailed, err
	}
	defer st.close()
	p, err := b.l.start(cmd, nil, append(files, b.l.h.home...)...)
	if err != nil {
		return confine.ExitFailed, err
	}
	defer p.close()
	st.started()
	child, err := b.admit(ctx, p, s)
	if err != nil {
		p.signal(unix.SIGKILL)
		p.hangUp() // a child that still waits for its Spec ends
		<-p.done
		return confine.ExitFailed, err
	}
	defer unix.Close(child)
	defer context.AfterFunc(ctx, func() { unix.PidfdSendSignal(child, unix.SIGKILL, nil, 0) })()
	<-p.done
	st.drain()
	return p.code(), nil
}

// nap is how long a sandbox that is held still is waited for: the guard holds
// one for some milliseconds to let the ledger catch up, or for minutes when
// its allowance is spent.
const nap = 3 * time.Second

// awake returns once the sandbox is not held still: whoever joins it is held,
// too, and would say nothing.
func (b *Box) awake(ctx context.Context) error {
	for end := time.Now().Add(nap); ; {
		on, err := b.g.frozen()
		if err != nil || !on {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("the sandbox is held still for more than %v, because it causes more records than the ledger takes of one agent ('clawbox status' says until when); try again then, or stop the agent", nap)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ways are what a launcher needs to join, in the order that package confine
// says, but for the daemon's own places. On an error some may be open.
func (b *Box) ways() ([]*os.File, error) {
	pidfd, err := b.p.handle()
	if err != nil {
		return nil, err
	}
	in, err := b.g.doors()
	return append([]*os.File{pidfd}, in...), err
}

// joinSpec is the agent's Spec with another program.
func (b *Box) joinSpec(e ExecSpec) (*confine.Spec, error) {
	if len(e.Args) == 0 {
		return nil, errors.New("no program named; want a path in the sandbox, such as /bin/sh")
	}
	for _, v := range e.Env {
		if !strings.Contains(v, "=") || strings.ContainsRune(v, 0) {
			return nil, fmt.Errorf("environment entry %q; want NAME=value", v)
		}
	}
	s := b.spec
	s.Env = environment(&Spec{Image: Image{Env: b.spec.Env}, Env: e.Env, Policy: b.policy})
	s.TTY = e.TTY
	v, err := b.look()
	if err != nil {
		return nil, err
	}
	defer v.close()
	p, _, err := v.lookPath(e.Args[0], getenv(s.Env, "PATH"), s.Dir)
	if err != nil {
		return nil, err
	}
	s.Args = append([]string{p}, e.Args[1:]...)
	return &s, nil
}

// look opens the root of a running sandbox. The process number is checked
// after use: had PID 1 ended before, the number could be another's by then.
func (b *Box) look() (*view, error) {
	v, err := lookInto(b.PID())
	if err != nil {
		return nil, errors.Join(errEnded, err)
	}
	h, err := b.p.handle()
	if err != nil {
		v.close()
		return nil, err
	}
	return v, h.Close()
}

// admit lets the launcher's child become the program and returns a pidfd of
// it.
func (b *Box) admit(ctx context.Context, p *launcher, s *confine.Spec) (int, error) {
	if err := confine.Send(p.spec, s); err != nil {
		return -1, err
	}
	got, err := p.control.answer(ctx)
	if err != nil {
		return -1, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(got, "child ")))
	if err != nil {
		return -1, fmt.Errorf("launcher answered %q, want its child's number", got)
	}
	// The child waits for Proceed, so the number is still its own.
	child, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, err
	}
	if _, err = io.WriteString(p.control, confine.Proceed); err == nil {
		err = p.began(ctx)
	}
	if err != nil {
		unix.PidfdSendSignal(child, unix.SIGKILL, nil, 0)
		unix.Close(child)
		return -1, err
	}
	return child, nil
}

// streams connects a program's input and output.
type streams struct {
	after []func() // once the launcher has its descriptors
	last  []func() // at the end
	done  sync.WaitGroup
}

func (st *streams) started() {
	for _, f := range st.after {
		f()
	}
}

func (st *streams) close() {
	for _, f := range slices.Backward(st.last) {
		f()
	}
}

// afterwards is how long the output of a program that ended is waited for.
const afterwards = 2 * time.Second

// drain waits for output that is still on its way; not for long, because a
// process that the program left behind may hold it open.
func (st *streams) drain() {
	c := make(chan struct{})
	go func() { st.done.Wait(); close(c) }()
	select {
	case <-c:
	case <-time.After(afterwards):
	}
}

func (b *Box) streams(cmd *exec.Cmd, e ExecSpec) (*streams, error) {
	st := &streams{}
	if e.TTY {
		return st, b.terminal(cmd, e, st)
	}
	cmd.Stdout, cmd.Stderr = output(e.Stdout), output(e.Stderr)
	// Package exec would wait for the reader to end; the program decides.
	r, w, err := os.Pipe()
	if err != nil {
		return st, err
	}
	cmd.Stdin = r
	st.after = append(st.after, func() { r.Close() })
	st.last = append(st.last, func() { r.Close(); w.Close() })
	go func() {
		if e.Stdin != nil {
			io.Copy(w, e.Stdin)
		}
		w.Close()
	}()
	return st, nil
}

// terminal opens a pair of the sandbox's own devpts: the program finds its
// terminal under /dev/pts, and no terminal of the host is open in there.
func (b *Box) terminal(cmd *exec.Cmd, e ExecSpec, st *streams) error {
	v, err := b.look()
	if err != nil {
		return err
	}
	defer v.close()
	m, err := v.open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	st.last = append(st.last, func() { m.Close() })
	s, err := peer(m)
	if err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s, s, s
	st.after = append(st.after, func() { s.Close() })
	st.last = append(st.last, func() { s.Close() })
	st.done.Go(func() { io.Copy(plainOr(e.Stdout), m) }) // ends with EIO when the last user closes
	go func() {
		if e.Stdin != nil {
			io.Copy(m, e.Stdin)
		}
	}()
	stop := make(chan struct{})
	st.last = append(st.last, func() { close(stop) })
	go resize(m, e.Resize, stop)
	return nil
}

func plainOr(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// peer unlocks a terminal and opens its other side by descriptor, which no
// path in the sandbox can divert. The other side stays root's: the agent has
// the same user id as the operator's program, and must not be able to open
// the operator's terminal. /dev/tty and the open descriptors need no owner.
func peer(m *os.File) (*os.File, error) {
	rc, err := m.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd uintptr
	var e error
	err = rc.Control(func(mfd uintptr) {
		if e = unix.IoctlSetPointerInt(int(mfd), unix.TIOCSPTLCK, 0); e != nil {
			return
		}
		var errno syscall.Errno
		fd, _, errno = unix.Syscall(unix.SYS_IOCTL, mfd, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if errno != 0 {
			e = errno
		}
	})
	if err = errors.Join(err, e); err != nil {
		return nil, err
	}
	return os.NewFile(fd, "terminal"), nil
}

func resize(m *os.File, sizes <-chan Size, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case s, ok := <-sizes:
			if !ok {
				return
			}
			if rc, err := m.SyscallConn(); err == nil {
				rc.Control(func(fd uintptr) {
					unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Rows, Col: s.Cols})
				})
			}
		}
	}
}
