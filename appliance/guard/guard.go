// Package guard watches sandboxes from inside the kernel: it kills programs
// that a sandbox may not run before their first instruction, and reports every
// program start, every refused system call and, where asked, every opened file.
//
// A sandbox is known to the guard as a scope: a cgroup of the v2 hierarchy and
// everything below it. Which processes belong to it is decided by the kernel;
// a process inside can't leave, as it can't write to the cgroup file system.
//
//	g, err := guard.Load() // attaches, then proves on a child of its own that it enforces
//	if err != nil { … }    // loaded but does not enforce: never go on silently
//	if g.Tier() == guard.TierNone { … g.Why() … }
//	id, _ := guard.CgroupID("/sys/fs/cgroup/clawbox/agent-7")
//	sh, _ := guard.Lookup(pid, "/bin/sh") // as seen from inside the sandbox
//	w, err := g.Watch(guard.Scope{ID: "agent-7", CgroupID: id, Exec: []guard.Inode{sh}})
//	go func() { for e := range g.Events() { … } }()
//	defer w.Close()
//
// # What is enforced
//
// An executable is identified by device and inode of the file that the kernel
// really loaded: the interpreter for a #! script, the dynamic linker for
// "ld.so PROGRAM", the anonymous file for a memfd. Names, links and copies do
// not matter: another name of a listed inode is that inode and runs; a copy is
// not, and does not. So listed files must lie where the agent can't write.
// Code that enters a listed program by other ways (a script given to a listed
// interpreter, mmap of a library, a JIT) is not the guard's: file system view,
// Landlock and noexec mounts bound it. [Watch.Update] replaces the list in one
// step.
//
// By which mechanism, is the tier ([Tier]): T1 are BPF LSM programs, T2 programs
// that replace the result of the kernel's security functions; both refuse an exec
// with EPERM or kill ([Violation]). At T3, and beneath the other two, a program
// at a tracepoint kills before the first instruction. Load goes down until a
// tier has refused a program of its own: LSM programs load and attach without
// enforcing anything where bpf is missing in the lsm= list.
//
// With Scope.Datagrams UDP goes to the listed addresses only, and with it or
// Scope.Connects sockets are TCP or UDP and nothing else: the call gets EPERM.
// Of other families, which are seccomp's, names of AF_UNIX are reported with
// Scope.Connects, as the caller's memory has them after the call.
//
// "No event, no action": an exec, an audited open or a connection whose event
// finds no room in the ring is killed or refused too. Every scope has its share of
// each ring, so that only whoever fills it runs out of room; before that its
// cgroup is frozen for moments (pace.go). Whoever watches must drain Events, or
// the agents stop.
//
// # What is only reported
//
// System calls of the table in syscalls.go that failed with EACCES, EPERM or
// EROFS (ENOENT where the scope asks for it, ESRCH where a signal was aimed at
// a process that the agent can't see). The kernel refused them already;
// the guard tells. So it does of calls that seccomp answers with SIGSYS (Trapped),
// but not of a filter that kills one thread of several. Path and address are read from the caller's memory after
// the call, where another thread may have changed them: they are a hint, the
// refusal is a fact. Requests through io_uring and the 32-bit system calls of
// a 64-bit machine do not show here by name: confine them by seccomp.
// A scope reports at most 1000 refusals in about a second, and besides 2000
// names that do not exist (ENOENT), which so never displace a refusal. The next
// event of the same sort carries the number of those left out (Event.Skipped,
// Event.SkippedMissing). Absent names below Scope.Readable are no event and count
// for nothing, so that looking in vain for libraries displaces no look for a
// host file. Relative names, and those with empty or dot parts, are told even
// there. A path of more than 510 bytes is cut (Event.Cut), so that the ring holds
// a second's worth of any flood.
//
// # Who connected
//
// [Guard.Who] names the process behind an accepted TCP connection, its program
// and its ancestors' within the scope. It is written down in the connecting
// process when its port is chosen, before anything is sent. A program is what
// the process runs: an agent may preload code into a program that it may
// start, and a name for a connection is no name for its content.
//
// # What may be audited
//
// With Scope.AuditOpens each call that returns the descriptor of a file becomes
// an event, without a limit: folders and O_PATH included (a descriptor that
// gives no access to the content still takes part in finding it), the 32-bit
// calls too. At T1 and T2 the kernel is asked before it opens, path and file are
// its own, io_uring is no exception, and what can't be told is refused. At T3,
// and for O_PATH, who can't be reported is killed before it sees the descriptor;
// what the call did by itself, creating or emptying a file, has happened. There
// the path is a hint; File and Inode come from the descriptor table and not from
// the caller's memory, but a thread that foresees the number can put another file
// there between the kernel's open and this look. A process that shares its table
// (CLONE_FILES, not a thread) survives the kill of the other. Descriptors received
// over a socket are not seen: they were opened by somebody. The program that execve
// loads is its Exec event and no other.
//
// # When the guard dies
//
// Without pins, enforcement ends with the process that called Load, so sandboxes
// must die with it. With Options.Pin the kernel goes on enforcing, events wait in
// the rings (and what finds no room is killed or refused), and the next Load with
// the same directory takes all of it over; [Guard.Adopted] are the scopes. With
// Options.Acknowledge it delivers again what the dead process had received and not
// acknowledged, with the same Event.Seq; without, that is lost, some hundred events
// at most. Pins of another version with living scopes are an error.
//
// Root is not needed: CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are enough, with
// [PreparePins], [Delegate], Scope.Cgroup, and write access to each scope's
// cgroup.freeze. Without CAP_SYS_PTRACE Event.Dir stays empty.
//
// # Limits
//
// Linux 6.1 and later, cgroup v2 (beside v1 will do). While a scope is watched,
// every system call of the host takes some 0.1 µs longer, unless NoRefusals is set
// for all scopes; all of it but some nanoseconds is the kernel's own slower way
// out of a traced system call.
package guard

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
)

