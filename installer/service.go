package installer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// unitText is clawbox.service. The supervisor is root because it makes
// namespaces, cgroups and mounts, and starts services as other users (the
// appliance's own; systemd sees one process). What can be taken from it without
// taking those is taken. What is deliberately not set, and why:
//
//	ProtectControlGroups   it makes a cgroup per agent (Delegate=yes)
//	ProtectKernelTunables  it sets net.* in the agents' network namespaces
//	ProtectSystem=strict   "always" approvals and the ledger are below its own
//	                       paths, but operators move those in the configuration
//	PrivateDevices         it makes the agents' /dev
//	RestrictNamespaces, SystemCallFilter   see above
//	ProtectHostname        it refuses the launcher, too, to name its sandbox's
//	                       own UTS namespace
//	NoNewPrivileges        the services and the launcher set it for themselves
//	After=network-online.target   an appliance works without any network
//
// The launcher dies with the daemon, and KillMode=mixed lets the daemon stop
// its agents in order before systemd ends what is left.
const unitText = `# Written by clawbox install.
[Unit]
Description=clawbox: governed agents on this host
After=local-fs.target
RequiresMountsFor=%[1]s %[4]s

[Service]
Type=exec
ExecStart=%[2]s serve --config %[3]s
RuntimeDirectory=clawbox
RuntimeDirectoryMode=0755
UMask=0022
Delegate=yes
KillMode=mixed
TimeoutStopSec=60
Restart=on-failure
RestartSec=2
LimitNOFILE=65536
# Kernels before 5.11 count BPF maps against it.
LimitMEMLOCK=infinity
TasksMax=infinity
OOMScoreAdjust=-500
ProtectSystem=yes
ProtectHome=yes
PrivateTmp=yes
CapabilityBoundingSet=~CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_BOOT CAP_SYS_TIME CAP_SYS_PACCT CAP_SYS_TTY_CONFIG CAP_SYSLOG CAP_WAKE_ALARM
CapabilityBoundingSet=~CAP_BLOCK_SUSPEND CAP_LEASE CAP_MAC_ADMIN CAP_MAC_OVERRIDE CAP_AUDIT_CONTROL CAP_AUDIT_READ
LockPersonality=yes
RestrictRealtime=yes
SystemCallArchitectures=native
KeyringMode=private

[Install]
WantedBy=multi-user.target
`

// unit writes the service's unit file. ProtectSystem=yes leaves /etc and /var
// writable, /usr and /boot not.
func (r *run) unit(context.Context) (string, error) {
	text := fmt.Sprintf(unitText, r.l.State(), filepath.Join(r.l.Current(), mainPath), r.l.Config(), r.l.Opt())
	return ensureFile(r.l.Unit(), []byte(text), 0o644)
}

// start starts the service, waits until it is healthy, and only then enables
// it at boot. A service that does not become healthy is stopped again.
func (r *run) start(ctx context.Context) (string, error) {
	ctl := r.env.Systemctl
	if ctl == nil {
		ctl = systemctl
	}
	if r.repair && len(r.changed) == 0 && r.healthy(ctx) == nil && r.enabled() {
		return "", nil
	}
	if err := ctl(ctx, "daemon-reload"); err != nil {
		return "", err
	}
	if err := ctl(ctx, "restart", "clawbox.service"); err != nil {
		return "", err
	}
	if err := r.wait(ctx); err != nil {
		// Stopped even when ctx has ended: nothing unconfirmed keeps running.
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return "", errors.Join(err, ctl(stop, "stop", "clawbox.service"))
	}
	_, err := ensureLink(r.l.Wants(), r.l.Unit())
	if err == nil {
		err = ctl(ctx, "daemon-reload")
	}
	return "the appliance is healthy and enabled at boot", err
}

func (r *run) enabled() bool {
	p, err := filepath.EvalSymlinks(r.l.Wants())
	return err == nil && p == r.l.Unit()
}

func systemctl(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// wait polls the health socket until the appliance is ready or time is up.
func (r *run) wait(ctx context.Context) error {
	limit := r.env.Ready
	if limit == 0 {
		limit = 3 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for {
		err := r.healthy(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil { // "deadline exceeded" would hide the reason
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the appliance did not become healthy within %s: %w; look at: journalctl -u clawbox", limit, last)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (r *run) healthy(ctx context.Context) error { return r.l.healthy(ctx, r.Release.Sequence) }

// healthy asks the health socket: 200 and this sequence number.
func (l Layout) healthy(ctx context.Context, sequence int64) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	sock := filepath.Join(l.Run(), "health.sock")
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", sock)
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://clawbox/", nil)
	if err != nil {
		return err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var body struct {
		Sequence int64
		Error    string
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&body); err != nil {
		return fmt.Errorf("health: %w", err)
	}
	switch {
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("health: %s: %s", resp.Status, body.Error)
	case body.Sequence != sequence:
		return fmt.Errorf("health: got an appliance with sequence %d; wanted %d", body.Sequence, sequence)
	}
	return nil
}
