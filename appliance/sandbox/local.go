package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/confine"
	"github.com/clawbox/clawbox/internal/durable"
	"github.com/clawbox/clawbox/policies"
)

// Options say where a Local keeps things.
type Options struct {
	State    string // directory; one daemon at a time
	Launcher string // the clawbox-launch binary, static
	UIDBase  int    // first of uids user ids that no one else on the host has
	// Warm launchers wait for the next starts, each in fresh namespaces and a
	// fresh cgroup. 0: every start makes its own.
	Warm int
	// Ahead makes the network namespace of a launcher that waits ready for
	// whoever will come; see Spec.Landed. May be nil.
	Ahead func(netns *os.File) (Ahead, error)
}

// uids is how many agents a host can know at a time.
const uids = 1024

// Local runs sandboxes on this host.
type Local struct {
	opt    Options
	h      *hierarchies
	parent string // name of the cgroup that holds all boxes
	abi    int    // of this kernel's Landlock, as far as it is used
	lock   *os.File
	mark   func(step string) // told after each step of a start; nil outside benchmarks

	warm    chan *shell // ready; capacity Options.Warm
	filling sync.Mutex  // held while some are made or ended

	snap sync.Mutex // held while a snapshot is taken, restored or removed

	mu     sync.Mutex      // guards the rest
	boxes  map[string]bool // names in use: running, or being removed
	live   map[string]*Box // those that run
	uid    map[string]int
	known  map[string]*compiled // see recall
	soon   *time.Timer          // the next refill
	closed bool
}

// Open takes hold of the state directory and ends what a daemon that died has
// left: its sandboxes, should any have outlived it, and their cgroups.
func Open(o Options) (_ *Local, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	l := &Local{opt: o, boxes: map[string]bool{}, live: map[string]*Box{}, uid: map[string]int{}, warm: make(chan *shell, max(o.Warm, 0))}
	if l.abi, err = confine.LandlockABI(); err != nil {
		return nil, err
	}
	l.abi = min(l.abi, confine.MaxABI)
	if l.h, err = findHierarchies(); err != nil {
		return nil, err
	}
	if err := durable.MkdirAll(filepath.Join(o.State, "agents"), 0o711); err != nil {
		return nil, err
	}
	// Two state directories are two daemons, such as a test beside a service.
	l.parent = config.Paths{State: o.State}.Cgroup()
	if err := l.takeLock(); err != nil {
		return nil, err
	}
	if err := errors.Join(l.loadUIDs(), l.sweep(), l.sweepDisks()); err != nil {
		l.lock.Close()
		l.h.close()
		return nil, err
	}
	l.refillSoon()
	return l, nil
}

func (o Options) check() error {
	if !filepath.IsAbs(o.State) || filepath.Clean(o.State) != o.State {
		return fmt.Errorf("state directory %q; want an absolute, clean path", o.State)
	}
	if o.UIDBase < 1000 || o.UIDBase > 1<<31-uids {
		return fmt.Errorf("uidBase %d; want 1000 or more, and %d free user ids from there", o.UIDBase, uids)
	}
	st, err := os.Stat(o.Launcher)
	if err != nil {
		return fmt.Errorf("launcher: %w", err)
	}
	if !st.Mode().IsRegular() || st.Mode()&0o111 == 0 || st.Mode()&0o022 != 0 {
		return fmt.Errorf("launcher %s has mode %v; want a program that only its owner can write", o.Launcher, st.Mode())
	}
	return nil
}

func (l *Local) takeLock() error {
	f, err := os.OpenFile(filepath.Join(l.opt.State, "sandbox.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return fmt.Errorf("state directory %s is in use by another daemon: %w; stop that one first", l.opt.State, err)
	}
	l.lock = f
	return nil
}

// Close removes the cgroups and lets go of the state directory. Sandboxes
// must have ended, and none starts afterwards. Closing again does nothing.
func (l *Local) Close() error {
	if last, err := l.shut(); err != nil || !last {
		return err
	}
	// A sandbox whose end met an error may have left its group behind. A
	// hierarchy that never held one has no parent, which is no error.
	all := &group{h: l.h, path: l.parent}
	err := errors.Join(l.cool(), l.sweep(), l.sweepDisks(), all.remove(5*time.Second), l.lock.Close())
	l.h.close()
	return err
}

// shut lets nothing start any more; it answers true once.
func (l *Local) shut() (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false, nil
	}
	if len(l.boxes) > 0 {
		return false, fmt.Errorf("%d sandboxes still run or are being removed; stop them first: %s", len(l.boxes), strings.Join(slices.Sorted(maps.Keys(l.boxes)), ", "))
	}
	l.closed = true
	if l.soon != nil {
		l.soon.Stop()
	}
	return true, nil
}

// sweep kills and removes every cgroup below ours. The launcher dies with its
// daemon, so normally they are empty.
func (l *Local) sweep() error {
	var errs []error
	for _, r := range l.h.roots() {
		dirs, err := os.ReadDir(filepath.Join(r, l.parent))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, d := range dirs {
			if d.IsDir() {
				g := &group{h: l.h, path: filepath.Join(l.parent, d.Name())}
				errs = append(errs, g.kill(), g.killEach(), g.remove(5*time.Second))
			}
		}
	}
	left, err := filepath.Glob(filepath.Join(l.opt.State, "agents", "*", skeletonPrefix+"*"))
	for _, d := range left {
		errs = append(errs, os.RemoveAll(d))
	}
	return errors.Join(append(errs, err)...)
}

