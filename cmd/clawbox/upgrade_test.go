package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"filippo.io/age"
)

// stick builds a later release: sequence seq, with what the edits change in the
// recipe. It returns the directory.
func (j *journey) stick(name, seq string, edits ...string) string {
	j.t.Helper()
	return j.bundle(name, seq, "e2e.key", nil, edits...)
}

// bundle is stick with another key, and more flags for 'clawbox bundle'.
func (j *journey) bundle(name, seq, key string, flags []string, edits ...string) string {
	j.t.Helper()
	r := strings.NewReplacer(append([]string{"version: 0.1.0", "version: 0." + seq + ".0", "sequence: 1", "sequence: " + seq}, edits...)...).Replace(recipe)
	j.write(name+".yaml", r)
	args := []string{"bundle", "-f", j.at(name + ".yaml"), "-o", j.at(name), "--key", j.at(key), "--store", j.at("store"), "--part-size", "4MiB", "--lock", j.at(name + ".lock")}
	j.ok(append(args, flags...)...)
	return j.at(name)
}

// program writes a script that takes the place of the main program.
func (j *journey) program(name, script string) string {
	j.t.Helper()
	j.write(name, "#!/bin/sh\n"+script+"\n")
	return "file:" + name
}

// ends waits for a daemon that somebody else has ended.
func (j *journey) ends(daemon *exec.Cmd) {
	j.t.Helper()
	j.wait("the appliance to end", func() bool { return daemon.ProcessState != nil })
}

// TestUpgradeJourney goes from release to release: forward with an agent's
// files kept, back by itself from two broken ones and from a killed upgrade,
// back by hand, and away.
func TestUpgradeJourney(t *testing.T) {
	j := newJourney(t)
	j.install()
	daemon := j.serve()
	j.ok("agent", "launch", "busy")
	j.inside("echo kept > /workspace/kept")

	t.Run("forward", func(t *testing.T) { j.as(t).forward(daemon) })
	t.Run("broken", func(t *testing.T) { j.as(t).broken() })
	t.Run("killed", func(t *testing.T) { j.as(t).killed() })
	t.Run("kept elsewhere", func(t *testing.T) { j.as(t).keptElsewhere() })
	t.Run("back", func(t *testing.T) { j.as(t).back() })
	t.Run("trust", func(t *testing.T) { j.as(t).trusted() })
	t.Run("away", func(t *testing.T) { j.as(t).leaves() })
}

// forward upgrades under an agent that runs.
func (j *journey) forward(daemon *exec.Cmd) {
	j.write("policy.yaml", strings.Replace(policy, "processes: 32", "processes: 33", 1))
	two := j.stick("two", "2")
	if out := j.ok("upgrade", two, "--dry-run"); !strings.Contains(out, "Arm one try") || !strings.Contains(out, "0.2.0") {
		j.t.Errorf("the plan is\n%s", out)
	}
	out := j.ok("upgrade", two)
	if !strings.Contains(out, "agents started again: busy") || !strings.Contains(out, "clawbox serve") && !strings.Contains(out, "serve --config") {
		j.t.Errorf("upgrade said\n%s", out)
	}
	j.ends(daemon)
	j.fails(4, "installed already", "upgrade", two)
	j.runs("0.2.0", "33")
	for _, want := range []string{"upgrade from e2e 0.1.0 to e2e 0.2.0 has begun", "the release is tried", "is committed"} {
		if s := j.ok("audit", "replay", "--kind", "install"); !strings.Contains(s, want) {
			j.t.Errorf("no %q in\n%s", want, s)
		}
	}
}

// runs starts the appliance and its agent, and wants a version, the agent's
// file, and that version's policy.
func (j *journey) runs(version, processes string) {
	j.t.Helper()
	daemon := j.serve()
	if out := j.ok("status"); !strings.Contains(out, "e2e "+version) {
		j.t.Errorf("status says\n%s", out)
	}
	j.ok("agent", "launch", "busy")
	if out, _ := j.inside("busybox cat /workspace/kept"); !strings.Contains(out, "kept") {
		j.t.Errorf("the agent's file: %q", out)
	}
	if out := j.ok("agent", "status", "busy"); !strings.Contains(out, "busy:"+version) {
		j.t.Errorf("the agent is\n%s", out)
	}
	b, err := os.ReadFile(filepath.Join(j.host, "opt/clawbox/current/policies/busy.yaml"))
	if err != nil || !strings.Contains(string(b), "processes: "+processes) {
		j.t.Errorf("the policy in place: %s, %v", b, err)
	}
	j.ok("audit", "verify")
	if out := j.ok("doctor"); strings.Contains(out, "failure") || !strings.Contains(out, "every turn of upgrades") {
		j.t.Errorf("doctor says\n%s", out)
	}
	j.check(daemon.Process.Signal(syscall.SIGTERM))
	j.ends(daemon)
}

// broken tries two releases that don't hold.
func (j *journey) broken() {
	// A difference to what is installed, which is all that the media bring.
	ends := j.bundle("ends", "3", "e2e.key", []string{"--since", j.at("two")}, "file:clawbox\"", j.program("ends.sh", "echo broken on purpose; exit 3")+"\"")
	j.fails(7, "broken on purpose", "upgrade", ends)
	hangs := j.stick("hangs", "3", "file:clawbox\"", j.program("hangs.sh", "exec sleep 1000")+"\"")
	j.fails(7, "deadline", "upgrade", hangs, "--deadline", "1500ms")
	j.runs("0.2.0", "33")
	out := j.ok("audit", "replay", "--kind", "install", "--verdict", "denied")
	if !strings.Contains(out, "was taken back") || !strings.Contains(out, "broken on purpose") || !strings.Contains(out, "deadline") {
		j.t.Errorf("the ledger has\n%s", out)
	}
}

