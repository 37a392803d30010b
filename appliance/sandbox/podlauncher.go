package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/confine"
	"github.com/clawbox/clawbox/appliance/gate"
)

// adopt takes a container's first process, which waits in the runtime, for
// the launcher that it becomes.
func adopt(pidfd *os.File, c *gate.Create) (_ *launcher, err error) {
	defer pidfd.Close()
	l := &launcher{done: make(chan struct{}), pidfd: -1}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.control, err = takeChannel(c.Control); err != nil {
		return nil, err
	}
	if l.spec, err = takeChannel(c.Spec); err != nil {
		return nil, err
	}
	if l.pid, err = pidOf(pidfd); err != nil {
		return nil, err
	}
	l.pidfd, err = unix.FcntlInt(pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	return l, err
}

func takeChannel(f *os.File) (*channel, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("a channel is no Unix socket")
	}
	return &channel{u, bufio.NewReaderSize(u, 4096)}, nil
}

// pidOf is the process's number here, whatever it is to the runtime.
// Source: pidfd_open(2), "fdinfo".
func pidOf(pidfd *os.File) (int, error) {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(int(pidfd.Fd())))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Pid:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(v))
			if err != nil || n <= 0 {
				return 0, fmt.Errorf("the container's process has ended, or is not below this pid namespace (%q)", strings.TrimSpace(line))
			}
			return n, nil
		}
	}
	return 0, errors.New("what came is no pidfd")
}

// carry brings output to o until all its writers are gone.
func (p *launcher) carry(o *late, from *os.File) {
	p.output.Go(func() {
		defer from.Close()
		io.Copy(plain{o}, from)
	})
}

// heed waits for the end of a process that is somebody else's child.
func (p *launcher) heed() {
	h, err := p.handle()
	if err == nil {
		defer h.Close()
		fds := []unix.PollFd{{Fd: int32(h.Fd()), Events: unix.POLLIN}}
		for {
			if n, err := unix.Poll(fds, -1); n > 0 || err != nil && !errors.Is(err, syscall.EINTR) {
				break
			}
		}
	}
	drained := make(chan struct{})
	go func() { p.output.Wait(); close(drained) }()
	select {
	case <-drained:
	case <-time.After(afterwards):
	}
	close(p.done)
}

// told is the exit status that PID 1 has left, or that of a killed process.
func (p *launcher) told() int {
	p.control.SetReadDeadline(time.Now().Add(time.Second))
	for {
		line, err := p.control.r.ReadString('\n')
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), confine.Exited); ok {
			if n, err := strconv.Atoi(v); err == nil {
				return n
			}
		}
		if err != nil {
			return 128 + int(unix.SIGKILL)
		}
	}
}
