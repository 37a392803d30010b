package installer

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/internal/durable"
	"golang.org/x/mod/sumdb/note"
)

// step is one row of the table that NewPlan prints and Run performs. run
// arrives at the same result from whatever an interrupted run left; it returns
// what it did, or "" when it found everything as wanted.
type step struct {
	id, title, why string
	only           func(Answers) bool // nil: always
	bytes          func(Release) int64
	run            func(*run, context.Context) (string, error)
}

func nothing(Release) int64   { return 0 }
func payload(r Release) int64 { return r.Bytes }
func copies(r Release) (n int64) {
	for _, it := range r.slotItems() {
		n += it.Size
	}
	return n
}
func withSystemd(a Answers) bool { return a.Start == "systemd" }

// steps in order. Activation comes after everything that it makes reachable;
// enabling the service at boot comes after the proof that it works.
//
// It is filled by init because the steps use helpers that print it.
var steps []step

func init() {
	steps = []step{
		{"folders", "Make the folders", "private keys 0700, everything else readable by those who need it", nil, nothing, (*run).folders},
		{"trust", "Keep the publisher's keys", "from now on releases are checked with these, whatever a stick brings", nil, nothing, (*run).trust},
		{"payload", "Copy the payload into the store", "one sequential read; every 4 MiB verified, every byte written once, flushed, then named", nil, payload, (*run).payload},
		{"policies", "Check the policies", "a policy that cannot be read must stop us here, not when an agent starts", nil, nothing, (*run).policies},
		{"slot", "Fill the slot", "programs and policies of this release in a folder of its own; copied, because a hard link would share the store's mode 0444", nil, copies, (*run).slot},
		{"models", "Lay out the models", "hard links to the store's blobs, as the engines want to find them; no byte is copied", isServer, nothing, (*run).models},
		{"keys", "Make this host's ledger key", "checkpoints of the audit log are signed with it; it never leaves this host", nil, nothing, (*run).keys},
		{"config", "Write the configuration", "the one file that the appliance reads", nil, nothing, (*run).config},
		{"unit", "Write the systemd unit", "not enabled yet", withSystemd, nothing, (*run).unit},
		{"node", "Place K3s", "its hardened configuration, one registry and no other, its unit; what the cluster is to run, as data", isCluster, nothing, (*run).node},
		{"receipt", "Write the receipt", "what was installed, by whom, on what machine, with which weakenings; the ledger's first entry", nil, nothing, (*run).receipt},
		{"activate", "Activate the release", "one rename of opt/clawbox/current: before it nothing runs, after it everything is there", nil, nothing, (*run).activate},
		{"start", "Start the appliance and wait until it is healthy", "enabled at boot only after it has answered", withSystemd, nothing, (*run).start},
		{"k3s", "Start K3s and wait until the node is ready", "after the appliance, whose registry has its images", startsCluster, nothing, (*run).startK3s},
		{"charts", "Install what the cluster runs", "namespaces with quotas and denied by default first, then what agents as pods need, GPUs, telemetry, models; each waited for", startsServer, nothing, (*run).charts},
		{"pods", "Give the appliance its account on the cluster", "after it there is one; the appliance then starts again, and runs agents as pods", startsCluster, nothing, (*run).connect},
	}
}

// folders makes or corrects the installation's folders. A link or a file in
// the place of one is refused: it may lead anywhere.
func (r *run) folders(context.Context) (string, error) {
	var did []string
	for _, d := range r.l.dirs() {
		what, err := ensureDir(d.path, d.mode, r.owners(d)...)
		if err != nil {
			return "", err
		}
		if what != "" {
			did = append(did, what)
		}
	}
	for _, p := range []string{filepath.Dir(r.l.Command()), filepath.Dir(r.l.Wants())} {
		if p == filepath.Dir(r.l.Wants()) && !withSystemd(r.Answers) {
			continue
		}
		if err := durable.MkdirAll(p, 0o755); err != nil {
			return "", err
		}
	}
	return strings.Join(did, ", "), nil
}

