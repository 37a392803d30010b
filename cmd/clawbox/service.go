package main

import (
	"os"

	"github.com/clawbox/clawbox/appliance"
	"github.com/clawbox/clawbox/appliance/service"
	"github.com/spf13/cobra"
)

// serviceCmd is how 'clawbox serve' starts its services; nobody else can.
func serviceCmd() *cobra.Command {
	return &cobra.Command{
		Use:    "service ROLE",
		Short:  "Run one service of the appliance (started by 'clawbox serve')",
		Hidden: true,
		Args:   usageArgs(cobra.ExactArgs(1)),
		Run: func(_ *cobra.Command, args []string) {
			service.Main(args[0], appliance.Services, os.Args[1:])
		},
	}
}
