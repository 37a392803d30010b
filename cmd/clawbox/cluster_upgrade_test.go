package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/clawbox/clawbox/airgap-manifests/k3s"
	"github.com/clawbox/clawbox/internal/k3shost"
)

// sourceRecipe is what a release with a K3s from source has besides podRecipe's:
// its release binary has all of it inside.
const sourceRecipe = `
  - {name: shim, kind: file, source: "file:K3S/bin/containerd-shim-runc-v2", path: bin/containerd-shim-runc-v2, mode: "0755", licence: Apache-2.0, redistributable: true}
  - {name: host-local, kind: file, source: "file:K3S/bin/host-local", path: bin/cni/host-local, mode: "0755", licence: Apache-2.0, redistributable: true}
  - {name: bridge, kind: file, source: "file:K3S/bin/bridge", path: bin/cni/bridge, mode: "0755", licence: Apache-2.0, redistributable: true}
  - {name: loopback, kind: file, source: "file:K3S/bin/loopback", path: bin/cni/loopback, mode: "0755", licence: Apache-2.0, redistributable: true}
  - {name: portmap, kind: file, source: "file:K3S/bin/portmap", path: bin/cni/portmap, mode: "0755", licence: Apache-2.0, redistributable: true}
  - {name: bandwidth, kind: file, source: "file:K3S/bin/bandwidth", path: bin/cni/bandwidth, mode: "0755", licence: Apache-2.0, redistributable: true}
  - {name: firewall, kind: file, source: "file:K3S/bin/firewall", path: bin/cni/firewall, mode: "0755", licence: Apache-2.0, redistributable: true}
  - {name: flannel, kind: file, source: "file:K3S/bin/flannel", path: bin/cni/flannel, mode: "0755", licence: Apache-2.0, redistributable: true}
  - {name: rolebindings, kind: file, source: "file:K3S/manifests/rolebindings.yaml", path: k3s/manifests/rolebindings.yaml, licence: Apache-2.0, redistributable: true}
  - {name: runtimes, kind: file, source: "file:K3S/manifests/runtimes.yaml", path: k3s/manifests/runtimes.yaml, licence: Apache-2.0, redistributable: true}
`

// k3sVersions are what K3s calls itself, by the folder of the artifact.
var k3sVersions = map[string]string{"1.34": "1.34.0+k3s1", "1.35": "1.35.0+k3s1"}

// upgrading is a machine with systemd's stand-in, and the sticks for it.
type upgrading struct {
	*podNode
	artifacts string
	from, to  string // K3s, as the artifact's folders are called
	took      []k3shost.Phase
}

// TestClusterUpgrade takes a cluster through its life by clawbox alone, on real
// K3s and without a way out: installed with 1.34, an agent governed; an upgrade to
// 1.35 that does not hold and is taken back; one that the power cut ends; one that
// holds; back to 1.34; a backup put back; removed.
func TestClusterUpgrade(t *testing.T) { clusterLife(t, "1.34", "1.35") }

// TestClusterUpgradeNewest is the same without another K3s, for a quick look.
func TestClusterUpgradeNewest(t *testing.T) { clusterLife(t, "1.35", "1.35") }

// newUpgrading is where K3s was built; elsewhere the test is skipped.
func newUpgrading(t *testing.T, from, to string) *upgrading {
	t.Helper()
	artifacts := os.Getenv("CLAWBOX_K3S")
	if artifacts == "" {
		t.Skip("CLAWBOX_K3S is not set: K3s is built and tested by `make e2e-host`")
	}
	return &upgrading{podNode: &podNode{journey: newRelease(t, "probe", podPolicy)}, artifacts: artifacts, from: from, to: to}
}

// network is a network that leads nowhere, and what watches it.
func (u *upgrading) network() (*k3shost.LAN, *k3shost.Tap) {
	u.t.Helper()
	lan, err := k3shost.NewLAN()
	u.check(err)
	u.t.Cleanup(func() { lan.Close() })
	tap, err := lan.Tap()
	u.check(err)
	u.t.Cleanup(func() { tap.Close() })
	return lan, tap
}

