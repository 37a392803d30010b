package k3shost

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/airgap-manifests/k3s"
)

// K3s says how to run K3s on a machine.
type K3s struct {
	Version string     // which of the machine's artifacts, such as "1.35"
	Images  k3s.Images // k3s.SourceImages for those of `make k3s`
	Server  *Cluster   // an agent joins it; nil: this is a server
	Exempt  []string   // see k3s.Node

	// Placed leaves the node's files alone: an installer has put them there.
	Placed bool
}

// Cluster is a K3s that runs on a machine.
type Cluster struct {
	M       *Machine
	Version string
	cmd     *exec.Cmd
	log     *os.File
	done    chan struct{}
	err     error // once done is closed
}

// RegistryAddr is where the node's registry is expected: listen there before
// StartK3s.
const RegistryAddr = "127.0.0.1:5000"

// LogFile is K3s's output, in the machine's folder.
const LogFile = "/var/log/k3s.log"

// StartK3s writes the node's files and starts K3s. It does not wait for it.
func (m *Machine) StartK3s(ctx context.Context, o K3s) (*Cluster, error) {
	c := &Cluster{M: m, Version: o.Version, done: make(chan struct{})}
	role := k3s.Server
	if o.Server != nil {
		role = k3s.Agent
	}
	if _, err := os.Stat(filepath.Join(m.Artifacts, o.Version, "bin/k3s")); m.Artifacts == "" || err != nil {
		return nil, fmt.Errorf("k3shost: no K3s %s in the artifacts %q (%w); run: make k3s", o.Version, m.Artifacts, err)
	}
	if !o.Placed {
		if err := m.place(role, o); err != nil {
			return nil, fmt.Errorf("k3shost: %w", err)
		}
	}
	var err error
	if c.log, err = os.OpenFile(m.Path(LogFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, err
	}
	c.cmd = m.Command(context.WithoutCancel(ctx), c.bin("k3s"), string(role))
	c.cmd.Env = append(c.cmd.Env, c.env()...)
	c.cmd.Stdout, c.cmd.Stderr = c.log, c.log
	if err := c.cmd.Start(); err != nil {
		return nil, errors.Join(err, c.log.Close())
	}
	go func() {
		c.err = c.cmd.Wait()
		c.log.Close()
		close(c.done)
	}()
	return c, nil
}

func (c *Cluster) bin(name string) string { return "/k3s/" + c.Version + "/bin/" + name }

// env has K3s find runc, its shim and the CNI plugins.
func (c *Cluster) env() []string {
	return []string{"PATH=/k3s/" + c.Version + "/bin:" + path, "KUBECONFIG=" + k3s.Kubeconf}
}

// place writes what package k3s and the artifact have for this node.
func (m *Machine) place(role k3s.Role, o K3s) error {
	n := k3s.Node{
		Role: role, Name: m.Name, IP: m.Addr, Iface: "eth0", Registry: "http://" + RegistryAddr, Images: o.Images, Exempt: o.Exempt,
		Cgroup1: Cgroup1(), NoSysResource: LacksSysResource(),
	}
	if o.Server != nil {
		n.Server = fmt.Sprintf("https://%s:6443", o.Server.M.Addr)
		token, err := os.ReadFile(o.Server.M.Path(k3s.DataDir + "/server/token"))
		if err != nil {
			return fmt.Errorf("the server's token: %w", err)
		}
		if err := m.WriteFile(k3s.TokenFile, 0o600, token); err != nil {
			return err
		}
	}
	files, err := n.Files()
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := m.WriteFile(f.Path, f.Mode, f.Data); err != nil {
			return err
		}
	}
	if role == k3s.Agent {
		return nil
	}
	from := filepath.Join(m.Artifacts, o.Version, "manifests")
	ents, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range ents {
		b, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			return err
		}
		if err := m.WriteFile(k3s.Manifests+"/"+e.Name(), 0o600, b); err != nil {
			return err
		}
	}
	return nil
}

