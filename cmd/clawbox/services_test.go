package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/control"
)

// TestServices kills each service of a running appliance in turn, and looks at
// what that costs: never a connection that nobody decided, never an action
// that nobody recorded.
func TestServices(t *testing.T) {
	j := newJourney(t)
	j.install()
	daemon := j.serve()
	j.ok("agent", "launch", "busy")
	t.Run("confined", func(t *testing.T) { j.as(t).confined(daemon.Process.Pid) })
	t.Run("always", func(t *testing.T) { j.as(t).always() })
	t.Run("snapshots", func(t *testing.T) { j.as(t).snapshots() })
	t.Run("egress killed", func(t *testing.T) { j.as(t).egressKilled() })
	t.Run("registry and router killed", func(t *testing.T) { j.as(t).othersKilled() })
	t.Run("guard killed", func(t *testing.T) { j.as(t).guardKilled() })
	t.Run("ledger killed", func(t *testing.T) { j.as(t).ledgerKilled(daemon) })
}

func (j *journey) status() (st control.Status) {
	j.t.Helper()
	j.check(json.Unmarshal([]byte(j.ok("status", "-o", "json")), &st))
	return st
}

// service finds one by its role.
func (j *journey) service(name string) control.ServiceStatus {
	j.t.Helper()
	for _, s := range j.status().Services {
		if s.Name == name {
			return s
		}
	}
	j.t.Fatalf("no service %s in %+v", name, j.status().Services)
	return control.ServiceStatus{}
}

// kill ends a service by force and waits until another runs.
func (j *journey) kill(name string) {
	j.t.Helper()
	old := j.service(name)
	j.check(syscall.Kill(old.PID, syscall.SIGKILL))
	j.wait("another "+name, func() bool {
		s := j.service(name)
		return s.PID != 0 && s.PID != old.PID && s.Restarts == old.Restarts+1
	})
	j.recorded("[service.lost]  " + name)
	j.recorded("[service.restarted]  " + name)
}

// recorded waits for a record that holds text.
func (j *journey) recorded(text string) {
	j.t.Helper()
	j.wait("a record of "+text, func() bool { return strings.Contains(j.ok("audit", "replay"), text) })
}

// confined: each service has a user of its own, is no root, and has shown what
// it can't do; the one with the ledger is the only one that has it open.
func (j *journey) confined(supervisor int) {
	j.t.Helper()
	seen := map[int]string{}
	for _, s := range j.status().Services {
		if s.UID < 1000 || seen[s.UID] != "" || s.Landlock < 1 || len(s.Refused) < 10 {
			j.t.Errorf("service %s: %+v (user also of %q)", s.Name, s, seen[s.UID])
		}
		seen[s.UID] = s.Name
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID))
		j.check(err)
		if s.Name != "guard" && !strings.Contains(string(b), "CapBnd:\t0000000000000000") {
			j.t.Errorf("service %s has capabilities:\n%s", s.Name, b)
		}
		if got := j.opens(s.PID, "/ledger/"); got != (s.Name == "ledger") {
			j.t.Errorf("service %s has the ledger open: %t", s.Name, got)
		}
	}
	if len(seen) != 5 {
		j.t.Errorf("services %v, want ledger, guard, registry, router and egress", seen)
	}
	if j.opens(supervisor, "/ledger/") {
		j.t.Error("the supervisor has the ledger open")
	}
	out, err := exec.Command(j.at("clawbox"), "service", "ledger").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "clawbox serve") {
		j.t.Errorf("a service by hand: %v, %s", err, out)
	}
}

// opens says whether a process has a file open whose path holds part.
func (j *journey) opens(pid int, part string) bool {
	j.t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	es, err := os.ReadDir(dir)
	j.check(err)
	for _, e := range es {
		if to, err := os.Readlink(dir + "/" + e.Name()); err == nil && strings.Contains(to, part) {
			return true
		}
	}
	return false
}

// ask lets the agent fetch an address that is held, and returns the id of the
// request and where its answer will come.
func (j *journey) ask(addr string) (string, chan string) {
	j.t.Helper()
	out := make(chan string, 1)
	go func() {
		s, _ := j.inside("probe http://" + addr + "/")
		out <- s
	}()
	return j.pending(addr), out
}

func (j *journey) pending(addr string) (id string) {
	j.t.Helper()
	j.wait(addr+" to be held", func() bool {
		id = ""
		for line := range strings.Lines(j.ok("approve", "list")) {
			if f := strings.Fields(line); len(f) > 2 && strings.HasPrefix(f[2], addr+":") {
				id = f[0]
			}
		}
		return id != ""
	})
	return id
}

