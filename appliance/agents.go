package appliance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/guard"
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
	Policy  string    `json:"policy"` // name of Source, for messages
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
	dir string
	pol atomic.Pointer[policies.Policy] // replaced by Reload

	mu      sync.Mutex // guards the rest
	box     *sandbox.Box
	done    chan struct{} // closed when the box is gone; nil before the first start
	started time.Time
	tallies map[string]tally // budgets hit, see strike
}

var agentName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

func (ag *agent) logPath() string { return filepath.Join(ag.dir, "output.log") }

func (ag *agent) policy() *policies.Policy { return ag.pol.Load() }

func (ag *agent) digest() string { return ag.policy().Digest() }

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
		Name: ag.Name, State: "stopped", Image: ag.Image, Policy: ag.policy().Name, Digest: ag.digest(),
		Started: ag.started, Stopped: ag.Ended, ExitCode: ag.Code, Why: ag.Why,
	}
	if ag.box == nil {
		return st
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
	return durable.WriteFile(filepath.Join(ag.dir, "agent.json"), append(b, '\n'), 0o600)
}

// loadAgents reads the agents that an earlier daemon left; all are stopped.
func (a *Appliance) loadAgents() error {
	files, err := filepath.Glob(filepath.Join(a.agentsDir(), "*", "agent.json"))
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
			return fmt.Errorf("agent record %s: %w", f, err)
		}
		p, err := policies.Parse(ag.Policy, ag.Source)
		if err != nil {
			return fmt.Errorf("agent record %s: its policy no longer parses: %w", f, err)
		}
		ag.pol.Store(p)
		if ag.Ended.IsZero() {
			ag.Code, ag.Why = -1, "the daemon stopped while it ran"
		}
		a.agents[ag.Name] = ag
	}
	return nil
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

// Launch starts an agent: a new one, or a stopped one on the files it left.
// The launch is on the ledger before anything runs.
func (a *Appliance) Launch(ctx context.Context, q control.LaunchRequest) (control.AgentStatus, error) {
	if err := a.refusal(); err != nil {
		return control.AgentStatus{}, err
	}
	// One launch at a time: it keeps "does it run already" and "start it" together.
	a.launching.Lock()
	defer a.launching.Unlock()
	ag, err := a.prepare(q)
	if err != nil {
		return control.AgentStatus{}, err
	}
	if err := a.start(ctx, ag); err != nil {
		return control.AgentStatus{}, err
	}
	a.mu.Lock()
	a.agents[ag.Name] = ag
	a.mu.Unlock()
	return ag.status(), nil
}

// prepare resolves a request to an agent that can start; it starts nothing.
func (a *Appliance) prepare(q control.LaunchRequest) (*agent, error) {
	if !agentName.MatchString(q.Name) {
		return nil, control.Errorf("invalid", "agent name: got %q, want 1 to 32 of a-z, 0-9 and -, not at the ends", q.Name)
	}
	if old, err := a.agent(q.Name); err == nil {
		return a.again(old, q)
	}
	spec, err := a.resolve(q)
	if err != nil {
		return nil, err
	}
	ag := &agent{agentSpec: spec, dir: filepath.Join(a.agentsDir(), q.Name)}
	return ag, a.admit(ag)
}

// again prepares a stopped agent. Its image and policy stay what they were.
func (a *Appliance) again(old *agent, q control.LaunchRequest) (*agent, error) {
	old.mu.Lock()
	runs := old.box != nil
	old.mu.Unlock()
	switch {
	case runs:
		return nil, control.Errorf("conflict", "agent %s runs already; 'clawbox agent connect %s' enters it", q.Name, q.Name)
	case q.Agent != "" || q.Image != "" || q.Source != nil:
		return nil, control.Errorf("conflict", "agent %s exists with image %s and policy %s; 'clawbox agent rm %s' first to give it others",
			q.Name, old.Image, old.policy().Name, q.Name)
	}
	ag := &agent{agentSpec: old.agentSpec, dir: old.dir}
	ag.Ended, ag.Code, ag.Why = time.Time{}, 0, ""
	if len(q.Command) > 0 || len(q.Args) > 0 {
		ag.Command, ag.Args = q.Command, q.Args
	}
	ag.Env = append(ag.Env, q.Env...)
	return ag, a.admit(ag)
}

