package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/clawbox/clawbox/appliance/service"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/registry"
)

// startLedger starts the ledger's service over an existing log.
func (a *Appliance) startLedger(c ledgerConfig) (journal, error) {
	if err := give(c.Dir, a.cfg.UIDOf("ledger")); err != nil {
		return nil, err
	}
	t := &part{role: "ledger", once: true}
	t.spec = func(context.Context) (order, error) {
		cage := a.cage("ledger")
		cage.Write, cage.Calls = []string{c.Dir}, []string{"write"}
		return order{Spec: service.Spec{Role: "ledger", Cage: cage, Config: c, Handler: a.answerLedger}}, nil
	}
	t.down = func(why error) {
		why = fmt.Errorf("the ledger's service ended: %w", why)
		a.mourn(why)
		a.fail(why)
		a.end(why)
	}
	if err := a.employ(context.Background(), t); err != nil {
		return nil, err
	}
	return &remoteLog{c: t.process().Conn}, nil
}

// answerLedger ends a service that wrote what isn't its own to write.
func (a *Appliance) answerLedger(_ context.Context, r *service.Request) (any, error) {
	var name string
	if err := r.Decode(&name); err != nil || r.Method != callForeign {
		return nil, fmt.Errorf("the ledger may not ask for %q", r.Method)
	}
	p := a.part(name).process()
	if _, ok := writers[name]; !ok || p == nil {
		return nil, nil // it is gone already
	}
	slog.Error("a service wrote what isn't its own to write, and is ended", "service", name)
	go p.Kill()
	return nil, nil
}

// nameAgents tells the ledger whom services may write about.
func (a *Appliance) nameAgents(ctx context.Context) error {
	t := a.part("ledger")
	if t == nil {
		return nil // a test's, in this process
	}
	names := []string{}
	for _, ag := range a.everyone() {
		names = append(names, ag.Name)
	}
	return t.call(ctx, callNames, names, nil)
}

// registryConfig is what the registry's service is started with, besides its
// listener.
type registryConfig struct {
	Store string `json:"store"`
}

// registryRole serves the store, read-only, on a listener that it was given.
func registryRole(s *service.Self, r *service.Request) (service.Handler, error) {
	var c registryConfig
	if err := r.Decode(&c); err != nil {
		return nil, err
	}
	f, err := r.File(0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	store, err := content.Open(c.Store)
	if err != nil {
		return nil, err
	}
	srv := &http.Server{Handler: registry.New(store, registry.Options{Log: slog.Default()}), ReadHeaderTimeout: 10 * time.Second}
	s.OnEnd(srv)
	go func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			slog.Error("registry", "error", err)
			s.Conn.Close() // ends this process; the supervisor starts another
		}
	}()
	return func(_ context.Context, r *service.Request) (any, error) {
		return nil, fmt.Errorf("the registry knows no %q", r.Method)
	}, nil
}

// startRegistry opens the registry's port and hands it to a service. The
// supervisor keeps the socket, so the port stays ours while that restarts.
func (a *Appliance) startRegistry(ctx context.Context) error {
	l, err := net.Listen("tcp", a.cfg.Registry)
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	defer l.Close()
	if a.registryPort, err = l.(*net.TCPListener).File(); err != nil {
		return err
	}
	t := &part{role: "registry"}
	t.spec = func(context.Context) (order, error) {
		cage := a.cage("registry")
		cage.Read = []string{a.cfg.Paths.Store}
		return order{Spec: service.Spec{Role: "registry", Cage: cage, Config: registryConfig{a.cfg.Paths.Store}, Files: []*os.File{a.registryPort}}}, nil
	}
	return a.employ(ctx, t)
}
