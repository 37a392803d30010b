package installer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/clawbox/clawbox/internal/durable"
)

// changeStep is one row of the table that ChangePlan prints and Apply performs.
type changeStep struct {
	id, title, why string
	only           func(Change) bool // nil: always
	run            func(*changing, context.Context) (string, error)
}

// touching is the step from which on state has to be put back when the change
// is not committed; from stopping on nothing but the change starts the
// appliance. Everything before leaves the installed release alone.
const (
	stopping = "stop"
	touching = "carry"
)

var changeSteps []changeStep

// Filled by init because the steps use helpers that print it.
func init() {
	upgrade := func(c Change) bool { return c.Kind == Upgrade }
	cluster := func(c Change) bool { return c.Profile == "cluster" }
	changeSteps = []changeStep{
		{"server", "Ask the server which K3s it runs", "a kubelet must not be newer than its API server: on a node that joined this may be too early", cluster, (*changing).server},
		{"payload", "Load what the store lacks", "verified while it is read; the installed release goes on working", upgrade, (*changing).payload},
		{"policies", "Check the policies", "a policy that cannot be read must stop us here", nil, (*changing).policies},
		{"slot", "Fill the other slot", "beside the present one, which stays as it is", nil, (*changing).slot},
		{"next", "Write what takes effect later", "configuration, keys and receipt, not in their places yet", nil, (*changing).next},
		{stopping, "Stop the appliance", "agents end in order; what they wrote stays", nil, (*changing).stop},
		{"state", "Keep the state", "what is put back if the release does not hold, the names in the store too; of the ledger its head, to prove later that it only grew", nil, (*changing).state},
		{touching, "Carry agents over", "to the release's images, and to its policies where nobody changed theirs; on a cluster also what K3s reads", nil, (*changing).carryOver},
		{"arm", "Arm one try", "the next start enters the release once; the start after that is the present one again, unless all gates have passed", nil, (*changing).arm},
		{"try", "Start the release", "the marker is used up before it is entered", nil, (*changing).try},
		{"gates", "Prove that it works", "health, the cluster, protection, the ledger, the agents that ran, all before the deadline", nil, (*changing).gates},
	}
}

// payload brings the release beside the installed one, whose names stay.
func (c *changing) payload(ctx context.Context) (string, error) { return c.run.load(ctx) }

func (c *changing) policies(ctx context.Context) (string, error) { return c.run.policies(ctx) }

// slot fills the slot; a rollback proves in doing so that the kept one is still
// what was signed. From here on the store keeps both releases.
func (c *changing) slot(ctx context.Context) (string, error) {
	s, err := c.run.open()
	if err != nil {
		return "", err
	}
	if _, err := held(s, c.run.Release); err != nil {
		return "", err
	}
	if err := errors.Join(pin(s, c.plan.carry.from), pin(s, c.run.Release)); err != nil {
		return "", err
	}
	did, err := c.run.slot(ctx)
	if err != nil || !isServer(c.run.Answers) {
		return did, err
	}
	models, err := c.run.models(ctx)
	return joined([]string{did, models}), err
}

// The files of Next and where they go with the commit.
const (
	nextAnswers = "answers.yaml"
	nextReceipt = "receipt.json"
	nextTrust   = "trusted.vkeys"
	nextRoot    = "root.note"
)

func (c *changing) next(context.Context) (string, error) {
	if err := os.RemoveAll(c.l.Next()); err != nil {
		return "", err
	}
	if err := durable.MkdirAll(c.l.Next(), 0o700); err != nil {
		return "", err
	}
	cfg, err := c.plan.Config.Encode()
	if err != nil {
		return "", err
	}
	ans, err := c.run.Answers.Encode()
	if err != nil {
		return "", err
	}
	rc, err := c.run.newReceipt()
	if err != nil {
		return "", err
	}
	data := map[string][]byte{"appliance.yaml": cfg, nextAnswers: ans, nextReceipt: rc}
	if _, note, ok := c.env.Trust.Root(); ok {
		data[nextRoot] = note
	} else if !c.env.Trust.Empty() {
		data[nextTrust] = encodeTrust(c.env.Trust)
	}
	for name, b := range data {
		if err := durable.WriteFile(filepath.Join(c.l.Next(), name), b, 0o600); err != nil {
			return "", err
		}
	}
	return "", c.l.keepRelease(c.run.Release)
}

