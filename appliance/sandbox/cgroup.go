package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// controllers are those that a sandbox needs.
var controllers = []string{"pids", "memory", "cpu"}

// hierarchies is where cgroups are made: all in one tree (v2), or limits in
// the v1 tree of each controller and a v2 node that carries no limit. The v2
// node exists always: its id is the sandbox's name to the guard, and
// cgroup.kill ends it at once.
//
// opencontainers/cgroups would do this, too; what is needed of it are the file
// names in the two tables below, and it brings systemd, D-Bus and a device
// filter along.
type hierarchies struct {
	v2 string            // mount point of the cgroup2 file system
	v1 map[string]string // controller to mount point, for those that v2 lacks

	io bool // v2 has the controller io, which is passed on, too

	home []*os.File // "tasks" of the daemon's own cgroup in each v1 hierarchy, to go back to

	shown map[string]string // what of its hierarchy a mount point shows
}

// findHierarchies reads the mount table and refuses a host that lacks a
// controller.
func findHierarchies() (*hierarchies, error) {
	ms, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, err
	}
	h := &hierarchies{v1: map[string]string{}, shown: map[string]string{}}
	for _, m := range ms {
		h.shown[m.Mountpoint] = m.Root
		if m.FSType == "cgroup2" && h.v2 == "" {
			h.v2 = m.Mountpoint
		}
		for _, o := range strings.Split(m.VFSOptions, ",") {
			if m.FSType == "cgroup" {
				h.v1[o] = m.Mountpoint
			}
		}
	}
	if h.v2 == "" {
		return nil, errors.New("no cgroup2 file system is mounted, the guard needs one: mount -t cgroup2 none /sys/fs/cgroup/unified")
	}
	if err := h.check(); err != nil {
		return nil, err
	}
	return h, h.findHome()
}

// findHome opens the daemon's own place in each v1 hierarchy.
func (h *hierarchies) findHome() error {
	own, err := placesOf("self")
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, c := range slices.Sorted(maps.Keys(h.v1)) {
		m := h.v1[c]
		if seen[m] {
			continue
		}
		seen[m] = true
		dir, err := h.below(m, own[c])
		if err != nil {
			return fmt.Errorf("the daemon's place of %s: %w", c, err)
		}
		f, err := os.OpenFile(filepath.Join(dir, "tasks"), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		h.home = append(h.home, f)
	}
	return nil
}

// close lets go of the daemon's own cgroups.
func (h *hierarchies) close() {
	for _, f := range h.home {
		f.Close()
	}
	h.home = nil
}

// check leaves in v1 only what v2 does not have.
func (h *hierarchies) check() error {
	b, err := os.ReadFile(filepath.Join(h.v2, "cgroup.controllers"))
	if err != nil {
		return err
	}
	v1 := map[string]string{}
	have := " " + strings.TrimSpace(string(b)) + " "
	h.io = strings.Contains(have, " io ")
	for _, c := range controllers {
		if strings.Contains(have, " "+c+" ") {
			continue
		}
		if h.v1[c] == "" {
			return fmt.Errorf("cgroup controller %q is in no hierarchy (v2 at %s has%s): enable it on the kernel's command line, such as cgroup_enable=%s", c, h.v2, have, c)
		}
		v1[c] = h.v1[c]
	}
	h.v1 = v1
	return nil
}

// base returns the directory below which controller's cgroups are made.
func (h *hierarchies) base(controller string) string {
	if d := h.v1[controller]; d != "" {
		return d
	}
	return h.v2
}

// roots are the distinct mount points in use.
func (h *hierarchies) roots() []string {
	out := []string{h.v2}
	for _, d := range h.v1 {
		if !slices.Contains(out, d) { // controllers can share a mount: cpu,cpuacct
			out = append(out, d)
		}
	}
	return out
}

// knob is one file to write: in the v1 or the v2 form of a controller.
type knob struct {
	controller string
	v1, v2     string // file name; empty: no such file in this version
	value1     string
	value2     string
	optional   bool // kernels without swap accounting lack it
}

const cpuPeriod = 100_000 // microseconds, the kernel's default

// limits bound a sandbox as a whole.
type limits struct {
	tasks  int
	memory int64   // bytes, swap included
	cpu    float64 // cores; 0: no bound
}

func (l limits) knobs() []knob {
	mem := strconv.FormatInt(l.memory, 10)
	tasks := strconv.Itoa(l.tasks)
	ks := []knob{
		{"pids", "pids.max", "pids.max", tasks, tasks, false},
		{"memory", "memory.limit_in_bytes", "memory.max", mem, mem, false},
		{"memory", "memory.memsw.limit_in_bytes", "memory.swap.max", mem, "0", true},
	}
	if l.cpu > 0 {
		quota := strconv.Itoa(int(l.cpu * cpuPeriod))
		ks = append(ks, knob{"cpu", "cpu.cfs_quota_us", "cpu.max", quota, quota + " " + strconv.Itoa(cpuPeriod), false})
	}
	return ks
}

// group is the cgroup of one sandbox, in each hierarchy in use.
type group struct {
	h    *hierarchies
	path string // below each mount point
	// lent are directories by mount point that somebody else has made and
	// removes, in place of path: see adopt.
	lent map[string]string
}

// in is the group's directory in the hierarchy that is mounted at root.
func (g *group) in(root string) string {
	if d := g.lent[root]; d != "" {
		return d
	}
	return filepath.Join(root, g.path)
}

// newGroup makes a fresh cgroup. It must not have been used before: a cgroup
// that was killed kills what enters it later.
func (h *hierarchies) newGroup(parent, name string) (_ *group, err error) {
	g := &group{h: h, path: filepath.Join(parent, name)}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.remove(0))
		}
	}()
	if err := h.delegate(parent); err != nil {
		return nil, err
	}
	for _, r := range h.roots() {
		if err := os.MkdirAll(g.in(r), 0o755); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// limit bounds the group.
func (g *group) limit(l limits) error {
	for _, k := range l.knobs() {
		if err := g.set(k); err != nil {
			return err
		}
	}
	return nil
}

// delegate passes the v2 controllers down to parent's children.
func (h *hierarchies) delegate(parent string) error {
	var on []string
	for _, c := range controllers {
		if h.v1[c] == "" {
			on = append(on, "+"+c)
		}
	}
	if h.io {
		on = append(on, "+io")
	}
	if err := os.MkdirAll(filepath.Join(h.v2, parent), 0o755); err != nil || len(on) == 0 {
		return err
	}
	for _, d := range []string{h.v2, filepath.Join(h.v2, parent)} {
		if err := write(filepath.Join(d, "cgroup.subtree_control"), strings.Join(on, " ")); err != nil {
			return fmt.Errorf("enable cgroup controllers: %w", err)
		}
	}
	return nil
}

func (g *group) set(k knob) error {
	file, value := k.v2, k.value2
	if g.h.v1[k.controller] != "" {
		file, value = k.v1, k.value1
	}
	err := write(g.file(k.controller, file), value)
	if k.optional && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("limit %s to %s: %w", file, value, err)
	}
	return nil
}

