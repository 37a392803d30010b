package guard

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// errPins is an error of the pins themselves: no reason to go on without.
var errPins = errors.New("pins")

// pins is a directory of the BPF file system:
//
//	DIR/set_DIGEST/tier_T3       which tier, an empty directory
//	DIR/set_DIGEST/map_NAME      maps, prog_NAME programs, link_NAME attachments
//	DIR/new_DIGEST               a set that is not complete yet
//
// DIGEST is of the objects, so that maps are never read by programs or by a
// process of another version. Whoever uses the directory holds a lock on it,
// which the kernel lets go when the process dies. A nil *pins pins nothing.
type pins struct {
	dir   string
	lock  *os.File
	taken bool // a set was there and is taken over
	gone  bool // leave it all as it is
}

// digest is of all that a set holds.
func digest() string {
	h := sha256.New()
	for _, b := range [][]byte{_WitnessBytes, _LsmBytes, _ModifyBytes} {
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// openPins locks dir, which it makes where the BPF file system lets it, and
// clears away sets of which no scope lives.
func openPins(dir string, cgroups mount) (*pins, error) {
	if dir == "" {
		return nil, nil
	}
	p := &pins{dir: dir}
	err := p.open()
	if err == nil {
		err = p.tidy(cgroups)
	}
	if err != nil {
		p.leave()
		return nil, fmt.Errorf("%w: %s: %w", errPins, dir, err)
	}
	return p, nil
}

// hostBPF is where hosts have their BPF file system; tests have another.
var hostBPF = "/sys/fs/bpf"

// PreparePins makes a directory for pins that uid may use. It wants root; the
// guard itself need not be. Where dir is below a BPF file system it is made
// there. Anywhere else one appears on dir, of mode 0700 and uid's: a folder of the
// host's, bound, or where the host has none a file system of its own. systemd
// mounts /sys/fs/bpf so that nobody but root gets through, and gives services a
// mount namespace that ends with them: what is pinned in a folder of the host's
// outlives that, what is in one of its own does not. What is there already, after a
// crash, stays as it is. RemovePins is the other way.
func PreparePins(dir string, uid int) error {
	if err := preparePins(dir, uid); err != nil {
		return fmt.Errorf("guard: directory for pins: %w", err)
	}
	return nil
}

func preparePins(dir string, uid int) error {
	parent := filepath.Dir(dir)
	below, err := onBPF(parent)
	if err != nil {
		return err
	}
	if below {
		if err := passable(parent, uid); err != nil {
			return err
		}
	}
	if err := mkdir(dir); err != nil {
		return err
	}
	if ok, err := onBPF(dir); err != nil {
		return err
	} else if !ok {
		if err := mountPins(dir); err != nil {
			return err
		}
	}
	return os.Chown(dir, uid, -1)
}

func mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// mountPins puts a BPF file system on dir.
func mountPins(dir string) error {
	ok, err := onBPF(hostBPF)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if !ok {
		if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
			return fmt.Errorf("mount a BPF file system at %s: %w", dir, err)
		}
		return nil
	}
	src := hostFolder(dir)
	if err := mkdir(src); err != nil {
		return err
	}
	if err := unix.Mount(src, dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", src, dir, err)
	}
	return nil
}

// hostFolder is the host's folder that is bound to dir.
func hostFolder(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return fmt.Sprintf("%s/clawbox-%x", hostBPF, sum[:6])
}

// passable refuses a folder that uid can't go through.
func passable(dir string, uid int) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if uid == 0 || int(st.Uid) == uid && st.Mode&0o100 != 0 || st.Mode&0o001 != 0 {
		return nil
	}
	return fmt.Errorf("uid %d can't go through %s (owner %d, mode %#o); choose a directory outside of it, where a BPF file system of its own is mounted: %w",
		uid, dir, st.Uid, st.Mode&0o777, os.ErrPermission)
}

// RemovePins takes away what PreparePins made, and all that is pinned there: what
// it enforced ends. It wants root, and the guard to have ended.
func RemovePins(dir string) error {
	if err := removePins(dir); err != nil {
		return fmt.Errorf("guard: directory for pins: %w", err)
	}
	return nil
}

// RemoveNoPins is RemovePins where nothing is pinned; what is, stays for the next
// guard.
func RemoveNoPins(dir string) error {
	sets, err := filepath.Glob(dir + "/set_*")
	if err != nil || len(sets) > 0 {
		return err
	}
	return RemovePins(dir)
}

