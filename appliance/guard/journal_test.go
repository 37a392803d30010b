package guard

import (
	"slices"
	"sync"
	"testing"
	"time"
)

// journal collects a Guard's events.
type journal struct {
	g  *Guard
	mu sync.Mutex
	n  int64 // received
	es []Event

	next *journal // gets them too: the one of the test that runs
}

func follow(g *Guard) *journal {
	if s := sharedJournal; s != nil && s.g == g {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.next = &journal{g: g, n: s.n}
		return s.next
	}
	return followSome(g, func(Event) bool { return true })
}

// followSome keeps those that fit.
func followSome(g *Guard, fits func(Event) bool) *journal {
	j := &journal{g: g}
	go func() {
		for e := range g.Events() {
			j.add(e, fits)
		}
	}()
	return j
}

func (j *journal) add(e Event, fits func(Event) bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.n++
	if fits(e) {
		j.es = append(j.es, e)
	}
	if j.next != nil {
		j.next.add(e, fits)
	}
}

// all are those that fit; what has left the stream is in the journal by then.
func (j *journal) all(fits func(Event) bool) []Event {
	for n := j.g.taken(); ; time.Sleep(time.Millisecond) {
		j.mu.Lock()
		ready := j.n >= n
		j.mu.Unlock()
		if ready {
			break
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(j.es), func(e Event) bool { return !fits(e) })
}

// await waits until n events fit.
func (j *journal) await(t testing.TB, n int, fits func(Event) bool) []Event {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if es := j.all(fits); len(es) >= n {
			return es
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %d events that fit, want %d; all: %+v", len(j.all(fits)), n, j.all(func(Event) bool { return true }))
		}
	}
}
