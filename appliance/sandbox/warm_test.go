package sandbox

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// landing counts what becomes of the networks that are made ahead.
type landing struct {
	stale, closed, used atomic.Int32
}

func (l *landing) Fresh() bool { return l.stale.Load() == 0 }

func (l *landing) Close() error { l.closed.Add(1); return nil }

// TestAhead: a network that was made ahead goes to a start that wants one, is
// closed with its sandbox, and never reaches one that wants none.
func TestAhead(t *testing.T) {
	b := newBench(t)
	land := &landing{}
	b.l.warm = make(chan *shell, 1)
	b.l.opt.Ahead = func(ns *os.File) (Ahead, error) {
		if ns == nil {
			return nil, errors.New("no namespace")
		}
		return land, nil
	}
	landed := func(_ context.Context, a Ahead) (io.Closer, error) { land.used.Add(1); return a, nil }
	b.l.refill()
	if _, code, why := b.run(Spec{}, "links"); code != 0 || land.used.Load() != 0 || len(b.l.warm) != 1 {
		t.Fatalf("a start without a network: %d, %s, used %d times, %d wait", code, why, land.used.Load(), len(b.l.warm))
	}
	if _, code, why := b.run(Spec{Landed: landed}, "links"); code != 0 || land.used.Load() != 1 || land.closed.Load() != 1 {
		t.Fatalf("a start with one: %d, %s, used %d times, closed %d times", code, why, land.used.Load(), land.closed.Load())
	}
	b.l.refill()
	land.stale.Store(1)
	if _, code, why := b.run(Spec{Landed: landed}, "links"); code != 0 || land.used.Load() != 1 || land.closed.Load() != 2 {
		t.Fatalf("a stale one: %d, %s, used %d times, closed %d times", code, why, land.used.Load(), land.closed.Load())
	}
}

// TestAheadOfNobody: a start that fails closes the network that it was given,
// and Close ends those that nobody came for.
func TestAheadOfNobody(t *testing.T) {
	b := newBench(t)
	land := &landing{}
	b.l.warm = make(chan *shell, 2)
	b.l.opt.Ahead = func(*os.File) (Ahead, error) { return land, nil }
	b.l.refill()
	s := Spec{Name: "agent", Policy: policy(), Image: b.image, Args: []string{"links"}}
	s.Landed = func(_ context.Context, a Ahead) (io.Closer, error) {
		return nil, errors.Join(errors.New("egress is gone"), a.Close())
	}
	if _, err := b.l.Start(t.Context(), s); err == nil || land.closed.Load() != 1 {
		t.Errorf("got %v, closed %d times", err, land.closed.Load())
	}
	s.Image.Layers = []string{"/nowhere"}
	if _, err := b.l.Start(t.Context(), s); err == nil || land.closed.Load() != 2 {
		t.Errorf("got %v, closed %d times", err, land.closed.Load())
	}
	b.l.refill()
	if err := b.l.Close(); err != nil || land.closed.Load() != 4 {
		t.Errorf("got %v, closed %d times", err, land.closed.Load())
	}
}

// TestBefore: what forbids the agent to run at the last moment is obeyed.
func TestBefore(t *testing.T) {
	b := newBench(t)
	out := &buffer{}
	s := Spec{Name: "agent", Policy: policy(), Image: b.image, Args: []string{"print=x"}, Stdout: out, Stderr: out}
	s.Before = func() error { return errors.New("no record of it") }
	if _, err := b.l.Start(t.Context(), s); err == nil || !strings.Contains(err.Error(), "no record of it") || out.String() != "" {
		t.Errorf("got %v and output %q", err, out)
	}
}

// TestRefill: shells are made again once it is quiet.
func TestRefill(t *testing.T) {
	b := newBench(t)
	b.l.warm = make(chan *shell, 1)
	b.l.refillSoon()
	for end := time.Now().Add(time.Minute); len(b.l.warm) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("none after a minute")
		}
	}
}

// TestWarmDisks: a launcher that waits sees disks that are mounted later, and
// does not hold those that were mounted before.
func TestWarmDisks(t *testing.T) {
	b := newBench(t)
	b.l.warm = make(chan *shell, 1)
	p := policy()
	p.Budgets.Disk = 4 << 20
	for _, name := range []string{"before", "after"} {
		if got, code, why := b.run(Spec{Name: name, Policy: p}, "write=/workspace/f"); code != 0 || got["write=/workspace/f"] != "ok" {
			t.Fatalf("%s: %d, %s, %v", name, code, why, got)
		}
		if _, err := os.Stat(b.l.Files(name, "/workspace") + "/f"); err != nil {
			t.Error(err)
		}
		b.l.refill()
	}
	if err := b.l.Remove("before"); err != nil || len(b.l.warm) != 1 {
		t.Errorf("removed while %d wait: %v", len(b.l.warm), err)
	}
}

// TestWaitingEnds: a launcher that waits ends when its daemon is gone, and what
// it is sent has to be a Root.
func TestWaitingEnds(t *testing.T) {
	b := newBench(t)
	for name, do := range map[string]func(*shell) error{
		"gone":    func(sh *shell) error { return sh.p.control.Close() },
		"garbage": func(sh *shell) error { _, err := sh.p.control.Write([]byte("xxxxxxxxyyyyyyyy")); return err },
	} {
		sh, err := b.l.newShell("waits")
		if err != nil {
			t.Fatal(err)
		}
		if err := do(sh); err != nil {
			t.Error(err)
		}
		select {
		case <-sh.p.done:
		case <-time.After(time.Minute):
			t.Errorf("%s: it still waits after a minute", name)
		}
		if err := sh.end(); err != nil {
			t.Error(err)
		}
	}
}
