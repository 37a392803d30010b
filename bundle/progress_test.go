package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestPlainProgress(t *testing.T) {
	var b strings.Builder
	p := NewProgress(&b, false)
	a := p.Start("pull app", 1_500_000)
	a.Add(1_000_000)
	a.Add(500_000)
	a.Done(nil)
	c := p.Start("load demo", -1)
	c.Add(10)
	c.Done(errors.New("x"))
	p.Close()
	if got, want := b.String(), "pull app: done, 1.5 MB of 1.5 MB\nload demo: failed after 10 B\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestPlainLong: a task that takes long says in between where it is.
func TestPlainLong(t *testing.T) {
	var b strings.Builder
	p := &plain{w: &b, every: 1}
	p.Start("x", 2000).Add(1000)
	if got := b.String(); !strings.HasPrefix(got, "x: 1.0 kB of 2.0 kB") {
		t.Errorf("got %q", got)
	}
}

// TestBars: bars end, whatever became of their tasks.
func TestBars(t *testing.T) {
	var b strings.Builder
	p := NewProgress(&b, true)
	for i, total := range []int64{10, 10, -1, 0} {
		task := p.Start("task", total)
		task.Add(7)
		var err error
		if i == 1 {
			err = errors.New("x")
		}
		task.Done(err)
	}
	p.Start("never ended", 10)
	done := make(chan struct{})
	go func() { p.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("Close waits for ever")
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_949: "999.9 kB", 999_950: "1.0 MB", 4_290_000_000: "4.3 GB", 1<<63 - 1: "9.2 EB",
	} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %s, want %s", n, got, want)
		}
	}
}

// TestProgressIsLegible: tasks are named after files, and warnings after what is
// on a stick.
func TestProgressIsLegible(t *testing.T) {
	for _, tty := range []bool{false, true} {
		var b bytes.Buffer
		p := NewProgress(&b, tty)
		task := p.Start("hash \u202efile\x1b]0;owned\x07\n", 10)
		task.Add(10)
		task.Done(nil)
		fmt.Fprintf(p, "warning: %s\n", "\x1b]0;owned\x07")
		p.Close()
		if s := b.String(); strings.Contains(s, "\x1b]0;") || strings.Contains(s, "\u202e") || !strings.Contains(s, "]0;owned") {
			t.Errorf("terminal %v: %q", tty, s)
		}
	}
}
