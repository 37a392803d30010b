package k3shost_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/clawbox/clawbox/airgap-manifests/k3s"
	"github.com/clawbox/clawbox/internal/k3shost"
)

// talker is a pod on one node that says its name to whoever connects.
const talker = `
apiVersion: v1
kind: Pod
metadata: {name: %[2]s, namespace: %[1]s, labels: {app: %[2]s}}
spec:
  nodeName: %[3]s
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, runAsUser: 10001, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: main
      image: clawbox.internal/busybox:debian
      command: [sh, -c, "while true; do echo %[2]s | nc -l -p 8080; done"]
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
`

// settled is how long a new node may take until it enforces policies.
const settled = 30 * time.Second

// TestTwoNodes joins a second machine, and has pods on both talk where no
// policy forbids it, and fail to where a tenant's default does.
func TestTwoNodes(t *testing.T) {
	dir := artifacts(t, "1.35")
	lan, state := newLAN(t), t.TempDir()
	images := filepath.Join(dir, "1.35", "images")
	o := k3shost.Options{Name: "testtwonodes-a", Dir: filepath.Join(state, "a"), LAN: lan, Artifacts: dir}
	a := boot(t, o)
	serve(t, a, images)
	c := start(t, a, k3shost.K3s{Version: "1.35"})
	o.Name, o.Dir = "testtwonodes-b", filepath.Join(state, "b")
	b := boot(t, o)
	serve(t, b, images)
	if _, err := b.StartK3s(t.Context(), k3shost.K3s{Version: "1.35", Images: k3s.SourceImages, Server: c}); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitNode(within(t, 3*time.Minute), b.Name); err != nil {
		t.Fatal(err)
	}
	tenant, err := k3s.Tenant{Name: "acme"}.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	kubectl(t, c, string(tenant), "apply", "--server-side", "-f", "-")
	kubectl(t, c, "", "create", "namespace", "open")
	for _, ns := range []string{"open", "acme"} {
		for pod, node := range map[string]string{"one": a.Name, "two": b.Name} {
			kubectl(t, c, fmt.Sprintf(talker, ns, pod, node), "apply", "-f", "-")
		}
		for _, pod := range []string{"one", "two"} {
			if err := c.WaitPod(within(t, 2*time.Minute), ns, "app="+pod); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, q := range []struct {
		from, to string // namespace/pod
		heard    bool
	}{
		{"open/one", "open/two", true},
		{"open/two", "open/one", true},
		{"acme/one", "acme/two", false},
		{"acme/two", "acme/one", false},
		{"open/one", "acme/two", false},
		{"acme/one", "open/two", false},
	} {
		ns, pod, _ := strings.Cut(q.from, "/")
		toNS, to, _ := strings.Cut(q.to, "/")
		ip := kubectl(t, c, "", "get", "pod", "-n", toNS, to, "-o", "jsonpath={.status.podIP}")
		// A node that has just joined enforces policies some seconds after its first
		// pod is ready (docs/threat-model.md).
		for start := time.Now(); ; time.Sleep(time.Second) {
			out, _ := c.Kubectl(within(t, 30*time.Second), nil, "exec", "-n", ns, pod, "--", "nc", "-w", "2", ip, "8080") // its status is no sign
			heard := strings.TrimSpace(out) == to
			if heard == q.heard {
				t.Logf("%s to %s (%s): as it should be after %.1f s", q.from, q.to, ip, time.Since(start).Seconds())
				break
			}
			if q.heard || time.Since(start) > settled {
				t.Errorf("%s to %s (%s): heard %q, want an answer: %v", q.from, q.to, ip, out, q.heard)
				break
			}
			t.Logf("%s to %s (%s): heard %q %.1f s after it was first asked", q.from, q.to, ip, out, time.Since(start).Seconds())
		}
	}
	names(t, c)
	hardened(t, c)
	report(t, a)
}

// names asks the cluster's DNS for a name inside and one outside.
func names(t *testing.T, c *k3shost.Cluster) {
	t.Helper()
	if err := c.WaitPod(within(t, 2*time.Minute), "kube-system", "k8s-app=kube-dns"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"kubernetes.default.svc.cluster.local": "10.43.0.1", "example.com": "NXDOMAIN"} {
		out, err := c.Kubectl(within(t, 30*time.Second), nil, "exec", "-n", "open", "two", "--", "sh", "-c", "nslookup "+name+" 2>&1")
		if !strings.Contains(out, want) {
			t.Errorf("%s: got %q (%v), want %s", name, out, err, want)
		}
	}
}
