package installer

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/installer/host"
)

// What a node wants of a machine. K3s's own documentation asks a server for 2
// cores and 2 GB; the appliance's services and agents come on top.
const (
	minServerMemory  = 2 << 30
	goodServerMemory = 8 << 30
	minAgentMemory   = 1 << 30
	goodAgentMemory  = 4 << 30
	goodCores        = 2
	goodDatastore    = 20 * time.Millisecond // the datastore syncs each change
	evictBelow       = 15                    // percent: kubelet's default imagefs.available
)

// kubeletSysctls are what the kubelet wants under protectKernelDefaults; K3s's
// sysctl file, which the plan writes, has them too.
var kubeletSysctls = map[string]string{
	"vm.overcommit_memory": "1", "vm.panic_on_oom": "0", "kernel.panic": "10", "kernel.panic_on_oops": "1",
	"kernel.keys.root_maxkeys": "1000000", "kernel.keys.root_maxbytes": "25000000",
}

// leastSysctls are limits that fill up on a node with many pods, and why.
var leastSysctls = []struct {
	check, name string
	least       int64
	why         string
}{
	{"inotify-instances", "fs.inotify.max_user_instances", 512, "each pod's logs and probes take some; kubelet fails with \"too many open files\""},
	{"inotify-watches", "fs.inotify.max_user_watches", 65536, "watches on mounted configuration fail"},
	{"file-max", "fs.file-max", 100_000, "sockets and files of all pods count against it"},
	{"pid-max", "kernel.pid_max", 32768, "pods may take 4096 each"},
	{"conntrack-max", "net.netfilter.nf_conntrack_max", 65536, "connections beyond it are dropped"},
}

