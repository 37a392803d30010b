package installer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/clawbox/clawbox/airgap-manifests/k3s"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nodeMark is in the first line of a configuration of K3s that is ours.
const nodeMark = "written by clawbox"

// hasNode says whether a K3s that clawbox placed is below the root.
func (l Layout) hasNode() bool {
	f, err := os.Open(l.at(k3s.ConfigDir + "/config.yaml"))
	if err != nil {
		return false
	}
	defer f.Close()
	first, _ := bufio.NewReader(f).ReadString('\n')
	return strings.Contains(first, nodeMark)
}

// nodeBelongings are K3s's, in the order in which they go. What a cluster is, and
// what its tenants wrote, stays without purge, as agents' files do; config.yaml
// stays with it, by which a later installation knows the cluster as its own.
func (l Layout) nodeBelongings() (goes, stays []Place) {
	if !l.hasNode() {
		return nil, nil
	}
	goes = []Place{{l.k3sWants(), "K3s's start at boot"}, {l.k3sUnit(), "K3s's unit"}}
	for _, n := range append([]string{"k3s"}, k3sNames...) {
		if p := filepath.Join(filepath.Dir(l.Command()), n); linkTo(p, l.slotK3s()) {
			goes = append(goes, Place{p, "a name of K3s's"})
		}
	}
	config := l.at(k3s.ConfigDir + "/config.yaml")
	found, _ := filepath.Glob(l.at(k3s.ConfigDir + "/*")) // the pattern is good
	for _, p := range found {
		if p != config {
			goes = append(goes, Place{p, "K3s's settings"})
		}
	}
	for _, p := range [][2]string{
		{"etc/sysctl.d/90-clawbox-k3s.conf", "K3s's kernel settings"},
		{"etc/modules-load.d/clawbox-k3s.conf", "K3s's kernel modules"},
		{"var/lib/rancher/k3s/agent", "containers and their images"},
		{"var/lib/rancher/k3s/data", "K3s's own programs"},
		{"var/lib/kubelet", "the kubelet's files"},
		{"var/lib/cni", "addresses of pods"},
		{"var/log/pods", "logs of pods"},
		{"var/log/containers", "names of those"},
		{"run/k3s", "K3s's sockets"},
		{"run/flannel", "the pod network's file"},
		{"var/lib/clawbox/models", "models as the engines read them"},
	} {
		goes = append(goes, Place{l.at(p[0]), p[1]})
	}
	stays = []Place{
		{l.at("var/lib/rancher/k3s/server"), "the cluster: its objects, certificates and token"},
		{l.at("var/lib/rancher/k3s/storage"), "tenants' volumes"},
		{l.at("etc/rancher/node"), "this node's password on the cluster"},
		{config, "how this node was set up"},
	}
	return goes, stays
}

// slotK3s is the program to which the names lead.
func (l Layout) slotK3s() string {
	p, _ := filepath.EvalSymlinks(filepath.Join(l.Current(), k3sPath)) // "": no link leads there
	return p
}

// endNode ends what a K3s that was stopped leaves: containers run on without it,
// and their mounts, interfaces and packet filter rules stay. K3s's own
// k3s-killall.sh does the same.
func (l Layout) endNode(ctx context.Context) error {
	if !l.hasNode() {
		return nil
	}
	if err := killShims(l.at("run/k3s/containerd/containerd.sock")); err != nil {
		return err
	}
	for _, d := range []string{"run/k3s", "var/lib/kubelet", "run/netns", "var/lib/rancher/k3s"} {
		if err := unmountBelow(l.at(d)); err != nil {
			return err
		}
	}
	if l.Prefix != "/" {
		return nil // another system's folders; what follows is this one's
	}
	return errors.Join(podLinks(), podRules(ctx))
}

// killShims ends the containers of the containerd that listens there: its shims
// and all that they have started.
func killShims(socket string) error {
	parents := map[int][]int{}
	var shims []int
	found, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, p := range found {
		pid, _ := strconv.Atoi(filepath.Base(p))
		if st, err := procStat(pid); err == nil {
			of, _ := strconv.Atoi(st[statParent])
			parents[of] = append(parents[of], pid)
		}
		b, err := os.ReadFile(p + "/cmdline")
		args := strings.Split(string(b), "\x00")
		if err == nil && strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") && slices.Contains(args, socket) {
			shims = append(shims, pid)
		}
	}
	for len(shims) > 0 {
		pid := shims[0]
		shims = append(shims[1:], parents[pid]...)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end the container's process %d: %w", pid, err)
		}
	}
	return nil
}

// unmountBelow lets go of what is mounted below dir, the deepest first.
func unmountBelow(dir string) error {
	ms, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	slices.SortFunc(ms, func(a, b string) int { return len(b) - len(a) })
	for _, m := range ms {
		// Lazily: a process that was killed just now may still have it.
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("umount %s: %w", m, err)
		}
	}
	return nil
}

// podLinks removes the pods' bridge, and the interfaces on it.
func podLinks() error {
	br, err := netlink.LinkByName("cni0")
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	all, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, x := range append(all, br) {
		if x.Attrs().MasterIndex == br.Attrs().Index || x == br {
			if err := netlink.LinkDel(x); err != nil && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("remove the interface %s: %w", x.Attrs().Name, err)
			}
		}
	}
	return nil
}

// podRules takes K3s's rules out of the packet filter, where there is a program
// for it; without one they are gone with the next boot.
func podRules(ctx context.Context) error {
	for _, name := range []string{"iptables", "ip6tables"} {
		save, err := exec.LookPath(name + "-save")
		if errors.Is(err, exec.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		out, err := exec.CommandContext(ctx, save).Output()
		if err != nil {
			continue // this kernel has none of them
		}
		var keep bytes.Buffer
		had := false
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "KUBE-") || strings.Contains(line, "CNI-") || strings.Contains(strings.ToLower(line), "flannel") {
				had = true
				continue
			}
			keep.WriteString(line)
		}
		if !had {
			continue
		}
		cmd := exec.CommandContext(ctx, name+"-restore")
		cmd.Stdin = &keep
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s-restore: %w: %s", name, err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// emptyParents removes folders of K3s's that nothing is in any more.
func (l Layout) emptyParents() {
	for _, d := range []string{"etc/rancher/k3s", "etc/rancher", "var/lib/rancher/k3s", "var/lib/rancher"} {
		if err := os.Remove(l.at(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			continue // only where it is empty
		}
	}
}
