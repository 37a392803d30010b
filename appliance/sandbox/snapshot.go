package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/clawbox/clawbox/internal/durable"
)

// Snapshot is a copy of everything that an agent has written to its disk, as
// it was at one moment.
type Snapshot struct {
	Name   string        // the operator's
	Number int           // counts an agent's snapshots, never used twice
	Taken  time.Time     // UTC
	Bytes  int64         // of the agent's files and their file system
	Shared bool          // it shares blocks with the disk: the host's file system can (reflink)
	Held   time.Duration // for how long the agent's writes had to wait; 0: it did not run
	Disk   int64         // what the disk was made for: bytes
	Inodes int64         // and inodes
}

// maxSnapshots bounds an agent's snapshots, and snapshotRoom what they may
// take together, in sizes of the disk: an agent that is made to be snapshotted
// must not fill the host.
const (
	maxSnapshots = 64
	snapshotRoom = 4
)

const (
	snapshotTable  = "snapshot.json"
	snapshotTemp   = ".taking-"
	errNoDisk      = "agent %s has no disk of its own, so there is nothing that a snapshot could be taken of at one moment; set budgets.disk in its policy and start it once"
	snapshotFormat = 1
)

// record is snapshot.json.
type record struct {
	Format int `json:"format"`
	Snapshot
}

func (l *Local) snapshots(name string) string { return filepath.Join(l.agentDir(name), "snapshots") }

// Snapshot keeps the present state of the agent's disk under the name snap.
// An agent that runs waits with its writes for the last part of it. It is there
// whole or not at all, and durable on return.
func (l *Local) Snapshot(name, snap string) (Snapshot, error) {
	s, err := l.snapshot(name, snap)
	if err != nil {
		return s, fmt.Errorf("snapshot %s of agent %s: %w", snap, name, err)
	}
	return s, nil
}

func (l *Local) snapshot(name, snap string) (s Snapshot, err error) {
	d, err := l.snapshotDisk(name, snap)
	if err != nil {
		return s, err
	}
	l.snap.Lock()
	defer l.snap.Unlock()
	made, err := d.madeFor()
	if err != nil {
		return s, err
	}
	s = Snapshot{Name: snap, Taken: time.Now().UTC().Truncate(time.Millisecond), Disk: made.bytes, Inodes: made.inodes}
	if s.Number, err = l.mayTake(name, snap, made); err != nil {
		return s, err
	}
	if err := durable.MkdirAll(l.snapshots(name), 0o700); err != nil {
		return s, err
	}
	tmp, err := os.MkdirTemp(l.snapshots(name), snapshotTemp)
	if err != nil {
		return s, err
	}
	defer os.RemoveAll(tmp) // nothing once it has its name
	copyTo := filepath.Join(tmp, diskFile)
	if s.Held, s.Shared, err = l.capture(name, d, copyTo); err != nil {
		return s, err
	}
	if s.Bytes, err = allocated(copyTo); err != nil {
		return s, err
	}
	b, err := json.MarshalIndent(record{snapshotFormat, s}, "", "  ")
	if err != nil {
		return s, err
	}
	if err := errors.Join(syncFile(copyTo), durable.WriteFile(filepath.Join(tmp, snapshotTable), append(b, '\n'), 0o600)); err != nil {
		return s, err
	}
	return s, durable.Rename(tmp, filepath.Join(l.snapshots(name), snap))
}

// snapshotDisk checks names and finds the disk.
func (l *Local) snapshotDisk(name, snap string) (disk, error) {
	d := disk{l.agentDir(name)}
	switch {
	case !validName.MatchString(name):
		return d, fmt.Errorf("name %q is not an agent's", name)
	case !validName.MatchString(snap):
		return d, fmt.Errorf("name %q; want 1 to 63 of a-z, 0-9 and -, not - first or last", snap)
	case !d.exists():
		return d, fmt.Errorf(errNoDisk, name)
	}
	return d, nil
}

// mayTake finds a number for the snapshot, or the reason why there can be
// none.
func (l *Local) mayTake(name, snap string, made size) (int, error) {
	all, err := l.Snapshots(name)
	if err != nil {
		return 0, err
	}
	n, sum := 0, int64(0)
	for _, s := range all {
		if s.Name == snap {
			return 0, fmt.Errorf("it exists since %s; remove it or take another name", s.Taken.Format(time.RFC3339))
		}
		n, sum = max(n, s.Number), sum+s.Bytes
	}
	now, err := allocated(disk{l.agentDir(name)}.image())
	switch {
	case err != nil:
		return 0, err
	case len(all) >= maxSnapshots:
		return 0, fmt.Errorf("there are %d already; remove one", len(all))
	case sum+now > snapshotRoom*made.total():
		return 0, fmt.Errorf("with it, the agent's snapshots would take %d bytes; %d, %d times the disk, are allowed: remove one", sum+now, snapshotRoom*made.total(), snapshotRoom)
	}
	return n + 1, nil
}

