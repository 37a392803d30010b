package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/internal/durable"
)

// A disk is an agent's own file system, for policies with budgets.disk or
// budgets.inodes: ext4 in a sparse file of the host, on a loop device, mounted
// where the writable folders of an agent without one lie. So a full disk is
// ENOSPC for that agent alone, whatever the host's file system can do, and a
// snapshot is one file. It stays mounted between two starts: mounting takes
// longer than everything else in a start.
//
// ext4 because its number of inodes is fixed exactly when it is made, and
// because its tools are essential packages of the hosts that we support.
// Project quotas would need a host that was installed with them.
type disk struct {
	dir string // the agent's directory
}

// size asks for a file system.
type size struct {
	bytes  int64
	inodes int64
}

const (
	diskFile  = "disk.img"
	diskMount = "files"
	diskTable = "disk.size" // what disk.img was made for: bytes and inodes
	inodeSize = 256         // bytes, ext4's default
	diskBlock = 4096

	// journal is what a file system with room for one gets; smaller ones are
	// repaired by e2fsck instead.
	journal     = 8 << 20
	journalFrom = 64 << 20
	// smallDisk has room for ext4's own tables.
	smallDisk = 1 << 20
)

func (d disk) image() string { return filepath.Join(d.dir, diskFile) }
func (d disk) mount() string { return filepath.Join(d.dir, diskMount) }
func (d disk) exists() bool {
	_, err := os.Lstat(d.image())
	return err == nil
}

// diskSize is what the policy's budgets ask for; ok is false where they ask
// for none.
func diskSize(bytes int64, inodes int) (size, bool) {
	s := size{bytes, int64(inodes)}
	if bytes == 0 && inodes == 0 {
		return s, false
	}
	if s.bytes == 0 {
		s.bytes = 1 << 40 // sparse: the host's own room bounds it
	}
	if s.inodes == 0 {
		s.inodes = s.bytes / 8192
	}
	s.bytes, s.inodes = max(s.bytes, smallDisk), max(s.inodes, 16)
	return s, true
}

// total is the image's length: what the agent may fill, and what the file
// system needs for itself.
func (s size) total() int64 {
	t := s.bytes + (s.inodes+16)*inodeSize + s.bytes/1024 + 32*diskBlock
	if s.bytes >= journalFrom {
		t += journal
	}
	return (t + diskBlock - 1) / diskBlock * diskBlock
}

// open makes the disk if there is none, adapts it if the policy has changed,
// and mounts it. What the agent has written without a disk moves into it.
func (d disk) open(want size) error {
	if err := durable.MkdirAll(d.mount(), 0o700); err != nil {
		return err
	}
	have, err := d.madeFor()
	if err != nil {
		return err
	}
	if mounted, err := d.mounted(); err != nil || mounted && have == want {
		return err
	}
	if have != want {
		if err := d.rebuild(want); err != nil {
			return fmt.Errorf("disk of %d bytes and %d inodes: %w", want.bytes, want.inodes, err)
		}
		return d.put() // mke2fs has just left it whole, and nobody has had it
	}
	return d.attach()
}

// madeFor reads the size of the present image; none is the zero size.
func (d disk) madeFor() (s size, err error) {
	b, err := os.ReadFile(filepath.Join(d.dir, diskTable))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !d.exists() {
		return s, nil
	}
	if err == nil {
		_, err = fmt.Sscanf(string(b), "%d %d\n", &s.bytes, &s.inodes)
	}
	if err != nil {
		return s, fmt.Errorf("%s: %w", diskTable, err)
	}
	return s, nil
}

// rebuild makes an image of the wanted size with the present content, and
// only then lets it take the place of the old one.
func (d disk) rebuild(want size) error {
	if d.exists() {
		if err := d.attach(); err != nil {
			return err
		}
	}
	tmp := d.image() + ".new"
	defer os.Remove(tmp)
	if err := d.format(tmp, want); err != nil {
		return err
	}
	if err := errors.Join(syncFile(tmp), d.detach()); err != nil {
		return err
	}
	// The table last: an image of another size than it says is made anew.
	if err := durable.Rename(tmp, d.image()); err != nil {
		return err
	}
	if err := d.describe(want); err != nil {
		return err
	}
	return d.clear()
}

// describe writes down what the image was made for.
func (d disk) describe(s size) error {
	return durable.WriteFile(filepath.Join(d.dir, diskTable), fmt.Appendf(nil, "%d %d\n", s.bytes, s.inodes), 0o600)
}

func (d disk) mounted() (bool, error) {
	m, err := mountinfo.Mounted(d.mount())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return m, err
}

// clear erases what lay in the folder before it became a mount point.
func (d disk) clear() error {
	es, err := os.ReadDir(d.mount())
	for _, e := range es {
		err = errors.Join(err, erase(filepath.Join(d.mount(), e.Name())))
	}
	return err
}

// format writes an ext4 file system with the content of the mount folder.
func (d disk) format(file string, s size) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(s.total()), f.Close()); err != nil {
		return err
	}
	args := []string{
		"-q", "-F", "-t", "ext4", "-m", "0", "-b", strconv.Itoa(diskBlock), "-I", strconv.Itoa(inodeSize), "-N", strconv.FormatInt(s.inodes+11, 10),
		"-E", "root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1,nodiscard", "-L", "clawbox",
	}
	if s.bytes >= journalFrom {
		args = append(args, "-O", "^resize_inode", "-J", "size="+strconv.Itoa(journal>>20))
	} else {
		args = append(args, "-O", "^resize_inode,^has_journal")
	}
	es, err := os.ReadDir(d.mount())
	if err != nil {
		return err
	}
	if len(es) > 0 {
		args = append(args, "-d", d.mount())
	}
	return tool("mke2fs", append(args, file)...)
}

