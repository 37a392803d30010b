package holds

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/ledger"
)

// TestRestart: a new process over the same file knows all that the old one
// did, and no more.
func TestRestart(t *testing.T) {
	d := newDesk(t)
	session := base(func(q *Question) { q.Host = "session.example" })
	always := base(func(q *Question) { q.Host = "always.example" })
	denied := base(func(q *Question) { q.Host = "denied.example" })
	for _, x := range []struct {
		q Question
		a func(Pending) Answer
	}{
		{session, func(p Pending) Answer { return yes(p, Session) }},
		{always, func(p Pending) Answer { return yes(p, Always) }},
		{denied, func(p Pending) Answer { return no(p, Session) }},
	} {
		d.asks(x.q)
		d.answer(d.one(), x.a(d.one()))
	}
	d.ask(base())
	p := d.one()
	standing := d.Standing()
	d.restart()
	q := d.one()
	p.Waiting = 0 // its connections are gone
	if q.ID != p.ID || q.Digest != p.Digest || q.Words != p.Words || !q.Until.Equal(p.Until) || q.Waiting != 0 || q.Allow.YAML() != p.Allow.YAML() {
		t.Errorf("after the restart\n%+v, want\n%+v", q, p)
	}
	if !slices.EqualFunc(d.Standing(), standing, func(a, b Grant) bool { return a.ID == b.ID && a.Time.Equal(b.Time) && a.Life == b.Life }) {
		t.Errorf("standing %+v, want %+v", d.Standing(), standing)
	}
	for _, x := range []Question{session, always} {
		if out := d.now(x); !out.Allow {
			t.Errorf("%s: got %+v", x.Host, out)
		}
	}
	if out := d.now(denied); out.Denial.Code != "net.hold_denied" {
		t.Errorf("got %+v", out)
	}
	// The client comes back and waits at the same request; its old id answers.
	c := d.ask(base())
	d.answer(p, yes(p, Once))
	if out := got(t, c); !out.Allow {
		t.Errorf("got %+v", out)
	}
	d.restart()
	if err := d.Answer(t.Context(), p.ID, yes(p, Once)); !errors.Is(err, ErrNoPending) {
		t.Errorf("replayed after a restart: got %v", err)
	}
}

