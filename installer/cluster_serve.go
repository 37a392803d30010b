package installer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/clawbox/clawbox/airgap-manifests/k3s"
	"github.com/clawbox/clawbox/internal/durable"
)

// NodeStart is the K3s that a start enters.
type NodeStart struct {
	Program string   // to be executed, with these
	Args    []string // the program's name first
	Env     []string
}

// BootNode decides which release's K3s a start enters, as Boot does for the
// appliance, and waits while that is not decided: the datastore may be about to
// be put back.
//
//   - No change is open: the K3s of the installed release.
//   - A release is being tried: the K3s of that release, for as long as its try
//     has not failed. It may end and start again meanwhile.
//   - Anything else is the installer's, or Boot's, to end first; say hears of it.
func BootNode(ctx context.Context, root, role string, say func(string)) (NodeStart, error) {
	l := Layout{root}
	for waits := ""; ; {
		slot, why, err := l.nodeSlot()
		if err != nil {
			return NodeStart{}, err
		}
		if slot != "" {
			return l.nodeStart(slot, role)
		}
		if why != waits && say != nil {
			say(why)
		}
		waits = why
		select {
		case <-ctx.Done():
			return NodeStart{}, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// nodeSlot is the slot whose K3s may run now; "" and why while none may.
func (l Layout) nodeSlot() (slot, why string, err error) {
	current, err := filepath.EvalSymlinks(l.Current())
	if err != nil {
		return "", "", fmt.Errorf("no release is active: %w; run 'clawbox install' first", err)
	}
	if !there(l.Changes()) {
		return current, "", nil
	}
	unlock, err := lock(l.Lock())
	watched := errors.Is(err, ErrBusy)
	if err != nil && !watched {
		return "", "", err
	}
	if unlock != nil {
		defer unlock()
	}
	c, err := replayChanges(l.Changes())
	switch {
	case err != nil || c.open == nil:
		return current, "", err
	case watched && there(l.Tried()) && !c.committed && !c.failed:
		return l.slotOf(c.open.To), "", nil
	case watched && !c.stopped, !watched && !c.committed && !c.touched && !there(l.Tried()):
		return current, "", nil
	case watched:
		return "", fmt.Sprintf("the %s at work decides which K3s runs: waiting for it", *c.open), nil
	}
	return "", fmt.Sprintf("the %s was cut off: waiting until the appliance's start has ended it ('clawbox serve' or systemctl start clawbox)", *c.open), nil
}

// k3sNames are those by which a K3s from source calls itself; its release
// binary unpacks them. Source: K3s's cmd/k3s and pkg/agent/containerd.
var k3sNames = []string{"containerd", "crictl", "ctr", "kubectl"}

// nodeStart makes a slot's K3s ready to be executed.
func (l Layout) nodeStart(slot, role string) (NodeStart, error) {
	bin := filepath.Join(slot, "bin")
	path := bin + ":" + filepath.Join(bin, "cni")
	if there(filepath.Join(slot, runcPath)) { // as runtime: one from source
		names, err := l.nodeNames(filepath.Join(slot, k3sPath))
		if err != nil {
			return NodeStart{}, err
		}
		path += ":" + names
	}
	program := filepath.Join(slot, k3sPath)
	env := slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "PATH=") })
	env = append(env, "PATH="+path+":"+cmp.Or(os.Getenv("PATH"), "/usr/sbin:/usr/bin:/sbin:/bin"))
	return NodeStart{program, []string{program, role}, env}, nil
}

// nodeNames makes the folder of the names by which a K3s calls itself.
func (l Layout) nodeNames(program string) (string, error) {
	dir := filepath.Join(l.Run(), "k3s")
	if err := durable.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, n := range k3sNames {
		if _, err := ensureLink(filepath.Join(dir, n), program); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// nodePid is the file with the process of the K3s that runs: its number, and
// when it began, by which no later process is taken for it.
func (l Layout) nodePid() string { return filepath.Join(l.Run(), "k3s.pid") }

// Enter writes down who this process is and becomes K3s. It returns only an error.
func (s NodeStart) Enter(root string, exec func(program string, args, env []string) error) error {
	l := Layout{root}
	st, err := procStat(os.Getpid())
	if err == nil {
		err = durable.MkdirAll(l.Run(), 0o755)
	}
	if err == nil { // execve keeps both
		err = durable.WriteFile(l.nodePid(), fmt.Appendf(nil, "%d %s\n", os.Getpid(), st[statBegan]), 0o644)
	}
	if err != nil {
		return err
	}
	return exec(s.Program, s.Args, s.Env)
}

// node is the process of the K3s that runs, 0 when none does.
func (l Layout) node() int {
	b, err := os.ReadFile(l.nodePid())
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) != 2 {
		return 0
	}
	pid, err := strconv.Atoi(f[0])
	if err != nil {
		return 0
	}
	if st, err := procStat(pid); err != nil || st[statState] == "Z" || st[statBegan] != f[1] {
		return 0
	}
	return pid
}

// nodeUnit is K3s's unit.
const nodeUnit = "k3s.service"

// nodeService is the K3s of an installation. In the foreground it is a child of
// this process, as the appliance is.
func nodeService(a Answers) Service {
	if a.Start == "systemd" {
		return Systemd{Unit: nodeUnit}
	}
	l := a.layout()
	return &Foreground{Layout: l, args: []string{"cluster", "serve", a.Cluster.Role}, log: l.in("trial-k3s.log"), other: func(context.Context) int { return l.node() }}
}

// withNode is the appliance, whose registry has the images, and K3s beside it,
// by which the appliance ends its agents' pods in order.
type withNode struct {
	Service
	node Service
}

func (s withNode) Start(ctx context.Context) error {
	if err := s.Service.Start(ctx); err != nil {
		return err
	}
	return s.node.Start(ctx)
}

func (s withNode) Stop(ctx context.Context) error {
	return errors.Join(s.Service.Stop(ctx), s.node.Stop(ctx))
}

// withoutNode runs f while no K3s does, if the profile has one. Only systemd
// starts it again; who looks after one in the foreground does it.
func (l Layout) withoutNode(ctx context.Context, profile string, f func() error) error {
	if profile != "cluster" {
		return f()
	}
	_, r, err := l.installed()
	if err != nil {
		return err
	}
	a, err := LoadAnswers(l.Answers(), r)
	if err != nil {
		return err
	}
	node := nodeService(a)
	if err := node.Stop(ctx); err != nil {
		return err
	}
	if err := f(); err != nil || !node.Stays() {
		return err
	}
	return node.Start(ctx)
}

// manifests that a release places for K3s to apply carry this prefix.
const ownManifest = "clawbox-"

// addons are the manifests of ours that K3s has to have applied, by the name
// that it gives them, and their SHA-256.
func (l Layout) addons() (map[string]string, error) {
	found, err := filepath.Glob(l.at(k3s.Manifests + "/" + ownManifest + "*.yaml"))
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, p := range found {
		sum, err := sumOf(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		name, _, _ := strings.Cut(filepath.Base(p), ".")
		out[name] = sum
	}
	return out, nil
}
