package backup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/installer"
)

// part is one kind of state.
type part struct {
	name   string
	secret bool
	root   func(config.Config, installer.Layout) string
	want   func(rel string) bool // of the files below root; nil: all
	// whole parts are exchanged as folders; of the others each file takes its
	// place. Of one that only informs nothing does.
	how placing
}

type placing int

const (
	each placing = iota
	whole
	informs
)

// ofCluster are the parts that are K3s's.
var ofCluster = []string{"datastore", "node-keys"}

// parts in the order in which they are restored: the ledger before the keys that
// go on with it, since a restore that was cut off knows by the key in place that
// the ledger may still be another one; receipts last, since the appliance looks at
// them first.
var parts = []part{
	{"ledger", false, func(c config.Config, _ installer.Layout) string { return c.Paths.Ledger }, nil, whole},
	{"keys", true, func(c config.Config, _ installer.Layout) string { return c.Paths.Keys }, nil, each},
	{"credentials", true, func(config.Config, installer.Layout) string { return "/" }, nil, each},
	{"etc", false, func(_ config.Config, l installer.Layout) string { return l.Etc() }, nil, each},
	{"agents", false, func(c config.Config, _ installer.Layout) string { return filepath.Join(c.Paths.State, "agents") }, agentFile, each},
	{"state", false, func(c config.Config, _ installer.Layout) string { return c.Paths.State }, func(p string) bool { return p == "uids.json" }, each},
	{"approvals", false, func(c config.Config, _ installer.Layout) string { return filepath.Join(c.Paths.State, "egress") }, nil, each},
	{"datastore", false, func(_ config.Config, l installer.Layout) string { return l.Datastore() }, nil, whole},
	{"node-keys", true, func(_ config.Config, l installer.Layout) string { return filepath.Join("/", l.Prefix) }, nil, each},
	{"policies", false, func(c config.Config, _ installer.Layout) string { return filepath.Join(c.Paths.Slot, "policies") }, nil, informs},
	{"receipts", false, func(c config.Config, _ installer.Layout) string { return c.Paths.Receipts }, nil, whole},
}

// agentFile is an agent's record, or one of its snapshots' files.
func agentFile(rel string) bool {
	f := strings.Split(rel, "/")
	return len(f) == 2 && f[1] == "agent.json" || len(f) == 4 && f[1] == "snapshots" && !strings.HasPrefix(f[2], ".")
}

// find lists the files of a part, and what they are below.
func (p part) find(w *writing) (root string, found []string, err error) {
	root = p.root(w.cfg, w.l)
	switch p.name {
	case "credentials":
		return root, secretFiles(w.cfg), nil
	case "node-keys":
		found, err = w.l.NodeKeys()
		return root, found, err
	}
	at := root
	if p.name == "ledger" || p.name == "datastore" {
		at = filepath.Join(w.copy, p.name)
		root = at
	}
	err = filepath.WalkDir(at, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if d.IsDir() && p.name == "state" && path != at {
			return fs.SkipDir
		}
		rel, _ := filepath.Rel(at, path)
		if d.Type().IsRegular() && !strings.HasPrefix(d.Name(), ".") && (p.want == nil || p.want(rel)) {
			found = append(found, path)
		}
		return nil
	})
	return root, found, err
}

// secretFiles are those that a configuration names, and that there are.
func secretFiles(c config.Config) (out []string) {
	for _, u := range c.Upstreams {
		out = append(out, u.KeyFile)
	}
	for _, k := range c.Credentials {
		out = append(out, k.KeyFile)
	}
	out = slices.DeleteFunc(out, func(p string) bool {
		st, err := os.Stat(p)
		return p == "" || err != nil || !st.Mode().IsRegular()
	})
	slices.Sort(out)
	return slices.Compact(out)
}
