package installer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/clawbox/clawbox/airgap-manifests/k3s"
	"github.com/clawbox/clawbox/appliance/engine"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/model"
	"github.com/clawbox/clawbox/internal/durable"
)

// Cluster talks to a cluster's API.
type Cluster interface {
	// Ready waits until the node called name is ready, or ctx ends.
	Ready(ctx context.Context, kubeconfig, name string) error
	// Apply installs or upgrades charts in order and waits for those that say
	// so. It says what it changed; "" is nothing. Calling it again with the
	// same charts changes nothing.
	Apply(ctx context.Context, kubeconfig string, charts []Chart) (string, error)
	// Settled waits until the cluster looks as w says, or ctx ends; its error
	// then names what does not.
	Settled(ctx context.Context, kubeconfig string, w Settled) error
	// Version is the API server's, such as "v1.35.0+k3s1".
	Version(ctx context.Context, kubeconfig string) (string, error)
	// Account reads a service account's secret, once the cluster has filled it.
	Account(ctx context.Context, kubeconfig, namespace, secret string) (Account, error)
}

func isCluster(a Answers) bool     { return a.Profile == "cluster" }
func isServer(a Answers) bool      { return isCluster(a) && a.Cluster.Role == RoleServer }
func startsCluster(a Answers) bool { return isCluster(a) && withSystemd(a) }
func startsServer(a Answers) bool  { return isServer(a) && withSystemd(a) }

// Kubeconfig is the administrator's, which K3s writes on a server.
func (l Layout) Kubeconfig() string { return l.at(k3s.Kubeconf) }

// NodeKubeconfig is the kubelet's, which K3s writes on every node: it may read
// its own node, and the account of agents' pods.
func (l Layout) NodeKubeconfig() string { return l.at(k3s.NodeKubeconf) }

// Charts is the file that says what this node is in its cluster, and what that is
// to run.
func (l Layout) Charts() string { return l.at("var/lib/clawbox/install/charts.json") }

// k3sUnit is K3s's unit. One name for both roles: a node has one of them.
func (l Layout) k3sUnit() string { return l.at("etc/systemd/system/k3s.service") }

func (l Layout) k3sWants() string {
	return l.at("etc/systemd/system/multi-user.target.wants/k3s.service")
}

// models is the folder of all laid-out models.
func (l Layout) models() string { return l.at("var/lib/clawbox/models") }

// modelFolder is the name of a model's folder: the model and its bytes, so that
// those of two releases lie beside each other while one of them is tried.
func modelFolder(it Item) string { return fmt.Sprintf("%s-%.12s", it.Name, it.Digest.Hex) }

// model is the folder that an engine mounts. The embedded engine's layout is
// one folder further down.
func (l Layout) model(s ServingAnswers, it Item) string {
	d := filepath.Join(l.models(), modelFolder(it))
	if s.Engine == "ollama" {
		return filepath.Join(d, "models")
	}
	return d
}

// k3sUnitText has the installed clawbox decide which release's K3s runs, and
// become it: an upgrade of the slot is one of K3s. It comes after the appliance,
// whose registry has the images. What an upstream unit has and this one lacks:
// waiting for a network that leads somewhere.
const k3sUnitText = `# Written by clawbox install.
[Unit]
Description=K3s, the cluster of clawbox
Wants=clawbox.service
After=clawbox.service local-fs.target network.target
ConditionPathExists=%[1]s

[Service]
Type=notify
Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ExecStartPre=-/usr/lib/systemd/systemd-modules-load /etc/modules-load.d/clawbox-k3s.conf
ExecStartPre=-/usr/lib/systemd/systemd-sysctl /etc/sysctl.d/90-clawbox-k3s.conf
ExecStart=%[2]s cluster serve %[3]s
KillMode=process
Delegate=yes
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
TimeoutStartSec=0
Restart=always
RestartSec=5s

[Install]
WantedBy=multi-user.target
`

const modulesText = "# Written by clawbox install: what K3s wants loaded.\noverlay\nbr_netfilter\nnf_conntrack\n"

