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
// not, and dies. So listed files must lie where the agent can't write.
// Code that enters a listed program by other ways (a script given to a listed
// interpreter, mmap of a library, a JIT) is not the guard's: file system view,
// Landlock and noexec mounts bound it.
//
// "No event, no action": an exec whose event found no room in the ring is
// killed too. Whoever watches must drain Events, or the agents stop.
//
// # What is only reported
//
// System calls of the table in syscalls.go that failed with EACCES, EPERM or
// EROFS (ENOENT where the scope asks for it, ESRCH where a signal was aimed at
// a process that the agent can't see). The kernel refused them already;
// the guard tells. Path and address are read from the caller's memory after
// the call, where another thread may have changed them: they are a hint, the
// refusal is a fact. Requests through io_uring and the 32-bit system calls of
// a 64-bit machine do not show here by name: confine them by seccomp.
// A scope reports at most 1000 refusals in about a second, and besides 2000
// names that do not exist (ENOENT), which so never displace a refusal. The next
// event of the same sort carries the number of those left out (Event.Skipped,
// Event.SkippedMissing). A path of more than 510 bytes is cut (Event.Cut), so
// that the ring, which all scopes share, holds a second's worth of any flood.
//
// # What may be audited
//
// With Scope.AuditOpens each call that returns the descriptor of a file becomes
// an event, without a limit: folders and O_PATH included (a descriptor that
// gives no access to the content still takes part in finding it), the 32-bit
// calls too. "No event, no action" again: who can't be reported is killed
// before it sees the descriptor. What the call did by itself, creating or
// emptying a file, has happened. File and Inode come from the descriptor table
// and not from the caller's memory; but a thread that foresees the number can
// put another file there between the kernel's open and this look. A process
// that shares its table (CLONE_FILES, not a thread) survives the kill of the
// other. io_uring and descriptors received over a socket are not seen: the
// first is seccomp's, the second were opened by somebody. The program that
// execve loads is its Exec event and no other.
//
// # Limits today
//
// This is tier T3 (see [Tier]). Enforcement lives as long as the process that
// called Load: nothing is pinned yet, so sandboxes must die with the daemon
// (the launcher asks the kernel for that with PDEATHSIG).
package guard

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
)

// Tier says by which kernel mechanism programs are kept from running.
type Tier string

