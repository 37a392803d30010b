package confine

import (
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// The tables are functions, not variables: the launcher gets its filters
// ready-made and need not build them at every start.

// newNamespaces are the clone flags that make a namespace. CLONE_NEWTIME is
// not among them: in clone its bit belongs to the exit signal.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

const (
	sockType  = 0xf // without SOCK_NONBLOCK and SOCK_CLOEXEC
	noexecMfd = unix.MFD_NOEXEC_SEAL
	setVMA    = unix.PR_SET_VMA
	fastOpen  = unix.MSG_FASTOPEN

	// linux/asm-generic/ioctls.h; the same on amd64 and arm64.
	fionbio, fionclex, fioclex = 0x5421, 0x5450, 0x5451
)

// sockets lets a program speak TCP and UDP, and to itself. Raw and packet
// sockets could go round the appliance's listeners, MPTCP goes round filters
// on TCP, and every other family is kernel code that an agent has no use for.
func sockets() []clause {
	return []clause{
		allowIf(is(0, unix.AF_UNIX), bits(1, sockType, unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_SEQPACKET)),
		allowIf(is(0, unix.AF_INET, unix.AF_INET6), bits(1, sockType, unix.SOCK_STREAM), is(2, 0, unix.IPPROTO_TCP)),
		allowIf(is(0, unix.AF_INET, unix.AF_INET6), bits(1, sockType, unix.SOCK_DGRAM), is(2, 0, unix.IPPROTO_UDP)),
	}
}

// routes lets getifaddrs(3) work: without it Node.js's os.networkInterfaces()
// throws. It can only read, and only the sandbox's own namespace.
func routes() clause {
	return allowIf(is(0, unix.AF_NETLINK), bits(1, sockType, unix.SOCK_RAW, unix.SOCK_DGRAM), is(2, unix.NETLINK_ROUTE))
}

// Options of the TCP authentication option (RFC 5925), include/uapi/linux/tcp.h.
const (
	tcpAOAddKey = 38
	tcpAODelKey = 39
	tcpAOInfo   = 40
)

// options refuses what changes the protocol below a socket: another one over
// TCP, for which the kernel would load a module; a connection that is made by
// the first byte sent, past filters on connect; keys for segments, by which one
// socket is deaf to all but another; packet filters, which are programs in the
// kernel.
func options() []clause {
	return []clause{
		refuseIf(is(1, unix.SOL_TCP), is(2, unix.TCP_ULP, unix.TCP_FASTOPEN_CONNECT, unix.TCP_MD5SIG, unix.TCP_MD5SIG_EXT, tcpAOAddKey, tcpAODelKey, tcpAOInfo)),
		refuseIf(is(1, unix.SOL_SOCKET), is(2, unix.SO_ATTACH_FILTER, unix.SO_ATTACH_BPF, unix.SO_ATTACH_REUSEPORT_CBPF, unix.SO_ATTACH_REUSEPORT_EBPF)),
		always,
	}
}

// someCalls are permitted by their arguments. The comment says against what.
func someCalls() map[uint32][]clause {
	return map[uint32][]clause{
		unix.SYS_CLONE:  {allowIf(bits(0, newNamespaces, 0))}, // new namespaces, and with them capabilities
		unix.SYS_SOCKET: append(sockets(), routes()),
		// The kernel knows socketpair for Unix sockets only; say so before it grows.
		unix.SYS_SOCKETPAIR: {allowIf(is(0, unix.AF_UNIX))},
		// Typing into the operator's terminal or console; another line
		// discipline, for which the kernel would load a module.
		unix.SYS_IOCTL:      {refuseIf(is(1, unix.TIOCSTI, unix.TIOCLINUX, unix.TIOCSETD, unix.TIOCCONS)), always},
		unix.SYS_SETSOCKOPT: options(),
		// A connection that no connect() makes.
		unix.SYS_SENDTO:   {refuseIf(bits(3, fastOpen, fastOpen)), always},
		unix.SYS_SENDMSG:  {refuseIf(bits(2, fastOpen, fastOpen)), always},
		unix.SYS_SENDMMSG: {refuseIf(bits(3, fastOpen, fastOpen)), always},
		// Linux and "which is it?"; others switch off address randomization.
		unix.SYS_PERSONALITY: {allowIf(is(0, 0, 0xffffffff))},
		// Programs that exist in no file: no path for Landlock, no inode for the guard.
		unix.SYS_MEMFD_CREATE: {allowIf(bits(1, noexecMfd|unix.MFD_EXEC, noexecMfd))},
		unix.SYS_PRCTL: {allowIf(is(0,
			unix.PR_SET_PDEATHSIG, unix.PR_GET_PDEATHSIG, unix.PR_GET_DUMPABLE, unix.PR_SET_DUMPABLE,
			unix.PR_SET_NAME, unix.PR_GET_NAME, unix.PR_GET_SECCOMP, unix.PR_CAPBSET_READ, unix.PR_GET_SECUREBITS,
			unix.PR_SET_TIMERSLACK, unix.PR_GET_TIMERSLACK, unix.PR_SET_CHILD_SUBREAPER, unix.PR_GET_CHILD_SUBREAPER,
			unix.PR_SET_NO_NEW_PRIVS, unix.PR_GET_NO_NEW_PRIVS, unix.PR_GET_TID_ADDRESS, unix.PR_SET_THP_DISABLE,
			unix.PR_GET_THP_DISABLE, unix.PR_GET_KEEPCAPS, unix.PR_SET_MDWE, unix.PR_GET_MDWE, setVMA))},
	}
}

// threadsOnly is clone as "strict" has it: threads yes, processes no.
func threadsOnly() []clause {
	return []clause{allowIf(bits(0, newNamespaces|unix.CLONE_THREAD, unix.CLONE_THREAD))}
}

// strictly are the calls that "strict" permits by their arguments where
// "default" asks less.
func strictly() map[uint32][]clause {
	m := someCalls()
	maps.Copy(m, map[uint32][]clause{
		unix.SYS_CLONE:  threadsOnly(),
		unix.SYS_SOCKET: sockets(),
		// Terminals may be asked, not changed; descriptors both.
		unix.SYS_IOCTL: {allowIf(is(1, unix.TCGETS, unix.TIOCGWINSZ, unix.TIOCGPGRP, unix.TIOCINQ, fionbio, fioclex, fionclex))},
		// No leases, no signals from other people's files, no directory watches.
		unix.SYS_FCNTL: {allowIf(is(1,
			unix.F_DUPFD, unix.F_DUPFD_CLOEXEC, unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL, unix.F_GETLK, unix.F_SETLK, unix.F_SETLKW,
			unix.F_OFD_GETLK, unix.F_OFD_SETLK, unix.F_OFD_SETLKW, unix.F_GETPIPE_SZ, unix.F_ADD_SEALS, unix.F_GET_SEALS))},
		// Only what every network program sets.
		unix.SYS_SETSOCKOPT: append(options()[:2:2],
			allowIf(is(1, unix.SOL_SOCKET, unix.SOL_TCP, unix.SOL_IP, unix.SOL_IPV6))),
		// Limits may be read; the agent's own are the policy's.
		unix.SYS_PRLIMIT64: {allowIf(is(0, 0))},
		// fifos, not even sockets or devices
		unix.SYS_MKNODAT: {allowIf(bits(2, unix.S_IFMT, unix.S_IFIFO))},
	})
	return m
}

// beyond are the calls that "default" has and "strict" has not: interfaces of
// which an agent that only computes and talks makes no use, and which have
// been ways into the kernel or are felt by the whole host.
func beyond() []uint32 {
	return append([]uint32{
		unix.SYS_SYNC, unix.SYS_SYNCFS, unix.SYS_VMSPLICE, unix.SYS_TEE,
		unix.SYS_SETXATTR, unix.SYS_LSETXATTR, unix.SYS_FSETXATTR, unix.SYS_REMOVEXATTR, unix.SYS_LREMOVEXATTR, unix.SYS_FREMOVEXATTR,
		unix.SYS_SHMGET, unix.SYS_SHMAT, unix.SYS_SHMDT, unix.SYS_SHMCTL, unix.SYS_SEMGET, unix.SYS_SEMOP, unix.SYS_SEMTIMEDOP, unix.SYS_SEMCTL,
		unix.SYS_MLOCKALL, unix.SYS_MUNLOCKALL, unix.SYS_MAP_SHADOW_STACK, unix.SYS_CACHESTAT,
		unix.SYS_SCHED_SETPARAM, unix.SYS_SCHED_SETSCHEDULER, unix.SYS_SCHED_SETATTR, unix.SYS_SETPRIORITY, unix.SYS_IOPRIO_SET,
		unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_SEND_SIGNAL, unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO, unix.SYS_SETRLIMIT,
		unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID, unix.SYS_SETGROUPS,
		unix.SYS_SETFSUID, unix.SYS_SETFSGID, unix.SYS_CAPSET,
	}, archBeyond...)
}

// profiles builds the table of profiles. A call that is in no list of a
// profile does not exist in it.
//
// "default" runs Node.js, shells, git and curl. "strict" takes away: new
// processes, netlink, and whatever beyond lists; and looks at the arguments of
// more calls. Both keep execve, because the launcher needs it for the agent;
// what may be executed is Landlock's and the guard's business. "supervisor" is
// PID 1's: what a Go program needs to wait.
func profiles() map[string]profile {
	std := profile{slices.Concat(allowed, archAllowed, forks), someCalls(), slices.Concat(denied, archDenied)}
	// compile asks about arguments first, so what is in both lists is decided there.
	out := beyond()
	strict := profile{
		slices.DeleteFunc(slices.Concat(allowed, archAllowed), func(nr uint32) bool { return slices.Contains(out, nr) }),
		strictly(), slices.Concat(denied, archDenied, forks, out),
	}
	for _, nr := range out {
		delete(strict.some, nr)
	}
	sup := profile{slices.Concat(supervisor, archSupervisor), map[uint32][]clause{
		unix.SYS_CLONE: threadsOnly(),
		unix.SYS_PRCTL: {allowIf(is(0, unix.PR_SET_DUMPABLE, unix.PR_SET_PDEATHSIG, unix.PR_GET_NO_NEW_PRIVS, unix.PR_GET_SECCOMP, setVMA))},
	}, nil}
	return map[string]profile{"default": std, "strict": strict, "supervisor": sup}
}
