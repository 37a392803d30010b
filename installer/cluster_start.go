package installer

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"time"
)

// startK3s starts K3s, waits, and only then enables it at boot.
func (r *run) startK3s(ctx context.Context) (string, error) {
	if r.repair && len(r.changed) == 0 && linkTo(r.l.k3sWants(), r.l.k3sUnit()) && kubeletHealthy(ctx) == nil {
		return "", nil
	}
	ctl := r.env.Systemctl
	if ctl == nil {
		ctl = systemctl
	}
	if err := ctl(ctx, "daemon-reload"); err != nil {
		return "", err
	}
	if err := ctl(ctx, "restart", "k3s.service"); err != nil {
		return "", fmt.Errorf("%w; look at: journalctl -u k3s", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	run, err := LoadRunning(r.Answers.Root)
	if err == nil {
		err = r.cluster().Ready(ctx, r.l.kubeconfig(run), run.Node)
	}
	if err != nil {
		return "", fmt.Errorf("%w; look at: journalctl -u k3s", err)
	}
	_, err = ensureLink(r.l.k3sWants(), r.l.k3sUnit())
	return "the node is ready, and K3s is enabled at boot", err
}

// cluster is what speaks to the cluster.
func (r *run) cluster() Cluster {
	if r.env.Cluster != nil {
		return r.env.Cluster
	}
	return r.l.Cluster(nil)
}

func linkTo(link, target string) bool {
	p, err := filepath.EvalSymlinks(link)
	return err == nil && p == target
}

// kubeletHealthy asks the kubelet's own health address (its default healthzPort).
func kubeletHealthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:10248/healthz", nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(io.LimitReader(resp.Body, 200)); resp.StatusCode != http.StatusOK {
		return fmt.Errorf("kubelet: %s: %s", resp.Status, b)
	}
	return nil
}

// charts installs what the cluster is to run, and waits until all of the
// appliance's own on it is ready: an upgrade will want as much.
func (r *run) charts(ctx context.Context) (string, error) {
	c, err := LoadRunning(r.Answers.Root)
	if err != nil {
		return "", err
	}
	did, err := r.cluster().Apply(ctx, r.l.Kubeconfig(), c.Charts)
	if err != nil {
		return "", err
	}
	w, err := r.l.wanted(c, r.Release)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	return did, r.cluster().Settled(ctx, r.l.Kubeconfig(), w)
}
