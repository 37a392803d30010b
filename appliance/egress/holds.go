package egress

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/clawbox/clawbox/appliance/ledger"
)

// HoldsConfig is what Holds need.
type HoldsConfig struct {
	// File keeps approvals for always; its folder must exist. "": always is refused.
	File     string
	Recorder ledger.Recorder
	Timeout  time.Duration // how long a connection waits; 0: two minutes
	PerAgent int           // pending requests of one agent; 0: 32
}

const (
	credit = time.Minute // how long an answer for nobody waits for the next connection
	sulk   = time.Minute // how long a denial is remembered, so that a loop does not ask again
)

// Holds keeps held connections and the operators' answers. An answer never
// overrides a deny rule or the address guard: only what the policy would hold
// comes here. It is safe for concurrent use.
//
// Every held request and every answer is in the ledger before it has effect.
type Holds struct {
	c HoldsConfig

	mu      sync.Mutex // guards the rest
	pending map[key]*hold
	session map[key]bool      // allowed or denied until Forget
	credits map[key]time.Time // admits one connection until then
	sulks   map[key]time.Time // denies until then
	always  map[standing]Approval
	saving  sync.Mutex // held while always is changed and written; before mu
}

// key is a destination of an agent.
type key struct {
	agent, host string
	port        int
}

// OpenHolds reads the approvals for always. A file that can't be read in full
// is an error, not an empty list.
func OpenHolds(c HoldsConfig) (*Holds, error) {
	if c.Recorder == nil {
		return nil, errors.New("egress: holds: want a ledger recorder, got none: no event, no action")
	}
	if c.Timeout <= 0 {
		c.Timeout = 2 * time.Minute
	}
	if c.PerAgent <= 0 {
		c.PerAgent = 32
	}
	always, err := loadApprovals(c.File)
	if err != nil {
		return nil, err
	}
	return &Holds{
		c: c, always: always, pending: map[key]*hold{}, session: map[key]bool{},
		credits: map[key]time.Time{}, sulks: map[key]time.Time{},
	}, nil
}

// List returns what waits, oldest first.
func (h *Holds) List() []Pending {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := []Pending{}
	for _, x := range h.pending {
		out = append(out, x.Pending)
	}
	slices.SortFunc(out, func(a, b Pending) int { return a.Since.Compare(b.Since) })
	return out
}

