package guard

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// adopt takes over what a guard that died has pinned: programs that run all the
// while, their maps, and the events that wait in the rings.
func (g *Guard) adopt() error {
	err := g.adoptObjects()
	if err == nil {
		err = g.adoptLinks()
	}
	if err == nil {
		g.mem, err = mapMemory(&g.objs)
	}
	if err == nil {
		err = g.adoptScopes() // before the first event is read, which names one
	}
	if err == nil {
		err = g.follows()
	}
	if err != nil {
		return fmt.Errorf("%w: take over %s: %w", errPins, g.pins.set(), err)
	}
	return nil
}

func (g *Guard) adoptObjects() error {
	c := &ebpf.Collection{Maps: map[string]*ebpf.Map{}, Programs: map[string]*ebpf.Program{}}
	defer c.Close() // what was assigned is no longer its
	for name := range g.objs.all() {
		m, err := ebpf.LoadPinnedMap(g.pins.set()+"/map_"+name, nil)
		if err != nil {
			return err
		}
		c.Maps[name] = m
	}
	for name := range g.objs.progs() {
		p, err := ebpf.LoadPinnedProgram(g.pins.set()+"/prog_"+name, nil)
		if err != nil {
			return err
		}
		c.Programs[name] = p
	}
	return c.Assign(&g.objs)
}

func (g *Guard) adoptLinks() error {
	for _, a := range g.attachments() {
		l, err := g.pins.pinned(a.name)
		if err != nil {
			return err
		}
		g.links = append(g.links, l)
	}
	if l, err := g.pins.pinned("on_exit"); err == nil {
		g.exit = l
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ts, err := filepath.Glob(g.pins.set() + "/tier_*")
	if err != nil || len(ts) != 1 {
		return fmt.Errorf("%d tiers are marked, want one", len(ts))
	}
	_, t, _ := strings.Cut(filepath.Base(ts[0]), "_")
	g.tier, g.why = Tier(t), "as it was pinned"
	if g.tier == ladder[0] {
		g.why = ""
	}
	return g.adoptHooks()
}

func (p *pins) pinned(name string) (link.Link, error) {
	return link.LoadPinnedLink(p.set()+"/link_"+name, nil)
}

func (g *Guard) adoptHooks() error {
	how, ok := hookings[g.tier]
	if !ok {
		return nil
	}
	spec, err := how.load()
	if err != nil {
		return err
	}
	g.hooks = &hooks{coll: &ebpf.Collection{Programs: map[string]*ebpf.Program{}}}
	for name := range spec.Programs {
		l, err := g.pins.pinned(name)
		if err != nil {
			return err
		}
		g.hooks.links, g.hooks.names = append(g.hooks.links, l), append(g.hooks.names, name)
		p, err := ebpf.LoadPinnedProgram(g.pins.set()+"/prog_"+name, nil)
		if err != nil {
			return err
		}
		g.hooks.coll.Programs[name] = p
	}
	return nil
}

// adoptScopes watches on over the scopes of the guard that died, and drops
// those whose cgroup is gone.
func (g *Guard) adoptScopes() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var id uint64
	labels := map[uint64]witnessLabel{}
	if err := each(g.objs.Labels, &id, func(l witnessLabel) { labels[id] = l }); err != nil {
		return err
	}
	var dead []*Watch
	for id, l := range labels {
		w, err := g.adoptScope(id, l)
		if err != nil {
			return err
		}
		if g.mount.checkCgroup(id, w.s.Cgroup) != nil {
			dead = append(dead, w)
		}
	}
	for _, w := range dead {
		if err := w.end(); err != nil {
			return err
		}
	}
	g.count()
	return g.followExits()
}

func (g *Guard) adoptScope(id uint64, l witnessLabel) (*Watch, error) {
	w := &Watch{g: g, orphan: true, s: Scope{ID: textOf(l.Id[:]), CgroupID: id, Cgroup: textOf(l.Dir[:])}}
	g.watches[id], g.names[id] = w, w.s.ID
	var v witnessScope
	switch err := g.objs.Scopes.Lookup(id, &v); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return w, nil // the other died between the two
	case err != nil:
		return nil, err
	}
	w.slot, w.seated = uint16(v.Slot), true
	if b := g.newBrake(id, w.s.Cgroup); b != nil {
		b.write(false) // the other may have died while it was frozen
		g.brakes[w.slot].Store(b)
	}
	g.mem.free = slices.DeleteFunc(g.mem.free, func(n uint16) bool { return n == w.slot })
	word := g.mem.slots[w.slot].List
	w.s.setFlags(word)
	var err error
	w.l, err = g.objs.find(word)
	return w, err
}

// setFlags are those that this process acts by.
func (s *Scope) setFlags(word uint64) {
	s.AuditOpens = word&flagAuditOpens != 0
	s.Connects = word&flagAuditConnects != 0
	s.NoRefusals = word&flagNoRefusals != 0
}

// Adopted are the scopes taken over from a guard that died and not claimed by
// Watch since. They are enforced as they were; whoever does not want them
// closes them, after their processes.
func (g *Guard) Adopted() []*Watch {
	g.mu.Lock()
	defer g.mu.Unlock()
	ws := slices.Collect(maps.Values(g.watches))
	return slices.DeleteFunc(ws, func(w *Watch) bool { return !w.orphan })
}

// all are the maps by name.
func (o *witnessObjects) all() map[string]*ebpf.Map {
	return map[string]*ebpf.Map{
		witnessMapAllow: o.Allow, witnessMapCallers: o.Callers, witnessMapCommon: o.Common,
		witnessMapConnects: o.Connects, witnessMapExecs: o.Execs, witnessMapHomes: o.Homes, witnessMapLabels: o.Labels,
		witnessMapOpens: o.Opens, witnessMapPeers: o.Peers, witnessMapReadable: o.Readable,
		witnessMapRefusals: o.Refusals, witnessMapScopes: o.Scopes, witnessMapScratch: o.Scratch,
		witnessMapShapes: o.Shapes, witnessMapSlots: o.Slots,
	}
}

// progs are the programs by name.
func (o *witnessObjects) progs() map[string]*ebpf.Program {
	return map[string]*ebpf.Program{
		witnessProgOnExec: o.OnExec, witnessProgOnSignal: o.OnSignal, witnessProgOnExit: o.OnExit, witnessProgOnSocket: o.OnSocket,
		witnessProgOnConnect4: o.OnConnect4, witnessProgOnConnect6: o.OnConnect6,
		witnessProgOnSendmsg4: o.OnSendmsg4, witnessProgOnSendmsg6: o.OnSendmsg6, witnessProgOnTcp: o.OnTcp,
	}
}
