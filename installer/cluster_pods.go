package installer

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/clawbox/clawbox/airgap-manifests/k3s"
	"github.com/clawbox/clawbox/airgap-manifests/pods"
	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/gate/settings"
	"github.com/clawbox/clawbox/internal/durable"
)

// The namespaces of agents as pods. The account by which the appliance makes
// them has one of its own: whoever may read what else is on the cluster must not
// find its token there.
const (
	agentsNamespace  = "clawbox-agents"
	accountNamespace = "clawbox-account"
)

// accountSecret is the account's token, as airgap-manifests/pods names it.
const accountSecret = "clawbox-token"

var tokenRE = regexp.MustCompile(`^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$`)

// runcPath is where a release brings a runc of its own, beside a K3s from
// source; K3s's release binary has one inside and unpacks it.
const runcPath = "bin/runc"

// Account is what a service account's secret says.
type Account struct {
	Token string `json:"token"`
	CA    []byte `json:"ca"` // the server's certificates, PEM
}

// Runtime is the program that containerd calls in place of runc. It lies
// outside the slots, because containers outlive an upgrade and their shims call
// it by this path; its settings stand beside it.
func (l Layout) Runtime() string { return l.at("opt/clawbox/runtime/clawbox-runc") }

// ContainerdTemplate is the file that names the runtime to containerd.
func (l Layout) ContainerdTemplate() string { return l.at(k3s.ContainerdTemplate) }

// Access is the kubeconfig by which the appliance makes pods. Its token is a
// secret, so it lies with the keys.
func (l Layout) Access() string { return l.at("var/lib/clawbox/keys/cluster.kubeconfig") }

// runtime puts clawbox-runc in its place, after its settings: without them it
// lets no container be made.
func (r *run) runtime() (string, error) {
	runc := r.l.at(k3s.DataDir + "/data/current/bin/runc")
	if _, ok := r.Release.program(runcPath); ok {
		runc = filepath.Join(r.l.Current(), runcPath)
	}
	b, err := settings.Settings{
		Socket: filepath.Join(r.l.Run(), settings.Socket), Runc: runc, Namespace: agentsNamespace,
	}.Encode()
	if err != nil {
		return "", err
	}
	if _, err := ensureDir(filepath.Dir(r.l.Runtime()), 0o755); err != nil {
		return "", err
	}
	did, err := ensureFile(settings.File(r.l.Runtime()), b, 0o644)
	if err != nil {
		return "", err
	}
	did2, err := r.l.copyRuntime(r.l.Slot(r.Release.Version, r.Release.Sequence))
	return joined([]string{did, did2}), err
}

// copyRuntime takes the runtime out of a slot. Running containers' shims call
// the new one from then on.
func (l Layout) copyRuntime(slot string) (string, error) {
	b, err := os.ReadFile(filepath.Join(slot, runtimePath))
	if err != nil {
		return "", err
	}
	return ensureFile(l.Runtime(), b, 0o755)
}

// placeRuntime is its part of a commit. A release that has none leaves the one
// that is there, with which containers were made.
func (l Layout) placeRuntime(c Change) error {
	slot := l.slotOf(c.To)
	if !there(l.Runtime()) || !there(filepath.Join(slot, runtimePath)) {
		return nil
	}
	_, err := l.copyRuntime(slot)
	return err
}

// containerd is K3s's template with the runtime's entry behind it.
func (l Layout) containerd(template []byte) ([]byte, error) {
	entry, err := pods.Containerd(l.Runtime())
	return append(bytes.Clone(template), entry...), err
}

// agentsChart is what a cluster has to know to run agents as pods.
func agentsChart() (Chart, error) {
	b, err := pods.Settings{Namespace: agentsNamespace, System: accountNamespace}.Manifest()
	if err != nil {
		return Chart{}, err
	}
	return plainChart("agents", b)
}

// Connect gives the appliance below root its account on the cluster, whose node
// it is, and says what it changed; the appliance takes it up when it starts. It
// waits for the account's token until ctx ends.
func Connect(ctx context.Context, root string, c Cluster) (string, error) {
	l := Layout{Prefix: root}
	unlock, err := lock(l.Lock())
	if err != nil {
		return "", err
	}
	defer unlock()
	return l.connect(ctx, c)
}

// connect writes the kubeconfig first: `clawbox serve` does not start with a
// configuration that names one that is missing. What an operator wrote under
// cluster is left alone.
func (l Layout) connect(ctx context.Context, c Cluster) (string, error) {
	run, err := LoadRunning(l.Prefix)
	if err != nil {
		return "", err
	}
	acc, err := c.Account(ctx, l.kubeconfig(run), accountNamespace, accountSecret)
	if err != nil {
		return "", err
	}
	text, err := acc.kubeconfig(apiServer[run.Role])
	if err != nil {
		return "", err
	}
	did, err := ensureFile(l.Access(), text, 0o600)
	if err != nil {
		return "", err
	}
	cfg, err := config.Load(l.Config())
	if err != nil || cfg.Cluster != nil {
		return did, err
	}
	cfg.Cluster = &config.Cluster{Kubeconfig: l.Access(), Namespace: agentsNamespace, Node: run.Node, Registry: k3s.Registry}
	b, err := cfg.Encode()
	if err != nil {
		return "", err
	}
	return joined([]string{did, "wrote " + l.Config()}), durable.WriteFile(l.Config(), b, 0o640)
}

// apiServer is where a node of a role reaches the API: a server's own, or K3s's
// balancer on a node that joined, which knows the servers.
// Source: https://docs.k3s.io/architecture#how-agent-node-registration-works.
var apiServer = map[string]string{RoleServer: "https://127.0.0.1:6443", RoleAgent: "https://127.0.0.1:6444"}

// kubeconfig is a file by which one reaches the API server at addr. A token is
// three parts of base64 (RFC 7519), so nothing in it can end the YAML's value.
func (a Account) kubeconfig(addr string) ([]byte, error) {
	if len(a.CA) == 0 || !tokenRE.MatchString(a.Token) {
		return nil, errors.New("got an account without certificates or with a token that is no JSON Web Token; wanted both from secret " + accountSecret + " in " + accountNamespace)
	}
	return fmt.Appendf(nil, `# Written by clawbox install: the appliance's account, which may make pods in %[1]s.
apiVersion: v1
kind: Config
current-context: clawbox
contexts: [{name: clawbox, context: {cluster: clawbox, user: clawbox, namespace: %[1]s}}]
clusters: [{name: clawbox, cluster: {server: %[4]q, certificate-authority-data: %[2]s}}]
users: [{name: clawbox, user: {token: %[3]s}}]
`, agentsNamespace, base64.StdEncoding.EncodeToString(a.CA), a.Token, addr), nil
}

// connect starts the appliance again once it has been told of the cluster. At a
// first installation no agent runs yet; later nothing changes here.
func (r *run) connect(ctx context.Context) (string, error) {
	had, err := config.Load(r.l.Config())
	if err != nil {
		return "", err
	}
	limited, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	did, err := r.l.connect(limited, r.cluster())
	if err != nil || did == "" || had.Cluster != nil {
		return did, err
	}
	ctl := r.env.Systemctl
	if ctl == nil {
		ctl = systemctl
	}
	if err := ctl(ctx, "restart", "clawbox.service"); err != nil {
		return "", err
	}
	return did + ", and started the appliance again", r.wait(ctx)
}