// tool runs a program of the host's.
func tool(name string, args ...string) error {
	c := exec.Command(name, args...)
	c.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	for _, d := range filepath.SplitList("/usr/sbin:/sbin:/usr/bin:/bin") {
		if p := filepath.Join(d, name); exists(p) {
			c.Path, c.Err = p, nil
			break
		}
	}
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

func exists(p string) bool { _, err := os.Stat(p); return err == nil }

// attach mounts the image. What a power cut has left is repaired first.
func (d disk) attach() error {
	if mounted, err := d.mounted(); err != nil || mounted {
		return err
	}
	if err := d.idle(); err != nil {
		return err
	}
	// 1 and 2: mended.
	err := tool("e2fsck", "-p", d.image())
	var e *exec.ExitError
	if errors.As(err, &e) && e.ExitCode() < 4 {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("the agent's disk is damaged; restore a snapshot: %w", err)
	}
	return d.put()
}

// put mounts an image that is whole and free.
func (d disk) put() error {
	dev, err := loop(d.image())
	if err != nil {
		return err
	}
	defer dev.Close() // the mount holds it; autoclear frees it after the unmount
	err = unix.Mount(dev.Name(), d.mount(), "ext4", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOATIME, "noinit_itable,errors=remount-ro")
	if err != nil {
		return fmt.Errorf("mount %s: %w", d.image(), err)
	}
	// The agents' folders in it are walked to by root only.
	return errors.Join(os.Chmod(d.mount(), 0o700), os.RemoveAll(filepath.Join(d.mount(), "lost+found")))
}

// idle waits until no loop device has the image. Another mount namespace that
// is just ending, a killed sandbox's, keeps the file system alive and unwritten
// for a moment after our own unmount; mounting the image a second time then
// would lose what was written last.
func (d disk) idle() error {
	image, err := filepath.EvalSymlinks(d.image())
	if err != nil {
		return err
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		busy := ""
		files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
		for _, f := range files {
			// A device that is let go meanwhile has none any more.
			if b, err := os.ReadFile(f); err == nil && strings.TrimSuffix(string(b), "\n") == image {
				busy = f
			}
		}
		if busy == "" {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is still attached (%s): something of the agent's last sandbox lives; look for its processes", image, busy)
		}
	}
}

// detach unmounts the disk, if it is mounted.
func (d disk) detach() error {
	mounted, err := d.mounted()
	if err != nil || !mounted {
		return err
	}
	d.thaw() // a daemon that died may have left it frozen; it seldom has
	// A sandbox that has just ended may hold it for a moment.
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Unmount(d.mount(), unix.UMOUNT_NOFOLLOW)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return fmt.Errorf("unmount %s: %w", d.mount(), err)
		}
	}
}

// loop attaches a file to a free loop device, past the page cache: it is in
// the agent's file system's already.
// Source: loop(4).
func loop(file string) (*os.File, error) {
	img, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("budgets.disk and budgets.inodes need loop devices: %w; load the module loop, or set neither", err)
	}
	defer ctl.Close()
	for range 64 { // another may be quicker
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a loop device: %w", err)
		}
		dev, err := configure(fmt.Sprintf("/dev/loop%d", n), img)
		if !errors.Is(err, unix.EBUSY) {
			return dev, err
		}
	}
	return nil, errors.New("64 loop devices in a row were taken by others; stop what attaches them")
}

func configure(path string, img *os.File) (*os.File, error) {
	dev, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	c := unix.LoopConfig{Fd: uint32(img.Fd()), Size: diskBlock}
	c.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	if err := unix.IoctlLoopConfigure(int(dev.Fd()), &c); err != nil {
		dev.Close()
		return nil, fmt.Errorf("attach %s to %s: %w", img.Name(), path, err)
	}
	return dev, nil
}

func syncFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// freeze writes everything down and holds the file system still; thaw lets
// it go on. Source: ioctl_fsfreeze(2) in linux/fs.h.
func (d disk) freeze() error { return d.control(fiFreeze, "freeze") }
func (d disk) thaw() error   { return d.control(fiThaw, "thaw") }

const (
	fiFreeze = 0xc0045877 // FIFREEZE, _IOWR('X', 119, int)
	fiThaw   = 0xc0045878 // FITHAW
)

func (d disk) control(op uint, what string) error {
	f, err := os.Open(d.mount())
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), op, 0); err != nil {
		return fmt.Errorf("%s %s: %w", what, d.mount(), err)
	}
	return nil
}

// room is what is left on a file system.
type room struct{ bytes, inodes int64 }

func roomAt(fd int) (room, error) {
	var st unix.Statfs_t
	err := unix.Fstatfs(fd, &st)
	return room{int64(st.Bavail) * st.Bsize, int64(st.Ffree)}, err
}

// device is the block device below the mounted disk, as io.max names it.
func (d disk) device() (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(d.mount(), &st); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)), nil
}