// nodeChecks are about the machine as a node of Kubernetes.
var nodeChecks = []check{
	{"node-memory", "memory", "", func(q question) Finding {
		least, good := int64(minServerMemory), int64(goodServerMemory)
		if q.a.Cluster.Role == RoleAgent {
			least, good = minAgentMemory, goodAgentMemory
		}
		f := verdict(q.Memory.Total >= good, Warning, bundle.Size(q.Memory.Total), bundle.Size(good), "add memory, or expect few pods")
		if q.Memory.Total < least {
			f.Severity, f.Remedy = Refusal, "add memory: the control plane alone takes most of it"
		}
		return f
	}},
	{"node-cores", "", "", func(q question) Finding {
		return verdict(q.CPUs >= goodCores, Warning, strconv.Itoa(q.CPUs), fmt.Sprintf("%d or more", goodCores), "health checks of the control plane may time out under load")
	}},
	{"kernel-options", "kconfig", Warning, func(q question) Finding {
		miss := missing(host.KernelOptions, slices.Collect(maps.Keys(q.Options)))
		return verdict(len(miss) == 0, Refusal, "without "+list(miss), "the options of K3s's check-config", "boot a kernel with CONFIG_"+strings.Join(miss, ", CONFIG_"))
	}},
	{"modules", "modules", "", func(q question) Finding {
		var miss []string
		for _, m := range host.KernelModules {
			if q.Modules[m] == "" {
				miss = append(miss, m)
			}
		}
		return verdict(len(miss) == 0, Refusal, "neither loaded nor loadable: "+list(miss), list(host.KernelModules), "install the kernel's modules package (linux-modules-extra on Ubuntu), or boot a full kernel instead of a slim one")
	}},
	{"module-loading", "tools", Warning, func(q question) Finding {
		needs := slices.Contains(slices.Collect(maps.Values(q.Modules)), "loadable")
		return verdict(!needs || q.Tools["modprobe"] != "", Refusal, "modules to load and no modprobe", "modprobe, or the modules loaded", "install kmod")
	}},
	{"cgroup-kubelet", "cgroup", "", func(q question) Finding {
		miss := missing([]string{"cpu", "cpuset", "memory", "pids"}, q.Cgroup.Controllers)
		return verdict(len(miss) == 0, Refusal, "without "+list(miss), "controllers cpu, cpuset, memory, pids", "enable "+list(miss)+" (kernel command line: cgroup_enable=)")
	}},
	{"cgroup-v2", "cgroup", "", func(q question) Finding {
		return verdict(q.Cgroup.Version == "v2", Refusal, "cgroup "+q.Cgroup.Version, "cgroup v2", "boot with systemd.unified_cgroup_hierarchy=1").weak("cgroup-v1")
	}},
	{"kubelet-sysctls", "sysctls", "", func(q question) Finding {
		var off []string
		for _, n := range slices.Sorted(maps.Keys(kubeletSysctls)) {
			if q.Sysctls[n] != kubeletSysctls[n] {
				off = append(off, n+"="+q.Sysctls[n])
			}
		}
		switch {
		case len(off) == 0:
			return Finding{Severity: OK, Got: "as the kubelet wants them"}
		case q.ProcRW:
			return inform(list(off) + "; the plan sets them")
		}
		return verdict(false, Refusal, list(off)+", and /proc/sys is read-only", "settings that the kubelet accepts", "set them on the host that contains this one: it runs in a container")
	}},
	{"forwarding", "sysctls", "", func(q question) Finding {
		off := q.Sysctls["net.ipv4.ip_forward"] != "1"
		if off && q.ProcRW {
			return inform("net.ipv4.ip_forward=0; the plan sets it")
		}
		return verdict(!off, Refusal, "net.ipv4.ip_forward=0, and /proc/sys is read-only", "1", "set it on the host that contains this one")
	}},
	{"apparmor", "security", Warning, func(q question) Finding {
		return verdict(!q.AppArmor || q.Tools["apparmor_parser"] != "", Warning, "AppArmor on, apparmor_parser missing", "both or neither", "install the package apparmor: without it containerd starts containers unconfined by AppArmor")
	}},
	{"lockdown", "security", Warning, func(q question) Finding {
		return verdict(q.Lockdown != "confidentiality", Warning, "kernel lockdown: "+list(strings.Fields(q.Lockdown)), "none or integrity", "in confidentiality mode BPF may not read kernel memory, and the guard's witness goes blind: boot with lockdown=integrity")
	}},
	{"swap", "swap", Warning, func(q question) Finding {
		return verdict(len(q.Swap) == 0, Warning, list(q.Swap), "no swap", "swapoff -a and remove it from /etc/fstab: memory of pods, secrets too, is written there in the clear, and limits come late")
	}},
	{"oom-scores", "node", Warning, func(q question) Finding {
		return verdict(q.Resource, Warning, "CAP_SYS_RESOURCE: "+yes(q.Resource), "it, to protect K3s and pods from the out-of-memory killer in order", "this is a container: give it the capability, or expect the wrong process to be killed when memory is short")
	}},
	{"kmsg", "node", "", func(q question) Finding {
		return verdict(q.Kmsg, Refusal, "/dev/kmsg: "+yes(q.Kmsg), "it, from which the kubelet learns of killed processes", "this is a container: give it /dev/kmsg, or use a machine")
	}},
	{"mount-propagation", "node", "", func(q question) Finding {
		return verdict(q.Shared, Warning, "mounts below / propagate: "+yes(q.Shared), "a shared root, as systemd makes it", "mount --make-rshared /: volumes that appear later stay invisible to pods")
	}},
	{"machine-id", "node", "", func(q question) Finding {
		ok := len(q.MachineID) == 32 && strings.Trim(q.MachineID, "0123456789abcdef") == ""
		return verdict(ok, Warning, "/etc/machine-id "+strconv.Quote(q.MachineID), "32 hexadecimal digits that no other node has", "systemd-machine-id-setup; cloned images must be given a new one")
	}},
	{"datastore-fsync", "diskspeed", Warning, func(q question) Finding {
		bad := q.a.Cluster.Role == RoleServer && q.Disk.Fsync > goodDatastore
		return verdict(!bad, Warning, q.Disk.Fsync.Round(10*time.Microsecond).String(), "at most "+goodDatastore.String(), "leases of the control plane expire on slow disks; use a faster one")
	}},
	{"kubelet-disk", "places", "", func(q question) Finding {
		var wrong []string
		for _, p := range []string{"/var/lib/rancher", "/var/lib/kubelet"} {
			for _, o := range []string{"ro", "noexec", "nosuid", "nodev"} {
				if slices.Contains(q.Places[p].Options, o) {
					wrong = append(wrong, p+" "+o)
				}
			}
		}
		return verdict(len(wrong) == 0, Refusal, list(wrong), "rw, exec, suid and dev: containers' root file systems are there", "remount it without these options")
	}},
	{"kubelet-fs", "places", "", func(q question) Finding {
		t := q.Places["/var/lib/rancher"].FSType
		why, isBad := badFS[t]
		if slices.Contains(volatileFS, t) {
			why, isBad = "it is lost at power-off, or cannot hold overlays", true
		}
		return verdict(!isBad, Refusal, t+": "+why, "ext4, xfs or btrfs at /var/lib/rancher", "mount a disk there").weak("volatile-state")
	}},
	{"kubelet-space", "places", "", func(q question) Finding {
		p := q.Places["/var/lib/kubelet"]
		pct := int64(100)
		if p.Size > 0 {
			pct = p.Free * 100 / p.Size
		}
		return verdict(pct > evictBelow, Refusal, fmt.Sprintf("%d%% free (%s of %s)", pct, bundle.Size(p.Free), bundle.Size(p.Size)), fmt.Sprintf("more than %d%%", evictBelow), "free space: the kubelet evicts pods and collects images below it")
	}},
	{"tmp", "places", Note, func(q question) Finding {
		o := q.Places["/tmp"].Options
		if slices.Contains(o, "noexec") {
			return inform("/tmp is mounted noexec; nothing here runs from it")
		}
		return Finding{Severity: OK, Got: "/tmp " + list(o)}
	}},
}

// limitChecks has a check for each limit.
var limitChecks = func() (out []check) {
	for _, l := range leastSysctls {
		out = append(out, check{l.check, "sysctls", Warning, func(q question) Finding {
			n, err := strconv.ParseInt(q.Sysctls[l.name], 10, 64)
			if err != nil {
				return inform(l.name + " is not there yet")
			}
			return verdict(n >= l.least, Warning, fmt.Sprintf("%s=%d", l.name, n), fmt.Sprint(l.least), "raise it in /etc/sysctl.d: "+l.why)
		}})
	}
	return out
}()
