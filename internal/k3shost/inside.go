package k3shost

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	initName = "k3shost-init"
	joinName = "k3shost-join"
)

// init takes over when this program was started as the first process of a
// machine, or to run a command in one. It is here, and not in a function that
// a main calls, because only in init is the goroutine bound to the first
// thread, whose namespaces are the process's.
func init() {
	var err error
	switch filepath.Base(os.Args[0]) {
	case initName:
		err = runInit()
	case ctlName:
		err = runCtl(os.Args[1:])
	case joinName:
		err = runJoin(os.Args[1], os.Args[2:])
	default:
		return
	}
	if code := exitStatus(0); errors.As(err, &code) {
		os.Exit(int(code))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Args[0]+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// runInit makes the machine out of the new namespaces, says so, and serves
// commands for ever.
func runInit() error {
	heard, ready := os.NewFile(3, "setup"), os.NewFile(4, "ready")
	var s setup
	if err := json.NewDecoder(heard).Decode(&s); err != nil {
		return fmt.Errorf("setup: %w", err)
	}
	l, err := listen(s.Dir) // while that path leads there
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("cgroup namespace: %w", err)
	}
	if err := errors.Join(unix.Sethostname([]byte(s.Name)), s.root()); err != nil {
		return err
	}
	if _, err := ready.WriteString("ready"); err != nil {
		return err
	}
	heard.Close()
	ready.Close()
	return newServer(l).run()
}

// kernelSettings are the host's settings that kubelet asks for with protect-kernel-defaults.
// The node sees files in their place. Source: kubelet's pkg/kubelet/cm, setupKernelTunables.
var kernelSettings = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// mnt is one mount of the new root. Optional: where the kernel has no such
// file system, the node has none either.
type mnt struct {
	src, dst, fs string
	flags        uintptr
	data         string
	optional     bool
}

// root builds the new root on a tmpfs over an empty folder of Dir, and makes it
// the root. Until then paths are the host's.
func (s setup) root() error {
	const bind = unix.MS_BIND | unix.MS_REC
	newRoot := filepath.Join(s.Dir, rootFolder)
	mounts := []mnt{
		{"", "/", "", unix.MS_REC | unix.MS_PRIVATE, "", false},
		{"root", newRoot, "tmpfs", 0, "mode=755,size=64m", false},
		{"/usr", newRoot + "/usr", "", bind, "", false},
		{"", newRoot + "/usr", "", unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY, "", false},
		{filepath.Join(s.Dir, "usr-local"), newRoot + "/usr/local", "", bind, "", false},
		{"/dev", newRoot + "/dev", "", bind, "", false},
		{"shm", newRoot + "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "", false},
		{"proc", newRoot + "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "", false},
		{"sysfs", newRoot + "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "", false},
		{"bpf", newRoot + "/sys/fs/bpf", "bpf", 0, "", true},
		{"tracefs", newRoot + "/sys/kernel/tracing", "tracefs", 0, "", true},
		{"securityfs", newRoot + "/sys/kernel/security", "securityfs", 0, "", true},
		{"run", newRoot + "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755", false},
		{"tmp", newRoot + "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777", false},
	}
	for _, d := range kept {
		if d != "usr-local" {
			mounts = append(mounts, mnt{filepath.Join(s.Dir, d), newRoot + "/" + d, "", bind, "", false})
		}
	}
	for _, in := range sortedKeys(s.Binds) {
		mounts = append(mounts, mnt{s.Binds[in], newRoot + in, "", bind, "", false},
			mnt{"", newRoot + in, "", unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY, "", false})
	}
	for _, m := range mounts {
		if err := m.do(); err != nil {
			return err
		}
	}
	if err := s.rest(newRoot); err != nil {
		return err
	}
	return pivot(newRoot)
}

// rest adds what depends on the host: links, cgroups, settings.
func (s setup) rest(newRoot string) error {
	for _, l := range []string{"bin", "sbin", "lib", "lib32", "lib64"} {
		if to, err := os.Readlink("/" + l); err == nil {
			if err := os.Symlink(to, newRoot+"/"+l); err != nil {
				return err
			}
		}
	}
	for _, d := range []string{"home", "media", "mnt", "srv"} {
		if err := os.Mkdir(newRoot+"/"+d, 0o755); err != nil {
			return err
		}
	}
	if err := mountGroups(newRoot+"/sys/fs/cgroup", s.Groups); err != nil {
		return err
	}
	for _, k := range sortedKeys(kernelSettings) {
		f := newRoot + "/run/k3shost/" + k
		if err := os.MkdirAll(filepath.Dir(f), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(f, []byte(kernelSettings[k]+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(f, newRoot+"/proc/sys/"+k, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("setting %s: %w", k, err)
		}
	}
	return nil
}

// do mounts one; its mount point is made if it isn't there.
func (m mnt) do() error {
	if fi, err := os.Stat(m.src); m.flags&unix.MS_BIND != 0 && err == nil && !fi.IsDir() {
		if err := os.MkdirAll(filepath.Dir(m.dst), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(m.dst, nil, 0o644); err != nil {
			return err
		}
	} else if err := os.MkdirAll(m.dst, 0o755); m.flags&unix.MS_REMOUNT == 0 && err != nil && !m.optional {
		return err
	}
	err := unix.Mount(m.src, m.dst, m.fs, m.flags, m.data)
	if err != nil && !m.optional {
		return fmt.Errorf("mount %s at %s: %w", m.src, m.dst, err)
	}
	return nil
}

// pivot makes the new root the root, lets go of the old one, and lets mounts be seen
// by what has its own mount namespace inside, as systemd does.
func pivot(newRoot string) error {
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// rootFolder of Options.Dir is where the new root is mounted; empty from outside.
const rootFolder = ".root"

// kept are the folders of Options.Dir that the machine sees in its root.
var kept = []string{"etc", "var", "opt", "root", "usr-local"}

// fromHost are files of the host's /etc that its programs want.
var fromHost = strings.Fields("alternatives debian_version ethertypes group gshadow iproute2 ld.so.cache ld.so.conf ld.so.conf.d login.defs mke2fs.conf nsswitch.conf os-release passwd protocols rpc services shadow")

// makeFolders makes what survives, once.
func makeFolders(dir, name string) error {
	for _, d := range append([]string{rootFolder}, kept...) {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	etc := filepath.Join(dir, "etc")
	if _, err := os.Stat(filepath.Join(etc, "hostname")); err == nil {
		return nil
	}
	for _, f := range fromHost {
		if _, err := os.Lstat("/etc/" + f); err != nil {
			continue // not every distribution has each
		}
		if out, err := exec.Command("cp", "-a", "/etc/"+f, etc).CombinedOutput(); err != nil {
			return fmt.Errorf("cp /etc/%s: %w: %s", f, err, out)
		}
	}
	for l, to := range map[string]string{"var/run": "/run", "var/lock": "/run/lock"} {
		if err := os.Symlink(to, filepath.Join(dir, l)); err != nil && !os.IsExist(err) {
			return err
		}
	}
	for _, d := range []string{"var/lib", "var/log", "var/cache", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	for f, text := range map[string]string{
		"hosts": "127.0.0.1 localhost " + name + "\n", "resolv.conf": "# no resolver\n", "hostname": name + "\n",
		"machine-id": fmt.Sprintf("%x\n", sha256.Sum256([]byte(dir)))[:32] + "\n",
	} {
		if err := os.WriteFile(filepath.Join(etc, f), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func sortedKeys(m map[string]string) []string {
	var ks []string
	for k := range m {
		ks = append(ks, k)
	}
	sort.Strings(ks)
	return slices.Clip(ks)
}
