package appliance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/clawbox/clawbox/appliance/egress"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/router"
	"github.com/clawbox/clawbox/appliance/service"
	"github.com/clawbox/clawbox/internal/durable"
	"github.com/clawbox/clawbox/policies"
)

// outlet is what the supervisor keeps of a sandbox's network.
type outlet struct {
	sockets     *egress.Sockets
	land        io.Closer
	netns       uint64 // egress.Netns
	credentials map[string]string
}

// startEgress starts the way out.
func (a *Appliance) startEgress() error {
	dir := filepath.Join(a.cfg.Paths.State, "egress")
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	c := egressConfig{
		Hosts: a.cfg.Hosts, Cluster: a.cfg.ClusterPrefixes(), Hold: time.Duration(a.cfg.HoldSeconds) * time.Second,
		File: filepath.Join(dir, "approvals.json"), Seed: make([]byte, 32), Records: a.cfg.RecordBytes(),
	}
	rand.Read(c.Seed) // never fails
	var err error
	if c.Boot, err = egress.BootID(); err != nil {
		return err
	}
	// An earlier release kept it among its own files.
	if err := os.Rename(filepath.Join(a.cfg.Paths.State, "approvals.json"), c.File); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := give(dir, a.cfg.UIDOf("egress")); err != nil {
		return err
	}
	t := &part{role: "egress"}
	t.spec = func(ctx context.Context) (order, error) {
		w, err := a.openWriter(ctx, "egress")
		if err != nil {
			return order{}, err
		}
		cage := a.cage("egress")
		cage.Calls, cage.Files = []string{"connect", "interfaces", "write"}, 1<<19 // of which one agent can take some 5000
		cage.Read, cage.Write = outside(), []string{dir}
		return order{service.Spec{Role: "egress", Cage: cage, Config: c, Files: []*os.File{w}, Handler: a.answerEgress}, []*os.File{w}}, nil
	}
	// The router and the guard before the agents: nothing is decided without
	// them.
	t.up = func(ctx context.Context, p *service.Process) error {
		if err := errors.Join(a.join(ctx, p, "router"), a.join(ctx, p, "guard")); err != nil {
			return err
		}
		for _, ag := range a.everyone() {
			if err := a.resume(ctx, p, ag); err != nil {
				return err
			}
		}
		return nil
	}
	return a.employ(context.Background(), t)
}

// resume lets a new egress serve a sandbox that runs.
func (a *Appliance) resume(ctx context.Context, p *service.Process, ag *agent) error {
	o := ag.connected()
	if o == nil {
		return nil
	}
	return p.Conn.Call(ctx, callServe, o.serving(ag), nil, o.files()...)
}

// connected is the agent's network, while there is one.
func (ag *agent) connected() *outlet {
	ag.mu.Lock()
	defer ag.mu.Unlock()
	return ag.outlet
}

func (o *outlet) serving(ag *agent) serving {
	i := ag.info()
	i.Netns = o.netns
	return serving{agentInfo: i, Steered: o.sockets.Steered, Credentials: o.credentials}
}

func (o *outlet) files() []*os.File {
	return append(append([]*os.File(nil), o.sockets.TCP...), o.sockets.DNS)
}

// detach takes it away again. A service that doesn't run has forgotten already.
func (a *Appliance) detach(ag *agent, o *outlet) error {
	ag.mu.Lock()
	ag.outlet = nil
	ag.mu.Unlock()
	a.push("egress", callForget, ref{ag.Name})
	a.push("router", callForget, ref{ag.Name})
	if o.sockets == nil {
		return nil
	}
	return errors.Join(o.sockets.Close(), o.land.Close())
}

type closer func() error

func (c closer) Close() error { return c() }

// credentials reads the values of those that a policy names.
func (a *Appliance) credentials(p *policies.Policy) (map[string]string, error) {
	out := map[string]string{}
	for _, c := range p.Credentials {
		v, err := a.credential(c.Name)
		if err != nil {
			return nil, err
		}
		out[c.Name] = v
	}
	return out, nil
}

