package service

import (
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// common is what a Go program needs that reads files and talks over sockets
// that it was given. What may be opened is Landlock's business.
var common = append([]uint32{
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_CLOSE, unix.SYS_LSEEK,
	unix.SYS_OPENAT, unix.SYS_FSTAT, unix.SYS_NEWFSTATAT, unix.SYS_STATX, unix.SYS_STATFS, unix.SYS_FSTATFS, unix.SYS_GETDENTS64,
	unix.SYS_READLINKAT, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2, unix.SYS_GETCWD, unix.SYS_FCNTL, unix.SYS_DUP, unix.SYS_DUP3, unix.SYS_FLOCK,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2, unix.SYS_PIPE2, unix.SYS_PPOLL, unix.SYS_SPLICE, unix.SYS_SENDFILE,
	unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MREMAP, unix.SYS_MPROTECT, unix.SYS_MADVISE, unix.SYS_MINCORE, unix.SYS_BRK,
	unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_GETRES, unix.SYS_GETTIMEOFDAY,
	unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_GETCPU, unix.SYS_SET_ROBUST_LIST, unix.SYS_SET_TID_ADDRESS, unix.SYS_RSEQ, unix.SYS_MEMBARRIER,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL,
	unix.SYS_TIMER_CREATE, unix.SYS_TIMER_SETTIME, unix.SYS_TIMER_DELETE, unix.SYS_SETITIMER,
	unix.SYS_GETPID, unix.SYS_GETPPID, unix.SYS_GETTID, unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID, unix.SYS_GETGROUPS,
	unix.SYS_CAPGET, unix.SYS_GETRLIMIT, unix.SYS_GETRUSAGE, unix.SYS_SYSINFO, unix.SYS_UNAME, unix.SYS_GETRANDOM, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
	unix.SYS_ACCEPT4, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKOPT, unix.SYS_SHUTDOWN,
	unix.SYS_SENDTO, unix.SYS_RECVFROM, unix.SYS_SENDMSG, unix.SYS_RECVMSG, unix.SYS_SENDMMSG, unix.SYS_RECVMMSG,
}, archCommon...)

// groups are what a Cage can add.
var groups = map[string][]uint32{
	"write": append([]uint32{
		unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_MKDIRAT,
		unix.SYS_UNLINKAT, unix.SYS_LINKAT, unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_UTIMENSAT, unix.SYS_COPY_FILE_RANGE, unix.SYS_UMASK, unix.SYS_SYNC_FILE_RANGE,
	}, archWrite...),
	"connect": {unix.SYS_CONNECT}, // and socket, by its arguments
	// What net.InterfaceAddrs needs: a routing socket, and bind, which Landlock
	// refuses for TCP ports and which is of no use without listen.
	"interfaces": {unix.SYS_BIND},
	"bpf":        {unix.SYS_BPF, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_PERF_EVENT_OPEN},
}

func (c *Cage) may(group string) bool { return slices.Contains(c.Calls, group) }

// Offsets in struct seccomp_data (linux/seccomp.h). A test sees half an
// argument; the low one is enough where the kernel reads 32 bits, pointers are
// tested in both.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
	upper   = 4 // of an argument, on little-endian machines
)

var (
	retAllow  = bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	retKill   = bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS}
	retDenied = bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
	retAbsent = bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)}
)

// arg is a test of one argument: masked, it is one of want.
type arg struct {
	n    int
	mask uint32
	want []uint32
	half uint32 // upper, or 0: the lower one
}

const (
	all        = ^uint32(0)
	sockType   = 0xf // socket(2): the type without SOCK_CLOEXEC and SOCK_NONBLOCK
	prSetVMA   = 0x53564d41
	namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET
)

// rule allows a call where all tests hold.
type rule struct {
	nr   uint32
	when []arg
}

