package guard

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// ladder are the tiers to try, best first.
var ladder = []Tier{TierLSM, TierModify, TierTracepoint}

// climb goes down the ladder until a tier has proved itself. Pins that were
// taken over have their tier, and prove it or are an error: to fall to a lower
// one behind the back of living scopes is nobody's wish.
func (g *Guard) climb() error {
	if g.pins.found() {
		return g.selfTest()
	}
	var whys []string
	for _, t := range ladder[slices.Index(ladder, g.opt.Want):] {
		err := g.try(t)
		if err == nil {
			g.why = strings.Join(whys, "; ")
			return g.pins.publish(g)
		}
		if t == TierTracepoint {
			return err
		}
		whys = append(whys, fmt.Sprintf("%s: %s", t, plainly(err)))
	}
	return errors.New("no tier to try") // Want is one of them
}

// plainly leaves out what the library guesses of a refusal that the kernel
// gives no reason for: the limit on locked memory was lifted before anything
// was loaded.
func plainly(err error) string {
	return strings.ReplaceAll(err.Error(), " (MEMLOCK may be too low, consider rlimit.RemoveMemlock)", "")
}

// try attaches what a tier has and provokes a denial. Afterwards all is as
// before, unless it proved itself.
func (g *Guard) try(t Tier) error {
	g.tier = t
	if t == TierTracepoint {
		return g.selfTest()
	}
	if err := g.hook(t); err != nil {
		return err
	}
	atomic.StoreUint32(&g.mem.common.Hooked, 1)
	err := g.selfTest()
	if err == nil {
		return nil
	}
	atomic.StoreUint32(&g.mem.common.Hooked, 0)
	g.mu.Lock()
	defer g.mu.Unlock()
	err = errors.Join(fmt.Errorf("attached, but: %w", err), g.hooks.close())
	g.hooks = nil
	return err
}

// early keeps events of others while the self-test reads its own: a scope that
// was taken over goes on meanwhile. They stay where they are, in the rings, so
// that however many there are, the self-test gets by.
type early struct {
	mu     sync.Mutex
	live   bool // the self-test is over, and what waited is on its way
	tests  chan Event
	others []record
}

// testScope is the ID of the self-test's scope, which no sandbox can have.
const testScope = "self-test"

// divert keeps an event from the stream: one of the self-test for ever, others
// until it is over.
func (g *Guard) divert(r record) bool {
	ours := g.name(r.head().Cgroup) == testScope
	g.early.mu.Lock()
	defer g.early.mu.Unlock()
	if !ours {
		if !g.early.live {
			g.early.others = append(g.early.others, r)
		}
		return !g.early.live
	}
	if !g.early.live {
		select {
		case g.early.tests <- g.event(r, r.q):
		default: // it looks for a few, and there is room for more
		}
	}
	g.number(r.q.which, r.place, mine)
	g.free(mine)
	return true
}

// goLive lets events through, those first that came during the self-test.
func (g *Guard) goLive() {
	g.read.Go(func() {
		q := &queue{late: true}
		for {
			g.early.mu.Lock()
			rs := g.early.others
			g.early.others, g.early.live = nil, len(rs) == 0
			g.early.mu.Unlock()
			if len(rs) == 0 {
				return
			}
			for _, r := range rs {
				g.send(g.event(r, q), r.head().Cgroup)
			}
		}
	})
}
