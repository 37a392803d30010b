package k3shost

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Commands reach a machine over a socket in its folder: one connection for
// each. The client sends the command with its own three standard files, then
// signals, one byte each; the first process answers with how the command
// ended. Who hangs up first: a client that is gone has its command killed.
//
// The first process starts them, because a process that enters a pid
// namespace from outside can't start a thread any more, which Go does at will.

type command struct {
	Args, Env []string
}

// ending is how a command ended.
type ending struct {
	Status int
	Err    string // it did not start
}

// exitStatus is an error that this program ends with.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

const (
	socketName = "init.sock"
	maxCommand = 128 << 10
)

func listen(dir string) (*net.UnixListener, error) {
	name := filepath.Join(dir, socketName)
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// The path may be longer than a socket's name can be.
	if err := os.Chdir(dir); err != nil {
		return nil, err
	}
	return net.ListenUnix("unixpacket", &net.UnixAddr{Name: socketName})
}

// request is a command that came with its files.
type request struct {
	command
	conn  *net.UnixConn
	files []*os.File
}

// server starts commands and reaps. All of it but reading connections happens on the
// first thread, the only one in the machine's cgroup namespace.
type server struct {
	requests chan request
	hangups  chan int
	running  map[int]*net.UnixConn
}

func newServer(l *net.UnixListener) *server {
	s := &server{requests: make(chan request), hangups: make(chan int), running: map[int]*net.UnixConn{}}
	go func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			go s.read(c)
		}
	}()
	return s
}

func (s *server) run() error {
	// Caught and not ignored, which what it starts would inherit.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM)
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	for {
		select {
		case r := <-s.requests:
			s.start(r)
		case pid := <-s.hangups:
			if s.running[pid] != nil {
				_ = syscall.Kill(-pid, syscall.SIGKILL)
			}
		case <-children:
			s.reap()
		}
	}
}

// read takes a command off a connection.
func (s *server) read(c *net.UnixConn) {
	buf, oob := make([]byte, maxCommand), make([]byte, unix.CmsgSpace(3*4))
	n, on, _, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		c.Close()
		return
	}
	r := request{conn: c}
	if r.files, err = files(oob[:on]); err == nil {
		err = json.Unmarshal(buf[:n], &r.command)
	}
	if err != nil || len(r.files) != 3 || len(r.Args) == 0 {
		answer(c, ending{Err: fmt.Sprintf("a command of %d bytes with %d files: %v", n, len(r.files), err)})
		return
	}
	s.requests <- r
}

func files(oob []byte) ([]*os.File, error) {
	ms, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(ms) != 1 {
		return nil, fmt.Errorf("%d control messages: %w", len(ms), err)
	}
	fds, err := unix.ParseUnixRights(&ms[0])
	var fs []*os.File
	for _, fd := range fds {
		unix.CloseOnExec(fd)
		fs = append(fs, os.NewFile(uintptr(fd), "passed"))
	}
	return fs, err
}

func answer(c *net.UnixConn, e ending) {
	b, err := json.Marshal(e)
	if err == nil {
		_, _ = c.Write(b) // who hung up needs no answer
	}
	c.Close()
}

func (s *server) start(r request) {
	file, err := exec.LookPath(r.Args[0])
	var p *os.Process
	if err == nil {
		p, err = os.StartProcess(file, r.Args, &os.ProcAttr{Dir: "/", Env: r.Env, Files: r.files, Sys: &syscall.SysProcAttr{Setsid: true}})
	}
	for _, f := range r.files {
		f.Close()
	}
	if err != nil {
		answer(r.conn, ending{Err: err.Error()})
		return
	}
	pid := p.Pid
	s.running[pid] = r.conn
	go func() {
		sig := make([]byte, 1)
		for {
			if n, err := r.conn.Read(sig); n == 0 || err != nil {
				s.hangups <- pid
				return
			}
			_ = syscall.Kill(pid, syscall.Signal(sig[0]))
		}
	}()
}

// reap takes the ends of all that ended, orphans too.
func (s *server) reap() {
	for {
		var st syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &st, syscall.WNOHANG, nil)
		if pid <= 0 || err != nil {
			return
		}
		c := s.running[pid]
		if c == nil {
			continue
		}
		delete(s.running, pid)
		status := st.ExitStatus()
		if st.Signaled() {
			status = 128 + int(st.Signal()) // as a shell says it
		}
		answer(c, ending{Status: status})
	}
}

// runJoin is the client: it has the machine's first process run a command with
// our standard files, hands signals on, and ends as the command did.
func runJoin(dir string, args []string) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	if err := os.Chdir(dir); err != nil {
		return err
	}
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socketName})
	if err != nil {
		return fmt.Errorf("the machine is not running: %w", err)
	}
	b, err := json.Marshal(command{Args: args, Env: os.Environ()})
	if err != nil {
		return err
	}
	if len(b) > maxCommand {
		return fmt.Errorf("the command has %d bytes, want at most %d: pass it on stdin", len(b), maxCommand)
	}
	if _, _, err := c.WriteMsgUnix(b, unix.UnixRights(0, 1, 2), nil); err != nil {
		return err
	}
	go func() {
		for sig := range signals {
			_, _ = c.Write([]byte{byte(sig.(syscall.Signal))}) // it may have ended
		}
	}()
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	if err != nil && !errors.Is(err, io.EOF) || n == 0 {
		return fmt.Errorf("the machine went down (%v)", err)
	}
	var e ending
	if err := json.Unmarshal(buf[:n], &e); err != nil {
		return err
	}
	if e.Err != "" {
		return errors.New(e.Err)
	}
	if e.Status != 0 {
		return exitStatus(e.Status)
	}
	return nil
}
