package holds

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

func TestOnce(t *testing.T) {
	d := newDesk(t)
	a, b := d.ask(base()), d.ask(base())
	p := d.one()
	if p.Waiting != 2 || p.Binary != "/usr/bin/curl" || p.Process != "curl (pid 7)" || p.UID != 1000 || len(p.ID) != 16 ||
		p.Change != "network: {allow: [{host: new.example, ports: [443]}]}" || p.Words != "agent may now reach new.example:443, from any program; for agent a1, at every start, in its policy p" || p.Why == "" {
		t.Errorf("pending %+v", p)
	}
	d.answer(p, yes(p, Once))
	for _, c := range []<-chan Outcome{a, b} {
		if out := got(t, c); !out.Allow || out.Scope != Once {
			t.Errorf("got %+v", out)
		}
	}
	if !d.asks(base()) {
		t.Error("the next one is not asked for")
	}
	want := []string{"held net.unlisted", "allowed approval.once", "held net.unlisted"}
	if said := d.book.said(); !slices.Equal(said, want) {
		t.Errorf("records %q, want %q", said, want)
	}
}

// TestScopes: what each answer covers afterwards.
func TestScopes(t *testing.T) {
	other := map[string]Question{
		"same":        base(),
		"chain":       base(func(q *Question) { q.Ancestors = []string{"/tmp/evil"} }),
		"binary":      base(func(q *Question) { q.Binary = "/usr/bin/wget" }),
		"no binary":   base(func(q *Question) { q.Binary, q.Ancestors = "", nil }),
		"port":        base(func(q *Question) { q.Port = 80 }),
		"host":        base(func(q *Question) { q.Host = "other.example" }),
		"call":        base(func(q *Question) { q.Call = "DELETE /v1" }),
		"agent":       base(func(q *Question) { q.Agent = "a2" }),
		"policy":      base(func(q *Question) { q.Policy = "q" }),
		"reloaded":    base(func(q *Question) { q.Digest = "sha256:2" }),
		"next life":   base(func(q *Question) { q.Life = "boot/2" }),
		"no life":     base(func(q *Question) { q.Life = "" }),
		"next, chain": base(func(q *Question) { q.Life, q.Ancestors = "boot/2", nil }),
	}
	for name, x := range map[string]struct {
		answer func(Pending, Scope) Answer
		scope  Scope
		covers []string // and nothing else
	}{
		"once":         {yes, Once, nil}, // who waited had it
		"session":      {yes, Session, []string{"same", "chain", "reloaded"}},
		"always":       {yes, Always, []string{"same", "chain", "reloaded", "next life", "no life", "next, chain"}},
		"deny once":    {no, Once, []string{"same", "chain", "reloaded", "next life", "no life", "next, chain"}},
		"deny session": {no, Session, []string{"same", "chain", "reloaded"}},
	} {
		d := newDesk(t)
		c := d.ask(base())
		p := d.one()
		a := x.answer(p, x.scope)
		d.answer(p, a)
		if out := got(t, c); out.Allow != a.Allow {
			t.Errorf("%s: got %+v", name, out)
		}
		for what, q := range other {
			if want := slices.Contains(x.covers, what); d.asks(q) == want {
				t.Errorf("%s: %s is covered: %v, want %v", name, what, !want, want)
			}
		}
	}
}

// An answer for nobody admits the next connection, once, and nothing else.
func TestCredit(t *testing.T) {
	for name, x := range map[string]struct {
		q  Question
		ok bool
	}{
		"same":      {base(), true},
		"next life": {base(func(q *Question) { q.Life = "boot/2" }), true},
		"chain":     {base(func(q *Question) { q.Ancestors = []string{"/tmp/evil"} }), false},
		"reloaded":  {base(func(q *Question) { q.Digest = "sha256:2" }), false},
		"binary":    {base(func(q *Question) { q.Binary = "" }), false},
	} {
		d := newDesk(t)
		if !d.asks(base()) {
			t.Fatal("not asked")
		}
		d.answer(d.one(), yes(d.one(), Once))
		d.restart() // the credit is on disk
		if d.asks(x.q) == x.ok {
			t.Errorf("%s: admitted %v, want %v", name, !x.ok, x.ok)
		}
		d.restart() // and so is its use
		if x.ok && !d.asks(x.q) {
			t.Errorf("%s: admitted twice", name)
		}
	}
}

