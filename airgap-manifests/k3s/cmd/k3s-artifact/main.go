// K3s-artifact builds K3s and its parts from Go modules; see package artifact.
//
//	go run ./airgap-manifests/k3s/cmd/k3s-artifact -o dist/k3s 1.35 1.34
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/clawbox/clawbox/airgap-manifests/k3s/artifact"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	o := artifact.Options{Log: os.Stderr}
	flag.StringVar(&o.Modules, "modules", "airgap-manifests/k3s", "folder of the nested modules")
	flag.StringVar(&o.Out, "o", "dist/k3s", "folder to build into")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: k3s-artifact [-modules DIR] [-o DIR] [VERSION...]   (%s; default: all)\n", strings.Join(artifact.Versions(), ", "))
		flag.PrintDefaults()
	}
	flag.Parse()
	versions := flag.Args()
	if len(versions) == 0 {
		versions = artifact.Versions()
	}
	for _, v := range versions {
		o.Version = v
		r, err := artifact.Build(ctx, o)
		if err != nil {
			return err
		}
		fmt.Printf("%s (%d parts built)\n", r.Dir, len(r.Built))
	}
	return nil
}
