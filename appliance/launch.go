package appliance

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/service"
	"github.com/clawbox/clawbox/internal/durable"
	"github.com/clawbox/clawbox/policies"
)

// Launch starts an agent: a new one, or a stopped one on the files it left.
// The launch is on the ledger before anything runs.
func (a *Appliance) Launch(ctx context.Context, q control.LaunchRequest) (control.AgentStatus, error) {
	if err := a.refusal(); err != nil {
		return control.AgentStatus{}, err
	}
	// It keeps "does it run already" and "start it" together.
	defer a.turns.of(q.Name)()
	ag, err := a.prepare(q)
	if err == nil {
		err = a.roomy()
	}
	if err == nil {
		err = a.solvent(ctx, ag.Name)
	}
	if err != nil {
		return control.AgentStatus{}, err
	}
	// From here on the agent can be found: what it does is recorded under its
	// policy, and stopAll sees it.
	a.mu.Lock()
	old := a.agents[ag.Name]
	a.agents[ag.Name] = ag
	a.mu.Unlock()
	crew := a.crew()
	if err = a.start(ctx, ag); err != nil {
		return control.AgentStatus{}, errors.Join(err, a.forget(ag, old))
	}
	// Whoever stops all agents has seen the sandbox by now, or this sees why.
	if err = a.refusal(); err == nil {
		err = a.sameCrew(crew)
	}
	if err != nil {
		var e *control.Error // "it does not run": somebody was faster
		if serr := a.Stop(ctx, ag.Name, 0); serr != nil && !errors.As(serr, &e) {
			err = errors.Join(err, serr)
		}
		return control.AgentStatus{}, err
	}
	return ag.status(), nil
}