// killed kills the upgrade while the release is tried.
func (j *journey) killed() {
	cmd := exec.Command(j.at("clawbox"), "--root", j.host, "upgrade", j.at("hangs"))
	j.check(cmd.Start())
	tried := filepath.Join(j.host, "var/lib/clawbox/install/tried")
	j.wait("the release to be entered", func() bool { _, err := os.Stat(tried); return err == nil })
	j.fails(4, "at work", "upgrade", j.at("hangs"))
	j.check(cmd.Process.Kill())
	_ = cmd.Wait() // killed
	j.fails(1, "was cut off", "doctor")
	j.ok("support-bundle", j.at("support.tar.gz"))
	j.runs("0.2.0", "33")
	if _, err := os.Stat(tried); !errors.Is(err, os.ErrNotExist) {
		j.t.Errorf("the marker stays: %v", err)
	}
	if out := j.ok("audit", "replay", "--kind", "install", "--verdict", "denied"); !strings.Contains(out, "cut off") {
		j.t.Errorf("the ledger has\n%s", out)
	}
}

// keptElsewhere makes a backup and takes it back, and an older one not.
func (j *journey) keptElsewhere() {
	j.ok("backup", j.at("one.backup"))
	state := filepath.Join(j.host, "var/lib/clawbox/agents/busy/agent.json")
	j.check(os.Remove(state))
	j.ok("restore", j.at("one.backup"), "--check")
	j.ok("restore", j.at("one.backup"))
	j.runs("0.2.0", "33")
	j.fails(4, "never goes back", "restore", j.at("one.backup"))
	if out := j.ok("audit", "replay", "--kind", "install"); !strings.Contains(out, "restore of e2e 0.2.0: from a backup") {
		j.t.Errorf("the ledger has\n%s", out)
	}
}

// back goes back to the first release.
func (j *journey) back() {
	j.fails(4, "clawbox rollback", "upgrade", j.at("stick"))
	j.ok("rollback", "--operator", "eve")
	j.runs("0.1.0", "32")
	if out := j.ok("audit", "replay", "--kind", "install"); !strings.Contains(out, "rollback from e2e 0.2.0 to e2e 0.1.0 is committed") {
		j.t.Errorf("the ledger has\n%s", out)
	}
}

// trusted takes nothing by a key that the host doesn't know, until told to. The
// media are encrypted, and a part of them is lost.
func (j *journey) trusted() {
	j.ok("key", "generate", "other", "--out", j.at("other"))
	id, err := age.GenerateX25519Identity()
	j.check(err)
	j.check(os.WriteFile(j.at("identity"), []byte(id.String()+"\n"), 0o600))
	j.bundle("again", "4", "other.key", []string{"--recipient", id.Recipient().String(), "--parity", "1"})
	j.check(os.Remove(j.at("again/clawbox/parts/part-0002")))
	j.fails(3, "trusts", "upgrade", j.at("again"), "--identity", j.at("identity"))
	j.fails(1, "encrypted", "upgrade", j.at("again"), "--add-key", j.at("other.pub"))
	if out := j.ok("upgrade", j.at("again"), "--add-key", j.at("other.pub"), "--identity", j.at("identity")); !strings.Contains(out, "0.4.0") {
		j.t.Errorf("upgrade said\n%s", out)
	}
	b, err := os.ReadFile(filepath.Join(j.host, "etc/clawbox/trusted.vkeys"))
	if err != nil || strings.Count(string(b), "+") < 4 {
		j.t.Errorf("the trusted keys: %s, %v", b, err)
	}
	j.runs("0.4.0", "33")
	if out := j.ok("audit", "replay", "--kind", "install"); !strings.Contains(out, "added keys") {
		j.t.Errorf("the ledger has\n%s", out)
	}
}

// leaves uninstalls, under a running appliance; what was recorded can still be
// proved, and then everything goes.
func (j *journey) leaves() {
	j.t.Helper()
	daemon := j.serve()
	j.ok("agent", "launch", "busy")
	if out := j.ok("uninstall", "--dry-run"); !strings.Contains(out, "stays") {
		j.t.Errorf("the plan is\n%s", out)
	}
	j.ok("uninstall", "--operator", "eve")
	j.ends(daemon)
	dir := filepath.Join(j.host, "var/lib/clawbox/ledger")
	vkey := filepath.Join(j.host, "etc/clawbox/ledger.vkey")
	j.ok("audit", "verify", "--dir", dir, "--key", vkey)
	if out := j.ok("audit", "replay", "--dir", dir, "--kind", "install"); !strings.Contains(out, "uninstall of e2e") {
		j.t.Errorf("the ledger has\n%s", out)
	}
	j.fails(5, "clawbox install", "status")
	j.nothingLeft()
	j.ok("uninstall", "--purge")
	left, err := os.ReadDir(filepath.Join(j.host, "var/lib"))
	if err != nil || len(left) > 0 {
		j.t.Errorf("%v stay, %v", left, err)
	}
}