// node places what K3s reads when it starts, and what the cluster is to run.
func (r *run) node(context.Context) (string, error) {
	n, err := r.Answers.Node(r.Facts, r.Release)
	if err != nil {
		return "", err
	}
	files, err := n.Files()
	if err != nil {
		return "", err
	}
	files = append(files, k3s.File{Path: "/etc/modules-load.d/clawbox-k3s.conf", Mode: 0o644, Data: []byte(modulesText)})
	if isServer(r.Answers) {
		own, err := r.manifests()
		if err != nil {
			return "", err
		}
		files = append(files, own...)
	}
	if withSystemd(r.Answers) {
		text := fmt.Sprintf(k3sUnitText, filepath.Join(r.l.Current(), k3sPath), filepath.Join(r.l.Current(), mainPath), n.Role)
		files = append(files, k3s.File{Path: "/etc/systemd/system/k3s.service", Mode: 0o644, Data: []byte(text)})
	}
	var did []string
	for _, f := range files {
		if f.Path == k3s.ContainerdTemplate {
			if f.Data, err = r.l.containerd(f.Data); err != nil {
				return "", err
			}
		}
		what, err := r.place(f)
		if err != nil {
			return "", err
		}
		did = append(did, what)
	}
	for _, f := range []func() (string, error){r.runtime, r.token, r.chartsFile, r.k3sLinks} {
		what, err := f()
		if err != nil {
			return "", err
		}
		did = append(did, what)
	}
	return joined(did), nil
}

// manifestsPath is the folder of a slot with the manifests that a K3s from source
// lacks; its release binary has them inside.
const manifestsPath = "k3s/manifests/"

// manifests are those.
func (r *run) manifests() (out []k3s.File, err error) {
	for _, it := range r.Release.kind("file") {
		name, ok := strings.CutPrefix(it.place(), manifestsPath)
		if !ok || strings.Contains(name, "/") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(r.l.Slot(r.Release.Version, r.Release.Sequence), it.place()))
		if err != nil {
			return nil, err
		}
		out = append(out, k3s.File{Path: k3s.Manifests + "/" + name, Mode: 0o600, Data: b})
	}
	return out, nil
}

// joined lists what was done, leaving out what was nothing.
func joined(did []string) string {
	var out []string
	for _, s := range did {
		if s != "" {
			out = append(out, s)
		}
	}
	return strings.Join(out, ", ")
}

// place writes one of K3s's files below the root. K3s keeps its server folder
// to root, so what is made before it is made so.
func (r *run) place(f k3s.File) (string, error) {
	p := r.l.at(f.Path)
	mode := fs.FileMode(0o755)
	if strings.HasPrefix(f.Path, k3s.DataDir+"/server/") {
		if err := durable.MkdirAll(r.l.at(k3s.DataDir), 0o755); err != nil {
			return "", err
		}
		mode = 0o700
	}
	if err := durable.MkdirAll(filepath.Dir(p), mode); err != nil {
		return "", err
	}
	return ensureFile(p, f.Data, f.Mode)
}

// token places the secret with which an agent joins. A node that has one
// keeps it unless another is given.
func (r *run) token() (string, error) {
	if r.Answers.Cluster.Role != RoleAgent {
		return "", nil
	}
	if r.env.Token == "" {
		return "", r.canJoin()
	}
	return ensureFile(r.l.at(k3s.TokenFile), []byte(r.env.Token+"\n"), 0o600)
}

// canJoin refuses an agent without a sound token before anything is touched.
func (r *run) canJoin() error {
	if r.Answers.Cluster.Role != RoleAgent {
		return nil
	}
	if r.env.Token != "" {
		return ValidToken(r.env.Token)
	}
	if _, err := os.Lstat(r.l.at(k3s.TokenFile)); err != nil {
		return errors.New("got no token to join with; wanted the one that `clawbox token create` prints on the server; give it with --token-file")
	}
	return nil
}

// ValidToken refuses what is no token of K3s that names its server's
// certificate: with it, a node that joins knows whom it speaks to.
func ValidToken(s string) error {
	hash, rest, ok := strings.Cut(strings.TrimPrefix(s, "K10"), "::")
	if !strings.HasPrefix(s, "K10") || !ok || len(hash) != 64 || rest == "" || strings.ContainsAny(s, " \t\r\n") {
		return errors.New(`got a token that does not name the server's certificate; wanted K10, 64 hexadecimal digits, "::" and the secret, as "clawbox token create" prints it`)
	}
	return nil
}