func removePins(dir string) error {
	ok, err := onBPF(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	top, err := mounted(dir)
	if err != nil {
		return err
	}
	switch {
	case top && ok:
		if err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
		if err := os.RemoveAll(hostFolder(dir)); err != nil {
			return err
		}
	case ok:
		return os.RemoveAll(dir)
	}
	return os.Remove(dir)
}

// mounted tells whether something is mounted on dir.
func mounted(dir string) (bool, error) {
	var in, out unix.Stat_t
	if err := errors.Join(unix.Stat(dir, &in), unix.Stat(filepath.Dir(dir), &out)); err != nil {
		return false, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	return in.Dev != out.Dev, nil
}

func onBPF(dir string) (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return false, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return fs.Type == unix.BPF_FS_MAGIC, nil
}

func (p *pins) open() error {
	if _, err := os.Stat(p.dir); errors.Is(err, os.ErrNotExist) {
		if err := PreparePins(p.dir, os.Geteuid()); err != nil {
			return err
		}
	}
	switch ok, err := onBPF(p.dir); {
	case err != nil:
		return err
	case !ok:
		return errors.New("not on a BPF file system; want a directory below /sys/fs/bpf, or one that PreparePins made")
	}
	f, err := os.Open(p.dir)
	if err != nil {
		return err
	}
	p.lock = f
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another guard uses it: %w", err)
	}
	return nil
}

// tidy removes what is incomplete or of the dead, and finds the set to take
// over. One of the dead is taken over, too, while it has events to tell. A set of another version with living scopes can't be read and must
// not be dropped: it is all that still holds them.
func (p *pins) tidy(cgroups mount) error {
	es, err := os.ReadDir(p.dir)
	if err != nil {
		return err
	}
	for _, e := range es {
		set := filepath.Join(p.dir, e.Name())
		alive := 0
		switch kind, _, _ := strings.Cut(e.Name(), "_"); kind {
		case "set":
			if alive, err = living(set, cgroups); err != nil {
				return err
			}
		case "new":
		default: // the kernel's own, maps.debug and progs.debug
			continue
		}
		switch {
		case alive == 0 && !(set == p.set() && untold(set)):
			err = os.RemoveAll(set)
		case set == p.set():
			p.taken = true
		default:
			err = fmt.Errorf("%s is of another version of the guard and still holds %d sandboxes; end their processes first", set, alive)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// living counts the scopes of a set that have processes still. The keys of
// this map are the cgroup's id, in every version.
func living(set string, cgroups mount) (n int, err error) {
	m, err := ebpf.LoadPinnedMap(set+"/map_labels", nil)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	var id uint64
	var l witnessLabel
	it := m.Iterate()
	for it.Next(&id, &l) {
		if cgroups.populated(id, textOf(l.Dir[:])) {
			n++
		}
	}
	return n, it.Err()
}

// populated tells whether a cgroup holds processes. Where that can't be told,
// it does.
func (m mount) populated(id uint64, dir string) bool {
	if dir == "" {
		var err error
		if dir, err = m.find(id); errors.Is(err, unix.ESTALE) || errors.Is(err, os.ErrNotExist) {
			return false
		} else if err != nil {
			return true
		}
	}
	if got, err := CgroupID(dir); errors.Is(err, os.ErrNotExist) || err == nil && got != id {
		return false
	}
	b, err := os.ReadFile(dir + "/cgroup.events")
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	return err != nil || strings.Contains(string(b), "populated 1")
}

func (p *pins) set() string  { return filepath.Join(p.dir, "set_"+digest()) }
func (p *pins) next() string { return filepath.Join(p.dir, "new_"+digest()) }

// found tells whether a set is taken over.
func (p *pins) found() bool { return p != nil && p.taken }

// keep pins what was just loaded, in a set that does not count yet.
func (p *pins) keep(g *Guard) error {
	if p == nil {
		return nil
	}
	fail := func(err error) error { return fmt.Errorf("%w: %w", errPins, err) }
	if err := os.Mkdir(p.next(), 0o700); err != nil {
		return fail(err)
	}
	for name, m := range g.objs.all() {
		if err := m.Pin(p.next() + "/map_" + name); err != nil {
			return fail(err)
		}
	}
	for name, o := range g.objs.progs() {
		if err := o.Pin(p.next() + "/prog_" + name); err != nil {
			return fail(err)
		}
	}
	for i, a := range g.attachments() {
		if err := g.links[i].Pin(p.next() + "/link_" + a.name); err != nil {
			return fail(err)
		}
	}
	return nil
}

// publish completes the set: from now on it is taken over.
func (p *pins) publish(g *Guard) error {
	if p == nil {
		return nil
	}
	if g.hooks != nil {
		for i, l := range g.hooks.links {
			name := g.hooks.names[i]
			err := errors.Join(l.Pin(p.next()+"/link_"+name), g.hooks.coll.Programs[name].Pin(p.next()+"/prog_"+name))
			if err != nil {
				return err
			}
		}
	}
	if err := os.Mkdir(p.next()+"/tier_"+string(g.tier), 0o700); err != nil {
		return err
	}
	return os.Rename(p.next(), p.set())
}

// link pins an attachment that comes and goes with the scopes. Before the set
// is complete, only the self-test wants it.
func (p *pins) link(name string, l link.Link) error {
	if p == nil || !present(p.set()) {
		return nil
	}
	return l.Pin(p.set() + "/link_" + name)
}

func (p *pins) unlink(name string) error {
	if p == nil {
		return nil
	}
	if err := os.Remove(p.set() + "/link_" + name); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// remove ends what only the pins keep.
func (p *pins) remove() error {
	if p == nil || p.gone {
		return nil
	}
	err := errors.Join(os.RemoveAll(p.next()), os.RemoveAll(p.set()))
	// What PreparePins mounted, or made for another user, is RemovePins's.
	if e := os.Remove(p.dir); !errors.Is(e, os.ErrPermission) && !errors.Is(e, unix.EBUSY) {
		err = errors.Join(err, e)
	}
	p.leave()
	return err
}

// left tells whether the directory is none of ours any more.
func (p *pins) left() bool { return p.gone }

// leave lets the directory go as it is.
func (p *pins) leave() {
	p.gone = true
	if p.lock != nil {
		p.lock.Close()
		p.lock = nil
	}
}

func present(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}