func clusterLife(t *testing.T, from, to string) {
	u := newUpgrading(t, from, to)
	u.phase("make the sticks", func() {
		u.programs()
		u.stick("one", 1, from, "coredns")
		u.stick("two", 2, to, "sleeper")
		u.stick("three", 3, to, "coredns")
	})
	lan, tap := u.network()
	u.boot(lan)
	t.Cleanup(func() { u.check(u.m.Halt()) })
	t.Cleanup(u.said)

	u.phase("install, K3s "+from, func() {
		u.clawbox(0, "", "install", "/e2e/one", "--key", "/e2e/e2e.pub", "--answers", "/e2e/answers.yaml")
	})
	u.phase("launch an agent", func() { u.clawbox(0, "", "agent", "launch", "busy") })
	u.inCluster("before")
	_, err := u.inside("echo kept > /workspace/kept")
	u.check(err)
	if !u.phase("attacks", func() { t.Run("attacks", u.attacks) }) || !u.runs(from, "0.1.0") {
		t.FailNow() // what follows would say nothing
	}
	for _, s := range []struct {
		name string
		do   func()
	}{
		{"an upgrade that does not hold", u.broken},
		{"the power cut in an upgrade", u.cut},
		{"upgrade, K3s " + to, u.forward},
		{"rollback, K3s " + from, u.back},
		{"backup and restore", u.restored},
		{"uninstall", u.away},
	} {
		if !u.phase(s.name, s.do) {
			t.FailNow()
		}
	}
	sent, out := 0, tap.Outside()
	for _, n := range tap.Saw() {
		sent += n
	}
	t.Logf("%d frames were sent, %d of them to anything but the cluster's own addresses", sent, len(out))
	if len(out) != 0 || sent == 0 {
		t.Errorf("sent outside the cluster: %v", out)
	}
	for _, p := range u.took {
		t.Logf("%8.2f s  %s", p.Took.Seconds(), p.Name)
	}
}

// phase does one, and says whether it went well.
func (u *upgrading) phase(name string, f func()) bool {
	start := time.Now()
	f()
	u.took = append(u.took, k3shost.Phase{Name: name, Took: time.Since(start)})
	u.t.Logf("%8.2f s  %s", time.Since(start).Seconds(), name)
	return !u.t.Failed()
}

// programs builds what a node's release has besides newRelease's.
func (u *upgrading) programs() {
	u.t.Helper()
	for _, p := range []string{"clawbox-runc", "clawbox-cluster"} {
		u.env("CGO_ENABLED=0", "go", "build", "-o", u.at(p), "../"+p)
	}
	u.check(os.RemoveAll(u.at("stick")))
	u.write("answers.yaml", strings.Replace(podAnswers, "start: none", "start: systemd", 1))
	u.sleeper()
}

// stick bundles a release with a K3s and an image in CoreDNS's place.
func (u *upgrading) stick(name string, sequence int, version, coredns string) {
	u.t.Helper()
	u.check(os.RemoveAll(u.at("K3S")))
	u.check(os.Symlink(filepath.Join(u.artifacts, version), u.at("K3S")))
	im := k3s.SourceImages
	for _, ref := range []string{im.Pause, im.CoreDNS, im.LocalPath, im.Helper} {
		ref = strings.TrimPrefix(ref, k3s.Registry+"/")
		u.check(os.RemoveAll(u.at(strings.Split(ref, ":")[0])))
		u.single(filepath.Join(u.artifacts, version, "images"), ref)
	}
	r := podRecipeOf(k3sVersions[version]) + strings.TrimPrefix(sourceRecipe, "\n")
	r = strings.NewReplacer("version: 0.1.0}", fmt.Sprintf("version: 0.%d.0}", sequence), "sequence: 1", fmt.Sprintf("sequence: %d", sequence), "oci-layout:coredns:", "oci-layout:"+coredns+":").Replace(r)
	u.write(name+".yaml", r)
	u.ok("bundle", "-f", u.at(name+".yaml"), "-o", u.at(name), "--key", u.at("e2e.key"), "--store", u.at("store"), "--lock", u.at(name+".lock"))
}

