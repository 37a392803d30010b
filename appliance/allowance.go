package appliance

import (
	"context"
	"log/slog"
	"path"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/service"
)

// Whatever an agent does leaves records, so an agent could fill the ledger's
// disk, or keep the ledger so busy that others wait for it. Each has an
// allowance of bytes; one that has spent it is slowed down to the pace at which
// the allowance comes back. Nothing is dropped. The guard freezes the
// agent, egress and the router answer it late.

// Of an agent's allowance, config.RecordBytes, the guard's records may take a
// half, and those of egress and of the router a quarter each: they don't know
// of one another.
var shares = map[string]int64{"guard": 2, "egress": 4, "router": 4}

// allowance counts for one service what it writes about each agent. It is safe
// for concurrent use.
type allowance struct {
	burst float64 // bytes at once; the same comes back in an hour

	mu     sync.Mutex
	agents map[string]*account
}

type account struct {
	left float64 // bytes; below zero: a debt
	at   time.Time
	told time.Time // until when the agent waits, as far as was told
}

// newAllowance is a service's share of bytes.
func newAllowance(role string, bytes int64) *allowance {
	return &allowance{burst: float64(bytes / shares[role]), agents: map[string]*account{}}
}

// maxAccounts is when accounts that are full again are forgotten.
const maxAccounts = 1024

// shortest is the shortest wait: one record of it is a small part of what is
// saved.
const shortest = time.Second

// spend takes n bytes at now, and says how long the agent has to wait, and
// whether that is a new wait.
func (a *allowance) spend(agent string, n int, now time.Time) (wait time.Duration, fresh bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.agents[agent]
	if c == nil {
		a.tidy(now)
		c = &account{left: a.burst, at: now}
		a.agents[agent] = c
	}
	c.left, c.at = a.now(c, now)-float64(n), now
	if c.left >= 0 {
		return 0, false
	}
	wait = max(shortest, time.Duration(-c.left/a.burst*float64(time.Hour)))
	fresh = !now.Before(c.told)
	c.told = now.Add(wait)
	return wait, fresh
}

// owes says how long it takes until an agent may write n bytes, at most burst.
func (a *allowance) owes(agent string, n int, now time.Time) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.agents[agent]
	if c == nil {
		return 0
	}
	return max(0, time.Duration((float64(n)-a.now(c, now))/a.burst*float64(time.Hour)))
}

// now is what is left in an account; a.mu is held.
func (a *allowance) now(c *account, now time.Time) float64 {
	return min(a.burst, c.left+a.burst*max(0, now.Sub(c.at)).Hours())
}

func (a *allowance) tidy(now time.Time) {
	if len(a.agents) < maxAccounts {
		return
	}
	for agent, c := range a.agents {
		if a.now(c, now) >= a.burst {
			delete(a.agents, agent)
		}
	}
}

// weigh adds up about what records take on the disk, by agent.
func weigh(rs []ledger.Record) map[string]int {
	by := map[string]int{}
	for i := range rs {
		if r := &rs[i]; r.Agent != "" {
			by[r.Agent] += weight(r)
		}
	}
	return by
}

// What the frame of an event and each of its attributes take (TestWeight).
const (
	frameWeight = 570
	attrWeight  = 16
)

func weight(r *ledger.Record) int {
	n := frameWeight + escaped(path.Base(r.Path)) // which stands there twice
	for _, s := range []string{r.Agent, r.Policy, r.Reason, r.Detail, r.Process.Comm, r.Path, r.Host, r.Model} {
		n += escaped(s)
	}
	for _, v := range r.Attrs {
		n += attrWeight
		if s, ok := v.(string); ok {
			n += escaped(s)
		}
	}
	for _, a := range r.More {
		n += attrWeight + escaped(a.Text)
	}
	return min(n, 64<<10) // the ledger cuts longer ones
}

// escaped is how many bytes of JSON a string takes.
func escaped(s string) int {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			return i + escapedRunes(s[i:])
		}
	}
	return len(s)
}

func escapedRunes(s string) (n int) {
	for _, c := range s {
		switch {
		case c < ' ' || c == utf8.RuneError || c == '\u2028' || c == '\u2029':
			n += 6
		case c == '"' || c == '\\':
			n += 2
		default:
			n += utf8.RuneLen(c)
		}
	}
	return n
}

// callPaced (pacing) a service tells the supervisor: an agent has to wait.
const callPaced = "paced"

type pacing struct {
	Agent string        `json:"agent"`
	Wait  time.Duration `json:"wait"`
	Grown bool          `json:"grown,omitempty"` // it is a wait that was told already, and is longer now
}

// longest is the longest wait that a service is believed. One that lasts longer
// is told again when it has grown, or is over.
const longest = 24 * time.Hour

// tellPaced tells it. What can't be told is no reason to stop: the wait is what
// counts.
func tellPaced(c *service.Conn, p pacing) {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	if err := c.Call(ctx, callPaced, p, nil); err != nil {
		slog.Warn("an agent's pause could not be told", "agent", p.Agent, "error", err)
	}
}

func tellPacedBy(s *service.Self) func(string, time.Duration) {
	return func(agent string, wait time.Duration) { tellPaced(s.Conn, pacing{Agent: agent, Wait: wait}) }
}

// pacedLog is a ledger that answers late who has written too much: what waits
// for the answer is a connection, or a model call.
type pacedLog struct {
	ledger.Recorder
	allow *allowance
	tell  func(agent string, wait time.Duration)
}

