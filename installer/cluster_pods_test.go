package installer

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/gate/settings"
	"github.com/clawbox/clawbox/appliance/kube"
)

// madeUpAccount is one with a certificate that no server has.
func madeUpAccount(t *testing.T) Account {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(nil, c, c, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	return Account{Token: "eyJh.eyJz.c2ln", CA: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// installedServer is a server without systemd.
func installedServer(t *testing.T, m *madeUp) Layout {
	t.Helper()
	root := fast(t)
	a := clusterAnswers(root, m.Release)
	a.Cluster.Models = nil
	return installedNode(t, m, a)
}

// joinedNode is one that joined, without systemd.
func joinedNode(t *testing.T, m *madeUp) Layout {
	t.Helper()
	return installedNode(t, m, agentAnswers(fast(t), m.Release))
}

func installedNode(t *testing.T, m *madeUp, a Answers) Layout {
	t.Helper()
	p, err := NewPlan(nodeFacts(a.Root), a, m.Release)
	if err != nil {
		t.Fatal(err)
	}
	env := m.env()
	if a.Cluster.Role == RoleAgent {
		env.Token = "K10" + strings.Repeat("a", 64) + "::node:secret"
	}
	if _, err := Run(t.Context(), p, env); err != nil {
		t.Fatal(err)
	}
	return Layout{a.Root}
}

// containerd is told of the runtime, and the runtime of the appliance.
func TestRuntime(t *testing.T) {
	with := makeUpCluster()
	with.add(Item{Name: "runc", Kind: "file", Path: runcPath, Mode: 0o755}, "\x7fELF runc")
	for m, runc := range map[*madeUp]string{makeUpCluster(): "var/lib/rancher/k3s/data/current/bin/runc", with: "opt/clawbox/current/bin/runc"} {
		l := installedServer(t, m)
		want := settings.Settings{Socket: l.at("run/clawbox/gate.sock"), Runc: l.at(runc), Namespace: "clawbox-agents"}
		if got, err := settings.Of(l.Runtime()); err != nil || got != want {
			t.Errorf("settings: got %+v, %v; want %+v", got, err, want)
		}
		st, err := os.Stat(l.Runtime())
		if err != nil || st.Mode().Perm() != 0o755 || read(t, l.Runtime()) != "\x7fELF clawbox-runc" {
			t.Errorf("runtime: %v, %v", st, err)
		}
		if s := read(t, l.ContainerdTemplate()); strings.Count(s, "BinaryName = \""+l.Runtime()+"\"") != 1 || !strings.HasPrefix(s, "{{ template \"base\" . }}") {
			t.Errorf("containerd's template: %s", s)
		}
		run, err := LoadRunning(l.Prefix)
		i := slices.IndexFunc(run.Charts, func(c Chart) bool { return c.Name == "agents" })
		if err != nil || i < 0 || !strings.Contains(string(run.Charts[i].Files["templates/space.yaml"]), "name: "+accountSecret+"\n  namespace: "+accountNamespace+"\n") {
			t.Errorf("chart of the agents: %d, %v", i, err)
		}
		// Nothing of the cluster yet: the appliance starts before K3s.
		if c, err := config.Load(l.Config()); err != nil || c.Cluster != nil || there(l.Access()) {
			t.Errorf("configuration: %+v, %v", c.Cluster, err)
		}
	}
}

// The appliance gets a kubeconfig that it can read, and then a configuration
// that names it, once: on a server, and on a node that joined, by what each has
// to reach the cluster with.
func TestConnect(t *testing.T) {
	t.Run("server", func(t *testing.T) {
		l := installedServer(t, makeUpCluster())
		connects(t, l, l.Kubeconfig(), "https://127.0.0.1:6443")
	})
	t.Run("joined", func(t *testing.T) {
		l := joinedNode(t, makeUpCluster())
		connects(t, l, l.at("var/lib/rancher/k3s/agent/kubelet.kubeconfig"), "https://127.0.0.1:6444")
	})
}

func connects(t *testing.T, l Layout, by, server string) {
	t.Helper()
	before := read(t, l.Config())
	for _, c := range []*standIn{{err: errors.New("no token")}, {account: Account{Token: "a.b.c"}}, {account: Account{Token: "a.b.c}]\nx", CA: []byte("x")}}} {
		if did, err := Connect(t.Context(), l.Prefix, c); err == nil || did != "" || there(l.Access()) || read(t, l.Config()) != before {
			t.Errorf("with %+v: %q, %v", c, did, err)
		}
	}
	c := &standIn{account: madeUpAccount(t)}
	did, err := Connect(t.Context(), l.Prefix, c)
	if err != nil || !strings.Contains(did, l.Access()) || !strings.Contains(did, l.Config()) {
		t.Fatalf("%q, %v", did, err)
	}
	if want := by + " clawbox-account clawbox-token"; c.asked != want {
		t.Errorf("asked for %q; want %q", c.asked, want)
	}
	if s := read(t, l.Access()); !strings.Contains(s, strconv.Quote(server)) {
		t.Errorf("want %s in\n%s", server, s)
	}
	if st, err := os.Stat(l.Access()); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("kubeconfig: %v, %v", st, err)
	}
	if _, err := kube.Open(l.Access(), agentsNamespace); err != nil {
		t.Errorf("the appliance can't read it: %v", err)
	}
	cfg, err := config.Load(l.Config())
	want := &config.Cluster{Kubeconfig: l.Access(), Namespace: "clawbox-agents", Node: "edge-7", Registry: "clawbox.internal"}
	if err != nil || !reflect.DeepEqual(cfg.Cluster, want) {
		t.Errorf("configuration: %+v, %v", cfg.Cluster, err)
	}
	if did, err := Connect(t.Context(), l.Prefix, c); err != nil || did != "" {
		t.Errorf("again: %q, %v", did, err)
	}
	// A new token is taken; what an operator wrote stays.
	cfg.Cluster.Node = "other"
	b, err := cfg.Encode()
	if err != nil {
		t.Fatal(err)
	}
	write(t, l.Config(), string(b))
	c.account.Token = "eyJh.eyJz.bmV3"
	if did, err := Connect(t.Context(), l.Prefix, c); err != nil || did != "wrote "+l.Access() || read(t, l.Config()) != string(b) || !strings.Contains(read(t, l.Access()), "bmV3") {
		t.Errorf("a new token: %q, %v", did, err)
	}
}

// The installer starts the appliance again when it has told it of the cluster,
// and only then.
func TestConnectStarts(t *testing.T) {
	m := makeUpCluster()
	l := installedServer(t, m)
	app := &played{root: l.Prefix}
	if err := app.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { app.Stop(t.Context()) })
	a, _, err := Kept(l.Prefix, m.Release)
	if err != nil {
		t.Fatal(err)
	}
	var ran []string
	r := &run{Plan: Plan{Answers: a, Facts: nodeFacts(l.Prefix), Release: m.Release}, l: l, env: Env{
		Cluster:   &standIn{account: madeUpAccount(t)},
		Systemctl: func(_ context.Context, args ...string) error { ran = append(ran, strings.Join(args, " ")); return nil },
	}}
	for _, want := range []string{"started the appliance again", ""} {
		did, err := r.connect(t.Context())
		if err != nil || !strings.Contains(did, want) || want == "" && did != "" {
			t.Errorf("got %q, %v; want %q", did, err, want)
		}
	}
	if !slices.Equal(ran, []string{"restart clawbox.service"}) {
		t.Errorf("ran %q", ran)
	}
}

// A commit brings the release's runtime, and one without leaves the old.
func TestPlaceRuntime(t *testing.T) {
	l := installedServer(t, makeUpCluster())
	old := read(t, l.Runtime())
	to := Change{To: head{Version: "0.2.0", Sequence: 2}}
	slot := l.slotOf(to.To)
	if err := os.MkdirAll(filepath.Join(slot, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := l.placeRuntime(to); err != nil || read(t, l.Runtime()) != old {
		t.Errorf("a release without a runtime: %v", err)
	}
	write(t, filepath.Join(slot, runtimePath), "later")
	if err := l.placeRuntime(to); err != nil || read(t, l.Runtime()) != "later" {
		t.Errorf("a release with one: %v", err)
	}
	if err := (Layout{fast(t)}).placeRuntime(to); err != nil {
		t.Errorf("solo: %v", err)
	}
}

// An uninstallation takes the account and the runtime, and what names it.
func TestUninstallNode(t *testing.T) {
	l := installedServer(t, makeUpCluster())
	if _, err := Connect(t.Context(), l.Prefix, &standIn{account: madeUpAccount(t)}); err != nil {
		t.Fatal(err)
	}
	r, err := NewRemoval(l.Prefix, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := Remove(t.Context(), r, RemoveEnv{Operator: "Ann", Service: &played{root: l.Prefix}}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{l.Access(), l.Runtime(), l.ContainerdTemplate(), l.at("etc/rancher/k3s/registries.yaml"), l.at("etc/sysctl.d/90-clawbox-k3s.conf"), l.at("usr/local/bin/kubectl"), l.at("var/lib/rancher/k3s/agent")} {
		if there(p) {
			t.Errorf("%s stays", p)
		}
	}
	if !there(l.LedgerS()) || !there(l.at("var/lib/rancher/k3s/server/manifests")) || !l.hasNode() {
		t.Error("the ledger's key, the cluster or what says whose it is is gone")
	}
	if r, err = NewRemoval(l.Prefix, true); err != nil {
		t.Fatal(err)
	}
	if err := Remove(t.Context(), r, RemoveEnv{Operator: "Ann", Service: &played{root: l.Prefix}}); err != nil || there(l.at("var/lib/rancher")) || there(l.at("etc/rancher")) {
		t.Errorf("with purge K3s's folders stay, %v", err)
	}
}