// Tier says by which kernel mechanism programs are kept from running.
type Tier string

// The tiers, strongest first.
const (
	TierLSM        Tier = "T1" // BPF LSM: refused with EPERM, or killed
	TierModify     Tier = "T2" // fmod_ret on the kernel's security functions: the same
	TierTracepoint Tier = "T3" // killed before the first instruction
	TierNone       Tier = "T4" // no BPF: the sandbox alone, no witness
)

// ErrUnavailable is returned by Watch on a Guard of TierNone.
var ErrUnavailable = errors.New("no BPF enforcement on this host")

// These bound what one scope can put into the ring in 1.07 s.
const (
	refusalsPerSecond = 1000
	missesPerSecond   = 2000 // a language runtime that starts looks for a thousand names in vain
)

// Sizes of the rings in bytes, some 20,000 execs, 150,000 opens and 20,000
// connections, divided among the scopes: the time that the record may take
// before processes are killed for want of it. The ring of refusals takes what
// one scope can cause across the border of two seconds, 2 × (1000 events of two
// paths, 1.2 KB, and 2000 of one, 0.7 KB).
var (
	execRing    uint32 = 4 << 20
	refusalRing uint32 = 8 << 20
	openRing    uint32 = 32 << 20
	connectRing uint32 = 4 << 20
)

// Guard holds the loaded programs. Its methods are safe for concurrent use.
type Guard struct {
	tier   Tier
	why    string
	events chan Event
	done   chan struct{} // closed when nobody receives any more
	hurry  chan struct{} // see Hurry
	still  atomic.Int32  // scopes' shares of rings that are too full
	brakes [maxScopes]atomic.Pointer[brake]

	// Set by open, then read only.
	opt    Options
	objs   witnessObjects
	mem    memory
	mount  mount // the cgroup v2 hierarchy
	pins   *pins // nil: nothing is pinned
	links  []link.Link
	hooks  *hooks // of T1 or T2, or nil
	queues []*queue
	stream stream
	read   sync.WaitGroup

	sent, dropped atomic.Int64 // events that went into the stream, or could not
	early         early

	mu         sync.Mutex // guards the rest
	exit       link.Link  // attached while a scope is watched: it costs the whole host
	watches    map[uint64]*Watch
	names      map[uint64]string // cgroup id → scope, also of scopes closed recently
	retired    []uint64          // closed scopes, oldest first
	unreported uint64            // rate-limited refusals that no event told of
	missed     uint64            // runs that the kernel skipped, as far as was asked
	asked      time.Time         // when
	lostBy     map[uint64]uint64 // cgroup id → events lost, but for what the kernel still counts
	closed     bool
}

