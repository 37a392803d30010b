// Command clawbox-demo takes the whole journey, with real parts, and prints a
// transcript: bundle → verify → install offline → a real agent works under
// policy against a local model → it attacks and is stopped → an operator
// approves one host → the record is proved.
//
// It drives the built programs of -dist the way a person would, and ends with
// status 1 at the first thing that is not as it should be. It needs root. What
// it builds stays in -dist for the next run; what it installs goes below -host
// and is replaced each time.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	dist := flag.String("dist", "dist", "folder with the built programs; also the cache")
	host := flag.String("host", "/var/tmp/clawbox-demo", "prefix to install below; replaced")
	flag.Parse()
	// Namespaces are entered by this thread, and commands inherit them from it.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, *dist, *host)
	stop()
	os.Exit(code)
}

// demo is one run.
type demo struct {
	*transcript
	ctx  context.Context
	dist string // absolute
	host string // absolute: the offline host's root
	bin  string // the clawbox program

	attacked int64 // the ledger's size before the attacks
	daemon   *exec.Cmd
	vendor   *vendor
}

func run(ctx context.Context, dist, host string) (code int) {
	d, err := newDemo(ctx, dist, host)
	if err != nil {
		fmt.Fprintln(os.Stderr, "clawbox-demo:", err)
		return 1
	}
	defer func() {
		d.close()
		switch r := recover(); r.(type) {
		case nil:
		case failed:
			code = 1
		default:
			panic(r)
		}
	}()
	d.journey()
	d.summary()
	return 0
}

func newDemo(ctx context.Context, dist, host string) (*demo, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("got uid %d, want root: sandboxes need namespaces, cgroups and BPF; run 'make demo'", os.Geteuid())
	}
	dist, err := filepath.Abs(dist)
	if err != nil {
		return nil, err
	}
	d := &demo{
		transcript: &transcript{w: os.Stdout, start: time.Now()}, ctx: ctx, dist: dist, host: host,
		bin: filepath.Join(dist, "clawbox"),
	}
	if !exists(d.bin) {
		return nil, fmt.Errorf("%s is not there; run 'make build' first", d.bin)
	}
	// Only a folder that an earlier run made is ever deleted.
	mark := filepath.Join(host, ".clawbox-demo")
	if exists(host) && !exists(mark) {
		return nil, fmt.Errorf("%s exists and is not an earlier demo's; choose another -host", host)
	}
	if err := errors.Join(unmountBelow(host), removeDemo(host, mark)); err != nil {
		return nil, err
	}
	// Mkdir, not MkdirAll: in a folder that everybody may write to, somebody
	// else could have been first.
	if err := os.Mkdir(host, 0o755); err != nil {
		return nil, err
	}
	return d, os.WriteFile(mark, nil, 0o644)
}

// removeDemo removes an earlier run's folder. The mark goes last, so that what
// could not be removed is still known as a demo's next time.
func removeDemo(host, mark string) error {
	all, err := os.ReadDir(host)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range all {
		if f := filepath.Join(host, e.Name()); f != mark {
			err = errors.Join(err, os.RemoveAll(f))
		}
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(host)
}

// unmountBelow takes away the agents' disks that a killed run left mounted.
func unmountBelow(host string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], host+"/") {
			errs = append(errs, unix.Unmount(f[4], unix.MNT_DETACH))
		}
	}
	return errors.Join(errs...)
}

// journey is the demo, phase by phase.
func (d *demo) journey() {
	d.phase("Build the model engine, the tiny model and the OpenClaw image", d.build)
	d.phase("Bundle everything onto one stick, signed", d.bundle)
	d.phase("Verify and inspect the stick", d.verify)
	d.phase("One flipped byte is refused, and nothing is installed", d.tamper)
	d.phase("Go offline: a network namespace without any route", d.offline)
	d.phase("Install from the stick", d.install)
	d.phase("Start the appliance", d.serve)
	d.phase("OpenClaw does a tool-using turn through the router", d.turn)
	d.phase("What the sandbox sees of the host", d.look)
	d.phase("The agent attacks; each attempt is stopped and recorded", d.attacks)
	d.phase("An unlisted host is held; the operator approves it", d.approve)
	d.phase("A fork bomb meets its budget", d.forkBomb)
	d.phase("Prove the record", d.prove)
	d.phase("Stop the appliance", d.stop)
}

// clawbox runs the program against the demo's host and wants it to succeed.
func (d *demo) clawbox(args ...string) (string, error) {
	return d.must(d.bin, append([]string{"--root", d.host}, args...)...)
}

// quiet runs the program without showing it.
func (d *demo) quiet(args ...string) (result, error) {
	return capture(d.bin, append([]string{"--root", d.host}, args...)...)
}

// close stops whatever still runs; errors no longer matter.
func (d *demo) close() {
	if d.daemon != nil {
		d.daemon.Process.Signal(syscall.SIGTERM)
		d.daemon.Wait()
	}
	if d.vendor != nil {
		d.vendor.close()
	}
}

// stop ends the appliance the way an operator does.
func (d *demo) stop() error {
	if err := d.daemon.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	err := d.daemon.Wait()
	d.daemon = nil
	if err != nil {
		return fmt.Errorf("clawbox serve: %w", err)
	}
	d.say("the appliance has stopped in order; its ledger still holds:")
	_, err = d.clawbox("audit", "verify")
	return err
}

// until polls f every 100 ms until it says true, fails, or time is over.
func (d *demo) until(limit time.Duration, what string, f func() (bool, error)) error {
	for end := time.Now().Add(limit); ; {
		ok, err := f()
		switch {
		case err != nil:
			return err
		case ok:
			return nil
		case time.Now().After(end):
			return fmt.Errorf("waited %v for %s", limit, what)
		}
		select {
		case <-d.ctx.Done():
			return errors.New("interrupted")
		case <-time.After(100 * time.Millisecond):
		}
	}
}
