package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/internal/legible"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// app holds what every verb shares.
type app struct {
	output string // "text" or "json"
	root   string // prefix that the appliance is installed under
}

func newRoot() *cobra.Command {
	a := &app{}
	root := &cobra.Command{
		Use:               "clawbox",
		Short:             "Governed agents on a host without a line to the outside",
		Version:           version,
		SilenceUsage:      true,
		SilenceErrors:     true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.begin(cmd) },
	}
	f := root.PersistentFlags()
	f.StringVarP(&a.output, "output", "o", "text", "how to print results: text or json")
	f.StringVar(&a.root, "root", "/", "prefix that the appliance is (to be) installed under")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddGroup(&cobra.Group{ID: "stick", Title: "Making and reading a bundle:"},
		&cobra.Group{ID: "host", Title: "The appliance:"}, &cobra.Group{ID: "agent", Title: "Agents and what they may do:"})
	grouped(root, "stick", keyCmd(a), recipeCmd(), bundleCmd(a), verifyCmd(a), inspectCmd(a), loadCmd(a), modelCmd(a), sbomCmd(a), debCmd(a))
	grouped(root, "host", installCmd(a), joinCmd(a), tokenCmd(a), clusterCmd(a), upgradeCmd(a), rollbackCmd(a), uninstallCmd(a), serveCmd(a), statusCmd(a), auditCmd(a), registryCmd(a), backupCmd(a), restoreCmd(a), doctorCmd(a), supportCmd(a))
	grouped(root, "agent", agentCmd(a), approveCmd(a), policyCmd(a))
	root.AddCommand(serviceCmd())
	root.AddCommand(manCmd(root), &cobra.Command{Use: "exit-status", Short: "Exit statuses of clawbox", Long: exitHelp})
	grouped(root, "stick", diffCmd(a))
	return root
}

func grouped(root *cobra.Command, id string, cs ...*cobra.Command) {
	for _, c := range cs {
		c.GroupID = id
		root.AddCommand(c)
	}
}

// group makes a mistyped verb an error: a script that says "audit verfy" must
// not go on as if the ledger held.
func group(c *cobra.Command) *cobra.Command {
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		var verbs []string
		for _, s := range cmd.Commands() {
			verbs = append(verbs, s.Name())
		}
		return usageError{fmt.Errorf("%s: got %q, want one of %s", cmd.CommandPath(), args[0], strings.Join(verbs, ", "))}
	}
	return c
}

// begin comes before every verb.
func (a *app) begin(cmd *cobra.Command) error {
	legibly(cmd)
	if a.output != "text" && a.output != "json" {
		return usageError{fmt.Errorf("--output: got %q, want text or json", a.output)}
	}
	abs, err := filepath.Abs(a.root)
	a.root = abs
	return err
}

// print writes v as JSON when -o json was given, and calls text otherwise.
func (a *app) print(w io.Writer, v any, text func(io.Writer)) error {
	if a.output == "text" {
		text(w)
		return nil
	}
	e := json.NewEncoder(legible.JSON{W: unescaped(w)})
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// config reads the installed appliance's configuration.
func (a *app) config() (config.Config, error) { return loadConfig(configFile(a.root)) }

func loadConfig(file string) (config.Config, error) {
	c, err := config.Load(file)
	if errors.Is(err, fs.ErrNotExist) {
		return c, fmt.Errorf("no appliance is installed there (%w); run 'clawbox install', or name the prefix with --root", err)
	}
	return c, err
}

// client talks to the installed appliance.
func (a *app) client() (*control.Client, error) {
	c, err := a.config()
	if err != nil {
		return nil, err
	}
	return control.Dial(filepath.Join(c.Paths.Run, "control.sock")), nil
}

// onAppliance makes a verb of a function that talks to the installed appliance.
func (a *app) onAppliance(f func(*cobra.Command, *control.Client, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		return f(cmd, cl, args)
	}
}

func manCmd(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "man DIR",
		Short: "Write the man pages into a directory",
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root.DisableAutoGenTag = true
			return doc.GenManTree(root, &doc.GenManHeader{Title: "CLAWBOX", Section: "1", Source: "clawbox " + version}, args[0])
		},
	}
}

// usageArgs makes a complaint about positional arguments a usage error.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return usageError{fmt.Errorf("%w; usage: %s", err, c.UseLine())}
		}
		return nil
	}
}

// configFile is where the installer puts the appliance's configuration.
func configFile(root string) string { return filepath.Join(root, "etc", "clawbox", "appliance.yaml") }