// sleeper makes an image that runs for ever and answers nobody.
func (u *upgrading) sleeper() {
	u.t.Helper()
	from, err := layout.FromPath(u.at("image"))
	u.check(err)
	ix, err := from.ImageIndex()
	u.check(err)
	m, err := ix.IndexManifest()
	u.check(err)
	img, err := ix.Image(m.Manifests[0].Digest)
	u.check(err)
	c, err := img.ConfigFile()
	u.check(err)
	c.Config.Entrypoint = []string{"/bin/sh", "-c", "exec busybox sleep 100000"}
	c.Config.Env = []string{"PATH=/bin"}
	img, err = mutate.ConfigFile(img, c)
	u.check(err)
	u.check(os.RemoveAll(u.at("sleeper")))
	to, err := layout.Write(u.at("sleeper"), empty.Index)
	u.check(err)
	u.check(to.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "latest"})))
}

// boot boots the machine, as it was left.
func (u *upgrading) boot(lan *k3shost.LAN) {
	u.t.Helper()
	name := cmp.Or(u.hostname, "box")
	o := k3shost.Options{Name: name, Dir: u.at("machine-" + name), LAN: lan, Binds: map[string]string{"/e2e": u.dir}, Units: true, Beside: []string{"clawbox.service"}}
	if u.m != nil {
		o.Addr = u.m.Addr
	}
	var err error
	u.m, err = k3shost.Boot(context.Background(), o)
	u.check(err)
}

// said prints what a failed test needs.
func (u *upgrading) said() {
	if !u.t.Failed() {
		return
	}
	for _, unit := range []string{"clawbox.service", "k3s.service"} {
		u.t.Logf("%s:\n%s", unit, u.m.UnitLog(unit, 15))
	}
	for _, what := range [][]string{{"pods", "-A", "-o", "wide"}, {"events", "-A", "--field-selector", "type=Warning"}} {
		if out, err := u.kubectl("", append([]string{"get"}, what...)...); err == nil {
			u.t.Log(out)
		}
	}
}

