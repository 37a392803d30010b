package holds

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// TestUnfit: what can't be shown, written and read back as it is, is refused
// instead of being asked for as something else.
func TestUnfit(t *testing.T) {
	for name, edit := range map[string]func(*Question){
		"long call":      func(q *Question) { q.Call = strings.Repeat("x", maxQuestion) },
		"long ancestors": func(q *Question) { q.Ancestors = []string{strings.Repeat("/x", 3000), strings.Repeat("/x", 3000)} },
		"bare call":      func(q *Question) { q.Call, q.Change = "GET /", policies.HostRule{} },
		"binary bytes":   func(q *Question) { q.Binary = "/tmp/\xff" },
		"ancestor bytes": func(q *Question) { q.Ancestors = []string{"/tmp/\xff"} },
		"ancestor NUL":   func(q *Question) { q.Ancestors = []string{"/a\x00/b"} },
		"glob":           func(q *Question) { q.Binary = "/**" },
		"glob 2":         func(q *Question) { q.Binary = "/tmp/[a-z]" },
		"host case":      func(q *Question) { q.Host = "New.example" },
		"any host":       func(q *Question) { q.Host = "*" },
		"no host":        func(q *Question) { q.Host = "" },
		"port":           func(q *Question) { q.Port = 65536 },
		"agent":          func(q *Question) { q.Agent = "" },
	} {
		d := newDesk(t)
		if out := d.now(base(edit)); out.Denial.Code != "net.hold_unfit" || len(d.List()) != 0 {
			t.Errorf("%s: got %+v", name, out)
		}
	}
}

// TestFlood: an agent can fill its own list only, pushes nothing out, and the
// file has a bound.
func TestFlood(t *testing.T) {
	d := newDesk(t, func(c *Config) { c.PerAgent = 4 })
	first := base(func(q *Question) { q.Host = "first.example" })
	d.ask(first)
	id := d.one().ID
	for i := range 200 {
		q := base(func(q *Question) { q.Host = fmt.Sprintf("n%d.example", i) })
		asked := d.asks(q)
		if want := i < 3; asked != want {
			t.Fatalf("request %d asked: %v, want %v", i, asked, want)
		}
	}
	for i := range 50 { // other programs, chains and policies neither
		d.asks(base(func(q *Question) { q.Host, q.Binary = "first.example", fmt.Sprint("/bin/", i) }))
		d.asks(base(func(q *Question) { q.Host, q.Ancestors = "first.example", []string{fmt.Sprint("/bin/", i)} }))
	}
	if ps := d.List(); len(ps) != 4 || ps[0].ID != id || ps[0].Waiting != 1 {
		t.Errorf("pending %+v", ps)
	}
	if !d.asks(base(func(q *Question) { q.Agent = "a2" })) {
		t.Error("another agent is not asked for")
	}
	fi, err := os.Stat(d.c.File)
	if err != nil || fi.Size() > 5*(maxQuestion+4096) || fi.Mode().Perm() != 0o600 {
		t.Errorf("the file: %+v, %v", fi, err)
	}
	held := 0
	for _, r := range d.book.rs {
		if r.Verdict == ledger.Held {
			held++
		}
	}
	if held != 5 {
		t.Errorf("%d held on record, want 5", held)
	}
}

// The bound holds also for those that ask at the same moment.
func TestFloodAtOnce(t *testing.T) {
	d := newDesk(t, func(c *Config) { c.PerAgent = 4 })
	var wg, all sync.WaitGroup
	all.Add(50)
	d.book.set(nil, func(ledger.Record) { all.Done(); all.Wait() }) // nobody is in the book before all are on record
	ctx, cancel := context.WithCancel(t.Context())
	for i := range 50 {
		wg.Go(func() {
			d.Ask(ctx, base(func(q *Question) { q.Host = fmt.Sprintf("n%d.example", i) }), nil)
		})
	}
	eventually(t, "four wait", func() bool { return d.waiting() >= 4 })
	cancel()
	wg.Wait()
	if n := len(d.List()); n != 4 {
		t.Errorf("%d pending, want 4", n)
	}
}

// Answers that stand have a bound too.
func TestManyGrants(t *testing.T) {
	d := newDesk(t, func(c *Config) { c.File = "" })
	for i := range maxGrants {
		g := Grant{ID: fmt.Sprint(i), Subject: Subject{Agent: "a1", Host: "x.example", Port: i + 1}, Allow: true, Scope: Session, Policy: "p", Life: "boot/1", Operator: "ada"}
		d.grants[g.ID] = g
	}
	d.ask(base())
	p := d.one()
	if err := d.Answer(t.Context(), p.ID, yes(p, Session)); err == nil || !strings.Contains(err.Error(), "revoke some") {
		t.Errorf("got %v", err)
	}
	d.answer(p, yes(p, Once))
}
