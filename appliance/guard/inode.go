package guard

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Inode identifies a file as the kernel does. On overlayfs and btrfs it is not
// what stat(2) says: use Lookup.
type Inode struct {
	Dev uint64 // of the superblock, in the encoding of stat(2)
	Ino uint64
}

// kernelDev turns stat(2)'s device number into the kernel's own (MKDEV of
// linux/kdev_t.h: 12 bits major, 20 bits minor).
func kernelDev(d uint64) uint32 { return unix.Major(d)<<20 | unix.Minor(d)&0xfffff }

func userDev(d uint32) uint64 { return unix.Mkdev(d>>20, d&0xfffff) }

// Lookup finds the file that process pid sees as path; symbolic links are
// resolved within its root. It needs Linux 5.6 (openat2).
func Lookup(pid int, path string) (Inode, error) {
	proc := "/proc/" + strconv.Itoa(pid)
	root, err := unix.Open(proc+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Inode{}, &os.PathError{Op: "open", Path: proc + "/root", Err: err}
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return Inode{}, fmt.Errorf("guard: look up in the root of process %d: %w", pid, &os.PathError{Op: "openat2", Path: path, Err: err})
	}
	defer unix.Close(fd)
	return inodeOf(fd, proc+"/mountinfo")
}

// inodeOf reads what the kernel itself compares: the inode number from fdinfo
// and the superblock's device from the mount that fd was opened through. A
// mount that no table shows (memfd) is a plain file system: stat is right.
func inodeOf(fd int, mountinfo string) (Inode, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Inode{}, err
	}
	n := Inode{Dev: st.Dev, Ino: st.Ino}
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return Inode{}, err
	}
	var id string
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		switch k, v, _ := strings.Cut(sc.Text(), ":"); k {
		case "mnt_id":
			id = strings.TrimSpace(v)
		case "ino": // since Linux 5.14
			if n.Ino, err = strconv.ParseUint(strings.TrimSpace(v), 10, 64); err != nil {
				return Inode{}, err
			}
		}
	}
	ms, err := mounts(mountinfo)
	if err != nil {
		return Inode{}, err
	}
	if i := slices.IndexFunc(ms, func(m mount) bool { return m.id == id }); i >= 0 {
		n.Dev = ms[i].dev
	}
	return n, nil
}
