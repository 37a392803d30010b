package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/clawbox/clawbox/installer"
	"github.com/clawbox/clawbox/installer/doctor"
	"github.com/clawbox/clawbox/installer/support"
	"github.com/clawbox/clawbox/internal/durable"
	"github.com/spf13/cobra"
)

func supportCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "support-bundle FILE.tar.gz",
		Short: "Pack what somebody else needs to help, and no secret",
		Long: `Pack what somebody else needs to help, and no secret: versions, facts about the
machine, doctor's findings, the configuration without secret values, journals,
the end of the service's log and the ledger's signed head. Agents' output and
files, keys and the ledger's entries are not in it. LIST.txt in the archive says
what is, and what was left out. Look through it before you hand it on.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			facts := doctor.Look(cmd.Context(), a.root)
			var said strings.Builder
			printChecks(&said, doctor.Judge(facts))
			o := support.Options{Version: version, Findings: said.String(), Facts: facts}
			if (installer.Layout{Prefix: a.root}).Start() == "systemd" {
				o.Log = unitLog
			}
			var list []support.Entry
			if err := whole(args[0], func(w io.Writer) (err error) {
				list, err = support.Write(cmd.Context(), w, a.root, o)
				return err
			}); err != nil {
				return err
			}
			return a.print(cmd.OutOrStdout(), list, func(w io.Writer) {
				for _, e := range list {
					if e.Left != "" {
						fmt.Fprintf(w, "left out %s: %s\n", e.Name, e.Left)
					}
				}
				fmt.Fprintf(w, "%s: %d files; look through it before you hand it on\n", args[0], len(list))
			})
		},
	}
}

// whole writes a private file that is there entirely or not at all.
func whole(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp-*")
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = durable.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // the cause is what counts
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// unitLog is the end of what systemd keeps.
func unitLog(ctx context.Context) ([]byte, error) {
	return exec.CommandContext(ctx, "journalctl", "-u", "clawbox", "-n", "5000", "--no-pager", "-o", "short-iso").Output()
}
