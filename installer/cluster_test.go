package installer

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/installer/host"
)

// makeUpCluster is a release with what a cluster needs.
func makeUpCluster() *madeUp { return clusterRelease(1, "1.34.0+k3s1") }

// clusterRelease is one with that K3s.
func clusterRelease(sequence int64, version string) *madeUp {
	m := makeUp(sequence, policyOf(sequence))
	m.Components = []manifest.Component{{Name: k3sComponent, Version: version}}
	m.add(Item{Name: "k3s", Kind: "file", Path: k3sPath, Mode: 0o755}, "\x7fELF k3s "+version)
	m.add(Item{Name: "clawbox-cluster", Kind: "file", Path: clusterPath, Mode: 0o755}, standInProgram)
	for _, n := range []string{"pause", "coredns", "local-path-provisioner", "busybox", "vllm", "nim", "nvidia-device-plugin", "victoria-metrics", "dcgm-exporter"} {
		m.add(Item{Name: n, Kind: "image", Platforms: []string{"linux/amd64"}}, n)
	}
	m.add(Item{Name: "clawbox-runc", Kind: "file", Path: runtimePath, Mode: 0o755}, "\x7fELF clawbox-runc")
	return m
}

// standInProgram is a clawbox-cluster that says what it was asked.
const standInProgram = "#!/bin/sh\necho working >&2\nif [ $1 = ready ]; then [ $3 = good ] || { echo no such node >&2; exit 1; }; " +
	"elif [ $1 = account ]; then printf '{\"token\":\"%s\",\"ca\":\"Q0E=\"}' $2.$3.$4; " +
	"else echo \"$1 $2 $(wc -c) ${HELM_DRIVER}\"; fi\n"

// nodeFacts is a machine that can be a node, with two GPUs.
func nodeFacts(root string) host.Facts {
	f := goodFacts(root)
	f.Cgroup.Controllers = []string{"cpu", "cpuset", "memory", "pids"}
	f.Options, f.Modules, f.Sysctls = map[string]string{}, map[string]string{}, maps.Clone(kubeletSysctls)
	for _, o := range host.KernelOptions {
		f.Options[o] = "y"
	}
	for _, m := range host.KernelModules {
		f.Modules[m] = "loadable"
	}
	for _, l := range leastSysctls {
		f.Sysctls[l.name] = "1000000"
	}
	f.Sysctls["net.ipv4.ip_forward"] = "1"
	f.ProcRW, f.Kmsg, f.Shared, f.Resource, f.AppArmor, f.Lockdown = true, true, true, true, true, "integrity"
	f.Tools = map[string]string{"modprobe": "/sbin/modprobe", "iptables": "/usr/sbin/iptables", "apparmor_parser": "/sbin/apparmor_parser", "nvidia-container-runtime": "/usr/bin/nvidia-container-runtime"}
	f.Networks, f.Addresses, f.Routes = []host.Network{{Prefix: "10.0.2.0/24", Iface: "eno1"}}, []string{"10.0.2.7"}, []string{"eno1"}
	f.Names, f.MachineID = host.Names{Fallback: true}, strings.Repeat("0a", 16)
	f.Places = map[string]host.Place{}
	for _, p := range host.PlacePaths {
		f.Places[p] = host.Place{FSType: "ext4", Options: []string{"rw"}, Size: 200 << 30, Free: 100 << 30}
	}
	f.NVIDIA = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build"
	for _, a := range []string{"0000:01:00.0", "0000:41:00.0"} {
		f.GPUs = append(f.GPUs, host.GPU{Address: a, Device: "0x2330", Driver: "nvidia", Model: "NVIDIA H100 80GB HBM3", Memory: 81559 << 20, ECC: true})
	}
	return f
}

func clusterAnswers(root string, r Release) Answers {
	a := goodAnswers(root, r)
	a.Profile, a.Agents = "cluster", a.Agents[:1]
	a.Cluster = ClusterAnswers{
		Role: RoleServer, Telemetry: true, Tenants: []TenantAnswers{{Name: "acme", CPU: "2", Memory: "4Gi"}},
		Models: []ServingAnswers{{Model: "tiny", Engine: "vllm", Image: "vllm", GPUs: 1}},
	}
	return a
}

func agentAnswers(root string, r Release) Answers {
	a := clusterAnswers(root, r)
	a.Cluster = ClusterAnswers{Role: RoleAgent, Server: "https://10.0.2.1:6443"}
	return a
}

