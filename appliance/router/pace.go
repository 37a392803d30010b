package router

import (
	"sync"
	"time"
)

// A loop of refused calls would fill the ledger as fast as the disk takes it,
// so refusals beyond a burst have to wait for their turn.
const (
	DenyBurst = 200
	DenyEvery = 20 * time.Millisecond // one more refusal
)

// Pace gives refusals their turns: DenyBurst at once, then one every
// DenyEvery. The zero value is ready; it is safe for concurrent use.
type Pace struct {
	mu   sync.Mutex
	next time.Time
}

// Turn takes n turns and says how long the refusal at now has to wait. Who
// gives up waiting must not write its record: the wait is what bounds them.
func (p *Pace) Turn(now time.Time, n int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if full := now.Add(-DenyBurst * DenyEvery); p.next.Before(full) {
		p.next = full
	}
	p.next = p.next.Add(time.Duration(n) * DenyEvery)
	return p.next.Sub(now)
}
