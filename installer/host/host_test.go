package host

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// tree writes a made-up system below a temporary folder.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for p, s := range files {
		p = filepath.Join(dir, p)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestMadeUpSystem(t *testing.T) {
	sys := tree(t, map[string]string{
		"etc/os-release":                    "ID=ubuntu\nVERSION_ID=\"24.04\"\nPRETTY_NAME=\"Ubuntu 24.04 LTS\"\n",
		"proc/sys/kernel/hostname":          "edge-7\n",
		"proc/sys/kernel/osrelease":         "6.8.0-45-generic\n",
		"proc/meminfo":                      "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:   8000000 kB\n",
		"sys/kernel/security/lsm":           "lockdown,capability,landlock,yama,apparmor,bpf",
		"sys/fs/selinux/enforce":            "1",
		"proc/self/ns/mnt":                  "",
		"proc/self/ns/pid":                  "",
		"proc/self/ns/pid_for_children":     "",
		"proc/sys/user/max_user_namespaces": "63000\n",
		"proc/filesystems":                  "nodev\tproc\n\text4\n",
		"lib/modules/6.8.0-45-generic/kernel/fs/overlayfs/overlay.ko.zst": "x",
		"proc/self/mountinfo": "22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/a rw\n" +
			"30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
		"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
		"proc/sys/crypto/fips_enabled":     "1\n",
		"run/systemd/system/x":             "",
		"proc/net/route": "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n" +
			"eno1\t00000000\t0102000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n" +
			"eno1\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n",
		"proc/net/ipv6_route": "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eno2\n" +
			"00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n",
		"proc/net/tcp": "  sl  local_address rem_address   st\n" +
			"   0: 0100007F:1388 00000000:0000 0A 0 0\n" +
			"   1: 0100007F:1F90 0100007F:1388 01 0 0\n",
		"proc/net/tcp6": "  sl\n   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0\n",
		"etc/passwd":    "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000::/home/ann:/bin/sh\n",
		"etc/subuid":    "ann:100000:65536\n",
		"sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
		"sys/bus/pci/devices/0000:01:00.0/class":  "0x030200\n",
		"sys/bus/pci/devices/0000:01:00.0/device": "0x2330\n",
		"sys/bus/pci/devices/0000:02:00.0/vendor": "0x10de\n", // its audio function
		"sys/bus/pci/devices/0000:02:00.0/class":  "0x040300\n",
		"proc/driver/nvidia/version":              "NVRM version: NVIDIA UNIX Open Kernel Module 580.1\nGCC version: x\n",
	})
	f := gather(sys, t.TempDir())
	checks := []struct {
		name      string
		got, want any
	}{
		{"hostname", f.Hostname, "edge-7"},
		{"os", f.OS, OS{"ubuntu", "24.04", "Ubuntu 24.04 LTS"}},
		{"kernel", f.Kernel, Kernel{"6.8.0-45-generic", 6, 8}},
		{"memory", f.Memory, Memory{16000000 << 10, 8000000 << 10}},
		{"lsm", f.LSM, []string{"lockdown", "capability", "landlock", "yama", "apparmor", "bpf"}},
		{"selinux", f.SELinux, "enforcing"},
		{"namespaces", f.Namespaces, []string{"mnt", "pid"}},
		{"userns", f.UserNS, 63000},
		{"overlay as a module", f.Overlay, true},
		{"cgroup", f.Cgroup, Cgroup{"v2", []string{"cpu", "cpuset", "io", "memory", "pids"}, "/sys/fs/cgroup"}},
		{"fips", f.FIPS, true},
		{"systemd", f.Systemd, true},
		{"routes", f.Routes, []string{"eno1", "eno2"}},
		{"listening", f.Listening, []string{"127.0.0.1:5000", "[::]:22"}},
		{"uids", f.UIDs, []Range{{1000, 1, "ann (/etc/passwd)"}, {100000, 65536, "ann (/etc/subuid)"}}},
		{"gpus", f.GPUs, []GPU{{Address: "0000:01:00.0", Device: "0x2330"}}},
		{"driver", f.NVIDIA, "NVRM version: NVIDIA UNIX Open Kernel Module 580.1"},
	}
	for _, c := range checks {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s: got %+v; want %+v", c.name, c.got, c.want)
		}
	}
}

