package main

import (
	"strings"
	"testing"
)

// TestClusterJoin makes a second machine a node of a cluster, by clawbox alone
// and on real K3s: an agent there is a pod that is governed as on the first, by
// its own machine's appliance and ledger, and stays so when first the server and
// then the node are upgraded.
func TestClusterJoin(t *testing.T) {
	u := newUpgrading(t, "1.34", "1.35")
	u.phase("make the sticks", func() {
		u.programs()
		u.stick("one", 1, u.from, "coredns")
		u.stick("three", 3, u.to, "coredns")
	})
	lan, tap := u.network()
	two := &upgrading{podNode: &podNode{journey: u.journey, hostname: "two"}, from: u.from, to: u.to}
	for _, x := range []*upgrading{u, two} {
		x.boot(lan)
		t.Cleanup(func() { x.check(x.m.Halt()) })
		t.Cleanup(x.said)
	}
	two.admin = u.m

	u.phase("install the server", func() {
		u.clawbox(0, "", "install", "/e2e/one", "--key", "/e2e/e2e.pub", "--answers", "/e2e/answers.yaml")
	})
	u.phase("join", func() {
		u.write("token", u.clawbox(0, "", "token", "create", "--ttl", "5m"))
		server := `{role: agent, server: "https://` + u.m.Addr.String() + `:6443"}`
		u.write("two.yaml", strings.NewReplacer("start: none", "start: systemd", "{role: server}", server).Replace(podAnswers))
		two.clawbox(0, "", "join", "/e2e/one", "--key", "/e2e/e2e.pub", "--answers", "/e2e/two.yaml", "--token-file", "/e2e/token")
	})
	u.phase("launch an agent on the node", func() { two.clawbox(0, "", "agent", "launch", "busy") })
	if at, err := u.kubectl("", "get", "pods", "-n", agents, "-o", "jsonpath={.items[*].spec.nodeName}"); err != nil || at != "two" {
		t.Errorf("the agent's pod is on %q, %v; want two", at, err)
	}
	_, err := two.inside("echo kept > /workspace/kept")
	u.check(err)
	u.phase("attacks", func() {
		t.Run("attacks", two.attacks)
		server := u.m.Addr.String()
		for _, port := range []string{"6443", "10250", "5000"} {
			out, err := two.inside("/bin/probe http://" + server + ":" + port + "/")
			if err == nil && !strings.HasPrefix(out, "error") && !strings.HasPrefix(out, "403") {
				t.Errorf("the server's port %s: %q, %v", port, out, err)
			}
			if !two.recorded(server, `"port":`+port, "busy") {
				t.Errorf("the server's port %s: %q, %v, and it is not on the node's ledger", port, out, err)
			}
		}
	})
	if t.Failed() {
		t.FailNow() // what follows would say nothing
	}
	two.settled()
	two.clawbox(1, "upgrade the server first", "upgrade", "/e2e/three")
	for _, s := range []struct {
		name string
		of   *upgrading
	}{{"upgrade the server, K3s " + u.to, u}, {"upgrade the node", two}} {
		if !u.phase(s.name, func() { s.of.clawbox(0, "", "upgrade", "/e2e/three"); s.of.steps() }) {
			t.FailNow()
		}
		two.settled()
	}
	if v, err := two.kubectl("", "get", "node", "two", "-o", "jsonpath={.status.nodeInfo.kubeletVersion}"); err != nil || v != "v"+k3sVersions[u.to] {
		t.Errorf("the node runs %s, %v; want %s", v, err, k3sVersions[u.to])
	}
	if out, err := two.inside("cat /workspace/kept"); err != nil || out != "kept\n" {
		t.Errorf("the agent has %q, %v", out, err)
	}
	two.clawbox(0, "", "audit", "verify")
	if out := tap.Outside(); len(out) != 0 {
		t.Errorf("sent outside the cluster: %v", out)
	}
}
