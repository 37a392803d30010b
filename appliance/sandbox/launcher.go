package sandbox

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/confine"
)

// patience bounds one step of the launcher. A mount takes milliseconds; in an
// emulated virtual machine, a hundred times that.
const patience = 30 * time.Second

// launcher is a running clawbox-launch and the two channels to it.
type launcher struct {
	cmd     *exec.Cmd // nil: a container runtime has started it
	pid     int
	in      *group // where it is born, or nil: the daemon's own cgroups
	control *channel
	spec    *channel
	done    chan struct{}  // closed once it is reaped
	output  sync.WaitGroup // that of a container, which is carried here

	mu    sync.Mutex // guards pidfd
	pidfd int        // -1 once closed
}

// channel is the daemon's end of a socket pair.
type channel struct {
	*net.UnixConn
	r *bufio.Reader
}

// newChannel returns the daemon's end and the launcher's.
func newChannel() (*channel, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "channel"), os.NewFile(uintptr(fds[1]), "channel")
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	u := c.(*net.UnixConn)
	return &channel{u, bufio.NewReaderSize(u, 4096)}, theirs, nil
}

// answer reads one line. A line that begins with "error: " is an error, and
// so is silence. At end of file the answer is empty.
func (c *channel) answer(ctx context.Context) (string, error) {
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	line, err := c.r.ReadString('\n')
	if err := confine.Failure(line); err != nil {
		return "", fmt.Errorf("launcher: %w", err)
	}
	if msg, ok := strings.CutPrefix(strings.TrimSpace(line), "error: "); ok {
		return "", fmt.Errorf("launcher: %s", msg)
	}
	switch {
	case errors.Is(err, io.EOF) && line == "":
		return "", nil
	case err != nil && ctx.Err() != nil:
		return "", ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "", fmt.Errorf("launcher gave no answer within %v", patience)
	}
	return line, err
}

// start runs the launcher as cmd says, in group in if that is not nil. files
// follow its two channels.
func (l *Local) start(cmd *exec.Cmd, in *group, files ...*os.File) (_ *launcher, err error) {
	p := &launcher{cmd: cmd, in: in, pidfd: -1, done: make(chan struct{})}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	var ctl, spec *os.File
	if p.control, ctl, err = newChannel(); err != nil {
		return nil, err
	}
	defer ctl.Close()
	if p.spec, spec, err = newChannel(); err != nil {
		return nil, err
	}
	defer spec.Close()
	cmd.ExtraFiles = append([]*os.File{ctl, spec}, files...)
	// Fewer threads to start, and no collector for what reads two documents and
	// then waits; nothing of the daemon's.
	cmd.Env = []string{"GOMAXPROCS=1", "GOGC=off"}
	cmd.Dir = "/"
	cmd.WaitDelay = cmp.Or(cmd.WaitDelay, patience)
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr.PidFD = &p.pidfd
	started := make(chan error, 1)
	go p.run(started)
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// run starts and reaps on a thread of its own: the kernel delivers the parent
// death signal when the thread ends that started the child, and Go ends idle
// threads.
func (p *launcher) run(started chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread ends with this function
	err := p.fork()
	if p.cmd.Process != nil {
		p.pid = p.cmd.Process.Pid
		if err != nil {
			p.cmd.Process.Kill()
			p.cmd.Wait()
		}
	}
	started <- err
	if err != nil {
		return
	}
	p.cmd.Wait() // the exit status is in ProcessState; pipe errors are the reader's business
	close(p.done)
}

// fork starts the process inside its cgroups.
func (p *launcher) fork() error {
	if p.in == nil {
		return p.cmd.Start()
	}
	d, err := os.OpenFile(filepath.Join(p.in.h.v2, p.in.path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	p.cmd.SysProcAttr.UseCgroupFD, p.cmd.SysProcAttr.CgroupFD = true, int(d.Fd())
	back, err := p.in.enter()
	if err == nil {
		err = p.cmd.Start()
	}
	// A thread that cannot go back must not live: it ends, and with it, by the
	// parent death signal, what it has started.
	return errors.Join(err, back())
}

// signal reaches the launcher itself, never a process that got its number.
// One that has ended needs no signal.
func (p *launcher) signal(sig unix.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd < 0 {
		return nil
	}
	err := unix.PidfdSendSignal(p.pidfd, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// end has PID 1 ask the agent to end. One that has ended needs no asking.
func (p *launcher) end() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd < 0 {
		return nil
	}
	_, err := io.WriteString(p.control, confine.End)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	return err
}

// handle returns a copy of the pidfd; an error when the launcher has ended.
func (p *launcher) handle() (*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd < 0 {
		return nil, errEnded
	}
	if err := unix.PidfdSendSignal(p.pidfd, 0, nil, 0); err != nil {
		return nil, errors.Join(errEnded, err)
	}
	fd, err := unix.FcntlInt(uintptr(p.pidfd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

var errEnded = errors.New("the sandbox has ended")

// close releases descriptors; the process must be gone or never have been.
func (p *launcher) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd >= 0 {
		unix.Close(p.pidfd)
		p.pidfd = -1
	}
	p.hangUp()
}

// hangUp closes both channels, more than once if need be.
func (p *launcher) hangUp() {
	for _, c := range []*channel{p.control, p.spec} {
		if c != nil {
			c.Close()
		}
	}
}

// code is the exit status in a shell's terms; the process must be reaped.
func (p *launcher) code() int {
	if p.cmd == nil {
		return p.told()
	}
	ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		return confine.ExitFailed
	case ws.Signaled():
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// plain hides what else w is: package exec would hand an *os.File to the
// child, and a host file must not be open in a sandbox.
type plain struct{ io.Writer }

func output(w io.Writer) io.Writer {
	if w == nil {
		w = io.Discard // through a pipe, too: /dev/null of the host is a host file
	}
	return plain{w}
}

// stands waits until the launcher says that it is ready for the agent.
func (p *launcher) stands(ctx context.Context) error {
	got, err := p.control.answer(ctx)
	if err == nil && got != confine.Mounted {
		err = fmt.Errorf("launcher answered %q, want %q: do daemon and launcher come from one release?", got, confine.Mounted)
	}
	return err
}

// launch sends the Spec and returns once the program runs.
func (p *launcher) launch(ctx context.Context, s *confine.Spec) error {
	if err := confine.Send(p.spec, s); err != nil {
		return err
	}
	return p.began(ctx)
}

// began waits for the end of the Spec's channel, which is closed by the
// program's start.
func (p *launcher) began(ctx context.Context) error {
	got, err := p.spec.answer(ctx)
	if err == nil && got != "" {
		err = fmt.Errorf("launcher answered %q, want its end", got)
	}
	return err
}