// Record returns when rs are durable, and then the wait is over or ctx is.
func (p *pacedLog) Record(ctx context.Context, rs ...ledger.Record) error {
	wait, err := p.write(ctx, rs)
	if err != nil || wait == 0 {
		return err
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	return nil
}

// RecordNow is Record without the wait, for what an operator causes: a reload
// must not take as long as its agent has to wait.
func (p *pacedLog) RecordNow(ctx context.Context, rs ...ledger.Record) error {
	_, err := p.write(ctx, rs)
	return err
}

// write records rs, counts them, and says how long the agent has to wait.
func (p *pacedLog) write(ctx context.Context, rs []ledger.Record) (wait time.Duration, err error) {
	if err := p.Recorder.Record(ctx, rs...); err != nil {
		return 0, err
	}
	for agent, n := range weigh(rs) {
		w, fresh := p.allow.spend(agent, n, time.Now())
		if fresh {
			go p.tell(agent, w)
		}
		wait = max(wait, w)
	}
	return wait, nil
}

// paced is told by a service that an agent has to wait: that is a budget hit,
// which is recorded at most once a minute.
func (a *Appliance) paced(r *service.Request) error {
	var q pacing
	if err := r.Decode(&q); err != nil {
		return err
	}
	ag, err := a.agent(q.Agent)
	if err != nil {
		return nil // it was removed meanwhile
	}
	ag.mu.Lock()
	if !q.Grown {
		ag.pauses++
	}
	if until := time.Now().Add(min(max(q.Wait, 0), longest)); until.After(ag.paused) {
		ag.paused = until
	}
	ag.mu.Unlock()
	if !q.Grown {
		go a.strike(ag, "records", 1, "it causes more records than the ledger takes of one agent, and is slowed down; recordMiB of the configuration says how many")
	}
	return nil
}

// startWeight is what an agent must be able to write to be started, in bytes:
// its launcher causes some 2 KiB of records, and under full audit 0.8 KiB more
// for each path that the policy names.
const startWeight = 64 << 10

// solvent refuses an agent whose launcher the guard would freeze, see spent: it
// could not answer. What the last run did is paid for: its stop waits until the
// guard has recorded all of it.
func (a *Appliance) solvent(ctx context.Context, name string) error {
	if a.tierNow() == guard.TierNone {
		return nil // nobody watches it, and nobody freezes it
	}
	var wait time.Duration
	if err := a.part("guard").call(ctx, callOwes, ref{name}, &wait); err != nil {
		return control.Errorf("refused", "the guard does not tell whether agent %s may run: %v; launch it again", name, err)
	}
	if wait == 0 {
		return nil
	}
	wait = wait.Truncate(time.Second) + time.Second
	return control.Errorf("refused", "agent %s is in debt of records: it has caused more than recordMiB of the configuration (%d) lets it, and stands still until %s (in %v); launch it again then, or raise recordMiB and start 'clawbox serve' again, which ends all agents",
		name, a.cfg.RecordBytes()>>20, time.Now().Add(wait).UTC().Format(time.RFC3339), wait)
}

// freezes are the guard's waits: whole scopes stand still.
type freezes struct {
	mu    sync.Mutex
	until map[string]time.Time
}

// extend says that an agent waits until then, and whether it did not yet.
func (f *freezes) extend(agent string, until time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.until == nil {
		f.until = map[string]time.Time{}
	}
	_, on := f.until[agent]
	f.until[agent] = until
	return !on
}

// over says how long an agent waits still, and forgets the wait when it is none.
func (f *freezes) over(agent string, now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	left := f.until[agent].Sub(now)
	if left <= 0 {
		delete(f.until, agent)
		return 0
	}
	return left
}

// drop forgets the wait of an agent that ended. What it has spent stays spent.
func (f *freezes) drop(agent string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.until, agent)
}

// spent holds the agents still that the guard has recorded too much of.
func (gs *guardService) spent(rs []ledger.Record) {
	for agent, n := range weigh(rs) {
		now := time.Now()
		wait, fresh := gs.allow.spend(agent, n, now)
		if wait == 0 {
			continue
		}
		if fresh {
			go tellPaced(gs.self.Conn, pacing{Agent: agent, Wait: wait})
		}
		if gs.freezes.extend(agent, now.Add(wait)) {
			gs.hold(agent, wait)
		}
	}
}

// hold freezes a scope, or has it stopped where that can't be, and lets it go
// when its wait is over.
func (gs *guardService) hold(agent string, wait time.Duration) {
	gs.mu.Lock()
	w := gs.watches[agent]
	gs.mu.Unlock()
	if w == nil { // it has ended, or is about to be watched
		gs.freezes.over(agent, time.Now().Add(wait))
		return
	}
	if !w.Pause(true) {
		slog.Error("an agent that writes too many records can't be slowed down, and is stopped", "agent", agent)
		go gs.runaway(agent)
		return
	}
	var later func()
	later = func() {
		// What was in the rings when it was frozen made the wait longer.
		if left := gs.freezes.over(agent, time.Now()); left > 0 {
			go tellPaced(gs.self.Conn, pacing{Agent: agent, Wait: left, Grown: true})
			time.AfterFunc(left, later)
			return
		}
		w.Pause(false)
	}
	time.AfterFunc(wait, later)
}
