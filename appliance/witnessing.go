package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/clawbox/clawbox/appliance/egress"
	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/appliance/service"
)

// The guard's service keeps three capabilities (bpf, perfmon, net_admin) and
// reads the kernel's files. It sees what sandboxes do, and writes it to the
// ledger by itself. What it attaches is pinned, so it goes on enforcing when
// the guard dies; the agents are stopped then all the same, because nobody
// would tell what they do.

// What the guard answers, besides callAgent, callForget and callLink; callDir
// and callRunaway it asks of the supervisor.
const (
	callState   = "state"   // → guardState
	callWatch   = "watch"   // watching: from now on
	callUnwatch = "unwatch" // ref: after its processes
	callOwes    = "owes"    // ref → time.Duration: until it may start, see startWeight
	callSteer   = "steer"   // ref; the namespace and a listener in it
	callUnsteer = "unsteer" // ref
	callWho     = "who"     // whoAsked → egress.Caller; for egress
	callDir     = "dir"     // dirAsked → path
	callRunaway = "runaway" // ref: stop it
)

// guardConfig is what the guard is started with.
type guardConfig struct {
	Pin    string `json:"pin"`    // see guard.Options
	Cgroup string `json:"cgroup"` // a place for its self-test
	// Records is what an agent's records may take, in bytes: see allowance.
	Records int64 `json:"records"`
}

// guardState is the guard's account of itself.
type guardState struct {
	Tier guard.Tier `json:"tier"`
	Why  string     `json:"why"`
	Lost uint64     `json:"lost"`
}

// watching is a sandbox to watch.
type watching struct {
	Scope    guard.Scope `json:"scope"`
	Programs []program   `json:"programs"`
}

// program is where a listed program is in the sandbox.
type program struct {
	Inode guard.Inode `json:"inode"`
	Path  string      `json:"path"`
}

// whoAsked is one connection, as the server's side sees it.
type whoAsked struct {
	Agent  string         `json:"agent"`
	Client netip.AddrPort `json:"client"`
	Server netip.AddrPort `json:"server"`
}

// dirAsked is what a path was relative to.
type dirAsked struct {
	PID int   `json:"pid"`
	FD  int32 `json:"fd"`
}

// guardService watches every sandbox.
type guardService struct {
	g      *guard.Guard
	self   *service.Self
	agents roster

	allow   *allowance
	freezes freezes
	full    fulls

	mu       sync.Mutex // guards the rest
	watches  map[string]*guard.Watch
	steers   map[string]io.Closer
	programs map[string]map[guard.Inode]string
}

func guardRole(s *service.Self, r *service.Request) (service.Handler, error) {
	var c guardConfig
	if err := r.Decode(&c); err != nil {
		return nil, err
	}
	f, err := r.File(0)
	if err != nil {
		return nil, err
	}
	log, err := dialLedger(f)
	if err != nil {
		return nil, err
	}
	g, err := guard.Load(guard.Options{Pin: c.Pin, Cgroup: c.Cgroup, Acknowledge: c.Pin != ""})
	if err != nil {
		return nil, err
	}
	// What is read is handed from goroutine to goroutine, event by event. With a
	// second processor Go wakes a thread for most of them, and looks for work in
	// vain: a third of what an event takes here.
	runtime.GOMAXPROCS(1)
	// The self-test runs programs; from here on nothing does.
	if err := s.Seal(); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	gs := &guardService{
		g: g, self: s, allow: newAllowance("guard", c.Records), watches: map[string]*guard.Watch{}, steers: map[string]io.Closer{}, programs: map[string]map[guard.Inode]string{},
	}
	gs.full.tell = tellFull(s.Conn)
	w := &witness{g: g, rec: log, agents: gs.policy, dir: gs.dir, runaway: gs.runaway, spent: gs.spent, full: gs.full.add, fail: func(err error) {
		// The end of this process is the end of the agents.
		slog.Error("guard", "error", err)
		s.Conn.Close()
	}}
	told := make(chan struct{})
	go func() { defer close(told); w.run() }()
	s.OnEnd(closer(func() error { <-told; return nil }))
	s.OnEnd(g)
	go func() { // no event, no action
		<-log.c.Done()
		s.Conn.Close()
	}()
	return gs.supervisor, nil
}

func (gs *guardService) policy(id string) (*governing, bool) {
	l, err := gs.agents.get(id)
	if err != nil {
		return nil, false
	}
	return l.pol.Load(), true
}

