package main

import (
	"fmt"
	"io"

	"github.com/clawbox/clawbox/installer/doctor"
	"github.com/spf13/cobra"
)

func doctorCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Say what is wrong with the appliance, why, and what to do",
		Long: `Say what is wrong with the appliance, why, and what to do. It changes nothing and
works while the appliance doesn't. Ends with status 1 when a check failed;
warnings leave it at 0.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			rs := doctor.Judge(doctor.Look(cmd.Context(), a.root))
			if err := a.print(cmd.OutOrStdout(), rs, func(w io.Writer) { printChecks(w, rs) }); err != nil {
				return err
			}
			if doctor.Failed(rs) {
				return exitCode(exitFailure)
			}
			return nil
		},
	}
}

// printChecks lists what needs a person first.
func printChecks(w io.Writer, rs []doctor.Result) {
	for _, s := range []doctor.State{doctor.Failure, doctor.Warning, doctor.Note, doctor.OK} {
		for _, r := range rs {
			if r.State == s {
				fmt.Fprintln(w, r)
			}
		}
	}
}
