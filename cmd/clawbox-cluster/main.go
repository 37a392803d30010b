// Command clawbox-cluster speaks to a cluster's API for the installer: it waits
// for a node, and installs charts with Helm as a library.
//
//	clawbox-cluster ready KUBECONFIG NODE
//	clawbox-cluster apply KUBECONFIG < charts.json    # what it changed, on standard output
//	clawbox-cluster settled KUBECONFIG < settled.json # waits, until it is ended
//	clawbox-cluster version KUBECONFIG # of the API server
//	clawbox-cluster account KUBECONFIG NAMESPACE SECRET    # a service account's token and certificates, likewise
//
// It is a program of its own because Helm brings all of Kubernetes' client
// libraries. In clawbox they cost each of the appliance's services 32 MB of
// memory and 37 ms of processor time at every start (measured: 54.5 instead of
// 22.4 MB, 51.7 instead of 14.7 ms), and none of them speaks to the API. Only the
// profile cluster carries it; `clawbox cluster apply` and the installer run it
// from the active slot.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/clawbox/clawbox/installer"
	"github.com/clawbox/clawbox/installer/charts"
)

const usage = "usage: clawbox-cluster ready KUBECONFIG NODE | clawbox-cluster apply KUBECONFIG < charts.json | clawbox-cluster settled KUBECONFIG < settled.json | clawbox-cluster version KUBECONFIG | clawbox-cluster account KUBECONFIG NAMESPACE SECRET"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil {
		// One line: the installer shows the last one as the reason.
		fmt.Fprintln(os.Stderr, strings.Join(strings.Fields(err.Error()), " "))
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) error {
	c := charts.Client{Say: func(s string) { fmt.Fprintln(errs, s) }}
	switch {
	case len(args) == 3 && args[0] == "ready":
		return c.Ready(ctx, args[1], args[2])
	case len(args) == 4 && args[0] == "account":
		a, err := c.Account(ctx, args[1], args[2], args[3])
		if err != nil {
			return err
		}
		return json.NewEncoder(out).Encode(a)
	case len(args) == 2 && args[0] == "version":
		v, err := c.Version(ctx, args[1])
		fmt.Fprint(out, v)
		return err
	case len(args) == 2 && args[0] == "settled":
		var w installer.Settled
		if err := decode(in, &w); err != nil {
			return err
		}
		return c.Settled(ctx, args[1], w)
	case len(args) == 2 && args[0] == "apply":
		var cs []installer.Chart
		if err := decode(in, &cs); err != nil {
			return err
		}
		did, err := c.Apply(ctx, args[1], cs)
		fmt.Fprint(out, did)
		return err
	}
	return fmt.Errorf("got %q; %s", args, usage)
}

func decode(in io.Reader, v any) error {
	d := json.NewDecoder(in)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("standard input: %w; %s", err, usage)
	}
	return nil
}
