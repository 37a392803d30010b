package appliance

import "sync"

// turns has one thing at a time done to each agent: started, changed,
// snapshotted or removed. Different agents don't wait for each other.
type turns struct {
	every sync.RWMutex // held for reading by who has an agent's turn

	mu  sync.Mutex // guards one
	one map[string]*turn
}

// turn is an agent's; who asks for it counts until it is given back.
type turn struct {
	sync.Mutex
	asked int
}

// of waits for an agent's turn; the caller gives it back by calling done.
func (t *turns) of(name string) (done func()) {
	t.every.RLock()
	t.mu.Lock()
	if t.one == nil {
		t.one = map[string]*turn{}
	}
	o := t.one[name]
	if o == nil {
		o = &turn{}
		t.one[name] = o
	}
	o.asked++
	t.mu.Unlock()
	o.Lock()
	return func() {
		o.Unlock()
		t.mu.Lock()
		if o.asked--; o.asked == 0 {
			delete(t.one, name)
		}
		t.mu.Unlock()
		t.every.RUnlock()
	}
}

// all waits until nobody has a turn, and lets nobody have one until done.
func (t *turns) all() (done func()) {
	t.every.Lock()
	return t.every.Unlock
}
