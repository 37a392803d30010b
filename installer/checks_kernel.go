package installer

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Kernels: 5.13 brought Landlock; 6.1 is the oldest that the guard's scope by
// cgroup was tried on. ABI 3 (6.2) controls truncation.
const (
	minKernelMajor, minKernelMinor   = 5, 13
	goodKernelMajor, goodKernelMinor = 6, 1
	goodLandlock                     = 3
)

var (
	needNamespaces  = []string{"cgroup", "ipc", "mnt", "net", "pid", "uts"}
	needControllers = []string{"cpu", "memory", "pids"}
)

// kernelChecks are about what encloses an agent.
var kernelChecks = []check{
	{"kernel", "kernel", "", func(q question) Finding {
		want := fmt.Sprintf("%d.%d or newer", goodKernelMajor, goodKernelMinor)
		f := verdict(q.Kernel.AtLeast(goodKernelMajor, goodKernelMinor), Warning, q.Kernel.Release, want, "older kernels were not tried")
		if !q.Kernel.AtLeast(minKernelMajor, minKernelMinor) {
			f.Severity, f.Remedy = Refusal, "install a newer kernel: Landlock came with 5.13"
		}
		return f
	}},
	{"landlock", "landlock", "", func(q question) Finding {
		got := fmt.Sprintf("ABI %d", q.Landlock)
		if q.Landlock < 1 {
			return verdict(false, Refusal, got, fmt.Sprintf("ABI %d", goodLandlock), "add landlock to the kernel's lsm= list and boot again; without it there is no sandbox")
		}
		return verdict(q.Landlock >= goodLandlock, Refusal, got, fmt.Sprintf("ABI %d", goodLandlock), "boot a kernel of 6.2 or newer").weak("landlock-old")
	}},
	{"seccomp", "seccomp", "", func(q question) Finding {
		return verdict(q.Seccomp, Refusal, "filters "+yes(q.Seccomp), "filters with KILL_PROCESS", "boot a kernel with CONFIG_SECCOMP_FILTER")
	}},
	{"namespaces", "namespaces", "", func(q question) Finding {
		miss := missing(needNamespaces, q.Namespaces)
		return verdict(len(miss) == 0, Refusal, list(q.Namespaces), list(needNamespaces), "boot a kernel with namespaces for "+list(miss))
	}},
	{"overlay", "overlay", "", func(q question) Finding {
		return verdict(q.Overlay, Refusal, "overlayfs "+yes(q.Overlay), "overlayfs", "boot a kernel with CONFIG_OVERLAY_FS: it is an agent's root file system")
	}},
	{"cgroups", "cgroup", "", func(q question) Finding {
		miss := missing(needControllers, q.Cgroup.Controllers)
		return verdict(len(miss) == 0, Refusal, q.Cgroup.Version+" with "+list(q.Cgroup.Controllers), list(needControllers), "enable "+list(miss)+" (kernel command line: cgroup_enable=)")
	}},
	{"cgroup2", "cgroup", "", func(q question) Finding {
		return verdict(q.Cgroup.Unified != "", Refusal, "cgroup2 "+yes(q.Cgroup.Unified != ""), "a mounted cgroup2, which tells the guard an agent's processes", "mount -t cgroup2 none /sys/fs/cgroup/unified").weak("tier-T4")
	}},
	{"guard-tier", "bpf", "", func(q question) Finding {
		got := q.BPF.Tier()
		if why := q.Failed["bpf"]; why != "" {
			got += " (" + strings.ReplaceAll(why, "\n", "; ") + ")"
		}
		return verdict(q.BPF.Tier() != "T4", Refusal, got, "T3: tp_btf, cgroup and sk_lookup programs", "boot a kernel with CONFIG_BPF_SYSCALL and CONFIG_DEBUG_INFO_BTF, and allow root to load BPF").weak("tier-T4")
	}},
	{"bpf-lsm", "lsm", Note, func(q question) Finding {
		if q.BPF.LSM && slices.Contains(q.LSM, "bpf") {
			return inform("bpf is in the LSM list; this release uses T3 all the same")
		}
		return inform("BPF LSM programs are not usable; this release does not need them")
	}},
	{"mandatory-access", "selinux", Warning, func(q question) Finding {
		return verdict(q.SELinux != "enforcing", Warning, "SELinux: "+cmp.Or(q.SELinux, "off"), "a host without SELinux enforcing", "this release brings no SELinux module; denials will show in the audit log")
	}},
	{"user-namespaces", "userns", Note, func(q question) Finding {
		return inform(fmt.Sprintf("up to %d; agents are denied them by seccomp in any case", q.UserNS))
	}},
	{"systemd", "systemd", "", func(q question) Finding {
		if q.a.Start == "none" {
			return inform("not used; after installing run: " + serveCommand(q.a))
		}
		if q.a.Root != "/" {
			return verdict(false, Refusal, "start: systemd with root "+q.a.Root, "root / for a system service", "answer start: none, and run: "+serveCommand(q.a))
		}
		return verdict(q.Systemd, Refusal, "systemd running: "+yes(q.Systemd), "systemd as init", "answer start: none, and run: "+serveCommand(q.a))
	}},
}

// serveCommand is how to run the appliance in the foreground.
func serveCommand(a Answers) string {
	return a.layout().Command() + " serve --config " + a.layout().Config()
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// missing lists what of want is not in have.
func missing(want, have []string) []string {
	return slices.DeleteFunc(slices.Clone(want), func(s string) bool { return slices.Contains(have, s) })
}
