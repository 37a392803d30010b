package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/clawbox/clawbox/airgap-manifests/k3s"
	"github.com/clawbox/clawbox/airgap-manifests/pods"
	"github.com/clawbox/clawbox/appliance/gate/settings"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/internal/k3shost"
	"github.com/clawbox/clawbox/registry"
)

const podPolicy = `apiVersion: clawbox.io/v1
kind: AgentPolicy
metadata: {name: busy}
filesystem: {read: [/bin, /etc, /proc, /dev], write: [/workspace, /tmp], workdir: /workspace}
process: {exec: [/bin/busybox, /bin/sh, /bin/probe], spawn: true, seccomp: default}
network: {default: deny}
audit: {network: all}
budgets: {processes: 32, memory: 128MiB, disk: 32MiB, wallTime: 30m}
`

// Where things are on the node.
const (
	boxRoot    = "/opt/box"
	podRuntime = "/usr/local/bin/clawbox-runc"
	agents     = "clawbox-agents"
)

// podNode is a real K3s with an installed appliance beside it.
type podNode struct {
	*journey
	m      *k3shost.Machine
	c      *k3shost.Cluster
	served chan error // how serve ended
	end    func()     // ends serve
}

// newPodNode boots, installs and starts both.
func newPodNode(t *testing.T, artifacts string) *podNode {
	t.Helper()
	n := &podNode{journey: newRelease(t, "probe", podPolicy)}
	n.env("CGO_ENABLED=0", "go", "build", "-o", n.at("clawbox-runc"), "../clawbox-runc")
	lan, err := k3shost.NewLAN()
	n.check(err)
	t.Cleanup(func() { lan.Close() })
	n.m, err = k3shost.Boot(t.Context(), k3shost.Options{
		Name: "box", Dir: n.at("machine"), LAN: lan, Artifacts: artifacts, Binds: map[string]string{"/e2e": n.dir},
	})
	n.check(err)
	t.Cleanup(func() { n.check(n.m.Halt()) })
	n.node("/e2e/clawbox", "--root", boxRoot, "install", "/e2e/stick", "--key", "/e2e/e2e.pub", "--answers", "/e2e/answers.yaml")
	n.images(filepath.Join(artifacts, "1.35/images"))
	n.cluster(filepath.Join(artifacts, "1.35/manifests"))
	n.credentials()
	n.serve()
	return n
}

// node runs a command on the node.
func (n *podNode) node(args ...string) string {
	n.t.Helper()
	out, err := n.try(args...)
	if err != nil {
		n.t.Fatalf("%v\n%s", err, out)
	}
	return out
}

func (n *podNode) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := n.m.Command(ctx, args[0], args[1:]...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// box runs clawbox on the node.
func (n *podNode) box(args ...string) (string, error) {
	return n.try(append([]string{boxRoot + "/usr/local/bin/clawbox", "--root", boxRoot}, args...)...)
}

// kubectl runs it as the cluster's administrator.
func (n *podNode) kubectl(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := n.c.Kubectl(ctx, []byte(stdin), args...)
	return strings.TrimSpace(out), err
}

// images serves those of the cluster and the agent's where containerd's
// mirrors lead.
func (n *podNode) images(from string) {
	n.t.Helper()
	dir := n.at("images")
	n.check(os.CopyFS(dir, os.DirFS(from)))
	img, err := layout.FromPath(n.at("image"))
	n.check(err)
	idx, err := img.ImageIndex()
	n.check(err)
	m, err := idx.IndexManifest()
	n.check(err)
	agent, err := img.Image(m.Manifests[0].Digest)
	n.check(err)
	to, err := layout.FromPath(dir)
	n.check(err)
	n.check(to.AppendImage(agent, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"}),
		layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "busy:0.1.0"})))
	store, err := content.Open(dir)
	n.check(err)
	l, err := n.m.Listen("tcp", k3shost.RegistryAddr)
	n.check(err)
	srv := &http.Server{Handler: registry.New(store, registry.Options{}), ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(l) }() // until closed
	n.t.Cleanup(func() { srv.Close() })
}

