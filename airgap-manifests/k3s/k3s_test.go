package k3s_test

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"

	yaml "go.yaml.in/yaml/v4"

	"github.com/clawbox/clawbox/airgap-manifests/k3s"
)

func server() k3s.Node {
	return k3s.Node{Role: k3s.Server, Name: "box", IP: netip.MustParseAddr("10.77.0.2"), Iface: "eth0", Registry: "http://127.0.0.1:5000", Images: k3s.SourceImages}
}

func agent() k3s.Node {
	n := server()
	n.Role, n.Server = k3s.Agent, "https://10.77.0.2:6443"
	return n
}

// files maps base names to contents.
func files(t *testing.T, n k3s.Node) map[string][]byte {
	t.Helper()
	fs, err := n.Files()
	if err != nil {
		t.Fatal(err)
	}
	m := map[string][]byte{}
	for _, f := range fs {
		if !strings.HasPrefix(f.Path, "/") || m[f.Path[strings.LastIndex(f.Path, "/")+1:]] != nil {
			t.Errorf("path %s: want an absolute one, once", f.Path)
		}
		if strings.Contains(f.Path, "config.yaml") && f.Mode != 0o600 {
			t.Errorf("%s has mode %v", f.Path, f.Mode)
		}
		m[f.Path[strings.LastIndex(f.Path, "/")+1:]] = f.Data
	}
	return m
}

// docs decodes a YAML stream.
func docs(t *testing.T, b []byte) (ds []map[string]any) {
	t.Helper()
	d := yaml.NewDecoder(bytes.NewReader(b))
	for {
		var m map[string]any
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			return ds
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, b)
		}
		ds = append(ds, m)
	}
}

// at walks down keys; nil where one is missing.
func at(v any, keys ...string) any {
	for _, k := range keys {
		m, _ := v.(map[string]any)
		v = m[k]
	}
	return v
}

func TestServerConfig(t *testing.T) {
	fs := files(t, server())
	c := docs(t, fs["config.yaml"])[0]
	for k, want := range map[string]any{
		"secrets-encryption": true, "protect-kernel-defaults": true, "disable-default-registry-endpoint": true, "disable-cloud-controller": true,
		"disable-helm-controller": true, "flannel-backend": "host-gw", "pause-image": k3s.SourceImages.Pause, "resolv-conf": "/etc/rancher/k3s/resolv.conf",
		"node-ip": "10.77.0.2", "write-kubeconfig-mode": "0600",
	} {
		if c[k] != want {
			t.Errorf("%s: %v, want %v", k, c[k], want)
		}
	}
	for list, want := range map[string][]string{
		"kube-apiserver-arg": {"anonymous-auth=false", "admission-control-config-file=/etc/rancher/k3s/admission.yaml", "audit-policy-file=/etc/rancher/k3s/audit.yaml"},
		"kubelet-arg":        {"anonymous-auth=false", "seccomp-default=true", "read-only-port=0", "eviction-pressure-transition-period=1m"},
		"disable":            {"coredns", "traefik", "metrics-server", "servicelb", "local-storage"},
	} {
		for _, w := range want {
			if l, _ := c[list].([]any); !slices.Contains(l, any(w)) {
				t.Errorf("%s lacks %s: %v", list, w, l)
			}
		}
	}
	if strings.Contains(string(fs["config.yaml"]), "fail-cgroupv1") {
		t.Error("cgroup v1 is tolerated on a host that has v2")
	}
	n := server()
	n.Cgroup1, n.NoSysResource, n.Exempt = true, true, []string{"clawbox-system"}
	fs = files(t, n)
	if !strings.Contains(string(fs["config.yaml"]), "fail-cgroupv1=false") {
		t.Error("cgroup v1 is not tolerated on a host that has nothing else")
	}
	if !strings.HasPrefix(string(fs["config-v3.toml.tmpl"]), "imports = ") || fs["containerd-lacks-sys-resource.toml"] == nil {
		t.Errorf("no import for a root without CAP_SYS_RESOURCE:\n%s", fs["config-v3.toml.tmpl"])
	}
	ps := docs(t, fs["admission.yaml"])[0]["plugins"].([]any)
	if l := at(ps[0], "configuration", "exemptions", "namespaces"); len(l.([]any)) != 2 {
		t.Errorf("exempt: %v", l)
	}
}

func TestOneRegistry(t *testing.T) {
	for _, n := range []k3s.Node{server(), agent()} {
		fs := files(t, n)
		r := docs(t, fs["registries.yaml"])[0]
		ms, _ := r["mirrors"].(map[string]any)
		if len(r) != 1 || len(ms) != 1 || at(ms, "*", "endpoint").([]any)[0] != "http://127.0.0.1:5000" {
			t.Errorf("registries: %v", r)
		}
		if docs(t, fs["config.yaml"])[0]["disable-default-registry-endpoint"] != true {
			t.Error("containerd may ask the registry that an image names")
		}
		if !strings.Contains(string(fs["config-v3.toml.tmpl"]), `{{ template "base" . }}`) || !strings.Contains(string(fs["config-v3.toml.tmpl"]), k3s.NRISocket) {
			t.Errorf("containerd's template:\n%s", fs["config-v3.toml.tmpl"])
		}
	}
}

