package k3shost_test

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clawbox/clawbox/airgap-manifests/k3s"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/internal/k3shost"
	"github.com/clawbox/clawbox/registry"
)

// artifacts is what `make k3s` built. `make e2e-host` builds it and says where it
// is; without it these tests have nothing to run.
func artifacts(t *testing.T, versions ...string) string {
	t.Helper()
	dir := os.Getenv("CLAWBOX_K3S")
	if dir == "" {
		t.Skip("CLAWBOX_K3S is not set: K3s is built and tested by `make e2e-host`")
	}
	for _, v := range versions {
		if _, err := os.Stat(filepath.Join(dir, v, "bin/k3s")); err != nil {
			t.Fatalf("CLAWBOX_K3S=%s: %v", dir, err)
		}
	}
	return dir
}

// serve puts the registry of a store with the artifact's images where the node expects it.
func serve(t *testing.T, m *k3shost.Machine, images string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "store")
	if err := os.CopyFS(dir, os.DirFS(images)); err != nil {
		t.Fatal(err)
	}
	store, err := content.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	l, err := m.Listen("tcp", k3shost.RegistryAddr)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: registry.New(store, registry.Options{}), ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(l) }() // until closed
	t.Cleanup(func() { srv.Close() })
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// start starts a K3s and waits for its node and its DNS.
func start(t *testing.T, m *k3shost.Machine, o k3shost.K3s) *k3shost.Cluster {
	t.Helper()
	ctx := within(t, 4*time.Minute)
	o.Images = k3s.SourceImages
	c, err := m.StartK3s(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

func kubectl(t *testing.T, c *k3shost.Cluster, stdin string, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(within(t, time.Minute), []byte(stdin), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// agent is a pod that keeps what it has written, as the strictest Pod Security
// Standard allows it.
const agent = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: state, namespace: acme}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 16Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: agent, namespace: acme, labels: {app: agent}}
spec:
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, runAsUser: 10001, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: main
      image: clawbox.internal/busybox:debian
      command: [sh, -c, "echo started >> /state/log; exec sleep 1000000"]
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
      volumeMounts: [{name: state, mountPath: /state}]
  volumes: [{name: state, persistentVolumeClaim: {claimName: state}}]
`

// TestHost takes one node from nothing to 1.34 with an agent, to 1.35, through a
// power cut, to nothing.
func TestHost(t *testing.T) {
	k3sDir := artifacts(t, "1.34", "1.35")
	journey(t, k3sDir, "1.34", "1.35")
}

// TestHostNewest is the same without the upgrade, for a quick look.
func TestHostNewest(t *testing.T) {
	journey(t, artifacts(t, "1.35"), "1.35", "1.35")
}

func journey(t *testing.T, k3sDir, from, to string) {
	dir := t.TempDir()
	before := traces(t, dir)
	lan := newLAN(t)
	tap, err := lan.Tap()
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	o := k3shost.Options{Name: strings.ToLower(t.Name()), Dir: dir, LAN: lan, Artifacts: k3sDir}
	m := boot(t, o)
	images := filepath.Join(k3sDir, to, "images")
	serve(t, m, images)
	c := start(t, m, k3shost.K3s{Version: from})
	launch(t, c)
	hardened(t, c)

	uid := kubectl(t, c, "", "get", "pod", "-n", "acme", "agent", "-o", "jsonpath={.metadata.uid} {.status.containerStatuses[0].containerID}")
	if err := c.Stop(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	c = start(t, m, k3shost.K3s{Version: to})
	if err := c.WaitPod(within(t, time.Minute), "acme", "app=agent"); err != nil {
		t.Fatal(err)
	}
	if now := kubectl(t, c, "", "get", "pod", "-n", "acme", "agent", "-o", "jsonpath={.metadata.uid} {.status.containerStatuses[0].containerID}"); now != uid {
		t.Errorf("%s → %s: the agent's container was %s and is %s", from, to, uid, now)
	}
	report(t, m)
	if err := m.Halt(); err != nil {
		t.Fatal(err)
	}
	if now := traces(t, dir); !slices.Equal(now, before) {
		t.Errorf("left behind: before %v, now %v", before, now)
	}

	o.Addr = m.Addr
	m = boot(t, o)
	serve(t, m, images)
	c = start(t, m, k3shost.K3s{Version: to})
	err = c.Poll(within(t, 2*time.Minute), "the agent again after a power cut", func() (string, bool) {
		out, err := c.Kubectl(t.Context(), nil, "exec", "-n", "acme", "agent", "--", "cat", "/state/log")
		if err != nil {
			return err.Error(), false
		}
		return out, out == "started\nstarted\n"
	})
	if err != nil {
		t.Error(err)
	}
	report(t, m)
	if out := tap.Outside(); len(out) != 0 {
		t.Errorf("sent outside the cluster: %v", out)
	}
}

// launch makes a tenant and its agent, whose image containerd takes from the registry.
func launch(t *testing.T, c *k3shost.Cluster) {
	t.Helper()
	tenant, err := k3s.Tenant{Name: "acme"}.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitPod(within(t, 2*time.Minute), "kube-system", "app=local-path-provisioner"); err != nil {
		t.Fatal(err)
	}
	kubectl(t, c, string(tenant), "apply", "--server-side", "-f", "-")
	kubectl(t, c, agent, "apply", "-f", "-")
	if err := c.WaitPod(within(t, 2*time.Minute), "acme", "app=agent"); err != nil {
		t.Fatalf("%v\n%s", err, kubectl(t, c, "", "get", "events", "-A"))
	}
	if err := c.WaitPod(within(t, 2*time.Minute), "kube-system", "k8s-app=kube-dns"); err != nil {
		t.Fatal(err)
	}
}

// hardened asks the running cluster for what its configuration promises.
func hardened(t *testing.T, c *k3shost.Cluster) {
	t.Helper()
	for _, q := range []struct{ what, line, want string }{
		{"NRI", "test -S " + k3s.NRISocket + " && echo yes", "yes"},
		{"audit log", "test -s " + k3s.AuditLog + " && echo yes", "yes"},
		{"secrets on disk", "grep -c k8s:enc: " + k3s.DataDir + "/server/db/state.db* | cut -d: -f2 | sort -n | tail -1 | grep -qv '^0$' && echo encrypted", "encrypted"},
		{"anonymous requests", "busybox wget -qO- --no-check-certificate https://" + c.M.Addr.String() + ":6443/api 2>&1 | grep -o '401'", "401"},
	} {
		out, err := c.M.Run(within(t, 20*time.Second), nil, "sh", "-c", q.line)
		if strings.TrimSpace(out) != q.want {
			t.Errorf("%s: got %q (%v), want %s", q.what, out, err, q.want)
		}
	}
	bad := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"bad","namespace":"acme"},"spec":{"hostNetwork":true,"containers":[{"name":"x","image":"clawbox.internal/busybox:debian"}]}}`
	if _, err := c.Kubectl(within(t, 20*time.Second), []byte(bad), "apply", "-f", "-"); err == nil || !strings.Contains(err.Error(), "PodSecurity") {
		t.Errorf("a pod on the host's network in a tenant's namespace: %v", err)
	}
}

// report prints how long each phase took.
func report(t *testing.T, m *k3shost.Machine) {
	t.Helper()
	for _, p := range m.Phases() {
		t.Logf("%8.2f s  %s", p.Took.Seconds(), p.Name)
	}
}
