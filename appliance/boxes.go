package appliance

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/appliance/sandbox"
)

// openBoxes opens the sandbox driver, which ends what a dead daemon left.
func (a *Appliance) openBoxes() (err error) {
	a.boxes, err = sandbox.Open(sandbox.Options{
		State: a.cfg.Paths.State, Launcher: filepath.Join(a.cfg.Paths.Slot, "bin", "clawbox-launch"), UIDBase: a.cfg.UIDBase,
	})
	if err != nil {
		return err
	}
	a.images, err = sandbox.OpenImages(a.cfg.Paths.State, a.store)
	return err
}

// steer sends every port of a namespace to one socket, where the guard can.
func (a *Appliance) steer() func(*os.File, syscall.RawConn) (io.Closer, error) {
	if a.guard.Tier() == guard.TierNone {
		return nil
	}
	return func(ns *os.File, tcp syscall.RawConn) (io.Closer, error) { return a.guard.Steer(ns, tcp) }
}

// sandbox starts an agent's sandbox with everything attached.
func (a *Appliance) sandbox(ctx context.Context, ag *agent, out io.Writer) (*sandbox.Box, error) {
	img, err := a.images.Prepare(ctx, ag.Image)
	if err != nil {
		return nil, err
	}
	if len(ag.Command) > 0 {
		img.Entrypoint, img.Cmd = ag.Command, nil
	}
	spec := sandbox.Spec{
		Name: ag.Name, Image: img, Policy: ag.policy(), Args: ag.Args, Env: ag.Env, Stdout: out, Stderr: out,
		Network: func(ctx context.Context, _ int, ns *os.File) (io.Closer, error) { return a.attach(ctx, ag, ns) },
		Event:   func(e sandbox.Event) { a.strike(ag, e.Budget, e.Count, e.Detail) },
	}
	if a.guard.Tier() != guard.TierNone {
		spec.Guard = func(s guard.Scope) (io.Closer, error) {
			// Names that do not exist are reported too: a host file is such a name.
			s.AuditENOENT = true
			s.AuditOpens = ag.policy().Audit.Files == "all"
			return a.guard.Watch(s)
		}
	}
	box, err := a.boxes.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	for _, n := range box.Notes() {
		slog.Warn("policy and image differ", "agent", ag.Name, "note", n)
	}
	return box, nil
}

// landlock describes the kernel's Landlock for status.
func landlock(abi int, err error) int {
	if err != nil {
		return 0
	}
	return abi
}
