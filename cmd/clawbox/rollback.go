package main

import (
	"github.com/clawbox/clawbox/installer"
	"github.com/clawbox/clawbox/installer/host"
	"github.com/spf13/cobra"
)

func rollbackCmd(a *app) *cobra.Command {
	var f changeFlags
	var old bool
	c := &cobra.Command{
		Use:   "rollback",
		Short: "Go back to the release that the last upgrade left",
		Long: `Go back to the release that the last upgrade left.

It goes the way of an upgrade, with the same gates: if that release does not hold,
the present one stays. Agents, approvals and policies stay as they are now; with
--restore-state they are put back to what they were when that release was left.
The ledger is never put back. Given again, it goes forward again.

On a cluster an older K3s can't read what a later one wrote: where K3s goes back,
the cluster's objects are put back to what they were when that release was left.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := a.config(); err != nil {
				return err
			}
			plan, err := installer.NewRollback(host.Gather(a.root), a.root, f.operator, old)
			if err != nil {
				return err
			}
			p := progress(cmd)
			return a.apply(cmd, plan, a.changeEnv(cmd.Context(), f, p), f, p)
		},
	}
	f.add(c)
	c.Flags().BoolVar(&old, "restore-state", false, "put the state of that time back, too")
	return c
}
