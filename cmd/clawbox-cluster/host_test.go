package main

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/clawbox/clawbox/airgap-manifests/k3s"
	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/internal/k3shost"
	"github.com/clawbox/clawbox/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

const recipe = `apiVersion: clawbox.io/v1
kind: Recipe
metadata: {name: cluster, version: 0.1.0}
sequence: 1
components: [{name: k3s, version: 1.35.0+k3s1}]
items:
  - {name: clawbox, kind: file, source: "file:clawbox", path: bin/clawbox, mode: "0755", licence: MIT, redistributable: true}
  - {name: clawbox-launch, kind: file, source: "file:clawbox-launch", path: bin/clawbox-launch, mode: "0755", licence: MIT, redistributable: true}
  - {name: clawbox-cluster, kind: file, source: "file:clawbox-cluster", path: bin/clawbox-cluster, mode: "0755", licence: MIT, redistributable: true}
  - {name: clawbox-runc, kind: file, source: "file:clawbox-runc", path: bin/clawbox-runc, mode: "0755", licence: MIT, redistributable: true}
  - {name: runc, kind: file, source: "file:K3S/bin/runc", path: bin/runc, mode: "0755", licence: Apache-2.0, redistributable: true}
  - {name: k3s, kind: file, source: "file:K3S/bin/k3s", path: bin/k3s, mode: "0755", licence: Apache-2.0, redistributable: true}
  - {name: pause, kind: image, source: "oci-layout:pause:latest", licence: Apache-2.0, redistributable: true}
  - {name: coredns, kind: image, source: "oci-layout:coredns:latest", licence: Apache-2.0, redistributable: true}
  - {name: local-path-provisioner, kind: image, source: "oci-layout:local-path:latest", licence: Apache-2.0, redistributable: true}
  - {name: busybox, kind: image, source: "oci-layout:busybox:latest", licence: GPL-2.0-only, redistributable: true}
`

const answers = `apiVersion: clawbox.io/v1
kind: Answers
profile: cluster
operator: A Test
start: none
agents: []
accept: [cgroup-v1, tier-T4, landlock-old, volatile-state, clock-unsure]
cluster:
  role: server
  tenants:
    - {name: acme, cpu: "1", memory: 512Mi, pods: 4}
    - {name: lab}
`

// stick builds our programs and a signed bundle of them and of K3s.
func stick(t *testing.T, artifacts string) (dir, key string) {
	t.Helper()
	src := t.TempDir()
	for _, p := range []string{"clawbox", "clawbox-launch", "clawbox-runc", "clawbox-cluster"} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(src, p), "../"+p)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if err := os.Symlink(artifacts, filepath.Join(src, "K3S")); err != nil {
		t.Fatal(err)
	}
	im := k3s.SourceImages
	for name, ref := range map[string]string{"pause": im.Pause, "coredns": im.CoreDNS, "local-path": im.LocalPath, "busybox": im.Helper} {
		single(t, filepath.Join(artifacts, "images"), strings.TrimPrefix(ref, k3s.Registry+"/"), filepath.Join(src, name))
	}
	if err := os.WriteFile(filepath.Join(src, "recipe.yaml"), []byte(recipe), 0o600); err != nil {
		t.Fatal(err)
	}
	skey, vkey, err := manifest.GenerateKey("test.example")
	if err != nil {
		t.Fatal(err)
	}
	s, err := manifest.ParseSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(src, "stick")
	if _, err := bundle.Build(t.Context(), bundle.BuildOptions{Recipe: filepath.Join(src, "recipe.yaml"), Out: dir, Store: filepath.Join(src, "work"), Signers: []manifest.Signer{s}}); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]string{"test.vkey": vkey + "\n", "answers.yaml": answers} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(filepath.Join(src, "clawbox"), filepath.Join(dir, "installer")); err != nil {
		t.Fatal(err)
	}
	return dir, "/stick/test.vkey"
}

// single makes a layout of the one image that is called ref in the layout all;
// a recipe's source names images by folder and tag.
func single(t *testing.T, all, ref, dir string) {
	t.Helper()
	from, err := layout.FromPath(all)
	if err != nil {
		t.Fatal(err)
	}
	ix, err := from.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	m, err := ix.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	const name = "org.opencontainers.image.ref.name"
	for _, d := range m.Manifests {
		if d.Annotations[name] != ref {
			continue
		}
		img, err := ix.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		to, err := layout.Write(dir, empty.Index)
		if err == nil {
			err = to.AppendImage(img, layout.WithAnnotations(map[string]string{name: "latest"}))
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("%s has no image %s", all, ref)
}

// site is machines on one network, and what they are installed from.
type site struct {
	t         *testing.T
	lan       *k3shost.LAN
	artifacts string
	stick     string
}

func newSite(t *testing.T) *site {
	t.Helper()
	dir := os.Getenv("CLAWBOX_K3S")
	if dir == "" {
		t.Skip("CLAWBOX_K3S is not set: K3s is built and tested by `make e2e-host`")
	}
	lan, err := k3shost.NewLAN()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lan.Close() })
	st, _ := stick(t, filepath.Join(dir, "1.35"))
	return &site{t, lan, dir, st}
}

