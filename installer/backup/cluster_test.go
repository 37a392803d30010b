package backup

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"golang.org/x/sys/unix"
)

// A server's cluster comes back with the rest, or alone beside a ledger that has
// gone on; its keys travel encrypted, and not while K3s runs.
func TestCluster(t *testing.T) {
	p := newPlace(t, t.TempDir())
	db := filepath.Join(p.l.Datastore(), "state.db")
	token := filepath.Join(p.root, "var/lib/rancher/k3s/server/token")
	for path, text := range map[string]string{db: "objects", db + "-wal": "more", token: "K10secret", filepath.Join(p.root, "var/lib/rancher/k3s/server/tls/etcd/ca.key"): "CA-KEY"} {
		p.put(path, text)
	}
	p.grow(10)
	id := identity(t)
	plain, sealed := p.backup(), p.backup(id.Recipient())
	for _, secret := range []string{"K10secret", "CA-KEY"} {
		if bytes.Contains(inside(t, plain, nil), []byte(secret)) || !bytes.Contains(inside(t, sealed, id), []byte(secret)) {
			t.Errorf("%s is where it should not be, or is not where it should", secret)
		}
	}
	p.grow(5)
	p.put(db, "lost")
	p.put(token, "K10other")
	if err := os.Remove(db + "-wal"); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(db, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	// As a connection of SQLite's has it.
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 0x40000002, Len: 510}); err != nil {
		t.Fatal(err)
	}
	o := RestoreOptions{Cluster: true, Identities: []age.Identity{id}}
	if err := p.restore(sealed, o); err == nil || !strings.Contains(err.Error(), "K3s still has it open") || p.read(db) != "lost" {
		t.Errorf("beside a K3s that runs: %v", err)
	}
	f.Close()
	for _, b := range [][]byte{plain, sealed} {
		if err := p.restore(b, o); err != nil || p.read(db) != "objects" || p.read(db+"-wal") != "more" || p.size() != 15 {
			t.Errorf("got %q, %v, %d entries", p.read(db), err, p.size())
		}
		if want := map[bool]string{true: "K10secret", false: "K10other"}[bytes.Equal(b, sealed)]; p.read(token) != want {
			t.Errorf("the token is %s; want %s", p.read(token), want)
		}
		aside, err := filepath.Glob(p.l.Datastore() + ".before-restore-*")
		if err != nil || len(aside) != 1 {
			t.Fatalf("moved aside: %v, %v", aside, err)
		}
		if err := os.RemoveAll(aside[0]); err != nil { // its name has seconds
			t.Fatal(err)
		}
	}
	ev, _ := filepath.Glob(filepath.Join(p.l.Receipts(), "changes/*restored.json"))
	if len(ev) != 2 || !strings.Contains(p.read(ev[0]), "the cluster's state, from a backup") {
		t.Errorf("the ledger is told %v", ev)
	}
	q := newPlace(t, t.TempDir())
	q.grow(1)
	if err := q.restore(q.backup(), RestoreOptions{Cluster: true}); err == nil || !strings.Contains(err.Error(), "without a datastore") {
		t.Errorf("a backup of solo: %v", err)
	}
}

// A host may have /etc, /var/lib/rancher and the ledger on disks of their own.
func TestOtherDisks(t *testing.T) {
	root, other := t.TempDir(), shm(t)
	for _, d := range []string{"etc", "var/lib/rancher", "var/lib/clawbox/ledger"} {
		at := filepath.Join(other, filepath.Base(d))
		if err := errors.Join(os.MkdirAll(filepath.Join(root, filepath.Dir(d)), 0o755), os.Mkdir(at, 0o755), os.Symlink(at, filepath.Join(root, d))); err != nil {
			t.Fatal(err)
		}
	}
	p := newPlace(t, root)
	// The ledger's own folder is the disk's mount point's child.
	p.c.Paths.Ledger = filepath.Join(root, "var/lib/clawbox/ledger/log")
	b, err := p.c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	p.put(p.l.Config(), string(b))
	db := filepath.Join(p.l.Datastore(), "state.db")
	token := filepath.Join(root, "var/lib/rancher/k3s/server/token")
	p.put(db, "objects")
	p.put(token, "K10secret")
	p.grow(3)
	id := identity(t)
	sealed := p.backup(id.Recipient())
	p.put(db, "lost")
	p.put(token, "K10other")
	for _, path := range []string{p.c.Paths.Ledger, p.l.LedgerS()} {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.restore(sealed, RestoreOptions{Identities: []age.Identity{id}}); err != nil {
		t.Fatal(err)
	}
	if p.read(db) != "objects" || p.read(token) != "K10secret" || p.read(p.l.LedgerS()) != p.skey+"\n" || p.size() != 3 {
		t.Errorf("got %q, %q, %d entries", p.read(db), p.read(token), p.size())
	}
}

// shm is a folder on another file system than the tests' folder.
func shm(t *testing.T) string {
	t.Helper()
	var a, b unix.Stat_t
	if err := errors.Join(unix.Stat("/dev/shm", &a), unix.Stat(t.TempDir(), &b)); err != nil || a.Dev == b.Dev {
		t.Skipf("/dev/shm is not another file system: %v", err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "clawbox-test-*")
	if err != nil {
		t.Skipf("/dev/shm is not writable: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
