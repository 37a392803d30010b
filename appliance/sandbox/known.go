package sandbox

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/confine"
	"github.com/clawbox/clawbox/appliance/guard"
)

// What a policy becomes in an image is the same at every start: layers never
// change once they are unpacked. A policy that lists /usr/bin/ takes thousands
// of looks into the image, so the answer is kept, unless it has depended on
// something else (view.loose) or contents have to be compared each time
// (Process.ExecHashes).

// maxKnown bounds what is kept; a host has few images and policies.
const maxKnown = 64

// compileKey changes with everything that compile looks at.
func compileKey(s *Spec, abi int) string {
	f, p := s.Policy.Filesystem, s.Policy.Process
	return fmt.Sprintf("%d %q %v %q %q %q %q %q %t %q %q %q %q", abi, s.Image.Ref, s.Image.Digest, s.Image.Layers, s.Image.Entrypoint, s.Image.Cmd, s.Args,
		getenv(environment(s), "PATH"), len(s.TrustPEM) > 0, f.Read, f.Write, f.Workdir, p.Exec)
}

// recall returns what compile answered for key, or nil.
func (l *Local) recall(key string) *compiled {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.known[key]
}

// remember keeps an answer for recall.
func (l *Local) remember(key string, c *compiled) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known == nil || len(l.known) >= maxKnown {
		l.known = map[string]*compiled{}
	}
	l.known[key] = &compiled{
		spec: confine.Spec{Dir: c.spec.Dir, Args: slices.Clone(c.spec.Args), Landlock: c.spec.Landlock},
		exec: c.exec, notes: slices.Clone(c.notes),
	}
}

// again is what compile would answer for a start that has the same key.
func (c *compiled) again(s *Spec, id owner, abi int) (*compiled, error) {
	spec, err := frame(s, id, abi)
	spec.Dir, spec.Args, spec.Landlock = c.spec.Dir, slices.Clone(c.spec.Args), c.spec.Landlock
	return &compiled{spec: spec, exec: c.exec, notes: slices.Clone(c.notes)}, err
}

// inodes is guard.Lookup of many paths, which have no links: it reads the
// mount table once for each mount instead of once for each file.
func inodes(pid int, paths []string) ([]guard.Inode, error) {
	v, err := lookInto(pid)
	if err != nil {
		return nil, err
	}
	defer v.close()
	dev := map[uint64]uint64{} // of the mounts met so far
	out := make([]guard.Inode, len(paths))
	for i, p := range paths {
		if out[i], err = v.inode(pid, p, dev); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (v *view) inode(pid int, p string, dev map[uint64]uint64) (guard.Inode, error) {
	fd, err := v.openFD(p, unix.O_PATH, 0)
	if err != nil {
		return guard.Inode{}, err
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	err = unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_MNT_ID, &st)
	d, ok := dev[st.Mnt_id]
	if err != nil || !ok || st.Mask&unix.STATX_MNT_ID == 0 { // before Linux 5.8 it has none
		n, err := guard.Lookup(pid, p)
		if err == nil {
			dev[st.Mnt_id] = n.Dev
		}
		return n, err
	}
	ino, err := fdIno(fd)
	return guard.Inode{Dev: d, Ino: ino}, err
}

// fdIno is the kernel's own number for an open file, which on overlayfs is not
// what stat(2) says. Source: proc_pid_fdinfo(5), "ino", since Linux 5.14.
func fdIno(fd int) (uint64, error) {
	in, err := unix.Open("/proc/self/fdinfo/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(in)
	var buf [512]byte
	n, err := unix.Read(in, buf[:])
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(buf[:n])) {
		if x, ok := strings.CutPrefix(line, "ino:"); ok {
			return strconv.ParseUint(strings.TrimSpace(x), 10, 64)
		}
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return st.Ino, err
}
