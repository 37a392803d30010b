package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/confine"
	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/policies"
)

const skeletonPrefix = "skeleton-"

// Box is a running sandbox.
type Box struct {
	l      *Local
	name   string
	id     owner
	policy *policies.Policy
	spec   confine.Spec // as the agent was started with
	notes  []string
	event  func(Event)
	began  time.Time

	where    site
	g        *group
	cgroupID uint64
	p        *launcher
	ahead    Ahead // until the network takes it over
	network  io.Closer
	guard    io.Closer
	disk     disk
	rooms    []watched // what can become full
	out      []*late

	mu  sync.Mutex // guards why
	why string     // why it ends, once someone ends it

	gone chan struct{} // closed when nothing of it is left
	code int           // valid once gone
	err  error         // what cleaning up met; valid once gone
}

// Start runs an agent. It returns when the agent's own program has been
// executed under full confinement; on an error nothing remains.
func (l *Local) Start(ctx context.Context, s Spec) (_ *Box, err error) {
	if len(s.Image.Layers) == 0 {
		return nil, fmt.Errorf("sandbox: image %q has no layers; want one from Images.Prepare", s.Image.Ref)
	}
	return l.launch(ctx, s, own{})
}

// launch is Start at a given site.
func (l *Local) launch(ctx context.Context, s Spec, where site) (_ *Box, err error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	if err := l.meets(&s); err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", s.Name, err)
	}
	if err := l.claim(s.Name); err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	b := &Box{l: l, where: where, name: s.Name, policy: s.Policy, event: s.Event, gone: make(chan struct{})}
	if b.event == nil {
		b.event = func(Event) {}
	}
	defer l.refillSoon()
	if err := b.start(ctx, &s); err != nil {
		b.teardown()
		return nil, errors.Join(fmt.Errorf("sandbox %s: %w", s.Name, err), b.err)
	}
	l.runs(b)
	go b.watch(s.Policy.Budgets)
	return b, nil
}

// start takes the steps of docs/architecture.md, "The sandbox's life".
// Whatever it has made when it fails, teardown removes.
func (b *Box) start(ctx context.Context, s *Spec) (err error) {
	if b.id, err = b.l.owner(b.name, s.Policy.Process); err != nil {
		return err
	}
	root, err := b.prepare(s)
	if err != nil {
		return err
	}
	b.done("prepare")
	if err := b.where.enclose(ctx, b, s, root); err != nil {
		return err
	}
	c, err := b.compile(s)
	if err != nil {
		return err
	}
	b.done("compile")
	if err := b.attach(ctx, s, c); err != nil {
		return err
	}
	b.done("attach")
	if err := b.watchRoom(); err != nil {
		return err
	}
	if s.Before != nil {
		if err := s.Before(); err != nil {
			return err
		}
	}
	b.spec, b.notes, b.began = c.spec, append(b.notes, c.notes...), time.Now()
	err = b.p.launch(ctx, &b.spec)
	b.done("launch")
	return err
}

// done tells a benchmark that a step of the start is over.
func (b *Box) done(step string) {
	if b.l.mark != nil {
		b.l.mark(step)
	}
}

// prepare makes everything on disk. The Root has no layers yet.
func (b *Box) prepare(s *Spec) (*confine.Root, error) {
	ws := writes(s.Policy)
	root := &confine.Root{
		Version: confine.Version, Hostname: user, Scratch: s.Policy.Budgets.Scratch, Shm: shmSize,
		Supervisor: confine.Spec{
			Version: confine.Version, Dir: "/", UID: b.id.uid, GID: b.id.gid,
			Limits: rlimits(s.Policy), Landlock: confine.Landlock{ABI: b.l.abi},
		},
	}
	var err error
	if root.Supervisor.Seccomp, err = confine.Profile("supervisor"); err != nil {
		return nil, err
	}
	if err := b.openDisk(s, len(ws) > 0); err != nil {
		return nil, err
	}
	for _, w := range ws {
		src, err := b.l.writable(b.name, w, b.id)
		if err != nil {
			return nil, err
		}
		root.Binds = append(root.Binds, confine.Bind{Source: src, Target: w, Writable: true})
	}
	return root, os.MkdirAll(b.l.agentDir(b.name), 0o711)
}

func (b *Box) compile(s *Spec) (*compiled, error) {
	// Pinned contents are compared at every start.
	key, pinned := compileKey(s, b.l.abi), len(s.Policy.Process.ExecHashes) > 0
	if c := b.l.recall(key); c != nil && !pinned {
		return c.again(s, b.id, b.l.abi)
	}
	v, err := lookInto(b.PID())
	if err != nil {
		return nil, err
	}
	defer v.close()
	c, err := compile(v, s, b.id, b.l.abi)
	if err == nil && !v.loose && !pinned {
		b.l.remember(key, c)
	}
	return c, err
}

// attach connects the sandbox to the guard first, so that no moment exists in
// which it has a network and no witness.
func (b *Box) attach(ctx context.Context, s *Spec, c *compiled) error {
	if s.Guard != nil {
		sc, err := b.scope(s, c.exec)
		if err != nil {
			return err
		}
		if b.guard, err = s.Guard(sc); err != nil {
			return fmt.Errorf("guard: %w", err)
		}
	}
	return b.connect(ctx, s)
}

