package guard

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ringCount is RINGS of scope.h; rings are numbered in its order.
const (
	ringExecs = iota
	ringRefusals
	ringOpens
	ringConnects
	ringCount
)

// maxScopes is SCOPES_MAX of scope.h.
const maxScopes = 1024

// minShare is what a scope may always fill of a ring, however many there are:
// an event with two long paths fits.
const minShare = 16 << 10

// memory is what the programs and this process share: arrays that both map. A
// store here is seen by the next program run, without a system call.
type memory struct {
	common *witnessShared
	slots  []witnessSlot
	maps   [][]byte
	free   []uint16 // slots, the longest unused first
}

func mapMemory(o *witnessObjects) (memory, error) {
	var m memory
	a, err := m.add(o.Common, unsafe.Sizeof(witnessShared{}))
	if err != nil {
		return m, err
	}
	b, err := m.add(o.Slots, unsafe.Sizeof(witnessSlot{}))
	if err != nil {
		m.close()
		return m, err
	}
	m.common = (*witnessShared)(a)
	m.slots = unsafe.Slice((*witnessSlot)(b), o.Slots.MaxEntries())
	for i := range m.slots {
		m.free = append(m.free, uint16(i))
	}
	return m, nil
}

// add maps an array whose elements have the given size, which must be a
// multiple of eight as in the kernel.
func (m *memory) add(a *ebpf.Map, size uintptr) (unsafe.Pointer, error) {
	n := int(size) * int(a.MaxEntries())
	page := unix.Getpagesize()
	b, err := unix.Mmap(a.FD(), 0, (n+page-1)/page*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("share memory with the programs: mmap: %w", err)
	}
	m.maps = append(m.maps, b)
	return unsafe.Pointer(&b[0]), nil
}

func (m *memory) close() {
	for _, b := range m.maps {
		unix.Munmap(b)
	}
	*m = memory{}
}

// take gives the slot that was unused for the longest time, so that events of
// its last scope have left the rings.
func (m *memory) take() (uint16, error) {
	if len(m.free) == 0 {
		return 0, fmt.Errorf("%d scopes are watched already, no more fit", len(m.slots))
	}
	n := m.free[0]
	m.free = m.free[1:]
	m.slots[n] = witnessSlot{}
	return n, nil
}

func (m *memory) give(n uint16) {
	m.set(n, 0)
	m.free = append(m.free, n)
}

// set makes list the one that counts, at once and for every CPU.
func (m *memory) set(slot uint16, list uint64) { atomic.StoreUint64(&m.slots[slot].List, list) }

// changed makes the programs find out anew in which scope a cgroup is: it comes
// after the change, so that what was found out before does not count.
func (m *memory) changed() {
	if m.common != nil {
		atomic.AddUint32(&m.common.Changes, 1)
	}
}

// consumed gives the room of an event of n bytes back to its scope.
func (m *memory) consumed(slot uint16, ring int, n int) {
	if int(slot) < len(m.slots) {
		atomic.AddUint64(&m.slots[slot].Got[ring], uint64(n+15)&^7) // as emit of scope.h counts
	}
}

// filled tells how much of its share of a ring a scope has filled.
func (m *memory) filled(slot uint16, ring int) (bytes, share int64) {
	s := &m.slots[slot]
	n := atomic.LoadUint64(&s.Put[ring]) - atomic.LoadUint64(&s.Got[ring])
	return int64(n), int64(atomic.LoadUint64(&m.common.Share[ring]))
}

// lost is how many events found no room, of all scopes that ever were.
func (m *memory) lost() (n uint64) {
	if m.common == nil {
		return 0
	}
	for i := range m.common.Lost {
		n += atomic.LoadUint64(&m.common.Lost[i])
	}
	return n
}

// share divides the rings among n scopes.
func (m *memory) share(n int, rings [ringCount]*ebpf.Map) {
	for i, r := range rings {
		s := uint64(r.MaxEntries())
		atomic.StoreUint64(&m.common.Share[i], max(s/uint64(max(n, 1)), min(s, minShare)))
	}
}
