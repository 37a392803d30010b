package host

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// KernelOptions are the options that a node of a cluster needs: those of K3s's
// own check-config (contrib/util/check-config.sh, "Generally Necessary"), and
// what flannel's host-gw and kube-proxy's rules use.
var KernelOptions = []string{
	"NAMESPACES", "NET_NS", "PID_NS", "IPC_NS", "UTS_NS", "CGROUPS", "CGROUP_CPUACCT", "CGROUP_DEVICE", "CGROUP_FREEZER",
	"CGROUP_SCHED", "CGROUP_PIDS", "CPUSETS", "MEMCG", "KEYS", "VETH", "BRIDGE", "BRIDGE_NETFILTER", "NETFILTER_XT_MATCH_ADDRTYPE",
	"NETFILTER_XT_MATCH_COMMENT", "NETFILTER_XT_MATCH_CONNTRACK", "NETFILTER_XT_MATCH_MULTIPORT", "NETFILTER_XT_MATCH_STATISTIC",
	"NETFILTER_XT_MARK", "IP_SET", "NETFILTER_XT_SET", "NF_NAT", "POSIX_MQUEUE", "OVERLAY_FS", "SECCOMP_FILTER", "INET",
}

// KernelModules are looked for loaded, built in or on the disk. VXLAN is not
// among them: the flannel backend is host-gw.
var KernelModules = []string{"br_netfilter", "nf_conntrack", "overlay", "veth"}

// WantedSysctls are read by their dotted names.
var WantedSysctls = []string{
	// What the kubelet's protectKernelDefaults compares (pkg/kubelet/cm, setupKernelTunables).
	"vm.overcommit_memory", "vm.panic_on_oom", "kernel.panic", "kernel.panic_on_oops", "kernel.keys.root_maxkeys", "kernel.keys.root_maxbytes",
	"net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables", "net.netfilter.nf_conntrack_max",
	"fs.inotify.max_user_instances", "fs.inotify.max_user_watches", "fs.file-max", "kernel.pid_max",
}

// kconfig reads the running kernel's configuration, wherever it is kept.
func (g *gatherer) kconfig() error {
	r, err := g.openConfig()
	if err != nil {
		return err
	}
	defer r.Close()
	opts := map[string]string{}
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		k, v, ok := strings.Cut(strings.TrimPrefix(sc.Text(), "CONFIG_"), "=")
		if ok && slices.Contains(KernelOptions, k) {
			opts[k] = v
		}
	}
	g.f.Options = opts
	return sc.Err()
}

func (g *gatherer) openConfig() (io.ReadCloser, error) {
	f, err := os.Open(filepath.Join(g.sys, "/proc/config.gz"))
	if err == nil {
		z, err := gzip.NewReader(f)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("/proc/config.gz: %w", err), f.Close())
		}
		return struct {
			io.Reader
			io.Closer
		}{z, f}, nil
	}
	rel := g.f.Kernel.Release
	for _, p := range []string{"/boot/config-" + rel, "/lib/modules/" + rel + "/config"} {
		if f, err := os.Open(filepath.Join(g.sys, p)); err == nil {
			return f, nil
		}
	}
	return nil, fmt.Errorf("no /proc/config.gz, /boot/config-%[1]s or /lib/modules/%[1]s/config", rel)
}

// modules tells what is there now from what modprobe would find. A module that
// is built in has a folder in /sys/module only if it takes parameters, so
// modules.builtin and the options are asked too.
func (g *gatherer) modules() error {
	g.f.Modules = map[string]string{}
	dir := filepath.Join("/lib/modules", g.f.Kernel.Release)
	builtin, _ := g.read(filepath.Join(dir, "modules.builtin"))
	dep, _ := g.read(filepath.Join(dir, "modules.dep"))
	for _, m := range KernelModules {
		has, err := g.exists("/sys/module/" + m)
		switch {
		case err != nil:
			return err
		case has || hasModule(builtin, m) || g.f.Options[moduleOption[m]] == "y":
			g.f.Modules[m] = "loaded"
		case hasModule(dep, m):
			g.f.Modules[m] = "loadable"
		default:
			g.f.Modules[m] = ""
		}
	}
	return nil
}

