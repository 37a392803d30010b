package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/egress"
	"github.com/clawbox/clawbox/appliance/gate"
	"github.com/clawbox/clawbox/appliance/gate/settings"
	"github.com/clawbox/clawbox/appliance/kube"
)

const agentsNamespace = "clawbox-agents"

// node is a cluster of one: what kubelet, containerd and its shim do with a
// pod, in a few lines, by the real clawbox-runc and runc.
type node struct {
	t    testing.TB
	dir  string
	runc string
	// asks changes what containerd asks the runtime for; may be nil.
	asks      func(*specs.Spec)
	namespace string // of its pods
	stop      func() // ends the supervisor's side

	mu    sync.Mutex
	pods  map[string]*kube.Pod
	up    map[string][]string // pod → its containers
	wired map[string]*exec.Cmd
	said  []string // what the runtime answered when it refused
}

// onNode makes a bench whose agents are pods.
func onNode(t testing.TB) (*bench, *node) {
	t.Helper()
	b := newBench(t)
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Skipf("pods need runc, and this host has none: %v (apt-get install runc)", err)
	}
	n := &node{t: t, namespace: agentsNamespace, dir: t.TempDir(), runc: runc, pods: map[string]*kube.Pod{}, up: map[string][]string{}, wired: map[string]*exec.Cmd{}}
	b.pods = OpenPods(b.l, PodOptions{Cluster: n, Node: "here", Registry: "127.0.0.1:5000", Isolate: egress.Isolate})
	b.image.Digest.Algorithm, b.image.Digest.Hex = "sha256", strings.Repeat("ab", 32)
	n.gate(b.pods.Gate())
	if err := copyFile(programs.runtime, n.runtime()); err != nil {
		t.Fatal(err)
	}
	set, err := settings.Settings{Socket: n.dir + "/gate.sock", Runc: runc, Namespace: agentsNamespace}.Encode()
	if err == nil {
		err = os.WriteFile(settings.File(n.runtime()), set, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.clear)
	return b, n
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o755)
}

func (n *node) runtime() string { return n.dir + "/clawbox-runc" }

// gate serves the supervisor's side.
func (n *node) gate(h gate.Handler) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: n.dir + "/gate.sock"})
	if err != nil {
		n.t.Fatal(err)
	}
	n.stop = func() { l.Close() }
	n.t.Cleanup(n.stop)
	go gate.Serve(l, h)
}

// call runs the runtime as containerd's shim does.
func (n *node) call(args ...string) error {
	log := filepath.Join(n.dir, "log-"+rand.Text())
	c := exec.Command(n.runtime(), append([]string{"--root", n.dir + "/state", "--log", log, "--log-format", "json"}, args...)...)
	// A file: what runs in a container holds it open.
	f, err := os.Create(log + ".out")
	if err != nil {
		return err
	}
	defer f.Close()
	c.Stdout, c.Stderr = f, f
	if err = c.Run(); err == nil {
		return nil
	}
	out, _ := os.ReadFile(f.Name())
	b, _ := os.ReadFile(log)
	err = fmt.Errorf("%v: %w: %s %s", args, err, out, b)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.said = append(n.said, err.Error())
	return err
}

func (n *node) Create(_ context.Context, p *kube.Pod) (*kube.Pod, error) {
	made := *p
	made.Metadata.UID = rand.Text()
	n.mu.Lock()
	n.pods[p.Metadata.Name] = &made
	n.mu.Unlock()
	go n.run(&made)
	return &made, nil
}

func (n *node) Get(_ context.Context, name string) (*kube.Pod, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.pods[name]; p != nil {
		out := *p
		return &out, nil
	}
	return nil, &kube.Error{Code: 404}
}

func (n *node) List(_ context.Context, key, value string) (out []kube.Pod, _ error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.pods {
		if p.Metadata.Labels[key] == value {
			out = append(out, *p)
		}
	}
	return out, nil
}