// Answer decides the pending request id. It returns when the answer is in the
// ledger (and, for always, on disk) and has taken effect; after an error the
// request is still pending.
func (h *Holds) Answer(ctx context.Context, id string, a Answer) error {
	if err := h.check(a); err != nil {
		return err
	}
	x, err := h.take(id)
	if err != nil {
		return err
	}
	err = h.c.Recorder.Record(ctx, x.record(a))
	if err == nil && a.Allow && a.Scope == Always {
		err = h.remember(x, a)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	x.busy = false
	if err != nil {
		if x.late {
			h.finish(x, timedOut(x.q.key))
		}
		return fmt.Errorf("answer %s: %w", id, err)
	}
	if h.pending[x.q.key] != x && a.Scope != Always {
		return fmt.Errorf("%w: the sandbox of %s ended meanwhile", ErrNoPending, x.Agent)
	}
	h.apply(x, a)
	return nil
}

// check refuses answers that mean nothing.
func (h *Holds) check(a Answer) error {
	switch {
	case a.Scope != Once && a.Scope != Session && a.Scope != Always:
		return fmt.Errorf("%w: got scope %q, want once, session or always", ErrAnswer, a.Scope)
	case !a.Allow && a.Scope == Always:
		return fmt.Errorf("%w: a denial for ever is a deny rule; add it to the policy", ErrAnswer)
	case a.Scope == Always && h.c.File == "":
		return fmt.Errorf("%w: this appliance keeps no approvals; use once or session", ErrAnswer)
	case strings.TrimSpace(a.Operator) == "":
		return fmt.Errorf("%w: got no operator, want the name of who answers", ErrAnswer)
	}
	return nil
}

// take marks a pending request as being answered.
func (h *Holds) take(id string) (*hold, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, x := range h.pending {
		switch {
		case x.ID != id:
		case x.busy:
			return nil, fmt.Errorf("%w: %s is being answered by somebody else", ErrNoPending, id)
		default:
			x.busy = true
			return x, nil
		}
	}
	return nil, fmt.Errorf("%w: got %.40q; it was answered or timed out, list the held requests again", ErrNoPending, id)
}

// apply makes a recorded answer effective. The caller holds mu.
func (h *Holds) apply(x *hold, a Answer) {
	k := x.q.key
	res := answered{scope: a.Scope}
	switch {
	case !a.Allow:
		res.why = deniedBy(k)
		h.sulks[k] = time.Now().Add(sulk)
		if a.Scope == Session {
			h.session[k] = false
		}
	case a.Scope == Session:
		h.session[k] = true
	case a.Scope == Once && x.Waiting == 0:
		h.credits[k] = time.Now().Add(credit)
	}
	h.finish(x, res)
}

// finish wakes who waits on x. The caller holds mu.
func (h *Holds) finish(x *hold, res answered) {
	if h.pending[x.q.key] == x {
		delete(h.pending, x.q.key)
		x.timer.Stop()
		x.res = res
		close(x.done)
	}
}

// ask waits for an answer to q. It returns early when ctx ends (the client
// hung up) or the policy changes.
func (h *Holds) ask(ctx context.Context, q question, changed <-chan struct{}) answered {
	x, res, ok := h.join(q)
	if !ok {
		return res
	}
	if x == nil {
		if !h.recorded(ctx, q) {
			return answered{why: noLedger()}
		}
		if x, res, ok = h.open(q); !ok {
			return res
		}
	}
	select {
	case <-x.done:
		return x.res
	case <-changed:
		res = answered{again: true}
	case <-ctx.Done():
		res = answered{why: refuse("net.hold_gone", "stay connected until the operator answers", "the client went away while it was held")}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	x.Waiting--
	return res
}

// recorded writes that q is held. The client hanging up does not stop that.
func (h *Holds) recorded(ctx context.Context, q question) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	return h.c.Recorder.Record(ctx, q.record()) == nil
}

// join answers q from what is known (not ok), or counts it in at the pending
// request that is there.
func (h *Holds) join(q question) (x *hold, res answered, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if res, known := h.known(q); known {
		return nil, res, false
	}
	if x = h.pending[q.key]; x != nil {
		x.Waiting++
	} else if h.count(q.agent) >= h.c.PerAgent {
		return nil, full(q.key), false
	}
	return x, res, true
}

// open is join after the request was recorded: it makes the pending request.
func (h *Holds) open(q question) (*hold, answered, bool) {
	if x, res, ok := h.join(q); x != nil || !ok {
		return x, res, ok // an answer, or another connection, was faster
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	x := h.pending[q.key]
	if x == nil {
		x = &hold{q: q, done: make(chan struct{}), Pending: Pending{
			ID: strings.ToLower(rand.Text()[:16]), Agent: q.agent, Host: q.host, Port: q.port, Process: describe(q.proc),
			Since: time.Now(), Change: change(q.host, q.port),
		}}
		x.timer = time.AfterFunc(h.c.Timeout, func() { h.expire(x) })
		h.pending[q.key] = x
	}
	x.Waiting++
	return x, answered{}, true
}

// known answers q from earlier answers. The caller holds mu.
func (h *Holds) known(q question) (answered, bool) {
	now := time.Now()
	if allow, ok := h.session[q.key]; ok && !allow || now.Before(h.sulks[q.key]) {
		return answered{why: deniedBy(q.key)}, true
	} else if ok {
		return answered{scope: Session}, true
	}
	if _, ok := h.always[standing{q.agent, q.policy, q.host, q.port}]; ok {
		return answered{scope: Always}, true
	}
	if now.Before(h.credits[q.key]) {
		delete(h.credits, q.key)
		return answered{scope: Once}, true
	}
	return answered{}, false
}

// standing says whether an approval covers connections that are open already.
func (h *Holds) standing(k key, policy string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if allow, ok := h.session[k]; ok {
		return allow
	}
	_, ok := h.always[standing{k.agent, policy, k.host, k.port}]
	return ok
}

// count is how many requests of the agent are pending. The caller holds mu.
func (h *Holds) count(agent string) (n int) {
	for k := range h.pending {
		if k.agent == agent {
			n++
		}
	}
	return n
}

// expire ends a request that nobody answered.
func (h *Holds) expire(x *hold) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if x.busy {
		x.late = true // the answer under way decides
		return
	}
	h.finish(x, timedOut(x.q.key))
}

// Forget ends an agent's session: its answers for once and for the session go,
// and what it waits for is refused.
func (h *Holds) Forget(agent string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, x := range h.pending {
		if k.agent == agent {
			h.finish(x, answered{why: refuse("net.hold_gone", "", "the sandbox ended")})
		}
	}
	for k := range h.session {
		if k.agent == agent {
			delete(h.session, k)
		}
	}
	for _, m := range []map[key]time.Time{h.credits, h.sulks} {
		for k := range m {
			if k.agent == agent {
				delete(m, k)
			}
		}
	}
}
