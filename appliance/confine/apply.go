package confine

import (
	"fmt"
	"maps"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// limits maps the names of Spec.Limits to resources.
var limits = map[string]int{
	"core":    unix.RLIMIT_CORE,
	"fsize":   unix.RLIMIT_FSIZE,
	"memlock": unix.RLIMIT_MEMLOCK,
	"nofile":  unix.RLIMIT_NOFILE,
	"nproc":   unix.RLIMIT_NPROC,
	"stack":   unix.RLIMIT_STACK,
}

func limitNames() []string { return slices.Sorted(maps.Keys(limits)) }

// securebits make even user id 0 a plain user, for good. The last pair stays
// away from a process that keeps capabilities: they are handed on through the
// ambient set.
// Source: capabilities(7), "The securebits flags".
const (
	noRoot    = 1<<0 | 1<<1 // and locked
	noAmbient = 1<<6 | 1<<7 // no_cap_ambient_raise, and locked
)

// final is a Spec in the form that the kernel takes it: whatever can be
// looked up, opened or allocated has been. What is left are system calls, so
// that it can be carried out between fork and execve, where Go's runtime
// cannot be used, as well as by a running process.
type final struct {
	limits   []limit
	uid, gid uintptr
	caps     uint64 // kept; normally none
	keep     [2]unix.CapUserData
	dir      *byte
	ruleset  uintptr
	probe    bool // listing / must be refused
	filter   unix.SockFprog
	sync     uintptr // flags of the filter: for this thread, or for all
	argv     []*byte // argv[0] is the program's path
	env      []*byte
}

type limit struct {
	resource uintptr
	value    unix.Rlimit
}

// extras is what the launcher itself adds to a Spec.
type extras struct {
	// scope keeps signals and abstract sockets inside the Landlock domain.
	scope bool
	// threads puts the filter, and no_new_privs, on all threads at once. The
	// rest is the calling thread's.
	threads bool
}

// prepare does everything that may still fail for a reason worth explaining.
// It must run while privileged: the agent's uid may be unable to walk to a
// path that it may not list.
func prepare(s *Spec, x extras) (_ *final, err error) {
	f := &final{uid: uintptr(s.UID), gid: uintptr(s.GID)}
	if f.caps, err = capMask(s.Capabilities); err != nil {
		return nil, err
	}
	for i := range f.keep {
		c := uint32(f.caps >> (32 * i))
		f.keep[i] = unix.CapUserData{Effective: c, Permitted: c, Inheritable: c}
	}
	for _, l := range s.Limits {
		if err := reachable(l); err != nil {
			return nil, err
		}
		f.limits = append(f.limits, limit{uintptr(limits[l.Name]), unix.Rlimit{Cur: l.Value, Max: l.Value}})
	}
	if f.dir, err = unix.BytePtrFromString(s.Dir); err != nil {
		return nil, fmt.Errorf("directory %q: %w", s.Dir, err)
	}
	if f.argv, err = syscall.SlicePtrFromStrings(s.Args); err == nil {
		f.env, err = syscall.SlicePtrFromStrings(s.Env)
	}
	if err != nil {
		return nil, fmt.Errorf("arguments or environment: %w", err)
	}
	f.filter = unix.SockFprog{Len: uint16(len(s.Seccomp)), Filter: &s.Seccomp[0]}
	if x.threads {
		f.sync = unix.SECCOMP_FILTER_FLAG_TSYNC
	}
	rs, err := newRuleset(s.Landlock, x.scope)
	if err == nil {
		err = rs.addAll(s.Landlock)
	}
	if err != nil {
		return nil, fmt.Errorf("landlock: %w", err)
	}
	f.ruleset, f.probe = uintptr(rs.fd), probed(s.Landlock)
	return f, nil
}

// reachable finds out while there is room for an explanation: only by raising
// a limit does one know that the kernel lets it be raised.
func reachable(l Limit) error {
	r := limits[l.Name]
	var old unix.Rlimit
	if err := unix.Prlimit(0, r, nil, &old); err != nil {
		return fmt.Errorf("limits: read %s: %w", l.Name, err)
	}
	if l.Name == "core" || l.Value <= old.Max {
		return nil
	}
	if err := unix.Prlimit(0, r, &unix.Rlimit{Cur: old.Cur, Max: l.Value}, nil); err != nil {
		return fmt.Errorf("limits: %s to %d, hard limit is %d: %w; raise the daemon's limit or lower the policy's", l.Name, l.Value, old.Max, err)
	}
	return nil
}

// stage names a step of confining, for errors.
type stage int

const (
	atLimits stage = iota
	atSecurebits
	atBounding
	atGroups
	atUser
	atCapabilities
	atDirectory
	atNoNewPrivs
	atDumpable
	atLandlock
	atProbe
	atDescriptors
	atSeccomp
	atVerify
	atJoin
	atTerminal
	atExecute
)

var stages = [...]string{
	"limits", "securebits", "bounding set", "groups", "user", "capabilities", "directory", "no_new_privs", "dumpable", "landlock",
	"landlock: listing / was not refused, this kernel does not enforce it", "descriptors", "seccomp",
	"self-check: the kernel reports other capabilities, no_new_privs, seccomp mode or user than asked for",
	"join", "controlling terminal", "execute",
}

var rootDir = [...]byte{'/', 0}

// Capability headers, made before they are needed.
var capHeader = unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}