var moduleOption = map[string]string{"br_netfilter": "BRIDGE_NETFILTER", "overlay": "OVERLAY_FS", "veth": "VETH", "nf_conntrack": "NETFILTER_XT_MATCH_CONNTRACK"}

// hasModule looks for a module's file in modules.builtin or modules.dep.
func hasModule(list, name string) bool {
	for l := range strings.Lines(list) {
		p, _, _ := strings.Cut(strings.TrimSpace(l), ":")
		base, _, _ := strings.Cut(filepath.Base(p), ".ko")
		if strings.ReplaceAll(base, "-", "_") == name {
			return true
		}
	}
	return false
}

func (g *gatherer) sysctls() error {
	g.f.Sysctls = map[string]string{}
	for _, n := range WantedSysctls {
		v, err := g.read("/proc/sys/" + strings.ReplaceAll(n, ".", "/"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		g.f.Sysctls[n] = strings.Join(strings.Fields(v), " ")
	}
	if len(g.f.Sysctls) == 0 {
		return errors.New("/proc/sys has none of the settings")
	}
	ms, err := g.mounts()
	if err != nil {
		return err
	}
	opts := strings.Split(mountOf(ms, "/proc/sys").options, ",")
	g.f.ProcRW = !slices.Contains(opts, "ro")
	return nil
}

// secureBootVar is UEFI's global variable: 4 bytes of attributes, then 0 or 1
// (UEFI 2.10, 3.3 and 32.3).
const secureBootVar = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"

func (g *gatherer) security() error {
	v, err := g.read(secureBootVar)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	g.f.Secure = len(v) == 5 && v[4] == 1
	// "none [integrity] confidentiality": the one in force is in brackets.
	if v, err = g.read("/sys/kernel/security/lockdown"); err == nil {
		_, v, _ = strings.Cut(v, "[")
		g.f.Lockdown, _, _ = strings.Cut(v, "]")
	}
	v, err = g.read("/sys/module/apparmor/parameters/enabled")
	g.f.AppArmor = err == nil && v == "Y"
	return nil
}

// swap lists /proc/swaps, which has a head line (proc(5)).
func (g *gatherer) swap() error {
	s, err := g.read("/proc/swaps")
	if errors.Is(err, os.ErrNotExist) { // a kernel without CONFIG_SWAP
		return nil
	}
	for i, l := range strings.Split(s, "\n") {
		if f := strings.Fields(l); i > 0 && len(f) > 0 {
			g.f.Swap = append(g.f.Swap, f[0])
		}
	}
	return err
}

// Tools are programs that a node needs or that tell of others.
var Tools = []string{"apparmor_parser", "iptables", "nft", "modprobe", "nvidia-smi", "nvidia-container-runtime", "nvidia-ctk", "nv-fabricmanager"}

// toolDirs are where a system service looks.
var toolDirs = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

func (g *gatherer) tools() error {
	g.f.Tools = map[string]string{}
	for _, name := range Tools {
		for _, d := range toolDirs {
			st, err := os.Stat(filepath.Join(g.sys, d, name))
			if err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
				g.f.Tools[name] = filepath.Join(d, name)
				break
			}
		}
	}
	return nil
}

// node gathers what a kubelet wants besides.
func (g *gatherer) node() (err error) {
	if g.f.MachineID, err = g.read("/etc/machine-id"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if g.f.Kmsg, err = g.exists("/dev/kmsg"); err != nil {
		return err
	}
	if g.f.Resource, err = g.capable(unix.CAP_SYS_RESOURCE); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(g.sys, "/proc/self/mountinfo"))
	if err != nil {
		return err
	}
	for l := range bytes.Lines(b) {
		// id parent major:minor root point options optional… - …
		head, _, _ := strings.Cut(string(l), " - ")
		if f := strings.Fields(head); len(f) > 4 && f[4] == "/" {
			g.f.Shared = slices.ContainsFunc(f[5:], func(s string) bool { return strings.HasPrefix(s, "shared:") })
		}
	}
	return nil
}

// capable reads this process's effective capabilities (proc(5), CapEff).
func (g *gatherer) capable(number uint) (bool, error) {
	s, err := g.read("/proc/self/status")
	if err != nil {
		return false, err
	}
	for l := range strings.Lines(s) {
		if v, ok := strings.CutPrefix(l, "CapEff:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return n&(1<<number) != 0, err
		}
	}
	return false, errors.New("/proc/self/status has no CapEff")
}

// PlacePaths are folders whose file systems matter besides the state's own.
var PlacePaths = []string{"/tmp", "/var/lib/rancher", "/var/lib/kubelet", "/var/log"}

func (g *gatherer) places() error {
	ms, err := g.mounts()
	if err != nil {
		return err
	}
	g.f.Places = map[string]Place{}
	for _, p := range PlacePaths {
		at, err := nearest(filepath.Join(g.sys, p))
		if err != nil {
			return err
		}
		var st unix.Statfs_t
		if err := unix.Statfs(at, &st); err != nil {
			return fmt.Errorf("statfs %s: %w", at, err)
		}
		in, err := filepath.Rel(g.sys, at)
		if err != nil {
			return err
		}
		m := mountOf(ms, filepath.Join("/", in))
		g.f.Places[p] = Place{m.fstype, strings.Split(m.options, ","), int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize}
	}
	return nil
}

// traces of other container systems. The K3s that this installer placed has a
// mark in its unit and is not another's.
var traces = []struct{ what, path string }{
	{"k3s", "/etc/systemd/system/k3s.service"},
	{"k3s", "/etc/systemd/system/k3s-agent.service"},
	{"k3s", "/var/lib/rancher/k3s/server"},
	{"k3s", "/var/lib/rancher/k3s/agent"},
	{"rke2", "/var/lib/rancher/rke2"},
	{"kubeadm", "/etc/kubernetes/admin.conf"},
	{"kubelet", "/var/lib/kubelet/config.yaml"},
	{"kubelet", "/etc/kubernetes/kubelet.conf"},
	{"microk8s", "/var/snap/microk8s"},
	{"docker", "/var/lib/docker"},
	{"docker", "/run/docker.sock"},
	{"containerd", "/run/containerd/containerd.sock"},
	{"crio", "/run/crio/crio.sock"},
	{"podman", "/var/lib/containers/storage"},
	{"cni", "/etc/cni/net.d"},
	{"etcd", "/var/lib/etcd/member"},
}

// ourMark is in the first line of what the installer writes.
const ourMark = "ritten by clawbox"

func (g *gatherer) others() error {
	ours, err := g.ourK3s()
	if err != nil {
		return err
	}
	for _, t := range traces {
		st, err := os.Lstat(filepath.Join(g.sys, t.path))
		switch {
		case errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR):
			continue
		case err != nil:
			return err
		case ours && t.what == "k3s":
			continue
		}
		if st.IsDir() {
			if es, err := os.ReadDir(filepath.Join(g.sys, t.path)); err == nil && len(es) == 0 {
				continue // a package's empty folder
			}
		}
		g.f.Others = append(g.f.Others, Other{t.what, t.path})
	}
	return nil
}

// ourK3s says whether the K3s here is the one that an installer of ours placed.
func (g *gatherer) ourK3s() (bool, error) {
	for _, p := range []string{"/etc/systemd/system/k3s.service", "/etc/rancher/k3s/config.yaml"} {
		s, err := g.read(p)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
		if first, _, _ := strings.Cut(s, "\n"); strings.Contains(first, ourMark) {
			return true, nil
		}
	}
	return false, nil
}
