package main

import (
	"context"
	"encoding/json"
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
	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/gate"
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
	n.check(gate.Settings{Socket: boxRoot + "/run/clawbox/gate.sock", Runc: "/k3s/1.35/bin/runc", Namespace: agents}.Write(n.m.Path("/usr-local/bin/clawbox-runc")))
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

// recorded says whether the ledger has a refusal of the agent with all words.
func (n *podNode) recorded(words ...string) bool {
	out, err := n.box("audit", "export")
	if err != nil {
		n.t.Fatal(err)
	}
	for l := range strings.Lines(out) {
		all := strings.Contains(l, `"disposition_id":2`) // blocked
		for _, w := range words {
			all = all && strings.Contains(l, w)
		}
		if all {
			return true
		}
	}
	return false
}

// TestPodsOnK3s governs an agent in a real cluster: launched, attacking,
// entered, and gone; and what nobody launched.
func TestPodsOnK3s(t *testing.T) {
	artifacts := os.Getenv("CLAWBOX_K3S")
	if artifacts == "" {
		t.Skip("CLAWBOX_K3S is not set: K3s is built and tested by `make e2e-host`")
	}
	n := newPodNode(t, artifacts)
	out, err := n.box("agent", "launch", "busy")
	if err != nil {
		log, _ := os.ReadFile(n.at("serve.log"))
		events, _ := n.kubectl("", "get", "events", "-n", agents)
		t.Fatalf("%v\n%s\n%s\n%s", err, log, events, n.c.Tail(15))
	}
	t.Log(out)
	t.Run("attacks", n.attacks)
	t.Run("strangers", n.strangers)
	t.Run("entering", n.entering)
	t.Run("guard", n.guardless)
	t.Run("end", n.ending)
	for _, p := range n.m.Phases() {
		t.Logf("%8.2f s  %s", p.Took.Seconds(), p.Name)
	}
}

// attacks are made inside; each must fail and be on the ledger.
func (n *podNode) attacks(t *testing.T) {
	dns, err := n.kubectl("", "get", "pod", "-n", "kube-system", "-l", "k8s-app=kube-dns", "-o", "jsonpath={.items[0].status.podIP}")
	if err != nil || dns == "" {
		dns = "10.42.0.99" // of a tenant's pod, whether there is one or not
	}
	fetch := func(at string) string { // 403 is what egress answers where HTTP is spoken
		return "said=$(/bin/probe " + at + "); echo $said; case $said in error*|403*) ;; *) echo REACHED ;; esac"
	}
	addr := n.m.Addr.String()
	for _, x := range []struct {
		what, script string
		words        []string // of the record
	}{
		{"the API server", fetch("http://10.43.0.1:443/api"), []string{"10.43.0.1"}},
		{"the API server at the node", fetch("http://" + addr + ":6443/api"), []string{addr, `"port":6443`}},
		{"kubelet", fetch("http://" + addr + ":10250/pods"), []string{addr, `"port":10250`}},
		{"the node", fetch("http://" + addr + "/"), []string{addr}},
		{"the node's registry", fetch("http://" + addr + ":5000/v2/"), []string{addr, `"port":5000`}},
		{"another pod", fetch("http://" + dns + ":8080/"), []string{dns}},
		{"cloud metadata", fetch("http://169.254.169.254/latest/meta-data/"), []string{"169.254.169.254"}},
		{"an unlisted program", "/bin/other echo REACHED; true", []string{"/bin/other"}},
		{"writing outside", "echo x > /etc/evil && echo REACHED; true", nil},
		{"an account's token", "cat /var/run/secrets/kubernetes.io/serviceaccount/token && echo REACHED; true", []string{"/var/run/secrets"}},
		{"the host's files", "cat /proc/1/root/etc/shadow && echo REACHED; true", []string{"/proc/1/root"}},
	} {
		out, err := n.inside(x.script)
		if err != nil && !strings.Contains(x.what, "program") || strings.Contains(out, "REACHED") {
			t.Errorf("%s: %v, %s", x.what, err, out)
		}
		if x.words != nil && !n.recorded(append(x.words, "busy")...) {
			t.Errorf("%s: the refusal is not on the ledger", x.what)
		}
	}
	if out, err := n.inside("busybox ip link; env; id"); err != nil || strings.Contains(out, "eth0") || strings.Contains(out, "KUBERNETES") || strings.Contains(out, "uid=0") {
		t.Errorf("inside: %v, %s", err, out)
	}
}

// entering is done by the appliance alone.
func (n *podNode) entering(t *testing.T) {
	pod, err := n.kubectl("", "get", "pod", "-n", agents, "-l", "clawbox.io/agent=busy", "-o", "jsonpath={.items[0].metadata.name}")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := n.kubectl("", "exec", "-n", agents, pod, "--", "/bin/sh", "-c", "echo REACHED"); err == nil || strings.Contains(out, "REACHED") || !strings.Contains(err.Error(), "agent connect") {
		t.Errorf("kubectl exec: %v, %s", err, out)
	}
	// Where the cluster lets it through, the node does not.
	n.unbind(t)
	defer n.bind(t)
	if out, err := n.kubectl("", "exec", "-n", agents, pod, "--", "/bin/sh", "-c", "echo REACHED"); err == nil || strings.Contains(out, "REACHED") || !strings.Contains(err.Error(), "agent connect") {
		t.Errorf("kubectl exec without admission: %v, %s", err, out)
	}
}

// unbind takes admission away.
func (n *podNode) unbind(t *testing.T) {
	t.Helper()
	if _, err := n.kubectl("", "delete", "validatingadmissionpolicybinding", "clawbox-agents", "clawbox-agents-enter"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second) // the API server learns of it by a watch
}

func (n *podNode) bind(t *testing.T) {
	t.Helper()
	y, err := pods.Settings{Namespace: agents, System: "clawbox-system"}.Manifest()
	if err == nil {
		_, err = n.kubectl(string(y), "apply", "-f", "-")
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err = n.c.Poll(ctx, "admission again", func() (string, bool) {
		_, err := n.kubectl(stranger("probe", "clawbox"), "create", "--dry-run=server", "-f", "-")
		return fmt.Sprint(err), err != nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// guardless: while the guard does not answer, no agent starts, and those that
// run are stopped once it has ended.
func (n *podNode) guardless(t *testing.T) {
	out, err := n.box("status", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var st control.Status
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		t.Fatal(err)
	}
	for _, s := range st.Services {
		if s.Name == "guard" {
			n.check(syscall.Kill(s.PID, syscall.SIGSTOP))
		}
	}
	if out, err := n.box("agent", "launch", "late", "--agent", "busy"); err == nil {
		t.Errorf("without a guard: %s", out)
	}
	if out, err := n.kubectl("", "get", "pod", "-n", agents, "-l", "clawbox.io/agent=late", "-o", "name"); err != nil || out != "" {
		t.Errorf("pods are left of it: %v, %s", err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err = n.c.Poll(ctx, "the agent back under the next guard", func() (string, bool) {
		out, err := n.box("agent", "launch", "busy")
		return fmt.Sprint(out, err), err == nil
	})
	if err != nil {
		t.Error(err)
	}
}

// stranger is a pod that nobody launched, as good as an agent's otherwise.
func stranger(name, runtimeClass string) string {
	pod := map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": name, "namespace": agents, "labels": map[string]string{"clawbox.io/agent": "x", "clawbox.io/appliance": "x"}},
		"spec": map[string]any{
			"automountServiceAccountToken": false, "restartPolicy": "Never",
			"securityContext": map[string]any{"runAsNonRoot": true, "runAsUser": 10001, "seccompProfile": map[string]string{"type": "RuntimeDefault"}},
			"containers": []any{map[string]any{
				"name": "x", "image": "clawbox.internal/busybox:debian", "command": []string{"sh", "-c", "sleep 1000"},
				"securityContext": map[string]any{"allowPrivilegeEscalation": false, "capabilities": map[string]any{"drop": []string{"ALL"}}},
			}},
		},
	}
	if runtimeClass != "" {
		pod["spec"].(map[string]any)["runtimeClassName"] = runtimeClass
	}
	b, _ := json.Marshal(pod)
	return string(b)
}

// strangers are refused by the cluster, and by the node where the cluster is
// off its guard.
func (n *podNode) strangers(t *testing.T) {
	if out, err := n.kubectl(stranger("first", "clawbox"), "apply", "-f", "-"); err == nil || !strings.Contains(err.Error(), "agent launch") {
		t.Errorf("admission: %v, %s", err, out)
	}
	n.unbind(t)
	defer n.bind(t)
	for name, class := range map[string]string{"second": "clawbox", "plain": ""} {
		if _, err := n.kubectl(stranger(name, class), "apply", "-f", "-"); err != nil {
			t.Fatal(err)
		}
		n.stays(t, name, "none that this appliance launched")
		if !n.recorded("pod.refused", name) {
			t.Errorf("pod %s: the refusal is not on the ledger", name)
		}
	}
}

// stays sees that a pod does not run, for the reason that its events give.
func (n *podNode) stays(t *testing.T, pod, why string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := n.c.Poll(ctx, "pod "+pod+" refused", func() (string, bool) {
		out, err := n.kubectl("", "get", "events", "-n", agents, "--field-selector", "involvedObject.name="+pod, "-o", "jsonpath={.items[*].message}")
		return fmt.Sprint(out, err), strings.Contains(out, why)
	})
	if err != nil {
		t.Error(err)
	}
	if out, _ := n.kubectl("", "get", "pod", "-n", agents, pod, "-o", "jsonpath={.status.phase}"); out != "Pending" {
		t.Errorf("pod %s is %s", pod, out)
	}
}

// ending: an agent keeps its files; with the supervisor all agents end, and no
// new one starts on the node.
func (n *podNode) ending(t *testing.T) {
	for _, line := range []string{"connect busy -- /bin/sh -c", "stop busy", "launch busy", "connect busy -- /bin/sh -c", "status busy"} {
		args := append([]string{"agent"}, strings.Fields(line)...)
		if strings.HasSuffix(line, "-c") {
			args = append(args, "cat /workspace/kept 2>/dev/null || echo kept > /workspace/kept")
		}
		out, err := n.box(args...)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		t.Logf("%s: %s", line, out)
	}
	if out, err := n.inside("cat /workspace/kept"); err != nil || out != "kept\n" {
		t.Errorf("after a stop and a launch: %v, %q", err, out)
	}
	n.end()
	<-n.served
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := n.c.Poll(ctx, "the agent's end with its supervisor", func() (string, bool) {
		out, err := n.kubectl("", "get", "pod", "-n", agents, "-l", "clawbox.io/agent=busy", "-o", "jsonpath={.items[*].status.phase}")
		return fmt.Sprint(out, err), err == nil && !strings.Contains(out, "Running")
	})
	if err != nil {
		t.Error(err)
	}
	n.unbind(t)
	if _, err := n.kubectl(stranger("third", "clawbox"), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	n.stays(t, "third", "no agent runs without its supervisor")
	n.serve() // sweeps, and works on
	if out, err := n.box("agent", "launch", "busy"); err != nil {
		t.Errorf("after a restart: %v, %s", err, out)
	}
}