func TestClusterAnswers(t *testing.T) {
	r := makeUpCluster().Release
	for want, mod := range map[string]func(*ClusterAnswers){
		"":                 func(*ClusterAnswers) {},
		"cluster.role":     func(c *ClusterAnswers) { c.Role = "master" },
		"cluster.node":     func(c *ClusterAnswers) { c.Node = "Box" },
		"cluster.address":  func(c *ClusterAnswers) { c.Address = "127.0.0.1" },
		"none unless role": func(c *ClusterAnswers) { c.Server = "https://10.0.0.1:6443" },
		"on the server":    func(c *ClusterAnswers) { c.Role, c.Server = RoleAgent, "https://10.0.0.1:6443" },
		"nothing resolves": func(c *ClusterAnswers) { *c = ClusterAnswers{Role: RoleAgent, Server: "https://box:6443"} },
		"such as https":    func(c *ClusterAnswers) { *c = ClusterAnswers{Role: RoleAgent, Server: "http://10.0.0.1:6443"} },
		"each tenant once": func(c *ClusterAnswers) { c.Tenants = append(c.Tenants, c.Tenants[0]) },
		"appliance's own":  func(c *ClusterAnswers) { c.Tenants[0].Name = gpuNamespace },
		"DNS label":        func(c *ClusterAnswers) { c.Tenants[0].Name = "A{{b}}" },
		"quantity":         func(c *ClusterAnswers) { c.Tenants[0].CPU = "two" },
		"one of ollama":    func(c *ClusterAnswers) { c.Models[0].Engine = "tgi" },
		"each model once":  func(c *ClusterAnswers) { c.Models = append(c.Models, c.Models[0]) },
		"engine's image":   func(c *ClusterAnswers) { c.Models[0].Image = "" },
		"0 to 16":          func(c *ClusterAnswers) { c.Models[0].GPUs = 17 },
		"runs on a CPU":    func(c *ClusterAnswers) { c.Models[0].GPUs = 0 },
		"cache was filled": func(c *ClusterAnswers) { c.Models[0].Engine = "nim-cache" },
	} {
		a := clusterAnswers("/", r)
		mod(&a.Cluster)
		err := a.Validate()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("want %q; got %v", want, err)
		}
	}
	// A file of such answers comes back; a solo plan's digest knows nothing of them.
	a := clusterAnswers("/", r)
	f := filepath.Join(t.TempDir(), "answers.yaml")
	b, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := LoadAnswers(f, r); err != nil || !reflect.DeepEqual(a, again) {
		t.Errorf("%s does not come back: %+v, %v", b, again, err)
	}
	if b, _ := json.Marshal(goodAnswers("/", r)); strings.Contains(string(b), "cluster") {
		t.Errorf("%s: the digest of a plan made by an earlier release changes", b)
	}
	solo := goodAnswers("/", r)
	solo.Cluster.Role = RoleServer
	if err := solo.Validate(); err == nil || !strings.Contains(err.Error(), "profile: cluster") {
		t.Errorf("solo with a role: got %v", err)
	}
}

// standIn is a cluster that remembers what it was asked; package charts has the
// real one, and its test a real K3s.
type standIn struct {
	waited, asked string
	charts        []Chart
	account       Account
	err           error
	wanted        Settled
	sick          error  // of Settled
	sickWith      string // only with that K3s
	version       string // of the API server
}

func (s *standIn) Ready(_ context.Context, _, name string) error { s.waited = name; return s.err }
func (s *standIn) Version(_ context.Context, kubeconfig string) (string, error) {
	s.asked = kubeconfig
	return s.version, s.err
}

func (s *standIn) Account(_ context.Context, kubeconfig, namespace, secret string) (Account, error) {
	s.asked = kubeconfig + " " + namespace + " " + secret
	return s.account, s.err
}

func (s *standIn) Settled(_ context.Context, _ string, w Settled) error {
	s.wanted = w
	if s.sickWith != "" && w.Version != s.sickWith {
		return nil
	}
	return s.sick
}

func (s *standIn) Apply(_ context.Context, _ string, cs []Chart) (string, error) {
	s.charts = cs
	return "applied", s.err
}

