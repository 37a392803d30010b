package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"github.com/clawbox/clawbox/airgap-manifests/k3s"
	"github.com/clawbox/clawbox/internal/k3shost"
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

// agents is their namespace.
const agents = "clawbox-agents"

// podRecipe is what the release has besides recipe's.
const podRecipe = `
  - {name: clawbox-cluster, kind: file, source: "file:clawbox-cluster", path: bin/clawbox-cluster, mode: "0755", licence: Apache-2.0, redistributable: true}
  - {name: clawbox-runc, kind: file, source: "file:clawbox-runc", path: bin/clawbox-runc, mode: "0755", licence: Apache-2.0, redistributable: true}
  - {name: k3s, kind: file, source: "file:K3S/bin/k3s", path: bin/k3s, mode: "0755", licence: Apache-2.0, redistributable: true}
  - {name: runc, kind: file, source: "file:K3S/bin/runc", path: bin/runc, mode: "0755", licence: Apache-2.0, redistributable: true}
  - {name: pause, kind: image, source: "oci-layout:pause:latest", licence: Apache-2.0, redistributable: true}
  - {name: coredns, kind: image, source: "oci-layout:coredns:latest", licence: Apache-2.0, redistributable: true}
  - {name: local-path-provisioner, kind: image, source: "oci-layout:local-path-provisioner:latest", licence: Apache-2.0, redistributable: true}
  - {name: busybox, kind: image, source: "oci-layout:busybox:latest", licence: GPL-2.0-only, redistributable: true}
`

// podRecipeOf is the whole of it, for a release with that K3s.
func podRecipeOf(k3s string) string {
	head := strings.Replace(recipe, "items:", "components: [{name: k3s, version: "+k3s+"}]\nitems:", 1)
	return head + strings.TrimPrefix(podRecipe, "\n")
}

const podAnswers = `apiVersion: clawbox.io/v1
kind: Answers
profile: cluster
operator: tester
start: none
holdSeconds: 20
accept: [cgroup-v1, volatile-state, clock-unsure]
cluster: {role: server}
agents:
  - {name: busy, image: "busy:0.1.0", policy: busy.yaml, args: [/bin/busybox, sleep, "100000"]}
`

// podNode is a real K3s with an installed appliance beside it.
type podNode struct {
	*journey
	hostname string // "" is box
	m        *k3shost.Machine
	admin    *k3shost.Machine // the server; nil is m
	c        *k3shost.Cluster
	served   chan error // how serve ended
	end      func()     // ends serve
}

// newPodNode boots, installs from a bundle and starts both, as an operator does
// where no systemd runs.
func newPodNode(t *testing.T, artifacts string) *podNode {
	t.Helper()
	n := &podNode{journey: newRelease(t, "probe", podPolicy)}
	n.bundle(filepath.Join(artifacts, "1.35"))
	lan, err := k3shost.NewLAN()
	n.check(err)
	t.Cleanup(func() { lan.Close() })
	n.m, err = k3shost.Boot(t.Context(), k3shost.Options{
		Name: "box", Dir: n.at("machine"), LAN: lan, Artifacts: artifacts, Binds: map[string]string{"/e2e": n.dir},
	})
	n.check(err)
	t.Cleanup(func() { n.check(n.m.Halt()) })
	n.node("/e2e/clawbox", "install", "/e2e/stick", "--key", "/e2e/e2e.pub", "--answers", "/e2e/answers.yaml")
	n.serve()
	n.cluster(filepath.Join(artifacts, "1.35/manifests"))
	out, err := n.box("cluster", "apply")
	n.check(err)
	t.Log(out)
	n.end()
	<-n.served
	n.serve()
	return n
}

// bundle makes the release again, as one of a cluster.
func (n *podNode) bundle(artifacts string) {
	n.t.Helper()
	for _, p := range []string{"clawbox-runc", "clawbox-cluster"} {
		n.env("CGO_ENABLED=0", "go", "build", "-o", n.at(p), "../"+p)
	}
	n.check(os.Symlink(artifacts, n.at("K3S")))
	im := k3s.SourceImages
	for _, ref := range []string{im.Pause, im.CoreDNS, im.LocalPath, im.Helper} {
		n.single(filepath.Join(artifacts, "images"), strings.TrimPrefix(ref, k3s.Registry+"/"))
	}
	n.check(os.Remove(n.at("bundle.lock")))
	n.check(os.RemoveAll(n.at("stick")))
	n.write("recipe.yaml", podRecipeOf("1.35.0+k3s1"))
	n.write("answers.yaml", podAnswers)
	n.ok("bundle", "-f", n.at("recipe.yaml"), "-o", n.at("stick"), "--key", n.at("e2e.key"), "--store", n.at("store"))
}

// single makes a layout of the one image that is called ref in the layout all.
func (n *podNode) single(all, ref string) {
	n.t.Helper()
	const name = "org.opencontainers.image.ref.name"
	from, err := layout.FromPath(all)
	n.check(err)
	ix, err := from.ImageIndex()
	n.check(err)
	m, err := ix.IndexManifest()
	n.check(err)
	for _, d := range m.Manifests {
		if d.Annotations[name] != ref {
			continue
		}
		img, err := ix.Image(d.Digest)
		n.check(err)
		to, err := layout.Write(n.at(strings.Split(ref, ":")[0]), empty.Index)
		n.check(err)
		n.check(to.AppendImage(img, layout.WithAnnotations(map[string]string{name: "latest"})))
		return
	}
	n.t.Fatalf("%s has no image %s", all, ref)
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
	return n.try(append([]string{"/usr/local/bin/clawbox"}, args...)...)
}

// kubectl runs it as the cluster's administrator.
func (n *podNode) kubectl(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := cmp.Or(n.admin, n.m).Run(ctx, []byte(stdin), "kubectl", append([]string{"--kubeconfig", k3s.Kubeconf}, args...)...)
	return strings.TrimSpace(out), err
}

// cluster starts K3s from the files that were installed, and adds what its
// release binary has inside.
func (n *podNode) cluster(manifests string) {
	n.t.Helper()
	ents, err := os.ReadDir(manifests)
	n.check(err)
	for _, e := range ents {
		b, err := os.ReadFile(filepath.Join(manifests, e.Name()))
		n.check(err)
		n.check(n.m.WriteFile(k3s.Manifests+"/"+e.Name(), 0o600, b))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	n.c, err = n.m.StartK3s(ctx, k3shost.K3s{Version: "1.35", Placed: true})
	n.check(err)
	n.check(n.c.WaitReady(ctx))
}

// serve starts the appliance on the node.
func (n *podNode) serve() {
	n.t.Helper()
	cmd := n.m.BesideCommand(context.Background(), "/usr/local/bin/clawbox", "serve")
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
