package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/egress"
	"github.com/clawbox/clawbox/appliance/gate"
	"github.com/clawbox/clawbox/appliance/gate/settings"
	"github.com/clawbox/clawbox/appliance/kube"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/sandbox"
)

// Drivers of agents: who makes their namespaces.
const (
	driverLocal = "local"
	driverPod   = "pod"
)

// openPods makes agents as pods possible, where this host is a cluster's node.
// Nothing is asked of the cluster yet: it may be starting.
func (a *Appliance) openPods() error {
	c := a.cfg.Cluster
	if c == nil {
		return nil
	}
	k, err := kube.Open(c.Kubeconfig, c.Namespace)
	if err != nil {
		return err
	}
	a.pods = sandbox.OpenPods(a.boxes, sandbox.PodOptions{
		Cluster: k, Node: c.Node, Registry: c.Registry, Isolate: egress.Isolate, Refused: a.refusedPod,
	})
	return nil
}

// refusedPod records a container that the node was not let make.
func (a *Appliance) refusedPod(why string) {
	slog.Error("a container of the agents' namespace was refused", "why", why)
	rec := ledger.Record{Kind: ledger.KindLifecycle, Verdict: ledger.Denied, Reason: "pod.refused", Detail: why}
	if err := a.log.Record(context.Background(), rec); err != nil {
		a.fail(fmt.Errorf("a refused pod could not be recorded: %w", err))
	}
}

// serveGate answers the node's container runtime until stop is called.
func (a *Appliance) serveGate(cancel context.CancelCauseFunc) (stop func(), err error) {
	if a.pods == nil {
		return func() {}, nil
	}
	path := filepath.Join(a.cfg.Paths.Run, settings.Socket)
	// See serveUnix: no living daemon can own this one.
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	go func() {
		if err := gate.Serve(l, a.pods.Gate()); !errors.Is(err, net.ErrClosed) {
			cancel(fmt.Errorf("the gate: %w", err))
		}
	}()
	return func() { l.Close() }, nil
}

// sweepPods deletes what a daemon that died has left in the cluster, as soon
// as the cluster answers. Their launchers have ended with the daemon.
func (a *Appliance) sweepPods(ctx context.Context) {
	for a.pods != nil {
		err := a.pods.Sweep(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		slog.Warn("pods of an earlier daemon may be left", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(10 * time.Second):
		}
	}
}

// driver says how an agent is run: as the request wants, as it was before, or
// as a pod where there is a cluster. The empty one is local.
func (a *Appliance) driver(wanted, before string) (string, error) {
	d := wanted
	if d == "" {
		d = before
	}
	if d == "" && a.cfg.Cluster != nil {
		d = driverPod
	}
	switch d {
	case "", driverLocal:
		return "", nil
	case driverPod:
		if a.cfg.Cluster == nil {
			return "", control.Errorf("refused", "driver pod: this host is no node of a cluster (appliance.yaml has no cluster); use --driver local, or install the profile cluster")
		}
		return driverPod, nil
	}
	return "", control.Errorf("invalid", "driver: got %q, want %s or %s", d, driverLocal, driverPod)
}

// boxOf starts an agent's sandbox by its driver.
func (a *Appliance) boxOf(ctx context.Context, ag *agent, s sandbox.Spec) (*sandbox.Box, error) {
	if ag.Driver == driverPod {
		return a.pods.Start(ctx, s)
	}
	return a.boxes.Start(ctx, s)
}
