package confine

import (
	"encoding/binary"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	allow  = unix.SECCOMP_RET_ALLOW
	killed = unix.SECCOMP_RET_KILL_PROCESS
	eperm  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	enosys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// ask runs a profile in an interpreter. The interpreter loads big-endian, the
// kernel natively, so each half of a word is stored big-endian here.
func ask(t *testing.T, name string, arch, nr uint32, args ...uint64) uint32 {
	t.Helper()
	vm, err := bpf.NewVM(profiles()[name].compile())
	if err != nil {
		t.Fatal(err)
	}
	d := make([]byte, 64)
	binary.BigEndian.PutUint32(d[offNr:], nr)
	binary.BigEndian.PutUint32(d[offArch:], arch)
	for i, a := range args {
		binary.BigEndian.PutUint32(d[offArgs+8*i:], uint32(a))
		binary.BigEndian.PutUint32(d[offArgs+8*i+4:], uint32(a>>32))
	}
	n, err := vm.Run(d)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

const high = 0xdead_beef << 32 // the kernel ignores the upper half of 32-bit arguments, so the filter must too

func TestRules(t *testing.T) {
	const thread = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD
	tests := []struct {
		name          string
		nr            uint32
		args          []uint64
		std, strictly uint32
	}{
		{"read", unix.SYS_READ, nil, allow, allow},
		{"execve", unix.SYS_EXECVE, nil, allow, allow},
		{"clone process", unix.SYS_CLONE, []uint64{uint64(unix.SIGCHLD)}, allow, eperm},
		{"clone vfork", unix.SYS_CLONE, []uint64{unix.CLONE_VM | unix.CLONE_VFORK | uint64(unix.SIGCHLD)}, allow, eperm},
		{"clone thread", unix.SYS_CLONE, []uint64{thread}, allow, allow},
		{"clone thread, upper half", unix.SYS_CLONE, []uint64{thread | high}, allow, allow},
		{"clone user namespace", unix.SYS_CLONE, []uint64{unix.CLONE_NEWUSER | uint64(unix.SIGCHLD)}, eperm, eperm},
		{"clone mount namespace", unix.SYS_CLONE, []uint64{unix.CLONE_NEWNS | high}, eperm, eperm},
		{"clone thread in namespace", unix.SYS_CLONE, []uint64{thread | unix.CLONE_NEWNET}, eperm, eperm},
		{"clone3", unix.SYS_CLONE3, nil, enosys, enosys},
		{"unshare", unix.SYS_UNSHARE, nil, eperm, eperm},
		{"socket unix", unix.SYS_SOCKET, []uint64{unix.AF_UNIX, unix.SOCK_STREAM | unix.SOCK_CLOEXEC, 0}, allow, allow},
		{"socket tcp", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_NONBLOCK, unix.IPPROTO_TCP}, allow, allow},
		{"socket tcp6", unix.SYS_SOCKET, []uint64{unix.AF_INET6, unix.SOCK_STREAM, 0}, allow, allow},
		{"socket udp", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP}, allow, allow},
		{"socket ping", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, eperm, eperm},
		{"socket mptcp", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}, eperm, eperm},
		{"socket mptcp, upper half", unix.SYS_SOCKET, []uint64{unix.AF_INET | high, unix.SOCK_STREAM | high, unix.IPPROTO_MPTCP | high}, eperm, eperm},
		{"socket sctp", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP}, eperm, eperm},
		{"socket raw", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP}, eperm, eperm},
		{"socket raw6", unix.SYS_SOCKET, []uint64{unix.AF_INET6, unix.SOCK_RAW | unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6}, eperm, eperm},
		{"socket old packet", unix.SYS_SOCKET, []uint64{unix.AF_INET, unix.SOCK_PACKET, 0}, eperm, eperm},
		{"socket packet", unix.SYS_SOCKET, []uint64{unix.AF_PACKET, unix.SOCK_DGRAM, 0}, eperm, eperm},
		{"socket vsock", unix.SYS_SOCKET, []uint64{unix.AF_VSOCK, unix.SOCK_STREAM, 0}, eperm, eperm},
		{"socket alg", unix.SYS_SOCKET, []uint64{unix.AF_ALG, unix.SOCK_SEQPACKET, 0}, eperm, eperm},
		{"socket route", unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_RAW | unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE}, allow, eperm},
		{"socket netfilter", unix.SYS_SOCKET, []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, eperm, eperm},
		{"socketpair unix", unix.SYS_SOCKETPAIR, []uint64{unix.AF_UNIX, unix.SOCK_STREAM, 0}, allow, allow},
		{"socketpair inet", unix.SYS_SOCKETPAIR, []uint64{unix.AF_INET, unix.SOCK_STREAM, 0}, eperm, eperm},
		{"ioctl window size", unix.SYS_IOCTL, []uint64{0, unix.TIOCGWINSZ}, allow, allow},
		{"ioctl type into terminal", unix.SYS_IOCTL, []uint64{0, unix.TIOCSTI}, eperm, eperm},
		{"ioctl type into terminal, upper half", unix.SYS_IOCTL, []uint64{0, unix.TIOCSTI | high}, eperm, eperm},
		{"ioctl console", unix.SYS_IOCTL, []uint64{0, unix.TIOCLINUX}, eperm, eperm},
		{"ioctl line discipline", unix.SYS_IOCTL, []uint64{0, unix.TIOCSETD}, eperm, eperm},
		{"ioctl line discipline, upper half", unix.SYS_IOCTL, []uint64{0, unix.TIOCSETD | high}, eperm, eperm},
		{"ioctl line discipline query", unix.SYS_IOCTL, []uint64{0, unix.TIOCGETD}, allow, eperm},
		{"ioctl console output", unix.SYS_IOCTL, []uint64{0, unix.TIOCCONS}, eperm, eperm},
		{"ioctl bytes waiting", unix.SYS_IOCTL, []uint64{0, unix.TIOCINQ}, allow, allow},
		{"ioctl clone a file", unix.SYS_IOCTL, []uint64{0, unix.FICLONE}, allow, eperm},
		{"fcntl flags", unix.SYS_FCNTL, []uint64{0, unix.F_GETFL}, allow, allow},
		{"fcntl lease", unix.SYS_FCNTL, []uint64{0, unix.F_SETLEASE}, allow, eperm},
		{"sendto", unix.SYS_SENDTO, []uint64{3, 0, 0, unix.MSG_NOSIGNAL}, allow, allow},
		{"sendto fast open", unix.SYS_SENDTO, []uint64{3, 0, 0, unix.MSG_FASTOPEN | unix.MSG_NOSIGNAL}, eperm, eperm},
		{"sendto fast open, upper half", unix.SYS_SENDTO, []uint64{3, 0, 0, unix.MSG_FASTOPEN | high}, eperm, eperm},
		{"sendmsg fast open", unix.SYS_SENDMSG, []uint64{3, 0, unix.MSG_FASTOPEN}, eperm, eperm},
		{"sendmmsg fast open", unix.SYS_SENDMMSG, []uint64{3, 0, 1, unix.MSG_FASTOPEN}, eperm, eperm},
		{"setsockopt fast open", unix.SYS_SETSOCKOPT, []uint64{3, unix.SOL_TCP, unix.TCP_FASTOPEN_CONNECT}, eperm, eperm},
		{"setsockopt packet filter", unix.SYS_SETSOCKOPT, []uint64{3, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER}, eperm, eperm},
		{"setsockopt odd level", unix.SYS_SETSOCKOPT, []uint64{3, unix.SOL_RAW, 1}, allow, eperm},
		{"mknod fifo", unix.SYS_MKNODAT, []uint64{0, 0, unix.S_IFIFO | 0o644}, allow, allow},
		{"mknod device", unix.SYS_MKNODAT, []uint64{0, 0, unix.S_IFBLK | 0o644}, allow, eperm}, // in default, the kernel refuses
		{"prlimit own", unix.SYS_PRLIMIT64, []uint64{0}, allow, allow},
		{"prlimit another's", unix.SYS_PRLIMIT64, []uint64{7}, allow, eperm},
		{"shared memory", unix.SYS_SHMGET, nil, allow, eperm},
		{"sync of the whole host", unix.SYS_SYNC, nil, allow, eperm},
		{"set capabilities", unix.SYS_CAPSET, nil, allow, eperm},
		{"setsockopt over tcp", unix.SYS_SETSOCKOPT, []uint64{3, unix.SOL_TCP, unix.TCP_ULP}, eperm, eperm},
		{"setsockopt over tcp, upper half", unix.SYS_SETSOCKOPT, []uint64{3, unix.SOL_TCP | high, unix.TCP_ULP | high}, eperm, eperm},
		{"setsockopt no delay", unix.SYS_SETSOCKOPT, []uint64{3, unix.SOL_TCP, unix.TCP_NODELAY}, allow, allow},
		{"setsockopt same number, other level", unix.SYS_SETSOCKOPT, []uint64{3, unix.SOL_SOCKET, unix.TCP_ULP}, allow, allow},
		{"personality query", unix.SYS_PERSONALITY, []uint64{0xffffffff}, allow, allow},
		{"personality linux", unix.SYS_PERSONALITY, []uint64{0}, allow, allow},
		{"personality no randomization", unix.SYS_PERSONALITY, []uint64{0x0040000}, eperm, eperm},
		{"memfd", unix.SYS_MEMFD_CREATE, []uint64{0, unix.MFD_CLOEXEC}, eperm, eperm},
		{"memfd sealed", unix.SYS_MEMFD_CREATE, []uint64{0, unix.MFD_CLOEXEC | unix.MFD_NOEXEC_SEAL}, allow, allow},
		{"memfd executable", unix.SYS_MEMFD_CREATE, []uint64{0, unix.MFD_EXEC}, eperm, eperm},
		{"memfd both", unix.SYS_MEMFD_CREATE, []uint64{0, unix.MFD_EXEC | unix.MFD_NOEXEC_SEAL}, eperm, eperm},
		{"prctl name", unix.SYS_PRCTL, []uint64{unix.PR_SET_NAME}, allow, allow},
		{"prctl filter", unix.SYS_PRCTL, []uint64{unix.PR_SET_SECCOMP}, eperm, eperm},
		{"prctl mm", unix.SYS_PRCTL, []uint64{unix.PR_SET_MM}, eperm, eperm},
		{"ptrace", unix.SYS_PTRACE, nil, eperm, eperm},
		{"process_vm_readv", unix.SYS_PROCESS_VM_READV, nil, eperm, eperm},
		{"pidfd_getfd", unix.SYS_PIDFD_GETFD, nil, eperm, eperm},
		{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, nil, eperm, eperm},
		{"move_mount", unix.SYS_MOVE_MOUNT, nil, eperm, eperm},
		{"io_uring", unix.SYS_IO_URING_SETUP, nil, eperm, eperm},
		{"userfaultfd", unix.SYS_USERFAULTFD, nil, eperm, eperm},
		{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, nil, eperm, eperm},
		{"bpf", unix.SYS_BPF, nil, eperm, eperm},
		{"keyctl", unix.SYS_KEYCTL, nil, eperm, eperm},
		{"add_key", unix.SYS_ADD_KEY, nil, eperm, eperm},
		{"request_key", unix.SYS_REQUEST_KEY, nil, eperm, eperm},
		{"fsopen", unix.SYS_FSOPEN, nil, eperm, eperm},
		{"open_tree", unix.SYS_OPEN_TREE, nil, eperm, eperm},
		{"mount_setattr", unix.SYS_MOUNT_SETATTR, nil, eperm, eperm},
		{"setns", unix.SYS_SETNS, nil, eperm, eperm},
		{"process_vm_writev", unix.SYS_PROCESS_VM_WRITEV, nil, eperm, eperm},
		{"kcmp", unix.SYS_KCMP, nil, eperm, eperm},
		{"quotactl", unix.SYS_QUOTACTL, nil, eperm, eperm},
		{"swapon", unix.SYS_SWAPON, nil, eperm, eperm},
		{"seccomp", unix.SYS_SECCOMP, nil, eperm, eperm},
		{"fanotify", unix.SYS_FANOTIFY_INIT, nil, eperm, eperm},
		{"name_to_handle_at", unix.SYS_NAME_TO_HANDLE_AT, nil, eperm, eperm},
		{"memfd_secret", unix.SYS_MEMFD_SECRET, nil, eperm, eperm},
		{"unknown", 1000, nil, enosys, enosys},
	}
	for _, x := range tests {
		if got := ask(t, "default", auditArch, x.nr, x.args...); got != x.std {
			t.Errorf("default, %s: got %#x, want %#x", x.name, got, x.std)
		}
		if got := ask(t, "strict", auditArch, x.nr, x.args...); got != x.strictly {
			t.Errorf("strict, %s: got %#x, want %#x", x.name, got, x.strictly)
		}
	}
}