// owners are the users besides root who may own a folder: the service that the
// appliance gave it to.
func (r *run) owners(d folder) []int {
	if d.service == "" {
		return nil
	}
	c, err := config.Load(r.l.Config())
	if err != nil { // none yet, or one that is about to be replaced
		c = r.Answers.Config(r.Release)
	}
	return []int{c.UIDOf(d.service)}
}

func ensureDir(path string, mode fs.FileMode, owners ...int) (string, error) {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := durable.MkdirAll(path, 0o755); err != nil {
			return "", err
		}
		return "made " + path, os.Chmod(path, mode) // mkdir's mode passes the umask
	case err != nil:
		return "", err
	case !st.IsDir():
		return "", fmt.Errorf("%s: got a %s; wanted a folder; move it away", path, kindOf(st))
	case ownerOf(st) != os.Geteuid() && !slices.Contains(owners, ownerOf(st)):
		return "", fmt.Errorf("%s: got a folder of user %d, who could exchange what is in it; wanted one of user %d; look into it, then chown it", path, ownerOf(st), os.Geteuid())
	case st.Mode().Perm() == mode:
		return "", nil
	}
	return fmt.Sprintf("mode of %s %04o instead of %04o", path, mode, st.Mode().Perm()), os.Chmod(path, mode)
}

// owner is who a file belongs to; -1 where the system does not say.
func owner(st fs.FileInfo) (uid, gid int) {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(s.Uid), int(s.Gid)
	}
	return -1, -1
}

func ownerOf(st fs.FileInfo) int {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(s.Uid)
	}
	return -1
}

func kindOf(st fs.FileInfo) string {
	switch {
	case st.Mode()&fs.ModeSymlink != 0:
		return "symbolic link"
	case st.Mode().IsRegular():
		return "file"
	}
	return st.Mode().Type().String()
}

// trust keeps the keys that opened the media. Those of a finished installation
// are never replaced here.
func (r *run) trust(context.Context) (string, error) {
	if r.repair {
		if _, _, err := r.l.ownTrust(); err == nil {
			return "", nil
		}
	}
	if _, note, ok := r.env.Trust.Root(); ok {
		return ensureFile(r.l.Root(), note, 0o644)
	}
	return ensureFile(r.l.Trust(), encodeTrust(r.env.Trust), 0o644)
}

// ensureFile makes path hold exactly data and mode.
func ensureFile(path string, data []byte, mode fs.FileMode) (string, error) {
	st, err := os.Lstat(path)
	if err == nil && st.Mode().IsRegular() && st.Mode().Perm() == mode {
		if b, err := os.ReadFile(path); err == nil && bytes.Equal(b, data) {
			return "", nil
		}
	}
	if err == nil && st.IsDir() {
		return "", fmt.Errorf("%s: got a folder; wanted a file; move it away", path)
	}
	return "wrote " + path, durable.WriteFile(path, data, mode)
}

// payload loads the media into the store. A repair reads what the store has
// first, and lets Load bring again what rotted.
func (r *run) payload(ctx context.Context) (string, error) {
	did, err := r.load(ctx)
	if err != nil {
		return "", err
	}
	if err := r.refs(r.store); err != nil {
		return "", err
	}
	return did, pin(r.store, r.Release)
}

func (r *run) load(ctx context.Context) (string, error) {
	s, err := r.open()
	if err != nil {
		return "", err
	}
	var did []string
	if r.repair {
		if did, err = scrub(ctx, s); err != nil {
			return "", err
		}
	}
	before, err := blobs(s)
	if err != nil {
		return "", err
	}
	if err := r.env.Load(ctx, s); err != nil {
		return "", err
	}
	after, err := blobs(s)
	if err != nil {
		return "", err
	}
	if n := after - before; n > 0 {
		did = append(did, fmt.Sprintf("%d blobs loaded", n))
	}
	return strings.Join(did, ", "), nil
}

// open opens the store once; that sweeps what killed writers left there.
func (r *run) open() (*content.Store, error) {
	if r.store == nil {
		s, err := content.Open(r.l.Store())
		if err != nil {
			return nil, err
		}
		r.store = s
	}
	return r.store, nil
}

