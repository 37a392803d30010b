package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// place is where work runs.
type place interface {
	// start runs argv in a fresh enclosure, with its output to out.
	start(ctx context.Context, j job) (running, error)
}

// job is what to run.
type job struct {
	argv []string
	out  io.Writer
	slot int // which of several at once
	// clawbox only: with the way out attached, not just loopback; and with its
	// ledger in memory, to tell the price of durable records.
	open, memory bool
	alone        bool // clawbox only: without the guard
	fresh        bool // clawbox only: no launcher waits
	first        bool // clawbox only: the agent has never run, so its disk is made
}

// running is a started job.
type running interface {
	wait() error // until it ends by itself
	stop() error // now
}

// process is a job that is a process of this machine, with its children.
type process struct {
	cmd  *exec.Cmd
	said *strings.Builder
	done func()
}

func startCmd(cmd *exec.Cmd, out io.Writer) (running, error) {
	p := &process{cmd: cmd, said: &strings.Builder{}}
	cmd.Stdout, cmd.Stderr = out, p.said
	cmd.WaitDelay = 5 * time.Second
	return p, cmd.Start()
}

func (p *process) wait() error {
	err := p.cmd.Wait()
	if p.done != nil {
		p.done()
	}
	if err != nil {
		return fmt.Errorf("%v: %w: %s", p.cmd.Args, err, p.said)
	}
	return nil
}

func (p *process) stop() error {
	_ = p.cmd.Process.Kill()
	_ = p.wait()
	return nil
}

// bare is the host: the same files by chroot, nothing else.
type bare struct{ root string }

func (b bare) start(_ context.Context, j job) (running, error) {
	cmd := exec.Command(j.argv[0], j.argv[1:]...)
	cmd.Env, cmd.Dir = []string{}, "/workspace"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: b.root}
	// exec.Command looked the program up outside; there is none to find there.
	cmd.Path, cmd.Err = j.argv[0], nil
	return startCmd(cmd, j.out)
}

// bubblewrap is bwrap with every namespace and a read-only root.
type bubblewrap struct{ bin, root, work string }

func (b bubblewrap) start(_ context.Context, j job) (running, error) {
	work := filepath.Join(b.work, fmt.Sprint("bwrap", j.slot))
	if err := os.MkdirAll(work, 0o755); err != nil {
		return nil, err
	}
	args := []string{
		"--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--ro-bind", b.root, "/", "--proc", "/proc", "--dev", "/dev",
		"--tmpfs", "/tmp", "--bind", work, "/workspace", "--chdir", "/workspace", "--",
	}
	return startCmd(exec.Command(b.bin, append(args, j.argv...)...), j.out)
}

// runc runs one OCI bundle for each start.
type runc struct {
	bin, root, work string

	mu *sync.Mutex
	n  *int
}

func (r runc) start(_ context.Context, j job) (running, error) {
	r.mu.Lock()
	*r.n++
	id := fmt.Sprintf("clawbox-bench-%d-%d", os.Getpid(), *r.n)
	r.mu.Unlock()
	dir := filepath.Join(r.work, id)
	work := filepath.Join(r.work, fmt.Sprint("runc", j.slot))
	for _, d := range []string{dir, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	spec, err := json.Marshal(ociSpec(r.root, work, j.argv))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "config.json"), spec, 0o600)
	}
	if err != nil {
		return nil, err
	}
	state := filepath.Join(r.work, "runc-state")
	p, err := startCmd(exec.Command(r.bin, "--root", state, "run", "--bundle", dir, id), j.out)
	if err != nil {
		return nil, err
	}
	return &container{p, func() {
		_ = exec.Command(r.bin, "--root", state, "delete", "--force", id).Run()
		_ = os.RemoveAll(dir)
	}}, nil
}

// container is deleted after its end, which is not timed.
type container struct {
	running
	remove func()
}

func (c *container) wait() error { defer c.remove(); return c.running.wait() }
func (c *container) stop() error { c.remove(); return c.running.stop() }

// ociSpec is the least that runc takes for what the others have, too: all
// namespaces, a read-only root, no capabilities.
func ociSpec(root, work string, argv []string) any {
	type m = map[string]any
	var ns []m
	for _, t := range []string{"pid", "network", "ipc", "uts", "mount"} {
		ns = append(ns, m{"type": t})
	}
	return m{
		"ociVersion": "1.0.2", "root": m{"path": root, "readonly": true},
		"process": m{"args": argv, "cwd": "/workspace", "env": []string{}, "user": m{"uid": 0, "gid": 0}, "noNewPrivileges": true, "capabilities": m{}},
		"mounts": []m{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755"}},
			{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "nodev", "mode=1777"}},
			{"destination": "/workspace", "type": "bind", "source": work, "options": []string{"rbind", "rw"}},
		},
		"linux": m{"namespaces": ns},
	}
}