// The tiers, strongest first. T1 (BPF LSM) and T2 (fmod_ret) refuse an exec
// with an error instead of killing; this version never reports them.
const (
	TierLSM        Tier = "T1"
	TierModify     Tier = "T2"
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

// Sizes of the rings in bytes, some 6000 execs and 40,000 opens: the time that
// the record may take before processes are killed for want of it. The ring of
// refusals takes what one scope can cause across the border of two seconds,
// 2 × (1000 events of two paths, 1.2 KB, and 2000 of one, 0.7 KB).
var (
	execRing    uint32 = 1 << 20
	refusalRing uint32 = 8 << 20
	openRing    uint32 = 8 << 20
)

// Guard holds the loaded programs. Its methods are safe for concurrent use.
type Guard struct {
	tier   Tier
	why    string
	events chan Event
	done   chan struct{} // closed when nobody receives any more

	// Set by open, then read only.
	objs   witnessObjects
	mount  mount // the cgroup v2 hierarchy
	exec   link.Link
	queues []*queue
	read   sync.WaitGroup

	sent, dropped atomic.Int64 // events that went into the stream, or could not
	detached      atomic.Bool  // nothing new comes into the rings

	mu         sync.Mutex // guards the rest
	exit       link.Link  // attached while a scope is watched: it costs the whole host
	watches    map[uint64]*Watch
	names      map[uint64]string // cgroup id → scope, also of scopes closed recently
	retired    []uint64          // closed scopes, oldest first
	unreported uint64            // rate-limited refusals that no event told of
	lostBy     map[uint64]uint64 // cgroup id → events lost, but for what the kernel still counts
	closed     bool
}

// Options say how to load.
type Options struct {
	// Pin is a directory of the BPF file system, of this appliance alone: links
	// and maps are pinned there, so that enforcement outlives this process, and
	// the next Load takes over. Empty: enforcement ends with the process.
	Pin string

	// Want is the best tier to try; empty is T1.
	Want Tier

	// Cgroup is a directory of the v2 hierarchy in which this process may make
	// cgroups for its self-test. Empty: its own cgroup, or else the top.
	Cgroup string
}

// Load attaches the programs and proves on a child process that an unlisted
// program is killed, a listed one runs and both are reported.
//
// Where the kernel has no (usable) BPF, Load returns a Guard of TierNone that
// says [Guard.Why]; whether that is enough is the policy's decision. An error
// means that the programs are attached and yet do not do their work.
func Load(opts ...Options) (*Guard, error) {
	if len(opts) > 0 && (opts[0].Pin != "" || opts[0].Want != "" || opts[0].Cgroup != "") {
		return nil, errors.New("guard: options are not implemented in this version, call Load without them")
	}
	g, err := open()
	if err != nil {
		return LoadNone(err.Error()), nil
	}
	if err := g.selfTest(); err != nil {
		return nil, errors.Join(fmt.Errorf("guard: self-test: %w", err), g.Close())
	}
	return g, nil
}

// LoadNone returns a Guard that enforces and reports nothing, for the reason
// given: a decision that the caller makes and records.
func LoadNone(why string) *Guard {
	return &Guard{tier: TierNone, why: why, events: make(chan Event), done: make(chan struct{})}
}

// Tier tells what this Guard enforces.
func (g *Guard) Tier() Tier { return g.tier }

// Why says what kept the Guard from a better tier; empty at T3.
func (g *Guard) Why() string { return g.why }

// Events is the one stream of all scopes; it is closed by Close. Execs come in
// the order of the kernel, refusals likewise; between the two only Time tells.
func (g *Guard) Events() <-chan Event { return g.events }

// open loads and attaches everything but the sys_exit program.
func open() (*Guard, error) {
	m, err := cgroup2()
	if err != nil {
		return nil, err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("BPF is not ours to use (want root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN): %w", err)
	}
	g := &Guard{
		tier: TierTracepoint, mount: m,
		events: make(chan Event, 256), done: make(chan struct{}),
		watches: map[uint64]*Watch{}, names: map[uint64]string{}, lostBy: map[uint64]uint64{},
	}
	spec, err := loadWitness()
	if err != nil {
		return nil, err
	}
	spec.Maps[witnessMapExecs].MaxEntries = execRing
	spec.Maps[witnessMapRefusals].MaxEntries = refusalRing
	spec.Maps[witnessMapOpens].MaxEntries = openRing
	if err := spec.LoadAndAssign(&g.objs, nil); err != nil {
		return nil, fmt.Errorf("load BPF programs: %w", err)
	}
	if err := g.attach(); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	keep(g)
	return g, nil
}

func (g *Guard) attach() error {
	if err := fillShapes(g.objs.Shapes); err != nil {
		return fmt.Errorf("fill the system call table: %w", err)
	}
	err := errors.Join(
		g.objs.PerSecond.Set(uint32(refusalsPerSecond)),
		g.objs.MissesPerSecond.Set(uint32(missesPerSecond)))
	if err != nil {
		return fmt.Errorf("set the rate limits: %w", err)
	}
	l, err := attachTracepoint(g.objs.OnExec)
	if err != nil {
		return fmt.Errorf("attach to sched_process_exec: %w", err)
	}
	g.exec = l
	for _, m := range []*ebpf.Map{g.objs.Execs, g.objs.Refusals, g.objs.Opens} {
		q, err := newQueue(m)
		if err != nil {
			return fmt.Errorf("open event ring: %w", err)
		}
		g.queues = append(g.queues, q)
		g.read.Go(func() { g.follow(q) })
	}
	return nil
}

func attachTracepoint(p *ebpf.Program) (link.Link, error) {
	return link.AttachTracing(link.TracingOptions{Program: p, AttachType: ebpf.AttachTraceRawTp})
}

// Close ends all enforcement and the stream of events. What happened before is
// delivered first: receive from Events until it is closed. If nothing was
// received for two seconds, the rest is given up, counted by Lost and reported
// as an error.
func (g *Guard) Close() error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil
	}
	errs := []error{g.unhook()}
	g.mu.Unlock()
	g.drain()
	for _, q := range g.queues {
		errs = append(errs, q.r.Close())
	}
	close(g.events)
	if n := g.dropped.Load(); n > 0 {
		errs = append(errs, fmt.Errorf("guard: nobody received from Events for %v: %d events are lost", patience, n))
	}
	if g.tier != TierNone {
		errs = append(errs, g.objs.Close())
	}
	drop(g)
	return errors.Join(errs...)
}

// unhook detaches all programs and keeps the last count of what was lost; g.mu
// is held.
func (g *Guard) unhook() error {
	var errs []error
	for _, l := range []link.Link{g.exit, g.exec} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	for _, w := range g.watches {
		w.harvest()
	}
	if g.objs.LostExecs != nil { // something was loaded
		g.unreported = g.lost()
	}
	g.closed = true
	return errors.Join(errs...)
}

// held keeps what enforces reachable: the kernel detaches a program when the
// garbage collector finalizes its link, and nobody would notice.
var held = struct {
	sync.Mutex
	m map[any]struct{}
}{m: map[any]struct{}{}}

func keep(v any) {
	held.Lock()
	defer held.Unlock()
	held.m[v] = struct{}{}
}

func drop(v any) {
	held.Lock()
	defer held.Unlock()
	delete(held.m, v)
}
