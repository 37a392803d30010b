package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/installer"
	"github.com/clawbox/clawbox/installer/host"
	"github.com/clawbox/clawbox/installer/wizard"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// installFlags are the options of install.
type installFlags struct {
	keys       []string
	identities []string
	threshold  int
	answers    string
	tokenFile  string
	token      string
	dryRun     bool
	deep       bool

	// choose finds the answers; nil asks, or reads the file.
	choose func(host.Facts, installer.Release) (installer.Answers, error)
}

func installCmd(a *app) *cobra.Command {
	var f installFlags
	c := &cobra.Command{
		Use:   "install MEDIA...",
		Short: "Turn this offline host into an appliance",
		Long: `Turn this offline host into an appliance.

MEDIA are the directories of one bundle; with several sticks name them all. The
signature is checked before anything else is read, and nothing is touched until
signature, sizes and preflight hold. Without --answers a wizard asks. An
installation that was interrupted continues when the same command is run again.`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error { return install(cmd, a, f, args) },
	}
	f.register(c)
	fl := c.Flags()
	fl.StringVar(&f.tokenFile, "token-file", "", `file with the token of the cluster to join, "-" for standard input (profile cluster, role agent)`)
	return c
}

// register adds the options that install and join share.
func (f *installFlags) register(c *cobra.Command) {
	fl := c.Flags()
	fl.StringArrayVar(&f.keys, "key", nil, "file with a public key, one of which must have signed the release (repeatable; see --threshold; not needed once installed)")
	fl.StringArrayVar(&f.identities, "identity", nil, "file with an age or ssh identity that the bundle is encrypted to (repeatable)")
	fl.IntVar(&f.threshold, "threshold", 0, "how many of the keys must have signed (default 1)")
	fl.StringVar(&f.answers, "answers", "", "file with the wizard's answers")
	fl.BoolVar(&f.dryRun, "dry-run", false, "print the plan and stop")
	fl.BoolVar(&f.deep, "deep", false, "read and verify all of the media before anything is touched")
}

func install(cmd *cobra.Command, a *app, f installFlags, dirs []string) error {
	manyProcs()
	trust, _, err := installer.Trust(a.root, f.threshold, f.keys...)
	if err != nil {
		return usageError{err}
	}
	ids, err := bundle.LoadIdentities(f.identities...)
	if err != nil {
		return usageError{err}
	}
	m, err := bundle.MediaOptions{Trust: trust, Dirs: dirs, Identities: ids}.Open()
	if err != nil {
		return err
	}
	p := progress(cmd)
	rel, env, err := installer.FromMedia(m, trust, p)
	if err != nil {
		return err
	}
	facts := host.Gather(a.root)
	if facts.MediaRead, err = installer.MediaRate(dirs...); err != nil {
		return err
	}
	if f.choose == nil {
		f.choose = func(h host.Facts, r installer.Release) (installer.Answers, error) { return answers(cmd, a, f, h, r) }
	}
	ans, err := f.choose(facts, rel)
	if err != nil {
		return err
	}
	plan, err := installer.NewPlan(facts, ans, rel)
	if err != nil {
		return err
	}
	if f.dryRun {
		return a.print(cmd.OutOrStdout(), plan, func(w io.Writer) { plan.Print(w) })
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("install needs root, got uid %d; --dry-run does not", os.Geteuid())
	}
	if env.Token, err = f.joinToken(cmd.InOrStdin()); err != nil {
		return err
	}
	env.Cluster = installer.Layout{Prefix: plan.Answers.Root}.Cluster(func(s string) { fmt.Fprintln(p, "      "+s) })
	env.Progress = func(e installer.Event) {
		if e.What != "start" {
			fmt.Fprintln(p, strings.TrimSuffix(fmt.Sprintf("%-5s %s: %s", e.What, e.Title, clip(e.Detail, 100)), ": "))
		}
	}
	if f.deep {
		env.Verify = func(ctx context.Context) error { return m.Verify(ctx, p) }
	}
	res, err := installer.Run(cmd.Context(), plan, env)
	p.Close() // bars would overwrite what comes now
	if err != nil {
		return err
	}
	return a.print(cmd.OutOrStdout(), res, func(w io.Writer) { printInstalled(w, res) })
}

// answers reads the file, takes what an earlier run was given, or asks the
// person at the terminal.
func answers(cmd *cobra.Command, a *app, f installFlags, facts host.Facts, rel installer.Release) (installer.Answers, error) {
	if f.answers == "" {
		if kept, ok, err := installer.Kept(a.root, rel); ok || err != nil {
			return kept, err
		}
		if !term.IsTerminal(int(os.Stdin.Fd())) {
			return installer.Answers{}, usageError{errors.New("standard input is no terminal, so the wizard can't ask; give --answers FILE")}
		}
		return wizard.Ask(cmd.Context(), facts, rel, cmd.InOrStdin(), unescaped(cmd.OutOrStdout()))
	}
	ans, err := installer.LoadAnswers(f.answers, rel)
	if err != nil {
		return ans, usageError{err}
	}
	if cmd.Flags().Changed("root") {
		ans.Root = a.root
	}
	return ans, nil
}

// clip shortens a list of what was done; the journal has all of it.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + " …"
}

func isTerminal(w io.Writer) bool {
	f, ok := unescaped(w).(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func printInstalled(w io.Writer, r installer.Result) {
	fmt.Fprintf(w, "%s: %s (sequence %d)\n", r.Mode, r.Release, r.Sequence)
	if r.Mode == "verified" && len(r.Changed) == 0 {
		fmt.Fprintln(w, "nothing to repair")
	}
	fmt.Fprintln(w, r.Next)
}
