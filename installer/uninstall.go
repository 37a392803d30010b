package installer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/clawbox/clawbox/appliance/config"
	"golang.org/x/sys/unix"
)

// Removal is what an uninstallation takes and leaves, as data.
type Removal struct {
	Release string  `json:"release"`
	Purge   bool    `json:"purge"`
	Remove  []Place `json:"remove"` // in this order
	Stays   []Place `json:"stays"`

	l     Layout
	last  head
	start string // how it was started, as in Answers
	state string // state folder that names what the kernel holds
}

// Place is one file or folder, and what it is.
type Place struct {
	Path string `json:"path"`
	What string `json:"what"`
}

// belongings of an installation, in the order in which they go: first what
// starts it, last what says that there was one. kept stay without purge.
func (l Layout) belongings() []struct {
	Place
	kept bool
} {
	type row = struct {
		Place
		kept bool
	}
	goes := func(p, what string) row { return row{Place{p, what}, false} }
	stays := func(p, what string) row { return row{Place{p, what}, true} }
	var first, last []row
	take, leave := l.nodeBelongings()
	for _, p := range take {
		first = append(first, row{p, false})
	}
	for _, p := range leave {
		last = append(last, row{p, true})
	}
	return append(append(first, []row{
		goes(l.Wants(), "start at boot"), goes(l.Unit(), "the systemd unit"),
		goes(l.Command(), "the command"), goes(l.Current(), "the active release"), goes(l.Opt(), "programs and policies of all releases"),
		goes(l.at("var/lib/clawbox/layers"), "unpacked images"), goes(l.at("var/lib/clawbox/engine"), "the model engine's files"),
		goes(l.at("var/lib/clawbox/engine.log"), "the model engine's log"), goes(l.at("var/lib/clawbox/sandbox.lock"), "a lock"),
		goes(l.at("var/lib/clawbox/running"), "the mark of a run"), goes(l.Store(), "images and models"), goes(l.Run(), "sockets"),
		stays(l.at("var/lib/clawbox/agents"), "agents: records, files, snapshots"), stays(l.at("var/lib/clawbox/uids.json"), "agents' user ids"),
		stays(l.at("var/lib/clawbox/egress"), "answers of operators that stand"),
		stays(l.at("var/lib/clawbox/ledger"), "the ledger"), stays(l.Receipts(), "receipts, which the ledger refers to"),
		stays(l.Keys(), "private keys"), stays(l.LedgerV(), "the ledger's public key"),
		stays(l.Trust(), "the publisher's keys"), stays(l.Root(), "the publisher's root"),
		goes(l.Access(), "the appliance's account on the cluster"), goes(l.ContainerdTemplate(), "what named the runtime of agents' pods to K3s"),
		goes(l.Install(), "the installer's journals and kept states"), goes(l.Config(), "the configuration"),
	}...), last...)
}

// NewRemoval says what an uninstallation below root would do.
func NewRemoval(root string, purge bool) (Removal, error) {
	l := Layout{root}
	r := Removal{Purge: purge, l: l, start: "none", state: l.State()}
	if err := l.settled(); err != nil {
		return r, err
	}
	if h, err := replay(l.Journal()); err != nil {
		return r, err
	} else if h.last != nil {
		r.last, r.Release = *h.last, h.last.String()
	}
	if there(l.Unit()) {
		r.start = "systemd"
	}
	for _, b := range l.belongings() {
		switch {
		case !there(b.Path):
		case b.kept && !purge:
			r.Stays = append(r.Stays, b.Place)
		default:
			r.Remove = append(r.Remove, b.Place)
		}
	}
	others, err := l.others()
	if err != nil {
		return r, err
	}
	if purge {
		r.Remove = append(r.Remove, others...)
	} else {
		r.Stays = append(r.Stays, others...)
	}
	if len(r.Remove) == 0 {
		return r, fmt.Errorf("nothing of an installation below %s; wanted one that 'clawbox install' made", root)
	}
	return r, r.moved()
}

// others are what else lies in the appliance's folders: moved aside by a
// restore, or put there by somebody.
func (l Layout) others() (out []Place, err error) {
	known := map[string]bool{}
	for _, b := range l.belongings() {
		known[b.Path] = true
	}
	for _, dir := range []string{l.State(), l.Etc()} {
		es, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range es {
			if p := filepath.Join(dir, e.Name()); !known[p] {
				out = append(out, Place{p, "not of the installation itself"})
			}
		}
	}
	return out, nil
}

// moved finds what the operator has put elsewhere: that is never removed.
func (r *Removal) moved() error {
	c, err := config.Load(r.l.Config())
	if err != nil { // gone already, or broken: the fixed places count
		return nil
	}
	d := config.Default(r.l.Prefix).Paths
	r.state = c.Paths.State
	for _, p := range [][2]string{{c.Paths.Store, d.Store}, {c.Paths.State, d.State}, {c.Paths.Ledger, d.Ledger}, {c.Paths.Keys, d.Keys}, {c.Paths.Receipts, d.Receipts}} {
		if p[0] != p[1] {
			r.Stays = append(r.Stays, Place{p[0], "named in the configuration in place of " + p[1]})
		}
	}
	return nil
}

