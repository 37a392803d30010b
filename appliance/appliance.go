// Package appliance is the governed host: it wires the store, the registry,
// the model engine, the guard, the sandboxes, the way out and the ledger
// together, and answers on two sockets.
//
//	a, err := appliance.New(cfg, version)
//	err = a.Run(ctx)
//
// Everything fails closed. If the ledger cannot take a record, what the record
// describes does not happen; if a record of something that did happen cannot be
// kept, every agent is stopped and the appliance refuses work until it is
// started again. When the daemon ends, its sandboxes end with it.
//
// The process that runs this is the supervisor, and root. What talks to
// agents, to clients or to the outside runs in services of its own users,
// which it starts and looks after (services.go, package service).
package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/engine"
	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/sandbox"
	"github.com/clawbox/clawbox/bundle/content"
)

// Appliance is a running appliance.
type Appliance struct {
	cfg     config.Config
	version string
	started time.Time

	log    journal
	store  *content.Store
	burrow *burrow // the guard's cgroups
	boxes  *sandbox.Local
	pods   *sandbox.Pods // nil: this host is no node of a cluster
	images *sandbox.Images

	telling sync.Mutex // one at a time puts on the ledger what the installer left

	turns turns // one launch, reload, snapshot or removal of an agent at a time

	registryPort *os.File        // the registry's listening socket
	engineNet    *os.File        // the engine's network namespace
	asked        wanted          // policy changes that operators ask for now
	life         context.Context // ends where the appliance can't go on
	end          context.CancelCauseFunc

	mu         sync.Mutex // guards the rest
	parts      []*part    // services, in the order of their start
	agents     map[string]*agent
	engine     *engine.Engine
	engineWhy  string // why there is no engine
	tier       guard.Tier
	tierWhy    string // why not a better one
	weakenings []string
	failure    error // why work is refused
}

// New opens everything that the configuration names. Nothing listens yet.
func New(cfg config.Config, version string) (_ *Appliance, err error) {
	a := &Appliance{
		cfg: cfg, version: version, started: time.Now().UTC(), agents: map[string]*agent{},
		failure: errStarting, engineWhy: "starting",
	}
	a.life, a.end = context.WithCancelCause(context.Background())
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	// The agents before the guard: what a guard that died has left is recorded
	// as soon as the next one runs, and the ledger has to know their names.
	for _, open := range []func() error{a.openLedger, a.openStore, a.loadAgents, a.startGuard, a.openBoxes, a.openPods} {
		if err := open(); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func (a *Appliance) openStore() (err error) {
	a.store, err = content.Open(a.cfg.Paths.Store)
	return err
}

// weaken records that protection is lower than the default, and remembers it
// for status.
func (a *Appliance) weaken(reason, detail string) error {
	a.mu.Lock()
	if !slices.Contains(a.weakenings, detail) {
		a.weakenings = append(a.weakenings, detail)
	}
	a.mu.Unlock()
	return a.log.Record(context.Background(), ledger.Record{Kind: ledger.KindWeakening, Verdict: ledger.Allowed, Reason: reason, Detail: detail})
}

// fail makes the appliance refuse work and stops every agent.
func (a *Appliance) fail(err error) {
	a.mu.Lock()
	first := a.failure == nil || errors.Is(a.failure, errStarting)
	if first {
		a.failure = err
	}
	a.mu.Unlock()
	if !first {
		return
	}
	slog.Error("failing closed: all agents are stopped", "error", err)
	// The caller may be part of what stopping an agent waits for.
	go a.stopAll(0)
}

// refusal says why work is refused now, if it is.
func (a *Appliance) refusal() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failure == nil {
		return nil
	}
	return control.Errorf("refused", "the appliance refuses work: %v; if that does not pass, see what 'clawbox audit verify' says and restart 'clawbox serve'", a.failure)
}

// Run serves until ctx ends, then stops every agent and closes the ledger.
func (a *Appliance) Run(ctx context.Context) error {
	defer a.close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(a.life, func() { cancel(context.Cause(a.life)) })()
	stop, err := a.listen(cancel)
	if err != nil {
		return err
	}
	defer stop()
	if err := a.startRegistry(ctx); err != nil {
		return err
	}
	if a.cfg.Engine.Binary != "" {
		if err := a.startRelay(ctx); err != nil {
			return err
		}
	}
	if err := a.startRouter(ctx); err != nil {
		return err
	}
	if err := a.startEgress(); err != nil {
		return err
	}
	if err := a.startEngine(ctx); err != nil {
		return err
	}
	if err := a.begun(ctx); err != nil {
		return err
	}
	shut, err := a.serveGate(cancel)
	if err != nil {
		return err
	}
	defer shut()
	go a.sweepPods(ctx)
	rec := ledger.Record{
		Kind: ledger.KindService, Verdict: ledger.Allowed, Reason: "service.started",
		Detail: "guard tier " + string(a.tierNow()), Attrs: map[string]any{"version": a.version, "release": a.cfg.Release.Version},
	}
	if err := a.log.Record(ctx, rec); err != nil {
		return err
	}
	a.ready()
	a.attend(ctx)
	err = a.shutdown()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		err = errors.Join(cause, err)
	}
	return err
}