// commit confines the calling thread, which must call execve next, or exit.
// The package comment explains the order. It allocates nothing and does not
// grow the stack; every call in it is raw.
//
//go:nosplit
//go:norace
func (f *final) commit() (stage, syscall.Errno) {
	for i := range f.limits {
		if e := f.limits[i].set(); e != 0 {
			return atLimits, e
		}
	}
	if at, e := f.dropPrivileges(); e != 0 {
		return at, e
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(f.dir)), 0, 0); e != 0 {
		return atDirectory, e
	}
	if e := prctl(unix.PR_SET_NO_NEW_PRIVS, 1); e != 0 {
		return atNoNewPrivs, e
	}
	if e := prctl(unix.PR_SET_DUMPABLE, 0); e != 0 {
		return atDumpable, e
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, f.ruleset, 0, 0); e != 0 {
		return atLandlock, e
	}
	if f.probe && !refused() {
		return atProbe, unix.EINVAL
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_CLOSE_RANGE, 3, ^uintptr(0)>>32, unix.CLOSE_RANGE_CLOEXEC); e != 0 {
		return atDescriptors, e
	}
	// An answer above 0 is the thread that could not take the filter.
	if r, _, e := syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, f.sync, uintptr(unsafe.Pointer(&f.filter))); e != 0 || r != 0 {
		return atSeccomp, max(e, 1)
	}
	if !f.verified() {
		return atVerify, unix.EINVAL
	}
	return 0, 0
}

// set lowers a limit for good. A core limit above the present one stays: a
// lower one than asked for is as good.
//
//go:nosplit
//go:norace
func (l *limit) set() syscall.Errno {
	if l.resource == unix.RLIMIT_CORE {
		var old unix.Rlimit
		if _, _, e := syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, l.resource, 0, uintptr(unsafe.Pointer(&old)), 0, 0); e != 0 {
			return e
		}
		if old.Max < l.value.Max {
			l.value = unix.Rlimit{Cur: old.Max, Max: old.Max}
		}
	}
	_, _, e := syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, l.resource, uintptr(unsafe.Pointer(&l.value)), 0, 0, 0)
	return e
}

