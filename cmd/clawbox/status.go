package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/installer"
	"github.com/spf13/cobra"
)

func statusCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say what runs, how it is protected and what is weaker than it should be",
		Long: `Say what runs, how it is protected and what is weaker than it should be.

Ends with status 4 while the appliance refuses work (starting, stopping, or
failed closed), so that scripts can wait for it.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: a.onAppliance(func(cmd *cobra.Command, cl *control.Client, _ []string) error {
			st, err := cl.Status(cmd.Context())
			if err != nil {
				return err
			}
			last, err := installer.LastTurn(a.root)
			if err != nil {
				return err
			}
			said := hostStatus{st, last}
			if err := a.print(cmd.OutOrStdout(), said, func(w io.Writer) { printStatus(w, said) }); err != nil {
				return err
			}
			if st.Error != "" {
				return exitCode(exitRefused)
			}
			return nil
		}),
	}
}

// tierWords says what each guard tier does about a program that is not listed.
var tierWords = map[string]string{
	"T1": "unlisted programs are refused (BPF LSM)",
	"T2": "unlisted programs are refused (fmod_ret)",
	"T3": "unlisted programs are killed before their first instruction (tracepoint)",
	"T4": "NO GUARD: Landlock alone limits programs, and nobody watches",
}

// hostStatus is the appliance's, and what became of the last change of release.
type hostStatus struct {
	control.Status
	Change *installer.Turn `json:"change,omitempty"`
}

// turnWords say what an event means.
var turnWords = map[string]string{
	"begun": "has begun", "tried": "is tried", "committed": "is committed", "returned": "was taken back", "restored": "was put back",
}

func printStatus(w io.Writer, st hostStatus) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "release\t%s (sequence %d), clawbox %s, up %s\n", st.Release, st.Sequence, st.Version, time.Since(st.Started).Round(time.Second))
	if c := st.Change; c != nil {
		fmt.Fprintf(t, "last change\t%s from %s to %s %s, %s\n", c.Kind, c.From, c.To, turnWords[c.Event], c.Time.Format(time.RFC3339))
		if c.Reason != "" {
			fmt.Fprintf(t, "\t%s\n", c.Reason)
		}
	}
	fmt.Fprintf(t, "guard\ttier %s: %s\n", st.Tier, tierWords[st.Tier])
	if st.TierWhy != "" {
		fmt.Fprintf(t, "\t%s\n", st.TierWhy)
	}
	fmt.Fprintf(t, "landlock\tABI %d\n", st.Landlock)
	fmt.Fprintf(t, "lost events\t%d\n", st.Lost)
	fmt.Fprintf(t, "registry\t%s\n", st.Registry)
	fmt.Fprintf(t, "engine\t%s %s\n", st.Engine, strings.Join(st.Models, ", "))
	fmt.Fprintf(t, "ledger\t%d entries, root %s\n", st.LedgerSize, st.LedgerRoot)
	fmt.Fprintf(t, "held\t%d\n", st.Pending)
	for _, weak := range st.Weakenings {
		fmt.Fprintf(t, "WEAKENED\t%s\n", weak)
	}
	if st.Full != "" {
		fmt.Fprintf(t, "NEARLY FULL\t%s\n", st.Full)
	}
	if st.Error != "" {
		fmt.Fprintf(t, "REFUSING WORK\t%s\n", st.Error)
	}
	t.Flush()
	fmt.Fprintln(w)
	printServices(w, st.Services)
	printAgents(w, st.Agents)
}

// printServices lists the appliance's own processes. "proved" counts what each
// tried at its start and was refused; -o json names the attempts.
func printServices(w io.Writer, ss []control.ServiceStatus) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SERVICE\tPID\tUSER\tCAPABILITIES\tCONFINEMENT\tRESTARTS")
	for _, s := range ss {
		if s.PID == 0 {
			fmt.Fprintf(t, "%s\tDOWN\t\t\t%s\t%d\n", s.Name, s.LastEnd, s.Restarts)
			continue
		}
		caps := strings.Join(s.Keeps, " ")
		if caps == "" {
			caps = "none"
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%s\tLandlock ABI %d, seccomp; proved by %d refusals\t%d\n", s.Name, s.PID, s.UID, caps, s.Landlock, len(s.Refused), s.Restarts)
	}
	t.Flush()
	fmt.Fprintln(w)
}

// size prints bytes for a person, in binary units.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}

// short cuts a digest to what a person compares.
func short(digest string) string {
	_, hex, ok := strings.Cut(digest, ":")
	if !ok || len(hex) < 12 {
		return digest
	}
	return hex[:12]
}
