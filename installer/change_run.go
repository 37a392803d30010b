package installer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// changing is one Apply at work.
type changing struct {
	plan   ChangePlan
	env    ChangeEnv
	l      Layout
	change Change
	run    *run // the other release's steps that an installation has, too
	j      *journal
	down   time.Time // when the appliance was stopped
}

// Apply carries out p. Until the step "carry" the installed release is left
// alone; from then on a failure of any kind, the loss of this process and of
// power included, leads back to it, and only a commit leads forward. What is
// left of an earlier change is ended first.
func Apply(ctx context.Context, p ChangePlan, env ChangeEnv) (ChangeResult, error) {
	l := p.Plan.Answers.layout()
	c := &changing{plan: p, env: env, l: l, change: p.change}
	if c.env.Service == nil {
		c.env.Service = ServiceOf(p.Plan.Answers)
	}
	if c.env.State == nil {
		var err error
		if c.env.State, err = StateOf(p.change.Profile, p.was, l); err != nil {
			return ChangeResult{}, err
		}
	}
	c.run = &run{Plan: p.Plan, env: Env{Trust: env.Trust, Load: env.Load}, l: l, changed: map[string]string{}}
	if p.Kind == Upgrade && (env.Load == nil || env.Trust.Empty()) {
		return ChangeResult{}, errors.New("installer: an upgrade needs Load and Trust")
	}
	if env.Verify != nil {
		if err := env.Verify(ctx); err != nil {
			return ChangeResult{}, err
		}
	}
	defer unix.Umask(unix.Umask(0o022))
	unlock, err := lock(l.Lock())
	if err != nil {
		return ChangeResult{}, err
	}
	defer unlock()
	if err := c.begin(ctx); err != nil {
		if c.j != nil {
			c.j.Close()
		}
		return ChangeResult{}, err
	}
	defer c.j.Close()
	return c.all(ctx)
}

// begin ends what an earlier change left, and opens this one.
func (c *changing) begin(ctx context.Context) error {
	old, err := replayChanges(c.l.Changes())
	if err != nil {
		return err
	}
	if c.j, err = openJournal(c.l.Changes(), old.size); err != nil {
		return err
	}
	if err = c.endEarlier(ctx, old); err != nil {
		return err
	}
	// What the plan was made from may have been changed by that, or by others.
	if last, _, err := c.l.installed(); err != nil || last != c.change.From {
		return cmp.Or(err, fmt.Errorf("installed is %s now; the plan was made for %s; give the same command again", last, c.change.From))
	}
	told, err := c.l.lastEvent()
	if err != nil {
		return err
	}
	c.change.ID = max(old.count, told) + 1
	if c.env.Agents != nil && c.env.Service.Running(ctx) {
		if c.change.Agents, err = c.env.Agents.Running(ctx); err != nil {
			return fmt.Errorf("which agents run: %w", err)
		}
	}
	if err = c.write(changeLine{Event: "begin", Change: &c.change}); err != nil {
		return err
	}
	return c.l.tellLedger(c.change, "begun", c.env.Remark)
}

// endEarlier ends an open change: forward when it was committed, back when it
// had touched state, and otherwise as if it had never been.
func (c *changing) endEarlier(ctx context.Context, old changes) error {
	switch {
	case old.open == nil:
		return nil
	case old.committed:
		return c.l.finish(*old.open, c.j)
	case old.touched || there(c.l.Tried()):
		if err := c.env.Service.Stop(ctx); err != nil {
			return err
		}
		if err := idle(ctx, c.plan.was.Paths.State, stopTime); err != nil {
			return err
		}
		return c.l.giveBack(ctx, *old.open, old.returning, cutOff, c.env.State, c.j)
	}
	return c.l.drop("begun anew", c.j)
}

// cutOff is the reason of a change that nobody could end.
const cutOff = "it was cut off before it was committed: the installer was killed, or the power went"

func (c *changing) write(l changeLine) error {
	l.Time = time.Now().UTC()
	return c.j.write(l)
}

// all runs the steps in order and commits, or goes back.
func (c *changing) all(ctx context.Context) (ChangeResult, error) {
	for _, s := range changeSteps {
		if s.only != nil && !s.only(c.change) {
			continue
		}
		if err := c.step(ctx, s); err != nil {
			return ChangeResult{}, c.failed(ctx, s, err)
		}
	}
	c.at("commit", "before")
	took := time.Since(c.down)
	if err := c.write(changeLine{Event: "commit"}); err != nil {
		return ChangeResult{}, fmt.Errorf("whether %s is committed is not sure: %w; start the appliance again: that decides it, and ends with one of the two releases whole", c.change.To, err)
	}
	c.at("commit", "done")
	if err := c.l.finish(c.change, c.j); err != nil {
		return ChangeResult{}, fmt.Errorf("%s is committed, but not all of it is in place: %w; correct the cause and start the appliance: that finishes it", c.change.To, err)
	}
	c.at("finish", "done")
	return c.result(ctx, took)
}

