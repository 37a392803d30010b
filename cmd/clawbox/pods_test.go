package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/clawbox/clawbox/airgap-manifests/pods"
	"github.com/clawbox/clawbox/appliance/control"
)

// recorded says whether the ledger has a refusal of the agent with all words, or
// has it soon: the witness gathers what nobody waits for.
func (n *podNode) recorded(words ...string) bool {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Millisecond) {
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
		if time.Now().After(end) {
			return false
		}
	}
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
	if out, _ := n.box("doctor"); !strings.Contains(out, "agents run as pods") {
		t.Errorf("doctor: %s", out)
	}
	t.Run("attacks", n.attacks)
	t.Run("strangers", n.strangers)
	t.Run("entering", n.entering)
	t.Run("guard", n.guardless)
	t.Run("deleted", n.deleted)
	t.Run("end", n.ending)
	if out, err := n.box("audit", "verify"); err != nil {
		t.Errorf("the record: %v, %s", err, out)
	}
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
	y, err := pods.Settings{Namespace: agents, System: "clawbox-account"}.Manifest()
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
				"name": "x", "image": "clawbox.internal/busybox:0.1.0", "command": []string{"sh", "-c", "sleep 1000"},
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

// deleted by Kubernetes, an agent ends by itself, and the appliance knows why.
func (n *podNode) deleted(t *testing.T) {
	if out, err := n.kubectl("", "delete", "pod", "-n", agents, "-l", "clawbox.io/agent=busy"); err != nil {
		t.Fatal(err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := n.c.Poll(ctx, "the end of a deleted agent", func() (string, bool) {
		out, _ := n.box("agent", "status", "busy")
		return out, strings.Contains(out, "stopped by Kubernetes")
	})
	if err != nil {
		t.Error(err)
	}
	if out, err := n.box("agent", "launch", "busy"); err != nil {
		t.Fatal(err, out)
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