func TestInstallCluster(t *testing.T) {
	root, m := fast(t), makeUpCluster()
	a := clusterAnswers(root, m.Release)
	a.Cluster.Models = nil // made-up models are no ModelPack; TestServing has those
	p, err := NewPlan(nodeFacts(root), a, m.Release)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		res, err := Run(t.Context(), p, m.env())
		if err != nil || !strings.Contains(res.Next, "cluster apply") {
			t.Fatalf("got %+v, %v", res, err)
		}
	}
	for p, mode := range map[string]fs.FileMode{
		"etc/rancher/k3s/config.yaml": 0o600, "etc/rancher/k3s/registries.yaml": 0o600, "etc/sysctl.d/90-clawbox-k3s.conf": 0o644,
		"var/lib/rancher/k3s/server": 0o700, "var/lib/rancher/k3s/agent": 0o755, "usr/local/bin/kubectl": 0o755, "var/lib/clawbox/install/charts.json": 0o600,
	} {
		st, err := os.Stat(filepath.Join(root, p))
		if err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: got %v, %v; want mode %o", p, st, err, mode)
		}
	}
	b, err := os.ReadFile(filepath.Join(root, "etc/rancher/k3s/config.yaml"))
	if err != nil || !strings.Contains(string(b), "node-ip: 10.0.2.7") || !strings.Contains(string(b), "flannel-iface: eno1") || !strings.Contains(string(b), "pause-image: clawbox.internal/pause:0.1.1@sha256:") {
		t.Errorf("K3s's configuration: %s, %v", b, err)
	}
	run, err := LoadRunning(root)
	var names []string
	for _, c := range run.Charts {
		names = append(names, c.Name)
	}
	if want := []string{"space-clawbox-system", "space-clawbox-gpu", "space-clawbox-models", "space-acme", "agents", "device-plugin", "telemetry"}; err != nil || run.Role != RoleServer || run.Node != "edge-7" || !slices.Equal(names, want) {
		t.Errorf("charts: got %v, %v; want %v", names, err, want)
	}
	if _, err := LoadRunning(fast(t)); err == nil || !strings.Contains(err.Error(), "node of the profile cluster") {
		t.Errorf("charts of nothing: %v", err)
	}
}

// The slot's program is run with an environment of its own, hears charts on
// standard input, and its last words become the error.
func TestClusterProgram(t *testing.T) {
	l := Layout{Prefix: t.TempDir()}
	p := filepath.Join(l.Current(), clusterPath)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(standInProgram), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HELM_DRIVER", "memory")
	var heard []string
	c := l.Cluster(func(s string) { heard = append(heard, s) })
	if err := c.Ready(t.Context(), "/k", "good"); err != nil {
		t.Error(err)
	}
	if err := c.Ready(t.Context(), "/k", "bad"); err == nil || !strings.Contains(err.Error(), "no such node") {
		t.Errorf("got %v", err)
	}
	if a, err := c.Account(t.Context(), "k", "ns", "s"); err != nil || a.Token != "k.ns.s" || string(a.CA) != "CA" {
		t.Errorf("account: %+v, %v", a, err)
	}
	did, err := c.Apply(t.Context(), "/k", []Chart{{Name: "a"}})
	if err != nil || !strings.HasPrefix(did, "apply /k ") || strings.Contains(did, "memory") || !slices.Contains(heard, "working") {
		t.Errorf("got %q, %v; heard %v", did, err, heard)
	}
}

func TestInstallAgent(t *testing.T) {
	root, m := fast(t), makeUpCluster()
	p, err := NewPlan(nodeFacts(root), agentAnswers(root, m.Release), m.Release)
	if err != nil {
		t.Fatal(err)
	}
	token := "K10" + strings.Repeat("a", 64) + "::abcdef.0123456789abcdef"
	for _, row := range []struct{ token, want string }{{"", "clawbox token create"}, {"hunter2", "does not name"}, {token + "\nx", "does not name"}, {token, ""}, {"", ""}} {
		env := m.env()
		env.Token = row.token
		_, err := Run(t.Context(), p, env)
		if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("token %q: got %v; want %q", row.token, err, row.want)
		}
		if row.token != "" && err != nil && strings.Contains(err.Error(), row.token) {
			t.Errorf("the message shows the token: %v", err)
		}
	}
	st, err := os.Stat(filepath.Join(root, "etc/rancher/k3s/token"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("token: %v, %v", st, err)
	}
	for _, s := range p.Steps {
		if s.ID == "charts" || s.ID == "models" {
			t.Errorf("an agent's plan has the step %s", s.ID)
		}
	}
	// It asks before it runs an agent's pod, and has no account to make one.
	if st, err := os.Stat(Layout{Prefix: root}.Runtime()); err != nil || st.Mode().Perm() != 0o755 || there(Layout{Prefix: root}.Access()) {
		t.Errorf("the runtime on a node that joined: %v, %v", st, err)
	}
	b, _ := json.Marshal(p)
	if strings.Contains(string(b), token) {
		t.Error("the plan holds the token")
	}
}