// forget puts back what was there before a launch that failed.
func (a *Appliance) forget(ag, old *agent) error {
	a.mu.Lock()
	if old != nil {
		a.agents[ag.Name] = old
	} else {
		delete(a.agents, ag.Name)
	}
	a.mu.Unlock()
	if old != nil {
		return old.save()
	}
	err := os.Remove(filepath.Join(ag.dir, specFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if ag.fresh && err == nil {
		err = os.RemoveAll(ag.dir)
	}
	return err
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
	if err == nil {
		spec.Driver, err = a.driver(q.Driver, "")
	}
	if err != nil {
		return nil, err
	}
	ag := &agent{agentSpec: spec, dir: filepath.Join(a.agentsDir(), q.Name)}
	// Files of an agent whose record was lost stay what they are.
	_, err = os.Lstat(ag.dir)
	ag.fresh = errors.Is(err, fs.ErrNotExist)
	return ag, a.admit(ag)
}

// again prepares a stopped agent. It keeps its files; image, policy and
// command stay what they were unless the request names others.
func (a *Appliance) again(old *agent, q control.LaunchRequest) (*agent, error) {
	old.mu.Lock()
	runs, spec := old.box != nil, old.agentSpec
	old.mu.Unlock()
	if runs {
		return nil, control.Errorf("conflict", "agent %s runs already; 'clawbox agent connect %s' enters it", q.Name, q.Name)
	}
	before := spec.Driver
	if before == "" {
		before = driverLocal
	}
	if q.Agent != "" || q.Image != "" || q.Source != nil {
		if q.Image == "" && q.Agent == "" {
			q.Image = spec.Image
		}
		if q.Source == nil && q.Agent == "" {
			q.Policy, q.Source = spec.Policy, spec.Source
		}
		var err error
		if spec, err = a.resolve(q); err != nil {
			return nil, err
		}
	} else {
		if len(q.Command) > 0 || len(q.Args) > 0 {
			spec.Command, spec.Args = q.Command, q.Args
		}
		spec.Env = slices.Concat(spec.Env, q.Env)
	}
	var err error
	if spec.Driver, err = a.driver(q.Driver, before); err != nil {
		return nil, err
	}
	spec.Ended, spec.Code, spec.Why = time.Time{}, 0, ""
	ag := &agent{agentSpec: spec, dir: old.dir}
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
	g, err := parse(ag.Policy, ag.Source)
	if err != nil {
		return control.Errorf("invalid", "%v", err)
	}
	ag.pol.Store(g)
	p := g.policy
	if have := string(a.tierNow()); p.Require.Tier != "" && have > p.Require.Tier {
		return control.Errorf("refused", "policy %s requires guard tier %s or better, this host reaches %s (%s)", p.Name, p.Require.Tier, have, a.tierWhy)
	}
	if p.Audit.Files == "all" && a.tierNow() == guard.TierNone {
		return control.Errorf("refused", "policy %s wants every opened file recorded (audit.files: all), and this host has no guard that could tell (%s); use audit.files: denied, knowingly", p.Name, a.tierWhy)
	}
	return a.strangers(p.Process)
}

// strangers refuses to run an agent as a user of the appliance itself: it would
// share the owner of the ledger's files, or of the approvals.
func (a *Appliance) strangers(p policies.Process) error {
	first := a.cfg.FirstServiceUID()
	for field, text := range map[string]string{"user": p.User, "group": p.Group} {
		n, err := strconv.Atoi(text)
		if err != nil {
			continue // "own"; the sandbox refuses what is no number
		}
		if n >= first && n < first+config.ServiceCount || a.cfg.Engine.UID != 0 && n == a.cfg.Engine.UID {
			return control.Errorf("refused", "process.%s: got %d, which belongs to the appliance (its services have %d to %d, the model engine %d); name another id, or \"own\"",
				field, n, first, first+config.ServiceCount-1, a.cfg.Engine.UID)
		}
	}
	return nil
}

// start runs the agent's sandbox.
func (a *Appliance) start(ctx context.Context, ag *agent) error {
	if err := durable.MkdirAll(ag.dir, 0o711); err != nil {
		return err
	}
	out, err := openOutput(ag.logPath())
	if err != nil {
		return err
	}
	ag.tallies = map[string]tally{}
	// Disk and ledger take their time while the sandbox is built.
	launch := a.lifecycle(ag, ledger.Allowed, "agent.launch", "image "+ag.Image)
	if ag.Driver != "" {
		launch.Attrs = map[string]any{"driver": ag.Driver}
	}
	kept := async(func() error {
		return atOnce(ag.save, func() error { return a.log.Record(ctx, launch) })
	})
	box, err := a.sandbox(ctx, ag, out, kept)
	if err != nil {
		_ = kept() // it is in err, if the start came that far
		out.Close()
		if ag.fresh {
			rerr := a.boxes.Remove(ag.Name)
			ag.fresh = rerr == nil // what can't be removed is not swept away
			err = errors.Join(err, rerr)
		}
		rec := a.lifecycle(ag, ledger.Denied, "agent.launch_failed", err.Error())
		code := "refused"
		var e *control.Error
		if errors.As(err, &e) {
			code = e.Code
		}
		return errors.Join(control.Errorf(code, "agent %s did not start: %v", ag.Name, err), a.log.Record(ctx, rec))
	}
	ag.mu.Lock()
	ag.box, ag.done, ag.started = box, make(chan struct{}), time.Now().UTC()
	ag.mu.Unlock()
	go a.await(ag, box, func() { out.Close() })
	return nil
}

// crew is who an agent that starts now is put in the care of.
func (a *Appliance) crew() map[string]*service.Process {
	m := map[string]*service.Process{}
	for _, role := range []string{"guard", "router", "egress"} {
		m[role] = a.part(role).process()
	}
	return m
}

// sameCrew refuses an agent in whose start a service ended: the guard that
// began to watch it is the one that has to be there, and what the router and
// egress were told went with them.
func (a *Appliance) sameCrew(before map[string]*service.Process) error {
	for role, p := range before {
		if a.part(role).process() != p {
			return control.Errorf("refused", "service %s ended while the agent started, so the agent was stopped; start it again", role)
		}
	}
	return nil
}