// TestNoWayOut reads the DNS configuration for anything that would ask another.
func TestNoWayOut(t *testing.T) {
	fs := files(t, server())
	for line := range strings.Lines(string(fs["resolv.conf"])) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" && f[1] != "127.0.0.1" {
			t.Errorf("resolv.conf: %s", line)
		}
	}
	var core string
	for _, d := range docs(t, fs["clawbox-coredns.yaml"]) {
		if d["kind"] == "ConfigMap" {
			core, _ = at(d, "data", "Corefile").(string)
		}
	}
	for _, never := range []string{"forward", "proxy", "/etc/resolv.conf", "import"} {
		if strings.Contains(core, never) {
			t.Errorf("the Corefile has %q", never)
		}
	}
	if !strings.Contains(core, "rcode NXDOMAIN") || !strings.Contains(core, "kubernetes cluster.local") {
		t.Errorf("Corefile:\n%s", core)
	}
}

func TestAgentConfig(t *testing.T) {
	fs := files(t, agent())
	c := docs(t, fs["config.yaml"])[0]
	if c["server"] != "https://10.77.0.2:6443" || c["token-file"] != k3s.TokenFile || c["kube-apiserver-arg"] != nil {
		t.Errorf("agent's config: %v", c)
	}
	for _, f := range []string{"audit.yaml", "admission.yaml", "clawbox-coredns.yaml"} {
		if fs[f] != nil {
			t.Errorf("an agent gets %s", f)
		}
	}
}

func TestNodeErrors(t *testing.T) {
	for _, c := range []struct {
		change func(*k3s.Node)
		want   string
	}{
		{func(n *k3s.Node) { n.Role = "both" }, `role "both"`},
		{func(n *k3s.Node) { n.Name = "box\nserver: x" }, "DNS label"},
		{func(n *k3s.Node) { n.IP = netip.Addr{} }, "address on eth0"},
		{func(n *k3s.Node) { n.Iface = "eth0, other" }, "network interface"},
		{func(n *k3s.Node) { n.Registry = "http://user:pw@x" }, "Registry"},
		{func(n *k3s.Node) { n.Registry = "127.0.0.1:5000" }, "Registry"},
		{func(n *k3s.Node) { n.Images.CoreDNS = "" }, "CoreDNS"},
		{func(n *k3s.Node) { n.Images.Pause = "pause:1" }, "with its registry"},
		{func(n *k3s.Node) { n.Server = "https://x:6443" }, "only agents join"},
		{func(n *k3s.Node) { n.Role = k3s.Agent }, "Server"},
		{func(n *k3s.Node) { n.Exempt = []string{"a]"} }, "a namespace"},
	} {
		n := server()
		c.change(&n)
		if _, err := n.Files(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want an error with %q", err, c.want)
		}
	}
}

func TestTenant(t *testing.T) {
	y, err := k3s.Tenant{Name: "acme", Memory: "2Gi"}.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[any]map[string]any{}
	for _, d := range docs(t, y) {
		kinds[d["kind"]] = d
		if ns := at(d, "metadata", "namespace"); d["kind"] != "Namespace" && ns != "acme" {
			t.Errorf("%v is in namespace %v", d["kind"], ns)
		}
	}
	np := kinds["NetworkPolicy"]
	if sel, _ := at(np, "spec", "podSelector").(map[string]any); sel == nil || len(sel) != 0 {
		t.Errorf("the policy selects %v, want every pod", sel)
	}
	if l, _ := at(np, "spec", "policyTypes").([]any); len(l) != 2 || at(np, "spec", "ingress") != nil || at(np, "spec", "egress") != nil {
		t.Errorf("not a default deny: %v", np)
	}
	if at(kinds["ServiceAccount"], "automountServiceAccountToken") != false {
		t.Error("pods get a token by default")
	}
	if hard := at(kinds["ResourceQuota"], "spec", "hard"); at(hard, "limits.memory") != "2Gi" || at(hard, "pods") != "20" || at(hard, "services.nodeports") != "0" {
		t.Errorf("quota %v", hard)
	}
	if at(kinds["Namespace"], "metadata", "labels", "pod-security.kubernetes.io/enforce") != "restricted" || kinds["LimitRange"] == nil {
		t.Errorf("namespace %v", kinds["Namespace"])
	}
}

func TestTenantErrors(t *testing.T) {
	for _, c := range []struct {
		t    k3s.Tenant
		want string
	}{
		{k3s.Tenant{Name: "kube-system"}, "belongs to the cluster"},
		{k3s.Tenant{Name: "a/b"}, "DNS label"},
		{k3s.Tenant{Name: "a", Memory: "8 GB"}, `Memory "8 GB"`},
		{k3s.Tenant{Name: "a", Level: "none"}, "level"},
		{k3s.Tenant{Name: "a", Pods: -1}, "-1 pods"},
	} {
		if _, err := c.t.Manifest(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want an error with %q", c.t, err, c.want)
		}
	}
}
