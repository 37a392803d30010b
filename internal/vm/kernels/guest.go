package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/clawbox/clawbox/internal/vm"
)

// guest runs the suites in one machine.
type guest struct {
	opts   options
	boot   boot
	conf   vm.Config
	report *report
	m      *vm.Machine
}

func (g *guest) run(ctx context.Context, d built) (err error) {
	t0 := time.Now()
	if g.m, err = vm.Start(ctx, g.conf); err != nil {
		return err
	}
	defer g.m.Close()
	h := &host{kernel: g.conf.Kernel.Release, boot: g.boot, booted: time.Since(t0)}
	g.report.hosts = append(g.report.hosts, h)
	fmt.Fprintf(os.Stderr, "test-kernels: %s, %s: ready after %.1f s\n", h.kernel, g.boot.name, h.booted.Seconds())
	out, err := g.m.Output(ctx, "/kernel-probe")
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), &h.facts); err != nil {
		return fmt.Errorf("kernel-probe said %q: %w", out, err)
	}
	for _, s := range suites {
		if g.opts.wanted(g.boot, s) {
			if err := g.suite(ctx, h, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// limit is how long one package's tests may take in a guest: natively none
// needs a minute, under TCG the slowest was seen to need eight on a busy host.
// A test that hangs is shown by its goroutines then.
const limit = 15 * time.Minute

func (g *guest) suite(ctx context.Context, h *host, s suite) error {
	res := &result{pkg: s.pkg, excluded: s.not}
	h.results = append(h.results, res)
	args := []string{"./it.test", "-test.v=test2json", "-test.short", "-test.timeout=" + (limit - 30*time.Second).String()}
	if run := g.opts.tests(g.boot, s); run != "" {
		args = append(args, "-test.run="+run)
	}
	if len(s.not) > 0 {
		names := []string{}
		for n := range s.not {
			names = append(names, n)
		}
		slices.Sort(names)
		args = append(args, "-test.skip=^("+strings.Join(names, "|")+")$")
	}
	t0 := time.Now()
	in, done, err := res.decoder(ctx, g.opts.verbose)
	if err != nil {
		return err
	}
	code, err := g.m.Run(ctx, vm.Command{
		Args: args, Dir: "/src/" + s.pkg, Stdout: in, Stderr: in, Limit: limit,
		Env: []string{"CLAWBOX_TEST_PROGRAMS=/programs", "TMPDIR=/var/tmp"},
	})
	in.Close()
	if derr := <-done; err == nil {
		err = derr
	}
	res.took, res.code, res.err = time.Since(t0), code, err
	fmt.Fprintf(os.Stderr, "test-kernels: %s, %s: %s: %s in %.0f s; slowest: %s\n", h.kernel, g.boot.name, s.pkg, res.verdict(), res.took.Seconds(), res.slowest(3))
	return err
}

// event is one line of test2json.
type event struct {
	Action, Test, Output string
	Elapsed              float64 // seconds
}

// decoder gives a pipe for the test's output; what test2json makes of it fills
// the result until the pipe is closed.
func (r *result) decoder(ctx context.Context, verbose bool) (io.WriteCloser, <-chan error, error) {
	c := exec.CommandContext(ctx, "go", "tool", "test2json", "-t") // with times
	in, err := c.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	var errs bytes.Buffer
	c.Stderr = &errs
	if err := c.Start(); err != nil {
		return nil, nil, err
	}
	done := make(chan error, 1)
	go func() {
		s := bufio.NewScanner(out)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			var e event
			if json.Unmarshal(s.Bytes(), &e) == nil {
				r.add(e, verbose)
			}
		}
		if err := c.Wait(); err != nil {
			done <- fmt.Errorf("go tool test2json: %w: %s", err, errs.Bytes())
		}
		close(done)
	}()
	return in, done, nil
}