// cluster starts K3s with the runtime, and tells it of the agents.
func (n *podNode) cluster(manifests string) {
	n.t.Helper()
	node := k3s.Node{
		Role: k3s.Server, Name: n.m.Name, IP: n.m.Addr, Iface: "eth0", Registry: "http://" + k3shost.RegistryAddr, Images: k3s.SourceImages,
		Cgroup1: k3shost.Cgroup1(), NoSysResource: k3shost.LacksSysResource(),
	}
	files, err := node.Files()
	n.check(err)
	entry, err := pods.Containerd(podRuntime)
	n.check(err)
	for _, f := range files {
		if strings.HasSuffix(f.Path, "config-v3.toml.tmpl") {
			f.Data = append(f.Data, entry...)
		}
		n.check(n.m.WriteFile(f.Path, f.Mode, f.Data))
	}
	ents, err := os.ReadDir(manifests)
	n.check(err)
	for _, e := range ents {
		b, err := os.ReadFile(filepath.Join(manifests, e.Name()))
		n.check(err)
		n.check(n.m.WriteFile(k3s.Manifests+"/"+e.Name(), 0o600, b))
	}
	b, err := os.ReadFile(n.at("clawbox-runc"))
	n.check(err)
	n.check(n.m.WriteFile("/usr-local/bin/clawbox-runc", 0o755, b))
	b, err = settings.Settings{Socket: boxRoot + "/run/clawbox/" + settings.Socket, Runc: "/k3s/1.35/bin/runc", Namespace: agents}.Encode()
	n.check(err)
	n.check(n.m.WriteFile(settings.File("/usr-local/bin/clawbox-runc"), 0o644, b))
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	n.c, err = n.m.StartK3s(ctx, k3shost.K3s{Version: "1.35", Images: k3s.SourceImages, Placed: true})
	n.check(err)
	n.check(n.c.WaitReady(ctx))
	y, err := pods.Settings{Namespace: agents, System: "clawbox-system"}.Manifest()
	n.check(err)
	if out, err := n.kubectl(string(y), "apply", "-f", "-"); err != nil {
		n.t.Fatal(err, out)
	}
}

// credentials gives the appliance its account, and tells it of the cluster.
func (n *podNode) credentials() {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	token := ""
	n.check(n.c.Poll(ctx, "the account's token", func() (string, bool) {
		var err error
		token, err = n.kubectl("", "get", "secret", "-n", "clawbox-system", "clawbox-token", "-o", "go-template={{.data.token | base64decode}}")
		return fmt.Sprint(err), err == nil && strings.Count(token, ".") == 2
	}))
	cfg := fmt.Sprintf(`current-context: box
contexts: [{name: box, context: {cluster: box, user: box}}]
clusters: [{name: box, cluster: {server: "https://127.0.0.1:6443", certificate-authority: %s/server/tls/server-ca.crt}}]
users: [{name: box, user: {token: %s}}]
`, k3s.DataDir, token)
	n.check(n.m.WriteFile(boxRoot+"/etc/clawbox/cluster.kubeconfig", 0o600, []byte(cfg)))
	f, err := os.OpenFile(n.m.Path(boxRoot+"/etc/clawbox/appliance.yaml"), os.O_APPEND|os.O_WRONLY, 0)
	n.check(err)
	_, err = fmt.Fprintf(f, "cluster: {kubeconfig: %s/etc/clawbox/cluster.kubeconfig, namespace: %s, node: %s, registry: clawbox.internal}\n", boxRoot, agents, n.m.Name)
	n.check(err)
	n.check(f.Close())
}

// enter is a script that runs the command behind its first argument, a
// process of the machine, in that machine, but in this pid namespace: on a
// real node the appliance is in the first one, and the guard's programs know
// processes by their numbers there. /proc has to be this namespace's then,
// for the appliance alone.
const enter = `
pid=$1; shift
while IFS=: read -r _ ctl path; do
	case $ctl in
	"") d=/sys/fs/cgroup; [ -d $d/unified ] && d=$d/unified ;;
	name=*) d=/sys/fs/cgroup/${ctl#name=} ;;
	*) d=/sys/fs/cgroup/$ctl ;;
	esac
	echo $$ >$d$path/cgroup.procs
done </proc/$pid/cgroup
exec nsenter -t $pid -m -n -u -i -C unshare -m --propagation unchanged sh -c \
	'mount --make-private /proc && mount -t proc proc /proc && exec "$@"' sh "$@"
`

// serve starts the appliance on the node.
func (n *podNode) serve() {
	n.t.Helper()
	cmd := exec.Command("sh", "-c", enter, "sh", fmt.Sprint(n.m.Pid()), boxRoot+"/usr/local/bin/clawbox", "--root", boxRoot, "serve")
	n.end = func() { cmd.Process.Signal(syscall.SIGTERM) }
	n.t.Cleanup(n.end)
	log, err := os.OpenFile(n.at("serve.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	n.check(err)
	cmd.Stdout, cmd.Stderr = log, log
	n.check(cmd.Start())
	n.served = make(chan error, 1)
	go func() {
		n.served <- cmd.Wait()
		log.Close()
	}()
	for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		if _, err := n.box("status"); err == nil {
			return
		}
		if time.Now().After(end) {
			b, _ := os.ReadFile(n.at("serve.log"))
			n.t.Fatalf("the appliance does not answer: %s", b)
		}
	}
}

// inside runs a script in the agent's sandbox.
func (n *podNode) inside(script string) (string, error) {
	return n.box("agent", "connect", "busy", "--", "/bin/sh", "-c", script)
}
