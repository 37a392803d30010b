package holds

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// notes is a Recorder in memory.
type notes struct {
	mu   sync.Mutex
	rs   []ledger.Record
	fail error
	hook func(ledger.Record) // runs before the record is kept
}

func (n *notes) Record(ctx context.Context, rs ...ledger.Record) error {
	n.mu.Lock()
	hook, err := n.hook, n.fail
	n.mu.Unlock()
	if hook != nil {
		hook(rs[0])
	}
	if ctx.Err() != nil {
		return ctx.Err() // as the ledger does
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil {
		n.rs = append(n.rs, rs...)
	}
	return err
}

func (n *notes) set(fail error, hook func(ledger.Record)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fail, n.hook = fail, hook
}

// said lists "verdict reason" in order.
func (n *notes) said() (out []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.rs {
		out = append(out, string(r.Verdict)+" "+r.Reason)
	}
	return out
}

// desk is a book with an operator at it.
type desk struct {
	*Book
	t    *testing.T
	book *notes
	c    Config
}

func newDesk(t *testing.T, edit ...func(*Config)) *desk {
	t.Helper()
	d := &desk{t: t, book: &notes{}}
	d.c = Config{File: filepath.Join(t.TempDir(), "approvals.json"), Recorder: d.book, Timeout: time.Minute}
	for _, e := range edit {
		e(&d.c)
	}
	d.restart()
	return d
}

// restart is a new process over the same file.
func (d *desk) restart() {
	d.t.Helper()
	b, err := Open(d.c)
	if err != nil {
		d.t.Fatal(err)
	}
	d.Book = b
}

// base is what most tests ask.
func base(edit ...func(*Question)) Question {
	q := Question{
		Subject:   Subject{Agent: "a1", Host: "new.example", Port: 443, Binary: "/usr/bin/curl"},
		Ancestors: []string{"/bin/bash", "/usr/bin/node"}, Policy: "p", Digest: "sha256:1", Life: "boot/1",
		Process: ledger.Process{PID: 7, UID: 1000, Comm: "curl"}, Change: policies.HostRule{Host: "new.example", Ports: []int{443}},
	}
	for _, e := range edit {
		e(&q)
	}
	return q
}

// ask asks in the background and returns once it waits.
func (d *desk) ask(q Question) <-chan Outcome {
	d.t.Helper()
	out := make(chan Outcome, 1)
	n := d.waiting()
	go func() { out <- d.Ask(d.t.Context(), q, nil) }()
	eventually(d.t, "it waits", func() bool { return d.waiting() > n })
	return out
}

func (d *desk) waiting() (n int) {
	for _, p := range d.List() {
		n += p.Waiting
	}
	return n
}

// now asks what must be answered without a wait.
func (d *desk) now(q Question) Outcome {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 5*time.Second)
	defer cancel()
	return d.Ask(ctx, q, nil)
}

// asks says whether q would be put to an operator.
func (d *desk) asks(q Question) bool {
	d.t.Helper()
	ctx, cancel := context.WithCancel(d.t.Context())
	cancel()
	out := d.Ask(ctx, q, nil)
	return out.Denial.Code == "net.hold_gone"
}

func (d *desk) one() Pending {
	d.t.Helper()
	ps := d.List()
	if len(ps) != 1 {
		d.t.Fatalf("got %d pending, want one: %+v", len(ps), ps)
	}
	return ps[0]
}

func yes(p Pending, s Scope) Answer {
	return Answer{Digest: p.Digest, Allow: true, Scope: s, Operator: "ada"}
}

func no(p Pending, s Scope) Answer {
	return Answer{Digest: p.Digest, Scope: s, Operator: "ada", Reason: "not today"}
}

func (d *desk) answer(p Pending, a Answer) {
	d.t.Helper()
	if err := d.Answer(d.t.Context(), p.ID, a); err != nil {
		d.t.Fatal(err)
	}
}

func got(t *testing.T, c <-chan Outcome) Outcome {
	t.Helper()
	select {
	case out := <-c:
		return out
	case <-time.After(5 * time.Second):
		t.Fatal("still waits")
	}
	return Outcome{}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for range 1000 {
		if f() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

var errDisk = errors.New("disk full")
