package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/policies"
)

// openDisk gives the agent its own file system, if the policy bounds one and
// there is something to write.
func (b *Box) openDisk(s *Spec, writes bool) error {
	b.disk = disk{b.l.agentDir(b.name)}
	p := s.Policy.Budgets
	want, ok := diskSize(p.Disk, p.Inodes)
	switch {
	case !ok && b.disk.exists():
		// Its files are in there; the bound is what it was.
		have, err := b.disk.madeFor()
		if err != nil {
			return err
		}
		b.note("the policy sets no budgets.disk any more; the agent keeps its disk of %d bytes", have.bytes)
		return b.disk.open(have)
	case !ok:
		b.note("budgets.disk: writable folders are bounded by the host's file system only")
		return nil
	case !writes:
		b.note("budgets.disk: the agent has no writable folder on disk")
		return nil
	}
	b.note("budgets.disk: an ext4 file system of its own, %d bytes and %d inodes, on a loop device", want.bytes, want.inodes)
	if mounted, err := b.disk.mounted(); err != nil || mounted {
		return errors.Join(err, b.disk.open(want))
	}
	if err := b.disk.open(want); err != nil {
		return err
	}
	rest, free, err := b.l.promised()
	if rest > free {
		b.note("budgets.disk: the agents' disks may still grow by %d bytes, the host's file system has %d left; when it is full, their disks become read-only", rest, free)
	}
	return err
}

// promised is how much all agents' disks may still take from the host, and
// what it has left for them, in bytes. The images are sparse: they take what
// is in them.
func (l *Local) promised() (rest, free int64, err error) {
	es, err := os.ReadDir(filepath.Join(l.opt.State, "agents"))
	if err != nil {
		return 0, 0, err
	}
	for _, e := range es {
		d := disk{l.agentDir(e.Name())}
		made, err := d.madeFor()
		if err != nil || made.bytes == 0 {
			continue // it says so itself when it starts
		}
		if has, err := allocated(d.image()); err == nil {
			rest += max(made.total()-has, 0)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(l.opt.State, &st); err != nil {
		return 0, 0, fmt.Errorf("room for the agents' disks: %w", err)
	}
	return rest, int64(st.Bavail) * st.Bsize, nil
}

func (b *Box) note(format string, a ...any) { b.notes = append(b.notes, fmt.Sprintf(format, a...)) }

// limitIO bounds the transfer to the agent's own disk. Only cgroup v2 can:
// v1's blkio does not see writes that go through the page cache, which is
// nearly all of them, so there the budget is refused instead of half kept.
func (b *Box) limitIO(p policies.Budgets) error {
	if p.DiskRead == 0 && p.DiskWrite == 0 {
		return nil
	}
	if !b.l.h.io {
		return errors.New("budgets.diskRead and budgets.diskWrite need the cgroup v2 controller io, which this host does not have (v1's blkio does not see buffered writes): boot it with cgroup v2, or set neither")
	}
	if m, err := b.disk.mounted(); err != nil || !m {
		return errors.Join(errors.New("budgets.diskRead and budgets.diskWrite bound the agent's own disk: set budgets.disk, too"), err)
	}
	dev, err := b.disk.device()
	if err != nil {
		return err
	}
	return b.g.setIO(dev, p.DiskRead, p.DiskWrite)
}

// setIO bounds bytes per second to and from a block device; 0: not.
// Source: the kernel's Documentation/admin-guide/cgroup-v2.rst, "io.max".
func (g *group) setIO(device string, read, writes int64) error {
	line := device
	if read > 0 {
		line += " rbps=" + strconv.FormatInt(read, 10)
	}
	if writes > 0 {
		line += " wbps=" + strconv.FormatInt(writes, 10)
	}
	if err := write(filepath.Join(g.dir(), "io.max"), line); err != nil {
		return fmt.Errorf("limit io.max to %q: %w", line, err)
	}
	return nil
}

// watched is a file system of the agent's that can become full.
type watched struct {
	at              *os.File // O_PATH
	bytes, inodes   string   // names of the budgets
	noRoom, noInode bool     // as of the last look
}

// nearly is how much room may be left in a full file system: what a program
// asked for did not fit, so it need not be 0.
const nearly = 64 << 10

// watchRoom opens what report looks at. It is opened from outside: the
// process that is PID 1 has these at the same paths as the agent.
func (b *Box) watchRoom() error {
	v, err := lookInto(b.PID())
	if err != nil {
		return err
	}
	defer v.close()
	places := []watched{{bytes: "scratch", inodes: "scratch"}, {bytes: "scratch", inodes: "scratch"}}
	paths := []string{"/tmp", "/dev/shm"}
	if m, err := b.disk.mounted(); err == nil && m {
		f, err := os.OpenFile(b.disk.mount(), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		b.rooms = append(b.rooms, watched{at: f, bytes: "disk", inodes: "inodes"})
	}
	for i, w := range places {
		if w.at, err = v.open(paths[i], unix.O_PATH|unix.O_DIRECTORY); err != nil {
			return err
		}
		b.rooms = append(b.rooms, w)
	}
	return nil
}

// report tells once when room or inodes run out, and again after there were
// some in between.
func (w *watched) report(event func(Event)) {
	r, err := roomAt(int(w.at.Fd()))
	if err != nil {
		return
	}
	full := r.bytes < nearly
	if full && !w.noRoom {
		event(Event{w.bytes, 1, fmt.Sprintf("%d bytes are left in %s", r.bytes, w.at.Name())})
	}
	if r.inodes == 0 && !w.noInode {
		event(Event{w.inodes, 1, fmt.Sprintf("no inode is left in %s", w.at.Name())})
	}
	w.noRoom, w.noInode = full, r.inodes == 0
}