// TestSupervisor: PID 1 opens, executes and connects nothing, on no thread.
func TestSupervisor(t *testing.T) {
	for name, nr := range map[string]uint32{
		"openat": unix.SYS_OPENAT, "execve": unix.SYS_EXECVE, "execveat": unix.SYS_EXECVEAT, "socket": unix.SYS_SOCKET, "ptrace": unix.SYS_PTRACE,
		"setuid": unix.SYS_SETUID, "setns": unix.SYS_SETNS, "unshare": unix.SYS_UNSHARE, "mount": unix.SYS_MOUNT, "bpf": unix.SYS_BPF, "pidfd_getfd": unix.SYS_PIDFD_GETFD,
	} {
		if got := ask(t, "supervisor", auditArch, nr); got == allow {
			t.Errorf("%s is allowed", name)
		}
	}
	for name, nr := range map[string]uint32{"wait4": unix.SYS_WAIT4, "kill": unix.SYS_KILL, "read": unix.SYS_READ, "futex": unix.SYS_FUTEX} {
		if got := ask(t, "supervisor", auditArch, nr); got != allow {
			t.Errorf("%s: %#x", name, got)
		}
	}
	if got := ask(t, "supervisor", auditArch, unix.SYS_CLONE, uint64(unix.SIGCHLD)); got != eperm {
		t.Errorf("a process beside the agent: %#x", got)
	}
}

