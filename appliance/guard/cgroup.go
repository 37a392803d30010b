package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxDepth keeps scopes within what the BPF programs look at (32 levels),
// leaving room for levels above a cgroup namespace, which can't be seen.
const maxDepth = 16

// fileKernfs is the handle type FILEID_KERNFS of linux/exportfs.h: eight bytes
// with the node's id.
const fileKernfs = 0xfe

// mount is one line of mountinfo(5).
type mount struct {
	id   string
	dev  uint64 // of the superblock, in the encoding of stat(2)
	root string // what of the file system is mounted
	dir  string // where
	kind string
}

// mounts parses a mountinfo file; lines it can't read are left out.
func mounts(file string) ([]mount, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var ms []mount
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		sep := -1
		for i := range f {
			if f[i] == "-" {
				sep = i
			}
		}
		if len(f) < 6 || sep < 0 || sep+1 >= len(f) {
			continue
		}
		major, minor, _ := strings.Cut(f[2], ":")
		a, err1 := strconv.ParseUint(major, 10, 32)
		i, err2 := strconv.ParseUint(minor, 10, 32)
		if err1 != nil || err2 != nil {
			continue
		}
		ms = append(ms, mount{f[0], unix.Mkdev(uint32(a), uint32(i)), unescape(f[3]), unescape(f[4]), f[sep+1]})
	}
	return ms, nil
}

// unescape undoes mountinfo's octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// cgroup2 finds where the v2 hierarchy is mounted: /sys/fs/cgroup on most
// hosts, /sys/fs/cgroup/unified beside v1 controllers.
func cgroup2() (mount, error) {
	ms, err := mounts("/proc/self/mountinfo")
	if err != nil {
		return mount{}, err
	}
	for _, m := range ms {
		if m.kind == "cgroup2" {
			return m, nil
		}
	}
	return mount{}, errors.New("no cgroup2 file system is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

// Cgroup2Dir returns where the v2 hierarchy is mounted.
func Cgroup2Dir() (string, error) {
	m, err := cgroup2()
	return m.dir, err
}

// CgroupID returns the id of the cgroup at dir, a directory of the v2
// hierarchy. The kernel does not reuse it.
func CgroupID(dir string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0, fmt.Errorf("guard: %s is no cgroup v2 directory (file system type %#x)", dir, fs.Type)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	return st.Ino, nil // on 64 bits the inode number is the whole id
}

// Delegate lets uid make cgroups below the one at dir and start processes in
// them, if the user's own process lives in dir. A guard that is not root needs
// that for its self-test (Options.Cgroup).
func Delegate(dir string, uid int) error {
	for _, name := range []string{dir, dir + "/cgroup.procs"} {
		if err := os.Chown(name, uid, -1); err != nil {
			return fmt.Errorf("guard: delegate a cgroup: %w", err)
		}
	}
	return nil
}

// checkCgroup refuses ids that no scope can have. With dir it needs no
// capability, without it CAP_DAC_READ_SEARCH.
func (m mount) checkCgroup(id uint64, dir string) (err error) {
	if dir == "" {
		dir, err = m.find(id)
	} else {
		err = sameCgroup(id, dir)
	}
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(m.dir, dir)
	if err != nil || rel == "." || rel == ".." || strings.HasPrefix(rel, "../") {
		return fmt.Errorf("cgroup %s can't be a scope: want one below %s", dir, m.dir)
	}
	if n := strings.Count(rel, "/") + 1; n > maxDepth {
		return fmt.Errorf("cgroup %s is %d levels deep, at most %d can be watched", rel, n, maxDepth)
	}
	return nil
}

func sameCgroup(id uint64, dir string) error {
	got, err := CgroupID(dir)
	if err == nil && got != id {
		err = fmt.Errorf("cgroup %s has id %d, want %d (take it from CgroupID)", dir, got, id)
	}
	return err
}

// find looks for the directory of a cgroup.
func (m mount) find(id uint64) (string, error) {
	top, err := unix.Open(m.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: m.dir, Err: err}
	}
	defer unix.Close(top)
	h := unix.NewFileHandle(fileKernfs, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(top, h, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("no cgroup with id %d under %s (take it from CgroupID): %w", id, m.dir, err)
	}
	defer unix.Close(fd)
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
}
