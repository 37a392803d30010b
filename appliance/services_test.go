package appliance

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/service"
)

// The test binary is its own services.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "service" {
		service.Main(os.Args[2], Services, os.Args[1:])
	}
	os.Exit(m.Run())
}

// served is an appliance whose ledger is a service.
func served(t testing.TB) *Appliance {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("needs root to start services as other users; got uid %d", os.Geteuid())
	}
	a := bare(t)
	a.cfg.UIDBase = config.DefaultUIDBase
	a.life, a.end = context.WithCancelCause(context.Background())
	must(t, open(a.cfg.Paths.Ledger))
	must(t, a.openLedger())
	t.Cleanup(a.dismissAll)
	return a
}

// open lets other users pass to path.
func open(path string) error {
	var errs []error
	for d := filepath.Dir(path); strings.HasPrefix(d, os.TempDir()+"/"); d = filepath.Dir(d) {
		errs = append(errs, os.Chmod(d, 0o711))
	}
	return errors.Join(errs...)
}

// writerFor is what a service gets to write to the ledger with.
func writerFor(t testing.TB, a *Appliance, role string) *remoteLog {
	t.Helper()
	f, err := a.openWriter(context.Background(), role)
	must(t, err)
	l, err := dialLedger(f)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// TestWritersAreBound: a service that writes what isn't its own to write is
// recorded, and cut off; the others go on.
func TestWritersAreBound(t *testing.T) {
	a := served(t)
	ctx := context.Background()
	router, egress := writerFor(t, a, "router"), writerFor(t, a, "egress")
	must(t, router.Record(ctx, ledger.Record{Kind: ledger.KindModel, Verdict: ledger.Allowed, Agent: "ada", Model: "m"}))
	forged := ledger.Record{Kind: ledger.KindApproval, Verdict: ledger.Allowed, Agent: "ada", Reason: "approval.always"}
	if err := router.Record(ctx, ledger.Record{Kind: ledger.KindModel, Verdict: ledger.Allowed}, forged); err == nil {
		t.Error("the router wrote an approval")
	}
	<-router.c.Done()
	if err := router.Record(ctx, ledger.Record{Kind: ledger.KindModel, Verdict: ledger.Allowed}); !errors.Is(err, service.ErrGone) {
		t.Errorf("the router goes on: %v", err)
	}
	if err := egress.c.Call(ctx, callWriter, writer{Name: "me", Kinds: []ledger.Kind{ledger.KindPolicy}}, nil); err == nil {
		t.Error("egress admitted a writer")
	}
	must(t, egress.Record(ctx, forged)) // egress is there to write approvals
	a.dismissAll()
	var kinds, reasons []string
	for _, r := range entries(t, a) {
		kinds, reasons = append(kinds, string(r.Kind)), append(reasons, r.Reason)
	}
	if got := strings.Join(kinds, " "); got != "install model weakening approval" || reasons[2] != "ledger.forged" {
		t.Errorf("the ledger holds %s (%v)", got, reasons)
	}
}

// TestLedgerGone: without the ledger's process nothing is allowed, the
// appliance ends, and the next start says why.
func TestLedgerGone(t *testing.T) {
	a := served(t)
	egress := writerFor(t, a, "egress")
	must(t, syscall.Kill(a.part("ledger").process().PID, syscall.SIGKILL))
	<-a.life.Done()
	if err := context.Cause(a.life); !strings.Contains(err.Error(), "ledger") {
		t.Errorf("the appliance ends for %v", err)
	}
	r := ledger.Record{Kind: ledger.KindConnect, Verdict: ledger.Allowed, Agent: "ada"}
	if err := errors.Join(egress.Record(context.Background(), r)); err == nil {
		t.Error("egress could record")
	}
	if err := a.log.Record(context.Background(), r); err == nil {
		t.Error("the supervisor could record")
	}
	if err := a.refusal(); err == nil {
		t.Error("work isn't refused")
	}
	b := &Appliance{cfg: a.cfg, agents: map[string]*agent{}, started: time.Now()}
	must(t, b.openLedgerBy(openHere))
	must(t, b.begun(context.Background()))
	must(t, b.log.Close())
	rs := entries(t, b)
	if last := rs[len(rs)-1]; last.Reason != "service.unclean" || !strings.Contains(last.Detail, "ledger's service ended") {
		t.Errorf("the next start recorded %+v", last)
	}
}

// TestLargeBatch: what doesn't fit one message is recorded all the same.
func TestLargeBatch(t *testing.T) {
	a := served(t)
	rs := make([]ledger.Record, 300)
	for i := range rs {
		rs[i] = ledger.Record{Kind: ledger.KindService, Verdict: ledger.Allowed, Detail: strings.Repeat("x", 60<<10)}
	}
	must(t, a.log.Record(context.Background(), rs...))
	if n := a.log.Head().Size; n != 301 {
		t.Errorf("%d entries, want 301", n)
	}
}

func BenchmarkRecord(b *testing.B) {
	r := ledger.Record{Kind: ledger.KindService, Verdict: ledger.Allowed, Agent: "claw", Reason: "fs.read", Path: "/usr/lib/node_modules/x.js",
		Process: ledger.Process{PID: 7, PPID: 6, UID: 400001, Comm: "node"}, Attrs: map[string]any{"access": "read", "inode": "12345"}}
	ways := map[string]func(*Appliance) (journal, error){
		"process": func(a *Appliance) (journal, error) { return a.log, nil },
		"here": func(a *Appliance) (journal, error) {
			a.dismissAll()
			key, err := ledgerKey(filepath.Join(a.cfg.Paths.Keys, "ledger.key"))
			if err != nil {
				return nil, err
			}
			return openHere(ledgerConfig{a.cfg.Paths.Ledger, key})
		},
	}
	for name, way := range ways {
		for _, callers := range []int{1, 64} {
			b.Run(name+"/"+map[int]string{1: "alone", 64: "64 callers"}[callers], func(b *testing.B) {
				a := served(b)
				l, err := way(a)
				must(b, err)
				var wg sync.WaitGroup
				work := make(chan bool, callers)
				for range callers {
					wg.Go(func() {
						for range work {
							if err := l.Record(context.Background(), r); err != nil {
								b.Error(err)
							}
						}
					})
				}
				for b.Loop() {
					work <- true
				}
				close(work)
				wg.Wait()
				if name == "here" {
					l.Close()
				}
			})
		}
	}
}
