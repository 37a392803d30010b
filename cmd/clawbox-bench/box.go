package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance"
	"github.com/clawbox/clawbox/appliance/egress"
	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/appliance/holds"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/sandbox"
	"github.com/clawbox/clawbox/policies"
)

// policyText is the policy of every sandbox here.
const policyText = `apiVersion: clawbox.io/v1
kind: AgentPolicy
metadata: {name: bench}
filesystem: {read: [/], write: [/workspace, /tmp], workdir: /workspace}
process: {exec: [/bin/, /usr/bin/, /usr/local/go/bin/, /usr/local/go/pkg/tool/], spawn: true}
network:
  default: deny
  allow:
    - {cidr: 192.0.2.0/24, ports: [7000]}
    - {host: bench.example, ports: [80]}
budgets: {processes: 512, memory: 4GiB, cpu: 4, openFiles: 4096, wallTime: 1h, disk: 2GiB, inodes: 100000}
audit: {files: all, network: all}
require: {landlock: 1, tier: %s}
`

// boxes is clawbox: the parts of the appliance that an agent's work meets, in
// one process. What the guard sees goes to a real ledger.
type boxes struct {
	dir    string
	image  sandbox.Image
	local  *sandbox.Local // with launchers that wait, as the appliance has them
	fresh  *sandbox.Local // without
	log    *ledger.Log
	guard  *guard.Guard
	proxy  *egress.Proxy
	shm    string
	memory *egress.Proxy // the same, with its ledger in memory
	logs   []*ledger.Log
	audit  *audit
	alone  *policies.Policy // for sandboxes without the guard
	policy atomic.Pointer[policies.Policy]
}

func openBoxes(dir, root string, dial func(context.Context, string, string) (net.Conn, error)) (b *boxes, err error) {
	b = &boxes{dir: dir, image: sandbox.Image{Ref: "bench", Layers: []string{root}}}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.guard, err = guard.Load(); err != nil {
		return b, err
	}
	p, err := policies.Parse("bench.yaml", fmt.Appendf(nil, policyText, b.guard.Tier()))
	if err != nil {
		return b, err
	}
	if b.alone, err = policies.Parse("bench.yaml", fmt.Appendf(nil, policyText, guard.TierNone)); err != nil {
		return b, err
	}
	b.policy.Store(p)
	log, err := b.openLedger(filepath.Join(dir, "ledger"))
	if err != nil {
		return b, err
	}
	b.audit = drain(b.guard, log, p)
	b.log = log
	o := sandbox.Options{State: filepath.Join(dir, "fresh"), Launcher: filepath.Join(dir, "clawbox-launch"), UIDBase: 910_000}
	if b.fresh, err = sandbox.Open(o); err != nil {
		return b, err
	}
	o.State, o.UIDBase, o.Warm, o.Ahead = filepath.Join(dir, "state"), 900_000, waiting, b.ahead
	if b.local, err = sandbox.Open(o); err != nil {
		return b, err
	}
	if b.proxy, err = b.openProxy(log, dial); err != nil {
		return b, err
	}
	if b.shm, err = os.MkdirTemp("/dev/shm", "clawbox-bench-"); err != nil {
		return b, err
	}
	if log, err = b.openLedger(filepath.Join(b.shm, "ledger")); err != nil {
		return b, err
	}
	b.memory, err = b.openProxy(log, dial)
	return b, err
}

func (b *boxes) openProxy(log *ledger.Log, dial func(context.Context, string, string) (net.Conn, error)) (*egress.Proxy, error) {
	book, err := holds.Open(holds.Config{Recorder: log})
	if err != nil {
		return nil, err
	}
	c := egress.Config{
		Recorder: log, Holds: book, Dial: dial,
		Lookup: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("192.0.2.80")}, nil
		},
	}
	if b.guard.Tier() != guard.TierNone {
		c.Steer = b.steer
	}
	return egress.New(c)
}

func (b *boxes) steer(ns *os.File, tcp syscall.RawConn) (io.Closer, error) {
	return b.guard.Steer(ns, tcp)
}

// landing is a network that was made ahead, like the appliance's.
type landing struct {
	*egress.Sockets
	land io.Closer
}

func (b *boxes) ahead(ns *os.File) (sandbox.Ahead, error) {
	if b.guard.Tier() == guard.TierNone {
		return nil, errors.New("nothing steers")
	}
	s, land, err := egress.OpenSockets(ns, egress.SocketOptions{Steer: b.steer})
	return landing{s, land}, err
}

func (l landing) Fresh() bool { return true }

func (l landing) Close() error { return errors.Join(l.Sockets.Close(), l.land.Close()) }

// served is a landing with egress behind it, which ends first.
type served struct{ at, on io.Closer }

func (s served) Close() error { return errors.Join(s.at.Close(), s.on.Close()) }

// waiting is how many launchers wait: the appliance's default.
const waiting = 2

