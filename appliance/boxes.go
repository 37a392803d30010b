package appliance

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/clawbox/clawbox/appliance/control"
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

// sandbox starts an agent's sandbox with everything attached.
func (a *Appliance) sandbox(ctx context.Context, ag *agent, out io.Writer) (*sandbox.Box, error) {
	if _, err := a.store.Resolve(ag.Image); errors.Is(err, fs.ErrNotExist) {
		return nil, control.Errorf("not_found", "the store has no image %q; the registry at %s lists what it has (GET /v2/_catalog)", ag.Image, a.cfg.Registry)
	}
	img, err := a.images.Prepare(ctx, ag.Image)
	if err != nil {
		return nil, err
	}
	if len(ag.Command) > 0 {
		img.Entrypoint, img.Cmd = ag.Command, nil
	}
	uid, err := a.boxes.UID(ag.Name, ag.policy().Process)
	if err != nil {
		return nil, err
	}
	ag.mu.Lock()
	ag.uid = uid
	ag.mu.Unlock()
	pp, err := a.papers(ctx, ag)
	if err != nil {
		return nil, err
	}
	spec := sandbox.Spec{
		Name: ag.Name, Image: img, Policy: ag.policy(), Args: ag.Args, Env: slices.Concat(ag.Env, pp.Env), Stdout: out, Stderr: out,
		TrustPEM: pp.CA, Tier: string(a.tierNow()),
		Network: func(ctx context.Context, _ int, ns *os.File) (io.Closer, error) { return a.attach(ctx, ag, ns) },
		Event:   func(e sandbox.Event) { a.strike(ag, e.Budget, e.Count, e.Detail) },
	}
	if a.tierNow() != guard.TierNone {
		var programs map[guard.Inode]string
		spec.Programs = func(m map[guard.Inode]string) { programs = m }
		spec.Guard = func(s guard.Scope) (io.Closer, error) { return a.watch(ctx, ag, s, programs) }
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
