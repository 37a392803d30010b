package appliance

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/service"
)

// Services are the roles of `clawbox service ROLE`, which the supervisor
// starts.
var Services = map[string]service.Role{
	"egress":   egressRole,
	"guard":    guardRole,
	"ledger":   ledgerRole,
	"registry": registryRole,
	"relay":    relayRole,
	"router":   routerRole,
}

const (
	startTime = 90 * time.Second // a service's start: proof, configuration, its own set-up; the guard's programs are verified
	callTime  = 10 * time.Second // a call that a healthy service answers at once
	lookTime  = 2 * time.Second  // a call for what is only shown
	endTime   = 10 * time.Second // its orderly end
	pulse     = 5 * time.Second  // between two looks whether it still answers
	lifeTime  = 20 * time.Second // without an answer it counts as dead
)

// part is one service under supervision.
type part struct {
	role string
	// spec is made anew for each start.
	spec func(ctx context.Context) (order, error)
	// up is called after each start, before anyone else uses the service; down
	// after each unexpected end. Either may be nil.
	up   func(ctx context.Context, p *service.Process) error
	down func(why error)
	// once: its end is the appliance's end.
	once bool

	// starting is held while it is brought up: who has something to tell it
	// waits, or up could have read what is no longer so.
	starting sync.Mutex

	mu     sync.Mutex // guards the rest
	p      *service.Process
	starts int
	since  time.Time
	last   error // why it ended last
	ending bool
}

// order is what to start. The descriptors given are the service's alone.
type order struct {
	service.Spec
	given []*os.File
}

// process is the running service, or nil.
func (t *part) process() *service.Process {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.p
}

// conn is the way to the running service, or an error.
func (t *part) conn() (*service.Conn, error) {
	if p := t.process(); p != nil {
		return p.Conn, nil
	}
	return nil, errDown
}

// errDown says that a service does not run now.
var errDown = errors.New("the service does not run; it is started again in a moment")

// call is Conn.Call on the running service, see ask.
func (t *part) call(ctx context.Context, method string, in, out any, files ...*os.File) error {
	p := t.process()
	if p == nil {
		return fmt.Errorf("%s: %w", method, errDown)
	}
	return ask(ctx, p, method, in, out, files...)
}

// ask gives a service callTime to answer, or until ctx ends. One that takes
// longer is ended, so that what it may still be at dies with it.
func ask(ctx context.Context, p *service.Process, method string, in, out any, files ...*os.File) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, callTime, errStuck)
		defer cancel()
	}
	err := p.Conn.Call(ctx, method, in, out, files...)
	if err != nil && errors.Is(context.Cause(ctx), errStuck) {
		slog.Error("a service does not answer, and is ended", "service", p.Role, "call", method)
		p.Kill()
		return fmt.Errorf("%s: service %s: %w", method, p.Role, errStuck)
	}
	return err
}

var errStuck = errors.New("it does not answer, and is ended")

// look asks a running service for what is only shown: no answer is none.
func (t *part) look(method string, out any) {
	ctx, cancel := context.WithTimeout(context.Background(), lookTime)
	defer cancel()
	if c, err := t.conn(); err == nil {
		_ = c.Call(ctx, method, nil, out)
	}
}

// start starts it once.
func (t *part) start(ctx context.Context) error {
	t.starting.Lock()
	defer t.starting.Unlock()
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	s, err := t.spec(ctx)
	if err != nil {
		return fmt.Errorf("service %s: %w", t.role, err)
	}
	p, err := service.Start(ctx, s.Spec)
	for _, f := range s.given {
		f.Close()
	}
	if err != nil {
		return err
	}
	if t.up != nil {
		if err := t.up(ctx, p); err != nil {
			p.Kill()
			return fmt.Errorf("service %s: %w", t.role, err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.p, t.since = p, time.Now().UTC()
	t.starts++
	return nil
}

// status describes the service.
func (t *part) status() control.ServiceStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	st := control.ServiceStatus{Name: t.role, Restarts: max(0, t.starts-1)}
	if t.last != nil {
		st.LastEnd = t.last.Error()
	}
	if t.p != nil {
		st.PID, st.UID, st.Since = t.p.PID, t.p.Proof.UID, t.since
		st.Keeps, st.Landlock, st.Refused = t.p.Proof.Keeps, t.p.Proof.Landlock, t.p.Proof.Refused
	}
	return st
}

// part finds a service by role; nil where this appliance has none.
func (a *Appliance) part(role string) *part {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range a.parts {
		if t.role == role {
			return t
		}
	}
	return nil
}

// employ starts a service and looks after it from then on.
func (a *Appliance) employ(ctx context.Context, t *part) error {
	if err := t.start(ctx); err != nil {
		return err
	}
	a.mu.Lock()
	a.parts = append(a.parts, t)
	a.mu.Unlock()
	go a.tend(t)
	return nil
}

// Pauses between a service's end and its next start.
const (
	firstPause = 50 * time.Millisecond
	maxPause   = 10 * time.Second
	goodRun    = time.Minute // after a run this long the pauses begin anew
)

// tend starts a service again whenever it ends, until the appliance does.
func (a *Appliance) tend(t *part) {
	pause := firstPause
	for {
		p := t.process()
		go heed(p, pulse, lifeTime)
		select {
		case <-p.Done():
		case <-p.Conn.Done(): // it lives, and has stopped talking
			p.Kill()
		}
		if !t.ended(p) {
			return
		}
		if t.ran() > goodRun {
			pause = firstPause
		}
		a.lost(t, p.Err())
		if t.once {
			return
		}
		for {
			time.Sleep(pause)
			pause = min(2*pause, maxPause)
			if t.over() {
				return
			}
			err := t.start(context.Background())
			if err == nil {
				break
			}
			slog.Error("service did not start again", "service", t.role, "error", err)
		}
		if t.over() { // the end came while it started
			t.process().Kill()
			return
		}
		a.restarted(t)
	}
}

// heed ends a service that answers nobody: stopped, or caught in a loop. What
// it was there to decide or to record is done by nobody meanwhile.
func heed(p *service.Process, every, limit time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-p.Conn.Done():
			return
		case <-tick.C:
		}
		if err := p.Alive(limit); err != nil {
			slog.Error("a service does not answer, and is ended", "service", p.Role, "error", err)
			p.Kill()
			return
		}
	}
}

