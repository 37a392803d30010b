package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mount is one line of an fstab.
type mount struct {
	kind, at, options string
	flags             uintptr
	optional          bool // a kernel may lack it
}

// First what the modules and the disk need, then what a Debian host has.
var (
	firstMounts = []mount{
		{kind: "devtmpfs", at: "/dev", flags: unix.MS_NOSUID},
		{kind: "proc", at: "/proc"},
		{kind: "sysfs", at: "/sys"},
	}
	hostMounts = []mount{
		{kind: "devtmpfs", at: "/dev", flags: unix.MS_NOSUID},
		{kind: "proc", at: "/proc", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{kind: "sysfs", at: "/sys", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{kind: "devpts", at: "/dev/pts", options: "gid=5,mode=620,ptmxmode=000"},
		{kind: "tmpfs", at: "/dev/shm", flags: unix.MS_NOSUID | unix.MS_NODEV},
		{kind: "tmpfs", at: "/run", options: "mode=755", flags: unix.MS_NOSUID | unix.MS_NODEV},
		{kind: "tmpfs", at: "/tmp", options: "mode=1777", flags: unix.MS_NOSUID | unix.MS_NODEV},
		{kind: "cgroup2", at: "/sys/fs/cgroup", options: "nsdelegate", flags: unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{kind: "securityfs", at: "/sys/kernel/security", optional: true},
		{kind: "tracefs", at: "/sys/kernel/tracing", optional: true},
		{kind: "bpf", at: "/sys/fs/bpf", options: "mode=700", optional: true},
	}
)

func mountAll(ms []mount) error {
	for _, m := range ms {
		err := os.MkdirAll(m.at, 0o755)
		if err == nil || !m.optional {
			err = unix.Mount(m.kind, m.at, m.kind, m.flags, m.options)
		}
		if err != nil && !m.optional {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.at, err)
		}
	}
	return nil
}

// early loads the initramfs's modules in their order. A module that does not
// fit this processor says ENODEV and is not missed.
func early() error {
	if err := mountAll(firstMounts); err != nil {
		return err
	}
	names, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			return err
		}
		if err := unix.InitModule(b, ""); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", n, err)
		}
		if err := os.Remove(n); err != nil { // it is memory
			return err
		}
	}
	return nil
}

// await polls for what the kernel makes in its own time.
func await(what string, there func() bool) error {
	for end := time.Now().Add(60 * time.Second); !there(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("waited a minute for %s", what)
		}
	}
	return nil
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// enterDisk makes the disk the root, the way switch_root(8) does: moved over
// the initramfs, so that a sandbox can pivot_root later.
func enterDisk() error {
	const disk = "/dev/vda"
	if err := await(disk, func() bool { return exists(disk) }); err != nil {
		return err
	}
	if err := unix.Mount(disk, "/root", "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", disk, err)
	}
	for i := len(firstMounts) - 1; i >= 0; i-- {
		if err := unix.Unmount(firstMounts[i].at, unix.MNT_DETACH); err != nil {
			return err
		}
	}
	if err := unix.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the disk over the initramfs: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// prepare makes the disk's root a host.
func prepare() error {
	if err := mountAll(hostMounts); err != nil {
		return err
	}
	// systemd shares every mount; sandboxes must cope with that.
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return err
	}
	for link, to := range map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2"} {
		if err := os.Symlink(to, link); err != nil && !exists(link) {
			return err
		}
	}
	if err := unix.Sethostname([]byte("guest")); err != nil {
		return err
	}
	return errors.Join(loopback(), controllers())
}

// loopback brings the interface lo up, the only one that there is.
func loopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r)
}

// controllers gives every controller of the kernel to the root's children, as
// systemd does.
func controllers() error {
	b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(b)) {
		if err := os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+"+c), 0); err != nil {
			fmt.Fprintf(os.Stderr, "guest: controller %s: %v\n", c, err)
		}
	}
	return nil
}
