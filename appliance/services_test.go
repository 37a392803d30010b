package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/service"
	"github.com/clawbox/clawbox/policies"
	"golang.org/x/sys/unix"
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
	r := ledger.Record{
		Kind: ledger.KindService, Verdict: ledger.Allowed, Agent: "claw", Reason: "fs.read", Path: "/usr/lib/node_modules/x.js",
		Process: ledger.Process{PID: 7, PPID: 6, UID: 400001, Comm: "node"}, Attrs: map[string]any{"access": "read", "inode": "12345"},
	}
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

// TestOnlyTheRelayReachesTheEngine: what listens in the engine's namespace is
// reached through the relay and by nobody else, root included.
func TestOnlyTheRelayReachesTheEngine(t *testing.T) {
	a := served(t)
	a.cfg.Engine.Listen = "127.0.0.1:11977"
	ctx := context.Background()
	must(t, a.startRelay(ctx))
	defer a.engineNet.Close()
	l := listenIn(t, a.engineNet, a.cfg.Engine.Listen)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "engine")
			c.Close()
		}
	}()
	ask := func() (string, error) {
		relay, err := a.part("relay").conn()
		if err != nil {
			return "", err
		}
		c, err := dialThrough(ctx, relay, callDial)
		if err != nil {
			return "", err
		}
		defer c.Close()
		b, err := io.ReadAll(c)
		return string(b), err
	}
	if s, err := ask(); err != nil || s != "engine" {
		t.Errorf("through the relay: %q, %v", s, err)
	}
	if c, err := net.Dial("tcp", a.cfg.Engine.Listen); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("from the host: %v, %v; want ECONNREFUSED", c, err)
	}
	l.Close()
	if _, err := ask(); err == nil {
		t.Error("a dead engine answered")
	}
}

// listenIn opens a listener inside a network namespace.
func listenIn(t *testing.T, netns *os.File, addr string) net.Listener {
	t.Helper()
	type result struct {
		l   net.Listener
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // the thread ends with this goroutine
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{nil, err}
			return
		}
		l, err := net.Listen("tcp", addr)
		done <- result{l, err}
	}()
	r := <-done
	must(t, r.err)
	t.Cleanup(func() { r.l.Close() })
	return r.l
}

// TestNobodyWidensAlone: egress can't change a policy that no operator is
// changing, nor make another change than the one that is asked for.
func TestNobodyWidensAlone(t *testing.T) {
	a := bare(t)
	must(t, a.openLedgerBy(openHere))
	defer a.log.Close()
	ag := a.agents["ada"]
	ag.Policy, ag.Source = "sandbox", ag.policy().YAML()
	rule := policies.HostRule{Host: "api.example.com", Ports: []int{443}}
	ask := func(q always) error {
		b, err := json.Marshal(q)
		must(t, err)
		_, err = a.answerEgress(context.Background(), &service.Request{Method: callAlways, Body: b})
		return err
	}
	q := always{"ada", rule, "eve"}
	before := ag.digest()
	if err := ask(q); err == nil || ag.digest() != before {
		t.Errorf("without an operator: %v", err)
	}
	c := change{"ada", "network: {allow: [" + rule.YAML() + "]}", "eve"}
	a.asked.add(c, 1)
	for _, other := range []always{{"bob", rule, "eve"}, {"ada", rule, "ada"}, {"ada", policies.HostRule{Host: "*", Ports: []int{443}}, "eve"}} {
		if err := ask(other); err == nil || ag.digest() != before {
			t.Errorf("%+v while %+v is asked for: %v", other, c, err)
		}
	}
	must(t, ask(q))
	if d := ag.policy().Decide(policies.Request{Action: policies.Connect, Host: "api.example.com", Port: 443}); d.Verdict != policies.Allow {
		t.Errorf("the policy says %+v", d)
	}
	var kept agentSpec
	b, err := os.ReadFile(filepath.Join(ag.dir, specFile))
	must(t, err)
	must(t, json.Unmarshal(b, &kept))
	if !strings.Contains(string(kept.Source), "api.example.com") {
		t.Errorf("kept is\n%s", kept.Source)
	}
	if err := ask(q); err == nil {
		t.Error("the same answer worked twice")
	}
	if a.asked.add(c, -1) {
		t.Error("the change is still asked for")
	}
}

func TestUpstreamPorts(t *testing.T) {
	got := upstreamPorts(map[string]config.Upstream{"a": {URL: "https://x/v1"}, "b": {URL: "http://10.0.0.7:8000/v1"}, "c": {URL: "https://y:8443"}})
	if !slices.Equal(got, []uint16{53, 443, 8000, 8443}) {
		t.Errorf("got %v", got)
	}
}
