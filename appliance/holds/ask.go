package holds

import (
	"context"
	"time"
)

// Ask waits for an answer to q. It returns early when ctx ends (the client
// hung up) or the policy changes.
func (b *Book) Ask(ctx context.Context, q Question, changed <-chan struct{}) Outcome {
	if err := q.complete(); err != nil {
		return unfit(err)
	}
	x, out := b.join(q)
	if x == nil && out == nil {
		if !b.recorded(ctx, q) {
			return denied("ledger.unavailable", "ask the operator to look at the appliance's disk", "the ledger did not take the record")
		}
		x, out = b.open(q)
	}
	if out != nil {
		return *out
	}
	select {
	case <-x.done:
		return x.out
	case <-changed:
		b.leave(x)
		return Outcome{Again: true}
	case <-ctx.Done():
		b.leave(x)
		return denied("net.hold_gone", "stay connected until the operator answers", "the client went away while it was held")
	}
}

// recorded writes that q is held. The client hanging up does not stop that.
func (b *Book) recorded(ctx context.Context, q Question) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	return b.c.Recorder.Record(ctx, q.record()) == nil
}

func (b *Book) leave(x *hold) {
	b.mu.Lock()
	defer b.mu.Unlock()
	x.Waiting--
	b.bump()
}

// join answers q from what is known, or counts it in at the pending request
// that is there; neither means that q is new.
func (b *Book) join(q Question) (*hold, *Outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.joined(q)
}

// joined is join for a caller who holds mu.
func (b *Book) joined(q Question) (*hold, *Outcome) {
	if out := b.known(q); out != nil {
		return nil, out
	}
	x := b.holds[q.key()]
	switch {
	case x != nil && x.same(q):
		x.Waiting++
		b.bump()
		return x, nil
	case x == nil && b.count(q.Agent) >= b.c.PerAgent:
		out := denied("net.hold_full", "wait until the operator has answered", "too many requests wait for an operator already; %s is not asked for", q.target())
		return nil, &out
	}
	return nil, nil
}

func (q Question) key() key { return key{q.Subject, chain(q.Ancestors)} }

// same says whether what was shown for x is still so for q.
func (x *hold) same(q Question) bool {
	return x.PolicyDigest == q.Digest && x.Policy == q.Policy && x.Life == q.Life && !x.Ended
}

// open is join after the request was recorded: it makes the pending request,
// in place of one that is not true any more.
func (b *Book) open(q Question) (*hold, *Outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if x, out := b.joined(q); x != nil || out != nil {
		return x, out // an answer, or another connection, was faster
	}
	k := q.key()
	old := b.holds[k]
	p, err := newPending(q, time.Now(), b.c.Timeout)
	if err != nil {
		out := unfit(err)
		return nil, &out
	}
	x := b.newHold(p)
	x.Waiting = 1
	if err := b.change(func() { b.holds[k] = x }); err != nil {
		x.timer.Stop()
		out := denied("net.hold_lost", "ask the operator to look at the appliance's disk", "the request could not be kept: %v", err)
		return nil, &out
	}
	if old != nil {
		b.finish(old, Outcome{Again: true})
	}
	return x, nil
}

// known answers q from earlier answers. The caller holds mu.
func (b *Book) known(q Question) *Outcome {
	g, ok := b.grant(q)
	if !ok {
		return nil
	}
	out := Outcome{Allow: true, Scope: g.Scope}
	switch {
	case !g.Allow:
		out = deniedBy(q.Subject, g.Reason)
	case g.Scope == Once: // it works once, also over a restart
		if err := b.change(func() { delete(b.grants, g.ID) }); err != nil {
			out = denied("net.hold_lost", "ask the operator to look at the appliance's disk", "the approval could not be used up: %v", err)
		}
	}
	return &out
}

// count is how many requests of the agent are pending. The caller holds mu.
func (b *Book) count(agent string) (n int) {
	for k := range b.holds {
		if k.Agent == agent {
			n++
		}
	}
	return n
}