func (n *node) Delete(_ context.Context, name, uid string) error {
	n.mu.Lock()
	p, up := n.pods[name], n.up[name]
	delete(n.pods, name)
	delete(n.up, name)
	cmd := n.wired[name]
	delete(n.wired, name)
	n.mu.Unlock()
	if p == nil {
		return nil
	}
	if p.Metadata.UID != uid {
		return fmt.Errorf("pod %s has UID %s", name, p.Metadata.UID)
	}
	for _, id := range slices.Backward(up) {
		n.end(id)
	}
	if cmd != nil {
		cmd.Process.Kill()
		cmd.Wait()
	}
	left, err := filepath.Glob("/sys/fs/cgroup/*/clawbox-node-" + uid)
	for _, d := range append(left, "/sys/fs/cgroup/clawbox-node-"+uid) {
		if rerr := os.Remove(d); rerr != nil && !os.IsNotExist(rerr) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}

// end is what a shim does with a container that ends: bundles stand below dir.
func (n *node) end(id string) {
	exec.Command(n.runtime(), "--root", n.dir+"/state", "delete", "--force", id).Run()
	unix.Unmount(filepath.Join(n.dir, id, "rootfs"), unix.MNT_DETACH)
}

func (n *node) clear() {
	for name, p := range n.pods {
		n.Delete(context.Background(), name, p.Metadata.UID)
	}
}

// run is kubelet: a sandbox, a container in it, and its start. What fails is in
// the pod's status, as CreateContainerError is.
func (n *node) run(p *kube.Pod) {
	err := n.sandbox(p)
	if err == nil {
		err = n.container(p)
	}
	if err == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var st kube.ContainerStatus
	st.State.Waiting = &kube.Reason{Reason: "CreateContainerError", Message: err.Error()}
	p.Status.ContainerStatuses = []kube.ContainerStatus{st}
}

// wire makes the pod's network: a namespace with two interfaces besides lo.
func (n *node) wire(p *kube.Pod) (string, error) {
	cmd := exec.Command(programs.probe, "sleep=600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	n.mu.Lock()
	n.wired[p.Metadata.Name] = cmd
	n.mu.Unlock()
	at := fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)
	in := netlink.NsPid(cmd.Process.Pid) // both ends: nothing of the host's is touched
	eth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", Flags: net.FlagUp, Namespace: in}, PeerName: "eth1", PeerNamespace: in}
	return at, netlink.LinkAdd(eth)
}

// base is the config.json that containerd makes for every container.
func (n *node) base(p *kube.Pod, id, kind string) *specs.Spec {
	return &specs.Spec{
		Version: "1.0.2", Root: &specs.Root{Path: "rootfs"}, Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755"}},
		},
		Process: &specs.Process{
			Args: []string{"/bin/probe", "sleep=600"}, Cwd: "/", Env: []string{"SECRET=token"},
			Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_NET_RAW"}, Effective: []string{"CAP_NET_RAW"}, Permitted: []string{"CAP_NET_RAW"}},
		},
		Hooks: &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/false"}}},
		Linux: &specs.Linux{CgroupsPath: "/clawbox-node-" + p.Metadata.UID + "/" + id, Resources: &specs.LinuxResources{}},
		Annotations: map[string]string{
			gate.KindOf: kind, gate.NamespaceOf: n.namespace, gate.PodOf: p.Metadata.UID, "io.kubernetes.cri.sandbox-name": p.Metadata.Name,
			gate.ImageOf: p.Spec.Containers[0].Image,
		},
	}
}

func (n *node) sandbox(p *kube.Pod) error {
	ns, err := n.wire(p)
	if err != nil {
		return err
	}
	id := "hold-" + p.Metadata.Name
	s := n.base(p, id, gate.Sandbox)
	s.Hooks = nil
	s.Hostname = p.Metadata.Name
	for t, path := range map[specs.LinuxNamespaceType]string{"pid": "", "ipc": "", "uts": "", "mount": "", "network": ns} {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
	}
	_, err = n.bring(p, id, s)
	return err
}

func (n *node) container(p *kube.Pod) error {
	id := "agent-" + p.Metadata.Name
	s := n.base(p, id, gate.Container)
	hold := n.pid("hold-" + p.Metadata.Name)
	for t, name := range map[specs.LinuxNamespaceType]string{"pid": "", "ipc": "ipc", "uts": "uts", "mount": "", "network": "net"} {
		ns := specs.LinuxNamespace{Type: t}
		if name != "" {
			ns.Path = "/proc/" + hold + "/ns/" + name
		}
		s.Linux.Namespaces = append(s.Linux.Namespaces, ns)
	}
	if n.asks != nil {
		n.asks(s)
	}
	_, err := n.bring(p, id, s)
	return err
}

// pid is the number of a container's first process.
func (n *node) pid(id string) string {
	b, err := os.ReadFile(filepath.Join(n.dir, id, "pid"))
	if err != nil {
		n.t.Error(err)
	}
	return string(b)
}

// bring is create and start. The root is an overlay of the image's layers.
func (n *node) bring(p *kube.Pod, id string, s *specs.Spec) (string, error) {
	dir := filepath.Join(n.dir, id)
	for _, d := range []string{"rootfs", "upper", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return dir, err
		}
	}
	img, err := shared()
	if err != nil {
		return dir, err
	}
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", strings.Join(img.Layers, ":"), dir, dir)
	if err := unix.Mount("overlay", dir+"/rootfs", "overlay", 0, opts); err != nil {
		return dir, err
	}
	n.mu.Lock()
	n.up[p.Metadata.Name] = append(n.up[p.Metadata.Name], id)
	n.mu.Unlock()
	b, err := json.Marshal(s)
	if err == nil {
		err = os.WriteFile(dir+"/config.json", b, 0o600)
	}
	if err == nil {
		err = n.call("create", "--bundle", dir, "--pid-file", dir+"/pid", id)
	}
	if err != nil {
		return dir, err
	}
	return dir, n.call("start", id)
}

// heard says whether the runtime has refused something in these words.
func (n *node) heard(words string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.said, func(s string) bool { return strings.Contains(s, words) })
}

// names of what runs, for messages.
func (n *node) names() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.pods))
}