// dir asks the supervisor, because this process may not look at others.
func (gs *guardService) dir(pid int, fd int32) (dir string) {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	_ = gs.self.Conn.Call(ctx, callDir, dirAsked{pid, fd}, &dir) // a hint: without it the path stays relative
	return dir
}

func (gs *guardService) runaway(agent string) {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	if err := gs.self.Conn.Call(ctx, callRunaway, ref{agent}, nil); err != nil {
		gs.self.Conn.Close() // then all are stopped
	}
}

// supervisor answers the supervisor.
func (gs *guardService) supervisor(_ context.Context, r *service.Request) (any, error) {
	switch r.Method {
	case callState:
		return guardState{gs.g.Tier(), gs.g.Why(), gs.g.Lost()}, nil
	case callLink:
		f, err := r.File(0)
		if err == nil {
			_, err = service.NewConn(f, gs.egress)
		}
		return nil, err
	case callAgent:
		var a agentInfo
		if err := r.Decode(&a); err != nil {
			return nil, err
		}
		_, err := gs.agents.put(a)
		return nil, err
	case callWatch:
		return nil, gs.watch(r)
	}
	var a ref
	if err := r.Decode(&a); err != nil {
		return nil, err
	}
	switch r.Method {
	case callOwes:
		return gs.allow.owes(a.ID, startWeight, time.Now()), nil
	case callSteer:
		return nil, gs.steer(a.ID, r)
	case callUnsteer:
		return nil, gs.unsteer(a.ID)
	case callUnwatch:
		return nil, gs.unwatch(a.ID)
	case callForget:
		gs.agents.drop(a.ID)
		return nil, nil
	}
	return nil, fmt.Errorf("the guard knows no %q", r.Method)
}

func (gs *guardService) watch(r *service.Request) error {
	var v watching
	if err := r.Decode(&v); err != nil {
		return err
	}
	gs.mu.Lock()
	w := gs.watches[v.Scope.ID]
	gs.mu.Unlock()
	var err error
	if w != nil { // a pod's launcher stands, and the agent's programs follow
		err = w.Update(v.Scope)
	} else {
		w, err = gs.g.Watch(v.Scope)
	}
	if err != nil {
		return err
	}
	gs.mu.Lock()
	defer gs.mu.Unlock()
	paths := map[guard.Inode]string{}
	for _, p := range v.Programs {
		paths[p.Inode] = p.Path
	}
	gs.watches[v.Scope.ID], gs.programs[v.Scope.ID] = w, paths
	return nil
}

// unwatch returns when all that happened in the scope is on the ledger's way.
func (gs *guardService) unwatch(id string) error {
	gs.mu.Lock()
	w := gs.watches[id]
	delete(gs.watches, id)
	delete(gs.programs, id)
	gs.mu.Unlock()
	gs.freezes.drop(id)
	if w == nil {
		return nil
	}
	err := w.Close()
	gs.full.drop(id)
	return err
}

func (gs *guardService) steer(id string, r *service.Request) error {
	ns, err := r.File(0)
	if err != nil {
		return err
	}
	defer ns.Close()
	l, err := r.File(1)
	if err != nil {
		return err
	}
	defer l.Close()
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	c, err := gs.g.Steer(ns, raw)
	if err != nil {
		return err
	}
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.steers[id] = c
	return nil
}

func (gs *guardService) unsteer(id string) error {
	gs.mu.Lock()
	c := gs.steers[id]
	delete(gs.steers, id)
	gs.mu.Unlock()
	if c == nil {
		return nil
	}
	return c.Close()
}

// egress answers egress: who opened a connection.
func (gs *guardService) egress(_ context.Context, r *service.Request) (any, error) {
	var q whoAsked
	if r.Method != callWho {
		return nil, fmt.Errorf("egress may not ask the guard for %q", r.Method)
	}
	if err := r.Decode(&q); err != nil {
		return nil, err
	}
	c, ok := gs.g.Who(q.Agent, q.Client, q.Server)
	if !ok {
		return nil, errors.New("not known")
	}
	gs.mu.Lock()
	defer gs.mu.Unlock()
	paths := gs.programs[q.Agent]
	out := egress.Caller{At: c.At, PID: c.PID, PPID: c.PPID, UID: c.UID, Comm: c.Comm, Binary: paths[c.Exe]}
	for _, n := range c.Ancestors {
		// The sandbox's first process is ours and listed nowhere.
		if p := paths[n]; p != "" {
			out.Ancestors = append(out.Ancestors, p)
		}
	}
	return out, nil
}
