package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/clawbox/clawbox/appliance/control"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func agentCmd(a *app) *cobra.Command {
	c := &cobra.Command{Use: "agent", Short: "Launch agents under policy and look after them"}
	c.AddCommand(agentLaunchCmd(a), agentConnectCmd(a), agentStatusCmd(a), agentLogsCmd(a),
		agentStopCmd(a), agentRemoveCmd(a), agentListCmd(a), agentReloadCmd(a),
		agentSnapshotCmd(a), agentRestoreCmd(a), agentSnapshotsCmd(a))
	return group(c)
}

func agentLaunchCmd(a *app) *cobra.Command {
	var r control.LaunchRequest
	var policyFile string
	c := &cobra.Command{
		Use:   "launch NAME [-- ARG...]",
		Short: "Start an agent in a sandbox",
		Long: `Start an agent in a sandbox.

NAME is a new name, or that of a stopped agent, which starts again on the
files it left. --agent names an entry of the appliance's configuration and
defaults to NAME. Arguments after -- replace the image's command.`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Name, r.Args = args[0], args[1:]
			if policyFile != "" {
				src, err := os.ReadFile(policyFile)
				if err != nil {
					return err
				}
				r.Policy, r.Source = policyFile, src
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			st, err := cl.Launch(cmd.Context(), r)
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), st, func(w io.Writer) {
				fmt.Fprintf(w, "agent %s runs: image %s, policy %s (%s), uid %d, pid %d\n",
					st.Name, st.Image, st.Policy, short(st.Digest), st.UID, st.PID)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&r.Agent, "agent", "", "entry of the appliance's configuration to take image, policy and command from")
	f.StringArrayVar(&r.Command, "entrypoint", nil, "program, and its first arguments, in place of the image's entry point (repeatable)")
	f.StringVar(&r.Image, "image", "", "image in the local registry")
	f.StringVar(&policyFile, "policy", "", "policy file; replaces the configured one")
	f.StringVar(&r.Driver, "driver", "", `who makes its namespaces: "local", or "pod" on a cluster's node (default: as before; pod where the configuration has a cluster)`)
	f.StringArrayVarP(&r.Env, "env", "e", nil, "NAME=value for the agent's environment (repeatable)")
	return c
}

func agentConnectCmd(a *app) *cobra.Command {
	var tty bool
	c := &cobra.Command{
		Use:   "connect NAME [-- PROGRAM ARG...]",
		Short: "Run a program inside a running sandbox, under its policy",
		Args:  usageArgs(cobra.MinimumNArgs(1)),
		RunE: a.onAppliance(func(cmd *cobra.Command, cl *control.Client, args []string) error {
			r := control.ExecRequest{Args: args[1:], TTY: tty}
			if len(r.Args) == 0 {
				r.Args, r.TTY = []string{"/bin/sh"}, tty || term.IsTerminal(int(os.Stdin.Fd()))
			}
			code, err := connect(cmd, cl, args[0], r)
			if err == nil && code != 0 {
				err = exitCode(code)
			}
			return err
		}),
	}
	c.Flags().BoolVarP(&tty, "tty", "t", false, "give the program a terminal (default when no program is named and there is one)")
	return c
}

// connect runs r with the caller's standard streams, the terminal raw when
// there is one.
func connect(cmd *cobra.Command, cl *control.Client, name string, r control.ExecRequest) (int, error) {
	s := control.Stdio{In: cmd.InOrStdin(), Out: unescaped(cmd.OutOrStdout()), Err: unescaped(cmd.ErrOrStderr())}
	fd := int(os.Stdin.Fd())
	if !r.TTY || !term.IsTerminal(fd) {
		return cl.Exec(cmd.Context(), name, r, s)
	}
	if w, h, err := term.GetSize(fd); err == nil {
		r.Rows, r.Cols = uint16(h), uint16(w)
	}
	old, err := term.MakeRaw(fd)
	if err != nil {
		return 0, err
	}
	defer term.Restore(fd, old)
	s.Resize = resizes(fd)
	return cl.Exec(cmd.Context(), name, r, s)
}

// resizes reports the terminal's size whenever it changes.
func resizes(fd int) <-chan [2]uint16 {
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, syscall.SIGWINCH)
	out := make(chan [2]uint16)
	go func() {
		for range sig {
			if w, h, err := term.GetSize(fd); err == nil {
				out <- [2]uint16{uint16(h), uint16(w)}
			}
		}
	}()
	return out
}

func agentStatusCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status NAME",
		Short: "Describe one agent",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: a.onAppliance(func(cmd *cobra.Command, cl *control.Client, args []string) error {
			st, err := cl.Agent(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), st, func(w io.Writer) { printAgent(w, st) })
		}),
	}
}

func printAgent(w io.Writer, st control.AgentStatus) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	fmt.Fprintf(t, "name\t%s\nstate\t%s\nimage\t%s\npolicy\t%s (%s)\nuid\t%d\n", st.Name, st.State, st.Image, st.Policy, st.Digest, st.UID)
	if st.Driver != "" {
		fmt.Fprintf(t, "driver\t%s\n", st.Driver)
	}
	if st.State == "running" {
		fmt.Fprintf(t, "pid\t%d\nrunning for\t%s\ntasks\t%d\nmemory\t%s\n",
			st.PID, time.Since(st.Started).Round(time.Second), st.Tasks, size(st.Memory))
		if st.Pauses > 0 {
			fmt.Fprintf(t, "records\t%s\n", pauses(st))
		}
		return
	}
	fmt.Fprintf(t, "stopped\t%s\nexit status\t%d\nwhy\t%s\n", st.Stopped.Format(time.RFC3339), st.ExitCode, st.Why)
}

// pauses says that an agent writes more records than it may.
func pauses(st control.AgentStatus) string {
	s := fmt.Sprintf("slowed down %d times: it causes more of them than recordMiB allows", st.Pauses)
	if !st.Paused.IsZero() {
		s += fmt.Sprintf("; now until %s", st.Paused.Format(time.RFC3339))
	}
	return s
}

func agentListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List agents",
		Args:  usageArgs(cobra.NoArgs),
		RunE: a.onAppliance(func(cmd *cobra.Command, cl *control.Client, _ []string) error {
			as, err := cl.Agents(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), as, func(w io.Writer) { printAgents(w, as) })
		}),
	}
}

func printAgents(w io.Writer, as []control.AgentStatus) {
	if len(as) == 0 {
		fmt.Fprintln(w, "no agents; 'clawbox agent launch NAME' starts one")
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	fmt.Fprintln(t, "NAME\tSTATE\tIMAGE\tPOLICY\tTASKS\tMEMORY\tWHY")
	for _, s := range as {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", s.Name, s.State, s.Image, s.Policy, s.Tasks, size(s.Memory), s.Why)
	}
}

func agentLogsCmd(a *app) *cobra.Command {
	var follow, raw bool
	c := &cobra.Command{
		Use:   "logs NAME",
		Short: "Print what an agent wrote to its output",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: a.onAppliance(func(cmd *cobra.Command, cl *control.Client, args []string) error {
			w := exact(cmd.OutOrStdout())
			if raw {
				w = unescaped(w)
			}
			return cl.Logs(cmd.Context(), args[0], follow, w)
		}),
	}
	c.Flags().BoolVar(&raw, "raw", false, "on a terminal, print control characters as the agent wrote them: it can then move your cursor and more")
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the agent stops")
	return c
}

func agentStopCmd(a *app) *cobra.Command {
	var grace time.Duration
	c := &cobra.Command{
		Use:   "stop NAME",
		Short: "Stop an agent",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: a.onAppliance(func(cmd *cobra.Command, cl *control.Client, args []string) error {
			return cl.Stop(cmd.Context(), args[0], control.StopRequest{Grace: grace})
		}),
	}
	c.Flags().DurationVar(&grace, "grace", 5*time.Second, "time to end by itself before everything in the sandbox is killed")
	return c
}

func agentRemoveCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rm NAME",
		Short: "Forget a stopped agent and delete its writable files",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: a.onAppliance(func(cmd *cobra.Command, cl *control.Client, args []string) error {
			return cl.Remove(cmd.Context(), args[0])
		}),
	}
}

func agentReloadCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "reload NAME POLICY.yaml",
		Short: "Change a running agent's network and inference rules",
		Long: `Change a running agent's network and inference rules without a restart.

Filesystem, process and budget rules are locked when the sandbox is created; a
policy that changes them is refused, and the answer names the difference.`,
		Args: usageArgs(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			src, err := os.ReadFile(args[1])
			if err != nil {
				return err
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			st, err := cl.SetPolicy(cmd.Context(), args[0], control.PolicyRequest{Name: args[1], Source: src})
			if err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), st, func(w io.Writer) {
				fmt.Fprintf(w, "agent %s is now under policy %s (%s)\n", st.Name, st.Policy, short(st.Digest))
			})
		},
	}
}