// Options say how to load.
type Options struct {
	// Pin is a directory of the BPF file system, of this appliance alone: links
	// and maps are pinned there, so that enforcement outlives this process, and
	// the next Load takes over. Empty: enforcement ends with the process.
	Pin string

	// Want is the best tier to try; empty is T1. Pins that are taken over keep
	// theirs.
	Want Tier

	// Acknowledge leaves events in the rings until the receiver has called
	// [Guard.Acknowledge] for them. With Pin, what it had not when it was killed
	// the next Load delivers again. Without, an event is gone with its delivery.
	Acknowledge bool

	// Cgroup is a directory of the v2 hierarchy in which this process may make
	// cgroups for its self-test. Empty: its own cgroup, or else the top.
	Cgroup string
}

// Load attaches the programs of the best tier that proves itself on a child
// process: an unlisted program is refused or killed, a listed one runs, and both
// are reported.
//
// Where the kernel has no (usable) BPF, Load returns a Guard of TierNone that
// says [Guard.Why]; whether that is enough is the policy's decision. An error
// means that the programs are attached and yet do not do their work, or that
// the pins can't be used.
func Load(opts ...Options) (*Guard, error) {
	o := Options{Want: TierLSM}
	if len(opts) > 0 {
		o = opts[0]
		o.Want = cmp.Or(o.Want, TierLSM)
	}
	if !slices.Contains([]Tier{TierLSM, TierModify, TierTracepoint, TierNone}, o.Want) {
		return nil, fmt.Errorf("guard: want tier %q: there are T1, T2, T3 and T4", o.Want)
	}
	if o.Want == TierNone {
		return LoadNone("T4 was asked for"), nil
	}
	g, err := open(o)
	if errors.Is(err, errPins) {
		return nil, fmt.Errorf("guard: %w", err)
	}
	if err != nil {
		return LoadNone(err.Error()), nil
	}
	if err := g.climb(); err != nil {
		return nil, errors.Join(fmt.Errorf("guard: %w", err), g.abort())
	}
	g.goLive()
	return g, nil
}

// LoadNone returns a Guard that enforces and reports nothing, for the reason
// given: a decision that the caller makes and records.
func LoadNone(why string) *Guard {
	return &Guard{tier: TierNone, why: why, events: make(chan Event), done: make(chan struct{})}
}

// Tier tells what this Guard enforces.
func (g *Guard) Tier() Tier { return g.tier }

// Why says what kept the Guard from a better tier; empty at the best one.
func (g *Guard) Why() string { return g.why }

// Events is the one stream of all scopes; it is closed by Close. Execs come in
// the order of the kernel, refusals likewise; between the two only Time tells.
func (g *Guard) Events() <-chan Event { return g.events }

// Hurry tells a receiver that gathers events that somebody waits for those it
// has: a scope is being closed, or stands still until there is room.
func (g *Guard) Hurry() <-chan struct{} { return g.hurry }

func (g *Guard) hasten() {
	select {
	case g.hurry <- struct{}{}:
	default: // it is told already
	}
}