// dropPrivileges leaves the user, and of capabilities those that are kept.
//
//go:nosplit
//go:norace
func (f *final) dropPrivileges() (stage, syscall.Errno) {
	bits := uintptr(noRoot | noAmbient)
	if f.caps != 0 {
		bits = noRoot
	}
	if e := prctl(unix.PR_SET_SECUREBITS, bits); e != 0 {
		return atSecurebits, e
	}
	// The kernel answers EINVAL for the first capability that it doesn't know.
	for c := uintptr(0); c < 64; c++ {
		if f.caps&(1<<c) != 0 {
			continue
		}
		if e := prctl(unix.PR_CAPBSET_DROP, c); e == unix.EINVAL && c > unix.CAP_SYS_ADMIN {
			break
		} else if e != 0 {
			return atBounding, e
		}
	}
	if f.caps != 0 {
		if e := prctl(unix.PR_SET_KEEPCAPS, 1); e != 0 {
			return atCapabilities, e
		}
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); e != 0 {
		return atGroups, e
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_SETRESGID, f.gid, f.gid, f.gid); e != 0 {
		return atGroups, e
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_SETRESUID, f.uid, f.uid, f.uid); e != 0 {
		return atUser, e
	}
	return f.setCaps()
}

//go:nosplit
//go:norace
func (f *final) setCaps() (stage, syscall.Errno) {
	if e := prctl2(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); e != 0 {
		return atCapabilities, e
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&capHeader)), uintptr(unsafe.Pointer(&f.keep[0])), 0); e != 0 {
		return atCapabilities, e
	}
	for c := uintptr(0); c < 64; c++ {
		if f.caps&(1<<c) == 0 {
			continue
		}
		if e := prctl2(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c); e != 0 {
			return atCapabilities, e
		}
	}
	return 0, 0
}

// refused provokes a denial, because a rule set that enforces nothing looks
// like one that does. Listing / is denied unless the Spec grants it.
//
//go:nosplit
//go:norace
func refused() bool {
	at := unix.AT_FDCWD
	fd, _, e := syscall.RawSyscall6(unix.SYS_OPENAT, uintptr(at), uintptr(unsafe.Pointer(&rootDir[0])), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0, 0, 0)
	if e == 0 {
		syscall.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
	}
	return e == unix.EACCES
}

// probed says whether Landlock can be seen to work.
func probed(l Landlock) bool { return !slices.Contains(l.Read, "/") && !slices.Contains(l.Write, "/") }

// verified reads the restrictions back from the kernel.
//
//go:nosplit
//go:norace
func (f *final) verified() bool {
	var caps [2]unix.CapUserData
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if _, _, e := syscall.RawSyscall(unix.SYS_CAPGET, uintptr(unsafe.Pointer(&h)), uintptr(unsafe.Pointer(&caps[0])), 0); e != 0 {
		return false
	}
	for i := range caps {
		if caps[i].Effective != f.keep[i].Effective || caps[i].Permitted != f.keep[i].Permitted {
			return false
		}
	}
	nnp, _, _ := syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0, 0)
	mode, _, _ := syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_GET_SECCOMP, 0, 0, 0, 0, 0)
	uid, _, _ := syscall.RawSyscall(unix.SYS_GETUID, 0, 0, 0)
	return nnp == 1 && mode == unix.SECCOMP_MODE_FILTER && uid == f.uid
}

//go:nosplit
//go:norace
func prctl(op, arg uintptr) syscall.Errno { return prctl2(op, arg, 0) }

//go:nosplit
//go:norace
func prctl2(op, a, b uintptr) syscall.Errno {
	_, _, e := syscall.RawSyscall6(unix.SYS_PRCTL, op, a, b, 0, 0, 0)
	return e
}

// execute becomes the program; it returns only the reason why not.
//
//go:nosplit
//go:norace
func (f *final) execute() syscall.Errno {
	_, _, e := syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(f.argv[0])), uintptr(unsafe.Pointer(&f.argv[0])), uintptr(unsafe.Pointer(&f.env[0])))
	return e
}

// apply confines the calling thread, which must be locked and must call
// execve next, or exit.
func apply(s *Spec, x extras) (*final, error) {
	f, err := prepare(s, x)
	if err != nil {
		return nil, err
	}
	if at, e := f.commit(); e != 0 {
		return nil, fmt.Errorf("%s: %w", stages[at], e)
	}
	return f, nil
}
