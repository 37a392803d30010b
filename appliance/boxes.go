package appliance

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/clawbox/clawbox/appliance/egress"
	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/appliance/holds"
	"github.com/clawbox/clawbox/appliance/ledger"
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

// openEgress opens the way out.
func (a *Appliance) openEgress() (err error) {
	a.holds, err = holds.Open(holds.Config{
		File: filepath.Join(a.cfg.Paths.State, "approvals.json"), Recorder: a.log, Timeout: time.Duration(a.cfg.HoldSeconds) * time.Second,
	})
	if err != nil {
		return err
	}
	c := egress.Config{Recorder: a.log, Holds: a.holds, Hosts: a.cfg.Hosts}
	c.Handoff = func(c *net.TCPConn, ag egress.Agent, _ ledger.Process) error { return a.toRouter(c, ag.ID) }
	if a.guard.Tier() != guard.TierNone {
		c.Steer = func(ns *os.File, tcp syscall.RawConn) (io.Closer, error) { return a.guard.Steer(ns, tcp) }
	}
	a.proxy, err = egress.New(c)
	return err
}

// sandbox starts an agent's sandbox with everything attached.
func (a *Appliance) sandbox(ctx context.Context, ag *agent, out io.Writer) (*sandbox.Box, func(), error) {
	img, err := a.images.Prepare(ctx, ag.Image)
	if err != nil {
		return nil, nil, err
	}
	if len(ag.Command) > 0 {
		img.Entrypoint, img.Cmd = ag.Command, nil
	}
	spec := sandbox.Spec{
		Name: ag.Name, Image: img, Policy: ag.policy(), Args: ag.Args, Env: ag.Env, Stdout: out, Stderr: out,
		Network: func(ctx context.Context, _ int, ns *os.File) (io.Closer, error) {
			if err := a.part("router").call(ctx, callAgent, ag.info(), nil); err != nil {
				return nil, err
			}
			return a.proxy.Attach(ctx, egress.Agent{ID: ag.Name, Policy: ag.policy}, ns)
		},
		Event: func(e sandbox.Event) { a.strike(ag, e.Budget, e.Count, e.Detail) },
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
		return nil, nil, err
	}
	for _, n := range box.Notes() {
		slog.Warn("policy and image differ", "agent", ag.Name, "note", n)
	}
	return box, func() { a.tellRouter(callForget, ref{ag.Name}) }, nil
}

// landlock describes the kernel's Landlock for status.
func landlock(abi int, err error) int {
	if err != nil {
		return 0
	}
	return abi
}
