package installer

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// clusterProgram is a Cluster by the slot's own program clawbox-cluster, so
// that an upgrade of the slot brings its own client of Kubernetes.
type clusterProgram struct {
	path string
	say  func(string) // hears its lines of progress; may be nil
}

// Cluster speaks to the cluster below root with the active slot's program; say,
// if not nil, hears of each chart.
func (l Layout) Cluster(say func(string)) Cluster {
	return clusterProgram{filepath.Join(l.Current(), clusterPath), say}
}

func (c clusterProgram) Ready(ctx context.Context, kubeconfig, name string) error {
	_, err := c.run(ctx, nil, "ready", kubeconfig, name)
	return err
}

func (c clusterProgram) Apply(ctx context.Context, kubeconfig string, charts []Chart) (string, error) {
	b, err := json.Marshal(charts)
	if err != nil {
		return "", err
	}
	return c.run(ctx, bytes.NewReader(b), "apply", kubeconfig)
}

func (c clusterProgram) Settled(ctx context.Context, kubeconfig string, w Settled) error {
	b, err := json.Marshal(w)
	if err == nil {
		_, err = c.run(ctx, bytes.NewReader(b), "settled", kubeconfig)
	}
	return err
}

func (c clusterProgram) Version(ctx context.Context, kubeconfig string) (string, error) {
	return c.run(ctx, nil, "version", kubeconfig)
}

func (c clusterProgram) Account(ctx context.Context, kubeconfig, namespace, secret string) (Account, error) {
	var a Account
	out, err := c.run(ctx, nil, "account", kubeconfig, namespace, secret)
	if err == nil {
		err = json.Unmarshal([]byte(out), &a)
	}
	return a, err
}

// run gives the program's standard output; its last lines of standard error
// become the error.
func (c clusterProgram) run(ctx context.Context, in io.Reader, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.path, args...)
	// It is told to end, and then says what it was waiting for.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	cmd.Stdin = in
	var out strings.Builder
	errs := &lines{say: c.say}
	cmd.Stdout, cmd.Stderr = &out, errs
	// Helm reads HELM_* and KUBECONFIG: nothing of ours.
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil && errs.last == "" {
			err = context.Cause(ctx)
		}
		return "", fmt.Errorf("%s: %w: %s", filepath.Base(c.path), err, strings.TrimSpace(errs.last))
	}
	return out.String(), nil
}

// lines hands on whole lines and keeps the last of them.
type lines struct {
	say  func(string)
	part []byte
	last string
}

func (l *lines) Write(p []byte) (int, error) {
	l.part = append(l.part, p...)
	for {
		i := bytes.IndexByte(l.part, '\n')
		if i < 0 {
			return len(p), nil
		}
		l.last = string(l.part[:i])
		l.part = l.part[i+1:]
		if l.say != nil {
			l.say(l.last)
		}
	}
}
