package installer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/internal/durable"
)

// Snapshotter keeps one kind of the appliance's state from before a change, and
// puts it back when the change failed. The appliance does not run meanwhile.
//
// Save writes into an empty folder, and what it wrote is durable on return.
// Restore arrives at the same result from whatever an interrupted one left.
type Snapshotter interface {
	Name() string
	Save(ctx context.Context, dir string) error
	Restore(ctx context.Context, dir string) error
}

// stateOf is what each profile keeps. Boot puts it back without asking anybody,
// so a profile that keeps more adds a row here.
var stateOf = map[string]func(config.Config, Layout) []Snapshotter{
	"solo":    SoloState,
	"cluster": ClusterState,
}

// StateOf is what a profile keeps.
func StateOf(profile string, c config.Config, l Layout) ([]Snapshotter, error) {
	f, ok := stateOf[profile]
	if !ok {
		return nil, fmt.Errorf("got the profile %q, whose state this release does not know how to keep; wanted one of its own", profile)
	}
	return f(c, l), nil
}

// SoloState is the state of the profile solo: small files, copied. Agents'
// writable files are not in it: they are the agents' own, no release writes
// them, and a copy of them costs as much as they are large ('clawbox agent
// snapshot' takes one).
func SoloState(c config.Config, l Layout) []Snapshotter {
	return []Snapshotter{
		fileSet{name: "configuration", root: l.Etc(), match: []string{"*"}},
		fileSet{name: "agents", root: c.Paths.State, match: []string{"agents/*/agent.json", "uids.json"}, exact: true},
		fileSet{name: "approvals", root: c.Paths.State, match: []string{"egress/approvals*.json"}, exact: true},
		ledgerHead{c.Paths.Ledger},
	}
}

// fileSet are regular files below root, with owners and modes.
type fileSet struct {
	name  string
	root  string
	match []string // patterns of filepath.Match below root
	exact bool     // Restore moves files away that came since
}

// kept is one file in the list of a saved state.
type kept struct {
	Path   string      `json:"path"` // below root
	Mode   fs.FileMode `json:"mode"`
	UID    int         `json:"uid"`
	GID    int         `json:"gid"`
	SHA256 string      `json:"sha256"`
}

const listFile = "list.json"

func (f fileSet) Name() string { return f.name }

// now lists the regular files that there are.
func (f fileSet) now() ([]string, error) {
	var out []string
	for _, m := range f.match {
		found, err := filepath.Glob(filepath.Join(f.root, m))
		if err != nil {
			return nil, err
		}
		for _, p := range found {
			if st, err := os.Lstat(p); err == nil && st.Mode().IsRegular() {
				out = append(out, p)
			}
		}
	}
	slices.Sort(out)
	return out, nil
}

func (f fileSet) Save(_ context.Context, dir string) error {
	found, err := f.now()
	if err != nil {
		return err
	}
	list := []kept{}
	for i, p := range found {
		k, b, err := f.read(p)
		if err == nil {
			err = durable.WriteFile(filepath.Join(dir, strconv.Itoa(i)), b, 0o600)
		}
		if err != nil {
			return err
		}
		list = append(list, k)
	}
	return writeJSON(filepath.Join(dir, listFile), list)
}

// read gives a file and its line in the list.
func (f fileSet) read(path string) (k kept, b []byte, err error) {
	st, err := os.Lstat(path)
	if err != nil {
		return k, nil, err
	}
	if b, err = os.ReadFile(path); err != nil {
		return k, nil, err
	}
	rel, err := filepath.Rel(f.root, path)
	uid, gid := owner(st)
	sum := sha256.Sum256(b)
	return kept{rel, st.Mode().Perm(), uid, gid, hex.EncodeToString(sum[:])}, b, err
}

func (f fileSet) Restore(_ context.Context, dir string) error {
	var list []kept
	if err := readJSON(filepath.Join(dir, listFile), &list); err != nil {
		return err
	}
	was := map[string]bool{}
	for i, k := range list {
		was[filepath.Join(f.root, k.Path)] = true
		if err := f.restore(k, filepath.Join(dir, strconv.Itoa(i))); err != nil {
			return err
		}
	}
	if !f.exact {
		return nil
	}
	found, err := f.now()
	if err != nil {
		return err
	}
	for _, p := range found {
		if was[p] {
			continue
		}
		// It may be in the other release's form, which this one can't read.
		if err := durable.Rename(p, p+".left-by-change"); err != nil {
			return err
		}
	}
	return nil
}

func (f fileSet) restore(k kept, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != k.SHA256 {
		return fmt.Errorf("%s: got other bytes than were saved of %s; restore that file from a backup", from, k.Path)
	}
	path := filepath.Join(f.root, k.Path)
	if have, _, err := f.read(path); err == nil && have == k {
		return nil
	}
	if err := durable.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := durable.WriteFile(path, b, k.Mode); err != nil {
		return err
	}
	return os.Chown(path, k.UID, k.GID)
}

// ledgerHead keeps the ledger's checkpoint. The ledger itself is never put
// back: it only grows.
type ledgerHead struct{ dir string }

func (h ledgerHead) Name() string { return "ledger" }

// headFile is the ledger's head below its folder, C2SP tlog-checkpoint.
const headFile = "checkpoint"

func (h ledgerHead) Save(_ context.Context, dir string) error {
	b, err := os.ReadFile(filepath.Join(h.dir, headFile))
	if errors.Is(err, fs.ErrNotExist) { // it has never run
		return nil
	}
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, headFile), b, 0o600)
}

func (h ledgerHead) Restore(_ context.Context, dir string) error {
	before, err := os.ReadFile(filepath.Join(dir, headFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	after, err := os.ReadFile(filepath.Join(h.dir, headFile))
	if err != nil {
		return fmt.Errorf("the ledger: %w; it had %d entries before the change", err, headSize(before))
	}
	if headSize(after) < headSize(before) {
		return fmt.Errorf("the ledger in %s has %d entries, before the change it had %d; wanted one that only grows; restore it from a copy", h.dir, headSize(after), headSize(before))
	}
	return nil
}

// headSize is the number of entries that a checkpoint states, in its second
// line; -1 where it has none.
func headSize(b []byte) int64 {
	l := bytes.SplitN(b, []byte("\n"), 3)
	if len(l) < 3 {
		return -1
	}
	n, err := strconv.ParseInt(string(l[1]), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// saveState saves all of it into dir, anew.
func saveState(ctx context.Context, all []Snapshotter, dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, s := range all {
		sub := filepath.Join(dir, s.Name())
		if err := durable.MkdirAll(sub, 0o700); err != nil {
			return err
		}
		if err := s.Save(ctx, sub); err != nil {
			return fmt.Errorf("save %s: %w", s.Name(), err)
		}
	}
	return nil
}

func restoreState(ctx context.Context, all []Snapshotter, dir string) error {
	for _, s := range all {
		if err := s.Restore(ctx, filepath.Join(dir, s.Name())); err != nil {
			return fmt.Errorf("put back %s: %w", s.Name(), err)
		}
	}
	return nil
}
