package guard

import "time"

// Lost counts what happened in a scope and is missing from the stream: no room
// in a ring, a program run that the kernel skipped, or refusals above the rate
// limit that no later event told of. Whoever executed or opened a file that
// found no room was killed. A skipped run would be an exec or open that nobody
// looked at: the kernel skips a program that interrupts itself on one CPU, which
// tracepoints on the kernels tried so far (6.1, 6.18) rule out by keeping
// preemption off. So tell of any increase. After Close it is the final number.
func (g *Guard) Lost() uint64 {
	if g.tier == TierNone {
		return 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lost() + uint64(g.dropped.Load())
}

// lost is called with g.mu held.
func (g *Guard) lost() uint64 {
	n := g.unreported
	if g.closed {
		return n
	}
	return n + g.mem.lost() + g.skips()
}

// skipsEvery is how often the kernel is asked for the runs that it skipped: that
// is a system call for each program, and who keeps the record asks all the time.
const skipsEvery = 100 * time.Millisecond

// skips is called with g.mu held.
func (g *Guard) skips() uint64 {
	if time.Since(g.asked) < skipsEvery {
		return g.missed
	}
	g.missed, g.asked = 0, time.Now()
	for _, p := range g.programs() {
		if st, err := p.Stats(); err == nil {
			g.missed += st.RecursionMisses
		}
	}
	return g.missed
}

// LostBy tells whose events the stream misses: Scope.ID → events lost since
// Load, for the scopes that lost any, the last 1024 closed ones among them. Runs that
// the kernel skipped belong to nobody it knows of: only Lost counts them.
func (g *Guard) LostBy() map[string]uint64 {
	by := map[string]uint64{}
	g.mu.Lock()
	defer g.mu.Unlock()
	for id, n := range g.lostBy {
		by[g.nameOf(id)] += n
	}
	if g.closed {
		return by
	}
	for id := range g.watches {
		var v witnessScope
		if g.objs.Scopes.Lookup(id, &v) == nil && v.Lost > 0 {
			by[g.nameOf(id)] += v.Lost
		}
	}
	return by
}

// harvest keeps what the kernel counted for a scope, before that is deleted;
// g.mu is held.
func (w *Watch) harvest() {
	g, id := w.g, w.s.CgroupID
	var v witnessScope
	if g.objs.Scopes.Lookup(id, &v) != nil {
		return // the scope never came to be
	}
	untold := v.Refusals.Skipped - v.Refusals.Told + v.Misses.Skipped - v.Misses.Told
	g.unreported += untold
	if n := untold + v.Lost; n > 0 {
		g.lostBy[id] += n
	}
}

// abandon counts an event that nobody received.
func (g *Guard) abandon(cgroup uint64) {
	g.dropped.Add(1)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lostBy[cgroup]++
}