// An empty system must give reasons, not zeros that look like answers.
func TestFailuresHaveReasons(t *testing.T) {
	f := gather(t.TempDir(), t.TempDir())
	for _, p := range []string{"hostname", "os", "kernel", "memory", "namespaces", "overlay", "cgroup", "routes", "listening", "disk", "bpf"} {
		if f.Failed[p] == "" {
			t.Errorf("%s: no reason in Failed: %v", p, f.Failed)
		}
	}
	for p := range f.Failed {
		if !slices.ContainsFunc(probes, func(x struct {
			name string
			run  func(*gatherer) error
		},
		) bool {
			return x.name == p
		}) {
			t.Errorf("Failed names %q, which is no probe", p)
		}
	}
}

// The machine that runs the test: what every Linux has must be found, and
// nothing may be left behind.
func TestThisMachine(t *testing.T) {
	root := t.TempDir()
	f := Gather(root)
	if f.Kernel.Major < 4 || f.Memory.Total == 0 || f.CPUs < 1 || f.Cgroup.Version == "" || len(f.Namespaces) == 0 || f.OS.ID == "" {
		t.Errorf("got %+v", f)
	}
	if f.Disk.Free <= 0 || f.Disk.FSType == "" || f.Disk.Path != root {
		t.Errorf("disk: got %+v", f.Disk)
	}
	if _, failed := f.Failed["diskspeed"]; !failed && (f.Disk.Write <= 0 || f.Disk.Fsync <= 0) {
		t.Errorf("disk speed: got %+v", f.Disk)
	}
	if es, _ := os.ReadDir(root); len(es) != 0 {
		t.Errorf("the probes left %v", es)
	}
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	var back Facts
	if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(f, back) {
		t.Errorf("JSON does not come back: %v\n%s", err, b)
	}
	t.Logf("%s", b)
}

func TestEarlier(t *testing.T) {
	root := tree(t, map[string]string{configFile: "x", journalFile: "x", blobsDir + "/ab": "12345"})
	if f := gather("/", root); !f.Earlier.Config || !f.Earlier.Journal || f.Earlier.Active || f.Earlier.Stored != 5 {
		t.Errorf("got %+v", f.Earlier)
	}
	if err := os.MkdirAll(filepath.Join(root, "opt/clawbox"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("slots/gone", filepath.Join(root, currentLink)); err != nil {
		t.Fatal(err)
	}
	if f := gather("/", root); !f.Earlier.Active {
		t.Error("a dangling activation was not seen")
	}
}

func TestReadRate(t *testing.T) {
	p := filepath.Join(t.TempDir(), "part")
	if err := os.WriteFile(p, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := ReadRate(p); err != nil || r <= 0 {
		t.Errorf("got %d, %v", r, err)
	}
	if err := os.Truncate(p, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadRate(p); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("an empty file has a speed: %v", err)
	}
}

func TestMountOf(t *testing.T) {
	ms := []mount{{point: "/", fstype: "ext4"}, {point: "/var", fstype: "xfs"}, {point: "/var", fstype: "btrfs"}, {point: "/var/lib2", fstype: "zfs"}}
	for path, want := range map[string]string{"/": "ext4", "/var": "btrfs", "/var/lib": "btrfs", "/variable": "ext4", "/var/lib2/x": "zfs"} {
		if got := mountOf(ms, path).fstype; got != want {
			t.Errorf("%s: got %s; want %s", path, got, want)
		}
	}
	if got := unescape(`/a\040b\134`); got != `/a b\` {
		t.Errorf("unescape: got %q", got)
	}
}
