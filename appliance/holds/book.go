package holds

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// Config is what a Book needs.
type Config struct {
	// File keeps what is pending and what was answered; its folder must
	// exist. "": memory only, and always is refused without Always.
	File     string
	Recorder ledger.Recorder
	Timeout  time.Duration // how long a request waits; 0: two minutes
	PerAgent int           // pending requests of one agent; 0: 32
	// Always makes a policy change that an operator asked for, and returns
	// once it is in force. nil: the approval is kept in File instead.
	Always func(ctx context.Context, agent string, r policies.HostRule, operator string) error
}

const (
	credit    = time.Minute // how long an answer for nobody waits for the next connection
	sulk      = time.Minute // how long a denial is remembered, so that a loop does not ask again
	maxGrants = 1024        // answers of one agent that stand
	maxReason = 200         // bytes of an operator's reason
)

// Book keeps held requests and the operators' answers. It is safe for
// concurrent use.
type Book struct {
	c     Config
	epoch string // of this process, for Watch

	// mu guards the rest. It is held while the file is written: what is asked
	// here waits for a person anyway, and nobody sees what is not on disk.
	mu      sync.Mutex
	holds   map[key]*hold
	grants  map[string]Grant // by id
	version uint64           // grows with every change
	moved   chan struct{}    // closed by the next change
}

// hold is a Pending with what belongs to it in this process.
type hold struct {
	Pending
	busy  bool          // an answer is being written
	late  bool          // the time ended while busy
	done  chan struct{} // closed when out is set
	out   Outcome
	timer *time.Timer
}

// Open reads the file. One that can't be read in full is an error, not an
// empty book; one that is not there is empty.
func Open(c Config) (*Book, error) {
	if c.Recorder == nil {
		return nil, errors.New("holds: want a ledger recorder, got none: no event, no action")
	}
	if c.Timeout <= 0 {
		c.Timeout = 2 * time.Minute
	}
	if c.PerAgent <= 0 {
		c.PerAgent = 32
	}
	s, err := load(c.File)
	if err != nil {
		return nil, err
	}
	b := &Book{c: c, epoch: newID(), holds: map[key]*hold{}, grants: map[string]Grant{}, moved: make(chan struct{})}
	b.mu.Lock() // clocks that are over already wait for the rest
	defer b.mu.Unlock()
	for _, g := range s.Grants {
		b.grants[g.ID] = g
	}
	for _, p := range s.Pending {
		b.holds[p.key()] = b.newHold(p)
	}
	return b, nil
}

// newHold starts a request's clock. The caller holds mu, and puts it into the book.
func (b *Book) newHold(p Pending) *hold {
	x := &hold{Pending: p, done: make(chan struct{})}
	x.timer = time.AfterFunc(time.Until(p.Until), func() { b.expire(x) })
	return x
}

// List returns what waits, oldest first.
func (b *Book) List() []Pending {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.list()
}

func (b *Book) list() []Pending {
	out := []Pending{}
	for _, x := range b.holds {
		out = append(out, x.Pending)
	}
	slices.SortFunc(out, func(a, b Pending) int {
		return strings.Compare(a.Since.Format(time.RFC3339Nano)+a.ID, b.Since.Format(time.RFC3339Nano)+b.ID)
	})
	return out
}

// Watch is List once it is not at the version after any more, or ctx ends. It
// returns the version for the next call; any other string, "" too, returns at
// once.
func (b *Book) Watch(ctx context.Context, after string) ([]Pending, string) {
	for {
		b.mu.Lock()
		ps, v, moved := b.list(), b.epoch+"-"+strconv.FormatUint(b.version, 10), b.moved
		b.mu.Unlock()
		if v != after || ctx.Err() != nil {
			return ps, v
		}
		select {
		case <-moved:
		case <-ctx.Done():
		}
	}
}

// bump tells who watches. The caller holds mu.
func (b *Book) bump() {
	b.version++
	close(b.moved)
	b.moved = make(chan struct{})
}

// change applies f and writes the file; when that fails nothing has changed.
// The caller holds mu; f may not close channels.
func (b *Book) change(f func()) error {
	hs, gs := maps.Clone(b.holds), maps.Clone(b.grants)
	f()
	if err := b.save(); err != nil {
		b.holds, b.grants = hs, gs
		return err
	}
	b.bump()
	return nil
}

// finish wakes who waits on x, which is in the book no more. The caller holds mu.
func (b *Book) finish(x *hold, out Outcome) {
	x.timer.Stop()
	x.out = out
	close(x.done)
}

// drop takes hs out of the book and finishes them, also when the file can't
// be written: a denial needs no file. The caller holds mu.
func (b *Book) drop(out func(*hold) Outcome, hs ...*hold) error {
	for _, x := range hs {
		delete(b.holds, x.key())
		b.finish(x, out(x))
	}
	b.bump()
	return b.save()
}

// expire ends a request that nobody answered.
func (b *Book) expire(x *hold) {
	b.mu.Lock()
	x.late = x.busy // the answer under way decides
	mine := !x.busy && b.holds[x.key()] == x
	if mine {
		_ = b.drop(func(x *hold) Outcome { return timedOut(x.Subject) }, x)
	}
	b.mu.Unlock()
	if mine {
		b.note(timeout(x.Pending))
	}
}

// note records what needs no permission: nothing was let through.
func (b *Book) note(r ledger.Record) {
	ctx, cancel := context.WithTimeout(context.Background(), recordTimeout)
	defer cancel()
	_ = b.c.Recorder.Record(ctx, r)
}

// Begin tells that a sandbox of the agent starts: answers that were for
// another one go.
func (b *Book) Begin(agent, life string) error { return b.end(agent, life, true) }

// Forget ends an agent's session: its answers for the session go and who
// waits is refused. What was pending stays listed until its time is over.
func (b *Book) Forget(agent string) error { return b.end(agent, "", false) }

// end drops what belongs to other lives of the agent than life.
func (b *Book) end(agent, life string, keep bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	dead := func(l string) bool { return !keep || l != life }
	n := len(b.grants)
	maps.DeleteFunc(b.grants, func(_ string, g Grant) bool { return g.Agent == agent && g.Scope == Session && dead(g.Life) })
	n -= len(b.grants)
	for k, x := range b.holds {
		if k.Agent != agent || x.Ended || !dead(x.Life) {
			continue
		}
		y := &hold{Pending: x.Pending, done: make(chan struct{})}
		y.Ended, y.Waiting = true, 0
		y.timer = time.AfterFunc(time.Until(x.Until), func() { b.expire(y) })
		b.holds[k] = y
		b.finish(x, Outcome{Denial: Denial{Code: "net.hold_gone", Detail: "the sandbox ended"}})
		n++
	}
	if n == 0 {
		return nil
	}
	b.bump()
	if err := b.save(); err != nil {
		return fmt.Errorf("holds: end the session of %s: %w", agent, err)
	}
	return nil
}

// newID returns 80 random bits.
func newID() string { return strings.ToLower(rand.Text()[:16]) }
