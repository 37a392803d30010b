package guard

import (
	"fmt"
	"maps"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// call describes one system call whose refusal, or opened file, is reported.
// Argument numbers count from 1; 0 means that there is none.
type call struct {
	name    string
	path    [2]uint8 // path names
	dir     uint8    // directory descriptor of the first path, or of the file where there is no path
	addr    uint8    // socket address, its length is the next argument
	missing bool     // ENOENT is reported too where the scope asks
	unseen  bool     // ESRCH is reported too, but for what the caller sends to itself
	file    bool     // returns the descriptor of a file
	socket  bool     // with Scope.Connects, addresses of AF_UNIX are reported however the call ends
	fills   bool     // takes room or an inode: ENOSPC and EDQUOT are reported
	quiet   bool     // and no other error is
}

// Bits of shape.flags in witness.c.
const (
	shapeKnown        = 1
	shapeMissing      = 2
	shapeUnseen       = 4
	shapeOpens        = 8
	shapeForeignOpens = 16
	shapeNamesSocket  = 32
	shapeFills        = 64
)

// The usual shapes.
var (
	plain   = call{}
	first   = call{path: [2]uint8{1}}            // f(path, …)
	at      = call{path: [2]uint8{2}, dir: 1}    // f(dir, path, …)
	both    = call{path: [2]uint8{1, 2}}         // f(from, to)
	bothAt  = call{path: [2]uint8{2, 4}, dir: 1} // f(dir, from, dir, to)
	symlink = call{path: [2]uint8{1, 3}}         // f(target, dir, path)
	address = call{addr: 2}                      // f(socket, address, length)
	sendto  = call{addr: 5}                      // f(socket, data, size, flags, address, length)
)

func (c call) as(name string) call { c.name = name; return c }

// named marks a call of the open, exec and stat family.
func named(c call) call { c.missing = true; return c }

// file marks a call that opens a file.
func file(c call) call { c.file = true; return c }

// toSocket marks a call that goes to the address of a socket.
func toSocket(c call) call { c.socket = true; return c }

// creates marks a call that may need an inode, or room for a name.
func creates(c call) call { c.fills = true; return c }

// fd is a call on an open file, its n-th argument.
func fd(n uint8) call { return call{dir: n} }

// writes is one that puts bytes there; of it only that there was no room is news.
func writes(n uint8) call { return call{dir: n, fills: true, quiet: true} }

// signals marks a call that names a process by its number: where the caller
// can't see that process, because it is in another pid namespace, it gets ESRCH.
//
// An ended thread answers ESRCH too, innocently, to tgkill and its kin: Go's
// runtime and libc's pthread_kill run into it. They address threads of their
// own process, and this the kernel side leaves out (at_itself in witness.c);
// for another process's thread there is no innocent reason. tkill names no
// process and is always told: glibc does not use it, and musl only while it
// holds the thread's lock.
func signals(name string) call { return call{name: name, unseen: true} }

// common are the calls that every architecture has. Calls that no policy
// refuses are left out: the table is what an auditor wants to see.
var common = map[int]call{
	// Names: which exist, what they lead to.
	unix.SYS_OPENAT:            creates(file(named(at))).as("openat"),
	unix.SYS_OPENAT2:           creates(file(named(at))).as("openat2"),
	unix.SYS_EXECVE:            named(first).as("execve"),
	unix.SYS_EXECVEAT:          named(at).as("execveat"),
	unix.SYS_STATX:             named(at).as("statx"),
	unix.SYS_FACCESSAT:         named(at).as("faccessat"),
	unix.SYS_FACCESSAT2:        named(at).as("faccessat2"),
	unix.SYS_READLINKAT:        named(at).as("readlinkat"),
	unix.SYS_CHDIR:             named(first).as("chdir"),
	unix.SYS_STATFS:            named(first).as("statfs"),
	unix.SYS_OPEN_TREE:         file(named(at)).as("open_tree"),
	unix.SYS_NAME_TO_HANDLE_AT: named(at).as("name_to_handle_at"),

	// Changes to files; the second string of the xattr calls is the attribute.
	unix.SYS_MKDIRAT:           creates(at).as("mkdirat"),
	unix.SYS_MKNODAT:           creates(at).as("mknodat"),
	unix.SYS_UNLINKAT:          at.as("unlinkat"),
	unix.SYS_FCHMODAT:          at.as("fchmodat"),
	unix.SYS_FCHMODAT2:         at.as("fchmodat2"),
	unix.SYS_FCHOWNAT:          at.as("fchownat"),
	unix.SYS_UTIMENSAT:         at.as("utimensat"),
	unix.SYS_RENAMEAT:          creates(bothAt).as("renameat"),
	unix.SYS_RENAMEAT2:         creates(bothAt).as("renameat2"),
	unix.SYS_LINKAT:            creates(bothAt).as("linkat"),
	unix.SYS_SYMLINKAT:         creates(symlink).as("symlinkat"),
	unix.SYS_TRUNCATE:          creates(first).as("truncate"),
	unix.SYS_INOTIFY_ADD_WATCH: at.as("inotify_add_watch"),
	unix.SYS_SETXATTR:          creates(both).as("setxattr"),
	unix.SYS_LSETXATTR:         creates(both).as("lsetxattr"),
	unix.SYS_REMOVEXATTR:       both.as("removexattr"),
	unix.SYS_LREMOVEXATTR:      both.as("lremovexattr"),
	unix.SYS_FCHMOD:            plain.as("fchmod"),
	unix.SYS_FCHOWN:            plain.as("fchown"),
	unix.SYS_FTRUNCATE:         creates(fd(1)).as("ftruncate"),
	unix.SYS_OPEN_BY_HANDLE_AT: file(plain).as("open_by_handle_at"),

	// Bytes into files.
	unix.SYS_WRITE:           writes(1).as("write"),
	unix.SYS_PWRITE64:        writes(1).as("pwrite64"),
	unix.SYS_WRITEV:          writes(1).as("writev"),
	unix.SYS_PWRITEV:         writes(1).as("pwritev"),
	unix.SYS_PWRITEV2:        writes(1).as("pwritev2"),
	unix.SYS_SENDFILE:        writes(1).as("sendfile"),
	unix.SYS_FALLOCATE:       writes(1).as("fallocate"),
	unix.SYS_FSYNC:           writes(1).as("fsync"),
	unix.SYS_FDATASYNC:       writes(1).as("fdatasync"),
	unix.SYS_SPLICE:          writes(3).as("splice"),
	unix.SYS_COPY_FILE_RANGE: writes(3).as("copy_file_range"),

	// The view of the file system.
	unix.SYS_MOUNT:         both.as("mount"),
	unix.SYS_UMOUNT2:       first.as("umount2"),
	unix.SYS_PIVOT_ROOT:    both.as("pivot_root"),
	unix.SYS_CHROOT:        first.as("chroot"),
	unix.SYS_MOVE_MOUNT:    bothAt.as("move_mount"),
	unix.SYS_FSOPEN:        first.as("fsopen"),
	unix.SYS_FSMOUNT:       plain.as("fsmount"),
	unix.SYS_MOUNT_SETATTR: at.as("mount_setattr"),
	unix.SYS_SWAPON:        first.as("swapon"),
	unix.SYS_SWAPOFF:       first.as("swapoff"),
	unix.SYS_ACCT:          first.as("acct"),

	// Sockets.
	unix.SYS_SOCKET:     plain.as("socket"),
	unix.SYS_SOCKETPAIR: plain.as("socketpair"),
	unix.SYS_CONNECT:    toSocket(address).as("connect"),
	unix.SYS_BIND:       address.as("bind"),
	unix.SYS_LISTEN:     plain.as("listen"),
	unix.SYS_SENDTO:     toSocket(sendto).as("sendto"),
	unix.SYS_SENDMSG:    plain.as("sendmsg"),
	unix.SYS_SENDMMSG:   plain.as("sendmmsg"),
	unix.SYS_SETSOCKOPT: plain.as("setsockopt"),

	// Other processes.
	unix.SYS_KILL:              signals("kill"),
	unix.SYS_TKILL:             signals("tkill"),
	unix.SYS_TGKILL:            signals("tgkill"),
	unix.SYS_RT_SIGQUEUEINFO:   signals("rt_sigqueueinfo"),
	unix.SYS_RT_TGSIGQUEUEINFO: signals("rt_tgsigqueueinfo"),
	unix.SYS_PIDFD_OPEN:        signals("pidfd_open"),
	unix.SYS_PIDFD_SEND_SIGNAL: plain.as("pidfd_send_signal"),
	unix.SYS_PIDFD_GETFD:       plain.as("pidfd_getfd"),
	unix.SYS_PTRACE:            plain.as("ptrace"),
	unix.SYS_PROCESS_VM_READV:  plain.as("process_vm_readv"),
	unix.SYS_PROCESS_VM_WRITEV: plain.as("process_vm_writev"),
	unix.SYS_KCMP:              plain.as("kcmp"),

	// Namespaces, memory, identity, scheduling.
	unix.SYS_UNSHARE:            plain.as("unshare"),
	unix.SYS_SETNS:              plain.as("setns"),
	unix.SYS_CLONE:              plain.as("clone"),
	unix.SYS_CLONE3:             plain.as("clone3"),
	unix.SYS_MEMFD_CREATE:       plain.as("memfd_create"),
	unix.SYS_MEMFD_SECRET:       plain.as("memfd_secret"),
	unix.SYS_MMAP:               plain.as("mmap"),
	unix.SYS_MPROTECT:           plain.as("mprotect"),
	unix.SYS_USERFAULTFD:        plain.as("userfaultfd"),
	unix.SYS_IO_URING_SETUP:     plain.as("io_uring_setup"),
	unix.SYS_SETUID:             plain.as("setuid"),
	unix.SYS_SETGID:             plain.as("setgid"),
	unix.SYS_SETREUID:           plain.as("setreuid"),
	unix.SYS_SETREGID:           plain.as("setregid"),
	unix.SYS_SETRESUID:          plain.as("setresuid"),
	unix.SYS_SETRESGID:          plain.as("setresgid"),
	unix.SYS_SETGROUPS:          plain.as("setgroups"),
	unix.SYS_SETFSUID:           plain.as("setfsuid"),
	unix.SYS_SETFSGID:           plain.as("setfsgid"),
	unix.SYS_CAPSET:             plain.as("capset"),
	unix.SYS_PRCTL:              plain.as("prctl"),
	unix.SYS_SETPRIORITY:        plain.as("setpriority"),
	unix.SYS_SCHED_SETSCHEDULER: plain.as("sched_setscheduler"),
	unix.SYS_SCHED_SETATTR:      plain.as("sched_setattr"),
	unix.SYS_SCHED_SETPARAM:     plain.as("sched_setparam"),
	unix.SYS_PRLIMIT64:          plain.as("prlimit64"),
	unix.SYS_SETRLIMIT:          plain.as("setrlimit"),

	// The machine and its kernel.
	unix.SYS_BPF:                    plain.as("bpf"),
	unix.SYS_PERF_EVENT_OPEN:        plain.as("perf_event_open"),
	unix.SYS_INIT_MODULE:            plain.as("init_module"),
	unix.SYS_FINIT_MODULE:           plain.as("finit_module"),
	unix.SYS_DELETE_MODULE:          plain.as("delete_module"),
	unix.SYS_KEXEC_LOAD:             plain.as("kexec_load"),
	unix.SYS_KEXEC_FILE_LOAD:        plain.as("kexec_file_load"),
	unix.SYS_REBOOT:                 plain.as("reboot"),
	unix.SYS_SYSLOG:                 plain.as("syslog"),
	unix.SYS_KEYCTL:                 plain.as("keyctl"),
	unix.SYS_ADD_KEY:                plain.as("add_key"),
	unix.SYS_REQUEST_KEY:            plain.as("request_key"),
	unix.SYS_SETHOSTNAME:            plain.as("sethostname"),
	unix.SYS_SETDOMAINNAME:          plain.as("setdomainname"),
	unix.SYS_SETTIMEOFDAY:           plain.as("settimeofday"),
	unix.SYS_CLOCK_SETTIME:          plain.as("clock_settime"),
	unix.SYS_CLOCK_ADJTIME:          plain.as("clock_adjtime"),
	unix.SYS_ADJTIMEX:               plain.as("adjtimex"),
	unix.SYS_QUOTACTL:               plain.as("quotactl"),
	unix.SYS_LOOKUP_DCOOKIE:         plain.as("lookup_dcookie"),
	unix.SYS_FANOTIFY_INIT:          plain.as("fanotify_init"),
	unix.SYS_FANOTIFY_MARK:          plain.as("fanotify_mark"),
	unix.SYS_SECCOMP:                plain.as("seccomp"),
	unix.SYS_IOCTL:                  plain.as("ioctl"),
	unix.SYS_LANDLOCK_RESTRICT_SELF: plain.as("landlock_restrict_self"),
}

// calls is the table of the running architecture, by system call number.
var calls = table()

func table() map[int]call {
	m := maps.Clone(common)
	maps.Copy(m, own)
	return m
}

// fillShapes hands the table to the kernel.
func fillShapes(m *ebpf.Map) error {
	for nr, s := range shapes() {
		if err := m.Put(uint32(nr), s); err != nil {
			return fmt.Errorf("system call %d (%s): %w", nr, calls[nr].name, err)
		}
	}
	return nil
}

// shapes is the table as the kernel side reads it.
func shapes() map[int]witnessShape {
	m := map[int]witnessShape{}
	for nr, c := range calls {
		m[nr] = witnessShape{Path: c.path, Addr: c.addr, Flags: c.flags(), Dir: c.dir}
	}
	for _, nr := range foreignOpens {
		s := m[nr]
		s.Flags |= shapeForeignOpens
		m[nr] = s
	}
	return m
}

func (c call) flags() uint8 {
	var f uint8
	for _, b := range []struct {
		on  bool
		bit uint8
	}{{!c.quiet, shapeKnown}, {c.missing, shapeMissing}, {c.unseen, shapeUnseen}, {c.file, shapeOpens}, {c.socket, shapeNamesSocket}, {c.fills, shapeFills}} {
		if b.on {
			f |= b.bit
		}
	}
	return f
}
