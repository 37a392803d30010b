package confine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const safeMount = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// node is a device file of the sandbox.
type node struct {
	name         string
	major, minor uint32
}

// nodes are all the devices that a sandbox has, besides its own terminals.
var nodes = []node{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}}

// Devices lists the device paths that every Spec may name in Landlock.Device.
func Devices() []string {
	out := []string{"/dev/pts"}
	for _, n := range nodes {
		out = append(out, "/dev/"+n.name)
	}
	return out
}

var devLinks = map[string]string{
	"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
}

// masked are parts of /proc that tell about the host or steer it. Most are
// closed to an unprivileged user anyway; the mask holds if one day they
// aren't. The others count for the whole host, so that an agent could watch
// its neighbours and the operator's keystrokes, or recognize the machine.
// What language runtimes read stays: cpuinfo, meminfo, stat, uptime, loadavg,
// version, vmstat, filesystems, cgroups.
var masked = []string{
	"kcore", "keys", "key-users", "kallsyms", "kmsg", "kpagecount", "kpageflags", "kpagecgroup", "sysrq-trigger", "timer_list",
	"sched_debug", "latency_stats", "slabinfo", "vmallocinfo", "modules", "config.gz", "acpi", "asound", "bus", "driver", "fs", "irq", "scsi",
	// How it was started, and with what hardware.
	"cmdline", "bootconfig", "version_signature", "iomem", "ioports", "dma", "mtrr", "mpt", "devices", "misc", "consoles", "partitions", "mdstat", "swaps",
	// What happens on it now.
	"interrupts", "softirqs", "diskstats", "locks", "pressure", "schedstat", "buddyinfo", "pagetypeinfo", "zoneinfo",
}

// Where the sandbox's /dev and /proc stand until its root does: over two
// folders that every host has, and where no layer of an image can lie.
const (
	stagedDev  = "/sys"
	stagedProc = "/proc"
)