// The clock goes on while nobody runs.
func TestRestartLate(t *testing.T) {
	d := newDesk(t, func(c *Config) { c.Timeout = 30 * time.Millisecond })
	d.Book.mu.Lock() // the old process dies before its timer fires
	p, err := newPending(base(), time.Now(), d.c.Timeout)
	if err != nil {
		t.Fatal(err)
	}
	d.holds[p.key()] = &hold{Pending: p}
	if err := d.save(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(40 * time.Millisecond)
	d.restart()
	eventually(t, "it is over", func() bool { return len(d.List()) == 0 })
	if err := d.Answer(t.Context(), p.ID, yes(p, Once)); !errors.Is(err, ErrNoPending) {
		t.Errorf("got %v", err)
	}
	eventually(t, "a record", func() bool { return slices.Contains(d.book.said(), "denied approval.timeout") })
}

func TestTimeout(t *testing.T) {
	d := newDesk(t, func(c *Config) { c.Timeout = 30 * time.Millisecond })
	if out := d.now(base()); out.Denial.Code != "net.hold_timeout" {
		t.Errorf("got %+v", out)
	}
	d = newDesk(t)
	c := d.ask(base())
	p := d.one()
	d.expire(d.holds[p.key()])
	if out := got(t, c); out.Denial.Code != "net.hold_timeout" {
		t.Errorf("got %+v", out)
	}
	if err := d.Answer(t.Context(), p.ID, yes(p, Always)); !errors.Is(err, ErrNoPending) {
		t.Errorf("answered after its time: %v", err)
	}
	if want := []string{"held net.unlisted", "denied approval.timeout"}; !slices.Equal(d.book.said(), want) {
		t.Errorf("records %q, want %q", d.book.said(), want)
	}
}

// An answer that is being written when the time ends decides; one that fails
// then lets the request end.
func TestTimeoutDuringAnswer(t *testing.T) {
	for name, fail := range map[string]error{"answered": nil, "failed": errDisk} {
		d := newDesk(t)
		c := d.ask(base())
		p := d.one()
		x := d.holds[p.key()]
		d.book.set(fail, func(r ledger.Record) {
			if r.Reason == "approval.once" {
				d.expire(x)
			}
		})
		err := d.Answer(t.Context(), p.ID, yes(p, Once))
		out := got(t, c)
		if !errors.Is(err, fail) || out.Allow != (fail == nil) || len(d.List()) != 0 {
			t.Errorf("%s: got %v and %+v", name, err, out)
		}
	}
}

// TestSandboxEnds: the session goes, who waits is refused, and what was
// pending can still be answered, but not for the session.
func TestSandboxEnds(t *testing.T) {
	for name, end := range map[string]func(*desk) error{
		"forget": func(d *desk) error { return d.Forget("a1") },
		"begin":  func(d *desk) error { return d.Begin("a1", "boot/2") },
	} {
		d := newDesk(t)
		session := base(func(q *Question) { q.Host = "session.example" })
		d.asks(session)
		d.answer(d.one(), yes(d.one(), Session))
		c := d.ask(base())
		p := d.one()
		if err := errors.Join(d.Begin("a1", "boot/1"), d.Forget("a2")); err != nil || len(d.Standing()) != 1 || d.one().Ended {
			t.Errorf("%s: the same sandbox again, or another agent, ended it", name)
		}
		if err := end(d); err != nil {
			t.Fatal(err)
		}
		if out := got(t, c); out.Denial.Code != "net.hold_gone" {
			t.Errorf("%s: got %+v", name, out)
		}
		if len(d.Standing()) != 0 || !d.one().Ended || d.one().Waiting != 0 {
			t.Errorf("%s: standing %+v, pending %+v", name, d.Standing(), d.List())
		}
		d.restart()
		if err := d.Answer(t.Context(), p.ID, yes(p, Session)); !errors.Is(err, ErrAnswer) {
			t.Errorf("%s: got %v", name, err)
		}
		d.answer(d.one(), yes(p, Once))
		if out := d.now(base(func(q *Question) { q.Life = "boot/2" })); !out.Allow {
			t.Errorf("%s: the agent's next connection: %+v", name, out)
		}
	}
}

// The end between the record and the effect of an answer leaves nothing behind.
func TestForgetDuringAnswer(t *testing.T) {
	d := newDesk(t)
	c := d.ask(base())
	p := d.one()
	d.book.set(nil, func(r ledger.Record) {
		if r.Reason == "approval.session" {
			_ = d.Forget("a1")
		}
	})
	if err := d.Answer(t.Context(), p.ID, yes(p, Session)); !errors.Is(err, ErrNoPending) {
		t.Errorf("got %v", err)
	}
	if out := got(t, c); out.Allow || len(d.Standing()) != 0 || d.Covers(base()) {
		t.Errorf("got %+v, standing %+v", out, d.Standing())
	}
	if said := d.book.said(); said[len(said)-1] != "denied approval.failed" {
		t.Errorf("records %q", said)
	}
}

// TestDisk: what can't be kept has no effect; a refusal and an end always have.
func TestDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "x")
	back := func(ok bool) {
		t.Helper()
		err := os.RemoveAll(dir)
		if ok {
			err = os.Mkdir(dir, 0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	back(true)
	d := newDesk(t, func(c *Config) { c.File = filepath.Join(dir, "f") })
	back(false)
	if out := d.now(base()); out.Denial.Code != "net.hold_lost" || len(d.List()) != 0 {
		t.Errorf("got %+v", out)
	}
	back(true)
	c := d.ask(base())
	p := d.one()
	back(false)
	for _, s := range []Scope{Once, Session, Always} {
		if err := d.Answer(t.Context(), p.ID, yes(p, s)); err == nil || len(c) != 0 || len(d.Standing()) != 0 {
			t.Errorf("%s: %v, standing %v", s, err, d.Standing())
		}
	}
	back(true)
	d.answer(d.one(), yes(p, Session))
	back(false)
	g := d.Standing()[0]
	if _, err := d.Revoke(t.Context(), g.ID, "ada"); err == nil || d.Covers(base()) {
		t.Errorf("revoked without a disk: %v, still there: %v", err, d.Covers(base()))
	}
	back(true)
	d.asks(base())
	d.answer(d.one(), yes(d.one(), Once)) // a credit
	back(false)
	if out := d.now(base()); out.Allow || out.Denial.Code != "net.hold_lost" {
		t.Errorf("a credit that can't be used up: %+v", out)
	}
	back(true)
	if out := d.now(base()); !out.Allow {
		t.Errorf("the credit: %+v", out)
	}
}

func TestRevoke(t *testing.T) {
	d := newDesk(t)
	for _, s := range []Scope{Session, Always} {
		d.asks(base())
		d.answer(d.one(), yes(d.one(), s))
		g := d.Standing()[0]
		if !d.Covers(base()) {
			t.Errorf("%s covers nothing", s)
		}
		if _, err := d.Revoke(t.Context(), g.ID, " "); !errors.Is(err, ErrAnswer) {
			t.Errorf("nobody revokes: got %v", err)
		}
		d.book.set(errDisk, nil)
		if _, err := d.Revoke(t.Context(), g.ID, "eve"); !errors.Is(err, errDisk) || !d.Covers(base()) {
			t.Errorf("revoked without a record: %v", err)
		}
		d.book.set(nil, nil)
		if r, err := d.Revoke(t.Context(), g.ID, "eve"); err != nil || r.Host != "new.example" {
			t.Errorf("got %+v, %v", r, err)
		}
		if _, err := d.Revoke(t.Context(), g.ID, "eve"); !errors.Is(err, ErrNoPending) || d.Covers(base()) {
			t.Errorf("got %v", err)
		}
		d.restart()
		if d.Covers(base()) {
			t.Error("back after a restart")
		}
	}
	if said := strings.Join(d.book.said(), ","); strings.Count(said, "denied approval.revoked") != 2 {
		t.Errorf("records %s", said)
	}
}

// Remove leaves nothing of an agent for the next one of its name.
func TestRemove(t *testing.T) {
	d := newDesk(t)
	d.asks(base())
	d.answer(d.one(), yes(d.one(), Always))
	c := d.ask(base(func(q *Question) { q.Port = 80 }))
	if err := d.Remove("a1"); err != nil {
		t.Fatal(err)
	}
	if out := got(t, c); out.Allow || len(d.Standing()) != 0 || len(d.List()) != 0 {
		t.Errorf("got %+v", out)
	}
	d.restart()
	if len(d.Standing()) != 0 || len(d.List()) != 0 {
		t.Error("back after a restart")
	}
}

// TestWatch: a look that waits returns when something changes, and not before.
func TestWatch(t *testing.T) {
	d := newDesk(t)
	ps, v := d.Watch(t.Context(), "")
	if len(ps) != 0 || v == "" {
		t.Fatalf("got %v %q", ps, v)
	}
	short, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, w := d.Watch(short, v); w != v || short.Err() == nil {
		t.Error("it did not wait")
	}
	see := func(what string, f func(), want int) {
		t.Helper()
		seen := make(chan int, 1)
		go func(v string) { ps, _ := d.Watch(t.Context(), v); seen <- len(ps) }(v)
		f()
		select {
		case <-seen:
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: not seen", what)
		}
		ps, v = d.Watch(t.Context(), "")
		if len(ps) != want {
			t.Errorf("%s: %d pending, want %d", what, len(ps), want)
		}
	}
	see("asked", func() { d.asks(base()) }, 1)
	see("answered", func() { d.answer(d.one(), no(d.one(), Once)) }, 0)
	d.restart() // another process: its versions are others
	if _, w := d.Watch(t.Context(), v); w == v {
		t.Error("the same version after a restart")
	}
}

// A policy that changes while something is held is asked anew.
func TestPolicyChanges(t *testing.T) {
	d := newDesk(t)
	changed, out := make(chan struct{}), make(chan Outcome, 1)
	go func() { out <- d.Ask(t.Context(), base(), changed) }()
	eventually(t, "it waits", func() bool { return d.waiting() == 1 })
	close(changed)
	if o := got(t, out); !o.Again || d.one().Waiting != 0 {
		t.Errorf("got %+v, pending %+v", o, d.List())
	}
}