// result tells the appliance, and says what is left to do.
func (c *changing) result(ctx context.Context, took time.Duration) (ChangeResult, error) {
	r := ChangeResult{
		Kind: c.change.Kind, From: c.change.From.String(), To: c.change.To.String(), Agents: c.change.Agents, Notes: c.plan.Notes,
		Seconds: took.Seconds(), Next: "the appliance runs the new release; 'clawbox rollback' goes back to " + c.change.From.String(),
	}
	if c.env.Tell != nil {
		if err := c.env.Tell(ctx); err != nil {
			r.Notes = append(r.Notes, fmt.Sprintf("the commit goes on the ledger with the next start: %v", err))
		}
	}
	if c.env.Service.Stays() {
		return r, nil
	}
	r.Next = "start the appliance with: " + serveCommand(c.run.Answers)
	return r, c.env.Service.Stop(ctx)
}

func (c *changing) step(ctx context.Context, s changeStep) error {
	c.at(s.id, "before")
	c.tell(s, "start", "")
	if err := c.write(changeLine{Event: "start", Step: s.id}); err != nil {
		return err
	}
	c.at(s.id, "started")
	if err := ctx.Err(); err != nil {
		return err
	}
	did, err := s.run(c, ctx)
	if err != nil {
		return err
	}
	c.at(s.id, "acted")
	if err := c.write(changeLine{Event: "done", Step: s.id, Text: did}); err != nil {
		return err
	}
	c.at(s.id, "done")
	c.tell(s, "done", did)
	return nil
}

func (c *changing) at(step, phase string) {
	if c.env.hook != nil {
		c.env.hook(step, phase)
	}
}

func (c *changing) tell(s changeStep, what, detail string) {
	if c.env.Progress != nil {
		c.env.Progress(Event{s.id, s.title, what, detail})
	}
}

// failed goes back, also when ctx has ended, and starts what ran before.
func (c *changing) failed(ctx context.Context, s changeStep, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Minute)
	defer cancel()
	_ = c.write(changeLine{Event: "fail", Step: s.id, Text: cause.Error()}) // the journal may be what failed
	if c.down.IsZero() {
		err := c.l.drop("step "+s.id+" failed", c.j)
		return errors.Join(fmt.Errorf("step %q (%s) failed: %w\n%s runs on as before; correct the cause and give the same command again", s.id, s.title, cause, c.change.From), err)
	}
	e := &ReturnedError{c.change.Kind, c.change.From.String(), c.change.To.String(), fmt.Sprintf("step %q (%s)", s.id, s.title), cause}
	err := c.env.Service.Stop(ctx)
	if err == nil {
		err = idle(ctx, c.plan.was.Paths.State, stopTime)
	}
	if err == nil {
		err = c.l.giveBack(ctx, c.change, "", fmt.Sprintf("step %s: %v", s.id, cause), c.env.State, c.j)
	}
	if err == nil && c.env.Service.Stays() {
		err = c.restart(ctx)
	}
	if err != nil {
		return fmt.Errorf("%w\nand going back is not complete: %w; start the appliance again: that completes it", cause, err)
	}
	return e
}

// restart starts the installed release and its agents again.
func (c *changing) restart(ctx context.Context) error {
	if err := c.env.Service.Start(ctx); err != nil {
		return err
	}
	back := c.change
	back.To = c.change.From
	gates := []Gate{healthGate{c: c, patient: true}} // on a slow host its first start may take too long
	if c.change.Profile == "cluster" {
		gates = append(gates, clusterGate{c, true})
	}
	for _, g := range gates {
		if err := g.Pass(ctx, back); err != nil {
			return err
		}
	}
	if c.env.Agents == nil || len(c.change.Agents) == 0 {
		return nil
	}
	return c.env.Agents.Start(ctx, c.change.Agents)
}

// giveBack puts the state of before back. Killed in the middle, it does the
// same again.
func (l Layout) giveBack(ctx context.Context, c Change, returning, reason string, all []Snapshotter, j *journal) error {
	if returning == "" {
		if err := l.tellLedger(c, "returned", reason); err != nil {
			return err
		}
		if err := j.write(changeLine{Time: time.Now().UTC(), Event: "return", Text: reason}); err != nil {
			return err
		}
	}
	// Where the state was never kept nothing was touched either.
	if old, err := replayChanges(l.Changes()); err != nil {
		return err
	} else if old.touched {
		if err := l.namesBack(c); err != nil {
			return fmt.Errorf("put back the names in the store: %w", err)
		}
		if err := restoreState(ctx, all, c.state(l)); err != nil {
			return err
		}
	}
	return l.drop("returned", j)
}

// drop takes the markers and what would have taken effect, and ends the change.
func (l Layout) drop(why string, j *journal) error {
	if err := gone(l.Try(), l.Tried()); err != nil {
		return err
	}
	if err := removeAll(l.Next()); err != nil {
		return err
	}
	return j.write(changeLine{Time: time.Now().UTC(), Event: "end", Text: why})
}
