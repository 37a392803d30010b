package main

import (
	"fmt"
	"os"

	"github.com/clawbox/clawbox/appliance"
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
