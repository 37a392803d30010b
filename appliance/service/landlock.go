package service

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// abis says what each Landlock ABI can handle; the index is the version.
// Source: Documentation/userspace-api/landlock.rst. Later versions handle as
// much as the last here.
var abis = []struct{ fs, net, scoped uint64 }{
	1: {fs: 1<<13 - 1},
	2: {fs: 1<<14 - 1},         // refer
	3: {fs: 1<<15 - 1},         // truncate
	4: {fs: 1<<15 - 1, net: 3}, // TCP bind and connect
	5: {fs: 1<<16 - 1, net: 3}, // ioctl on devices
	6: {fs: 1<<16 - 1, net: 3, scoped: 3},
	7: {fs: 1<<16 - 1, net: 3, scoped: 3}, // abstract Unix sockets, signals
}

// Rights by what a Cage calls them.
const (
	fsRead  = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	fsExec  = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_EXECUTE
	fsWrite = fsRead | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_MAKE_REG |
		unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REFER
	// fsFile is what a rule on something other than a directory may hold.
	fsFile = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_TRUNCATE
)

// landlockABI is the kernel's version, at most what this package knows.
func landlockABI() (int, error) {
	v, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if e != 0 || v < 1 {
		return 0, fmt.Errorf("this kernel has no Landlock (%w); want Linux 5.13 or newer with \"landlock\" in its lsm= list", e)
	}
	return min(int(v), len(abis)-1), nil
}

// ruleset is a Landlock rule set under construction.
type ruleset struct {
	fd      int
	handled uint64
}

// newRuleset opens everything that the cage names.
func newRuleset(c *Cage) (*ruleset, error) {
	abi, err := landlockABI()
	if err != nil {
		return nil, err
	}
	h := abis[abi]
	a := unix.LandlockRulesetAttr{Handled_access_fs: h.fs, Handled_access_net: h.net, Scoped: h.scoped}
	free := c.may("connect") && len(c.Ports) == 0
	if free {
		a.Handled_access_net &^= unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	fd, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&a)), unsafe.Sizeof(a), 0)
	if e != 0 {
		return nil, fmt.Errorf("create rule set for ABI %d: %w", abi, e)
	}
	r := &ruleset{int(fd), h.fs}
	err = errors.Join(r.paths(c.Read, fsRead), r.paths(c.Write, fsWrite), r.self())
	if h.net != 0 && c.may("connect") {
		err = errors.Join(err, r.ports(c.Ports))
	}
	return r, err
}

func (r *ruleset) paths(ps []string, rights uint64) error {
	for _, p := range ps {
		if err := r.path(p, rights); err != nil {
			return err
		}
	}
	return nil
}

func (r *ruleset) path(p string, rights uint64) error {
	fd, err := unix.Open(p, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("path %s of the cage: %w", p, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &= fsFile
	}
	a := unix.LandlockPathBeneathAttr{Allowed_access: rights & r.handled, Parent_fd: int32(fd)}
	return r.add(unix.LANDLOCK_RULE_PATH_BENEATH, unsafe.Pointer(&a), p)
}

func (r *ruleset) add(kind uintptr, a unsafe.Pointer, what string) error {
	if _, _, e := unix.RawSyscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(r.fd), kind, uintptr(a), 0, 0, 0); e != 0 {
		return fmt.Errorf("rule for %s: %w", what, e)
	}
	return nil
}

// portAttr is struct landlock_net_port_attr of linux/landlock.h.
type portAttr struct{ access, port uint64 }

const ruleNetPort = 2 // LANDLOCK_RULE_NET_PORT

// ports allows connecting. Port 0 may be bound to as long as Go finds out
// whether the machine has IPv6 (see ready); the filter then forbids bind.
func (r *ruleset) ports(ps []uint16) error {
	a := portAttr{unix.LANDLOCK_ACCESS_NET_BIND_TCP, 0}
	errs := []error{r.add(ruleNetPort, unsafe.Pointer(&a), "port 0")}
	for _, p := range ps {
		a := portAttr{unix.LANDLOCK_ACCESS_NET_CONNECT_TCP, uint64(p)}
		errs = append(errs, r.add(ruleNetPort, unsafe.Pointer(&a), fmt.Sprintf("port %d", p)))
	}
	return errors.Join(errs...)
}

// self lets this program be executed once more. One that was linked
// dynamically (tests, a build with cgo) needs its loader and libraries.
func (r *ruleset) self() error {
	const exe = "/proc/self/exe"
	if err := r.path(exe, fsExec); err != nil {
		return err
	}
	f, err := elf.Open(exe)
	if err != nil {
		return err
	}
	defer f.Close()
	i := slices.IndexFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
	if i < 0 {
		return nil
	}
	name := make([]byte, f.Progs[i].Filesz)
	if _, err := f.Progs[i].ReadAt(name, 0); err != nil {
		return err
	}
	ld, err := filepath.EvalSymlinks(strings.TrimRight(string(name), "\x00"))
	if err != nil {
		return err
	}
	errs := []error{r.path(ld, fsExec)}
	for _, lib := range []string{"/lib", "/lib64", "/usr/lib", "/etc/ld.so.cache"} {
		if _, err := os.Stat(lib); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		errs = append(errs, r.path(lib, fsRead))
	}
	return errors.Join(errs...)
}

// restrict puts the calling thread into the domain.
func (r *ruleset) restrict() error {
	_, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(r.fd), 0, 0)
	unix.Close(r.fd)
	if e != 0 {
		return e
	}
	return nil
}
