package host

import (
	"bytes"
	"compress/gzip"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// node is a made-up machine that a node of a cluster could be.
func node() map[string]string {
	return map[string]string{
		"proc/self/status":                                         "Name:\tx\nCapEff:\t000001ffffffffff\n",
		"proc/sys/kernel/hostname":                                 "edge-7\n",
		"proc/sys/kernel/osrelease":                                "6.8.0-45-generic\n",
		"boot/config-6.8.0-45-generic":                             "# comment\nCONFIG_VETH=m\nCONFIG_BRIDGE_NETFILTER=y\nCONFIG_UNKNOWN=y\n# CONFIG_IP_SET is not set\n",
		"lib/modules/6.8.0-45-generic/modules.builtin":             "kernel/fs/overlayfs/overlay.ko\n",
		"lib/modules/6.8.0-45-generic/modules.dep":                 "kernel/drivers/net/veth.ko.zst:\nkernel/net/netfilter/nf_conntrack.ko: kernel/lib/libcrc32c.ko\n",
		"proc/sys/vm/overcommit_memory":                            "0\n",
		"proc/sys/net/netfilter/nf_conntrack_max":                  "262144\n",
		"proc/self/mountinfo":                                      "22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/a rw\n23 22 0:21 / /proc/sys ro - proc proc rw\n24 22 0:30 / /tmp rw,noexec - tmpfs tmpfs rw\n",
		"sys/firmware/efi/efivars/" + filepath.Base(secureBootVar): "\x06\x00\x00\x00\x01",
		"sys/kernel/security/lockdown":                             "none [integrity] confidentiality\n",
		"sys/module/apparmor/parameters/enabled":                   "Y\n",
		"proc/swaps":                                               "Filename Type Size Used Priority\n/dev/sda2 partition 1000 0 -2\n",
		"proc/net/route": "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n" +
			"eno1\t00000000\t0102000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n" +
			"eno1\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n" +
			"eno1\t00012A0A\t0802000A\t0003\t0\t0\t0\t00FFFFFF\t0\t0\t0\n",
		"proc/net/fib_trie": "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.2.7\n        /32 host LOCAL\n     |-- 10.0.2.255\n        /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n",
		"etc/hosts":         "127.0.0.1 localhost\n127.0.1.1 edge-7.site edge-7 # us\n",
		"etc/nsswitch.conf": "passwd: files\nhosts: files myhostname dns\n",
		"etc/ufw/ufw.conf":  "LOGLEVEL=low\nENABLED=yes\n",
		"etc/systemd/system/multi-user.target.wants/firewalld.service": "",
		"etc/machine-id":                        "0123456789abcdef0123456789abcdef\n",
		"dev/kmsg":                              "",
		"tmp/.keep":                             "",
		"var/lib/docker/overlay2/x":             "",
		"etc/systemd/system/k3s.service":        "[Unit]\nDescription=Lightweight Kubernetes\n",
		"var/lib/rancher/k3s/server/node-token": "x",
		"etc/cni/net.d/.keep":                   "",
	}
}

func TestNode(t *testing.T) {
	sys := tree(t, node())
	for _, p := range []string{"usr/sbin/iptables", "bin/modprobe"} {
		if err := os.MkdirAll(filepath.Join(sys, filepath.Dir(p)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sys, p), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f := gather(sys, t.TempDir())
	for _, c := range []struct {
		name      string
		got, want any
	}{
		{"options", f.Options, map[string]string{"VETH": "m", "BRIDGE_NETFILTER": "y"}},
		{"modules", f.Modules, map[string]string{"br_netfilter": "loaded", "overlay": "loaded", "veth": "loadable", "nf_conntrack": "loadable"}},
		{"sysctls", f.Sysctls, map[string]string{"vm.overcommit_memory": "0", "net.netfilter.nf_conntrack_max": "262144"}},
		{"sysctls read-only", f.ProcRW, false},
		{"secure boot", f.Secure, true},
		{"lockdown", f.Lockdown, "integrity"},
		{"apparmor", f.AppArmor, true},
		{"swap", f.Swap, []string{"/dev/sda2"}},
		{"networks", f.Networks, []Network{{Prefix: "10.0.2.0/24", Iface: "eno1"}, {Prefix: "10.42.1.0/24", Iface: "eno1", Via: "10.0.2.8"}}},
		{"addresses", f.Addresses, []string{"10.0.2.7"}},
		{"names", f.Names, Names{[]string{"127.0.1.1"}, true}},
		{"firewalls", f.Firewalls, []string{"ufw", "firewalld"}},
		{"tools", f.Tools, map[string]string{"iptables": "/usr/sbin/iptables", "modprobe": "/bin/modprobe"}},
		{"machine id", f.MachineID, "0123456789abcdef0123456789abcdef"},
		{"kmsg", f.Kmsg, true},
		{"CAP_SYS_RESOURCE", f.Resource, true},
		{"shared", f.Shared, true},
		{"tmp", f.Places["/tmp"].Options, []string{"rw", "noexec"}},
		{"kubelet's place", f.Places["/var/lib/kubelet"].FSType, "ext4"},
		{"others", f.Others, []Other{{"k3s", "/etc/systemd/system/k3s.service"}, {"k3s", "/var/lib/rancher/k3s/server"}, {"docker", "/var/lib/docker"}, {"cni", "/etc/cni/net.d"}}},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s: got %+v; want %+v", c.name, c.got, c.want)
		}
	}
}

// A compressed configuration in /proc counts before a file in /boot; a K3s
// with our mark is ours; an empty folder of CNI is nobody's.
func TestNodeVariants(t *testing.T) {
	files := node()
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write([]byte("CONFIG_IP_SET=y\n"))
	w.Close()
	maps.Copy(files, map[string]string{"proc/config.gz": z.String(), "etc/systemd/system/k3s.service": ourMark + " install.\n"})
	delete(files, "etc/cni/net.d/.keep")
	delete(files, "var/lib/docker/overlay2/x")
	delete(files, "proc/swaps")
	sys := tree(t, files)
	if err := os.MkdirAll(filepath.Join(sys, "etc/cni/net.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	f := gather(sys, t.TempDir())
	if !reflect.DeepEqual(f.Options, map[string]string{"IP_SET": "y"}) || f.Others != nil || f.Swap != nil || f.Failed["swap"] != "" {
		t.Errorf("got options %v, others %v, swap %v (%s)", f.Options, f.Others, f.Swap, f.Failed["swap"])
	}
	if f := gather(t.TempDir(), t.TempDir()); f.Failed["kconfig"] == "" || f.Failed["sysctls"] == "" || f.Failed["networks"] == "" || f.Failed["addresses"] == "" || f.Failed["node"] == "" {
		t.Errorf("an empty system: got %v", f.Failed)
	}
}

// gpuNode has two GPUs and a switch between them. Its nvidia-smi is a stand-in
// that prints what the real one prints for these fields.
func gpuNode(t *testing.T, smi string) string {
	t.Helper()
	files := node()
	for i, a := range []string{"0000:01:00.0", "0000:41:00.0"} {
		d := "sys/bus/pci/devices/" + a + "/"
		files[d+"vendor"], files[d+"class"], files[d+"device"] = "0x10de\n", "0x030200\n", []string{"0x2330\n", "0x2335\n"}[i]
	}
	files["sys/bus/pci/devices/0000:09:00.0/vendor"] = "0x10de\n"
	files["sys/bus/pci/devices/0000:09:00.0/class"] = "0x068000\n"
	files["proc/driver/nvidia/version"] = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
	sys := tree(t, files)
	p := filepath.Join(sys, "usr/bin/nvidia-smi")
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte("#!/bin/sh\n"+smi), 0o755); err != nil {
		t.Fatal(err)
	}
	return sys
}

func TestGPUs(t *testing.T) {
	sys := gpuNode(t, `case "$*" in *`+smiFields+`*noheader,nounits*) cat <<'X'
00000000:01:00.0, NVIDIA H100 80GB HBM3, 81559, Enabled, Enabled, 3
00000000:41:00.0, NVIDIA H200, 143771, [N/A], [N/A], [N/A]
X
;; *) exit 9;; esac
`)
	f := gather(sys, t.TempDir())
	want := []GPU{
		{Address: "0000:01:00.0", Device: "0x2330", Model: "NVIDIA H100 80GB HBM3", Memory: 81559 << 20, MIG: true, ECC: true, Errors: 3},
		{Address: "0000:41:00.0", Device: "0x2335", Model: "NVIDIA H200", Memory: 143771 << 20},
	}
	if !reflect.DeepEqual(f.GPUs, want) || f.Failed["nvml"] != "" {
		t.Errorf("got %+v (%s); want %+v", f.GPUs, f.Failed["nvml"], want)
	}
	if f.NVLink != (NVLink{Switches: 1}) {
		t.Errorf("got %+v", f.NVLink)
	}
	for name, smi := range map[string]string{"fails": "echo broken; exit 9\n", "other columns": "echo 1, 2\n", "no number": "echo a, b, c, d, e, f\n"} {
		if f := gather(gpuNode(t, smi), t.TempDir()); !strings.Contains(f.Failed["nvml"], "nvidia-smi") {
			t.Errorf("%s: got %+v, %q", name, f.GPUs, f.Failed["nvml"])
		}
	}
}
