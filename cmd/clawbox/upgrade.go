package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/installer"
	"github.com/clawbox/clawbox/installer/host"
	"github.com/spf13/cobra"
)

// changeFlags are those of upgrade and rollback.
type changeFlags struct {
	operator string
	deadline time.Duration
	dryRun   bool
}

func (f *changeFlags) add(c *cobra.Command) {
	fl := c.Flags()
	fl.StringVar(&f.operator, "operator", "", "who answers for it; goes on the ledger (default: who installed)")
	fl.DurationVar(&f.deadline, "deadline", 0, "how long the release may take to prove itself once it is started (default: 3m, on a cluster 15m)")
	fl.BoolVar(&f.dryRun, "dry-run", false, "print the plan and stop")
}

// upgradeFlags are upgrade's own.
type upgradeFlags struct {
	changeFlags
	identities []string
	addKeys    []string
	deep       bool
}

func upgradeCmd(a *app) *cobra.Command {
	var f upgradeFlags
	c := &cobra.Command{
		Use:   "upgrade MEDIA...",
		Short: "Put a later release in place, or stay where it was",
		Long: `Put a later release in place, or stay where it was.

MEDIA are the directories of one bundle, in any order. They are held against what
the installed appliance trusts: never against keys that lie on the media. A root
that follows on the installed one there is taken over with the release.

The release is made ready beside the installed one, which works on meanwhile.
Then the appliance is stopped, its state is kept, and the release is started
once. It has to become healthy, be protected as before, extend the ledger and
start the agents that ran, all before the deadline. Only then it is kept. If
anything fails, or the power goes, the next start is the release before with its
state. 'clawbox rollback' goes back later.

On a cluster K3s goes with the release: it is stopped with the appliance (what
tenants run goes on), its datastore, certificates and token are part of the state
that is kept, and the node and all that clawbox runs on it have to become ready.`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return upgrade(cmd, a, f, args) },
	}
	f.add(c)
	fl := c.Flags()
	fl.StringArrayVar(&f.identities, "identity", nil, "file with an age or ssh identity that the bundle is encrypted to (repeatable)")
	fl.StringArrayVar(&f.addKeys, "add-key", nil, "file with a public key that is trusted from now on, besides the installed ones (repeatable)")
	fl.BoolVar(&f.deep, "deep", false, "read and verify all of the media before anything is touched")
	return c
}

func upgrade(cmd *cobra.Command, a *app, f upgradeFlags, dirs []string) error {
	manyProcs()
	if _, err := a.config(); err != nil {
		return err
	}
	m, err := f.open(a.root, dirs)
	if err != nil {
		return err
	}
	p := progress(cmd)
	rel, loads, err := installer.FromMedia(m, m.Trust(), p)
	if err != nil {
		return err
	}
	facts := host.Gather(a.root)
	plan, err := installer.NewUpgrade(facts, a.root, f.operator, rel)
	if err != nil {
		return err
	}
	env := a.changeEnv(cmd.Context(), f.changeFlags, p)
	env.Trust, env.Load = loads.Trust, installer.LoadBeside(m, p)
	if len(f.addKeys) > 0 {
		env.Remark = "the operator added keys to those that this host trusts: " + strings.Join(m.Trust().Keys(), ", ")
	}
	if f.deep {
		env.Verify = func(ctx context.Context) error { return m.Verify(ctx, p) }
	}
	return a.apply(cmd, plan, env, f.changeFlags, p)
}

// open opens the media with the host's own trust.
func (f upgradeFlags) open(root string, dirs []string) (*bundle.Media, error) {
	ids, err := bundle.LoadIdentities(f.identities...)
	if err != nil {
		return nil, usageError{err}
	}
	var trust manifest.Trust
	if len(f.addKeys) > 0 {
		trust, err = installer.AddKeys(root, f.addKeys...)
	} else {
		trust, _, err = installer.Trust(root, 0)
	}
	if err != nil {
		return nil, usageError{err}
	}
	return bundle.MediaOptions{Trust: trust, Dirs: dirs, Identities: ids}.Open()
}

// apply prints the plan, or carries it out.
func (a *app) apply(cmd *cobra.Command, plan installer.ChangePlan, env installer.ChangeEnv, f changeFlags, p bundle.Reporter) error {
	if f.dryRun {
		return a.print(cmd.OutOrStdout(), plan, func(w io.Writer) { plan.Print(w) })
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s needs root, got uid %d; --dry-run does not", plan.Kind, os.Geteuid())
	}
	res, err := installer.Apply(cmd.Context(), plan, env)
	p.Close() // bars would overwrite what comes now
	if err != nil {
		return err
	}
	return a.print(cmd.OutOrStdout(), res, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s\n", res.Kind, res.To)
		for _, n := range res.Notes {
			fmt.Fprintf(w, "note: %s\n", n)
		}
		if len(res.Agents) > 0 {
			fmt.Fprintf(w, "agents started again: %s\n", strings.Join(res.Agents, ", "))
		}
		fmt.Fprintf(w, "no agent ran for %.1f s\n%s\n", res.Seconds, res.Next)
	})
}
