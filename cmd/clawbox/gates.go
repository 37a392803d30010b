package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/installer"
)

// changeEnv is what upgrade and rollback ask of a running appliance.
func (a *app) changeEnv(ctx context.Context, f changeFlags, out io.Writer) installer.ChangeEnv {
	e := installer.ChangeEnv{
		Deadline: f.deadline, Agents: crew{a}, Gates: []installer.Gate{protection{a, a.tier(ctx)}, record{a}},
		Tell: a.tellReceipts,
	}
	e.Progress = func(ev installer.Event) {
		if ev.What != "start" {
			fmt.Fprintln(out, strings.TrimSuffix(fmt.Sprintf("%-5s %s: %s", ev.What, ev.Title, clip(ev.Detail, 100)), ": "))
		}
	}
	return e
}

// tellReceipts has a running appliance record what the installer left.
func (a *app) tellReceipts(ctx context.Context) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	return cl.TellReceipts(ctx)
}

// tier is the guard's now, "" when no appliance runs.
func (a *app) tier(ctx context.Context) string {
	cl, err := a.client()
	if err != nil {
		return ""
	}
	st, err := cl.Status(ctx)
	if err != nil {
		return ""
	}
	return st.Tier
}

// protection is the gate that wants the guard's self-test to have reached what
// it reached before, and every service to run.
type protection struct {
	a      *app
	before string
}

func (protection) Name() string { return "protection" }

func (g protection) Pass(ctx context.Context, _ installer.Change) error {
	cl, err := g.a.client()
	if err != nil {
		return err
	}
	st, err := cl.Status(ctx)
	if err != nil {
		return err
	}
	if st.Error != "" {
		return fmt.Errorf("it refuses work: %s", st.Error)
	}
	if g.before != "" && st.Tier > g.before { // T1 is the strongest
		return fmt.Errorf("the guard reached %s, before it was %s: %s", st.Tier, g.before, st.TierWhy)
	}
	for _, s := range st.Services {
		if s.PID == 0 {
			return fmt.Errorf("service %s does not run: %s", s.Name, s.LastEnd)
		}
	}
	return nil
}

// record is the gate that wants the ledger to hold, and to go on where it was.
type record struct{ a *app }

func (record) Name() string { return "ledger" }

func (g record) Pass(_ context.Context, c installer.Change) error {
	l := &logFlags{a: g.a}
	dir, v, err := l.open()
	if err != nil {
		return err
	}
	var o ledger.Options
	b, err := os.ReadFile(c.Checkpoint(installer.Layout{Prefix: g.a.root}))
	if err == nil {
		o.Anchors = [][]byte{b}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, err = ledger.Verify(dir, v, o)
	return err
}

// crew are the appliance's agents.
type crew struct{ a *app }

func (c crew) Running(ctx context.Context) ([]string, error) {
	cl, err := c.a.client()
	if err != nil {
		return nil, err
	}
	all, err := cl.Agents(ctx)
	var names []string
	for _, ag := range all {
		if ag.State == "running" {
			names = append(names, ag.Name)
		}
	}
	slices.Sort(names)
	return names, err
}

// Start starts them one after the other; all are tried.
func (c crew) Start(ctx context.Context, names []string) error {
	cl, err := c.a.client()
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range names {
		if _, err := cl.Launch(ctx, control.LaunchRequest{Name: n}); err != nil {
			errs = append(errs, fmt.Errorf("agent %s: %w", n, err))
		}
	}
	return errors.Join(errs...)
}