// always: an approval for ever is a change of the policy.
func (j *journey) always() {
	j.t.Helper()
	before := j.status().Agents[0].Digest
	id, out := j.ask("192.0.2.9")
	// The guard tells egress which program asks, through the kernel's eyes.
	s := j.ok("approve", "list", "--json")
	if !strings.Contains(s, `"binary": "/bin/probe"`) {
		j.t.Errorf("the request doesn't name the program:\n%s", s)
	}
	var held []control.Pending
	if err := json.Unmarshal([]byte(s), &held); err != nil || len(held) != 1 {
		j.t.Fatalf("got %d held requests, want one: %v", len(held), err)
	}
	j.ok("approve", id, "--scope", "always", "--operator", "ada", "--digest", held[0].Digest)
	if s = <-out; strings.Contains(s, "403") {
		j.t.Errorf("the approved client said %q", s)
	}
	if now := j.status().Agents[0].Digest; now == before {
		j.t.Error("the policy is what it was")
	}
	j.recorded("[policy.widened]")
	if s, _ := j.inside("probe http://192.0.2.9/"); strings.Contains(s, "403") {
		j.t.Errorf("asked again: %q", s)
	}
}

// snapshots: an agent's files go back to what they were, and the ledger says so.
func (j *journey) snapshots() {
	j.t.Helper()
	j.write("disk.yaml", strings.Replace(policy, "memory: 128MiB", "memory: 128MiB, disk: 32MiB", 1))
	j.ok("agent", "launch", "keeper", "--agent", "busy", "--policy", j.at("disk.yaml"))
	write := func(text string) {
		if out, code := j.run("agent", "connect", "keeper", "--", "/bin/sh", "-c", "echo "+text+" > /workspace/f"); code != 0 {
			j.t.Fatalf("write %s: %s", text, out)
		}
	}
	write("first")
	j.ok("agent", "snapshot", "keeper", "one")
	write("second")
	j.fails(4, "runs", "agent", "restore", "keeper", "one")
	j.ok("agent", "stop", "keeper")
	j.fails(5, "two", "agent", "restore", "keeper", "two")
	j.fails(5, "two", "agent", "snapshot", "keeper", "two", "--remove")
	j.ok("agent", "restore", "keeper", "one")
	j.ok("agent", "launch", "keeper")
	if out, _ := j.run("agent", "connect", "keeper", "--", "/bin/busybox", "cat", "/workspace/f"); !strings.Contains(out, "first") {
		j.t.Errorf("after going back the file says %q", out)
	}
	if s := j.ok("agent", "snapshots", "keeper"); !strings.Contains(s, "one") {
		j.t.Errorf("the snapshots are\n%s", s)
	}
	j.recorded("[agent.restore]")
	j.ok("agent", "stop", "keeper")
	j.ok("agent", "rm", "keeper")
}

// egressKilled: what is held is held again, answers stand, and what was open
// is closed.
func (j *journey) egressKilled() {
	j.t.Helper()
	id, out := j.ask("192.0.2.11")
	j.ok("approve", id, "--scope", "session", "--operator", "ada")
	if s := <-out; strings.Contains(s, "403") {
		j.t.Errorf("the approved client said %q", s)
	}
	id, out = j.ask("192.0.2.12")
	j.kill("egress")
	if s := <-out; !strings.Contains(s, "error") {
		j.t.Errorf("the client whose egress died said %q, want an error", s)
	}
	if again := j.pending("192.0.2.12"); again != id {
		j.t.Errorf("the request that was held is %q now, was %q", again, id)
	}
	_, out = j.ask("192.0.2.12")
	select {
	case s := <-out:
		j.t.Errorf("it was not held again: %q", s)
	case <-time.After(500 * time.Millisecond):
	}
	j.ok("approve", id, "--deny", "--operator", "eve")
	if s := <-out; !strings.Contains(s, "403") {
		j.t.Errorf("the denied client said %q", s)
	}
	start := time.Now()
	if s, _ := j.inside("probe http://192.0.2.11/"); strings.Contains(s, "403") || time.Since(start) > 15*time.Second {
		j.t.Errorf("the approval for the session did not stand: %q after %v", s, time.Since(start))
	}
}

func (j *journey) othersKilled() {
	j.t.Helper()
	j.kill("registry")
	j.registry()
	j.kill("router")
	if s, _ := j.inside("probe http://inference.local/v1/models"); !strings.HasPrefix(s, "200") {
		j.t.Errorf("the router's next life said %q", s)
	}
}

// guardKilled: agents are stopped; the next guard enforces.
func (j *journey) guardKilled() {
	j.t.Helper()
	j.kill("guard")
	j.wait("the agent to be stopped", func() bool { return j.status().Agents[0].State == "stopped" })
	j.ok("agent", "launch", "busy")
	j.inside("busybox cp /bin/busybox /workspace/c; /workspace/c true")
	j.recorded("/workspace/c")
}

// ledgerKilled: everything ends, and the next start says so.
func (j *journey) ledgerKilled(daemon *exec.Cmd) {
	j.t.Helper()
	pid := j.status().Agents[0].PID
	j.check(syscall.Kill(j.service("ledger").PID, syscall.SIGKILL))
	j.wait("the agent to end", func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) })
	j.wait("the appliance to end", func() bool { return daemon.ProcessState != nil })
	if daemon.ProcessState.ExitCode() == 0 {
		j.t.Error("serve ended with status 0")
	}
	j.serve()
	j.recorded("the ledger's service ended")
	j.ok("audit", "verify")
	if out := j.ok("install", j.at("stick"), "--answers", j.at("answers.yaml")); !strings.Contains(out, "nothing to repair") {
		j.t.Errorf("installing over what has run said\n%s", out)
	}
}