// capture copies the image as it is at one moment, and says for how long the
// agent's writes waited for it. Only its file system is held still: what it has
// open, reads and computes goes on, and cgroup.freeze is left to the guard,
// which has reasons of its own to use it.
func (l *Local) capture(name string, d disk, to string) (held time.Duration, shared bool, err error) {
	c, err := newCopy(to, d.image())
	if err != nil {
		return 0, false, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	mounted, err := d.mounted()
	if err != nil {
		return 0, false, err
	}
	if !mounted {
		return 0, c.shares, c.all()
	}
	// What can be done before need not be done while the agent waits.
	if err := errors.Join(syncfs(d.mount()), c.ahead()); err != nil {
		return 0, false, err
	}
	began := time.Now()
	if err := d.freeze(); err != nil {
		return 0, false, err
	}
	err = errors.Join(c.all(), d.thaw())
	if l.running(name) {
		held = time.Since(began)
	}
	return held, c.shares, err
}

// Snapshots lists an agent's snapshots, oldest first.
func (l *Local) Snapshots(name string) ([]Snapshot, error) {
	if !validName.MatchString(name) {
		return nil, fmt.Errorf("name %q is not an agent's", name)
	}
	es, err := os.ReadDir(l.snapshots(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Snapshot
	for _, e := range es {
		if !strings.HasPrefix(e.Name(), ".") {
			s, err := l.readSnapshot(name, e.Name())
			if err != nil {
				return nil, err
			}
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b Snapshot) int { return a.Number - b.Number })
	return out, nil
}

func (l *Local) readSnapshot(name, snap string) (Snapshot, error) {
	var r record
	b, err := os.ReadFile(filepath.Join(l.snapshots(name), snap, snapshotTable))
	if errors.Is(err, fs.ErrNotExist) {
		return r.Snapshot, fmt.Errorf("agent %s has no snapshot %s", name, snap)
	}
	if err != nil {
		return r.Snapshot, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return r.Snapshot, fmt.Errorf("snapshot %s of agent %s: %w", snap, name, err)
	}
	if r.Format != snapshotFormat || r.Name != snap {
		return r.Snapshot, fmt.Errorf("snapshot %s of agent %s says that it is %q in format %d; want its own name and format %d", snap, name, r.Name, r.Format, snapshotFormat)
	}
	return r.Snapshot, nil
}

// Restore puts a snapshot in the place of the agent's disk, whole or not at
// all; what the disk held is gone. The agent must not run.
func (l *Local) Restore(name, snap string) error {
	if err := l.restore(name, snap); err != nil {
		return fmt.Errorf("restore snapshot %s of agent %s: %w", snap, name, err)
	}
	return nil
}

func (l *Local) restore(name, snap string) error {
	if !validName.MatchString(name) || !validName.MatchString(snap) {
		return errors.New("such names there are none; want a-z, 0-9 and -")
	}
	s, err := l.readSnapshot(name, snap)
	if err != nil {
		return err
	}
	if err := l.claim(name); err != nil {
		return err
	}
	defer l.release(name)
	l.snap.Lock()
	defer l.snap.Unlock()
	d := disk{l.agentDir(name)}
	tmp := d.image() + ".restored"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := clone(tmp, filepath.Join(l.snapshots(name), snap, diskFile)); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := errors.Join(syncFile(tmp), d.detach()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	// The table first: an image that it describes wrongly is made anew from
	// its content at the next start, which only costs time.
	return errors.Join(d.describe(size{s.Disk, s.Inodes}), durable.Rename(tmp, d.image()))
}

// RemoveSnapshot deletes a snapshot.
func (l *Local) RemoveSnapshot(name, snap string) error {
	if !validName.MatchString(name) || !validName.MatchString(snap) {
		return fmt.Errorf("agent %q, snapshot %q: such names there are none; want a-z, 0-9 and -", name, snap)
	}
	if _, err := l.readSnapshot(name, snap); err != nil {
		return err
	}
	l.snap.Lock()
	defer l.snap.Unlock()
	// Out of sight first: half of one must not be restored.
	gone := filepath.Join(l.snapshots(name), snapshotTemp+"removed-"+snap)
	if err := durable.Rename(filepath.Join(l.snapshots(name), snap), gone); err != nil {
		return err
	}
	return os.RemoveAll(gone)
}

// sweepDisks ends what a daemon that died has left: mounts, half a snapshot.
func (l *Local) sweepDisks() error {
	es, err := os.ReadDir(filepath.Join(l.opt.State, "agents"))
	var errs []error
	for _, e := range es {
		dir := l.agentDir(e.Name())
		errs = append(errs, disk{dir}.detach())
		for _, g := range []string{filepath.Join(dir, "snapshots", snapshotTemp+"*"), filepath.Join(dir, diskFile+".*")} {
			left, _ := filepath.Glob(g)
			for _, p := range left {
				errs = append(errs, os.RemoveAll(p))
			}
		}
	}
	return errors.Join(append(errs, err)...)
}
