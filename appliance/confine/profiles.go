package confine

import (
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// newNamespaces are the clone flags that make a namespace. CLONE_NEWTIME is
// not among them: in clone its bit belongs to the exit signal.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

const (
	sockType  = 0xf // without SOCK_NONBLOCK and SOCK_CLOEXEC
	noexecMfd = unix.MFD_NOEXEC_SEAL
	setVMA    = unix.PR_SET_VMA
)

// sockets lets a program speak TCP and UDP, and to itself. Raw and packet
// sockets could go round the appliance's listeners, MPTCP goes round filters
// on TCP, and every other family is kernel code that an agent has no use for.
var sockets = []clause{
	allowIf(is(0, unix.AF_UNIX), bits(1, sockType, unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_SEQPACKET)),
	allowIf(is(0, unix.AF_INET, unix.AF_INET6), bits(1, sockType, unix.SOCK_STREAM), is(2, 0, unix.IPPROTO_TCP)),
	allowIf(is(0, unix.AF_INET, unix.AF_INET6), bits(1, sockType, unix.SOCK_DGRAM), is(2, 0, unix.IPPROTO_UDP)),
}

// routes lets getifaddrs(3) work: without it Node.js's os.networkInterfaces()
// throws. It can only read, and only the sandbox's own namespace.
var routes = allowIf(is(0, unix.AF_NETLINK), bits(1, sockType, unix.SOCK_RAW, unix.SOCK_DGRAM), is(2, unix.NETLINK_ROUTE))

// someCalls are permitted by their arguments. The comment says against what.
var someCalls = map[uint32][]clause{
	unix.SYS_CLONE:  {allowIf(bits(0, newNamespaces, 0))}, // new namespaces, and with them capabilities
	unix.SYS_SOCKET: append(slices.Clone(sockets), routes),
	// The kernel knows socketpair for Unix sockets only; say so before it grows.
	unix.SYS_SOCKETPAIR: {allowIf(is(0, unix.AF_UNIX))},
	// Typing into the operator's terminal; another line discipline, for which
	// the kernel would load a module.
	unix.SYS_IOCTL: {refuseIf(is(1, unix.TIOCSTI, unix.TIOCLINUX, unix.TIOCSETD)), always},
	// Another protocol over TCP: likewise.
	unix.SYS_SETSOCKOPT: {refuseIf(is(1, unix.SOL_TCP), is(2, unix.TCP_ULP)), always},
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

// threadsOnly is clone as "strict" has it: threads yes, processes no.
var threadsOnly = []clause{allowIf(bits(0, newNamespaces|unix.CLONE_THREAD, unix.CLONE_THREAD))}

// profiles builds the table of profiles.
//
// "default" runs Node.js, shells, git and curl. "strict" adds: no new
// processes, no netlink. Both keep execve, because the launcher needs it for
// the agent; what may be executed is Landlock's and the guard's business.
// "supervisor" is PID 1's: what a Go program needs to wait.
func profiles() map[string]profile {
	std := profile{slices.Concat(allowed, archAllowed, forks), someCalls, slices.Concat(denied, archDenied)}
	strict := profile{slices.Concat(allowed, archAllowed), maps.Clone(someCalls), slices.Concat(denied, archDenied, forks)}
	strict.some[unix.SYS_CLONE] = threadsOnly
	strict.some[unix.SYS_SOCKET] = sockets
	sup := profile{supervisor, map[uint32][]clause{
		unix.SYS_CLONE: threadsOnly,
		unix.SYS_PRCTL: {allowIf(is(0, unix.PR_SET_DUMPABLE, unix.PR_SET_PDEATHSIG, unix.PR_GET_NO_NEW_PRIVS, unix.PR_GET_SECCOMP, setVMA))},
	}, nil}
	return map[string]profile{"default": std, "strict": strict, "supervisor": sup}
}