// push tells a service something that it must not miss. One that can't be told
// is ended: its next start learns everything anew. One that starts now may have
// been told what is no longer so, and is told again.
func (a *Appliance) push(role, method string, v any) {
	t := a.part(role)
	if t == nil {
		return
	}
	t.starting.Lock()
	p := t.process()
	t.starting.Unlock()
	if p == nil {
		return // it learns when it starts
	}
	if err := ask(context.Background(), p, method, v, nil); err != nil {
		slog.Error("a service could not be told, and is started again", "service", role, "call", method, "error", err)
		p.Kill()
	}
}

// answerEgress makes an approval for ever a change of the policy, if an
// operator is asking for exactly that at this moment.
func (a *Appliance) answerEgress(ctx context.Context, r *service.Request) (any, error) {
	if r.Method == callPaced {
		return nil, a.paced(r)
	}
	var q always
	if r.Method != callAlways {
		return nil, fmt.Errorf("egress may not ask for %q", r.Method)
	}
	if err := r.Decode(&q); err != nil {
		return nil, err
	}
	if !a.asked.add(change{q.Agent, "network: {allow: [" + q.Rule.YAML() + "]}", q.Operator}, -1) {
		return nil, fmt.Errorf("no operator asks for this change of the policy of %s", q.Agent)
	}
	return nil, a.widen(ctx, q)
}

// widen adds a rule to an agent's policy, for good.
func (a *Appliance) widen(ctx context.Context, q always) error {
	defer a.turns.of(q.Agent)() // not during a launch, which has read the policy already, or a reload
	ag, err := a.agent(q.Agent)
	if err != nil {
		return err
	}
	old := ag.policy()
	p := old.WithAllow(q.Rule)
	if p.Digest() == old.Digest() {
		return fmt.Errorf("policy %s can't take this rule, or has it already: %s", old.Name, q.Rule.YAML())
	}
	src := p.YAML()
	if p, err = policies.Parse(ag.Policy, src); err != nil {
		return fmt.Errorf("the changed policy does not parse: %w", err)
	}
	rec := a.lifecycle(ag, ledger.Allowed, "policy.widened", "approved for ever by "+q.Operator+": "+q.Rule.YAML())
	rec.Kind, rec.Policy, rec.Attrs = ledger.KindPolicy, p.Digest(), map[string]any{"previous": old.Digest(), "operator": q.Operator}
	if err := a.log.Record(ctx, rec); err != nil {
		return err
	}
	return a.govern(ag, p, ag.Policy, src)
}

// govern makes p the policy of ag, on disk first, and then in every service.
func (a *Appliance) govern(ag *agent, p *policies.Policy, name string, src []byte) error {
	ag.mu.Lock()
	before := ag.agentSpec
	ag.Policy, ag.Source = name, src
	err := ag.save()
	if err != nil {
		ag.agentSpec = before
	} else {
		ag.govern(p)
	}
	runs := ag.outlet != nil
	ag.mu.Unlock()
	if err != nil || !runs {
		return err
	}
	a.pushAll(callAgent, ag.info())
	return nil
}

// pushAll is push to every service that governs agents. Each of them reads the
// policy for itself, at the same time as the others.
func (a *Appliance) pushAll(method string, v any) {
	var wg sync.WaitGroup
	for _, role := range []string{"guard", "router", "egress"} {
		wg.Go(func() { a.push(role, method, v) })
	}
	wg.Wait()
}

// wanted are the policy changes that operators are asking for at this moment.
type wanted struct {
	mu  sync.Mutex
	now map[change]int // how often each may be made
}

// change is one of them, in the words that the operator was shown.
type change struct{ agent, yaml, operator string }

// add lets c be made once more, or with -1 once less.
func (w *wanted) add(c change, n int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.now == nil {
		w.now = map[change]int{}
	}
	if w.now[c]+n < 0 {
		return false
	}
	if w.now[c] += n; w.now[c] == 0 {
		delete(w.now, c)
	}
	return true
}

// credential reads one that a policy names.
func (a *Appliance) credential(name string) (string, error) {
	c, ok := a.cfg.Credentials[name]
	if !ok {
		return "", fmt.Errorf("the policy names credential %q, and the configuration has none of that name; add it to credentials in appliance.yaml", name)
	}
	v, err := router.ReadKey(c.KeyFile)
	if err != nil {
		return "", fmt.Errorf("credential %q: %w", name, err)
	}
	return v, nil
}
