// Openclaw-image builds the container image of OpenClaw into an OCI layout and
// prints its digest.
//
//	go run ./airgap-manifests/openclaw/cmd/openclaw-image -work dist/work -o dist/openclaw
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	ocimage "github.com/clawbox/clawbox/airgap-manifests/openclaw"
)

func main() {
	o := ocimage.Options{Log: os.Stderr}
	flag.StringVar(&o.WorkDir, "work", "dist/work", "folder for the cache")
	flag.StringVar(&o.OutLayout, "o", "dist/openclaw", "OCI layout to write")
	flag.StringVar(&o.Mirror, "mirror", "", "Debian mirror (default: mmdebstrap's)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	digest, err := ocimage.Build(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(digest)
}
