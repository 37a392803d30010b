// Command clawbox-attack attacks a sandbox in every way that it knows, and
// wants each attack to fail for the right reason and to leave its record:
//
//	go run ./cmd/clawbox-attack -dist dist           # make attack
//	go run ./cmd/clawbox-attack -dist dist -only 'ptrace|memfd' -v
//
// It bundles and installs a small release below a folder of its own, starts the
// appliance, launches an agent under a policy, and runs each attack in its
// sandbox: a subcommand of the program in the folder inside, which prints what
// it achieved. An attack passes the suite when it achieved nothing, was refused
// in the expected way, and its record is in the ledger.
//
// The suite can fail: the same attack with the same arguments also runs in a
// container that confines nothing (the control), where it must succeed.
// Attacks for which that is impossible say why.
//
// Nothing touches the network: everything happens in a network namespace of
// its own, joined by a cable to another one where a vendor's server answers,
// and writes down every byte it gets. What an attack must not get out carries a
// mark, and the vendor must never see it.
//
// The status is 0 when every attack failed as it should, 1 when one did not, 2
// for a wrong command line. It needs root.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"syscall"
)

// stageEnv tells a copy of this program which part it plays.
const stageEnv = "CLAWBOX_ATTACK_STAGE"

type options struct {
	dist, dir, only, jsonFile string
	verbose, noControl, keep  bool
}

func main() {
	var o options
	flag.StringVar(&o.dist, "dist", "dist", "folder with the built programs")
	flag.StringVar(&o.dir, "dir", "/var/tmp/clawbox-attack", "folder to work in; replaced, and removed at the end")
	flag.StringVar(&o.only, "only", "", "only the attacks whose theme/name matches this regular expression")
	flag.StringVar(&o.jsonFile, "json", "", "write the results to this file as JSON")
	flag.BoolVar(&o.verbose, "v", false, "show what each attack said and which record it left")
	flag.BoolVar(&o.noControl, "no-control", false, "leave the control runs out; the suite then proves less, and says so")
	flag.BoolVar(&o.keep, "keep", false, "keep the folder")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(stage(ctx, o))
}

// stage plays the part that the environment names: the first process makes the
// namespaces for the second, which is the suite; the vendor is a third.
func stage(ctx context.Context, o options) int {
	var err error
	switch os.Getenv(stageEnv) {
	case "":
		return outer()
	case "vendor":
		err = serveVendor(ctx, flag.Arg(0))
	default:
		var code int
		if code, err = attackAll(ctx, o); err == nil {
			return code
		}
	}
	fmt.Fprintln(os.Stderr, "clawbox-attack:", err)
	return 1
}

// outer runs this program again in a new network and mount namespace.
func outer() int {
	if os.Geteuid() != 0 {
		fmt.Fprintf(os.Stderr, "clawbox-attack: got uid %d, want root: sandboxes need namespaces, cgroups and BPF; run 'make attack'\n", os.Geteuid())
		return 2
	}
	c := again("suite", os.Args[1:]...)
	c.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET | syscall.CLONE_NEWNS
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := c.Run()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		fmt.Fprintln(os.Stderr, "clawbox-attack:", err)
		return 1
	}
	return c.ProcessState.ExitCode()
}

// again is this program as another stage, which dies with this one.
func again(stage string, args ...string) *exec.Cmd {
	c := exec.Command("/proc/self/exe", args...)
	c.Env = append(os.Environ(), stageEnv+"="+stage)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return c
}

// tryAll runs the themes beside each other, then what must run alone, and gives
// the results in the list's order.
func (h *host) tryAll(list []attack) ([]result, error) {
	rs := make([]result, len(list))
	var screen sync.Mutex
	try := func(i int) {
		if h.ctx.Err() != nil {
			return
		}
		rs[i] = h.try(list[i])
		screen.Lock()
		defer screen.Unlock()
		rs[i].line(os.Stdout, h.opts.verbose)
	}
	themes, alone := map[string][]int{}, []int{}
	for i, a := range list {
		if a.alone {
			alone = append(alone, i)
			continue
		}
		themes[a.theme] = append(themes[a.theme], i)
	}
	var wg sync.WaitGroup
	for _, is := range themes {
		wg.Go(func() {
			for _, i := range is {
				try(i)
			}
		})
	}
	wg.Wait()
	for _, i := range alone {
		try(i)
	}
	return rs, h.ctx.Err()
}

// attackAll runs the suite.
func attackAll(ctx context.Context, o options) (code int, err error) {
	only, err := regexp.Compile(o.only)
	if err != nil {
		return 2, fmt.Errorf("-only: %w", err)
	}
	list := slices.DeleteFunc(all(), func(a attack) bool { return !only.MatchString(a.theme + "/" + a.name) })
	if len(list) == 0 {
		return 2, fmt.Errorf("-only %q matches no attack", o.only)
	}
	h, err := newHost(ctx, o)
	if h != nil {
		defer func() { err = errors.Join(err, h.close()) }()
	}
	if err != nil {
		return 1, err
	}
	rs, err := h.tryAll(list)
	if err != nil {
		return 1, err
	}
	if err := h.prove(); err != nil {
		return 1, err
	}
	bad := summary(os.Stdout, rs, o)
	if o.jsonFile != "" {
		b, err := json.MarshalIndent(map[string]any{"host": h.facts(), "attacks": rs}, "", "  ")
		if err != nil {
			return 1, err
		}
		if err := os.WriteFile(filepath.Clean(o.jsonFile), append(b, '\n'), 0o644); err != nil {
			return 1, err
		}
	}
	if bad > 0 {
		return 1, nil
	}
	return 0, nil
}
