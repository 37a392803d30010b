package sandbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/clawbox/clawbox/appliance/confine"
	"github.com/clawbox/clawbox/policies"
)

// A container's config.json is not checked against the policy: it is written
// anew from it. Of what containerd wrote remain the root, the namespaces, the
// cgroup, the labels of AppArmor and SELinux, and the annotations. What a pod
// asked for besides is refused where the operator would expect it to be there
// (mounts, devices, the host's namespaces), and else dropped (its environment,
// which may hold secrets; hooks; capabilities; its program).

// launcherPath is where the launcher is in a container.
const launcherPath = "/clawbox-launch"

// launcherCaps are what the launcher gives up again: see confine. The thread
// that passes a wish to end on keeps its user, and so needs CAP_KILL.
var launcherCaps = []string{"CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_DAC_READ_SEARCH", "CAP_KILL"}

// usual are the mount points that containerd and kubelet give every container;
// none of theirs is kept.
var usual = map[string]bool{
	"/proc": true, "/dev": true, "/dev/pts": true, "/dev/mqueue": true, "/dev/shm": true, "/sys": true, "/sys/fs/cgroup": true, "/run": true,
	"/etc/hosts": true, "/etc/hostname": true, "/etc/resolv.conf": true, "/dev/termination-log": true,
}

// readConfig reads a config.json of containerd's. Fields that this release does
// not know are no error: none of them is taken over.
func readConfig(b []byte) (*specs.Spec, error) {
	var s specs.Spec
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&s); err != nil {
		return nil, fmt.Errorf("config.json: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("config.json: data after the document")
	}
	if s.Root == nil || s.Process == nil || s.Linux == nil {
		return nil, fmt.Errorf("config.json has no root, process or linux part; want a Linux container's")
	}
	return &s, nil
}

// apart lists the namespaces that a container must not share with the host.
var apart = []specs.LinuxNamespaceType{specs.PIDNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.MountNamespace}

// namespaces refuses the host's, and another container's processes.
func namespaces(in *specs.Spec) ([]specs.LinuxNamespace, error) {
	var out []specs.LinuxNamespace
	for _, t := range apart {
		i := slices.IndexFunc(in.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == t })
		if i < 0 {
			return nil, fmt.Errorf("it asks for the host's %s namespace; an agent has its own", t)
		}
		n := in.Linux.Namespaces[i]
		if n.Path != "" && (t == specs.PIDNamespace || t == specs.MountNamespace) {
			return nil, fmt.Errorf("it shares the %s namespace %s; an agent has its own", t, n.Path)
		}
		out = append(out, n)
	}
	if slices.ContainsFunc(in.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace }) {
		return nil, fmt.Errorf("it asks for a user namespace (hostUsers: false); an agent has a user id of its own in place of one")
	}
	return append(out, specs.LinuxNamespace{Type: specs.CgroupNamespace}), nil
}

// holder is the config.json of the pod's first container: containerd's, less
// every privilege. It runs the node's own pause program.
func holder(in *specs.Spec) (*specs.Spec, error) {
	if _, err := namespaces(in); err != nil {
		return nil, err
	}
	in.Hostname = user // the agent's, too: it shares the namespace
	in.Process.Capabilities, in.Process.NoNewPrivileges, in.Hooks, in.Linux.Devices = &specs.LinuxCapabilities{}, true, nil, nil
	return in, nil
}

// config is the config.json of the agent's container.
func (w *pod) config(in *specs.Spec, root *os.File) (*specs.Spec, error) {
	ns, err := namespaces(in)
	if err != nil {
		return nil, err
	}
	for _, m := range in.Mounts {
		if !usual[filepath.Clean(m.Destination)] {
			return nil, fmt.Errorf("it asks for a mount at %s, which the agent's policy does not give; volumes have no place in an agent's pod", m.Destination)
		}
	}
	if len(in.Linux.Devices) > 0 {
		return nil, fmt.Errorf("it asks for the device %s and more; an agent has none but /dev/null and its like", in.Linux.Devices[0].Path)
	}
	mounts, err := w.mounts(root)
	if err != nil {
		return nil, err
	}
	caps := slices.Clone(launcherCaps)
	for _, c := range w.s.Policy.Process.Capabilities {
		caps = append(caps, "CAP_"+c)
	}
	files := uint64(w.s.Policy.Budgets.OpenFiles)
	return &specs.Spec{
		Version: in.Version, Hostname: in.Hostname, Annotations: in.Annotations, Mounts: mounts,
		Root: &specs.Root{Path: in.Root.Path, Readonly: true},
		Process: &specs.Process{
			Args: []string{launcherPath, "pod"}, Env: []string{"GOMAXPROCS=1", "GOGC=off"}, Cwd: "/", NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: files, Hard: files}},
			OOMScoreAdj:  in.Process.OOMScoreAdj, ApparmorProfile: in.Process.ApparmorProfile, SelinuxLabel: in.Process.SelinuxLabel,
		},
		Linux: &specs.Linux{
			Namespaces: ns, CgroupsPath: in.Linux.CgroupsPath, Resources: resources(in.Linux.Resources, w.s.Policy.Budgets), MountLabel: in.Linux.MountLabel,
			MaskedPaths: confine.Masked(), ReadonlyPaths: []string{"/proc/sys"}, RootfsPropagation: "private",
		},
	}, nil
}

