package installer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/clawbox/clawbox/airgap-manifests/k3s"
	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/internal/durable"
	"golang.org/x/sys/unix"
)

// ClusterState is the state of the profile cluster: that of solo, and K3s's.
// A tenant's volumes are not in it, for the reason that agents' files are not.
func ClusterState(c config.Config, l Layout) []Snapshotter {
	return append(append(SoloState(c, l), l.k3sFiles()), l.k3sState()...)
}

// k3sFiles are what a release places for its K3s, which reads them at fixed
// places, and what containerd calls.
func (l Layout) k3sFiles() Snapshotter {
	return fileSet{name: "k3s-files", root: l.at("/"), exact: true, match: []string{
		"etc/rancher/k3s/*", "etc/sysctl.d/90-clawbox-k3s.conf", "etc/modules-load.d/clawbox-k3s.conf", "etc/systemd/system/k3s.service",
		"var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.tmpl", "var/lib/rancher/k3s/server/manifests/*",
		"var/lib/clawbox/install/charts.json", "opt/clawbox/runtime/*",
	}}
}

// k3sState is what a cluster is: the datastore with every object, the
// certificates and keys that it was begun with, and the token.
func (l Layout) k3sState() []Snapshotter {
	return []Snapshotter{
		fileSet{name: "k3s-keys", root: l.at("/"), match: k3sKeys, exact: true},
		l.database(),
	}
}

// k3sKeys are K3s's secrets, below the root.
var k3sKeys = []string{
	"etc/rancher/node/password", "var/lib/rancher/k3s/server/token", "var/lib/rancher/k3s/server/agent-token",
	"var/lib/rancher/k3s/server/cred/*", "var/lib/rancher/k3s/server/tls/*", "var/lib/rancher/k3s/server/tls/*/*",
}

// NodeKeys are the files with K3s's secrets that there are below the root.
func (l Layout) NodeKeys() ([]string, error) { return fileSet{root: l.at("/"), match: k3sKeys}.now() }

// IsNodeKey says whether a path below the root is one of theirs.
func IsNodeKey(rel string) bool {
	return slices.ContainsFunc(k3sKeys, func(m string) bool { ok, err := filepath.Match(m, rel); return ok && err == nil })
}

// Datastore is the folder in which kine, K3s's datastore, has its SQLite.
func (l Layout) Datastore() string { return l.at(k3s.DataDir + "/server/db") }

// HoldDatastore keeps the datastore of a K3s that does not run from being opened.
func (l Layout) HoldDatastore(ctx context.Context) (release func(), err error) {
	return l.database().alone(ctx, 2*time.Second)
}

func (l Layout) database() datastore {
	return datastore{fileSet{name: "k3s-datastore", root: l.Datastore(), match: []string{"state.db", "state.db-wal"}, exact: true}}
}

// datastore is K3s's database: SQLite in WAL mode. It is copied as files while
// K3s does not run, and not by SQLite's backup while it does, for three reasons:
// an upgrade stops K3s anyway; what is copied then is the last that this K3s
// wrote, so nothing that the cluster accepted is missing from what is put back;
// and the installer needs no SQLite. A K3s that was killed leaves its log beside
// the database, and the two together are the state (sqlite.org/wal.html).
type datastore struct{ fileSet }

func (d datastore) Save(ctx context.Context, dir string) error {
	unlock, err := d.alone(ctx, stopTime)
	if err != nil {
		return err
	}
	defer unlock()
	return d.fileSet.Save(ctx, dir)
}

func (d datastore) Restore(ctx context.Context, dir string) error {
	unlock, err := d.alone(ctx, stopTime)
	if err != nil {
		return err
	}
	defer unlock()
	return d.fileSet.Restore(ctx, dir)
}

// alone waits until nobody has the database open, and keeps it so: every
// connection holds SQLite's shared lock for as long as it is open in WAL mode.
func (d datastore) alone(ctx context.Context, limit time.Duration) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	unlock, err = lockBytes(ctx, filepath.Join(d.root, "state.db"), byteRange{unix.F_WRLCK, sqliteLocks, 512})
	if errors.Is(err, unix.EAGAIN) {
		err = fmt.Errorf("%s: K3s still has it open after %s; wanted K3s ended; stop it (systemctl stop k3s), then start again", filepath.Join(d.root, "state.db"), limit)
	}
	return unlock, err
}

// CopyDatastore copies the datastore of a K3s that may run into dir. It holds
// the locks of a reader, of the one writer and of the checkpointer, so that
// neither file changes meanwhile; K3s's own writes wait for as long (30 s, its
// busy timeout). ok is false where this host has no datastore.
func CopyDatastore(ctx context.Context, l Layout, dir string) (ok bool, err error) {
	db := filepath.Join(l.Datastore(), "state.db")
	if !there(db) {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, f := range []struct {
		path string
		r    byteRange
	}{
		{db, byteRange{unix.F_RDLCK, sqliteLocks + 2, 510}},
		{db + "-shm", byteRange{unix.F_WRLCK, walLocks, 2}},
	} {
		unlock, err := lockBytes(ctx, f.path, f.r)
		if err != nil {
			return true, fmt.Errorf("%s: %w; K3s was writing for all of that time; give the same command again", f.path, err)
		}
		defer unlock()
	}
	for _, p := range []string{db, db + "-wal"} {
		if !there(p) { // K3s has ended in order
			continue
		}
		b, err := os.ReadFile(p)
		if err == nil {
			err = durable.WriteFile(filepath.Join(dir, filepath.Base(p)), b, 0o600)
		}
		if err != nil {
			return true, err
		}
	}
	return true, nil
}

// Where SQLite locks. Source: its os_unix.c: in the database PENDING_BYTE, one
// reserved byte and 510 shared ones; in the file -shm UNIX_SHM_BASE, where the
// writer's is the first byte and the checkpointer's the second
// (sqlite.org/walformat.html, "WAL locks").
const (
	sqliteLocks = 0x40000000
	walLocks    = 120
)

// byteRange is one lock.
type byteRange struct {
	kind       int16
	start, len int64
}

// lockBytes takes a lock that other processes see as their own kind of fcntl(2),
// waiting until ctx ends (EAGAIN). A file that is missing can't be locked, and
// needs no lock.
func lockBytes(ctx context.Context, path string, r byteRange) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	for {
		// Of the open file, not of the process: closing another descriptor keeps it.
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: r.kind, Start: r.start, Len: r.len})
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(unix.EAGAIN, f.Close())
		case <-time.After(2 * time.Millisecond): // a busy writer lets go for moments only
		}
	}
}
