package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/clawbox/clawbox/appliance/control"
	"github.com/spf13/cobra"
)

func agentSnapshotCmd(a *app) *cobra.Command {
	var remove bool
	c := &cobra.Command{
		Use:   "snapshot NAME SNAPSHOT",
		Short: "Keep the present state of an agent's files under a name",
		Long: `Keep the present state of an agent's files under a name.

The agent may run: it is held still for the moment that the copy takes. It
needs a disk of its own (budgets.disk in its policy). --remove deletes the
snapshot of that name instead.`,
		Args: usageArgs(cobra.ExactArgs(2)),
		RunE: a.onAppliance(func(cmd *cobra.Command, cl *control.Client, args []string) error {
			if remove {
				return cl.RemoveSnapshot(cmd.Context(), args[0], args[1])
			}
			s, err := cl.Snapshot(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), s, func(w io.Writer) {
				fmt.Fprintf(w, "snapshot %s (number %d) of agent %s: %s, held still for %v\n", printable(s.Name), s.Number, args[0], size(s.Bytes), s.Held.Round(time.Microsecond))
			})
		}),
	}
	c.Flags().BoolVar(&remove, "remove", false, "delete it")
	return c
}

func agentRestoreCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "restore NAME SNAPSHOT",
		Short: "Put a stopped agent's files back to a snapshot",
		Args:  usageArgs(cobra.ExactArgs(2)),
		RunE: a.onAppliance(func(cmd *cobra.Command, cl *control.Client, args []string) error {
			return cl.Restore(cmd.Context(), args[0], args[1])
		}),
	}
}

func agentSnapshotsCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "snapshots NAME",
		Short: "List an agent's snapshots",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: a.onAppliance(func(cmd *cobra.Command, cl *control.Client, args []string) error {
			ss, err := cl.Snapshots(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), ss, func(w io.Writer) {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "SNAPSHOT\tNUMBER\tTAKEN\tSIZE\tSHARED")
				for _, s := range ss {
					fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%t\n", printable(s.Name), s.Number, s.Taken.Local().Format(time.DateTime), size(s.Bytes), s.Shared)
				}
				t.Flush()
			})
		}),
	}
}
