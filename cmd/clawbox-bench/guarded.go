package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/clawbox/clawbox/appliance/guard"
)

// guarded is the host with the guard and nothing else: a cgroup that is a
// scope, in which only the probe is listed.
type guarded struct {
	*boxes
	root string
}

func (g guarded) start(_ context.Context, j job) (_ running, err error) {
	if g.guard.Tier() == guard.TierNone {
		return nil, fmt.Errorf("no guard here: %s", g.guard.Why())
	}
	top, err := guard.Cgroup2Dir()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(top, fmt.Sprintf("clawbox-bench-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	w, err := g.watch(dir)
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	end := func() { _ = w.Close(); _ = os.Remove(dir) }
	f, err := os.Open(dir)
	if err != nil {
		end()
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command(j.argv[0], j.argv[1:]...)
	cmd.Env, cmd.Dir, cmd.Path, cmd.Err = []string{}, "/", j.argv[0], nil
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: g.root, UseCgroupFD: true, CgroupFD: int(f.Fd())}
	r, err := startCmd(cmd, j.out)
	if err != nil {
		end()
		return nil, err
	}
	r.(*process).done = end
	return r, nil
}

func (g guarded) watch(dir string) (*guard.Watch, error) {
	id, err := guard.CgroupID(dir)
	if err != nil {
		return nil, err
	}
	in, err := guard.Lookup(os.Getpid(), filepath.Join(g.root, "bin/probe"))
	if err != nil {
		return nil, err
	}
	return g.guard.Watch(guard.Scope{ID: "bench-guarded", CgroupID: id, Cgroup: dir, Exec: []guard.Inode{in}, Violation: guard.Kill})
}
