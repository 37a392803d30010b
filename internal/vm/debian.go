package vm

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// hostPackages are what a small Debian host has that boots by itself.
var hostPackages = []string{"systemd", "systemd-sysv", "udev", "kmod", "iproute2", "procps", "util-linux", "e2fsprogs", "ca-certificates"}

// Debian gives a folder with a Debian 12 that boots with systemd, without a
// kernel: see Config.Systemd. It is made once for each list of packages, which
// come besides those of any host. Its root logs in on the serial console without
// a password, and the program init, which is that of the folder guest, is started
// by a unit of its own.
func (c Cache) Debian(ctx context.Context, packages ...string) (string, error) {
	all := slices.Concat(hostPackages, packages)
	dir, err := filepath.Abs(c.path(fmt.Sprintf("debian-%.12x", sha256.Sum256([]byte(strings.Join(all, " ")+sources)))))
	if err != nil {
		return "", err
	}
	return dir, once(dir, func(tmp string) error {
		list := filepath.Join(tmp, "sources.list")
		suites := slices.DeleteFunc(strings.SplitAfter(sources, "\n"), func(l string) bool { return strings.Contains(l, "backports") })
		if err := os.WriteFile(list, []byte(strings.Join(suites, "")), 0o644); err != nil {
			return err
		}
		root := filepath.Join(tmp, "root")
		if _, err := tool(ctx, "", "mmdebstrap", "--quiet", "--variant=minbase", "--include="+strings.Join(all, ","),
			"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/man/*",
			"bookworm", root, list); err != nil {
			return err
		}
		return furnish(root)
	})
}

// System gives a folder as Debian's, of the file system in a tar archive, such as
// a distribution's root tarball, which needs systemd and a login. Where that has
// a kernel with its modules, k is it; otherwise k is nil.
func (c Cache) System(ctx context.Context, archive string) (dir string, k *Kernel, err error) {
	st, err := os.Stat(archive)
	if err != nil {
		return "", nil, err
	}
	archive, err = filepath.Abs(archive)
	if err != nil {
		return "", nil, err
	}
	dir, err = filepath.Abs(c.path(fmt.Sprintf("system-%.12x", sha256.Sum256(fmt.Appendf(nil, "%s %d %d", archive, st.Size(), st.ModTime().UnixNano())))))
	if err != nil {
		return "", nil, err
	}
	root := filepath.Join(dir, "root")
	err = once(dir, func(tmp string) error {
		to := filepath.Join(tmp, "root")
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
		if _, err := tool(ctx, "", "tar", "--numeric-owner", "-C", to, "-xpf", archive); err != nil {
			return err
		}
		for _, need := range []string{"usr/lib/systemd/systemd", "usr/bin/systemctl", "usr/sbin/agetty"} {
			if _, err := os.Stat(filepath.Join(to, need)); err != nil {
				return fmt.Errorf("%s: got no /%s in it, want the root of a system that boots with systemd", archive, need)
			}
		}
		return furnish(to)
	})
	if err != nil {
		return "", nil, err
	}
	if found, _ := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*")); len(found) == 0 {
		return dir, nil, nil
	}
	own, err := kernelIn(ctx, root, filepath.Join(dir, "vmlinux"))
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", archive, err)
	}
	own.Series.Name = series.FindString(own.Release)
	return dir, &own, nil
}

// series is what of a kernel's release names its line.
var series = regexp.MustCompile(`^[0-9]+\.[0-9]+`)

// furnish sets up what an operator finds on the machine.
func furnish(root string) error {
	for name, text := range map[string]string{
		"etc/hostname":      "guest\n",
		"etc/hosts":         "127.0.0.1 localhost guest\n::1 localhost\n",
		"etc/fstab":         "/dev/vda / ext4 rw 0 1\n",
		"etc/machine-id":    "",
		"etc/resolv.conf":   "",
		"root/.hushlogin":   "",
		"root/.bash_logout": "",
		// The terminal on a serial line has no size of its own.
		"root/.profile": "stty rows 40 cols 100\nexport TERM=vt220 PS1='operator# '\n",
		"etc/systemd/system/serial-getty@ttyS0.service.d/login.conf": "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200 %I vt220\n",
		unit: "[Unit]\nDescription=commands of the test\nDefaultDependencies=no\nAfter=local-fs.target systemd-udevd.service\n\n" +
			"[Service]\nExecStart=" + agent + "\nKillMode=process\n\n[Install]\nWantedBy=multi-user.target\n",
	} {
		to := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
			return err
		}
	}
	wants := filepath.Join(root, "etc/systemd/system/multi-user.target.wants")
	if err := os.MkdirAll(wants, 0o755); err != nil {
		return err
	}
	for link, to := range map[string]string{
		filepath.Join(wants, filepath.Base(unit)): "/" + unit,
		// Nothing that asks the network, or wakes by the clock, but what is tested.
		filepath.Join(root, "etc/systemd/system/systemd-networkd.service"):  "/dev/null",
		filepath.Join(root, "etc/systemd/system/systemd-timesyncd.service"): "/dev/null",
		filepath.Join(root, "etc/systemd/system/apt-daily.timer"):           "/dev/null",
		filepath.Join(root, "etc/systemd/system/apt-daily-upgrade.timer"):   "/dev/null",
	} {
		if err := os.Symlink(to, link); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}

// Where the guest's program and its unit are on a disk with systemd.
const (
	agent = "/usr/local/sbin/vm-guest"
	unit  = "etc/systemd/system/vm-guest.service"
)

// Host makes a disk of a folder that Debian gave, with the program init of the
// folder guest, and with room for free MiB.
func Host(ctx context.Context, to, debian, init string, free int) error {
	root := filepath.Join(debian, "root")
	if err := Copy(init, filepath.Join(root, agent)); err != nil {
		return err
	}
	return Disk(ctx, to, root, free)
}

// Stick makes the image of a USB stick with a FAT file system that holds the
// folder's files.
func Stick(ctx context.Context, to, label, folder string) error {
	var n int64
	err := filepath.Walk(folder, func(_ string, st os.FileInfo, err error) error {
		if err == nil {
			n += st.Size() + 64<<10
		}
		return err
	})
	if err != nil {
		return err
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	err = f.Truncate(n + n/20 + 64<<20)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if _, err := tool(ctx, "", "mkfs.vfat", "-F", "32", "-n", label, to); err != nil {
		return err
	}
	es, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, e := range es {
		if _, err := tool(ctx, "", "mcopy", "-s", "-i", to, filepath.Join(folder, e.Name()), "::/"); err != nil {
			return err
		}
	}
	return nil
}
