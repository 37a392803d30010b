package appliance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/sandbox"
	"github.com/clawbox/clawbox/internal/durable"
	"github.com/clawbox/clawbox/policies"
)

// agentSpec is what is kept of an agent on disk, so that it can be started
// again: <state>/agents/NAME/agent.json.
type agentSpec struct {
	Name    string    `json:"name"`
	Image   string    `json:"image"`
	Driver  string    `json:"driver,omitempty"` // empty: local
	Policy  string    `json:"policy"`           // name of Source, for messages
	Source  []byte    `json:"source"`
	Command []string  `json:"command,omitempty"`
	Args    []string  `json:"args,omitempty"`
	Env     []string  `json:"env,omitempty"`
	Ended   time.Time `json:"ended,omitzero"`
	Code    int       `json:"code"`
	Why     string    `json:"why,omitempty"`
}

// agent is one agent.
type agent struct {
	agentSpec
	dir   string
	fresh bool                      // dir was made for it in this launch
	pol   atomic.Pointer[governing] // replaced by Reload

	mu      sync.Mutex // guards the rest
	box     *sandbox.Box
	outlet  *outlet       // its network, while there is one
	uid     int           // host user id, from its start on
	done    chan struct{} // closed when the box is gone; nil before the first start
	started time.Time
	tallies map[string]tally // budgets hit, see strike
	pauses  int              // since the daemon's start: how often it wrote too many records
	paused  time.Time        // until then it is slowed down
}

var agentName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// specFile keeps an agentSpec, in the agent's folder.
const specFile = "agent.json"

func (ag *agent) logPath() string { return filepath.Join(ag.dir, "output.log") }

// governing is a policy with its digest, which every record carries: the
// digest is of the whole text, too much to make for each event.
type governing struct {
	policy *policies.Policy
	digest string
}

func (ag *agent) govern(p *policies.Policy) { ag.pol.Store(&governing{p, p.Digest()}) }

func (ag *agent) policy() *policies.Policy { return ag.pol.Load().policy }

func (ag *agent) digest() string { return ag.pol.Load().digest }

// gone returns a channel that is closed while the agent does not run.
func (ag *agent) gone() <-chan struct{} {
	ag.mu.Lock()
	defer ag.mu.Unlock()
	if ag.done != nil {
		return ag.done
	}
	c := make(chan struct{})
	close(c)
	return c
}

func (ag *agent) status() control.AgentStatus {
	ag.mu.Lock()
	defer ag.mu.Unlock()
	st := control.AgentStatus{
		Name: ag.Name, State: "stopped", Image: ag.Image, Driver: ag.Driver, Policy: ag.policy().Name, Digest: ag.digest(),
		Started: ag.started, Stopped: ag.Ended, ExitCode: ag.Code, Why: ag.Why,
	}
	if ag.box == nil {
		return st
	}
	st.Pauses = ag.pauses
	if ag.paused.After(time.Now()) {
		st.Paused = ag.paused
	}
	st.State, st.PID, st.UID, st.Stopped, st.Why = "running", ag.box.PID(), ag.box.UID(), time.Time{}, ""
	if s, err := ag.box.Stats(); err == nil {
		st.Tasks, st.Memory = s.Tasks, s.Memory
	}
	return st
}

// save keeps the agent's specification.
func (ag *agent) save() error {
	b, err := json.MarshalIndent(ag.agentSpec, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(ag.dir, specFile), append(b, '\n'), 0o600)
}

