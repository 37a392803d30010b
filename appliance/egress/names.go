package egress

import (
	"container/list"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"sync"
	"time"
)

const (
	maxNames = 4096 // names with an address, per agent; the least used goes first
	maxFresh = 300  // new names per minute and agent
)

// names gives each name an address that stands for it, stable for an agent.
type names struct {
	seed string

	mu     sync.Mutex // guards the rest
	byName map[string]*list.Element
	byAddr map[netip.Addr]*list.Element
	used   *list.List // of *named, last used first
	minute time.Time
	fresh  int
}

type named struct {
	name string
	addr netip.Addr
}

func newNames(seed string) *names {
	return &names{seed: seed, byName: map[string]*list.Element{}, byAddr: map[netip.Addr]*list.Element{}, used: list.New()}
}

// addr returns name's address; not ok when the agent asks for too many names.
func (n *names) addr(name string) (netip.Addr, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if e := n.byName[name]; e != nil {
		n.used.MoveToFront(e)
		return e.Value.(*named).addr, true
	}
	if time.Since(n.minute) > time.Minute {
		n.minute, n.fresh = time.Now(), 0
	}
	if n.fresh++; n.fresh > maxFresh {
		return netip.Addr{}, false
	}
	if n.used.Len() >= maxNames {
		n.drop(n.used.Back())
	}
	e := n.used.PushFront(&named{name, n.free(name)})
	n.byName[name], n.byAddr[e.Value.(*named).addr] = e, e
	return e.Value.(*named).addr, true
}

// name returns what a stands for.
func (n *names) name(a netip.Addr) (string, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.byAddr[a]
	if e == nil {
		return "", false
	}
	n.used.MoveToFront(e)
	return e.Value.(*named).name, true
}

func (n *names) drop(e *list.Element) {
	x := n.used.Remove(e).(*named)
	delete(n.byName, x.name)
	delete(n.byAddr, x.addr)
}

// free picks an address by hash, so that a name that was forgotten usually
// gets the same one back. The range has room for 30 times maxNames.
func (n *names) free(name string) netip.Addr {
	sum := sha256.Sum256([]byte(n.seed + "\x00" + name))
	const size, kept = 1 << 17, 1 << 8
	base := binary.BigEndian.Uint32(fakes.Addr().AsSlice())
	for i := binary.BigEndian.Uint32(sum[:]) % (size - kept); ; i = (i + 1) % (size - kept) {
		a := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, base+kept+i)))
		if n.byAddr[a] == nil {
			return a
		}
	}
}