// Print writes the removal for people.
func (r Removal) Print(w io.Writer) error {
	pr := &printer{w: w}
	for _, p := range r.Remove {
		pr.f("remove %-40s %s\n", p.Path, p.What)
	}
	for _, p := range r.Stays {
		pr.f("stays  %-40s %s\n", p.Path, p.What)
	}
	return pr.err
}

// RemoveEnv is what Remove works with. Only Operator has no zero value.
type RemoveEnv struct {
	Operator string
	Service  Service                     // nil: ServiceOf
	Tell     func(context.Context) error // has a running appliance record its last entry
	Free     func() error                // lets go of what a guard that was killed has pinned
}

// Remove carries r out. Cut off and given again, it goes on.
func Remove(ctx context.Context, r Removal, e RemoveEnv) error {
	if err := ValidOperator(e.Operator); err != nil {
		return err
	}
	svc := e.Service
	if svc == nil {
		a := Answers{Root: r.l.Prefix, Start: r.start}
		if r.l.hasNode() {
			a.Profile = "cluster"
		}
		svc = ServiceOf(a)
	}
	if there(r.l.Install()) {
		unlock, err := lock(r.l.Lock())
		if err != nil {
			return err
		}
		defer unlock()
	}
	if err := r.record(ctx, e, svc); err != nil {
		return err
	}
	if err := svc.Stop(ctx); err != nil {
		return err
	}
	if err := r.l.endNode(ctx); err != nil {
		return err
	}
	if e.Free != nil {
		if err := e.Free(); err != nil {
			return err
		}
	}
	if err := r.freed(); err != nil {
		return err
	}
	for _, p := range r.Remove {
		if err := removeAll(p.Path); err != nil {
			return fmt.Errorf("remove %s: %w; correct the cause and give the same command again", p.Path, err)
		}
	}
	for _, d := range []string{r.l.Receipts(), r.l.State(), r.l.Etc()} {
		os.Remove(d) // only where it is empty
	}
	r.l.emptyParents()
	if n, ok := svc.(withNode); ok {
		svc = n.Service
	}
	if s, ok := svc.(Systemd); ok {
		return s.ctl(ctx, "daemon-reload")
	}
	return nil
}

// record leaves the last entry, and has a running appliance write it.
func (r Removal) record(ctx context.Context, e RemoveEnv, svc Service) error {
	if r.last.Name == "" || r.Purge {
		return nil // nothing finished to speak of, or nobody to read it
	}
	n, err := r.l.lastEvent()
	if err != nil {
		return err
	}
	c := Change{ID: n + 1, Kind: Uninstall, From: r.last, To: r.last, Operator: e.Operator}
	if err := r.l.tellLedger(c, "removed", ""); err != nil || e.Tell == nil || !svc.Running(ctx) {
		return err
	}
	return e.Tell(ctx)
}

// freed refuses while something is mounted below what goes: removing would go
// on into an agent's disk. What else the kernel holds is let go.
func (r Removal) freed() error {
	p := config.Paths{State: r.state, Run: r.l.Run()}
	if err := unix.Unmount(p.Pin(), unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("umount %s: %w", p.Pin(), err)
	}
	if err := os.RemoveAll(p.HostPin()); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	ms, err := mountsBelow(r.l.State(), r.l.Run())
	if err != nil {
		return err
	}
	if len(ms) > 0 {
		return fmt.Errorf("got %s still mounted; wanted nothing below %s and %s; umount it, or start and stop the appliance once, then give the same command again", list(ms), r.l.State(), r.l.Run())
	}
	for _, d := range Cgroups(p) {
		_ = unix.Rmdir(d) // one that still has processes stays, and doctor names it
	}
	return nil
}

// Cgroups are the folders that agents' cgroups have left, deepest first.
func Cgroups(p config.Paths) (out []string) {
	var found []string
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/", "/sys/fs/cgroup/*/*/"} {
		ds, _ := filepath.Glob(pattern + p.Cgroup()) // the pattern is good
		found = append(found, ds...)
	}
	for _, d := range found {
		subs, _ := filepath.Glob(d + "/*/cgroup.procs")
		for _, s := range subs {
			out = append(out, filepath.Dir(s))
		}
		out = append(out, d)
	}
	return out
}

// mountsBelow lists the mount points strictly below dirs.
func mountsBelow(dirs ...string) (out []string, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		fs := strings.Fields(s.Text())
		if len(fs) > 4 && slices.ContainsFunc(dirs, func(d string) bool { return strings.HasPrefix(fs[4], d+"/") }) {
			out = append(out, fs[4])
		}
	}
	return out, nil
}