// loadAgents reads the agents that an earlier daemon left; all are stopped.
func (a *Appliance) loadAgents() error {
	files, err := filepath.Glob(filepath.Join(a.agentsDir(), "*", specFile))
	if err != nil {
		return err
	}
	for _, f := range files {
		ag := &agent{dir: filepath.Dir(f)}
		b, err := os.ReadFile(f)
		if err == nil {
			err = json.Unmarshal(b, &ag.agentSpec)
		}
		if err != nil {
			return fmt.Errorf("agent record %s: %w; restore it, or remove it to forget the agent (its files stay)", f, err)
		}
		p, err := policies.Parse(ag.Policy, ag.Source)
		if err != nil {
			return fmt.Errorf("agent record %s: its policy no longer parses: %w; remove the record to forget the agent (its files stay)", f, err)
		}
		ag.govern(p)
		if ag.Ended.IsZero() {
			ag.Code, ag.Why = -1, "the daemon stopped while it ran"
		}
		a.agents[ag.Name] = ag
	}
	return a.nameAgents(context.Background())
}

func (a *Appliance) agentsDir() string { return filepath.Join(a.cfg.Paths.State, "agents") }

// agent finds an agent by name.
func (a *Appliance) agent(name string) (*agent, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if ag, ok := a.agents[name]; ok {
		return ag, nil
	}
	return nil, control.Errorf("not_found", "no agent is named %q; 'clawbox agent list' lists them", name)
}

// everyone lists all agents, running and stopped.
func (a *Appliance) everyone() []*agent {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Collect(maps.Values(a.agents))
}

// running finds a running agent and its sandbox.
func (a *Appliance) running(name string) (*agent, *sandbox.Box, error) {
	ag, err := a.agent(name)
	if err != nil {
		return nil, nil, err
	}
	ag.mu.Lock()
	defer ag.mu.Unlock()
	if ag.box == nil {
		return nil, nil, control.Errorf("conflict", "agent %s does not run (%s); start it with 'clawbox agent launch %s'", name, ag.Why, name)
	}
	return ag, ag.box, nil
}

// await waits for a sandbox to end, and records how it did.
func (a *Appliance) await(ag *agent, box *sandbox.Box, release func()) {
	code, why := box.Wait()
	release()
	a.strikesLeft(ag)
	ag.mu.Lock()
	ag.box, ag.Ended, ag.Code, ag.Why = nil, time.Now().UTC(), code, why
	err := ag.save()
	close(ag.done)
	ag.mu.Unlock()
	rec := a.lifecycle(ag, ledger.Allowed, "agent.stopped", why)
	rec.Attrs = map[string]any{"exit_code": code}
	if err = errors.Join(err, a.log.Record(context.Background(), rec)); err != nil {
		a.fail(fmt.Errorf("agent %s ended, but that could not be kept: %w", ag.Name, err))
	}
}

func (a *Appliance) lifecycle(ag *agent, v ledger.Verdict, reason, detail string) ledger.Record {
	return ledger.Record{Kind: ledger.KindLifecycle, Verdict: v, Agent: ag.Name, Policy: ag.digest(), Reason: reason, Detail: detail}
}

