package guard

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
)

// A scope that fills its share of a ring faster than the record takes it would
// be killed, refused or lose refusals. Before it comes to that, at a
// quarter of the share, its cgroup is frozen until a sixteenth is left: a program that opens a
// million files runs at the speed of the record and does not notice. The kernel
// kills frozen processes like others. Whoever freezes the same cgroup for
// another reason must not do so while the scope is watched.

// braking is off in tests that fill a ring on purpose.
var braking = true

// paced are the rings whose overflow has consequences.
var paced = [...]int{ringExecs, ringOpens, ringConnects}

// brake is the freezer of one scope.
type brake struct {
	mu   sync.Mutex
	f    *os.File            // cgroup.freeze; nil once closed
	full [ringCount + 1]bool // by ring; the last one is Pause
	on   bool

	still *atomic.Int32 // of all brakes: how many shares are too full
}

// newBrake opens the freezer of a cgroup. A guard that may not freeze works
// without: then the kernel's refusals and kills are all there is.
func (g *Guard) newBrake(id uint64, dir string) *brake {
	if !braking {
		return nil
	}
	if dir == "" {
		var err error
		if dir, err = g.mount.find(id); err != nil {
			return nil
		}
	}
	f, err := os.OpenFile(dir+"/cgroup.freeze", os.O_WRONLY, 0)
	if err != nil {
		return nil
	}
	return &brake{f: f, still: &g.still}
}

// pace freezes or thaws a scope by how full its share of a ring is.
func (g *Guard) pace(slot uint16, ring int) {
	if int(slot) >= len(g.brakes) {
		return
	}
	b := g.brakes[slot].Load()
	if b == nil {
		return
	}
	switch n, share := g.mem.filled(slot, ring); {
	case n > share/4 && ring != ringRefusals:
		b.set(ring, true)
	case n <= share/16:
		b.set(ring, false)
	}
}

func (g *Guard) paceAll() {
	for slot := range g.brakes {
		if g.brakes[slot].Load() != nil {
			for _, r := range paced {
				g.pace(uint16(slot), r)
			}
		}
	}
}

// set says whether a ring is too full, and freezes while one is.
func (b *brake) set(ring int, full bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.full[ring] == full || b.f == nil {
		return
	}
	b.full[ring] = full
	if ring < ringCount {
		b.count(full)
	}
	on := false
	for _, f := range b.full {
		on = on || f
	}
	if on != b.on {
		b.on = on
		b.write(on)
	}
}

// count counts a ring's share that was filled, or no longer is.
func (b *brake) count(full bool) {
	if full {
		b.still.Add(1)
	} else {
		b.still.Add(-1)
	}
}

// write needs b.mu. A cgroup that is gone has nothing to freeze.
func (b *brake) write(on bool) {
	v := 0
	if on {
		v = 1
	}
	fmt.Fprint(b.f, v)
}

// release thaws and forgets the cgroup.
func (b *brake) release() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.on {
		b.write(false)
	}
	for _, full := range b.full[:ringCount] {
		if full {
			b.count(false)
		}
	}
	b.f.Close()
	b.f, b.on, b.full = nil, false, [ringCount + 1]bool{}
}
