package guard

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Scope says what to watch and what may run there.
type Scope struct {
	ID          string   // name in events
	CgroupID    uint64   // see CgroupID; the cgroup and all below it
	Exec        []Inode  // programs that may be executed
	ExecDevices []uint64 // file systems (Inode.Dev) of which every file may be executed
	AuditENOENT bool     // also report names that do not exist, 2000 in about a second; noisy

	// NoRefusals leaves refused system calls unreported. While any scope wants
	// them, every system call of the host takes some 0.1 µs longer.
	NoRefusals bool

	// AuditOpens reports every file that is opened, O_PATH included. It costs
	// every system call of the host some nanoseconds more, and the scope's
	// processes are killed when the record can't keep pace with them.
	AuditOpens bool

	// Cgroup is the directory of the cgroup. It is needed where the guard has
	// no CAP_DAC_READ_SEARCH to find it by its id.
	Cgroup string

	// Violation is what happens to a process that starts an unlisted program.
	Violation Violation

	// Readable are absolute folders, as the sandbox sees them, in which the
	// agent may look: that a name below them does not exist is no news and
	// never an event. Hidden are exceptions from them; the longest one counts.
	Readable, Hidden []string

	// Connects reports every connect of a TCP or UDP socket, and every datagram
	// to an address. What can't be reported is refused.
	Connects bool

	// Datagrams, where not empty, are the only addresses that UDP may go to:
	// anything else gets EPERM and is reported.
	Datagrams []netip.AddrPort
}

// Violation is what happens to whoever starts an unlisted program.
type Violation string

// The violations. Refuse needs T1 or T2; at T3 every violation is a kill.
const (
	Refuse Violation = "refuse" // the exec fails with EPERM; the default
	Kill   Violation = "kill"   // the process is killed
)

// Inode identifies a file as the kernel does. On overlayfs and btrfs it is not
// what stat(2) says: use Lookup.
type Inode struct {
	Dev uint64 // of the superblock, in the encoding of stat(2)
	Ino uint64
}

// Bits of scope.flags in witness.c.
const (
	flagAuditMissing = 1
	flagNoRefusals   = 2
	flagAuditOpens   = 4
)

// maxRetired bounds the names and counts kept of closed scopes, of which events
// are still on their way.
const maxRetired = 1024

// Watch is a scope being watched, until Close.
type Watch struct {
	g *Guard
	s Scope
}

