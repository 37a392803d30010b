package confine

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Version is the version of Root and Spec that this package reads. A launcher
// refuses any other: daemon and launcher come from one release.
const Version = 3

// Root describes the file system and identity of a sandbox. The paths of
// Layers and of bind sources are the host's; all others are the sandbox's.
type Root struct {
	Version  int
	Hostname string
	// Layers are directories for one read-only overlay, topmost first, at
	// least two: the kernel wants two where there is no upper layer. The
	// first holds the mount points, and serves as the place to mount on.
	Layers []string
	Binds  []Bind
	// Scratch is the size of /tmp in bytes, Shm that of /dev/shm.
	Scratch int64
	Shm     int64
	// Supervisor confines PID 1; its Args are the launcher's own business.
	Supervisor Spec
}

// Bind shows a host directory in the sandbox, always nosuid and nodev.
type Bind struct {
	Source   string // host directory; SendRoot sends a mount of it along
	Target   string // directory in the sandbox; must exist
	Writable bool
	Exec     bool // without it the mount is noexec
}

// Spec is everything that confines one process, and the program it becomes.
type Spec struct {
	Version  int
	Args     []string // Args[0] is an absolute path
	Env      []string
	Dir      string
	UID      int // never 0
	GID      int // never 0; no other groups
	Limits   []Limit
	Landlock Landlock
	Seccomp  Filter // never empty
	// Capabilities, without "CAP_", are kept and handed on to what the program
	// executes. Normally none.
	Capabilities []string
	// TTY makes standard input the controlling terminal of a new session.
	TTY bool
}

// Limit is one resource limit, soft and hard alike. Names are those of the
// limits table: "core", "fsize", "memlock", "nofile", "nproc", "stack".
type Limit struct {
	Name  string
	Value uint64
}

// Landlock lists absolute paths, each for itself and all below it. A path
// that is listed nowhere cannot be opened.
type Landlock struct {
	// ABI is the version whose rights are all handled. A kernel with a lower
	// one refuses the Spec.
	ABI    int
	Read   []string
	Write  []string // read, write, create, remove
	Exec   []string // read, execute
	Device []string // read, write, ioctl
}

// Validate refuses a Root that the launcher could only misread.
func (r *Root) Validate() error {
	if r.Version != Version {
		return fmt.Errorf("root has version %d, want %d: launcher and daemon must come from one release", r.Version, Version)
	}
	if len(r.Layers) < 2 {
		return fmt.Errorf("root has %d layers, want at least 2", len(r.Layers))
	}
	if r.Hostname == "" || r.Scratch <= 0 || r.Shm <= 0 {
		return fmt.Errorf("root has hostname %q, scratch %d, shm %d; want a name and sizes above 0", r.Hostname, r.Scratch, r.Shm)
	}
	paths := slices.Clone(r.Layers)
	for _, b := range r.Binds {
		if err := b.check(); err != nil {
			return err
		}
		paths = append(paths, b.Source, b.Target)
	}
	if err := absolute(paths...); err != nil {
		return err
	}
	return r.Supervisor.Validate()
}

// reserved is what the launcher mounts itself; a bind there would undo it.
var reserved = []string{"/", "/proc", "/dev", "/sys", "/tmp"}

func (b Bind) check() error {
	for _, p := range reserved {
		if b.Target == p || p != "/" && strings.HasPrefix(b.Target, p+"/") {
			return fmt.Errorf("bind target %q is at or below %s, which the launcher mounts", b.Target, p)
		}
	}
	if b.Writable && b.Exec {
		return fmt.Errorf("bind %q is both writable and executable; want one of them", b.Target)
	}
	return nil
}

// Validate refuses a Spec that would leave a process less than confined.
func (s *Spec) Validate() error {
	switch {
	case s.Version != Version:
		return fmt.Errorf("spec has version %d, want %d: launcher and daemon must come from one release", s.Version, Version)
	case s.UID <= 0 || s.GID <= 0:
		return fmt.Errorf("spec has uid %d and gid %d; want both above 0: root is never confined enough", s.UID, s.GID)
	case len(s.Seccomp) == 0:
		return errors.New("spec has no system call filter; want one from Profile")
	case len(s.Args) == 0:
		return errors.New("spec has no program; want an absolute path in args[0]")
	case s.Landlock.ABI < 1:
		return fmt.Errorf("spec wants Landlock ABI %d; want 1 or higher", s.Landlock.ABI)
	}
	for _, l := range s.Limits {
		if _, ok := limits[l.Name]; !ok {
			return fmt.Errorf("spec limits unknown resource %q; want one of %s", l.Name, strings.Join(limitNames(), ", "))
		}
	}
	l := s.Landlock
	return absolute(slices.Concat([]string{s.Args[0], s.Dir}, l.Read, l.Write, l.Exec, l.Device)...)
}

func absolute(paths ...string) error {
	for _, p := range paths {
		if !path.IsAbs(p) || path.Clean(p) != p {
			return fmt.Errorf("path %q is not absolute and clean; want %q", p, path.Clean("/"+p))
		}
	}
	return nil
}
