package wizard

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/clawbox/clawbox/installer"
	"github.com/clawbox/clawbox/installer/host"
	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// screen is the other side of a pseudo-terminal: it collects what is shown.
type screen struct {
	pt *os.File
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *screen) collect() {
	p := make([]byte, 4096)
	for {
		n, err := s.pt.Read(p)
		s.mu.Lock()
		s.b.Write(p[:n])
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// await waits for text that has not been awaited yet, and then types keys.
func (s *screen) await(t *testing.T, text, keys string) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		s.mu.Lock()
		i := bytes.Index(s.b.Bytes(), []byte(text))
		if i >= 0 {
			s.b.Next(i + len(text))
			s.mu.Unlock()
			break
		}
		shown := s.b.String()
		s.mu.Unlock()
		if time.Now().After(deadline) {
			t.Fatalf("the screen does not show %q, but %q", text, shown)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := io.WriteString(s.pt, keys); err != nil {
		t.Fatal(err)
	}
}

// onTerminal runs the wizard on a pseudo-terminal of 80 by 30.
func onTerminal(t *testing.T, f host.Facts) (*screen, func() (installer.Answers, error)) {
	t.Helper()
	return onTerminalOf(t, f, release())
}

func onTerminalOf(t *testing.T, f host.Facts, rel installer.Release) (*screen, func() (installer.Answers, error)) {
	t.Helper()
	t.Setenv("TERM", "xterm")
	t.Setenv("ACCESSIBLE", "")
	pt, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pt.Close(); tty.Close() })
	if err := pty.Setsize(pt, &pty.Winsize{Rows: 30, Cols: 80}); err != nil {
		t.Fatal(err)
	}
	before, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	s := &screen{pt: pt}
	go s.collect()
	var a installer.Answers
	done := make(chan error, 1)
	go func() {
		var err error
		a, err = Ask(context.Background(), f, rel, tty, tty)
		done <- err
	}()
	return s, func() (installer.Answers, error) {
		t.Helper()
		select {
		case err := <-done:
			after, terr := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
			if terr != nil || *after != *before {
				t.Errorf("the terminal was not given back: %v", terr)
			}
			return a, err
		case <-time.After(15 * time.Second):
			t.Fatal("the wizard does not end")
			return a, nil
		}
	}
}

// Keys are typed the moment that a page shows, when a reader that the page
// before left behind would swallow them.
func TestTerminal(t *testing.T) {
	settle = 600 * time.Millisecond
	f := machine()
	f.BPF = host.BPF{}
	s, end := onTerminal(t, f)
	s.await(t, "Your name", "\r\rAnn\r\r")
	s.await(t, "Agents that", "\r")
	s.await(t, "Policy of", "\x1b[B\r") // down: the first preset
	s.await(t, "Names that", "api.example.com=10.0.0.7\r")
	s.await(t, "for good?", "y")
	s.await(t, "Install this?", "y")
	check(t, end)
}

// What one page leaves unread the next one gets; a page hears of a key after
// an Enter only when it had time to move on.
func TestPages(t *testing.T) {
	k := &keyboard{data: make(chan []byte, 2), done: make(chan struct{})}
	k.data <- []byte("ab\rcd\r")
	read := func(p *pageReader) string {
		b := make([]byte, 100)
		n, err := p.Read(b)
		if err != nil {
			return err.Error()
		}
		return string(b[:n])
	}
	one, two := k.page(), k.page()
	if got := read(one); got != "ab\r" {
		t.Errorf("got %q", got)
	}
	start := time.Now()
	left := make(chan string)
	go func() { left <- read(one) }() // the reader that stays behind
	one.Close()
	if got := <-left; got != "EOF" {
		t.Errorf("the page that ended got %q", got)
	}
	if got := read(two); got != "cd\r" {
		t.Errorf("got %q", got)
	}
	k.data <- []byte("e")
	if got := read(two); got != "e" || time.Since(start) < settle {
		t.Errorf("got %q after %s", got, time.Since(start))
	}
	close(k.done)
	if got := read(two); got != "EOF" {
		t.Errorf("after the terminal's end: got %q", got)
	}
}

func check(t *testing.T, end func() (installer.Answers, error)) {
	t.Helper()
	a, err := end()
	if err != nil || a.Root != "/" || a.Operator != "Ann" || a.Hosts["api.example.com"] != "10.0.0.7" ||
		!slices.Equal(a.Accept, []string{"tier-T4"}) || strings.HasSuffix(a.Agents[0].Policy, ".yaml") {
		t.Errorf("got %+v, %v", a, err)
	}
}

func TestTerminalAbort(t *testing.T) {
	s, end := onTerminal(t, machine())
	s.await(t, "Profile", "\x03")
	if _, err := end(); !errors.Is(err, ErrDeclined) {
		t.Errorf("^C: got %v; want ErrDeclined", err)
	}
}
