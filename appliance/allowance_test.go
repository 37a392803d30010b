package appliance

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/service"
)

// TestAllowance: as much at once as in an hour, then as it comes back.
func TestAllowance(t *testing.T) {
	a := newAllowance("guard", 7200) // 3600 bytes, and one a second
	now := time.Unix(1000, 0)
	for _, s := range []struct {
		after time.Duration
		bytes int
		wait  time.Duration
		fresh bool
	}{
		{0, 3600, 0, false},
		{0, 100, 100 * time.Second, true},
		{50 * time.Second, 10, time.Minute, false},
		{time.Minute, 0, 0, false},
		{0, 1, time.Second, true},
		{100 * time.Hour, 3601, time.Second, true}, // no more than burst is saved
		{-time.Hour, 1, 2 * time.Second, false},    // a clock that is set back gives nothing
	} {
		now = now.Add(s.after)
		wait, fresh := a.spend("ada", s.bytes, now)
		if wait.Round(time.Second) != s.wait || s.wait > 0 && fresh != s.fresh {
			t.Errorf("%d bytes after %v: wait %v (new %t), want %v (%t)", s.bytes, s.after, wait, fresh, s.wait, s.fresh)
		}
	}
	if wait, _ := a.spend("bob", 3600, now); wait != 0 {
		t.Errorf("another agent waits %v", wait)
	}
}

// TestOwes: an agent that could not pay for its own start waits until it can.
func TestOwes(t *testing.T) {
	a := newAllowance("guard", 2*36000) // 36000 bytes, and 10 a second
	now := time.Unix(1000, 0)
	if wait := a.owes("ada", 36000, now); wait != 0 {
		t.Errorf("an agent that nothing is known of waits %v", wait)
	}
	a.spend("ada", 36100, now)
	for _, s := range []struct {
		after time.Duration
		bytes int
		wait  time.Duration
	}{
		{0, 0, 10 * time.Second},
		{0, 100, 20 * time.Second},
		{15 * time.Second, 100, 5 * time.Second},
		{20 * time.Second, 100, 0},
	} {
		if wait := a.owes("ada", s.bytes, now.Add(s.after)); wait.Round(time.Second) != s.wait {
			t.Errorf("for %d bytes after %v: wait %v, want %v", s.bytes, s.after, wait, s.wait)
		}
	}
	if wait, _ := a.spend("ada", 0, now); wait.Round(time.Second) != 10*time.Second {
		t.Errorf("a question cost something: wait %v, want 10s", wait)
	}
}

// TestAccountsAreForgotten: those that are full again.
func TestAccountsAreForgotten(t *testing.T) {
	a := newAllowance("router", 1<<20)
	now := time.Unix(1000, 0)
	for i := range 3 * maxAccounts {
		a.spend(strings.Repeat("x", i), 1, now)
		now = now.Add(time.Second)
	}
	if n := len(a.agents); n > maxAccounts {
		t.Errorf("%d accounts are kept", n)
	}
}

// TestWeight holds the estimate to what the ledger writes.
func TestWeight(t *testing.T) {
	a := served(t)
	rs := []ledger.Record{
		{Kind: ledger.KindFile, Verdict: ledger.Allowed, Agent: "ada", Policy: "sha256:" + strings.Repeat("0", 64), Reason: "fs.read", Path: "/bin/busybox", Process: ledger.Process{PID: 31245, PPID: 31244, UID: 400000, Comm: "crowd"}, Attrs: map[string]any{"parent": "crowd", "seq": uint64(123456), "access": "read", "file": "busybox", "inode": "123456"}},
		{Kind: ledger.KindFile, Verdict: ledger.Denied, Agent: "ada", Reason: "kernel.eacces", Path: "/tmp/" + strings.Repeat("\x01", 500), Detail: "open refused: permission denied"},
		{Kind: ledger.KindFile, Verdict: ledger.Denied, Agent: "ada", Path: "/tmp/" + strings.Repeat("\xff", 500)},
		{Kind: ledger.KindConnect, Verdict: ledger.Allowed, Agent: "ada", Reason: "net.allowed", Host: "api.example.com", Port: 443, Attrs: map[string]any{"rule": "openclaw.yaml:14: allow api.example.com:443", "conn": "a1b2c3"}},
		{Kind: ledger.KindModel, Verdict: ledger.Allowed, Agent: "ada", Model: "tiny", Attrs: map[string]any{"tokens": 512, "route": "local"}},
	}
	must(t, a.log.Record(context.Background(), rs...))
	a.dismissAll()
	i := 0
	for e, err := range ledger.Read(a.cfg.Paths.Ledger, 0) {
		must(t, err)
		if e.Record.Agent != "ada" {
			continue
		}
		if got, want := weight(&rs[i]), len(e.Event); got < want*3/4 || got > want*3/2 {
			t.Errorf("record %d weighs %d, and takes %d bytes: %s", i, got, want, e.Event)
		}
		i++
	}
	if i != len(rs) {
		t.Errorf("%d records were read, want %d", i, len(rs))
	}
}

type refusing struct{}

func (refusing) Record(context.Context, ...ledger.Record) error { return errors.New("full") }

// TestPacedLog: records first, then the wait, which the caller can give up;
// and an error is an error.
func TestPacedLog(t *testing.T) {
	told := make(chan string, 1)
	p := &pacedLog{quiet{}, newAllowance("egress", 4*600), func(agent string, _ time.Duration) { told <- agent }}
	r := ledger.Record{Agent: "ada"}
	must(t, p.Record(context.Background(), r))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- p.Record(ctx, r) }()
	if agent := <-told; agent != "ada" {
		t.Errorf("told of %q", agent)
	}
	select {
	case <-done:
		t.Error("it was not slowed down")
	case <-time.After(100 * time.Millisecond):
	}
	cancel()
	must(t, <-done)
	p.Recorder = refusing{}
	if err := p.Record(context.Background(), r); err == nil {
		t.Error("a refusal got lost")
	}
}

// TestPauseGrows: a wait that has grown is told again, and is one pause.
func TestPauseGrows(t *testing.T) {
	a := served(t)
	ours, theirs, err := service.Pair()
	must(t, err)
	_, err = service.NewConn(ours, a.answerGuard)
	must(t, err)
	c, err := service.NewConn(theirs, nil)
	must(t, err)
	defer c.Close()
	begun := time.Now()
	tellPaced(c, pacing{Agent: "ada", Wait: 20 * time.Second})
	tellPaced(c, pacing{Agent: "ada", Wait: 10 * time.Minute, Grown: true})
	ag := a.agents["ada"]
	ag.mu.Lock()
	defer ag.mu.Unlock()
	if until := ag.paused.Sub(begun); ag.pauses != 1 || until < 10*time.Minute {
		t.Errorf("got %d pauses, the last for %v; want one for ten minutes", ag.pauses, until)
	}
}