func (s *site) boot(name string) *k3shost.Machine {
	s.t.Helper()
	m, err := k3shost.Boot(s.t.Context(), k3shost.Options{Name: name, Dir: s.t.TempDir(), LAN: s.lan, Artifacts: s.artifacts, Binds: map[string]string{"/stick": s.stick}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { m.Halt() })
	return m
}

// run runs a program on m and gives its output; what fails is the test's end.
func (s *site) run(m *k3shost.Machine, name string, args ...string) string {
	s.t.Helper()
	out, err := s.try(m, name, args...)
	if err != nil {
		s.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(out)
}

func (s *site) try(m *k3shost.Machine, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 3*time.Minute)
	defer cancel()
	return m.Run(ctx, nil, name, args...)
}

// serve serves the installed store where K3s expects the registry; the
// appliance does that on a host (`clawbox serve`), from the same store.
func (s *site) serve(m *k3shost.Machine) {
	s.t.Helper()
	store, err := content.Open(m.Path("/var/lib/clawbox/store"))
	if err != nil {
		s.t.Fatal(err)
	}
	l, err := m.Listen("tcp", k3shost.RegistryAddr)
	if err != nil {
		s.t.Fatal(err)
	}
	srv := &http.Server{Handler: registry.New(store, registry.Options{}), ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(l) }() // until closed
	s.t.Cleanup(func() { srv.Close() })
}

// fromSource adds what K3s's release binary has inside and a K3s from source lacks.
func (s *site) fromSource(m *k3shost.Machine) {
	s.t.Helper()
	dir := filepath.Join(s.artifacts, "1.35/manifests")
	ents, err := os.ReadDir(dir)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range ents {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err == nil {
			err = m.WriteFile(k3s.Manifests+"/"+e.Name(), 0o600, b)
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

// pod is one that keeps to "restricted" and asks for memory.
func pod(ns, name, memory string) string {
	return `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"` + name + `","namespace":"` + ns + `"},"spec":{"automountServiceAccountToken":false,
"securityContext":{"runAsNonRoot":true,"runAsUser":10001,"seccompProfile":{"type":"RuntimeDefault"}},"containers":[{"name":"main","image":"` + k3s.Registry + `/busybox:0.1.0",
"command":["sh","-c","exec sleep 1000000"],"resources":{"requests":{"cpu":"10m","memory":"` + memory + `"},"limits":{"cpu":"100m","memory":"` + memory + `"}},
"securityContext":{"allowPrivilegeEscalation":false,"capabilities":{"drop":["ALL"]}}}]}}`
}

// TestCluster installs the profile cluster from a bundle on a machine without a
// way out, has Helm install what the cluster runs on a real K3s, sees that quota
// and policy hold, and lets a second machine join.
func TestCluster(t *testing.T) {
	s := newSite(t)
	m := s.boot("box")
	s.run(m, "/stick/installer", "install", "/stick", "--key", "/stick/test.vkey", "--answers", "/stick/answers.yaml")
	s.serve(m)
	s.fromSource(m)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c, err := m.StartK3s(ctx, k3shost.K3s{Version: "1.35", Placed: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(ctx); err != nil {
		t.Fatalf("%v\n%s", err, c.Tail(40))
	}
	start := time.Now()
	if out := s.run(m, "clawbox", "cluster", "apply"); !strings.Contains(out, "installed space-acme") {
		t.Errorf("apply: %s", out)
	}
	t.Logf("charts installed in %s", time.Since(start).Round(time.Millisecond))
	if out := s.run(m, "clawbox", "cluster", "apply"); !strings.Contains(out, "nothing to change") {
		t.Errorf("apply again: %s", out)
	}
	s.agents(c)
	s.tenants(c)
	s.joins(c)
}

// agents sees that the node asks the appliance about agents' pods, which does
// not run here: nobody can make one, and one in its namespace does not run.
func (s *site) agents(c *k3shost.Cluster) {
	t := s.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if out := s.run(c.M, "cat", "/etc/clawbox/appliance.yaml"); !strings.Contains(out, "kubeconfig: /var/lib/clawbox/keys/cluster.kubeconfig") || !strings.Contains(out, "namespace: clawbox-agents") {
		t.Errorf("the appliance was not told of the cluster: %s", out)
	}
	if out := s.run(c.M, "grep", "-c", "BinaryName = \"/opt/clawbox/runtime/clawbox-runc\"", k3s.DataDir+"/agent/etc/containerd/config.toml"); out != "1" {
		t.Errorf("containerd's configuration names the runtime %s times", out)
	}
	as := func(args ...string) (string, error) {
		return s.try(c.M, "/k3s/1.35/bin/kubectl", append([]string{"--kubeconfig", "/var/lib/clawbox/keys/cluster.kubeconfig"}, args...)...)
	}
	for want, verb := range map[string][]string{"yes": {"create", "pods", "-n", "clawbox-agents"}, "no": {"get", "secrets", "-n", "clawbox-account"}} {
		if out, _ := as(append([]string{"auth", "can-i"}, verb...)...); strings.TrimSpace(out) != want {
			t.Errorf("may the appliance's account %v: got %q; want %s", verb, out, want)
		}
	}
	if out, err := c.Kubectl(ctx, []byte(pod("clawbox-agents", "stray", "32Mi")), "apply", "-f", "-"); err == nil || !strings.Contains(err.Error()+out, "clawbox agent launch") {
		t.Errorf("a pod that the appliance did not make: %s, %v", out, err)
	}
}

// tenants holds the cluster to quota, Pod Security and the policy that denies.
func (s *site) tenants(c *k3shost.Cluster) {
	t := s.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if _, err := c.Kubectl(ctx, []byte(pod("acme", "big", "1Gi")), "apply", "-f", "-"); err == nil || !strings.Contains(err.Error(), "maximum memory") && !strings.Contains(err.Error(), "exceeded quota") {
		t.Errorf("a pod beyond the quota: %v", err)
	}
	// "open" is a namespace without any policy.
	for _, y := range []string{pod("acme", "a", "32Mi"), `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"open"}}`, pod("open", "b", "32Mi"), pod("lab", "c", "32Mi")} {
		if _, err := c.Kubectl(ctx, []byte(y), "apply", "-f", "-"); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range [][2]string{{"acme", "a"}, {"open", "b"}, {"lab", "c"}} {
		if _, err := c.Kubectl(ctx, nil, "wait", "-n", p[0], "pod/"+p[1], "--for=condition=Ready", "--timeout=120s"); err != nil {
			t.Fatalf("%v\n%s", err, s.run(c.M, "/k3s/1.35/bin/kubectl", "--kubeconfig", k3s.Kubeconf, "get", "events", "-A"))
		}
	}
	if out := s.reach(ctx, c, "open", "b"); !strings.Contains(out, "reached") {
		t.Errorf("a pod that no policy holds does not even reach the API server: %s", out)
	}
	for _, p := range [][2]string{{"acme", "a"}, {"lab", "c"}} {
		if out := s.reach(ctx, c, p[0], p[1]); !strings.Contains(out, "no way") {
			t.Errorf("a tenant's pod in %s reaches the API server: %s", p[0], out)
		}
	}
}

// reach connects to the API server from a pod's network and says "reached" or
// why not. The program is the machine's: the image's static busybox can't look up
// addresses.
func (s *site) reach(ctx context.Context, c *k3shost.Cluster, ns, name string) string {
	id, err := c.Kubectl(ctx, nil, "get", "pod", "-n", ns, name, "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	if err != nil {
		return err.Error()
	}
	tasks, err := c.Ctr(ctx, "task", "ls")
	if err != nil {
		return err.Error()
	}
	for l := range strings.Lines(tasks) {
		f := strings.Fields(l)
		if len(f) < 2 || "containerd://"+f[0] != strings.TrimSpace(id) {
			continue
		}
		out, err := s.try(c.M, "sh", "-c", "timeout 3 nsenter -t "+f[1]+" -n bash -c 'exec 3<>/dev/tcp/"+c.M.Addr.String()+"/6443' 2>&1 && echo reached || echo no way")
		if err != nil {
			return err.Error()
		}
		return out
	}
	return "no task of " + id + " in " + tasks
}

// joins lets a second machine in with a token that the first one made.
func (s *site) joins(c *k3shost.Cluster) {
	t := s.t
	t.Helper()
	token := s.run(c.M, "clawbox", "token", "create", "--ttl", "5m")
	m := s.boot("node-2")
	join := func(token string) (string, error) {
		return s.try(m, "/stick/installer", "join", "/stick", "--key", "/stick/test.vkey", "--server", "https://"+c.M.Addr.String()+":6443", "--token", token,
			"--operator", "A Test", "--start", "none", "--accept", "cgroup-v1", "--accept", "tier-T4", "--accept", "landlock-old", "--accept", "volatile-state", "--accept", "clock-unsure")
	}
	if out, err := join("secret"); err == nil || !strings.Contains(err.Error()+out, "does not name the server") {
		t.Errorf("a token that is none: %v %s", err, out)
	}
	if out, err := join(token); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.serve(m)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	k, err := m.StartK3s(ctx, k3shost.K3s{Version: "1.35", Placed: true, Server: c})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitNode(ctx, "node-2"); err != nil {
		t.Errorf("%v\n%s", err, k.Tail(40))
	}
}