// clawbox runs the machine's, the first time the stick's, and wants a status and
// a word in what it says.
func (u *upgrading) clawbox(status int, word string, args ...string) string {
	u.t.Helper()
	program := "/usr/local/bin/clawbox"
	if args[0] == "install" || args[0] == "join" {
		program = "/e2e/clawbox"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	out, err := u.m.Command(ctx, program, args...).CombinedOutput()
	var e *exec.ExitError
	if err != nil && !errors.As(err, &e) {
		u.t.Fatalf("clawbox %v: %v", args, err)
	}
	got := 0
	if e != nil {
		got = e.ExitCode()
	}
	if got != status || !strings.Contains(string(out), word) {
		u.t.Fatalf("clawbox %s: status %d, want %d and %q in\n%s", strings.Join(args, " "), got, status, word, out)
	}
	return string(out)
}

// inCluster makes an object by which the datastore is known again.
func (u *upgrading) inCluster(name string) {
	u.t.Helper()
	if out, err := u.kubectl("", "create", "configmap", "-n", "default", name); err != nil {
		u.t.Fatal(err, out)
	}
}

// objects are those that inCluster made.
func (u *upgrading) objects() string {
	u.t.Helper()
	out, err := u.kubectl("", "get", "configmaps", "-n", "default", "-o", "jsonpath={.items[*].metadata.name}")
	if err != nil {
		u.t.Fatal(err)
	}
	names := slices.DeleteFunc(strings.Fields(out), func(s string) bool { return s == "kube-root-ca.crt" }) // every namespace has it
	return strings.Join(names, " ")
}

// runs wants a K3s and a release, the agent running with its file, everything of
// the cluster's own ready, and a ledger that holds. It tells whether all is so.
func (u *upgrading) runs(k3s, release string) bool {
	u.t.Helper()
	if out, err := u.kubectl("", "get", "node", "box", "-o", "jsonpath={.status.nodeInfo.kubeletVersion}"); err != nil || out != "v"+k3sVersions[k3s] {
		u.t.Errorf("the node runs %s, %v; want %s", out, err, k3sVersions[k3s])
	}
	if out := u.clawbox(0, "", "status"); !strings.Contains(out, "e2e "+release) {
		u.t.Errorf("status says\n%s", out)
	}
	// A cluster that has just booted says what was true before, first, and takes
	// it back when its kubelet has looked.
	u.wait120("the cluster's own deployments", func() bool {
		out, err := u.kubectl("", "get", "deployments", "-n", "kube-system", "-o", "jsonpath={range .items[*]}{.metadata.name} {.status.readyReplicas} {end}")
		return err == nil && out == "coredns 1 local-path-provisioner 1"
	})
	if out, err := u.inside("cat /workspace/kept"); err != nil || out != "kept\n" {
		u.t.Errorf("the agent has %q, %v", out, err)
	}
	if out := u.clawbox(0, "", "agent", "status", "busy"); !strings.Contains(out, "busy:"+release) {
		u.t.Errorf("the agent is\n%s", out)
	}
	u.clawbox(0, "", "audit", "verify")
	return !u.t.Failed()
}

// broken: an image that never gets ready. All of before comes back by itself.
func (u *upgrading) broken() {
	u.t.Helper()
	u.clawbox(7, "deployment coredns in kube-system", "upgrade", "/e2e/two", "--deadline", "60s")
	u.steps()
	u.runs(u.from, "0.1.0")
	if out := u.clawbox(0, "", "status"); !strings.Contains(out, "was taken back") || !strings.Contains(out, "coredns") {
		u.t.Errorf("status says\n%s", out)
	}
	if out := u.clawbox(0, "", "audit", "replay", "--kind", "install", "--verdict", "denied"); !strings.Contains(out, "was taken back") || !strings.Contains(out, "coredns") {
		u.t.Errorf("the ledger has\n%s", out)
	}
	if got := u.objects(); got != "before" {
		u.t.Errorf("the cluster has %q", got)
	}
}

// cut cuts the power while K3s 1.35 works on the datastore.
func (u *upgrading) cut() {
	u.t.Helper()
	cmd := u.m.Command(context.Background(), "/usr/local/bin/clawbox", "upgrade", "/e2e/three")
	u.check(cmd.Start())
	u.wait120("the other K3s in the try", func() bool {
		_, err := os.Stat(u.m.Path("/var/lib/clawbox/install/tried"))
		out, _ := u.kubectl("", "get", "node", "box", "-o", "jsonpath={.status.nodeInfo.kubeletVersion}") // it starts
		return err == nil && out == "v"+k3sVersions[u.to]
	})
	u.check(u.m.Halt())
	_ = cmd.Wait() // cut off
	u.boot(u.m.LAN)
	u.wait120("the appliance", func() bool { _, err := u.box("status"); return err == nil })
	u.settled()
	u.wait120("an agent after the power cut", func() bool { _, err := u.box("agent", "launch", "busy"); return err == nil })
	u.runs(u.from, "0.1.0")
	if out := u.clawbox(0, "", "status"); !strings.Contains(out, "was taken back") || !strings.Contains(out, "cut off") {
		u.t.Errorf("status says\n%s", out)
	}
	if got := u.objects(); got != "before" {
		u.t.Errorf("the cluster has %q", got)
	}
}

// settled waits until doctor finds nothing wrong with the cluster.
func (u *upgrading) settled() {
	u.t.Helper()
	u.wait120("the cluster", func() bool {
		out, _ := u.box("doctor")
		return strings.Contains(out, "ready, with all that clawbox runs")
	})
}

func (u *upgrading) wait120(what string, f func() bool) {
	u.t.Helper()
	for end := time.Now().Add(2 * time.Minute); !f(); time.Sleep(300 * time.Millisecond) {
		if time.Now().After(end) {
			u.t.Fatalf("waited two minutes for %s", what)
		}
	}
}

// forward upgrades under an agent that runs, and keeps all that there is.
func (u *upgrading) forward() {
	u.t.Helper()
	out := u.clawbox(0, "agents started again: busy", "upgrade", "/e2e/three")
	u.t.Log(out)
	u.steps()
	u.runs(u.to, "0.3.0")
	u.inCluster("since")
	if got := u.objects(); got != "before since" {
		u.t.Errorf("the cluster has %q", got)
	}
}

// back goes back: K3s 1.34 gets what it had.
func (u *upgrading) back() {
	u.t.Helper()
	word, want := "cluster's objects are put back", "before"
	if u.from == u.to {
		word, want = "", "before since"
	}
	u.t.Log(u.clawbox(0, word, "rollback"))
	u.steps()
	u.runs(u.from, "0.1.0")
	if got := u.objects(); got != want {
		u.t.Errorf("the cluster has %q, want %q", got, want)
	}
}

// restored takes a backup beside the K3s that runs, and puts it back.
func (u *upgrading) restored() {
	u.t.Helper()
	before := u.objects()
	u.clawbox(0, "", "backup", "/root/one.backup")
	u.inCluster("later")
	u.clawbox(1, "runs", "restore", "/root/one.backup")
	u.node("systemctl", "stop", "clawbox.service")
	u.node("systemctl", "stop", "k3s.service")
	u.clawbox(4, "never goes back", "restore", "/root/one.backup")
	u.clawbox(0, "", "restore", "/root/one.backup", "--cluster")
	u.node("systemctl", "start", "clawbox.service")
	u.node("systemctl", "start", "k3s.service")
	u.settled()
	u.wait120("an agent after the restore", func() bool { _, err := u.box("agent", "launch", "busy"); return err == nil })
	u.runs(u.from, "0.1.0")
	if got := u.objects(); got != before {
		u.t.Errorf("the cluster has %q, want %q", got, before)
	}
}

// away removes all of it but what is to stay, under a cluster that runs.
func (u *upgrading) away() {
	u.t.Helper()
	u.clawbox(0, "stays", "uninstall", "--operator", "eve")
	if out := u.node("sh", "-c", "ps ax -o args= | grep -E 'k3s |containerd-shim' | grep -v grep; grep -E ' /run/k3s| /var/lib/kubelet| /run/netns' /proc/self/mounts; ip -o link show cni0 2>/dev/null; true"); strings.TrimSpace(out) != "" {
		u.t.Errorf("left behind:\n%s", out)
	}
	for _, p := range []string{"/var/lib/rancher/k3s/agent", "/etc/rancher/k3s/registries.yaml", "/etc/systemd/system/k3s.service", "/usr/local/bin/kubectl", "/opt/clawbox"} {
		if _, err := os.Lstat(u.m.Path(strings.Replace(p, "/usr/local", "/usr-local", 1))); err == nil {
			u.t.Errorf("%s stays", p)
		}
	}
	if _, err := os.Stat(u.m.Path("/var/lib/rancher/k3s/server/db/state.db")); err != nil {
		u.t.Errorf("the datastore: %v", err)
	}
	u.node("/e2e/clawbox", "uninstall", "--purge")
	for _, p := range []string{"/var/lib/rancher", "/etc/rancher", "/var/lib/clawbox", "/etc/clawbox"} {
		if _, err := os.Lstat(u.m.Path(p)); err == nil {
			u.t.Errorf("%s stays after a purge", p)
		}
	}
}

// steps prints how long each step of the last change took, from its journal.
func (u *upgrading) steps() {
	u.t.Helper()
	b, err := os.ReadFile(u.m.Path("/var/lib/clawbox/install/changes"))
	u.check(err)
	var out []string
	var last time.Time
	for line := range strings.Lines(string(b)) {
		var l struct {
			Time        time.Time
			Event, Step string
		}
		if json.Unmarshal([]byte(line), &l) != nil {
			continue
		}
		switch l.Event {
		case "begin":
			out = nil
		case "done", "fail", "commit", "end":
			out = append(out, fmt.Sprintf("%s %s %.1f s", l.Event, l.Step, l.Time.Sub(last).Seconds()))
		}
		last = l.Time
	}
	u.t.Log(strings.Join(out, ", "))
}