func TestForeign(t *testing.T) {
	for _, name := range []string{"default", "strict", "supervisor"} {
		if got := ask(t, name, unix.AUDIT_ARCH_I386, unix.SYS_READ); got != killed {
			t.Errorf("%s: another architecture: %#x, want a kill", name, got)
		}
		if foreignBit != 0 {
			if got := ask(t, name, auditArch, foreignBit|unix.SYS_READ); got != killed {
				t.Errorf("%s: x32: %#x, want a kill", name, got)
			}
		}
	}
}

func TestForks(t *testing.T) {
	for _, nr := range forks {
		if got := ask(t, "default", auditArch, nr); got != allow {
			t.Errorf("default, %d: %#x", nr, got)
		}
		if got := ask(t, "strict", auditArch, nr); got != eperm {
			t.Errorf("strict, %d: %#x", nr, got)
		}
	}
}

// TestTables: every system call of this architecture that x/sys knows was
// decided on purpose, once.
func TestTables(t *testing.T) {
	place := map[uint32][]string{}
	put := func(name string, nrs ...uint32) {
		for _, nr := range nrs {
			place[nr] = append(place[nr], name)
		}
	}
	put("allowed", append(allowed, archAllowed...)...)
	put("denied", append(denied, archDenied...)...)
	put("absent", append(absent, archAbsent...)...)
	put("forks", forks...)
	for nr := range someCalls() {
		put("someCalls", nr)
	}
	for name, nr := range knownCalls(t) {
		if len(place[nr]) != 1 {
			t.Errorf("%s (%d) stands in %v; want exactly one table", name, nr, place[nr])
		}
	}
	for nr, in := range place {
		if len(in) > 1 {
			t.Errorf("call %d stands in %v", nr, in)
		}
	}
}

