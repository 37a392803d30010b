package content

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// holdStore takes the store, says so, and keeps it: the process that somebody
// else waits for.
func holdStore(dir string) {
	s, err := Open(dir)
	if err == nil {
		_, err = s.Exclusive(context.Background(), nil)
	}
	fmt.Println("held", err)
	time.Sleep(time.Minute)
	os.Exit(1)
}

// TestExclusive: the second process is told who is the first, and has its turn
// as soon as that is dead.
func TestExclusive(t *testing.T) {
	s := open(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "CONTENT_TEST_HOLDER="+s.Dir())
	out, err := cmd.StdoutPipe()
	must(t, err, cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()
	var held string
	if _, err := fmt.Fscanln(out, &held, new(string)); err != nil || held != "held" {
		t.Fatalf("%q, %v", held, err)
	}
	_, err = s.Exclusive(t.Context(), nil)
	var busy *BusyError
	if !errors.As(err, &busy) || busy.Holder.PID != cmd.Process.Pid || !strings.Contains(err.Error(), os.Args[0]) {
		t.Fatalf("got %v, want that process %d has it", err, cmd.Process.Pid)
	}
	if _, err := s.GC(t.Context(), GCOptions{}); !errors.Is(err, ErrBusy) {
		t.Errorf("GC beside a load: %v", err)
	}
	put(t, s, []byte("needs no turn"))

	ended, cancel := context.WithCancel(t.Context())
	if _, err := s.Exclusive(ended, func(Holder) { cancel() }); !errors.Is(err, context.Canceled) || !errors.Is(err, ErrBusy) {
		t.Errorf("got %v, want a cancelled wait that says for whom", err)
	}
	told := 0
	release, err := s.Exclusive(t.Context(), func(h Holder) {
		told++
		if h.PID != cmd.Process.Pid {
			t.Errorf("waiting for %s, want process %d", h, cmd.Process.Pid)
		}
		cmd.Process.Kill()
	})
	if err != nil || told != 1 {
		t.Fatalf("told %d times, %v", told, err)
	}
	release()
	release, err = s.Exclusive(t.Context(), nil)
	must(t, err)
	release()
}

// TestHold: GC waits for who refers to blobs at this moment.
func TestHold(t *testing.T) {
	s := open(t)
	release, err := s.Hold()
	must(t, err)
	second, err := s.Hold()
	must(t, err)
	done := make(chan error, 1)
	go func() {
		_, err := s.GC(t.Context(), GCOptions{})
		done <- err
	}()
	second()
	select {
	case err := <-done:
		t.Errorf("GC did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	release()
	must(t, <-done)
}
