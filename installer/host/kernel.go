package host

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

func (g *gatherer) kernel() error {
	s, err := g.read("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	g.f.Kernel.Release = s
	if _, err := fmt.Sscanf(s, "%d.%d", &g.f.Kernel.Major, &g.f.Kernel.Minor); err != nil {
		return fmt.Errorf("kernel release %q: %w", s, err)
	}
	return nil
}

func (g *gatherer) memory() error {
	s, err := g.read("/proc/meminfo")
	if err != nil {
		return err
	}
	for l := range strings.Lines(s) {
		name, rest, _ := strings.Cut(l, ":")
		n, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
		switch name {
		case "MemTotal":
			g.f.Memory.Total = n << 10
		case "MemAvailable":
			g.f.Memory.Available = n << 10
		}
	}
	if g.f.Memory.Total == 0 {
		return errors.New("/proc/meminfo has no MemTotal")
	}
	return nil
}

// lsmNames maps LSM_ID_* of linux/lsm.h to the names that lsm= takes.
var lsmNames = map[uint64]string{
	100: "capability", 101: "selinux", 102: "smack", 103: "tomoyo", 104: "apparmor",
	105: "yama", 106: "loadpin", 107: "safesetid", 108: "lockdown", 109: "bpf",
	110: "landlock", 111: "ima", 112: "evm", 113: "ipe",
}

// lsm reads securityfs, or asks the kernel where that is not mounted
// (lsm_list_modules, Linux 6.8).
func (g *gatherer) lsm() error {
	s, err := g.read("/sys/kernel/security/lsm")
	if err == nil && s != "" {
		g.f.LSM = strings.Split(s, ",")
		return nil
	}
	ids := make([]uint64, 64)
	size := uint32(len(ids) * 8)
	n, _, errno := unix.Syscall(unix.SYS_LSM_LIST_MODULES, uintptr(unsafe.Pointer(&ids[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return fmt.Errorf("securityfs: %v; lsm_list_modules: %w", err, errno)
	}
	for _, id := range ids[:min(int(n), len(ids))] {
		name, ok := lsmNames[id]
		if !ok {
			name = fmt.Sprintf("lsm-%d", id)
		}
		g.f.LSM = append(g.f.LSM, name)
	}
	return nil
}

func (g *gatherer) selinux() error {
	s, err := g.read("/sys/fs/selinux/enforce")
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case s == "1":
		g.f.SELinux = "enforcing"
	case s == "0":
		g.f.SELinux = "permissive"
	}
	return err
}

func (g *gatherer) landlock() error {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	switch errno {
	case 0:
		g.f.Landlock = int(v)
	case unix.ENOSYS, unix.EOPNOTSUPP: // not built in; built in but not in lsm=
		g.f.Landlock = 0
	default:
		return errno
	}
	return nil
}

func (g *gatherer) seccomp() error {
	act := uint32(unix.SECCOMP_RET_KILL_PROCESS)
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&act)))
	switch errno {
	case 0:
		g.f.Seccomp = true
	case unix.ENOSYS, unix.EINVAL, unix.EOPNOTSUPP:
		g.f.Seccomp = false
	default:
		return errno
	}
	return nil
}

func (g *gatherer) namespaces() error {
	es, err := os.ReadDir(filepath.Join(g.sys, "/proc/self/ns"))
	for _, e := range es {
		if !strings.HasSuffix(e.Name(), "_for_children") {
			g.f.Namespaces = append(g.f.Namespaces, e.Name())
		}
	}
	return err
}

func (g *gatherer) userns() error {
	s, err := g.read("/proc/sys/user/max_user_namespaces")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		g.f.UserNS, err = strconv.Atoi(s)
	}
	return err
}