func (l *Local) uidFile() string { return filepath.Join(l.opt.State, "uids.json") }

func (l *Local) loadUIDs() error {
	b, err := os.ReadFile(l.uidFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(b, &l.uid)
	}
	if err != nil {
		return fmt.Errorf("user ids of the agents: %s: %w", l.uidFile(), err)
	}
	seen := map[int]string{}
	for name, u := range l.uid {
		if other, ok := seen[u]; ok || u < l.opt.UIDBase || u >= l.opt.UIDBase+uids {
			return fmt.Errorf("%s gives %s user id %d (also: %q); want different ids from %d on: did uidBase change?", l.uidFile(), name, u, other, l.opt.UIDBase)
		}
		seen[u] = name
	}
	return nil
}

// userID returns the agent's user id, the same after every restart: its files
// belong to it.
func (l *Local) userID(name string) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if u, ok := l.uid[name]; ok {
		return u, nil
	}
	taken := map[int]bool{}
	for _, u := range l.uid {
		taken[u] = true
	}
	for u := l.opt.UIDBase; u < l.opt.UIDBase+uids; u++ {
		if taken[u] {
			continue
		}
		l.uid[name] = u
		if err := l.saveUIDs(); err != nil {
			delete(l.uid, name)
			return 0, err
		}
		return u, nil
	}
	return 0, fmt.Errorf("all %d user ids are taken; remove an agent", uids)
}

// owner is who an agent is to the kernel.
type owner struct{ uid, gid int }

// owner returns the agent's ids: its own, or those that its policy names,
// which must not be another agent's nor one of the system's.
func (l *Local) owner(name string, p policies.Process) (owner, error) {
	own, err := l.userID(name)
	if err != nil {
		return owner{}, err
	}
	id := owner{own, own}
	for _, x := range []struct {
		field, text string
		to          *int
	}{{"user", p.User, &id.uid}, {"group", p.Group, &id.gid}} {
		if x.text == "" || x.text == "own" {
			continue
		}
		n, err := strconv.Atoi(x.text)
		if err != nil || n < 1000 || n >= 1<<31 || n >= l.opt.UIDBase && n < l.opt.UIDBase+uids && n != own {
			return owner{}, fmt.Errorf("process.%s %q; want \"own\", or an id from 1000 on outside of %d to %d, which are other agents'", x.field, x.text, l.opt.UIDBase, l.opt.UIDBase+uids-1)
		}
		*x.to = n
	}
	return id, nil
}

func (l *Local) saveUIDs() error {
	b, err := json.MarshalIndent(l.uid, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(l.uidFile(), append(b, '\n'), 0o600)
}

// Remove deletes what a stopped agent has written and gives its user id back,
// in this order: the next owner of the id must find nothing.
func (l *Local) Remove(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("name %q is not an agent's", name)
	}
	// The claim keeps the agent from starting; the lock, held for as long as
	// the agent has made its files take, would keep all others from it too.
	if err := l.claim(name); err != nil {
		return err
	}
	defer l.release(name)
	if err := l.eraseAll(name); err != nil {
		return fmt.Errorf("files of agent %s: %w; remove it again once that is mended", name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.uid[name]; !ok {
		return nil
	}
	delete(l.uid, name)
	return l.saveUIDs()
}

// eraseAll deletes the agent's disk with its snapshots, and its files.
func (l *Local) eraseAll(name string) error {
	d := disk{l.agentDir(name)}
	if err := d.detach(); err != nil {
		return err
	}
	for _, p := range []string{d.image(), filepath.Join(d.dir, diskTable)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return errors.Join(os.RemoveAll(l.snapshots(name)), l.dropSkeletons(name), erase(l.filesDir(name)))
}

func (l *Local) agentDir(name string) string { return filepath.Join(l.opt.State, "agents", name) }
func (l *Local) filesDir(name string) string { return filepath.Join(l.agentDir(name), "files") }

// Files returns the host's directory behind a writable path of an agent.
func (l *Local) Files(name, p string) string {
	return filepath.Join(l.filesDir(name), url.PathEscape(strings.TrimPrefix(p, "/")))
}

// writable makes the directory behind p, owned by the agent.
func (l *Local) writable(name, p string, id owner) (string, error) {
	if err := durable.MkdirAll(l.filesDir(name), 0o700); err != nil {
		return "", err
	}
	d := l.Files(name, p)
	if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return d, os.Lchown(d, id.uid, id.gid)
}

// claim reserves a name for one running sandbox, or for its removal.
func (l *Local) claim(name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errors.New("the daemon is stopping; start it again first")
	}
	if l.boxes[name] {
		return fmt.Errorf("agent %s runs or is being removed; stop it first", name)
	}
	l.boxes[name] = true
	return nil
}

func (l *Local) release(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.boxes, name)
	delete(l.live, name)
}

// runs notes that the sandbox has begun.
func (l *Local) runs(b *Box) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live[b.name] = b
}

// running says whether an agent's sandbox has begun.
func (l *Local) running(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.live[name] != nil
}
