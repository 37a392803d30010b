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
	"sync"

	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/appliance/sandbox"
)

// openBoxes opens the sandbox driver, which ends what a dead daemon left.
func (a *Appliance) openBoxes() (err error) {
	a.boxes, err = sandbox.Open(sandbox.Options{
		State: a.cfg.Paths.State, Launcher: filepath.Join(a.cfg.Paths.Slot, "bin", "clawbox-launch"), UIDBase: a.cfg.UIDBase,
		Warm: a.cfg.WarmLaunchers(), Ahead: a.landAhead,
	})
	if err != nil {
		return err
	}
	a.images, err = sandbox.OpenImages(a.cfg.Paths.State, a.store)
	return err
}

// sandbox starts an agent's sandbox with everything attached. Nothing of the
// agent runs before kept has returned, and only if that is without an error.
func (a *Appliance) sandbox(ctx context.Context, ag *agent, out io.Writer, kept func() error) (*sandbox.Box, error) {
	uid, err := a.boxes.UID(ag.Name, ag.policy().Process)
	if err != nil {
		return nil, err
	}
	ag.mu.Lock()
	ag.uid = uid
	ag.mu.Unlock()
	// The services learn of the agent while its sandbox is built.
	told := async(func() error { return a.introduce(ctx, ag) })
	box, err := a.build(ctx, ag, out, told, kept)
	if err != nil {
		_ = told() // it is in err, if the start came that far
		for _, role := range []string{"guard", "router", "egress"} {
			a.push(role, callForget, ref{ag.Name})
		}
		return nil, err
	}
	for _, n := range box.Notes() {
		slog.Warn("policy and image differ", "agent", ag.Name, "note", n)
	}
	return box, nil
}

// build does it once the agent has its user id. told returns when every
// service knows the agent.
func (a *Appliance) build(ctx context.Context, ag *agent, out io.Writer, told, kept func() error) (*sandbox.Box, error) {
	img, err := a.image(ctx, ag)
	if err != nil {
		return nil, err
	}
	var pp papers
	if p := ag.policy(); inspects(p) || len(p.Credentials) > 0 {
		if pp, err = a.papers(ctx, ag); err != nil {
			return nil, err
		}
	}
	spec := sandbox.Spec{
		Name: ag.Name, Image: img, Policy: ag.policy(), Args: ag.Args, Env: slices.Concat(ag.Env, pp.Env), TrustPEM: pp.CA, Tier: string(a.tierNow()),
		Stdout: out, Stderr: out,
		Network: func(ctx context.Context, _ int, ns *os.File) (io.Closer, error) { return a.attach(ctx, ag, ns) },
		Landed:  func(ctx context.Context, l sandbox.Ahead) (io.Closer, error) { return a.open(ctx, ag, l.(*landing)) },
		Before:  func() error { return errors.Join(told(), kept()) },
		Event:   func(e sandbox.Event) { a.strike(ag, e.Budget, e.Count, e.Detail) },
	}
	if a.tierNow() != guard.TierNone {
		var programs map[guard.Inode]string
		spec.Programs = func(m map[guard.Inode]string) { programs = m }
		spec.Guard = func(s guard.Scope) (io.Closer, error) {
			if err := told(); err != nil {
				return nil, err
			}
			return a.watch(ctx, ag, s, programs)
		}
	}
	return a.boxOf(ctx, ag, spec)
}

// image makes an agent's image ready to run.
func (a *Appliance) image(ctx context.Context, ag *agent) (sandbox.Image, error) {
	if _, err := a.store.Resolve(ag.Image); errors.Is(err, fs.ErrNotExist) {
		return sandbox.Image{}, control.Errorf("not_found", "the store has no image %q; the registry at %s lists what it has (GET /v2/_catalog)", ag.Image, a.cfg.Registry)
	}
	img, err := a.described(ctx, ag)
	if len(ag.Command) > 0 {
		img.Entrypoint, img.Cmd = ag.Command, nil
	}
	return img, err
}

// described is the image with its layers, or without where containerd has them.
func (a *Appliance) described(ctx context.Context, ag *agent) (sandbox.Image, error) {
	if ag.Driver == driverPod {
		return a.images.Describe(ag.Image)
	}
	return a.images.Prepare(ctx, ag.Image)
}

// introduce tells every service of an agent.
func (a *Appliance) introduce(ctx context.Context, ag *agent) error {
	calls := []func() error{func() error { return a.nameAgents(ctx) }}
	for _, role := range []string{"guard", "router", "egress"} {
		calls = append(calls, func() error { return a.part(role).call(ctx, callAgent, ag.info(), nil) })
	}
	return atOnce(calls...)
}

// async begins to do something; what it returns waits for the end, as often as
// it is called.
func async(do func() error) (end func() error) {
	done := make(chan error, 1)
	go func() { done <- do() }()
	return sync.OnceValue(func() error { return <-done })
}

// atOnce returns when all are done, with everything that went wrong.
func atOnce(do ...func() error) error {
	ends := make([]func() error, len(do))
	for i, f := range do {
		ends[i] = async(f)
	}
	var errs []error
	for _, end := range ends {
		errs = append(errs, end())
	}
	return errors.Join(errs...)
}

// landlock describes the kernel's Landlock for status.
func landlock(abi int, err error) int {
	if err != nil {
		return 0
	}
	return abi
}