// TestBound: an answer is for what was shown, once, and for nothing else.
func TestBound(t *testing.T) {
	d := newDesk(t)
	c := d.ask(base())
	p := d.one()
	for name, a := range map[string]Answer{
		"no digest":    {Allow: true, Scope: Once, Operator: "ada"},
		"other digest": {Digest: strings.Replace(p.Digest, p.Digest[10:12], "zz", 1), Allow: true, Scope: Once, Operator: "ada"},
	} {
		if err := d.Answer(t.Context(), p.ID, a); !errors.Is(err, ErrChanged) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	// Another request's answer does not fit this one's id.
	d.ask(base(func(q *Question) { q.Host = "evil.example" }))
	evil := d.List()[1]
	if err := d.Answer(t.Context(), evil.ID, yes(p, Once)); !errors.Is(err, ErrChanged) {
		t.Errorf("crossed: got %v", err)
	}
	d.answer(p, yes(p, Once))
	if out := got(t, c); !out.Allow {
		t.Errorf("got %+v", out)
	}
	for _, scope := range []Scope{Once, Session, Always} {
		if err := d.Answer(t.Context(), p.ID, yes(p, scope)); !errors.Is(err, ErrNoPending) {
			t.Errorf("replayed: got %v", err)
		}
	}
	d.ask(base())
	if q := d.List()[1]; q.ID == p.ID || q.Digest == p.Digest {
		t.Errorf("the same request again is %s %s", q.ID, q.Digest)
	}
	if err := d.Answer(t.Context(), p.ID, yes(p, Once)); !errors.Is(err, ErrNoPending) {
		t.Errorf("replayed on the next one: got %v", err)
	}
}

// TestReplaced: what changes under a request makes it another one, and who
// waits asks anew.
func TestReplaced(t *testing.T) {
	for name, change := range map[string]func(*Question){
		"policy":  func(q *Question) { q.Digest = "sha256:2" },
		"sandbox": func(q *Question) { q.Life = "boot/2" },
	} {
		d := newDesk(t)
		c := d.ask(base())
		p := d.one()
		go d.Ask(t.Context(), base(change), nil)
		if out := got(t, c); !out.Again {
			t.Errorf("%s: got %+v, want it to ask again", name, out)
		}
		if q := d.one(); q.ID == p.ID {
			t.Errorf("%s: the request kept its id", name)
		}
		if err := d.Answer(t.Context(), p.ID, yes(p, Once)); !errors.Is(err, ErrNoPending) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// Others that wait for the same, through other programs, get the same answer
// where it covers them.
func TestOthers(t *testing.T) {
	chain := base(func(q *Question) { q.Ancestors = []string{"/bin/sh"} })
	for name, x := range map[string]struct {
		a     func(Pending, Scope) Answer
		scope Scope
		too   bool
	}{"once": {yes, Once, false}, "session": {yes, Session, true}, "always": {yes, Always, true}, "deny": {no, Once, true}} {
		d := newDesk(t)
		c := d.ask(base())
		p := d.one()
		o := d.ask(chain)
		if len(d.List()) != 2 {
			t.Fatalf("%s: want two requests", name)
		}
		d.answer(p, x.a(p, x.scope))
		first := got(t, c)
		if n := len(d.List()); (n == 0) != x.too {
			t.Errorf("%s: %d pending", name, n)
		}
		if x.too {
			if out := got(t, o); out.Allow != first.Allow {
				t.Errorf("%s: got %+v and %+v", name, first, out)
			}
		}
	}
}

func TestDenialReason(t *testing.T) {
	d := newDesk(t)
	c := d.ask(base())
	p := d.one()
	for _, reason := range []string{strings.Repeat("x", 201), "two\nlines", "\x1b[2J", "\u202edrow"} {
		a := no(p, Once)
		a.Reason = reason
		if err := d.Answer(t.Context(), p.ID, a); !errors.Is(err, ErrAnswer) {
			t.Errorf("reason %q: got %v", reason, err)
		}
	}
	d.answer(p, no(p, Session))
	for _, out := range []Outcome{got(t, c), d.now(base())} {
		if out.Allow || out.Denial.Code != "net.hold_denied" || !strings.HasSuffix(out.Denial.Detail, ": not today") {
			t.Errorf("got %+v", out)
		}
	}
	r := d.book.rs[1]
	if r.Attrs["why"] != "not today" || r.Attrs["operator"] != "ada" || r.Attrs["pending"] != p.ID || r.Attrs["shown"] != p.Digest || r.Attrs["binary"] != "/usr/bin/curl" {
		t.Errorf("record %+v", r)
	}
}

// TestRecordFirst: an answer is on the ledger before anybody sees its effect,
// and one that the ledger does not take has none.
func TestRecordFirst(t *testing.T) {
	for _, scope := range []Scope{Once, Session, Always} {
		d := newDesk(t)
		c := d.ask(base())
		p := d.one()
		d.book.set(errDisk, nil)
		if err := d.Answer(t.Context(), p.ID, yes(p, scope)); !errors.Is(err, errDisk) {
			t.Errorf("%s: got %v", scope, err)
		}
		if len(d.Standing()) != 0 || d.one().ID != p.ID {
			t.Errorf("%s: an answer without a record had effect", scope)
		}
		early := false
		d.book.set(nil, func(ledger.Record) { early = len(c) > 0 || len(d.List()) == 0 || len(d.Standing()) > 0 })
		d.answer(p, yes(p, scope))
		if out := got(t, c); early || !out.Allow {
			t.Errorf("%s: effect before the record: %v, %+v", scope, early, out)
		}
	}
	// Neither is anybody held without a record.
	d := newDesk(t)
	d.book.set(errDisk, nil)
	if out := d.now(base()); out.Denial.Code != "ledger.unavailable" || len(d.List()) != 0 {
		t.Errorf("got %+v", out)
	}
}

// TestAlways: the policy is changed by whoever owns it, exactly as shown.
func TestAlways(t *testing.T) {
	var d *desk
	var agent, by string
	var r policies.HostRule
	var fail error
	d = newDesk(t, func(c *Config) {
		c.Always = func(_ context.Context, a string, h policies.HostRule, o string) error {
			if len(d.List()) != 1 || len(d.Standing()) != 0 { // and no lock is held here
				t.Error("effect before the policy change")
			}
			agent, r, by = a, h, o
			return fail
		}
	})
	c := d.ask(base())
	p := d.one()
	fail = errDisk
	if err := d.Answer(t.Context(), p.ID, yes(p, Always)); !errors.Is(err, errDisk) {
		t.Errorf("got %v", err)
	}
	if said := d.book.said(); said[len(said)-1] != "denied approval.failed" || len(c) != 0 {
		t.Errorf("records %q", said)
	}
	fail = nil
	d.answer(d.one(), yes(p, Always))
	if out := got(t, c); !out.Allow || out.Scope != Always {
		t.Errorf("got %+v", out)
	}
	if agent != "a1" || by != "ada" || "network: {allow: ["+r.YAML()+"]}" != p.Change {
		t.Errorf("changed %s of %s by %s, shown was %s", r.YAML(), agent, by, p.Change)
	}
	if len(d.Standing()) != 0 || !d.asks(base()) {
		t.Error("the policy decides from now on, nothing stands here")
	}
}

// What the change that is shown allows is what was asked, for who asked.
func TestChange(t *testing.T) {
	for _, q := range []Question{
		base(), base(func(q *Question) { q.Change = policies.HostRule{} }),
		base(func(q *Question) { q.Host, q.Change = "203.0.113.7", policies.HostRule{} }),
		base(func(q *Question) { q.Host, q.Change = "2001:db8::1", policies.HostRule{} }),
		base(func(q *Question) { q.Binary, q.Ancestors, q.Change = "", nil, policies.HostRule{} }),
		base(func(q *Question) { q.Binary, q.Change = "/opt/a b/, c", policies.HostRule{} }),
		base(func(q *Question) { q.Binary, q.Change = "/usr/bin/c\"url: '#", policies.HostRule{} }),
	} {
		d := newDesk(t)
		if !d.asks(q) {
			t.Errorf("%+v: not asked: %+v", q, d.now(q))
			continue
		}
		p := d.one()
		pol := (&policies.Policy{Name: "p", Network: policies.Network{Default: policies.Deny}}).WithAllow(p.Allow)
		ask := policies.Request{Action: policies.Connect, Host: q.Host, Port: q.Port, Binary: q.Binary, Ancestors: q.Ancestors}
		if v := pol.Decide(ask); v.Verdict != policies.Allow {
			t.Errorf("%s does not allow %+v: %+v", p.Change, ask, v)
		}
		ask.Port++
		if v := pol.Decide(ask); v.Verdict == policies.Allow {
			t.Errorf("%s allows port %d too", p.Change, ask.Port)
		}
		ask.Port--
		ask.Binary, ask.Ancestors = "/tmp/evil", nil
		if v := pol.Decide(ask); len(p.Allow.Binaries) > 0 && v.Verdict == policies.Allow {
			t.Errorf("%s allows another program too", p.Change)
		}
	}
}

// The operator's terminal closing does not cut an answer in two.
func TestAnswerHangsUp(t *testing.T) {
	d := newDesk(t)
	c := d.ask(base())
	p := d.one()
	ctx, cancel := context.WithCancel(t.Context())
	d.book.set(nil, func(ledger.Record) { cancel() })
	if err := d.Answer(ctx, p.ID, yes(p, Session)); err != nil {
		t.Errorf("got %v", err)
	}
	if out := got(t, c); !out.Allow || len(d.Standing()) != 1 {
		t.Errorf("got %+v", out)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := d.Revoke(ctx, d.Standing()[0].ID, "ada"); err != nil || len(d.Standing()) != 0 {
		t.Errorf("got %v", err)
	}
}

// What another operator is answering at this moment is theirs.
func TestOthersBusy(t *testing.T) {
	d := newDesk(t)
	d.ask(base())
	p := d.one()
	o := d.ask(base(func(q *Question) { q.Ancestors = nil }))
	q := d.List()[1]
	d.book.set(nil, func(r ledger.Record) {
		if r.Verdict == ledger.Denied {
			d.answer(p, yes(p, Session))
		}
	})
	d.answer(q, no(q, Once))
	if out := got(t, o); out.Denial.Code != "net.hold_denied" {
		t.Errorf("got %+v", out)
	}
}
