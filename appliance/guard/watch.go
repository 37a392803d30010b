package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"

	"github.com/cilium/ebpf"
)

// Scope says what to watch and what may run there.
type Scope struct {
	ID          string   // name in events
	CgroupID    uint64   // see CgroupID; the cgroup and all below it
	Exec        []Inode  // programs that may be executed
	ExecDevices []uint64 // file systems (Inode.Dev) of which every file may be executed
	AuditENOENT bool     // also report names that do not exist, 2000 in about a second; noisy

	// NoRefusals leaves refused system calls unreported. While any scope wants
	// them, every system call of the host takes some 0.1 µs longer.
	NoRefusals bool

	// AuditOpens reports every file that is opened, O_PATH included. It costs
	// every system call of the host some nanoseconds more, and the scope's
	// processes are killed when the record can't keep pace with them.
	AuditOpens bool

	// Cgroup is the directory of the cgroup. It is needed where the guard has
	// no CAP_DAC_READ_SEARCH to find it by its id.
	Cgroup string

	// Violation is what happens to a process that starts an unlisted program.
	Violation Violation

	// Readable are absolute folders, as the sandbox sees them, in which the
	// agent may look: that a name below them does not exist is no news and
	// never an event. Hidden are exceptions from them; the longest one counts.
	Readable, Hidden []string

	// Connects reports every connect of a TCP or UDP socket, and every datagram
	// to an address. What can't be reported is refused. Also those to a name of
	// AF_UNIX, when they have succeeded, or failed for want of somebody there.
	Connects bool

	// Datagrams, where not empty, are the only addresses that UDP may go to:
	// anything else gets EPERM and is reported.
	Datagrams []netip.AddrPort
}

// Violation is what happens to whoever starts an unlisted program.
type Violation string

// The violations. Refuse needs T1 or T2; at T3 every violation is a kill.
const (
	Refuse Violation = "refuse" // the exec fails with EPERM; the default
	Kill   Violation = "kill"   // the process is killed
)

// maxRetired bounds the names and counts kept of closed scopes, of which events
// are still on their way.
const maxRetired = 1024

// Watch is a scope being watched, until Close.
type Watch struct {
	g *Guard

	// Guarded by g.mu.
	s      Scope
	l      list
	slot   uint16
	seated bool // slot is ours
	orphan bool // taken over from a process that died; nobody has claimed it
}

// ID is the scope's name.
func (w *Watch) ID() string {
	w.g.mu.Lock()
	defer w.g.mu.Unlock()
	return w.s.ID
}

