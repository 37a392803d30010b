package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/clawbox/clawbox/internal/vm"
)

// serve runs one command after the other until the channel ends.
func serve() error {
	name, err := port()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	s := &server{enc: json.NewEncoder(f)}
	s.send(vm.Frame{Done: true})
	in := json.NewDecoder(bufio.NewReader(f))
	for s.err == nil {
		var c vm.Frame
		if err := in.Decode(&c); err != nil {
			return err
		}
		s.send(s.run(c))
	}
	return s.err
}

// port finds the device of the command channel by its name.
func port() (found string, err error) {
	err = await("the command channel", func() bool {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == vm.Port {
				found = "/dev/" + filepath.Base(filepath.Dir(n))
			}
		}
		return found != "" && exists(found)
	})
	return found, err
}

type server struct {
	mu  sync.Mutex
	enc *json.Encoder
	err error
}

func (s *server) send(f vm.Frame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = s.enc.Encode(f)
	}
}

// stream sends what is written to it.
type stream func([]byte) vm.Frame

func (s *server) stream(f stream) io.Writer {
	return writer(func(b []byte) (int, error) {
		s.send(f(b))
		return len(b), nil
	})
}

type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

// run runs one command to its end and gives the last frame.
func (s *server) run(c vm.Frame) vm.Frame {
	if len(c.Args) == 0 {
		return vm.Frame{Done: true, Fail: "got no command"}
	}
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Dir, cmd.Env = c.Dir, append(os.Environ(), c.Env...)
	cmd.Stdout = s.stream(func(b []byte) vm.Frame { return vm.Frame{Out: b} })
	cmd.Stderr = s.stream(func(b []byte) vm.Frame { return vm.Frame{Err: b} })
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 5 * time.Second // what it left behind may hold the pipes
	if err := cmd.Start(); err != nil {
		return vm.Frame{Done: true, Fail: err.Error()}
	}
	if c.Limit > 0 {
		t := time.AfterFunc(time.Duration(c.Limit)*time.Second, func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
		defer t.Stop()
	}
	err := cmd.Wait()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) && !errors.Is(err, exec.ErrWaitDelay) {
		return vm.Frame{Done: true, Fail: err.Error()}
	}
	return vm.Frame{Done: true, Code: status(cmd.ProcessState)}
}

func status(p *os.ProcessState) int {
	if w, ok := p.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return p.ExitCode()
}
