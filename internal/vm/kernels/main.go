// Command kernels runs the tests of the packages that depend on the kernel in
// virtual machines with Debian's kernels, and prints what each kernel gives and
// which tests passed there:
//
//	go run ./internal/vm/kernels -cache dist/vm
//
// It is `make test-kernels`. The status is 1 when a test fails, when a guest
// does not boot, or when the guard reaches another tier than the plan says; 2
// when the host lacks a tool. Run it in the repository's root.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/clawbox/clawbox/internal/vm"
)

func main() {
	var o options
	flag.StringVar(&o.cache, "cache", "dist/vm", "folder for downloads and built images")
	flag.StringVar(&o.run, "run", "", "only the tests that match, as in go test -run")
	flag.StringVar(&o.pkg, "pkg", "", "only the packages whose path contains this")
	flag.StringVar(&o.kernel, "kernel", "", "only this series of kernels, such as 6.12")
	flag.StringVar(&o.boot, "boot", "", "only the boots whose name contains this")
	flag.BoolVar(&o.quick, "quick", false, "a selection that tells in minutes whether the kernels take the programs")
	flag.BoolVar(&o.verbose, "v", false, "show the tests' output")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, o))
}

type options struct {
	cache, run, pkg, kernel, boot string
	verbose, quick                bool
}

// needed are the host's tools beside the package vm's own, with the Debian package
// of each.
var needed = map[string]string{"busybox": "busybox-static"}

func run(ctx context.Context, o options) int {
	if m := vm.Missing(needed); m != nil {
		fmt.Fprintf(os.Stderr, "test-kernels: the packages %s are missing: apt-get install them, or run `make test-kernels` as root, which does\n", strings.Join(m, ", "))
		return 2
	}
	r, err := runAll(ctx, o)
	r.print(os.Stdout)
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "test-kernels:", err)
		return 1
	case r.failed():
		return 1
	}
	return 0
}

// runAll boots every machine of the plan, one after the other.
func runAll(ctx context.Context, o options) (*report, error) {
	r := &report{planned: o.planned()}
	if r.planned == 0 {
		return r, fmt.Errorf("-kernel %q, -boot %q and -pkg %q choose nothing", o.kernel, o.boot, o.pkg)
	}
	c := vm.Cache(o.cache)
	emu, err := c.Emulator(ctx)
	if err != nil {
		return r, err
	}
	// A folder of its own: several runs share the cache.
	dir, err := os.MkdirTemp(o.cache, "_run-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	d, err := build(ctx, o, dir)
	if err != nil {
		return r, err
	}
	for _, s := range vm.Kernels {
		if !o.series(s.Name) {
			continue
		}
		k, err := c.Kernel(ctx, s)
		if err != nil {
			return r, err
		}
		for _, b := range boots {
			if !strings.Contains(b.name, o.boot) {
				continue
			}
			g := &guest{opts: o, boot: b, report: r, conf: vm.Config{
				Emulator: emu, Kernel: k, Init: d.init, Modules: modules, Disk: d.disk, Cmdline: b.cmdline,
			}}
			if err := g.run(ctx, d); err != nil {
				return r, err
			}
		}
	}
	return r, nil
}

// series says whether a series of kernels was chosen.
func (o options) series(name string) bool { return o.kernel == "" || o.kernel == name }

// planned counts what the options choose: packages, in each machine.
func (o options) planned() (n int) {
	for _, k := range vm.Kernels {
		for _, b := range boots {
			for _, s := range suites {
				if o.series(k.Name) && strings.Contains(b.name, o.boot) && o.wanted(b, s) {
					n++
				}
			}
		}
	}
	return n
}

// wanted says whether a package's tests shall run under a boot.
func (o options) wanted(b boot, s suite) bool {
	_, chosen := b.only[s.pkg]
	return strings.Contains(s.pkg, o.pkg) && (b.only == nil || chosen) && (!o.quick || s.quick != "")
}