// resources are the budgets, beside what the cluster reserved; and no device
// but ours may be opened or made. begin writes the budgets again, swap
// included; they stand here for systemd, which sets anew what it was told.
func resources(in *specs.LinuxResources, b policies.Budgets) *specs.LinuxResources {
	out := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, CPU: &specs.LinuxCPU{}, Memory: &specs.LinuxMemory{}}
	if in != nil && in.CPU != nil {
		out.CPU.Shares, out.CPU.Cpus, out.CPU.Mems = in.CPU.Shares, in.CPU.Cpus, in.CPU.Mems
	}
	if b.CPU > 0 {
		quota, period := int64(b.CPU*cpuPeriod), uint64(cpuPeriod)
		out.CPU.Quota, out.CPU.Period = &quota, &period
	}
	out.Memory.Limit = &b.Memory
	out.Pids = &specs.LinuxPids{Limit: int64(b.Processes) + supervisorTasks}
	for _, d := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}, {136, -1}} {
		a := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &d[0], Minor: &d[1], Access: "rwm"}
		if d[1] < 0 {
			a.Minor = nil // each of the terminals
		}
		out.Devices = append(out.Devices, a)
	}
	return out
}

// Options of mounts, as runc takes them.
var (
	sealed = []string{"nosuid", "nodev", "noexec"}
	shown  = append([]string{"bind", "private", "ro", "nosuid", "nodev"}, "noexec")
)

// mounts are all that the container has: what the launcher mounts in a sandbox
// of our own, in the same place and with the same bounds.
func (w *pod) mounts(root *os.File) ([]specs.Mount, error) {
	// By descriptor: the path is the runtime's, which may have mounts of its own.
	img := w.s.Image
	img.Layers = []string{"/proc/self/fd/" + strconv.Itoa(int(root.Fd()))}
	ws := writes(w.s.Policy)
	k := &skeleton{img, w.b.id, home(w.s), ws, w.s.TrustPEM}
	dir, err := w.b.l.skeleton(w.b.name, k)
	if err != nil {
		return nil, err
	}
	out := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: append(slices.Clone(sealed), "hidepid=2")},
		{Destination: "/dev", Type: "tmpfs", Source: "dev", Options: []string{"nosuid", "noexec", "ro", "mode=755", "size=64k", "nr_inodes=64"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0600", "max=64"}},
		tmp("/dev/shm", shmSize), tmp("/tmp", w.s.Policy.Budgets.Scratch),
		{Destination: launcherPath, Type: "bind", Source: w.b.l.opt.Launcher, Options: []string{"bind", "private", "ro", "nosuid", "nodev"}},
	}
	for _, p := range slices.Sorted(maps.Keys(k.files())) {
		out = append(out, specs.Mount{Destination: p, Type: "bind", Source: filepath.Join(dir, p), Options: shown})
	}
	for _, b := range w.root.Binds {
		if underAny(b.Target, []string{"/proc", "/dev", "/sys", "/tmp", launcherPath}) || b.Target == "/" {
			return nil, fmt.Errorf("writable path %s is at or below what every sandbox has of its own", b.Target)
		}
		out = append(out, specs.Mount{Destination: b.Target, Type: "bind", Source: b.Source, Options: append([]string{"bind", "private", "rw"}, sealed...)})
	}
	return out, nil
}

func tmp(at string, size int64) specs.Mount {
	inodes := min(max(size/4096, 1024), 1<<20) // as the launcher's mountTmp
	return specs.Mount{Destination: at, Type: "tmpfs", Source: "tmp", Options: append(slices.Clone(sealed), fmt.Sprintf("size=%d", size), fmt.Sprintf("nr_inodes=%d", inodes), "mode=1777")}
}
