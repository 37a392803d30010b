// Command e2e takes an appliance through its life on fresh offline machines, one
// for each of Debian's kernels 6.1 and 6.12:
//
//	go run ./internal/vm/e2e -cache dist/vm
//
// It is `make e2e`. A machine is a QEMU guest with Debian and systemd and one
// network card on a wire that leads nowhere. What comes to it comes on USB sticks
// that are plugged in while it runs. An operator sits at its console: the wizard
// is answered by keys. Then the agent attacks, a stick upgrades, a broken stick is
// returned from, the operator goes back by hand, the power is cut at five points
// of an upgrade, and the appliance is removed. No frame may leave the machine.
//
// The status is 1 when something is not as it should be, and 2 when the host
// lacks a tool. Run it in the repository's root, as root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/clawbox/clawbox/internal/vm"
)

// options are what the command line says.
type options struct {
	cache, kernel string
	system        string
	cuts          int
	verbose       bool
}

func main() {
	var o options
	flag.StringVar(&o.cache, "cache", "dist/vm", "folder for downloads and built images")
	flag.StringVar(&o.kernel, "kernel", "", "only this series of kernels, such as 6.12")
	flag.StringVar(&o.system, "system", "", "a tar archive with the root of another system, such as Ubuntu's; its own kernel runs if it has one")
	flag.IntVar(&o.cuts, "cuts", len(cutPoints), "at how many points of an upgrade the power is cut")
	flag.BoolVar(&o.verbose, "v", false, "show what the console showed and the commands printed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if m := vm.Missing(needed); m != nil {
		fmt.Fprintf(os.Stderr, "e2e: the packages %s are missing: apt-get install them, or run `make e2e` as root, which does\n", strings.Join(m, ", "))
		os.Exit(2)
	}
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		stop()
		os.Exit(1)
	}
}

// needed are the host's tools beside the package vm's own, with the Debian package
// of each.
var needed = map[string]string{"busybox": "busybox-static", "mmdebstrap": "mmdebstrap", "mcopy": "mtools", "mkfs.vfat": "dosfstools"}

// run makes the sticks, and a machine for each kernel.
func run(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("/var/tmp", "clawbox-e2e-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c := vm.Cache(o.cache)
	start := time.Now()
	conf := vm.Config{Init: filepath.Join(dir, "guest"), Modules: []string{"overlay", "loop"}, Keep: true, Systemd: true, Memory: 3072, Boot: 10 * time.Minute}
	if conf.Emulator, err = c.Emulator(ctx); err != nil {
		return err
	}
	kernels, system, err := o.systems(ctx, c)
	if err != nil {
		return err
	}
	sticks, err := makeSticks(ctx, dir, conf.Init)
	if err != nil {
		return err
	}
	fmt.Printf("e2e: sticks and system made in %.0f s\n", time.Since(start).Seconds())
	for _, k := range kernels {
		conf.Kernel = k
		conf.Disk, conf.Wire = filepath.Join(dir, "disk"), filepath.Join(dir, "wire.pcap")
		if err := vm.Host(ctx, conf.Disk, system, conf.Init, 3072); err != nil {
			return err
		}
		l := &life{o: o, conf: conf, sticks: sticks, name: k.Series.Name}
		if err := errors.Join(l.live(ctx), l.end()); err != nil {
			return fmt.Errorf("kernel %s: %w", conf.Kernel.Release, err)
		}
	}
	return nil
}

// systems gives the folder of the machines' system, and the kernels that run it.
func (o options) systems(ctx context.Context, c vm.Cache) (ks []vm.Kernel, dir string, err error) {
	if o.system == "" {
		dir, err = c.Debian(ctx)
	} else {
		var own *vm.Kernel
		if dir, own, err = c.System(ctx, o.system); own != nil {
			return []vm.Kernel{*own}, dir, err
		}
	}
	if err != nil {
		return nil, "", err
	}
	for _, s := range vm.Kernels {
		if o.kernel != "" && o.kernel != s.Name {
			continue
		}
		k, err := c.Kernel(ctx, s)
		if err != nil {
			return nil, "", err
		}
		ks = append(ks, k)
	}
	if len(ks) == 0 {
		return nil, "", fmt.Errorf("-kernel %q chooses nothing, want 6.1 or 6.12", o.kernel)
	}
	return ks, dir, nil
}