// attend looks after what can fail silently until ctx ends: a ledger that
// takes no more records, and a disk that an agent fills.
func (a *Appliance) attend(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := a.log.Err(); err != nil {
			a.fail(fmt.Errorf("the ledger takes no records: %w", err))
		}
		a.makeRoom()
	}
}

// Why nothing is launched before the start and after the end of the work.
var (
	errStarting = errors.New("it is starting")
	errStopping = errors.New("it is stopping")
)

// shutdown stops every agent, and records what the guard still had to tell
// before it records the end.
func (a *Appliance) shutdown() error {
	a.mu.Lock()
	if a.failure == nil || errors.Is(a.failure, errStarting) {
		a.failure = errStopping
	}
	a.mu.Unlock()
	defer a.turns.all()() // a launch under way sees the failure when it is done
	a.stopAll(5 * time.Second)
	err := a.dismiss("guard") // which has told everything then
	rec := ledger.Record{Kind: ledger.KindService, Verdict: ledger.Allowed, Reason: "service.stopped"}
	if err = errors.Join(err, a.log.Record(context.Background(), rec)); err != nil {
		return err
	}
	return a.over()
}

// listen opens the two sockets.
func (a *Appliance) listen(cancel context.CancelCauseFunc) (stop func(), err error) {
	var servers []*http.Server
	stop = func() {
		for _, s := range servers {
			s.Close()
		}
	}
	serve := func(s *http.Server, l net.Listener) {
		servers = append(servers, s)
		go func() {
			if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				cancel(err)
			}
		}()
	}
	sockets := []socket{
		{name: "control.sock", mode: 0o600, h: a.controlHandler(), conns: controlConns, root: true},
		{name: "health.sock", mode: 0o666, h: a.healthHandler(), conns: healthConns, answer: 5 * time.Second},
	}
	for _, so := range sockets {
		s, l, err := serveUnix(a.cfg.Paths.Run, so)
		if err != nil {
			stop()
			return nil, err
		}
		serve(s, l)
	}
	return stop, nil
}

// ready tells a person at the terminal, and systemd where it started us.
func (a *Appliance) ready() {
	a.mu.Lock()
	if errors.Is(a.failure, errStarting) {
		a.failure = nil
	}
	a.mu.Unlock()
	slog.Info("the appliance is ready", "release", a.cfg.Release.Version, "tier", string(a.tierNow()),
		"registry", a.cfg.Registry, "control", filepath.Join(a.cfg.Paths.Run, "control.sock"))
}

// stopAll stops every running agent, at the same time.
func (a *Appliance) stopAll(grace time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), grace+10*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for _, ag := range a.everyone() {
		wg.Go(func() {
			var e *control.Error
			if err := a.Stop(ctx, ag.Name, grace); err != nil && !errors.As(err, &e) {
				slog.Error("agent did not stop", "agent", ag.Name, "error", err)
			}
		})
	}
	wg.Wait()
}

// close releases what New opened, in reverse.
func (a *Appliance) close() {
	if a.engine != nil {
		a.engine.Close()
	}
	if a.boxes != nil {
		if err := a.boxes.Close(); err != nil {
			slog.Error("closing the sandbox driver", "error", err)
		}
	}
	a.dismissAll()
	if err := a.burrow.Close(); err != nil {
		slog.Error("the guard's cgroups stay", "error", err)
	}
	if a.log != nil {
		a.log.Close()
	}
	a.registryPort.Close() // nil is refused, no more
	a.engineNet.Close()
}