// open loads and attaches all that T3 has, but the sys_exit program, or takes
// over what a guard that died has pinned.
func open(o Options) (*Guard, error) {
	m, err := cgroup2()
	if err != nil {
		return nil, err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("BPF is not ours to use (want root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN): %w", err)
	}
	g := &Guard{
		tier: TierTracepoint, mount: m, opt: o,
		events: make(chan Event, 256), done: make(chan struct{}), hurry: make(chan struct{}, 1), early: early{tests: make(chan Event, 256)},
		watches: map[uint64]*Watch{}, names: map[uint64]string{}, lostBy: map[uint64]uint64{},
	}
	if g.pins, err = openPins(o.Pin, m); err != nil {
		return nil, err
	}
	if err := g.load(); err != nil {
		return nil, errors.Join(err, g.abort())
	}
	keep(g)
	return g, nil
}

func (g *Guard) load() error {
	if g.pins.found() {
		return g.adopt()
	}
	spec, err := loadWitness()
	if err != nil {
		return err
	}
	for name, size := range map[string]uint32{
		witnessMapExecs: execRing, witnessMapRefusals: refusalRing, witnessMapOpens: openRing, witnessMapConnects: connectRing,
	} {
		spec.Maps[name].MaxEntries = size
	}
	if err := spec.LoadAndAssign(&g.objs, nil); err != nil {
		return fmt.Errorf("load BPF programs: %w", err)
	}
	if err := fillShapes(g.objs.Shapes); err != nil {
		return fmt.Errorf("fill the system call table: %w", err)
	}
	if g.mem, err = mapMemory(&g.objs); err != nil {
		return err
	}
	g.mem.common.PerSecond, g.mem.common.MissesPerSecond = refusalsPerSecond, missesPerSecond
	if err := errors.Join(g.attach(), g.follows()); err != nil {
		return err
	}
	return g.pins.keep(g)
}

// programs are all that are loaded.
func (g *Guard) programs() []*ebpf.Program {
	ps := slices.DeleteFunc(slices.Collect(maps.Values(g.objs.progs())), func(p *ebpf.Program) bool { return p == nil })
	if g.hooks != nil {
		ps = append(ps, g.hooks.programs()...)
	}
	return ps
}

// Close ends all enforcement and the stream of events, and removes the pins.
// What happened before is delivered first: receive from Events until it is
// closed. If nothing was received for two seconds, the rest is given up, counted
// by Lost and reported as an error.
func (g *Guard) Close() error {
	kept := g.keepUntold()
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil
	}
	errs := []error{kept, g.unhook()}
	g.mu.Unlock()
	g.drain()
	g.hangUp()
	close(g.events)
	if n := g.dropped.Load(); n > 0 {
		errs = append(errs, fmt.Errorf("guard: nobody received from Events for %v: %d events are lost", patience, n))
	}
	if g.objs.OnExec != nil {
		errs = append(errs, g.objs.Close())
	}
	g.mem.close()
	drop(g)
	return errors.Join(errs...)
}

// keepUntold leaves the pins as they are while events wait for an
// acknowledgement: whoever should record them may have died before this process.
func (g *Guard) keepUntold() error {
	if !g.opt.Acknowledge || g.pins == nil || g.pins.left() || g.settle() {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.pins.leave()
	return fmt.Errorf("guard: no event was acknowledged for %v: what is left stays in %s for the next guard", patience, g.pins.dir)
}

// abort is Close for a Guard that nobody has received yet: pins that were taken
// over stay, because what they enforce is better than nothing.
func (g *Guard) abort() error {
	close(g.done)
	if g.pins.found() {
		g.pins.leave()
	}
	return g.Close()
}

// unhook detaches all programs and keeps the last count of what was lost; g.mu
// is held.
func (g *Guard) unhook() error {
	errs := []error{g.pins.remove()}
	if g.exit != nil {
		errs = append(errs, g.exit.Close())
	}
	if g.hooks != nil {
		errs = append(errs, g.hooks.close())
		g.hooks = nil
	}
	for _, l := range g.links {
		errs = append(errs, l.Close())
	}
	for _, w := range g.watches {
		w.harvest()
		g.brakes[w.slot].Swap(nil).release()
	}
	if g.objs.OnExec != nil { // something was loaded
		g.asked = time.Time{}
		g.unreported = g.lost()
	}
	g.closed = true
	return errors.Join(errs...)
}