// refs makes sure that Load has kept its word: every item's name leads to the
// digest that was signed.
func (r *run) refs(s *content.Store) error {
	for _, it := range r.Release.Items {
		d, err := s.Resolve(it.Ref)
		if err != nil {
			return fmt.Errorf("%s: %w", it.Ref, err)
		}
		if d.Digest != it.Digest {
			return fmt.Errorf("%s: got %s in the store; wanted %s, which was signed", it.Ref, d.Digest, it.Digest)
		}
	}
	return nil
}

// keys makes the ledger's key pair once. A finished installation whose private
// key is gone is refused: another key could not continue its ledger.
func (r *run) keys(context.Context) (string, error) {
	if _, err := os.Lstat(r.l.LedgerS()); errors.Is(err, fs.ErrNotExist) {
		if r.repair {
			return "", fmt.Errorf("%s is missing; wanted the key that the ledger was begun with; restore it from a backup", r.l.LedgerS())
		}
		return r.makeKey()
	}
	s, err := manifest.LoadSigner(r.l.LedgerS()) // refuses loose modes
	if err != nil {
		return "", err
	}
	return ensureFile(r.l.LedgerV(), []byte(s.Key()+"\n"), 0o644)
}

// makeKey writes the public half first: a private key without its public half
// on disk would sign what nobody can check, and a run that stops in between
// replaces the half that is there.
func (r *run) makeKey() (string, error) {
	skey, vkey, err := note.GenerateKey(rand.Reader, "clawbox/"+keyName(r.Facts.Hostname))
	if err != nil {
		return "", err
	}
	if err := durable.WriteFile(r.l.LedgerV(), []byte(vkey+"\n"), 0o644); err != nil {
		return "", err
	}
	return "made the key of this host's ledger", durable.WriteFile(r.l.LedgerS(), []byte(skey+"\n"), 0o600)
}

// keyName keeps of a host's name what a signed note's key name may hold.
func keyName(host string) string {
	s := strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.' {
			return c
		}
		return -1
	}, strings.ToLower(host))
	if s == "" {
		return "appliance"
	}
	return s
}

// config writes the configuration. The operator may edit the configuration of a finished installation, so a repair
// replaces it only when it cannot be read or is another release's.
func (r *run) config(context.Context) (string, error) {
	c := r.Answers.Config(r.Release)
	if r.repair {
		if have, err := config.Load(r.l.Config()); err == nil && have.Release == c.Release {
			return "", nil
		}
	}
	b, err := c.Encode()
	if err != nil {
		return "", err
	}
	// Not for everyone: an agent's environment may hold a token.
	return ensureFile(r.l.Config(), b, 0o640)
}

// activate puts the command and the release in place. Fixed names for the new
// links let a run that follows a killed one clear up by itself.
func (r *run) activate(context.Context) (string, error) {
	slot, err := filepath.Rel(r.l.Opt(), r.l.Slot(r.Release.Version, r.Release.Sequence))
	if err != nil {
		return "", err
	}
	cmd, err := filepath.Rel(filepath.Dir(r.l.Command()), filepath.Join(r.l.Current(), mainPath))
	if err != nil {
		return "", err
	}
	// The command first: until "current" is there it leads nowhere.
	did, err := ensureLink(r.l.Command(), cmd)
	if err != nil {
		return "", err
	}
	did2, err := ensureLink(r.l.Current(), slot)
	return strings.Trim(did+", "+did2, ", "), err
}

// ensureLink makes path a symbolic link to target in one rename. Something
// that is no link is not ours to replace.
func ensureLink(path, target string) (string, error) {
	st, err := os.Lstat(path)
	if err == nil && st.Mode()&fs.ModeSymlink == 0 {
		return "", fmt.Errorf("%s: got a %s; wanted a link of clawbox's, or nothing; move it away", path, kindOf(st))
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if have, err := os.Readlink(path); err == nil && have == target {
		return "", nil
	}
	if err := os.Symlink(target, tmp); err != nil {
		return "", err
	}
	if err := durable.Rename(tmp, path); err != nil {
		return "", errors.Join(err, os.Remove(tmp))
	}
	return path + " → " + target, nil
}