// With systemd the plan ends with K3s and the charts; what fails is named and
// nothing is enabled.
func TestStartCluster(t *testing.T) {
	m := makeUpCluster()
	a := clusterAnswers("/", m.Release)
	a.Start = "systemd"
	p, err := NewPlan(nodeFacts("/"), a, m.Release)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(p.Steps); p.Steps[n-3].ID != "k3s" || p.Steps[n-2].ID != "charts" || p.Steps[n-1].ID != "pods" {
		t.Errorf("the last steps are %v", p.Steps[n-3:])
	}
	a.Root = t.TempDir()
	c := &standIn{}
	var ran []string
	r := &run{Plan: Plan{Answers: a, Facts: nodeFacts(a.Root), Release: m.Release}, l: a.layout(), changed: map[string]string{}, env: Env{
		Cluster:   c,
		Systemctl: func(_ context.Context, args ...string) error { ran = append(ran, strings.Join(args, " ")); return nil },
	}}
	for _, d := range []string{r.l.Install(), filepath.Dir(r.l.Command()), filepath.Dir(r.l.k3sWants())} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	slot := r.l.Slot(m.Version, m.Sequence)
	if err := os.MkdirAll(filepath.Join(slot, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(slot, runtimePath), "runtime")
	if _, err := r.node(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.err = errors.New("kubelet says no")
	if _, err := r.startK3s(t.Context()); err == nil || !strings.Contains(err.Error(), "journalctl -u k3s") || linkTo(r.l.k3sWants(), r.l.k3sUnit()) {
		t.Errorf("a node that does not get ready: %v", err)
	}
	c.err = nil
	if _, err := r.startK3s(t.Context()); err != nil || c.waited != "edge-7" || !linkTo(r.l.k3sWants(), r.l.k3sUnit()) {
		t.Errorf("got %v, waited for %q", err, c.waited)
	}
	if !slices.Contains(ran, "restart k3s.service") {
		t.Errorf("ran %v", ran)
	}
	if did, err := r.charts(t.Context()); err != nil || did != "applied" || len(c.charts) < 6 {
		t.Errorf("got %q, %v, %d charts", did, err, len(c.charts))
	}
	unit, err := os.ReadFile(r.l.k3sUnit())
	if err != nil || !strings.Contains(string(unit), "ExecStart="+r.l.Current()+"/bin/clawbox cluster serve server\n") {
		t.Errorf("unit: %s, %v", unit, err)
	}
}

// Each engine gets its own contract; what is served is the router's upstream.
func TestServing(t *testing.T) {
	r := makeUpCluster().Release
	tiny, _ := r.item("model", "tiny")
	folder := modelFolder(tiny)
	for engine, want := range map[string][]string{
		"vllm":       {"--model /models/tiny --served-model-name tiny --port 8000 --tensor-parallel-size 2", "HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "mount=/models/tiny"},
		"nim-cache":  {"NIM_CACHE_PATH=/opt/nim/.cache", "NIM_MODEL_PROFILE=p1", "writable=true", "mount=/opt/nim/.cache", "helper=clawbox.internal/busybox"},
		"nim-path":   {"NIM_MODEL_PATH=/opt/nim/models/tiny", "writable=false"},
		"nim-native": {"NIM_ENGINE_MODEL_PATH=/opt/nim/models/tiny"},
		"ollama":     {"serve", "OLLAMA_MODELS=/models", "path=/var/lib/clawbox/models/" + folder + "/models"},
	} {
		a := clusterAnswers("/", r)
		a.Cluster.Models = []ServingAnswers{{Model: "tiny", Engine: engine, Image: "nim", GPUs: 2, Profile: "p1"}}
		cs, err := a.Charts(nodeFacts("/"), r)
		if err != nil {
			t.Fatal(err)
		}
		v := cs[len(cs)-1].Values
		flat := flatten("", v)
		for _, w := range want {
			if !strings.Contains(flat, w) {
				t.Errorf("%s: got %s; want %s", engine, flat, w)
			}
		}
		for _, secret := range []string{"NGC_API_KEY", "HF_TOKEN"} {
			if strings.Contains(flat, secret) {
				t.Errorf("%s: %s is set", engine, secret)
			}
		}
		if u := a.Config(r).Upstreams["tiny"]; u != (config.Upstream{URL: "http://10.43.0.64:8000/v1", Local: true}) || v["address"] != "10.43.0.64" {
			t.Errorf("%s: upstream %+v, address %v", engine, u, v["address"])
		}
	}
}

func TestQuantity(t *testing.T) {
	for s, want := range map[string]float64{"4": 4, "500m": 0.5, "1.5": 1.5, "8Gi": 8 << 30, "2Ti": 2 << 40, "3M": 3e6, "": 0} {
		if got := quantity(s); got != want {
			t.Errorf("%s: got %v; want %v", s, got, want)
		}
	}
}

// flatten writes values as k=v, lists as their words.
func flatten(key string, v any) string {
	switch v := v.(type) {
	case map[string]any:
		var out []string
		for _, k := range slices.Sorted(maps.Keys(v)) {
			out = append(out, flatten(k, v[k]))
		}
		return strings.Join(out, " ")
	case []any:
		var out []string
		for _, x := range v {
			out = append(out, x.(string))
		}
		return strings.Join(out, " ")
	}
	b, _ := json.Marshal(v)
	return key + "=" + strings.Trim(string(b), `"`)
}
