package engine

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is one run of the engine. It leads a process group, to which its model
// runners belong.
type process struct {
	cmd    *exec.Cmd
	tail   *tail
	exited chan struct{} // closed when the leader is reaped and err is set
	err    error
}

// spawn starts the engine. A port that is taken is refused here, because the health
// check would otherwise talk to the stranger that holds it.
func (e *Engine) spawn() (*process, error) {
	if e.cfg.NetNS == nil {
		l, err := net.Listen("tcp", e.cfg.Listen)
		if err != nil {
			return nil, fmt.Errorf("%w: stop what listens there, or give the engine another port", err)
		}
		l.Close()
	}
	p := &process{tail: &tail{out: e.cfg.Log}, exited: make(chan struct{})}
	p.cmd = e.cfg.command(p.tail)
	started := make(chan error)
	go onOwnThread(func() { p.run(e.cfg.NetNS, started) })
	if err := <-started; err != nil {
		return nil, err
	}
	e.mu.Lock()
	e.runs++
	e.mu.Unlock()
	return p, nil
}

// run starts the command and stays until it has ended: Pdeathsig fires when the
// thread that forked goes, not the process.
func (p *process) run(netns *os.File, started chan<- error) {
	// Inherited by the child and its children, and kept through exec. The flag is this
	// thread's alone, and the thread ends with the child.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		started <- fmt.Errorf("no_new_privs: %w", err)
		return
	}
	if netns != nil {
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			started <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
	}
	if err := p.cmd.Start(); err != nil {
		started <- err
		return
	}
	started <- nil
	// Kill the runners while the dead leader isn't reaped: until then nobody else
	// can get the group's number.
	waitDead(p.cmd.Process.Pid)
	syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	p.err = p.cmd.Wait()
	close(p.exited)
}

// waitDead returns when the child is dead, and leaves it to be reaped.
func waitDead(pid int) {
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
}

// end stops the leader, and with it the whole group.
func (p *process) end() {
	p.cmd.Process.Signal(syscall.SIGTERM) // fails when it's gone, which is as well
	select {
	case <-p.exited:
	case <-time.After(grace):
		p.cmd.Process.Kill()
		<-p.exited
	}
}

// command is the engine with nothing inherited: no variables, no descriptors, no
// groups.
func (c Config) command(out io.Writer) *exec.Cmd {
	cmd := exec.Command(c.Binary, "serve")
	cmd.Dir = c.home()
	cmd.Env = []string{
		"PATH=/usr/bin:/bin",
		"HOME=" + c.home(),
		"TMPDIR=" + filepath.Join(c.home(), "tmp"),
		"OLLAMA_HOST=" + c.Listen,
		"OLLAMA_MODELS=" + filepath.Join(c.Dir, "models"),
		"OLLAMA_NOPRUNE=1",     // the links are ours to remove
		"OLLAMA_NO_CLOUD=1",    // no model that runs elsewhere
		"OLLAMA_KEEP_ALIVE=-1", // a loaded model stays
	}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(c.UID), Gid: uint32(c.GID)}
	}
	return cmd
}

// onOwnThread runs f on a thread that ends with it, and never on the main one:
// Go parks the main thread instead of ending it.
func onOwnThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != os.Getpid() {
		f() // without unlocking: the thread ends with this goroutine
		return
	}
	done := make(chan struct{}) // while this goroutine holds the main thread, another can't get it
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
	runtime.UnlockOSThread()
}

// tail passes output on and remembers its end, for the error message.
type tail struct {
	mu  sync.Mutex
	out io.Writer
	buf []byte
}

const tailSize = 2000 // bytes

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if n := len(t.buf) - tailSize; n > 0 {
		t.buf = append(t.buf[:0], t.buf[n:]...)
	}
	t.out.Write(b) // a full log disk mustn't stop the engine
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