// rules are the calls that are allowed by their arguments, each by any of its
// rules.
func (c *Cage) rules(pid int) []rule {
	rs := []rule{
		// Threads only.
		{unix.SYS_CLONE, []arg{{n: 0, mask: namespaces | unix.CLONE_THREAD, want: []uint32{unix.CLONE_THREAD}}}},
		// Go stops its own threads that way.
		{unix.SYS_TGKILL, []arg{{n: 0, mask: all, want: []uint32{uint32(pid)}}}},
		// Read only: the address of a new limit is zero in both halves.
		{unix.SYS_PRLIMIT64, []arg{
			{n: 0, mask: all, want: []uint32{0, uint32(pid)}},
			{n: 2, mask: all, want: []uint32{0}},
			{n: 2, half: upper, mask: all, want: []uint32{0}},
		}},
		// A pair of datagram sockets could still send to any other one.
		{unix.SYS_SOCKETPAIR, []arg{{n: 0, mask: all, want: []uint32{unix.AF_UNIX}}, {n: 1, mask: sockType, want: []uint32{unix.SOCK_STREAM}}}},
		{unix.SYS_PRCTL, []arg{{n: 0, mask: all, want: []uint32{unix.PR_GET_NO_NEW_PRIVS, unix.PR_GET_SECCOMP, unix.PR_SET_NAME, prSetVMA}}}},
	}
	if c.may("bpf") {
		// Which namespace a socket is of.
		rs = append(rs, rule{unix.SYS_IOCTL, []arg{{n: 1, mask: all, want: []uint32{unix.SIOCGSKNS}}}})
	}
	if c.may("interfaces") {
		rs = append(rs, rule{unix.SYS_SOCKET, []arg{
			{n: 0, mask: all, want: []uint32{unix.AF_NETLINK}},
			{n: 1, mask: sockType, want: []uint32{unix.SOCK_RAW}},
			{n: 2, mask: all, want: []uint32{unix.NETLINK_ROUTE}},
		}})
	}
	if c.may("connect") {
		rs = append(rs,
			rule{unix.SYS_SOCKET, []arg{
				{n: 0, mask: all, want: []uint32{unix.AF_INET, unix.AF_INET6}},
				{n: 1, mask: sockType, want: []uint32{unix.SOCK_STREAM, unix.SOCK_DGRAM}},
				{n: 2, mask: all, want: []uint32{0, unix.IPPROTO_TCP, unix.IPPROTO_UDP}}, // no multipath TCP, which Landlock doesn't see
			}},
			// MSG_FASTOPEN connects without connect, past Landlock.
			rule{unix.SYS_SENDTO, []arg{{n: 3, mask: unix.MSG_FASTOPEN, want: []uint32{0}}}},
			rule{unix.SYS_SENDMSG, []arg{{n: 2, mask: unix.MSG_FASTOPEN, want: []uint32{0}}}},
			rule{unix.SYS_SENDMMSG, []arg{{n: 3, mask: unix.MSG_FASTOPEN, want: []uint32{0}}}})
	}
	return rs
}

// filter compiles the cage's filter. What stands nowhere is refused (EPERM);
// clone3 does not exist (ENOSYS), since its flags can't be seen: the C library
// then uses clone.
func (c *Cage) filter(pid int) []bpf.Instruction {
	out := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		retKill,
		bpf.LoadAbsolute{Off: offNr, Size: 4},
	}
	rules := c.rules(pid)
	allowed := slices.Clone(common)
	for _, g := range c.Calls {
		allowed = append(allowed, groups[g]...)
	}
	allowed = slices.DeleteFunc(allowed, func(nr uint32) bool {
		return slices.ContainsFunc(rules, func(r rule) bool { return r.nr == nr })
	})
	slices.Sort(allowed)
	for _, nr := range slices.Compact(allowed) {
		out = append(out, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: nr, SkipTrue: 1}, retAllow)
	}
	for _, r := range rules {
		b := compile(r.when)
		out = append(out, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: r.nr, SkipTrue: uint8(len(b))})
		out = append(out, b...)
	}
	out = append(out, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLONE3, SkipTrue: 1}, retAbsent)
	return append(out, retDenied)
}

// compile allows where all tests hold, and else goes on behind itself with the
// call's number loaded again.
func compile(tests []arg) []bpf.Instruction {
	out := []bpf.Instruction{retAllow, bpf.LoadAbsolute{Off: offNr, Size: 4}}
	// Built from the end, so that each test knows how far the way out is.
	for _, t := range slices.Backward(tests) {
		b := []bpf.Instruction{bpf.LoadAbsolute{Off: offArgs + 8*uint32(t.n) + t.half, Size: 4}}
		if t.mask != all {
			b = append(b, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: t.mask})
		}
		for i, v := range t.want {
			j := bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipTrue: uint8(len(t.want) - 1 - i)}
			if i == len(t.want)-1 {
				j.SkipFalse = uint8(len(out) - 1)
			}
			b = append(b, j)
		}
		out = append(b, out...)
	}
	return out
}

// install puts the filter on every thread of the process.
func (c *Cage) install() error {
	raw, err := bpf.Assemble(c.filter(os.Getpid()))
	if err != nil {
		return err
	}
	fs := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		fs[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	p := unix.SockFprog{Len: uint16(len(fs)), Filter: &fs[0]}
	// A thread that can't follow is named by a positive result.
	n, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&p)))
	if e != 0 || n != 0 {
		return fmt.Errorf("filter of %d instructions for all threads: thread %d, %w", len(fs), n, e)
	}
	return nil
}