func write(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0) // never create: a typo must not succeed
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func (g *group) file(controller, name string) string {
	return filepath.Join(g.in(g.h.base(controller)), name)
}

// id is what the guard knows the sandbox by.
func (g *group) id() (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(g.dir(), &st)
	return st.Ino, err
}

// dir is the group's directory in the v2 hierarchy.
func (g *group) dir() string { return g.in(g.h.v2) }

// doors opens the group for a process that begins in it: the v2 node, and
// "tasks" in each v1 hierarchy. On an error some may be open.
func (g *group) doors() ([]*os.File, error) {
	d, err := os.OpenFile(g.dir(), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	out := []*os.File{d}
	for _, r := range g.h.roots()[1:] {
		f, err := os.OpenFile(filepath.Join(g.in(r), "tasks"), os.O_WRONLY, 0)
		if err != nil {
			return out, err
		}
		out = append(out, f)
	}
	return out, nil
}

// enter moves the calling thread, which must be locked, into the group in
// every v1 hierarchy, so that its next child begins there; back must be
// called after. A thread's move of itself takes no lock of the whole host,
// where moving another process waits for a grace period of RCU: 5 to 7 ms
// were measured. Source: the kernel's cgroup_procs_write_start.
func (g *group) enter() (back func() error, err error) {
	back = func() error {
		var errs []error
		for _, f := range g.h.home {
			_, err := f.WriteAt([]byte("0"), 0)
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	seen := map[string]bool{}
	for _, m := range g.h.v1 {
		if seen[m] {
			continue
		}
		seen[m] = true
		if err := write(filepath.Join(g.in(m), "tasks"), "0"); err != nil {
			return back, fmt.Errorf("enter cgroup %s: %w", g.path, err)
		}
	}
	return back, nil
}

// kill ends every process of the group.
func (g *group) kill() error {
	err := write(filepath.Join(g.dir(), "cgroup.kill"), "1")
	if !absent(err) {
		return err
	}
	return g.killEach() // before Linux 5.14, or already gone
}

// absent says that a cgroup is not there: or no longer, when it was removed
// between the opening of its file and the use of it (ENODEV).
func absent(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

func (g *group) killEach() error {
	for _, r := range g.h.roots() {
		b, err := os.ReadFile(filepath.Join(g.in(r), "cgroup.procs"))
		if absent(err) {
			continue
		}
		if err != nil {
			return err
		}
		for _, p := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(p); err == nil && pid > 0 && pid != os.Getpid() {
				unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
	return nil
}

// remove deletes the group in every hierarchy where it is ours, waiting up to patience for the
// kernel to let go of processes that have just died.
func (g *group) remove(patience time.Duration) error {
	var errs []error
	end := time.Now().Add(patience)
	for _, r := range g.h.roots() {
		if g.lent[r] == "" {
			errs = append(errs, rmdir(g.in(r), end))
		}
	}
	return errors.Join(errs...)
}

func rmdir(dir string, end time.Time) error {
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		err := unix.Rmdir(dir)
		switch {
		case err == nil || errors.Is(err, fs.ErrNotExist):
			return nil
		case !errors.Is(err, unix.EBUSY) || time.Now().After(end):
			return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		time.Sleep(wait)
	}
}