// chartsFile keeps what the cluster is to run, for this run and for
// `clawbox cluster apply`.
func (r *run) chartsFile() (string, error) {
	cs, err := r.Answers.Charts(r.Facts, r.Release)
	if err != nil {
		return "", err
	}
	b, err := json.MarshalIndent(Running{r.Answers.Cluster.Role, r.Answers.Cluster.name(r.Facts), cs}, "", "  ")
	if err != nil {
		return "", err
	}
	return ensureFile(r.l.Charts(), append(b, '\n'), 0o600)
}

// Running is what a node is in its cluster, and what a server's is to run.
type Running struct {
	Role   string  `json:"role"` // RoleServer or RoleAgent
	Node   string  `json:"node"` // its name in the cluster
	Charts []Chart `json:"charts,omitempty"`
}

// LoadRunning reads what the node below root is.
func LoadRunning(root string) (Running, error) {
	var c Running
	p := Layout{Prefix: root}.Charts()
	b, err := os.ReadFile(p)
	if errors.Is(err, fs.ErrNotExist) {
		return c, fmt.Errorf("got no %s; wanted a node of the profile cluster; install or join one first", p)
	}
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("%s: %w; run the installer again to write it anew", p, err)
	}
	return c, nil
}

// k3sLinks are the names by which K3s's program is called.
func (r *run) k3sLinks() (string, error) {
	var did []string
	dir := filepath.Dir(r.l.Command())
	to, err := filepath.Rel(dir, filepath.Join(r.l.Current(), k3sPath))
	if err != nil {
		return "", err
	}
	for _, name := range []string{"k3s", "kubectl", "crictl", "ctr"} {
		what, err := ensureLink(filepath.Join(dir, name), to)
		if err != nil {
			return "", err
		}
		did = append(did, what)
	}
	return joined(did), nil
}

// models lays out the chosen models for their engines.
func (r *run) models(context.Context) (string, error) {
	if len(r.Answers.Cluster.Models) == 0 {
		return "", nil
	}
	s, err := r.open()
	if err != nil {
		return "", err
	}
	if _, err := ensureDir(r.l.models(), 0o755); err != nil {
		return "", err
	}
	var did []string
	for _, m := range r.Answers.Cluster.Models {
		it, _ := r.Release.item("model", m.Model)
		what, err := r.layOut(s, m, it)
		if err != nil {
			return "", err
		}
		did = append(did, what)
	}
	return joined(did), nil
}

// layOut makes one model's folder, unless it is right already: pods may have
// it mounted, and a new folder in its place would not reach them.
func (r *run) layOut(s *content.Store, a ServingAnswers, it Item) (string, error) {
	m, err := model.Open(s, it.pin())
	if err != nil {
		return "", err
	}
	dir := filepath.Join(r.l.models(), modelFolder(it))
	if a.Engine == "ollama" {
		return "", engine.Prepare(dir, []engine.Model{engineModel(s, a.Model, m)})
	}
	if laidOut(s, m, dir) {
		return "", nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	return "laid out " + a.Model, model.Link(s, m, dir)
}

// laidOut says whether dir has the model's files and they are the store's.
func laidOut(s *content.Store, m model.Model, dir string) bool {
	for _, f := range m.Files {
		have, err := os.Stat(filepath.Join(dir, filepath.FromSlash(f.Name)))
		want, err2 := os.Stat(s.Path(f.Digest))
		if err != nil || err2 != nil || !os.SameFile(have, want) {
			return false
		}
	}
	return len(m.Files) > 0
}

func engineModel(s *content.Store, name string, m model.Model) engine.Model {
	out := engine.Model{Name: name}
	for _, f := range m.Files {
		out.Layers = append(out.Layers, engine.Layer{Title: f.Name, Digest: f.Digest.String(), Size: f.Size, Path: s.Path(f.Digest)})
	}
	return out
}

// nextOfCluster says what to do after an installation of the profile cluster.
func nextOfCluster(a Answers) string {
	if !withSystemd(a) {
		return "start the appliance with: " + serveCommand(a) + "\nthen K3s with: clawbox cluster serve " + a.Cluster.Role +
			"\nthen: clawbox cluster apply, and start the appliance again: it runs agents as pods from then on"
	}
	if a.Cluster.Role == RoleServer {
		return "the cluster runs; look at it with: clawbox status, kubectl get pods -A; add a node with: clawbox token create"
	}
	return "the node has joined; look at it on the server with: kubectl get nodes"
}