// ended notes the end of p, and says whether it was unexpected.
func (t *part) ended(p *service.Process) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.p, t.last = nil, fmt.Errorf("%s: %w", time.Now().UTC().Format(time.RFC3339), p.Err())
	return !t.ending
}

// ran is how long ago the last start was.
func (t *part) ran() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Since(t.since)
}

func (t *part) over() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ending
}

// lost records that a service ended, and lets its part do what has to follow.
func (a *Appliance) lost(t *part, why error) {
	slog.Error("service ended", "service", t.role, "error", why)
	if t.down != nil {
		t.down(why)
	}
	if t.role == "ledger" {
		return
	}
	rec := ledger.Record{Kind: ledger.KindService, Verdict: ledger.Denied, Reason: "service.lost", Detail: t.role + ": " + why.Error(), Attrs: map[string]any{"service": t.role}}
	if err := a.log.Record(context.Background(), rec); err != nil {
		a.fail(fmt.Errorf("the end of service %s could not be recorded: %w", t.role, err))
	}
}

func (a *Appliance) restarted(t *part) {
	st := t.status()
	slog.Info("service runs again", "service", t.role, "pid", st.PID)
	rec := ledger.Record{Kind: ledger.KindService, Verdict: ledger.Allowed, Reason: "service.restarted", Detail: t.role, Attrs: map[string]any{"service": t.role, "restarts": st.Restarts}}
	if err := a.log.Record(context.Background(), rec); err != nil {
		a.fail(fmt.Errorf("the start of service %s could not be recorded: %w", t.role, err))
	}
}

// dismiss ends one service in order.
func (a *Appliance) dismiss(role string) error {
	t := a.part(role)
	if t == nil {
		return nil
	}
	t.mu.Lock()
	again := t.ending
	t.ending = true
	p := t.p
	t.mu.Unlock()
	if p == nil || again {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), endTime)
	defer cancel()
	return p.End(ctx)
}

// dismissAll ends all services, the first one last: everybody writes to the
// ledger until then.
func (a *Appliance) dismissAll() {
	for _, st := range slices.Backward(a.serviceStatuses()) {
		if err := a.dismiss(st.Name); err != nil {
			slog.Error("a service did not end in order", "service", st.Name, "error", err)
		}
	}
}

// serviceStatuses describes all services in the order of their start.
func (a *Appliance) serviceStatuses() []control.ServiceStatus {
	a.mu.Lock()
	parts := slices.Clone(a.parts)
	a.mu.Unlock()
	out := []control.ServiceStatus{}
	for _, t := range parts {
		out = append(out, t.status())
	}
	return out
}

// cage is the start of a service's Cage: its user.
func (a *Appliance) cage(role string) service.Cage {
	uid := a.cfg.UIDOf(role)
	return service.Cage{UID: uid, GID: uid}
}

// give makes a tree belong to a service, when it doesn't yet: it was just made,
// or an earlier release ran as root. Links are not followed.
func give(dir string, uid int) error {
	if owner(dir) == uid {
		return nil
	}
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		return os.Lchown(p, uid, uid)
	})
	if err != nil {
		return fmt.Errorf("give %s to user %d: %w", dir, uid, err)
	}
	return os.Lchown(dir, uid, uid) // last: until then the next start does it again
}

func owner(path string) int {
	st, err := os.Lstat(path)
	if err != nil {
		return -1
	}
	return int(st.Sys().(*syscall.Stat_t).Uid)
}
