package installer

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Service starts and stops the installed appliance.
type Service interface {
	// Running says whether any appliance answers now.
	Running(ctx context.Context) bool
	// Start starts it as it is started at boot, so that Boot decides what runs.
	Start(ctx context.Context) error
	// Alive says why what Start started has ended, nil while it runs.
	Alive(ctx context.Context) error
	// Stop returns when nothing of it runs.
	Stop(ctx context.Context) error
	// Stays says whether it outlives this process.
	Stays() bool
}

// ServiceOf is the service of an installation: systemd's, or with start: none
// one in the foreground.
func ServiceOf(a Answers) Service {
	var s Service = &Foreground{Layout: a.layout()}
	if a.Start == "systemd" {
		s = Systemd{}
	}
	if isCluster(a) {
		return withNode{s, nodeService(a)}
	}
	return s
}

// Systemd is a unit. Ctl runs systemctl; nil: the real one.
type Systemd struct {
	Ctl  func(ctx context.Context, args ...string) error
	Unit string // "": clawbox.service
}

const unitName = "clawbox.service"

func (s Systemd) ctl(ctx context.Context, args ...string) error {
	if s.Ctl == nil {
		return systemctl(ctx, args...)
	}
	return s.Ctl(ctx, args...)
}

func (s Systemd) unit() string { return cmp.Or(s.Unit, unitName) }

func (s Systemd) Running(ctx context.Context) bool {
	return s.ctl(ctx, "is-active", "--quiet", s.unit()) == nil
}

// Start forgets earlier failures first: a release that was tried may have used
// up the starts that systemd allows. K3s's unit is a release's own, and is
// started once K3s says that it is ready, which is the gates' to wait for.
func (s Systemd) Start(ctx context.Context) error {
	_ = s.ctl(ctx, "reset-failed", s.unit()) // there may be none
	if s.Unit != nodeUnit {
		return s.ctl(ctx, "start", s.unit())
	}
	if err := s.ctl(ctx, "daemon-reload"); err != nil {
		return err
	}
	return s.ctl(ctx, "start", "--no-block", s.unit())
}

func (s Systemd) Alive(ctx context.Context) error {
	if err := s.ctl(ctx, "is-active", "--quiet", s.unit()); err != nil {
		return fmt.Errorf("the service has ended: %w; look at: journalctl -u %s", err, strings.TrimSuffix(s.unit(), ".service"))
	}
	return nil
}

func (s Systemd) Stop(ctx context.Context) error { return s.ctl(ctx, "stop", s.unit()) }
func (s Systemd) Stays() bool                    { return true }

// stateLock is what a running appliance holds below its state folder, by flock.
const stateLock = "sandbox.lock"

// idle returns once no appliance has the state. One that was told to end
// writes until it has: state that is put back before that is not.
func idle(ctx context.Context, state string, limit time.Duration) error {
	path := filepath.Join(state, stateLock)
	for end := time.Now().Add(limit); ; {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		f.Close()
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s: an appliance still has it after %s; wanted it ended; stop it, then start again", path, limit)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Foreground is an appliance, or its K3s, without systemd: a child of this
// process, for as long as a release is tried.
type Foreground struct {
	Layout Layout

	args  []string                      // of the installed command; nil: serve
	log   string                        // what it prints; "": Layout.TrialLog
	other func(ctx context.Context) int // process of one that somebody else started; nil: who has the control socket

	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd has ended
}

// stopTime is how long an appliance may take to stop its agents in order.
const stopTime = time.Minute

// Running says whether one runs, whoever started it: whether somebody listens
// on the control socket, as a rule.
func (f *Foreground) Running(ctx context.Context) bool {
	if f.other != nil {
		return f.other(ctx) != 0
	}
	c, err := f.dial(ctx)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

func (f *Foreground) process(ctx context.Context) int {
	if f.other != nil {
		return f.other(ctx)
	}
	return f.peer(ctx)
}

func (f *Foreground) logFile() string { return cmp.Or(f.log, f.Layout.TrialLog()) }

func (f *Foreground) dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(f.Layout.Run(), "control.sock"))
}

// Start runs the installed command. It ends with this process.
func (f *Foreground) Start(context.Context) error {
	log, err := os.OpenFile(f.logFile(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args := f.args
	if args == nil {
		args = []string{"serve", "--config", f.Layout.Config()}
	}
	cmd := exec.Command(f.Layout.Command(), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	started := make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		// The signal comes when the thread that forked ends: it has to stay.
		runtime.LockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // Alive tells
		}
	}()
	f.cmd, f.ended = cmd, ended
	return <-started
}

func (f *Foreground) Alive(context.Context) error {
	select {
	case <-f.ended:
		return fmt.Errorf("the program has ended: %v; it said: %s", f.cmd.ProcessState, f.said())
	default:
		return nil
	}
}

// said is the end of what the program printed.
func (f *Foreground) said() string {
	b, err := os.ReadFile(f.logFile())
	if err != nil {
		return err.Error()
	}
	s := strings.TrimSpace(string(b[max(0, len(b)-1000):]))
	if s == "" {
		return "nothing"
	}
	return s
}

// Stop ends the child, and whatever else runs: a 'clawbox serve' that answers on
// the control socket, or a K3s, which somebody else started. Who looks after that one may start it
// again; Boot makes it wait until the change has ended.
func (f *Foreground) Stop(ctx context.Context) error {
	if f.cmd != nil {
		_ = f.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-f.ended:
		case <-time.After(stopTime):
			_ = f.cmd.Process.Kill()
			<-f.ended
		}
		f.cmd = nil
	}
	for end := time.Now().Add(stopTime); ; time.Sleep(50 * time.Millisecond) {
		pid := f.process(ctx)
		if pid == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("process %d does not end within %s; end it, then give the same command again", pid, stopTime)
		}
		if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("stop process %d: %w", pid, err)
		}
		f.gone(pid, end)
	}
}

// peer is who listens on the control socket, 0 when nobody does.
func (f *Foreground) peer(ctx context.Context) int {
	c, err := f.dial(ctx)
	if err != nil {
		return 0
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		return 0
	}
	return int(cred.Pid)
}

// gone waits until a process has ended.
func (f *Foreground) gone(pid int, end time.Time) {
	for time.Now().Before(end) && unix.Kill(pid, 0) == nil && !dead(pid) {
		time.Sleep(20 * time.Millisecond)
	}
}

// dead says whether a process has ended and only its parent has not looked yet.
func dead(pid int) bool {
	f, err := procStat(pid)
	return err == nil && f[statState] == "Z"
}

// Fields of procStat.
const (
	statState  = 0
	statParent = 1
	statBegan  = 19 // ticks after the machine was started
)

// procStat is what the kernel says of a process, from its state on: proc_pid_stat(5)
// from field 3.
func procStat(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // the name before may hold anything
	if len(f) <= statBegan {
		return nil, fmt.Errorf("/proc/%d/stat: got %q, want %d fields and more behind the name", pid, b, statBegan)
	}
	return f, nil
}

func (f *Foreground) Stays() bool { return false }
