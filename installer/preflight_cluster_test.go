package installer

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/clawbox/clawbox/installer/host"
)

// clusterRows are about the checks that only the profile cluster has, and about
// what it changes in others.
var clusterRows = []row{
	{"node-memory", Refusal, func(w world) { w.f.Memory.Total = 3 << 29 }},
	{"node-memory", Warning, func(w world) { w.f.Memory.Total = 5 << 30 }},
	{"node-cores", Warning, func(w world) { w.f.CPUs = 1 }},
	{"kernel-options", Refusal, func(w world) { delete(w.f.Options, "VETH") }},
	{"kernel-options", Warning, func(w world) { w.f.Failed["kconfig"], w.f.Options = "no config", nil }},
	{"modules", Refusal, func(w world) { w.f.Modules["br_netfilter"] = "" }},
	{"module-loading", Refusal, func(w world) { delete(w.f.Tools, "modprobe") }},
	{"cgroup-kubelet", Refusal, func(w world) { w.f.Cgroup.Controllers = []string{"cpu", "memory", "pids"} }},
	{"cgroup-v2", Refusal, func(w world) { w.f.Cgroup.Version = "v1" }},
	{"cgroup-v2", Warning, func(w world) { w.f.Cgroup.Version = "hybrid"; w.a.Accept = []string{"cgroup-v1"} }},
	{"kubelet-sysctls", Note, func(w world) { w.f.Sysctls["kernel.panic"] = "0" }},
	{"kubelet-sysctls", Refusal, func(w world) { w.f.Sysctls["kernel.panic"], w.f.ProcRW = "0", false }},
	{"forwarding", Note, func(w world) { w.f.Sysctls["net.ipv4.ip_forward"] = "0" }},
	{"forwarding", Refusal, func(w world) { w.f.Sysctls["net.ipv4.ip_forward"], w.f.ProcRW = "0", false }},
	{"apparmor", Warning, func(w world) { delete(w.f.Tools, "apparmor_parser") }},
	{"lockdown", Warning, func(w world) { w.f.Lockdown = "confidentiality" }},
	{"swap", Warning, func(w world) { w.f.Swap = []string{"/dev/sda2"} }},
	{"oom-scores", Warning, func(w world) { w.f.Resource = false }},
	{"kmsg", Refusal, func(w world) { w.f.Kmsg = false }},
	{"mount-propagation", Warning, func(w world) { w.f.Shared = false }},
	{"machine-id", Warning, func(w world) { w.f.MachineID = "uninitialized" }},
	{"datastore-fsync", Warning, func(w world) { w.f.Disk.Fsync = 30 * time.Millisecond }},
	{"kubelet-disk", Refusal, func(w world) {
		w.f.Places["/var/lib/kubelet"] = host.Place{FSType: "ext4", Options: []string{"rw", "nosuid"}, Size: 2, Free: 1}
	}},
	{"kubelet-fs", Refusal, func(w world) { w.f.Places["/var/lib/rancher"] = host.Place{FSType: "nfs4"} }},
	{"kubelet-fs", Refusal, func(w world) { w.f.Places["/var/lib/rancher"] = host.Place{FSType: "tmpfs"} }},
	{"kubelet-space", Refusal, func(w world) { w.f.Places["/var/lib/kubelet"] = host.Place{FSType: "ext4", Size: 100, Free: 15} }},
	{"tmp", Note, func(w world) { w.f.Places["/tmp"] = host.Place{FSType: "tmpfs", Options: []string{"noexec"}} }},
	{"inotify-instances", Warning, func(w world) { w.f.Sysctls["fs.inotify.max_user_instances"] = "128" }},
	{"inotify-watches", Warning, func(w world) { w.f.Sysctls["fs.inotify.max_user_watches"] = "8192" }},
	{"file-max", Warning, func(w world) { w.f.Sysctls["fs.file-max"] = "1024" }},
	{"pid-max", Warning, func(w world) { w.f.Sysctls["kernel.pid_max"] = "4096" }},
	{"conntrack-max", Warning, func(w world) { w.f.Sysctls["net.netfilter.nf_conntrack_max"] = "1024" }},
	{"conntrack-max", Note, func(w world) { delete(w.f.Sysctls, "net.netfilter.nf_conntrack_max") }},
	{"node-name", Refusal, func(w world) { w.f.Hostname = "box_1" }},
	{"name-resolves", Warning, func(w world) { w.f.Names = host.Names{} }},
	{"node-address", Refusal, func(w world) { w.f.Addresses = nil }},
	{"node-address", Refusal, func(w world) { w.f.Addresses = []string{"10.0.2.7", "10.0.3.7"} }},
	{"node-address", Refusal, func(w world) { w.a.Cluster.Address = "10.0.2.8" }},
	{"node-address", Refusal, func(w world) { w.f.Networks = nil }},
	{"default-route", Refusal, func(w world) { w.f.Routes = nil }},
	{"address-overlap", Refusal, func(w world) {
		w.f.Networks = append(w.f.Networks, host.Network{Prefix: "10.0.0.0/8", Iface: "wg0"})
	}},
	{"cluster-ports", Refusal, func(w world) { w.f.Listening = []string{"[::]:6443"} }},
	{"cluster-ports", Refusal, func(w world) { w.f.Listening = []string{"127.0.0.1:10250"} }},
	{"cluster-ports", Note, func(w world) { w.f.Listening, w.f.Earlier.Active = []string{"[::]:6443"}, true }},
	{"firewall", Warning, func(w world) { w.f.Firewalls = []string{"ufw"} }},
	{"packet-filter", Warning, func(w world) { delete(w.f.Tools, "iptables") }},
	{"node-clock", Warning, func(w world) { w.f.ClockSync = false; *w.a = agentAnswers("/", *w.r) }},
	{"earlier-k3s", Refusal, func(w world) { w.f.Others = []host.Other{{What: "k3s", Path: "/x"}} }},
	{"earlier-kubernetes", Refusal, func(w world) { w.f.Others = []host.Other{{What: "kubelet", Path: "/x"}} }},
	{"earlier-cni", Refusal, func(w world) { w.f.Others = []host.Other{{What: "cni", Path: "/etc/cni/net.d"}} }},
	{"container-engines", Warning, func(w world) { w.f.Others = []host.Other{{What: "docker", Path: "/x"}} }},
	{"gpu-driver", Refusal, func(w world) { w.f.NVIDIA = "" }},
	{"gpu-driver", Warning, func(w world) { w.f.NVIDIA = ""; w.a.Cluster.Models = nil }},
	{"gpu-driver", Warning, func(w world) { w.f.NVIDIA = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue" }},
	{"gpu-driver", Refusal, func(w world) { w.f.NVIDIA = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.1.1  Tue" }},
	{"gpu-driver", Refusal, func(w world) { w.f.GPUs = nil; w.a.Cluster.Models[0].GPUs = 1 }},
	{"gpu-toolkit", Refusal, func(w world) { delete(w.f.Tools, "nvidia-container-runtime") }},
	{"gpu-toolkit", Refusal, func(w world) { w.f.Tools["nvidia-container-runtime"] = "/usr/local/bin/x" }},
	{"gpu-fabric", Refusal, func(w world) { w.f.NVLink.Switches = 4 }},
	{"gpu-mig", Refusal, func(w world) { w.f.GPUs[0].MIG = true }},
	{"gpu-memory", Refusal, func(w world) { w.r.Items[6].Size = 70 << 30 }},
	{"gpu-memory", Refusal, func(w world) { w.a.Cluster.Models[0].GPUs = 3 }},
	{"gpu-memory", Refusal, func(w world) { w.f.Failed["nvml"] = "no nvidia-smi" }},
	{"cluster-root", Warning, func(w world) { w.a.Root = "/srv/box" }},
	{"node-programs", Refusal, func(w world) { w.r.Items[7].Path = "bin/other" }},
	{"node-programs", Refusal, func(w world) { w.r.Items[8].Mode = 0o644 }},
	{"node-programs", Refusal, func(w world) { w.r.Items[len(w.r.Items)-1].Path = "bin/runc" }},
	{"k3s-version", Refusal, func(w world) { w.r.Components = nil }},
	{"node-images", Refusal, func(w world) { w.r.Items[9].Name = "other" }},
	{"chart-images", Refusal, func(w world) { w.a.Cluster.Models[0].Image = "other" }},
	{"serving", Refusal, func(w world) { w.a.Cluster.Models[0].Model = "other" }},
	{"tenants", Warning, func(w world) { w.a.Cluster.Tenants[0].Memory = "64Gi" }},
	{"answers", Refusal, func(w world) { w.a.Cluster.Role = "" }},
}

func goodCluster() (host.Facts, Answers, Release) {
	r := makeUpCluster().Release
	return nodeFacts("/"), clusterAnswers("/", r), r
}

func TestPreflightOfCluster(t *testing.T) {
	testRows(t, clusterRows, slices.Concat(soloRows, clusterRows), goodCluster)
	// A machine without any GPU is a good one, too.
	f, a, r := goodCluster()
	f.GPUs, f.NVIDIA, a.Cluster.Models = nil, "", nil
	if bad := Refused(Preflight(f, a, r)); len(bad) > 0 {
		t.Errorf("without GPUs: %v", bad)
	}
	// So is one on which the cluster runs, whose bridge has an address, too.
	f, a, r = goodCluster()
	f.Addresses, f.Networks = append([]string{"10.42.0.1"}, f.Addresses...), append(f.Networks, host.Network{Prefix: "10.42.0.0/24", Iface: "cni0"})
	if bad := Refused(Preflight(f, a, r)); len(bad) > 0 || a.Cluster.address(f) != "10.0.2.7" {
		t.Errorf("a running node: %v", bad)
	}
	// And so is one in a cluster of several, which has routes to the others' pods; on
	// a host that is no node yet they are somebody else's.
	other := host.Network{Prefix: "10.42.1.0/24", Iface: "eno1", Via: "10.0.2.8"}
	f, a, r = goodCluster()
	f.Networks = append(f.Networks, other)
	if bad := Refused(Preflight(f, a, r)); len(bad) != 1 || bad[0].Check != "address-overlap" {
		t.Errorf("a route to somebody's pods: %v", bad)
	}
	f.Earlier.Active = true
	if bad := Refused(Preflight(f, a, r)); len(bad) > 0 {
		t.Errorf("a node among others: %v", bad)
	}
	// And so is one that joins.
	if bad := Refused(Preflight(nodeFacts("/"), agentAnswers("/", r), r)); len(bad) > 0 {
		t.Errorf("an agent: %v", bad)
	}
}

// The table in the handbook is the code's: each check with its profile and the
// worst that it can say.
func TestPreflightTable(t *testing.T) {
	b, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][2]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9-]+)` \\| (both|cluster) \\| (note|warning|refusal) \\| .+ \\|$").FindAllStringSubmatch(string(b), -1) {
		got[m[1]] = [2]string{m[2], m[3]}
	}
	want := map[string][2]string{}
	for _, tab := range tables {
		for _, c := range tab.checks {
			profile, worst := "both", Note
			if tab.profile != "" {
				profile = tab.profile
			}
			for _, r := range slices.Concat(soloRows, clusterRows) {
				rank := []Severity{OK, Note, Warning, Refusal}
				if r.check == c.name && slices.Index(rank, r.want) > slices.Index(rank, worst) {
					worst = r.want
				}
			}
			want[c.name] = [2]string{profile, string(worst)}
		}
	}
	for _, n := range slices.Sorted(maps.Keys(want)) {
		if got[n] != want[n] {
			t.Errorf("docs/operations.md has %v for %s; want %v", got[n], n, want[n])
		}
	}
	for n := range got {
		if _, ok := want[n]; !ok {
			t.Errorf("docs/operations.md has %s, which is no check", n)
		}
	}
}