// connect gives the sandbox its network: one that was made ahead, or else a
// new one.
func (b *Box) connect(ctx context.Context, s *Spec) error {
	if b.ahead != nil {
		a := b.ahead
		b.ahead = nil // whether it succeeds or not
		var err error
		if b.network, err = s.Landed(ctx, a); err != nil {
			return fmt.Errorf("network: %w", err)
		}
		return nil
	}
	if s.Network == nil {
		return nil
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", b.PID()))
	if err != nil {
		return err
	}
	defer ns.Close()
	if b.network, err = s.Network(ctx, b.PID(), ns); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	return nil
}

func (b *Box) scope(s *Spec, exec []string) (guard.Scope, error) {
	sc := guard.Scope{ID: b.name, CgroupID: b.cgroupID, Cgroup: b.g.dir()}
	nodes, err := inodes(b.PID(), exec)
	if err != nil {
		return sc, err
	}
	paths := make(map[guard.Inode]string, len(nodes))
	for i, n := range nodes {
		if paths[n] == "" {
			sc.Exec = append(sc.Exec, n)
			paths[n] = exec[i]
		}
	}
	if s.Programs != nil {
		s.Programs(paths)
	}
	return sc, nil
}

// PID is the host's number for the sandbox's first process, the launcher.
func (b *Box) PID() int { return b.p.pid }

// UID is the agent's user id, on the host as in the sandbox.
func (b *Box) UID() int { return b.id.uid }

// CgroupID is the id of the sandbox's cgroup v2 node.
func (b *Box) CgroupID() uint64 { return b.cgroupID }

// Notes tell what the policy names and the image lacks; nothing was granted
// for it.
func (b *Box) Notes() []string { return slices.Clone(b.notes) }

// Stats reports what the sandbox uses now.
func (b *Box) Stats() (Stats, error) { return b.g.stats() }

// Wait returns when nothing of the sandbox is left: the agent's exit status
// (128 plus the signal's number when one ended it) and why it ended.
func (b *Box) Wait() (code int, why string) {
	<-b.gone
	return b.code, b.why
}

// Stop asks the agent to end (SIGTERM), and after grace, or when ctx is done,
// ends everything. It returns when nothing of the sandbox is left; once ctx is
// done it waits no longer and returns ctx's error: Wait tells of the end.
func (b *Box) Stop(ctx context.Context, grace time.Duration) error {
	b.because("stopped on request")
	if err := b.p.end(); err != nil {
		return err
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-b.gone:
		return b.err
	case <-t.C:
	case <-ctx.Done():
	}
	if err := b.kill(); err != nil {
		return err
	}
	select {
	case <-b.gone:
		return b.err
	case <-ctx.Done():
		return fmt.Errorf("sandbox %s was killed and is not gone yet: %w", b.name, context.Cause(ctx))
	}
}

// because keeps the first reason.
func (b *Box) because(why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.why == "" {
		b.why = why
	}
}

// kill ends PID 1, and with it the kernel ends its namespace; the cgroup ends
// what might be on its way in.
func (b *Box) kill() error {
	return errors.Join(b.p.signal(unix.SIGKILL), b.g.kill())
}

// watch accompanies the sandbox to its end.
func (b *Box) watch(p policies.Budgets) {
	wall := time.NewTimer(p.WallTime)
	defer wall.Stop()
	poll := time.NewTicker(500 * time.Millisecond)
	defer poll.Stop()
	var seen strikes
	for {
		select {
		case <-poll.C:
			b.report(&seen)
			continue
		case <-wall.C:
			why := fmt.Sprintf("budget wallTime: it ran for %v", p.WallTime)
			b.because(why)
			b.kill() // first: whoever listens may be slow
			b.event(Event{Budget: "wallTime", Count: 1, Detail: why})
			continue
		case <-b.p.done:
		}
		break
	}
	b.report(&seen)
	b.code = b.p.code()
	if b.code == 128+int(unix.SIGKILL) && seen.memory > 0 {
		b.because("budget memory: the kernel ended it for lack of memory")
	}
	b.because(fmt.Sprintf("exited with status %d", b.code))
	b.teardown()
}

// report tells what budgets were hit since the last time.
func (b *Box) report(seen *strikes) {
	now, err := b.g.strikes()
	if err != nil {
		return
	}
	if n := now.tasks - seen.tasks; n > 0 {
		b.event(Event{"processes", n, fmt.Sprintf("%d times a process or thread was refused", n)})
	}
	if n := now.memory - seen.memory; n > 0 {
		b.event(Event{"memory", n, fmt.Sprintf("the kernel ended %d processes for lack of memory", n)})
	}
	*seen = now
	for i := range b.rooms {
		b.rooms[i].report(b.event)
	}
	for _, o := range b.out {
		if n := o.slowed(); n > 0 {
			b.event(Event{"output", n, fmt.Sprintf("its output waited %d times: more than %d bytes in %v", n, outputSpan, span)})
		}
	}
}

// teardown ends and removes whatever there is, in the reverse order of start:
// the guard is the last to look away.
func (b *Box) teardown() {
	var errs []error
	if b.g != nil {
		errs = append(errs, b.g.kill())
	}
	if b.p != nil {
		errs = append(errs, b.p.signal(unix.SIGKILL))
		<-b.p.done
	}
	for _, c := range []io.Closer{b.network, b.ahead, b.guard} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	if b.g != nil {
		errs = append(errs, b.g.remove(5*time.Second))
	}
	if b.p != nil {
		b.p.close()
	}
	for _, r := range b.rooms {
		r.at.Close()
	}
	errs = append(errs, b.where.leave())
	b.err = errors.Join(errs...)
	b.l.release(b.name)
	close(b.gone)
}