// Watch begins to enforce s. Programs that already run there are not looked
// at again: call it before the agent is started. Of nested scopes the outer one
// decides. A scope that was taken over from a guard that died ([Guard.Adopted])
// goes on under s.
func (g *Guard) Watch(s Scope) (*Watch, error) {
	if g.tier == TierNone {
		return nil, fmt.Errorf("guard: watch %q: %w: %s", s.ID, ErrUnavailable, g.why)
	}
	if err := g.check(s); err != nil {
		return nil, fmt.Errorf("guard: watch %q: %w", s.ID, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, fmt.Errorf("guard: watch %q: %w", s.ID, os.ErrClosed)
	}
	if old := g.watches[s.CgroupID]; old != nil {
		return old.claim(s)
	}
	w := &Watch{g: g, s: s.clone()}
	if err := w.begin(); err != nil {
		return nil, errors.Join(fmt.Errorf("guard: watch %q: %w", s.ID, err), w.end())
	}
	return w, nil
}

// claim gives an adopted scope to whoever watches it now; g.mu is held.
func (w *Watch) claim(s Scope) (*Watch, error) {
	if !w.orphan || w.s.ID != s.ID {
		return nil, fmt.Errorf("guard: watch %q: cgroup %d is already watched as %q", s.ID, s.CgroupID, w.s.ID)
	}
	if err := w.swap(s); err != nil {
		return nil, fmt.Errorf("guard: watch %q: %w", s.ID, err)
	}
	w.orphan = false
	return w, nil
}

func (s Scope) clone() Scope {
	s.Exec, s.ExecDevices = slices.Clone(s.Exec), slices.Clone(s.ExecDevices)
	s.Readable, s.Hidden = slices.Clone(s.Readable), slices.Clone(s.Hidden)
	s.Datagrams = slices.Clone(s.Datagrams)
	return s
}

func (g *Guard) check(s Scope) error {
	switch {
	case s.ID == "":
		return errors.New("the scope has no ID")
	case len(s.ID) >= len(witnessLabel{}.Id):
		return fmt.Errorf("the ID has %d bytes, at most %d fit", len(s.ID), len(witnessLabel{}.Id)-1)
	case s.Violation != "" && s.Violation != Refuse && s.Violation != Kill:
		return fmt.Errorf("violation %q: want %q or %q", s.Violation, Refuse, Kill)
	}
	for i, n := range s.Exec {
		if n.Ino == 0 {
			return fmt.Errorf("executable %d of the list has inode 0; list a whole file system in ExecDevices", i)
		}
	}
	return g.mount.checkCgroup(s.CgroupID, s.Cgroup)
}

// begin runs with g.mu held. The scope's own entry comes last, so that it is
// never enforced with half a list.
func (w *Watch) begin() (err error) {
	g := w.g
	if w.l, err = w.s.list(); err != nil {
		return err
	}
	if w.slot, err = g.mem.take(); err != nil {
		return err
	}
	w.seated = true
	g.brakes[w.slot].Store(g.newBrake(w.s.CgroupID, w.s.Cgroup))
	g.watches[w.s.CgroupID] = w
	g.names[w.s.CgroupID] = w.s.ID
	if err := g.followExits(); err != nil {
		return err
	}
	if err := g.objs.put(w.l); err != nil {
		return err
	}
	g.count()
	g.mem.set(w.slot, w.l.word)
	if err := g.objs.Labels.Put(w.s.CgroupID, w.s.label()); err != nil {
		return err
	}
	err = g.objs.Scopes.Put(w.s.CgroupID, witnessScope{Slot: uint32(w.slot)})
	g.mem.changed()
	return err
}

// label is what a next process knows the scope by.
func (s Scope) label() (l witnessLabel) {
	for i := range len(s.ID) {
		l.Id[i] = int8(s.ID[i])
	}
	if len(s.Cgroup) < len(l.Dir) {
		for i := range len(s.Cgroup) {
			l.Dir[i] = int8(s.Cgroup[i])
		}
	}
	return l
}

// Update replaces all that the scope may do, in one step: every program start
// is judged by the old list or by the new one. On an error the old one holds.
func (w *Watch) Update(s Scope) error {
	if err := w.g.check(s); err != nil {
		return fmt.Errorf("guard: update %q: %w", s.ID, err)
	}
	w.g.mu.Lock()
	defer w.g.mu.Unlock()
	if w.g.closed || w.g.watches[w.s.CgroupID] != w {
		return fmt.Errorf("guard: update %q: %w", s.ID, os.ErrClosed)
	}
	if s.ID != w.s.ID || s.CgroupID != w.s.CgroupID {
		return fmt.Errorf("guard: update %q of cgroup %d: got the scope %q of cgroup %d, want the same one", w.s.ID, w.s.CgroupID, s.ID, s.CgroupID)
	}
	if err := w.swap(s); err != nil {
		return fmt.Errorf("guard: update %q: %w", s.ID, err)
	}
	return nil
}

// swap is Update with g.mu held.
func (w *Watch) swap(s Scope) error {
	g, before := w.g, w.s
	l, err := s.list()
	if err != nil {
		return err
	}
	w.s = s.clone()
	if err = errors.Join(g.objs.put(l), g.followExits()); err != nil {
		w.s = before
		return errors.Join(err, g.followExits(), g.objs.remove(l))
	}
	g.count()
	g.mem.set(w.slot, l.word)
	old := w.l
	w.l = l
	return g.objs.remove(old)
}

// count tells the programs how many scopes there are, so that they can leave
// at once where there is none, and what room each has.
func (g *Guard) count() {
	var audits uint32
	for _, w := range g.watches {
		if w.s.AuditOpens || w.s.Connects {
			audits++
		}
	}
	g.mem.share(len(g.watches), g.rings())
	atomic.StoreUint32(&g.mem.common.Auditing, audits)
	atomic.StoreUint32(&g.mem.common.Watching, uint32(len(g.watches)))
}

// end undoes begin, wherever that stopped; g.mu is held.
func (w *Watch) end() error {
	g, id := w.g, w.s.CgroupID
	w.harvest()
	errs := []error{gone(g.objs.Scopes.Delete(id)), gone(g.objs.Labels.Delete(id))}
	g.mem.changed()
	if w.seated {
		g.brakes[w.slot].Swap(nil).release()
		g.mem.give(w.slot)
		w.seated = false
	}
	errs = append(errs, g.objs.remove(w.l))
	delete(g.watches, id)
	g.count()
	errs = append(errs, g.followExits())
	g.retire(id)
	return errors.Join(errs...)
}

// followExits attaches the sys_exit program while a scope wants it.
func (g *Guard) followExits() (err error) {
	want := false
	for _, w := range g.watches {
		want = want || !w.s.NoRefusals || w.s.AuditOpens || w.s.Connects
	}
	switch {
	case want && g.exit == nil:
		l, err := attachTracepoint(g.objs.OnExit)
		if err != nil {
			return fmt.Errorf("attach to sys_exit: %w", err)
		}
		if err := g.pins.link("on_exit", l); err != nil {
			return errors.Join(err, l.Close())
		}
		g.exit = l
	case !want && g.exit != nil:
		err = errors.Join(g.pins.unlink("on_exit"), g.exit.Close())
		g.exit = nil
	}
	return err
}

func gone(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

func (g *Guard) retire(id uint64) {
	g.retired = append(g.retired, id)
	if len(g.retired) > maxRetired {
		if old := g.retired[0]; g.watches[old] == nil { // not watched anew
			delete(g.names, old)
			delete(g.lostBy, old)
		}
		g.retired = g.retired[1:]
	}
}

// Close stops enforcing: processes still in the cgroup may run anything again.
// Kill them first.
//
// It returns when the reader of [Guard.Events] has received all that happened
// in the scope, so that what is recorded next stands behind it. It does not
// wait longer than two seconds for a reader that has stopped; what is left is
// still delivered when it goes on.
func (w *Watch) Close() error {
	done, err := w.detach()
	if done {
		w.g.settle()
	}
	return err
}

// detach stops enforcing, and tells whether it was this call that did.
func (w *Watch) detach() (bool, error) {
	w.g.mu.Lock()
	defer w.g.mu.Unlock()
	if w.g.closed || w.g.watches[w.s.CgroupID] != w {
		return false, nil
	}
	return true, w.end()
}