func (c *changing) stop(ctx context.Context) (string, error) {
	c.down = time.Now()
	if err := c.env.Service.Stop(ctx); err != nil {
		return "", err
	}
	return "", idle(ctx, c.plan.was.Paths.State, stopTime)
}

func (c *changing) state(ctx context.Context) (string, error) {
	if err := saveState(ctx, c.env.State, c.change.state(c.l)); err != nil {
		return "", err
	}
	s, err := c.run.open()
	if err != nil {
		return "", err
	}
	return "", c.keepNames(s)
}

// carryOver changes state for the first time, the store's names first.
func (c *changing) carryOver(ctx context.Context) (string, error) {
	s, err := c.run.open()
	if err != nil {
		return "", err
	}
	if err := point(s, c.run.Release); err != nil {
		return "", err
	}
	if c.change.Put != "" {
		return "the state of " + c.change.To.String(), restoreState(ctx, c.env.State, c.change.Put)
	}
	did, err := c.plan.carry.records(c.plan.was.Paths.State)
	if err != nil {
		return "", err
	}
	node, err := c.carryNode(ctx)
	return joined(append(did, node)), err
}

// arm writes the marker that Boot uses up.
func (c *changing) arm(context.Context) (string, error) {
	return "", durable.WriteFile(c.l.Try(), fmt.Appendf(nil, "%d\n", c.change.ID), 0o600)
}

// try starts the appliance as any start does. That Boot has used up the marker
// is checked: otherwise something else than the release would be proved.
func (c *changing) try(ctx context.Context) (string, error) {
	if err := c.l.tellLedger(c.change, "tried", ""); err != nil {
		return "", err
	}
	if err := c.env.Service.Start(ctx); err != nil {
		return "", err
	}
	for end := time.Now().Add(30 * time.Second); there(c.l.Try()); time.Sleep(20 * time.Millisecond) {
		if err := errors.Join(c.env.Service.Alive(ctx), ctx.Err()); err != nil {
			return "", err
		}
		if time.Now().After(end) {
			return "", errors.New("the start did not use up the marker: got a 'clawbox serve' that knows nothing of upgrades; wanted the installed one; look at ExecStart of the unit")
		}
	}
	return "", nil
}

// gates passes all of them within the deadline.
func (c *changing) gates(ctx context.Context) (string, error) {
	limit := c.env.Deadline
	if limit == 0 {
		limit = 3 * time.Minute
		if c.change.Profile == "cluster" {
			limit = clusterDeadline
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the deadline of %s has passed", limit))
	defer cancel()
	all := []Gate{healthGate{c: c}}
	if c.change.Profile == "cluster" {
		all = append(all, clusterGate{c: c})
	}
	all = append(all, c.env.Gates...)
	if c.env.Agents != nil {
		all = append(all, agentsGate{c.env.Agents})
	}
	var names []string
	for _, g := range all {
		err := g.Pass(ctx, c.change)
		if err == nil {
			err = ctx.Err() // not every gate can stop half-way
		}
		if err != nil {
			if ctx.Err() != nil {
				err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
			}
			return "", fmt.Errorf("gate %s: %w", g.Name(), err)
		}
		names = append(names, g.Name())
	}
	return strings.Join(names, ", ") + " passed", c.env.Service.Alive(ctx)
}

// healthGate waits for the health socket, and not for a program that ended.
type healthGate struct {
	c *changing
	// patient says that whoever looks after the service starts it again, so that
	// its end is not the last word.
	patient bool
}

func (healthGate) Name() string { return "health" }

func (g healthGate) Pass(ctx context.Context, c Change) error {
	var last error
	for {
		err := g.c.l.healthy(ctx, c.To.Sequence)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if err := g.c.env.Service.Alive(ctx); err != nil && ctx.Err() == nil && !g.patient {
			return err
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// agentsGate starts the agents that ran before.
type agentsGate struct{ a Agents }

func (agentsGate) Name() string { return "agents" }

func (g agentsGate) Pass(ctx context.Context, c Change) error {
	if len(c.Agents) == 0 {
		return nil
	}
	return g.a.Start(ctx, c.Agents)
}
