package holds

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode"
)

// Answer decides the pending request id. It returns when the answer is on the
// ledger and on disk (for Always: in the policy) and has taken effect; after
// an error it has none.
func (b *Book) Answer(ctx context.Context, id string, a Answer) error {
	if err := b.check(a); err != nil {
		return err
	}
	x, err := b.take(id, a)
	if err != nil {
		return err
	}
	// Who asks may hang up; the record and its effect belong together.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
	defer cancel()
	if err = b.c.Recorder.Record(ctx, x.answered(a)); err == nil {
		err = b.effect(ctx, x, a)
	}
	if err != nil {
		b.release(x)
		b.note(x.failed(a, err))
		return fmt.Errorf("answer %s: %w", id, err)
	}
	return nil
}

// check refuses answers that mean nothing.
func (b *Book) check(a Answer) error {
	switch {
	case a.Scope != Once && a.Scope != Session && a.Scope != Always:
		return fmt.Errorf("%w: got scope %.20q, want once, session or always", ErrAnswer, a.Scope)
	case !a.Allow && a.Scope == Always:
		return fmt.Errorf("%w: a denial for ever is a deny rule; add it to the policy", ErrAnswer)
	case a.Scope == Always && b.c.File == "" && b.c.Always == nil:
		return fmt.Errorf("%w: this appliance keeps no approvals; use once or session", ErrAnswer)
	case strings.TrimSpace(a.Operator) == "":
		return fmt.Errorf("%w: got no operator, want the name of who answers", ErrAnswer)
	case len(a.Reason) > maxReason || !plain(a.Reason) || !plain(a.Operator):
		return fmt.Errorf("%w: a reason is at most %d bytes of printable text, and so is an operator's name; got %.40q by %.40q", ErrAnswer, maxReason, a.Reason, a.Operator)
	}
	return nil
}

// plain says whether s can be shown as it is.
func plain(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) && len(s) <= maxReason
}

// take marks a pending request as being answered.
func (b *Book) take(id string, a Answer) (*hold, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, x := range b.holds {
		switch {
		case x.ID != id:
			continue
		case x.Digest != a.Digest:
			return nil, fmt.Errorf("%w: got the digest %.80q for %s, want %s; list the held requests again", ErrChanged, a.Digest, id, x.Digest)
		case x.busy:
			return nil, fmt.Errorf("%w: %s is being answered by somebody else", ErrNoPending, id)
		case a.Scope == Session && x.Ended:
			return nil, fmt.Errorf("%w: the sandbox that asked is gone, and its session with it; answer once or always", ErrAnswer)
		case a.Scope == Session && x.Life == "":
			return nil, fmt.Errorf("%w: this sandbox can't be told from the agent's next one, so there is no session; answer once or always", ErrAnswer)
		case a.Scope != Once && b.standingOf(x.Agent) >= maxGrants:
			return nil, fmt.Errorf("%w: %d answers for %s stand already; revoke some, or put them into its policy", ErrAnswer, maxGrants, x.Agent)
		}
		x.busy = true
		return x, nil
	}
	return nil, fmt.Errorf("%w: nothing is held under %.40q; it was answered, replaced or timed out, list the held requests again", ErrNoPending, id)
}

func (b *Book) standingOf(agent string) (n int) {
	for _, g := range b.standing() {
		if g.Agent == agent {
			n++
		}
	}
	return n
}

// effect makes a recorded answer true.
func (b *Book) effect(ctx context.Context, x *hold, a Answer) error {
	byPolicy := a.Scope == Always && b.c.Always != nil
	if byPolicy {
		if err := b.c.Always(ctx, x.Agent, x.Allow, a.Operator); err != nil {
			return fmt.Errorf("change the policy of %s: %w", x.Agent, err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.holds[x.key()] != x {
		if byPolicy {
			return nil // the new policy speaks for itself
		}
		return fmt.Errorf("%w: %s changed its policy or its sandbox ended meanwhile", ErrNoPending, x.Agent)
	}
	g, keep := x.grant(a)
	err := b.change(func() {
		delete(b.holds, x.key())
		if keep && !byPolicy {
			b.grants[g.ID] = g
		}
	})
	if err != nil && byPolicy {
		delete(b.holds, x.key()) // the policy allows it already
	} else if err != nil {
		return err
	}
	out := Outcome{Allow: true, Scope: a.Scope}
	if !a.Allow {
		out = deniedBy(x.Subject, a.Reason)
	}
	b.finish(x, out)
	b.others(g, out)
	return nil
}

// grant is what stands after a; not all answers leave something.
func (x *hold) grant(a Answer) (g Grant, keep bool) {
	now := time.Now().UTC().Round(0)
	g = Grant{ID: newID(), Subject: x.Subject, Allow: a.Allow, Scope: a.Scope, Policy: x.Policy, Operator: a.Operator, Reason: a.Reason, Time: now}
	switch a.Scope {
	case Once:
		g.Until, g.PolicyDigest, g.Ancestors = now.Add(credit), x.PolicyDigest, x.Ancestors
		if !a.Allow {
			g.Until = now.Add(sulk)
		}
		return g, !a.Allow || x.Waiting == 0
	case Session:
		g.Life = x.Life
	}
	return g, true
}

// others answers what else g covers: the same, asked through other programs.
// Where the file can't be written they are pending again after a restart, and
// answered by g at once. The caller holds mu.
func (b *Book) others(g Grant, out Outcome) {
	if g.Scope == Once && g.Allow {
		return
	}
	var hs []*hold
	for _, y := range b.holds {
		q := Question{Subject: y.Subject, Policy: y.Policy, Digest: y.PolicyDigest, Life: y.Life, Ancestors: y.Ancestors}
		if !y.busy && g.covers(q, g.Time) {
			hs = append(hs, y)
		}
	}
	if len(hs) > 0 {
		_ = b.drop(func(*hold) Outcome { return out }, hs...)
	}
}

// release lets x be answered again, unless its time ended meanwhile.
func (b *Book) release(x *hold) {
	b.mu.Lock()
	x.busy = false
	late := x.late && b.holds[x.key()] == x
	b.mu.Unlock()
	if late {
		b.expire(x)
	}
}
