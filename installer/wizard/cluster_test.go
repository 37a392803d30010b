package wizard

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/installer"
	"github.com/clawbox/clawbox/installer/host"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// clusterRelease is a release with K3s, two models and engines for them.
func clusterRelease() installer.Release {
	r := release()
	file := func(name, path string) {
		r.Items = append(r.Items, installer.Item{Name: name, Kind: "file", Path: path, Mode: 0o755, Size: 60 << 20, Digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("7", 64)}, Redistributable: true})
	}
	file("k3s", "bin/k3s")
	r.Components = []manifest.Component{{Name: "k3s", Version: "1.35.0+k3s1"}}
	file("clawbox-cluster", "bin/clawbox-cluster")
	file("clawbox-runc", "bin/clawbox-runc")
	for _, n := range []string{"pause", "coredns", "local-path-provisioner", "busybox", "nvidia-device-plugin", "victoria-metrics", "dcgm-exporter", "vllm", "nim-nano-8b"} {
		r.Items = append(r.Items, installer.Item{Name: n, Kind: "image", Ref: n + ":0.1.0", Size: 10 << 20, Digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("8", 64)}, Redistributable: true})
	}
	r.Items = append(r.Items, installer.Item{Name: "nano-8b", Kind: "model", Ref: "nano-8b:0.1.0", Size: 16 << 30, Digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("9", 64)}, Redistributable: true})
	r.Bytes = 17 << 30
	return r
}

// node is a machine with a GPU that can be a node.
func node() host.Facts {
	f := machine()
	f.Memory.Total = 64 << 30
	f.Cgroup.Controllers = []string{"cpu", "cpuset", "memory", "pids"}
	f.Options, f.Modules, f.Sysctls = map[string]string{}, map[string]string{}, map[string]string{"net.ipv4.ip_forward": "1"}
	for _, o := range host.KernelOptions {
		f.Options[o] = "y"
	}
	for _, m := range host.KernelModules {
		f.Modules[m] = "loaded"
	}
	f.ProcRW, f.Kmsg, f.Shared, f.Resource, f.MachineID = true, true, true, true, strings.Repeat("0a", 16)
	f.Tools = map[string]string{"iptables": "/usr/sbin/iptables", "nvidia-container-runtime": "/usr/bin/nvidia-container-runtime"}
	f.Networks, f.Addresses, f.Routes = []host.Network{{Prefix: "10.0.2.0/24", Iface: "eno1"}}, []string{"10.0.2.7"}, []string{"eno1"}
	f.Names.Fallback = true
	f.Places = map[string]host.Place{}
	for _, p := range host.PlacePaths {
		f.Places[p] = host.Place{FSType: "ext4", Options: []string{"rw"}, Size: 200 << 30, Free: 100 << 30}
	}
	f.NVIDIA = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build"
	f.GPUs = []host.GPU{{Address: "0000:01:00.0", Device: "0x27b8", Driver: "nvidia", Model: "NVIDIA L4", Memory: 23034 << 20}}
	return f
}

func TestServer(t *testing.T) {
	a, out, err := talkOf(t, node(), clusterRelease(), lines(
		"2", "", "Ann", "", // cluster
		"", "Box 1", "", "10.9.9.9", "", // server; a bad name, then the default; a foreign address, then its own
		"acme, lab=2", "acme, lab=2/4Gi", // bad bounds, then good ones
		"1", "2", "0", // both models
		"2", "", "p1", // tiny by NIM's cache, on the only GPU
		"1", "3", // nano-8b by vLLM on three: refused
		"2", "0", "1", "1", // so nano-8b alone
		"y", "0", "", "", "y")) // telemetry; agents, policy and hosts as they are
	if err != nil {
		t.Fatal(err)
	}
	want := installer.ClusterAnswers{
		Role: installer.RoleServer, Node: "edge-7", Address: "10.0.2.7", Telemetry: true,
		Tenants: []installer.TenantAnswers{{Name: "acme"}, {Name: "lab", CPU: "2", Memory: "4Gi"}},
		Models:  []installer.ServingAnswers{{Model: "nano-8b", Engine: "vllm", Image: "vllm", GPUs: 1}},
	}
	if a.Profile != "cluster" || !reflect.DeepEqual(a.Cluster, want) || len(a.Agents) != 1 {
		t.Errorf("got %+v with %d agents; want %+v", a.Cluster, len(a.Agents), want)
	}
	for _, s := range []string{`cluster.node: got "Box 1"`, `got "10.9.9.9"`, "lab=2/4Gi", "got models on 4 GPUs, 1 there", "model nano-8b: needs 20.6 GB of 24.2 GB on 1 GPU", "Install what the cluster runs"} {
		if !strings.Contains(out, s) {
			t.Errorf("the conversation lacks %q", s)
		}
	}
}

