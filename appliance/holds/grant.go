package holds

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Grant is an answer that still stands.
type Grant struct {
	ID string `json:"id"` // random
	Subject
	Allow        bool      `json:"allow"`
	Scope        Scope     `json:"scope"`
	Ancestors    []string  `json:"ancestors,omitempty"`    // once: the programs it is for
	Policy       string    `json:"policy"`                 // name; another policy does not inherit it
	PolicyDigest string    `json:"policyDigest,omitempty"` // once: of the policy that was shown
	Life         string    `json:"life,omitempty"`         // session: the sandbox
	Operator     string    `json:"operator"`
	Reason       string    `json:"reason,omitempty"`
	Time         time.Time `json:"time"`
	Until        time.Time `json:"until,omitzero"` // once: then it is void
}

// covers says whether g answers q at the time now.
func (g Grant) covers(q Question, now time.Time) bool {
	s := q.Subject
	if g.Scope == Always && g.Binary == "" {
		s.Binary = "" // as the rule that was shown: for any program
	}
	if g.Subject != s || g.Policy != q.Policy {
		return false
	}
	switch g.Scope {
	case Once:
		mine := !g.Allow || g.PolicyDigest == q.Digest && chain(g.Ancestors) == chain(q.Ancestors)
		return mine && now.Before(g.Until)
	case Session:
		return g.Life != "" && g.Life == q.Life
	case Always:
		return true
	}
	return false
}

// grant finds the answer to q that stands, a denial first. The caller holds mu.
func (b *Book) grant(q Question) (found Grant, ok bool) {
	now := time.Now()
	for _, g := range b.grants {
		if g.covers(q, now) && (!ok || !g.Allow || found.Allow && g.wider(found)) {
			found, ok = g, true
		}
	}
	return found, ok
}

// wider prefers an answer that is not used up.
func (g Grant) wider(than Grant) bool { return than.Scope == Once && g.Scope != Once }

// Covers says whether an approval that stands covers q: what is open already
// may stay open. Answers for once cover nothing.
func (b *Book) Covers(q Question) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	g, ok := b.grant(q)
	return ok && g.Allow && g.Scope != Once
}

// Standing lists the answers that stand, oldest first.
func (b *Book) Standing() []Grant {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.standing()
}

func (b *Book) standing() []Grant {
	now, out := time.Now(), []Grant{}
	for g := range maps.Values(b.grants) {
		if g.Scope != Once || now.Before(g.Until) {
			out = append(out, g)
		}
	}
	slices.SortFunc(out, func(a, b Grant) int {
		return strings.Compare(a.Time.Format(time.RFC3339Nano)+a.ID, b.Time.Format(time.RFC3339Nano)+b.ID)
	})
	return out
}

// Revoke takes back the answer that stands under id. Connections that it let
// in stay open until Proxy.Recheck. What was allowed always by a policy change
// is in the policy, not here.
func (b *Book) Revoke(ctx context.Context, id, operator string) (Grant, error) {
	if strings.TrimSpace(operator) == "" {
		return Grant{}, fmt.Errorf("%w: got no operator, want the name of who revokes", ErrAnswer)
	}
	b.mu.Lock()
	g, ok := b.grants[id]
	b.mu.Unlock()
	if !ok {
		return g, fmt.Errorf("%w: no answer stands under %.40q; list what stands again", ErrNoPending, id)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
	defer cancel()
	if err := b.c.Recorder.Record(ctx, g.revoked(operator)); err != nil {
		return g, fmt.Errorf("revoke %s: %w", id, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.grants, id) // also when the file can't be written: taking back must work
	b.bump()
	if err := b.save(); err != nil {
		return g, fmt.Errorf("revoke %s: it is void now and would be back after a restart: %w", id, err)
	}
	return g, nil
}

// Remove forgets all about an agent that is removed.
func (b *Book) Remove(agent string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.grants, func(_ string, g Grant) bool { return g.Agent == agent })
	var hs []*hold
	for _, x := range b.holds {
		if x.Agent == agent {
			hs = append(hs, x)
		}
	}
	return b.drop(func(*hold) Outcome { return denied("net.hold_gone", "", "the agent was removed") }, hs...)
}
