package main

import (
	"fmt"
	"io"
	"os"

	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/installer"
	"github.com/spf13/cobra"
)

func uninstallCmd(a *app) *cobra.Command {
	var purge, dryRun bool
	var operator string
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Stop the appliance and remove what was installed",
		Long: `Stop the appliance and remove what was installed.

The ledger, all keys and the agents' files stay, and it says where; a later
'clawbox install' goes on with them. With --purge they go, too: what the ledger
recorded can then only be proved from copies kept elsewhere.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := installer.NewRemoval(a.root, purge)
			if err != nil {
				return err
			}
			show := func() error { return a.print(cmd.OutOrStdout(), r, func(w io.Writer) { r.Print(w) }) }
			if dryRun {
				return show()
			}
			if os.Geteuid() != 0 {
				return fmt.Errorf("uninstall needs root, got uid %d; --dry-run does not", os.Geteuid())
			}
			e := installer.RemoveEnv{Operator: operator, Tell: a.tellReceipts}
			if c, err := a.config(); err == nil {
				e.Free = func() error { return guard.RemovePins(c.Paths.Pin()) }
			}
			if err := installer.Remove(cmd.Context(), r, e); err != nil {
				return err
			}
			return show()
		},
	}
	f := c.Flags()
	f.BoolVar(&purge, "purge", false, "remove the ledger, keys and agents' files, too")
	f.BoolVar(&dryRun, "dry-run", false, "say what would go and what would stay, and stop")
	f.StringVar(&operator, "operator", "root", "who answers for it; goes on the ledger")
	return c
}