// Whatever the input stops at, no answer is made up.
func TestClusterInputEnds(t *testing.T) {
	whole := lines("2", "", "Ann", "", "1", "", "", "acme", "2", "0", "1", "1", "y", "0", "", "", "y")
	if _, _, err := talkOf(t, node(), clusterRelease(), whole); err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) {
		if a, _, err := talkOf(t, node(), clusterRelease(), whole[:n]); !errors.Is(err, ErrNoInput) {
			t.Errorf("cut after %q: got %+v, %v; want ErrNoInput", whole[:n], a, err)
		}
	}
}

func TestJoin(t *testing.T) {
	a, out, err := talkOf(t, node(), clusterRelease(), lines(
		"2", "", "Ann", "", "2", "node-2", "", "box:6443", "https://10.0.2.1:6443", "0", "", "", "y"))
	if err != nil {
		t.Fatal(err)
	}
	want := installer.ClusterAnswers{Role: installer.RoleAgent, Node: "node-2", Address: "10.0.2.7", Server: "https://10.0.2.1:6443"}
	if !reflect.DeepEqual(a.Cluster, want) {
		t.Errorf("got %+v; want %+v", a.Cluster, want)
	}
	for _, s := range []string{"--token-file", "got \"box:6443\""} {
		if !strings.Contains(out, s) {
			t.Errorf("the conversation lacks %q", s)
		}
	}
}

// A machine that can be no node ends the wizard after the role, before the
// questions about it.
func TestNoNode(t *testing.T) {
	f := node()
	f.Modules["br_netfilter"] = ""
	var pre *installer.ErrPreflight
	if _, out, err := talkOf(t, f, clusterRelease(), lines("2", "", "Ann", "", "")); !errors.As(err, &pre) || !strings.Contains(err.Error(), "br_netfilter") || strings.Contains(out, "Its name") {
		t.Errorf("got %v", err)
	}
}

func TestParseTenants(t *testing.T) {
	got, err := parseTenants(" acme , lab=2/4Gi,")
	if want := []installer.TenantAnswers{{Name: "acme"}, {Name: "lab", CPU: "2", Memory: "4Gi"}}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for _, s := range []string{"a=", "a=2", "a=/4Gi", "a=2/"} {
		if _, err := parseTenants(s); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
}

// The same questions as forms.
func TestClusterTerminal(t *testing.T) {
	settle = 600 * time.Millisecond
	s, end := onTerminalOf(t, node(), clusterRelease())
	s.await(t, "Profile", "\x1b[B\r") // down: cluster
	s.await(t, "Your name", "\rAnn\r\r")
	s.await(t, "This node", "\r")
	s.await(t, "Its name", "\r\r")
	s.await(t, "Tenants, as", "acme\r")
	s.await(t, "Models that", "\x1b[B \r") // the second
	s.await(t, "Served by", "\r\r")
	s.await(t, "Collect metrics", "y")
	s.await(t, "Agents that", "\r")
	s.await(t, "Policy of", "\r")
	s.await(t, "Names that", "\r")
	s.await(t, "model nano-8b: needs 20.6 GB", "")
	s.await(t, "Install this?", "y")
	a, err := end()
	want := installer.ServingAnswers{Model: "nano-8b", Engine: "vllm", Image: "vllm", GPUs: 1}
	if err != nil || len(a.Cluster.Models) != 1 || a.Cluster.Models[0] != want || !a.Cluster.Telemetry || a.Cluster.Tenants[0].Name != "acme" {
		t.Errorf("got %+v, %v", a.Cluster, err)
	}
}