// Stop ends an agent and returns when nothing of it runs.
func (a *Appliance) Stop(ctx context.Context, name string, grace time.Duration) error {
	if grace < 0 {
		return control.Errorf("invalid", "grace: got %v, want 0 or more", grace)
	}
	ag, box, err := a.running(name)
	if err != nil {
		return err
	}
	if err := box.Stop(ctx, grace); err != nil {
		return err
	}
	select {
	case <-ag.gone():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Remove forgets a stopped agent and deletes its files.
func (a *Appliance) Remove(ctx context.Context, name string) error {
	defer a.turns.of(name)()
	ag, err := a.agent(name)
	if err != nil {
		return err
	}
	ag.mu.Lock()
	runs := ag.box != nil
	ag.mu.Unlock()
	if runs {
		return control.Errorf("conflict", "agent %s runs; 'clawbox agent stop %s' first", name, name)
	}
	if err := a.log.Record(ctx, a.lifecycle(ag, ledger.Allowed, "agent.removed", "")); err != nil {
		return err
	}
	// Egress first: it may be down, and then nothing is half removed.
	if err := a.part("egress").call(ctx, callRemove, ref{name}, nil); err != nil {
		return control.Errorf("refused", "the answers that stand for agent %s could not be removed: %v; nothing was deleted, try again", name, err)
	}
	if err := a.boxes.Remove(name); err != nil {
		return err
	}
	a.mu.Lock()
	delete(a.agents, name)
	a.mu.Unlock()
	return os.RemoveAll(ag.dir)
}

// Reload replaces the network and inference layers of an agent's policy. The
// locked layers must be what they are.
func (a *Appliance) Reload(ctx context.Context, name string, q control.PolicyRequest) (control.AgentStatus, error) {
	defer a.turns.of(name)() // not during a launch, which has read the policy already
	ag, err := a.agent(name)
	if err != nil {
		return control.AgentStatus{}, err
	}
	p, err := policies.Parse(q.Name, q.Source)
	if err != nil {
		return control.AgentStatus{}, control.Errorf("invalid", "%v", err)
	}
	old := ag.policy()
	if part := lockedChange(old, p); part != "" {
		return control.AgentStatus{}, control.Errorf("refused", "the %s rules are locked when a sandbox is created, and %s changes them; stop the agent, then 'clawbox agent launch %s --policy %s' starts it on its files", part, q.Name, name, q.Name)
	}
	if what := atStart(old, p); what != "" && ag.connected() != nil {
		return control.AgentStatus{}, control.Errorf("refused", "%s; stop the agent, then 'clawbox agent launch %s --policy %s' starts it on its files", what, name, q.Name)
	}
	rec := a.lifecycle(ag, ledger.Allowed, "policy.reloaded", "network and inference rules replaced")
	rec.Kind, rec.Policy, rec.Attrs = ledger.KindPolicy, p.Digest(), map[string]any{"previous": old.Digest()}
	if err := a.log.Record(ctx, rec); err != nil {
		return control.AgentStatus{}, err
	}
	err = a.govern(ag, p, q.Name, q.Source)
	return ag.status(), err
}

// atStart says what a changed policy needs that an agent gets when it starts,
// and never again: without it the new rules would be there and not work.
func atStart(old, p *policies.Policy) string {
	if looksIntoTLS(p) && !inspects(old) { // who inspects at all was given the CA
		return "the policy inspects TLS for the first time, and the agent doesn't trust the sandbox's own CA: its certificate is put in when the agent starts"
	}
	if !slices.Equal(named(old.Credentials), named(p.Credentials)) {
		return "the policy changes which credentials there are, and the agent gets their placeholders in its environment when it starts"
	}
	return ""
}

// named are credentials without the lines that they stand on: those may move.
func named(cs []policies.Credential) []policies.Credential {
	cs = slices.Clone(cs)
	for i := range cs {
		cs[i].Line = 0
	}
	return cs
}

func inspects(p *policies.Policy) bool {
	return slices.ContainsFunc(p.Network.Allow, func(r policies.HostRule) bool { return r.Inspect })
}

// looksIntoTLS says whether a rule inspects on other ports than that of plain
// HTTP, where nobody expects a certificate.
func looksIntoTLS(p *policies.Policy) bool {
	return slices.ContainsFunc(p.Network.Allow, func(r policies.HostRule) bool {
		return r.Inspect && (len(r.Ports) == 0 || slices.ContainsFunc(r.Ports, func(n int) bool { return n != 80 }))
	})
}

// lockedChange names the first locked layer in which two policies differ.
func lockedChange(old, p *policies.Policy) string {
	layers := []struct {
		name     string
		old, new any
	}{
		{"filesystem", old.Filesystem, p.Filesystem},
		{"process", old.Process, p.Process},
		{"budget", old.Budgets, p.Budgets},
		{"audit", old.Audit, p.Audit},
		{"require", old.Require, p.Require},
	}
	for _, l := range layers {
		x, _ := json.Marshal(l.old)
		y, _ := json.Marshal(l.new)
		if !bytes.Equal(x, y) {
			return l.name
		}
	}
	return ""
}
