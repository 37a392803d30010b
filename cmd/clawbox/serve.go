package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"syscall"

	"github.com/clawbox/clawbox/appliance"
	"github.com/clawbox/clawbox/installer"
	"github.com/spf13/cobra"
)

func serveCmd(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the appliance in the foreground",
		Long: `Run the appliance in the foreground. It needs root for namespaces, cgroups and
mounts; the ledger, the guard, egress, the router and the registry run as
processes of their own users, confined each for itself: 'clawbox status' lists
them. Agents end when it ends. Where systemd runs, the installed unit
clawbox.service does this.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return fmt.Errorf("serve needs root for namespaces, cgroups and BPF; got uid %d", os.Geteuid())
			}
			if file == "" {
				file = configFile(a.root)
			}
			if err := boot(cmd.Context(), file); err != nil {
				return err
			}
			c, err := loadConfig(file)
			if err != nil {
				return err
			}
			ap, err := appliance.New(c, version)
			if err != nil {
				return err
			}
			return ap.Run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "the appliance's configuration (default: etc/clawbox/appliance.yaml below --root)")
	return cmd
}

// boot lets an upgrade that is under way, or was cut off, decide what runs. It
// returns when that is this program. A configuration in another place than an
// installation's belongs to none.
func boot(ctx context.Context, file string) error {
	root, ok := installer.RootOf(file)
	if !ok {
		return nil
	}
	s, err := installer.Boot(ctx, root)
	if err != nil {
		return err
	}
	if s.Said != "" {
		slog.Warn("boot", "said", s.Said)
	}
	return s.Enter(func(program string, args []string) error {
		err := syscall.Exec(program, args, os.Environ())
		return fmt.Errorf("%s: %w", program, err)
	})
}
