package k3shost

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// group is the machine's cgroup in one hierarchy.
type group struct {
	Dir  string // on this machine
	Show string // where the node sees it, below /sys/fs/cgroup; "" where the hierarchy is all there is
	FS   string // cgroup or cgroup2
	Data string // mount option
}

// makeGroups makes a cgroup below our own in every hierarchy that is mounted.
func makeGroups(name string) ([]group, error) {
	ms, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, err
	}
	own, err := ownGroups()
	if err != nil {
		return nil, err
	}
	leaf := "k3shost-" + name + "-" + rand.Text()[:8]
	var gs []group
	for _, m := range ms {
		if !strings.HasPrefix(m.Mountpoint, "/sys/fs/cgroup") {
			continue
		}
		g := group{FS: m.FSType, Show: strings.TrimPrefix(strings.TrimPrefix(m.Mountpoint, "/sys/fs/cgroup"), "/")}
		key := ""
		if m.FSType == "cgroup" {
			key = hierarchy(m.VFSOptions)
			g.Data = key
		}
		rel, err := filepath.Rel(m.Root, own[key])
		if err != nil || strings.HasPrefix(rel, "..") {
			return gs, fmt.Errorf("our cgroup %s is not below what is mounted at %s (%s)", own[key], m.Mountpoint, m.Root)
		}
		g.Dir = filepath.Join(m.Mountpoint, rel, leaf)
		if err := g.make(); err != nil {
			return gs, err
		}
		gs = append(gs, g)
	}
	if len(gs) == 0 {
		return nil, errors.New("no cgroup file system is mounted below /sys/fs/cgroup")
	}
	return gs, nil
}

// hierarchy names a v1 hierarchy as /proc/self/cgroup and mount do.
func hierarchy(options string) string {
	var cs []string
	for o := range strings.SplitSeq(options, ",") {
		switch o {
		case "rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode":
		default:
			cs = append(cs, o)
		}
	}
	return strings.Join(cs, ",")
}

// ownGroups reads our own place, by hierarchy; v2's key is "".
// Source: cgroups(7), "/proc/pid/cgroup".
func ownGroups() (map[string]string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	own := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			own[f[1]] = f[2]
		}
	}
	return own, nil
}

// make creates the cgroup. A v1 cpuset takes no process before it has
// processors and memory nodes; in v2 its children need the controllers.
func (g group) make() error {
	if g.FS == "cgroup2" {
		passOn(filepath.Dir(g.Dir))
	}
	if err := os.Mkdir(g.Dir, 0o755); err != nil {
		return err
	}
	if !slices.Contains(strings.Split(g.Data, ","), "cpuset") {
		return nil
	}
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(g.Dir), f))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(g.Dir, f), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// passOn enables what controllers there are for the children of dir; what
// can't be enabled is missing inside, and K3s says so.
func passOn(dir string) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return
	}
	for c := range strings.FieldsSeq(string(b)) {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644)
	}
}

// add moves a process into the cgroup; 0 is the caller. In v2 with
// controllers processes live in the leaf "init" once there is one.
func (g group) add(pid int) error {
	dir := g.Dir
	if _, err := os.Stat(filepath.Join(dir, "init")); err == nil && g.FS == "cgroup2" {
		dir = filepath.Join(dir, "init")
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644)
}

// remove removes the cgroup and those below. A process that was just killed
// may be in it a moment longer.
func (g group) remove() error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := removeTree(g.Dir)
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

func removeTree(dir string) error {
	ents, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range ents {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return unix.Rmdir(dir)
}

// mountGroups shows the machine its cgroups as roots. It runs in the cgroup
// namespace, before the root changes.
func mountGroups(at string, gs []group) error {
	if gs[0].Show == "" && len(gs) == 1 {
		if err := unix.Mount("cgroup2", at, "cgroup2", 0, ""); err != nil {
			return fmt.Errorf("cgroup2: %w", err)
		}
		// A cgroup with controllers for its children has no processes itself.
		leaf := filepath.Join(at, "init")
		if err := os.Mkdir(leaf, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0o644); err != nil {
			return err
		}
		passOn(at)
		return nil
	}
	if err := unix.Mount("cgroup", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"); err != nil {
		return err
	}
	for _, g := range gs {
		dst := filepath.Join(at, g.Show)
		if err := os.MkdirAll(dst, 0o755); err != nil {
			return err
		}
		data := g.Data
		if strings.HasPrefix(data, "name=") {
			data = "none," + data
		}
		if err := unix.Mount(g.FS, dst, g.FS, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, data); err != nil {
			return fmt.Errorf("cgroup %s: %w", g.Show, err)
		}
	}
	return nil
}