// Watch begins to enforce s. Programs that already run there are not looked
// at again: call it before the agent is started. The list can't change later.
// Of nested scopes the outer one decides.
func (g *Guard) Watch(s Scope) (*Watch, error) {
	if g.tier == TierNone {
		return nil, fmt.Errorf("guard: watch %q: %w: %s", s.ID, ErrUnavailable, g.why)
	}
	if err := g.check(s); err != nil {
		return nil, fmt.Errorf("guard: watch %q: %w", s.ID, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, fmt.Errorf("guard: watch %q: %w", s.ID, os.ErrClosed)
	}
	if old := g.watches[s.CgroupID]; old != nil {
		return nil, fmt.Errorf("guard: watch %q: cgroup %d is already watched as %q", s.ID, s.CgroupID, old.s.ID)
	}
	s.Exec, s.ExecDevices = slices.Clone(s.Exec), slices.Clone(s.ExecDevices)
	w := &Watch{g: g, s: s}
	if err := w.begin(); err != nil {
		return nil, errors.Join(fmt.Errorf("guard: watch %q: %w", s.ID, err), w.end())
	}
	return w, nil
}

func (g *Guard) check(s Scope) error {
	if s.ID == "" {
		return errors.New("the scope has no ID")
	}
	for i, n := range s.Exec {
		if n.Ino == 0 {
			return fmt.Errorf("executable %d of the list has inode 0; list a whole file system in ExecDevices", i)
		}
	}
	return g.mount.checkCgroup(s.CgroupID)
}

// begin runs with g.mu held. The scope's own entry comes last, so that it is
// never enforced with half a list.
func (w *Watch) begin() error {
	g := w.g
	g.watches[w.s.CgroupID] = w
	g.names[w.s.CgroupID] = w.s.ID
	if err := g.followExits(); err != nil {
		return err
	}
	for _, k := range w.keys() {
		if err := g.objs.Allow.Put(k, uint8(1)); err != nil {
			return fmt.Errorf("list executable %d:%d: %w", k.Dev, k.Ino, err)
		}
	}
	if err := g.count(); err != nil {
		return err
	}
	return g.objs.Scopes.Put(w.s.CgroupID, witnessScope{Flags: w.s.flags()})
}

func (s Scope) flags() (f uint32) {
	if s.AuditENOENT {
		f |= flagAuditMissing
	}
	if s.NoRefusals {
		f |= flagNoRefusals
	}
	if s.AuditOpens {
		f |= flagAuditOpens
	}
	return f
}

// count tells the programs how many scopes there are, so that they can leave
// at once where there is none.
func (g *Guard) count() error {
	var audits uint32
	for _, w := range g.watches {
		if w.s.AuditOpens {
			audits++
		}
	}
	return errors.Join(g.objs.Watching.Set(uint32(len(g.watches))), g.objs.Auditing.Set(audits))
}

// end undoes begin, wherever that stopped; g.mu is held.
func (w *Watch) end() error {
	g, id := w.g, w.s.CgroupID
	w.harvest()
	errs := []error{gone(g.objs.Scopes.Delete(id))}
	for _, k := range w.keys() {
		errs = append(errs, gone(g.objs.Allow.Delete(k)))
	}
	delete(g.watches, id)
	errs = append(errs, g.count(), g.followExits())
	g.retire(id)
	return errors.Join(errs...)
}

// followExits attaches the sys_exit program while a scope wants it.
func (g *Guard) followExits() (err error) {
	want := false
	for _, w := range g.watches {
		want = want || !w.s.NoRefusals || w.s.AuditOpens
	}
	switch {
	case want && g.exit == nil:
		if g.exit, err = attachTracepoint(g.objs.OnExit); err != nil {
			g.exit = nil // not an interface that holds a nil pointer
			return fmt.Errorf("attach to sys_exit: %w", err)
		}
	case !want && g.exit != nil:
		err = g.exit.Close()
		g.exit = nil
	}
	return err
}

func gone(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

func (g *Guard) retire(id uint64) {
	g.retired = append(g.retired, id)
	if len(g.retired) > maxRetired {
		if old := g.retired[0]; g.watches[old] == nil { // not watched anew
			delete(g.names, old)
			delete(g.lostBy, old)
		}
		g.retired = g.retired[1:]
	}
}

func (w *Watch) keys() []witnessAllowed {
	var ks []witnessAllowed
	for _, n := range w.s.Exec {
		ks = append(ks, witnessAllowed{Cgroup: w.s.CgroupID, Ino: n.Ino, Dev: kernelDev(n.Dev)})
	}
	for _, d := range w.s.ExecDevices {
		ks = append(ks, witnessAllowed{Cgroup: w.s.CgroupID, Dev: kernelDev(d)})
	}
	return ks
}

// Close stops enforcing: processes still in the cgroup may run anything again.
// Kill them first.
//
// It returns when the reader of [Guard.Events] has received all that happened
// in the scope, so that what is recorded next stands behind it. It does not
// wait longer than two seconds for a reader that has stopped; what is left is
// still delivered when it goes on.
func (w *Watch) Close() error {
	done, err := w.detach()
	if done {
		w.g.settle()
	}
	return err
}

// detach stops enforcing, and tells whether it was this call that did.
func (w *Watch) detach() (bool, error) {
	w.g.mu.Lock()
	defer w.g.mu.Unlock()
	if w.g.closed || w.g.watches[w.s.CgroupID] != w {
		return false, nil
	}
	return true, w.end()
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
