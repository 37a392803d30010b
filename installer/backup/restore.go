package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"filippo.io/age"
	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/installer"
	"github.com/clawbox/clawbox/internal/durable"
	"golang.org/x/mod/sumdb/note"
)

// ErrLonger says that the ledger in place has entries that the backup lacks.
var ErrLonger = errors.New("the ledger in place goes on where the backup's ends")

// RestoreOptions say how to restore.
type RestoreOptions struct {
	Identities []age.Identity
	Operator   string
	// Key is the one of the ledger that has to have signed the backup; nil: the one
	// in place.
	Key note.Verifier
	// Replace lets the backup take the place of a ledger that was begun with
	// another key, such as that of a fresh installation. That one is moved aside.
	Replace bool
	// Check stops after everything was verified.
	Check bool
	// Cluster puts back what is K3s's alone. The ledger stays as it is, so the
	// backup's may be shorter.
	Cluster bool
}

// restoring is one Restore at work.
type restoring struct {
	o    RestoreOptions
	l    installer.Layout
	cfg  config.Config // in place
	next config.Config // the backup's
	dir  string        // where it is unpacked
	unpacked
	stamp string
	aside []string
	has   map[string]bool // snapshots that are in place already: they stay
}

// snapshotOf is the snapshot that a file belongs to, AGENT/snapshots/NAME; "":
// to none.
func snapshotOf(f File) string {
	if p := strings.Split(f.Path, "/"); f.Part == "agents" && len(p) == 4 {
		return filepath.Join(p[0], p[1], p[2])
	}
	return ""
}

// Restore puts the backup in r back below root, whose appliance must not run.
func Restore(ctx context.Context, r io.ReadSeeker, root string, o RestoreOptions) (About, []string, error) {
	t := &restoring{o: o, l: installer.Layout{Prefix: root}, stamp: time.Now().UTC().Format("20060102T150405Z")}
	if err := installer.ValidOperator(o.Operator); err != nil {
		return About{}, nil, err
	}
	if _, _, _, err := t.l.Committed(); err != nil {
		return About{}, nil, err
	}
	var err error
	if t.cfg, err = config.Load(t.l.Config()); err != nil {
		return About{}, nil, err
	}
	if c, err := net.Dial("unix", filepath.Join(t.cfg.Paths.Run, "control.sock")); err == nil {
		c.Close()
		return About{}, nil, errors.New("got an appliance that runs; wanted it stopped, since its state is replaced; stop it (systemctl stop clawbox, or end 'clawbox serve') and give the same command again")
	}
	release, err := t.l.Hold()
	if err != nil {
		return About{}, nil, err
	}
	defer release()
	// Beside the state, where most of it belongs and takes its place by a rename.
	t.dir = filepath.Join(t.cfg.Paths.State, ".restore")
	if err := os.RemoveAll(t.dir); err != nil {
		return About{}, nil, err
	}
	defer os.RemoveAll(t.dir)
	if err := durable.Mkdir(t.dir, 0o700); err != nil {
		return About{}, nil, err
	}
	if err := t.read(ctx, r); err != nil {
		return About{}, nil, err
	}
	if err := t.fits(); err != nil || o.Check {
		return t.about, nil, err
	}
	free, err := t.l.HoldDatastore(ctx)
	if err != nil {
		return t.about, nil, err
	}
	defer free()
	t.has = map[string]bool{}
	for _, f := range t.about.Files {
		if s := snapshotOf(f); s != "" && exists(filepath.Join(t.cfg.Paths.State, "agents", s)) {
			t.has[s] = true
		}
	}
	for _, p := range parts {
		if o.Cluster && !slices.Contains(ofCluster, p.name) {
			continue
		}
		if err := t.place(p); err != nil {
			return t.about, t.aside, fmt.Errorf("%s: %w; correct the cause and give the same command again", p.name, err)
		}
	}
	what, by := "", ""
	if o.Cluster {
		what = "the cluster's state, "
	}
	if o.Key != nil {
		by = fmt.Sprintf(", signed by %s+%08x, which the operator named", o.Key.Name(), o.Key.KeyHash())
	}
	return t.about, t.aside, t.l.TellRestored(o.Operator, fmt.Sprintf("%sfrom a backup of %s, made on %s, whose ledger had %d entries%s", what, t.about.Created.Format(time.RFC3339), t.about.Host, t.about.Entries, by))
}

// read unpacks what somebody whom this host knows has signed.
func (t *restoring) read(ctx context.Context, r io.ReadSeeker) (err error) {
	if t.unpacked, err = unpack(ctx, r, "", t.o.Identities); err != nil {
		return err
	}
	if err := t.signed(); err != nil {
		return err
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return err
	}
	u, err := unpack(ctx, r, t.dir, t.o.Identities)
	if err == nil && u.text != t.text {
		err = errors.New("the backup has changed while it was read; give the same command again")
	}
	return err
}

