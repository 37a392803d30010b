// Command clawbox-bench measures clawbox beside its peers, in turns, so that a
// noisy machine disturbs all of them alike.
//
//	clawbox-bench guard [-rounds 10] [-o docs]
//	clawbox-bench bundle [-sizes 1,4,16] [-peer-up-to 4] [-images=false] [-o docs]
//
// guard is the same work on the host itself, in bubblewrap, in runc and in a
// clawbox sandbox with full audit; bundle is the same files through clawbox and
// zarf.
//
// guard wants root, Go, bubblewrap, runc and git; what is missing is left out
// and the table says so. Both print a table and write it, with a plot, to
// bench-guard.md and .svg or bench-bundle.md and .svg. Every number in them is measured in the
// run that wrote them. Targets are printed beside what was measured; the exit
// status does not depend on them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "clawbox-bench:", err)
		stop()
		os.Exit(1)
	}
}

// options are what the command line says.
type options struct {
	rounds int
	dir    string // where the results go
	only   string // one measurement, for work on it
}

func run(ctx context.Context, args []string) error {
	if len(args) > 1 && args[0] == spendVerb {
		return spendHere(args[1:])
	}
	if len(args) > 0 && args[0] == "bundle" {
		o, err := parseMedia(args[1:])
		if err != nil {
			return err
		}
		return mediaBench(ctx, o)
	}
	if len(args) == 0 || args[0] != "guard" {
		return fmt.Errorf("got %q, want: clawbox-bench guard [-rounds N] [-o DIR], or clawbox-bench bundle [-sizes GB,GB] [-o DIR]", args)
	}
	var o options
	f := flag.NewFlagSet("guard", flag.ContinueOnError)
	f.IntVar(&o.rounds, "rounds", 10, "how often each place has its turn")
	f.StringVar(&o.dir, "o", "docs", "folder for bench-guard.md and bench-guard.svg")
	f.StringVar(&o.only, "only", "", "run one measurement and write no files: "+names())
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	switch {
	case f.NArg() > 0 || o.rounds < 1:
		return fmt.Errorf("got rounds %d and %q; want one round or more and nothing else", o.rounds, f.Args())
	case os.Geteuid() != 0:
		return errors.New("sandboxes, BPF and network namespaces want root; run it with sudo")
	}
	return guardBench(ctx, o)
}

// guardBench measures, prints, and writes what it has printed.
func guardBench(ctx context.Context, o options) (err error) {
	l, err := newLab(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	rep := report{machine: thisMachine(), lab: l.facts(), rounds: o.rounds}
	for _, m := range measurements {
		if o.only != "" && o.only != m.key {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s …\n", m.key)
		rows, err := m.take(ctx, l, o.rounds)
		if err != nil {
			return fmt.Errorf("%s: %w", m.key, err)
		}
		rep.rows = append(rep.rows, rows...)
	}
	rep.audit = l.audit.sum()
	fmt.Print(rep.text())
	if o.only != "" {
		return nil
	}
	return rep.write(o.dir)
}