// settle waits until that many wait again, so that a start finds what it would
// find on a host that is at rest.
func (b *boxes) settle() {
	for end := time.Now().Add(10 * time.Second); b.local.Waiting() < waiting && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond) // the last one mounts
}

func (b *boxes) openLedger(dir string) (*ledger.Log, error) {
	skey, _, err := note.GenerateKey(rand.Reader, "bench")
	if err != nil {
		return nil, err
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		return nil, err
	}
	l, err := ledger.Create(dir, s)
	if err == nil {
		b.logs = append(b.logs, l)
	}
	return l, err
}

func (b *boxes) close() error {
	var errs []error
	for _, l := range []*sandbox.Local{b.local, b.fresh} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	if b.guard != nil {
		errs = append(errs, b.guard.Close())
	}
	if b.audit != nil {
		errs = append(errs, b.audit.end())
	}
	for _, l := range b.logs {
		errs = append(errs, l.Close())
	}
	if b.shm != "" {
		errs = append(errs, os.RemoveAll(b.shm))
	}
	return errors.Join(errs...)
}

// agents are sandboxes of one kind: with full audit, or with the default,
// which records every exec and what was refused.
type agents struct {
	*boxes
	full bool
}

// name is what the agent of a job is called.
func name(j job) string { return fmt.Sprint("bench", j.slot) }

// start runs a job as an agent: everything that the appliance gives one.
func (b agents) start(ctx context.Context, j job) (running, error) {
	img := b.image
	img.Entrypoint = j.argv
	said := &tail{}
	s := sandbox.Spec{Name: name(j), Image: img, Policy: b.policy.Load(), Stdout: j.out, Stderr: said, Network: loopback}
	if j.open {
		way := b.proxy
		if j.memory {
			way = b.memory
		}
		a := egress.Agent{ID: s.Name, Policy: b.policy.Load}
		s.Network = func(ctx context.Context, _ int, ns *os.File) (io.Closer, error) { return way.Attach(ctx, a, ns) }
		s.Landed = func(ctx context.Context, l sandbox.Ahead) (io.Closer, error) {
			at, err := way.Serve(ctx, a, l.(landing).Sockets)
			if err != nil {
				return nil, errors.Join(err, l.Close())
			}
			return served{at, l}, nil
		}
	}
	// As in the appliance: on the ledger before the agent runs.
	kept := make(chan error, 1)
	go func() {
		kept <- b.log.Record(ctx, ledger.Record{Kind: ledger.KindLifecycle, Verdict: ledger.Allowed, Agent: s.Name, Reason: "agent.launch"})
	}()
	s.Before = func() error { return <-kept }
	if j.alone {
		s.Policy = b.alone
	} else if b.guard.Tier() != guard.TierNone {
		s.Guard = func(sc guard.Scope) (io.Closer, error) {
			sc.AuditOpens, sc.Connects, sc.AuditENOENT = b.full, b.full, true
			sc.Readable = []string{"/"}
			return b.guard.Watch(sc)
		}
	}
	local := b.local
	if j.fresh {
		local = b.fresh
	}
	box, err := local.Start(ctx, s)
	if err != nil {
		return nil, err
	}
	return &boxed{box, said}, nil
}

type boxed struct {
	box  *sandbox.Box
	said *tail
}

func (b *boxed) wait() error {
	if code, why := b.box.Wait(); code != 0 {
		return fmt.Errorf("the sandbox ended with status %d (%s): %s", code, why, b.said.get())
	}
	return nil
}

func (b *boxed) stop() error { return b.box.Stop(context.Background(), 0) }

// tail keeps the beginning of what a program says about its failure.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if room := 4096 - len(t.b); room > 0 {
		t.b = append(t.b, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

func (t *tail) get() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}

// loopback brings lo up and does no more: what bubblewrap and runc do, too.
func loopback(_ context.Context, _ int, ns *os.File) (io.Closer, error) {
	bad := make(chan error)
	go func() {
		runtime.LockOSThread() // and never back: the thread ends with the goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			bad <- fmt.Errorf("setns: %w", err)
			return
		}
		bad <- loUp()
	}()
	return io.NopCloser(nil), <-bad
}

func loUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	q, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	q.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, q)
}

// audit puts the guard's events on the ledger, as the appliance does.
type audit struct {
	done    chan struct{}
	err     error
	n, lost atomic.Uint64
	tier    guard.Tier
}

func drain(g *guard.Guard, log *ledger.Log, p *policies.Policy) *audit {
	a := &audit{done: make(chan struct{}), tier: g.Tier()}
	go func() {
		defer close(a.done)
		a.err = appliance.Witness(g, log, p, func(rs []ledger.Record) {
			a.n.Add(uint64(len(rs)))
			a.lost.Store(g.Lost())
		})
	}()
	return a
}

func (a *audit) end() error { <-a.done; return a.err }

// sum says what the record holds, for the report.
func (a *audit) sum() string {
	return fmt.Sprintf("guard tier %s; %d records on the ledger, %d events lost", a.tier, a.n.Load(), a.lost.Load())
}
