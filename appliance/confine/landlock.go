package confine

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// File access rights by what a Spec calls them. Making character and block
// devices is in no list: it is handled, so it is always refused.
const (
	fsRead  = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	fsExec  = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_EXECUTE
	fsDev   = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	fsWrite = fsRead | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_REFER |
		unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_MAKE_DIR |
		unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SYM | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK

	// fsFile is what the kernel accepts in a rule on something other than a directory.
	fsFile = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_EXECUTE |
		unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
)

// abis says what each Landlock ABI can handle; the index is the version.
// Source: the kernel's Documentation/userspace-api/landlock.rst, "Previous
// limitations". Network rights (ABI 4) are left out on purpose, see doc.go.
// Versions above the last handle as much as the last.
var abis = []struct{ fs, scoped uint64 }{
	1: {fs: 1<<13 - 1},
	2: {fs: 1<<14 - 1}, // refer
	3: {fs: 1<<15 - 1}, // truncate
	4: {fs: 1<<15 - 1},
	5: {fs: 1<<16 - 1},              // ioctl on devices
	6: {fs: 1<<16 - 1, scoped: 0x3}, // abstract Unix sockets, signals
	7: {fs: 1<<16 - 1, scoped: 0x3},
}

// MaxABI is the highest Landlock ABI that this package makes use of.
var MaxABI = len(abis) - 1

// LandlockABI reports the ABI version of the running kernel.
func LandlockABI() (int, error) {
	v, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if e != 0 {
		return 0, fmt.Errorf("this kernel has no Landlock (%w): want Linux 5.13 or newer with \"landlock\" in its lsm= list", e)
	}
	return int(v), nil
}

// ruleset is a Landlock rule set under construction.
type ruleset struct {
	fd      int
	handled uint64
}

// newRuleset handles all that l.ABI knows. Without scope, signals are left
// alone: PID 1 has to reach the agent, which lives in a domain of its own.
func newRuleset(l Landlock, scope bool) (*ruleset, error) {
	got, err := LandlockABI()
	if err != nil {
		return nil, err
	}
	if got < l.ABI || l.ABI > MaxABI || l.ABI < 1 {
		return nil, fmt.Errorf("kernel has Landlock ABI %d and the launcher knows up to %d, spec requires %d: lower require.landlock in the policy or use a newer kernel", got, MaxABI, l.ABI)
	}
	a := unix.LandlockRulesetAttr{Handled_access_fs: abis[l.ABI].fs}
	if scope {
		a.Scoped = abis[l.ABI].scoped
	}
	fd, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&a)), unsafe.Sizeof(a), 0)
	if e != 0 {
		return nil, fmt.Errorf("create rule set for ABI %d: %w", l.ABI, e)
	}
	return &ruleset{int(fd), a.Handled_access_fs}, nil
}

// addAll adds every path that l lists.
func (r *ruleset) addAll(l Landlock) error {
	for _, g := range []struct {
		paths  []string
		rights uint64
	}{{l.Read, fsRead}, {l.Write, fsWrite}, {l.Exec, fsExec}, {l.Device, fsDev}} {
		for _, p := range g.paths {
			if err := r.addPath(p, g.rights); err != nil {
				return err
			}
		}
	}
	return nil
}

// addPath grants rights below p. A symbolic link anywhere in p is refused: the
// daemon resolves links, and one that appears later is an attack.
func (r *ruleset) addPath(p string, rights uint64) error {
	fd, err := unix.Openat2(unix.AT_FDCWD, p, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return fmt.Errorf("path %s in the spec: %w", p, err)
	}
	defer unix.Close(fd)
	if err := r.add(fd, rights); err != nil {
		return fmt.Errorf("rule for %s: %w", p, err)
	}
	return nil
}

func (r *ruleset) add(fd int, rights uint64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &= fsFile
	}
	a := unix.LandlockPathBeneathAttr{Allowed_access: rights & r.handled, Parent_fd: int32(fd)}
	_, _, e := unix.RawSyscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(r.fd), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&a)), 0, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}