// fits holds the backup against what is installed.
func (t *restoring) fits() (err error) {
	version, sequence, digest, err := t.l.Committed()
	if err != nil {
		return err
	}
	if digest != t.about.Digest || sequence != t.about.Sequence {
		return fmt.Errorf("got a backup of release %s (sequence %d), installed is %s (sequence %d); wanted the same; install or upgrade to that release first", t.about.Version, t.about.Sequence, version, sequence)
	}
	file := filepath.Join(t.dir, "etc", filepath.Base(t.l.Config()))
	if t.next, err = config.Load(file); err != nil {
		return err
	}
	if t.next.Paths != t.cfg.Paths {
		return fmt.Errorf("got a backup of an appliance with other paths (state in %s); wanted those in place (%s); install with the same root", t.next.Paths.State, t.cfg.Paths.State)
	}
	if t.o.Cluster {
		if !exists(filepath.Join(t.dir, "datastore")) {
			return errors.New("got a backup without a datastore; wanted one of a cluster's server")
		}
		return nil
	}
	return t.continues()
}

// continues refuses to lose or to fork a ledger.
func (t *restoring) continues() error {
	theirs := filepath.Join(t.dir, "etc", filepath.Base(t.l.LedgerV()))
	v, err := verifier(theirs)
	if err != nil {
		return err
	}
	same, err := sameFile(theirs, t.l.LedgerV())
	if err != nil {
		return err
	}
	if !same && !t.about.Keys {
		return fmt.Errorf("got a backup without keys, of a ledger by another key than %s; wanted the key that goes on with it; make backups with --recipient", t.l.LedgerV())
	}
	o := ledger.Options{}
	head, err := os.ReadFile(filepath.Join(t.cfg.Paths.Ledger, "checkpoint"))
	has := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch {
	case has && same:
		o.Anchors = [][]byte{head}
	case has && !t.o.Replace:
		return fmt.Errorf("got a ledger in %s that another key has begun; wanted none, or the backup's; --replace moves it aside and takes the backup's", t.cfg.Paths.Ledger)
	}
	dir := filepath.Join(t.dir, "ledger")
	if t.about.Entries == 0 && !exists(dir) {
		if has && same {
			return fmt.Errorf("%w: the backup has none", ErrLonger)
		}
		return nil
	}
	if has && same {
		if r, err := ledger.Verify(t.cfg.Paths.Ledger, v, ledger.Options{}); err == nil && r.Size > t.about.Entries {
			return fmt.Errorf("%w: it has %d entries, the backup has %d; wanted a backup that was made later; the ledger never goes back", ErrLonger, r.Size, t.about.Entries)
		}
	}
	if _, err = ledger.Verify(dir, v, o); err != nil {
		return fmt.Errorf("the backup's ledger: %w", err)
	}
	return nil
}

func sameFile(a, b string) (bool, error) {
	x, err := os.ReadFile(a)
	if err != nil {
		return false, err
	}
	y, err := os.ReadFile(b)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return strings.TrimSpace(string(x)) == strings.TrimSpace(string(y)), err
}

func exists(p string) bool {
	_, err := os.Lstat(p)
	return err == nil
}

// place puts one part where it belongs.
func (t *restoring) place(p part) error {
	from, to := filepath.Join(t.dir, p.name), p.root(t.next, t.l)
	if p.how == informs || !exists(from) {
		return nil
	}
	if p.how == whole {
		return t.put(from, to)
	}
	for _, f := range t.about.Files {
		if f.Part != p.name || t.has[snapshotOf(f)] {
			continue
		}
		dst := filepath.Join(to, f.Path)
		if p.name == "credentials" && !slices.Contains(named(t.next), dst) {
			return fmt.Errorf("got %s in the backup; wanted only files that its configuration names", dst)
		}
		if p.name == "node-keys" && !installer.IsNodeKey(f.Path) {
			return fmt.Errorf("got %s in the backup; wanted only what K3s keeps its keys in", dst)
		}
		if err := t.placeFile(filepath.Join(from, f.Path), dst, f); err != nil {
			return err
		}
	}
	return nil
}

// placeFile moves one file to its place; another one there is moved aside.
func (t *restoring) placeFile(from, to string, f File) error {
	if err := durable.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	if same, err := sameFile(from, to); err != nil {
		return err
	} else if same {
		return durable.Move(from, to)
	}
	return t.put(from, to)
}

var exchange = durable.Exchange // a test has file systems that can't

// put moves from to its place. What is there is moved aside in the same step: at
// no time is there neither, so that what comes next is held against a ledger. Where
// the file system cannot, it is moved aside first. After a power cut what lies aside
// may be what was to come.
func (t *restoring) put(from, to string) error {
	if !exists(to) {
		return durable.Move(from, to)
	}
	old := to + ".before-restore-" + t.stamp
	for n := 2; exists(old); n++ { // two in one second
		old = fmt.Sprintf("%s.before-restore-%s-%d", to, t.stamp, n)
	}
	if err := durable.Move(from, old); err != nil {
		return err
	}
	err := exchange(old, to)
	if !errors.Is(err, syscall.EINVAL) {
		if no := (*os.LinkError)(nil); errors.As(err, &no) { // old is what was to come
			return errors.Join(err, os.RemoveAll(old))
		}
		t.aside = append(t.aside, old)
		return err
	}
	t.aside = append(t.aside, old)
	next := old + ".next"
	for _, n := range [][2]string{{old, next}, {to, old}, {next, to}} {
		if err := durable.Rename(n[0], n[1]); err != nil {
			return err
		}
	}
	return nil
}

func named(c config.Config) (out []string) {
	for _, u := range c.Upstreams {
		out = append(out, u.KeyFile)
	}
	for _, k := range c.Credentials {
		out = append(out, k.KeyFile)
	}
	return out
}