// resolve fills a request's gaps from the configuration.
func (a *Appliance) resolve(q control.LaunchRequest) (agentSpec, error) {
	s := agentSpec{Name: q.Name, Image: q.Image, Policy: q.Policy, Source: q.Source, Command: q.Command, Args: q.Args, Env: q.Env}
	name := q.Agent
	if name == "" {
		name = q.Name
	}
	c, ok := a.configured(name)
	if !ok && (q.Agent != "" || s.Image == "" || s.Source == nil) {
		return s, control.Errorf("not_found", "the configuration has no agent %q (it has %v); name one with --agent, or give --image and --policy", name, a.configuredNames())
	}
	if s.Image == "" {
		s.Image = c.Image
	}
	if len(s.Command) == 0 && len(s.Args) == 0 {
		s.Command, s.Args = c.Command, c.Args
	}
	s.Env = append(append([]string(nil), c.Env...), s.Env...)
	if s.Source == nil {
		src, err := a.policySource(c.Policy)
		if err != nil {
			return s, err
		}
		s.Policy, s.Source = c.Policy, src
	}
	return s, nil
}

// policySource reads a policy that the slot holds, or a preset.
func (a *Appliance) policySource(name string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(a.cfg.Paths.Slot, "policies", filepath.Base(name)))
	if !errors.Is(err, fs.ErrNotExist) {
		return b, err
	}
	p, err := policies.Preset(name)
	if err != nil {
		return nil, control.Errorf("not_found", "no policy %q: neither a file of this release nor a preset (%v)", name, policies.Presets())
	}
	return p.YAML(), nil
}

func (a *Appliance) configured(name string) (config.Agent, bool) {
	for _, c := range a.cfg.Agents {
		if c.Name == name {
			return c, true
		}
	}
	return config.Agent{}, false
}

func (a *Appliance) configuredNames() (names []string) {
	for _, c := range a.cfg.Agents {
		names = append(names, c.Name)
	}
	return names
}

// admit parses the policy and holds it against what this host provides.
func (a *Appliance) admit(ag *agent) error {
	p, err := policies.Parse(ag.Policy, ag.Source)
	if err != nil {
		return control.Errorf("invalid", "%v", err)
	}
	if have := string(a.guard.Tier()); p.Require.Tier != "" && have > p.Require.Tier {
		return control.Errorf("refused", "policy %s requires guard tier %s or better, this host reaches %s (%s)", p.Name, p.Require.Tier, have, a.guard.Why())
	}
	if p.Audit.Files == "all" && a.guard.Tier() == guard.TierNone {
		return control.Errorf("refused", "policy %s wants every opened file recorded (audit.files: all), and this host has no guard that could tell (%s); use audit.files: denied, knowingly", p.Name, a.guard.Why())
	}
	ag.pol.Store(p)
	return nil
}

// start runs the agent's sandbox.
func (a *Appliance) start(ctx context.Context, ag *agent) error {
	if err := durable.MkdirAll(ag.dir, 0o711); err != nil {
		return err
	}
	if err := ag.save(); err != nil {
		return err
	}
	out, err := openOutput(ag.logPath())
	if err != nil {
		return err
	}
	err = a.log.Record(ctx, a.lifecycle(ag, ledger.Allowed, "agent.launch", "image "+ag.Image))
	if err != nil {
		out.Close()
		return err
	}
	ag.tallies = map[string]tally{}
	box, release, err := a.sandbox(ctx, ag, out)
	if err != nil {
		out.Close()
		rec := a.lifecycle(ag, ledger.Denied, "agent.launch_failed", err.Error())
		return errors.Join(control.Errorf("refused", "agent %s did not start: %v", ag.Name, err), a.log.Record(ctx, rec))
	}
	ag.mu.Lock()
	ag.box, ag.done, ag.started = box, make(chan struct{}), time.Now().UTC()
	ag.mu.Unlock()
	go a.await(ag, box, func() { release(); out.Close() })
	return nil
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
	a.launching.Lock()
	defer a.launching.Unlock()
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
		return control.AgentStatus{}, control.Errorf("refused", "the %s rules are locked when a sandbox is created, and %s changes them; stop the agent and launch it again", part, q.Name)
	}
	rec := a.lifecycle(ag, ledger.Allowed, "policy.reloaded", "network and inference rules replaced")
	rec.Kind, rec.Policy, rec.Attrs = ledger.KindPolicy, p.Digest(), map[string]any{"previous": old.Digest()}
	if err := a.log.Record(ctx, rec); err != nil {
		return control.AgentStatus{}, err
	}
	ag.mu.Lock()
	ag.pol.Store(p)
	ag.Policy, ag.Source = q.Name, q.Source
	err = ag.save()
	ag.mu.Unlock()
	a.proxy.Recheck(name)
	return ag.status(), err
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
