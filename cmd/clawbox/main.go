// Command clawbox packs a governed agent appliance into one signed offline
// bundle, installs it, runs it, and proves what happened on it.
//
// Every verb has a file of its own here. `clawbox help` lists them;
// `clawbox help exit-status` lists the exit statuses.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is stamped by the Makefile.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRoot().ExecuteContext(ctx)
	stop()
	os.Exit(report(ctx, os.Stderr, err))
}
