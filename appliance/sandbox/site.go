package sandbox

import (
	"context"

	"github.com/clawbox/clawbox/appliance/confine"
)

// site is who makes a sandbox's namespaces: this package, or Kubernetes.
type site interface {
	// enclose returns once the launcher stands in there, with b.p and b.g set
	// and bounded; of the agent nothing runs yet.
	enclose(ctx context.Context, b *Box, s *Spec, root *confine.Root) error
	// leave removes what is left of it after all processes have ended.
	leave() error
}

// own is the site that this package makes itself.
type own struct{}

func (own) leave() error { return nil }

// enclose takes a launcher in its namespaces and cgroups, bounds these, and
// returns once the launcher has mounted everything.
func (own) enclose(ctx context.Context, b *Box, s *Spec, root *confine.Root) error {
	top, err := b.l.skeleton(b.name, &skeleton{s.Image, b.id, home(s), writes(s.Policy), s.TrustPEM})
	if err != nil {
		return err
	}
	root.Layers = append([]string{top}, s.Image.Layers...)
	sh, err := b.l.shell(s)
	if err != nil {
		return err
	}
	b.g, b.p, b.ahead = sh.g, sh.p, sh.ahead
	b.out = []*late{sh.out, sh.err}
	sh.out.set(s.Stdout)
	sh.err.set(s.Stderr)
	b.done("fork")
	if err := confine.SendRoot(b.p.control, root); err != nil {
		return err
	}
	// While it mounts; of the agent nothing runs yet.
	p := s.Policy.Budgets
	if err := b.g.limit(limits{p.Processes + supervisorTasks, p.Memory, p.CPU}); err != nil {
		return err
	}
	if err := b.limitIO(p); err != nil {
		return err
	}
	if b.cgroupID, err = b.g.id(); err != nil {
		return err
	}
	if err := b.p.stands(ctx); err != nil {
		return err
	}
	b.done("mount")
	return nil
}
