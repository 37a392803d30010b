package installer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/mod/semver"
)

// k3sComponent is the component of a release that says which K3s it has.
const k3sComponent = "k3s"

// k3sVersion is the release's K3s as the node names it, "v1.35.0+k3s1"; "": the
// release does not say.
func (r Release) k3sVersion() string {
	for _, c := range r.Components {
		if c.Name == k3sComponent {
			return "v" + c.Version
		}
	}
	return ""
}

// goesDown says whether a K3s of to would have to read what a later one wrote,
// which Kubernetes does not promise.
func goesDown(from, to Release) bool { return semver.Compare(to.k3sVersion(), from.k3sVersion()) < 0 }

// Settled is what a cluster looks like when all of the appliance's own works.
type Settled struct {
	Node       string            `json:"node"`
	Version    string            `json:"version"`    // of its kubelet; "": any
	Addons     map[string]string `json:"addons"`     // manifests that K3s has applied: name → SHA-256, hexadecimal
	Namespaces []string          `json:"namespaces"` // whose workloads are ready as they are described now
	// Steady is for how long all of it holds, counted from when the node's kubelet
	// has given a sign of life: what a datastore says that was put back, or whose
	// K3s was started again, is what was true before. 0: once is enough.
	Steady time.Duration `json:"steady"` // ns
}

// steadyTime is longer than a kubelet takes to see that a container has ended.
const steadyTime = 10 * time.Second

// settledNamespaces are those of the appliance's own workloads. Tenants' are
// theirs, and agents start by the gate for agents.
var settledNamespaces = []string{"kube-system", systemNamespace, gpuNamespace, modelNamespace}

// wanted is what this node's cluster looks like with a release, as far as the
// node may see it: one that joined sees itself.
func (l Layout) wanted(n Running, r Release) (Settled, error) {
	w := Settled{Node: n.Node, Version: r.k3sVersion(), Steady: steadyTime}
	if n.Role == RoleAgent {
		return w, nil
	}
	var err error
	w.Addons, err = l.addons()
	w.Namespaces = settledNamespaces
	return w, err
}

// kubeconfig is the one by which a node looks at its cluster.
func (l Layout) kubeconfig(n Running) string {
	if n.Role == RoleAgent {
		return l.NodeKubeconfig()
	}
	return l.Kubeconfig()
}

// carryNode puts what the release's K3s reads in its place, and where K3s goes
// down, the datastore of when that K3s ran last.
func (c *changing) carryNode(ctx context.Context) (string, error) {
	if c.change.Profile != "cluster" {
		return "", nil
	}
	var did []string
	if c.plan.datastore != "" {
		for _, s := range c.l.k3sState() {
			if err := s.Restore(ctx, filepath.Join(c.plan.datastore, s.Name())); err != nil {
				return "", fmt.Errorf("put back %s: %w", s.Name(), err)
			}
		}
		did = append(did, "the cluster's objects as they were under "+c.change.To.String())
	}
	what, err := c.run.node(ctx)
	return joined(append(did, what)), err
}

// server refuses a later K3s on a node that joined than its server has: the
// server is upgraded first.
// Source: https://kubernetes.io/releases/version-skew-policy/#kubelet.
func (c *changing) server(ctx context.Context) (string, error) {
	from, to := c.plan.carry.from, c.run.Release
	if isServer(c.run.Answers) || semver.Compare(to.k3sVersion(), from.k3sVersion()) <= 0 {
		return "", nil
	}
	cl := c.env.Cluster
	if cl == nil {
		cl = c.l.Cluster(nil)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	have, err := cl.Version(ctx, c.l.NodeKubeconfig())
	if err != nil {
		return "", fmt.Errorf("the cluster's server does not say which K3s it runs: %w; see that it runs, then start again", err)
	}
	if semver.Compare(semver.MajorMinor(to.k3sVersion()), semver.MajorMinor(have)) > 0 {
		return "", fmt.Errorf("got K3s %s in the release for this node, the cluster's server runs %s; wanted a server at least as new; upgrade the server first, then this node", to.k3sVersion(), have)
	}
	return "the server runs K3s " + have, nil
}

// clusterGate wants the node to run a release's K3s, and all of the appliance's
// own on it to be ready as that release describes it.
type clusterGate struct {
	c *changing
	// back is after a return: the release that runs is the one before.
	back bool
}

func (clusterGate) Name() string { return "cluster" }

func (g clusterGate) Pass(ctx context.Context, c Change) error {
	run, err := LoadRunning(g.c.l.Prefix)
	if err != nil {
		return err
	}
	r := g.c.run.Release
	if g.back {
		r = g.c.plan.carry.from
	}
	cl := g.c.env.Cluster
	if cl == nil {
		cl = clusterProgram{filepath.Join(g.c.l.slotOf(c.To), clusterPath), nil}
	}
	kubeconfig := g.c.l.kubeconfig(run)
	if err := cl.Ready(ctx, kubeconfig, run.Node); err != nil {
		return err
	}
	w, err := g.c.l.wanted(run, r)
	if err != nil {
		return err
	}
	if run.Role == RoleAgent {
		return cl.Settled(ctx, kubeconfig, w)
	}
	if _, err := cl.Apply(ctx, kubeconfig, run.Charts); err != nil {
		// Helm says that it waited; the cluster says for what.
		short, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		w.Steady = 0
		return errors.Join(err, cl.Settled(short, kubeconfig, w))
	}
	return cl.Settled(ctx, kubeconfig, w)
}

// LookNode says what is wrong with the node below root now, nil when all of the
// appliance's own on it works; node is false where there is none.
func LookNode(ctx context.Context, root string) (node bool, err error) {
	l := Layout{root}
	if !l.hasNode() {
		return false, nil
	}
	run, err := LoadRunning(root)
	if err != nil {
		return true, err
	}
	_, r, err := l.installed()
	if err != nil {
		return true, err
	}
	w, err := l.wanted(run, r)
	if err != nil {
		return true, err
	}
	w.Steady = 0
	return true, l.Cluster(nil).Settled(ctx, l.kubeconfig(run), w)
}

// clusterDeadline is the gates' where K3s has to start and images are pulled.
const clusterDeadline = 15 * time.Minute

// serving keeps of the models that a cluster serves those that a release has,
// and says which it has not.
func (r Release) serving(ms []ServingAnswers) (out []ServingAnswers, lost []string) {
	for _, m := range ms {
		if _, ok := r.item("model", m.Model); ok {
			out = append(out, m)
		} else {
			lost = append(lost, m.Model)
		}
	}
	return out, lost
}

// modelFolders are the names of the folders in which two releases' models are
// laid out.
func modelFolders(rs ...Release) []string {
	out := map[string]bool{}
	for _, r := range rs {
		for _, it := range r.kind("model") {
			out[modelFolder(it)] = true
		}
	}
	return slices.Collect(maps.Keys(out))
}
