package main

import (
	"fmt"
	"io"
	"os/user"
	"text/tabwriter"
	"time"

	"github.com/clawbox/clawbox/appliance/control"
	"github.com/spf13/cobra"
)

func approveCmd(a *app) *cobra.Command {
	var r control.AnswerRequest
	var deny bool
	c := &cobra.Command{
		Use:   "approve [ID]",
		Short: "List held requests, or answer one",
		Long: `List the requests that are held for an operator, or answer one.

Without ID it lists them. With ID it allows the request: --once for the
connections that wait now, --session until the agent stops, --always for this
agent from now on. --deny refuses it. The answer is on the ledger before it
takes effect, and the sandbox is not restarted.`,
		Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: a.onAppliance(func(cmd *cobra.Command, cl *control.Client, args []string) error {
			if len(args) == 0 {
				return listPending(cmd, a, cl)
			}
			r.Allow = !deny
			r.Scope = scopeOf(cmd)
			r.Operator = operator(r.Operator)
			ps, err := cl.Approvals(cmd.Context())
			if err != nil {
				return err
			}
			for _, p := range ps {
				if p.ID == args[0] {
					r.Digest = p.Digest // a request never changes under its id
				}
			}
			return cl.Answer(cmd.Context(), args[0], r)
		}),
	}
	f := c.Flags()
	f.Bool("once", false, "the connections that wait now (default)")
	f.Bool("session", false, "until the agent stops")
	f.Bool("always", false, "for this agent from now on")
	f.BoolVar(&deny, "deny", false, "refuse the request")
	f.StringVar(&r.Operator, "operator", "", "who answers, for the ledger (default: the user name)")
	c.MarkFlagsMutuallyExclusive("once", "session", "always", "deny")
	return c
}

// scopeOf reads the scope flags; they exclude each other.
func scopeOf(cmd *cobra.Command) string {
	for _, s := range []string{"session", "always"} {
		if on, _ := cmd.Flags().GetBool(s); on {
			return s
		}
	}
	return "once"
}

// operator names the person for the ledger.
func operator(given string) string {
	if given != "" {
		return given
	}
	u, err := user.Current()
	if err != nil {
		return "unknown"
	}
	return u.Username
}

func listPending(cmd *cobra.Command, a *app, cl *control.Client) error {
	ps, err := cl.Approvals(cmd.Context())
	if err != nil {
		return err
	}
	return a.print(cmd.OutOrStdout(), ps, func(w io.Writer) {
		if len(ps) == 0 {
			fmt.Fprintln(w, "nothing is held")
			return
		}
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		defer t.Flush()
		fmt.Fprintln(t, "ID\tAGENT\tDESTINATION\tPROCESS\tWAITING\tFOR\tAN APPROVAL ADDS")
		for _, p := range ps {
			fmt.Fprintf(t, "%s\t%s\t%s:%d\t%s\t%d\t%s\t%s\n", p.ID, p.Agent, printable(p.Host), p.Port, printable(p.Process),
				p.Waiting, time.Since(p.Since).Round(time.Second), printable(p.Change))
		}
	})
}