// setStage mounts what is the same in every sandbox, in the calling process's
// mount namespace. The caller is alone in new mount, pid, net, ipc and uts
// namespaces.
func setStage() error {
	return inOrder([]mounting{
		{"private mounts", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		{"domain name", func() error { return unix.Setdomainname([]byte("(none)")) }},
		{"dev", func() error { return mountDev(stagedDev) }},
		{"proc", func() error { return mountProc(stagedProc, stagedDev+"/null") }},
	})
}

// build mounts r with the trees of its binds, takes along what setStage has
// mounted, and makes all of it the root.
func build(r *Root, trees []int) error {
	return inOrder([]mounting{
		{"hostname", func() error { return unix.Sethostname([]byte(r.Hostname)) }},
		{"overlay", func() error { return mountOverlay(r.Layers) }},
		{"enter", func() error { return unix.Chdir(r.Layers[0]) }},
		{"binds", func() error { return mountBinds(r.Binds, trees) }},
		{"dev", func() error { return unix.Mount(stagedDev, "dev", "", unix.MS_MOVE, "") }},
		{"shm", func() error { return mountTmp("dev/shm", r.Shm) }},
		{"proc", func() error { return unix.Mount(stagedProc, "proc", "", unix.MS_MOVE, "") }},
		{"tmp", func() error { return mountTmp("tmp", r.Scratch) }},
		{"pivot", pivot},
	})
}

// mounting is a step with a name for errors.
type mounting struct {
	name string
	do   func() error
}

func inOrder(steps []mounting) error {
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// mountOverlay mounts the layers over the first one. They are named by
// descriptor: no path needs escaping, the 4096 bytes of mount options suffice
// for any image, and the mount options show no host path.
func mountOverlay(layers []string) error {
	var refs []string
	for _, l := range layers {
		f, err := os.OpenFile(l, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		refs = append(refs, fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	}
	flags := uintptr(unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV)
	err := unix.Mount("clawbox", layers[0], "overlay", flags, "lowerdir="+strings.Join(refs, ":"))
	if err != nil {
		return fmt.Errorf("%d layers: %w; want a kernel with overlayfs", len(layers), err)
	}
	return nil
}

func mountBinds(bs []Bind, trees []int) error {
	for i, b := range bs {
		if err := b.mount(trees[i]); err != nil {
			return fmt.Errorf("%s: %w", b.Target, err)
		}
	}
	return nil
}

// mount restricts the tree, which is attached nowhere yet, and puts it in its
// place.
func (b Bind) mount(tree int) error {
	at, err := target(b.Target)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	defer unix.Close(tree)
	a := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if !b.Writable {
		a.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if !b.Exec {
		a.Attr_set |= unix.MOUNT_ATTR_NOEXEC
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &a); err != nil {
		return fmt.Errorf("restrict: %w; want Linux 5.12 or newer", err)
	}
	return unix.MoveMount(tree, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// target opens a directory of the new root, which is the working directory.
func target(p string) (int, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS}
	return unix.Openat2(unix.AT_FDCWD, p, how)
}

// mountProc hides processes of other users: PID 1, and whoever is about to
// become the agent. null masks files.
func mountProc(dir, null string) error {
	if err := unix.Mount("proc", dir, "proc", safeMount, "hidepid=2"); err != nil {
		return err
	}
	if err := maskAll(dir, null, masked); err != nil {
		return err
	}
	if err := sealMemory(dir + "/sys/vm/memfd_noexec"); err != nil {
		return err
	}
	sys := dir + "/sys"
	if err := unix.Mount(sys, sys, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return unix.Mount("", sys, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|safeMount, "")
}

// sealMemory has the kernel refuse executable anonymous files in this pid
// namespace, beside the system call filter. Kernels before 6.3 have only that.
func sealMemory(knob string) error {
	fd, err := unix.Open(knob, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", knob, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte("2")); err != nil {
		return fmt.Errorf("%s: %w", knob, err)
	}
	return nil
}

// maskAll hides entries of dir: files below the null device, folders below an
// empty one. Only the first of each kind is mounted with its restrictions;
// binding it again copies them, which takes half the system calls.
func maskAll(dir, null string, names []string) error {
	file, folder := "", ""
	for _, m := range names {
		p := filepath.Join(dir, m)
		err := bindMask(&file, p, func(p string) error { return maskFile(null, p) })
		if errors.Is(err, unix.ENOTDIR) {
			err = bindMask(&folder, p, maskFolder)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("mask %s: %w", p, err)
		}
	}
	return nil
}

// bindMask puts the mask at p, made by first if there is none yet.
func bindMask(mask *string, p string, first func(string) error) error {
	if *mask != "" {
		return unix.Mount(*mask, p, "", unix.MS_BIND, "")
	}
	err := first(p)
	if err == nil {
		*mask = p
	}
	return err
}

func maskFolder(p string) error {
	return unix.Mount("masked", p, "tmpfs", unix.MS_RDONLY|safeMount, "size=4k,nr_inodes=2,mode=555")
}

func maskFile(null, p string) error {
	if err := unix.Mount(null, p, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return unix.Mount("", p, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NOEXEC, "")
}

// mountDev makes a /dev of nothing but harmless nodes, then seals it. What
// goes to its folder shm is mounted later.
func mountDev(dir string) error {
	if err := unix.Mount("dev", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "size=64k,nr_inodes=64,mode=755"); err != nil {
		return err
	}
	for _, n := range nodes {
		p := filepath.Join(dir, n.name)
		if err := unix.Mknod(p, unix.S_IFCHR|0o666, int(unix.Mkdev(n.major, n.minor))); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		// mknod's mode is subject to the umask.
		if err := os.Chmod(p, 0o666); err != nil {
			return err
		}
	}
	for name, to := range devLinks {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for _, d := range []string{"pts", "shm"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("devpts", dir+"/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0600,max=64"); err != nil {
		return err
	}
	return unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NOEXEC, "")
}

// mountTmp bounds inodes too: empty files cost kernel memory, not bytes.
func mountTmp(p string, size int64) error {
	inodes := min(max(size/4096, 1024), 1<<20)
	return unix.Mount("tmp", p, "tmpfs", safeMount, fmt.Sprintf("size=%d,nr_inodes=%d,mode=1777", size, inodes))
}

// pivot makes the working directory the root and forgets the host's. Both
// may be ".", which needs no directory to put the old root in.
// Source: pivot_root(2), "pivot_root(".", ".")".
func pivot() error {
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the host: %w", err)
	}
	return unix.Chdir("/")
}