// overlay is there when the kernel lists it, or can load it on first mount.
func (g *gatherer) overlay() error {
	s, err := g.read("/proc/filesystems")
	if err != nil {
		return err
	}
	if slices.Contains(strings.Fields(s), "overlay") {
		g.f.Overlay = true
		return nil
	}
	m, err := filepath.Glob(filepath.Join(g.sys, "/lib/modules", g.f.Kernel.Release, "kernel/fs/overlayfs/overlay.ko*"))
	g.f.Overlay = len(m) > 0
	return err
}

// mount is one line of mountinfo.
type mount struct{ point, fstype, options, super string }

// mounts parses /proc/self/mountinfo (proc(5)); later lines cover earlier ones.
func (g *gatherer) mounts() ([]mount, error) {
	s, err := g.read("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var ms []mount
	for l := range strings.Lines(s) {
		head, tail, ok := strings.Cut(strings.TrimSpace(l), " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if !ok || len(h) < 6 || len(t) < 2 {
			return nil, fmt.Errorf("mountinfo: cannot read the line %q", l)
		}
		m := mount{point: unescape(h[4]), options: h[5], fstype: t[0]}
		if len(t) > 2 {
			m.super = t[2]
		}
		ms = append(ms, m)
	}
	return ms, nil
}

// unescape turns mountinfo's octal escapes (\040) back into bytes.
func unescape(s string) string {
	var b bytes.Buffer
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// wanted controllers are the ones that a sandbox is bounded by; others are
// named too, so the list is filtered by what v1 mounts may carry.
var v1Controllers = []string{"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "net_cls", "net_prio", "perf_event", "hugetlb", "rdma", "misc"}

func (g *gatherer) cgroup() error {
	ms, err := g.mounts()
	if err != nil {
		return err
	}
	c := &g.f.Cgroup
	v1 := false
	for _, m := range ms {
		switch m.fstype {
		case "cgroup2":
			c.Unified = m.point
		case "cgroup":
			v1 = true
			for o := range strings.SplitSeq(m.super, ",") {
				if slices.Contains(v1Controllers, o) {
					c.Controllers = append(c.Controllers, o)
				}
			}
		}
	}
	switch {
	case v1 && c.Unified != "":
		c.Version = "hybrid"
	case v1:
		c.Version = "v1"
	case c.Unified != "":
		c.Version = "v2"
	default:
		return errors.New("no cgroup file system is mounted")
	}
	if c.Unified != "" {
		s, err := g.read(filepath.Join(c.Unified, "cgroup.controllers"))
		if err != nil {
			return err
		}
		c.Controllers = append(c.Controllers, strings.Fields(s)...)
	}
	slices.Sort(c.Controllers)
	c.Controllers = slices.Compact(c.Controllers)
	return nil
}

// bpf loads minimal programs and drops them at once. A refusal is an answer
// (false); its reason is kept because it is what an operator needs.
func (g *gatherer) bpf() error {
	b := &g.f.BPF
	var why []error
	try := func(set *bool, name string, err error) {
		*set = err == nil
		if err != nil {
			why = append(why, fmt.Errorf("%s: %w", name, firstLine(err)))
		}
	}
	_, err := os.Stat(filepath.Join(g.sys, "/sys/kernel/btf/vmlinux"))
	try(&b.BTF, "BTF", err)
	try(&b.Tracepoint, "tp_btf", loadTracepoint())
	try(&b.CgroupSock, "cgroup_sock_addr", features.HaveProgramType(ebpf.CGroupSockAddr))
	try(&b.SkLookup, "sk_lookup", features.HaveProgramType(ebpf.SkLookup))
	b.LSM = features.HaveProgramType(ebpf.LSM) == nil
	return errors.Join(why...)
}

// firstLine drops the verifier's log from an error.
func firstLine(err error) error {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return errors.New(s)
}

func loadTracepoint() error {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "clawbox_probe", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: "sched_process_exec",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
		License:      "GPL", // tracing helpers are GPL-only; the probe itself calls none
	})
	if err != nil {
		return err
	}
	return p.Close()
}