// knownCalls reads the constants SYS_… of x/sys for this architecture.
func knownCalls(t *testing.T) map[string]uint32 {
	t.Helper()
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "golang.org/x/sys/unix").Output()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(strings.TrimSpace(string(out)), "zsysnum_linux_"+runtime.GOARCH+".go")
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]uint32{}
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(v.Names[0].Name, "SYS_") || v.Names[0].Name == "SYS_ARCH_SPECIFIC_SYSCALL" {
			return true
		}
		nr, err := strconv.ParseUint(v.Values[0].(*ast.BasicLit).Value, 0, 32)
		if err != nil {
			t.Fatal(err)
		}
		m[v.Names[0].Name] = uint32(nr)
		return true
	})
	if len(m) < 250 {
		t.Fatalf("only %d calls in %s", len(m), file)
	}
	return m
}

func TestProfile(t *testing.T) {
	if _, err := Profile("lax"); err == nil {
		t.Error("an unknown profile was compiled")
	}
	for _, name := range []string{"default", "strict", "supervisor"} {
		p, err := Profile(name)
		if err != nil || len(p) == 0 || len(p) > 4096 {
			t.Errorf("%s: %d instructions, %v; the kernel takes 4096", name, len(p), err)
		}
		t.Logf("%s: %d instructions", name, len(p))
	}
}