// Cgroup1 tells whether this host's controllers are in cgroup v1.
func Cgroup1() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return errors.Is(err, fs.ErrNotExist)
}

// LacksSysResource tells whether root may not lower an oom_score_adj.
func LacksSysResource() bool {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		return true
	}
	return d[0].Effective&(1<<unix.CAP_SYS_RESOURCE) == 0
}

// Kubectl runs kubectl as the administrator.
func (c *Cluster) Kubectl(ctx context.Context, stdin []byte, args ...string) (string, error) {
	cmd := c.M.Command(ctx, c.bin("kubectl"), args...)
	cmd.Env = append(cmd.Env, c.env()...)
	return output(cmd, stdin)
}

// Ctr runs containerd's client in Kubernetes' namespace of images and containers.
func (c *Cluster) Ctr(ctx context.Context, args ...string) (string, error) {
	cmd := c.M.Command(ctx, c.bin("ctr"), append([]string{"-a", "/run/k3s/containerd/containerd.sock", "-n", "k8s.io"}, args...)...)
	cmd.Env = append(cmd.Env, c.env()...)
	return output(cmd, nil)
}

// Poll asks until ok says that the answer is good. It ends early when K3s
// does, and its error holds the last answer and the log's end.
func (c *Cluster) Poll(ctx context.Context, what string, ok func() (string, bool)) error {
	return c.M.phase(what, func() error {
		for {
			said, good := ok()
			if good {
				return nil
			}
			select {
			case <-c.done:
				return fmt.Errorf("k3shost: K3s ended while waiting for %s: %w\n%s", what, c.err, c.Tail(20))
			case <-ctx.Done():
				return fmt.Errorf("k3shost: waited for %s: %w; last answer: %s\n%s", what, ctx.Err(), said, c.Tail(20))
			case <-time.After(300 * time.Millisecond):
			}
		}
	})
}

// WaitReady waits until the server's own node is Ready in this version.
func (c *Cluster) WaitReady(ctx context.Context) error { return c.WaitNode(ctx, c.M.Name) }

// WaitNode waits until a node of the cluster is Ready in this version.
func (c *Cluster) WaitNode(ctx context.Context, node string) error {
	const show = `jsonpath={.status.nodeInfo.kubeletVersion} {.status.conditions[?(@.type=="Ready")].status}`
	return c.Poll(ctx, "node "+node+" Ready with "+c.Version, func() (string, bool) {
		out, err := c.Kubectl(ctx, nil, "get", "node", node, "-o", show)
		if err != nil {
			return err.Error(), false
		}
		return out, strings.HasPrefix(out, "v"+c.Version) && strings.HasSuffix(out, " True")
	})
}

// WaitPod waits until a pod is Ready.
func (c *Cluster) WaitPod(ctx context.Context, namespace, selector string) error {
	const show = `jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status}/{.status.containerStatuses[*].state.waiting.message} {end}`
	return c.Poll(ctx, "pod "+selector+" Ready", func() (string, bool) {
		out, err := c.Kubectl(ctx, nil, "get", "pod", "-n", namespace, "-l", selector, "-o", show)
		if err != nil {
			return err.Error(), false
		}
		return out, strings.Contains(out, "=True/")
	})
}

// Stop ends K3s. As with its systemd unit, containers run on.
func (c *Cluster) Stop(ctx context.Context) error {
	return c.M.phase("stop "+c.Version, func() error {
		if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		select {
		case <-c.done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("k3shost: K3s does not end: %w\n%s", ctx.Err(), c.Tail(20))
		}
	})
}

// Done is closed when K3s has ended.
func (c *Cluster) Done() <-chan struct{} { return c.done }

// Tail is the last lines of K3s's log.
func (c *Cluster) Tail(n int) string {
	b, err := os.ReadFile(c.M.Path(LogFile))
	if err != nil {
		return err.Error()
	}
	ls := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(ls[max(0, len(ls)-n):], "\n")
}
