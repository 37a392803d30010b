package guard

import (
	"fmt"
	"net/netip"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
)

// Lowest bits of slot.list in scope.h.
const (
	flagAuditMissing  = 1
	flagNoRefusals    = 2
	flagAuditOpens    = 4
	flagKill          = 8
	flagAuditConnects = 16
	flagLimitUDP      = 32
	flagKnowsReadable = 64

	flagBits = 12
)

// prefixMax is PREFIX_MAX of scope.h.
const prefixMax = 240

// list is one version of a scope's policy: entries of several maps under one
// number. The programs follow whatever number stands in the scope's slot, so
// a list is complete before it counts, and replaced in one step.
type list struct {
	word  uint64 // number and flags
	allow []witnessAllowed
	peers []witnessPeer
	look  map[witnessPrefix]uint8
}

var lastList atomic.Uint64

// listNumber is one that no list had before, also not one of a process that
// died: microseconds, or the next one.
func listNumber() uint64 {
	for {
		last := lastList.Load()
		n := max(uint64(time.Now().UnixMicro()), last+1)
		if lastList.CompareAndSwap(last, n) {
			return n
		}
	}
}

func (s Scope) list() (list, error) {
	l := list{word: listNumber()<<flagBits | s.flags(), look: map[witnessPrefix]uint8{}}
	for _, n := range s.Exec {
		l.allow = append(l.allow, witnessAllowed{List: l.word, Ino: n.Ino, Dev: kernelDev(n.Dev)})
	}
	for _, d := range s.ExecDevices {
		l.allow = append(l.allow, witnessAllowed{List: l.word, Dev: kernelDev(d)})
	}
	for _, a := range s.Datagrams {
		l.peers = append(l.peers, witnessPeer{List: l.word, To: sixteen(a.Addr()), Port: a.Port()})
	}
	for v, dirs := range [][]string{s.Hidden, s.Readable} {
		for _, d := range dirs {
			k, err := prefixOf(l.word, d)
			if err != nil {
				return l, err
			}
			if _, ok := l.look[k]; !ok { // what is both is hidden
				l.look[k] = uint8(v)
			}
		}
	}
	return l, nil
}

// prefixOf is the key of a folder, which ends with a slash.
func prefixOf(word uint64, dir string) (witnessPrefix, error) {
	if !strings.HasPrefix(dir, "/") || path.Clean(dir) != strings.TrimSuffix(dir, "/") && dir != "/" {
		return witnessPrefix{}, fmt.Errorf("folder %q: want an absolute path without dot folders", dir)
	}
	text := strings.TrimSuffix(dir, "/") + "/"
	if len(text) > prefixMax {
		return witnessPrefix{}, fmt.Errorf("folder %q has more than %d bytes", dir, prefixMax-1)
	}
	k := witnessPrefix{Bits: uint32(8 * (8 + len(text))), List: [2]uint32{uint32(word), uint32(word >> 32)}}
	for i := range len(text) {
		k.Text[i] = int8(text[i])
	}
	return k, nil
}

// sixteen is an address in its IPv6 form; no address is the one of no host.
func sixteen(a netip.Addr) witnessAddress {
	if !a.IsValid() {
		return witnessAddress{}
	}
	return witnessAddress{Ip: a.As16()}
}

func (s Scope) flags() (f uint64) {
	for _, b := range []struct {
		on  bool
		bit uint64
	}{
		{s.AuditENOENT, flagAuditMissing},
		{s.NoRefusals, flagNoRefusals},
		{s.AuditOpens, flagAuditOpens},
		{s.Violation == Kill, flagKill},
		{s.Connects, flagAuditConnects},
		{len(s.Datagrams) > 0, flagLimitUDP},
		{len(s.Readable) > 0, flagKnowsReadable},
	} {
		if b.on {
			f |= b.bit
		}
	}
	return f
}

// put hands the entries to the kernel. They count once a slot names the list.
func (o *witnessObjects) put(l list) error {
	for _, k := range l.allow {
		if err := o.Allow.Put(k, uint8(1)); err != nil {
			return fmt.Errorf("list executable %d:%d: %w", k.Dev, k.Ino, err)
		}
	}
	for _, k := range l.peers {
		if err := o.Peers.Put(k, uint8(1)); err != nil {
			return fmt.Errorf("list the address of datagrams: %w", err)
		}
	}
	for k, v := range l.look {
		if err := o.Readable.Put(k, v); err != nil {
			return fmt.Errorf("list a readable folder: %w", err)
		}
	}
	return nil
}

// remove takes the entries back; those that never came to be are none to miss.
func (o *witnessObjects) remove(l list) (err error) {
	keep := func(e error) {
		if err == nil {
			err = gone(e)
		}
	}
	for _, k := range l.allow {
		keep(o.Allow.Delete(k))
	}
	for _, k := range l.peers {
		keep(o.Peers.Delete(k))
	}
	for k := range l.look {
		keep(o.Readable.Delete(k))
	}
	return err
}

// find collects the entries of a list that another process made.
func (o *witnessObjects) find(word uint64) (list, error) {
	l := list{word: word, look: map[witnessPrefix]uint8{}}
	var a witnessAllowed
	err := each(o.Allow, &a, func(uint8) {
		if a.List == word {
			l.allow = append(l.allow, a)
		}
	})
	if err != nil {
		return l, err
	}
	var p witnessPeer
	err = each(o.Peers, &p, func(uint8) {
		if p.List == word {
			l.peers = append(l.peers, p)
		}
	})
	if err != nil {
		return l, err
	}
	var d witnessPrefix
	err = each(o.Readable, &d, func(v uint8) {
		if d.List == [2]uint32{uint32(word), uint32(word >> 32)} {
			l.look[d] = v
		}
	})
	return l, err
}

// each sets key to every key of m in turn.
func each[V any](m *ebpf.Map, key any, f func(V)) error {
	it := m.Iterate()
	var v V
	for it.Next(key, &v) {
		f(v)
	}
	return it.Err()
}
