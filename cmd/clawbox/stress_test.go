package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/control"
)

// TestStress kills and stops services at random while agents are launched,
// stopped, entered, reloaded, kept and put back, and ask for what is held; and
// at last the appliance itself. Whatever was hit, agents are governed or they
// don't run, and nothing of it stays. Five seconds, or with CLAWBOX_LONG=1 a
// minute.
func TestStress(t *testing.T) {
	length := 5 * time.Second
	if os.Getenv("CLAWBOX_LONG") != "" {
		length = time.Minute
	}
	j := newJourney(t)
	j.install()
	daemon := j.serve()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	j.write("disk.yaml", strings.Replace(policy, "memory: 128MiB", "memory: 128MiB, disk: 32MiB", 1))
	j.write("wide.yaml", strings.Replace(policy, "default: hold", "default: hold, allow: [{host: 192.0.2.77}]", 1))
	j.ok("agent", "launch", "s0", "--agent", "busy", "--policy", j.at("disk.yaml"))
	j.ok("agent", "stop", "s0")
	before := j.steady(daemon.Process.Pid)

	end := time.Now().Add(length)
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() { j.restless(fmt.Sprintf("s%d", i), rand.New(rand.NewPCG(seed, uint64(i))), end) })
	}
	hits := j.hostile(rand.New(rand.NewPCG(seed, 99)), end)
	wg.Wait()
	t.Logf("services hit: %v", hits)

	j.wait("all services", func() bool {
		_, code := j.run("status")
		return code == 0 && !slices.ContainsFunc(j.status().Services, func(s control.ServiceStatus) bool { return s.PID == 0 })
	})
	for i := range 3 {
		j.governs(fmt.Sprintf("s%d", i))
	}
	j.settled(daemon.Process.Pid, before)
	j.ok("agent", "launch", "s0")
	j.check(daemon.Process.Kill()) // in the middle of an agent's life
	j.wait("the appliance to end", func() bool { return daemon.ProcessState != nil })
	daemon = j.serve()
	j.governs("s0")
	for i := range 3 {
		name := fmt.Sprintf("s%d", i)
		j.run("agent", "stop", name)
		j.ok("agent", "rm", name)
	}
	j.ok("audit", "verify")
	j.check(daemon.Process.Signal(syscall.SIGTERM))
	j.wait("the appliance to end", func() bool { return daemon.ProcessState != nil })
	j.nothingLeft()
}

// restless does one thing after another to an agent. What is refused while a
// service is down is fine; what takes longer than anybody waits is not.
func (j *journey) restless(name string, r *rand.Rand, end time.Time) {
	does := [][]string{
		{"agent", "launch", name, "--agent", "busy", "--policy", j.at("disk.yaml")},
		{"agent", "launch", name},
		{"agent", "launch", name},
		{"agent", "stop", name, "--grace", "0s"},
		{"agent", "reload", name, j.at("wide.yaml")},
		{"agent", "connect", name, "--", "/bin/sh", "-c", "echo x > /workspace/f; probe http://192.0.2.78/"},
		{"agent", "snapshot", name, "snap"},
		{"agent", "snapshot", name, "snap", "--remove"},
		{"agent", "restore", name, "snap"},
		{"agent", "rm", name},
		{"status"},
		{"approve", "list"},
	}
	for time.Now().Before(end) {
		args := does[r.IntN(len(does))]
		start := time.Now()
		out, code := j.run(args...)
		if took := time.Since(start); took > 75*time.Second {
			j.t.Errorf("%v took %v: status %d, %s", args, took, code, out)
		}
		if strings.Contains(out, "panic") || strings.Contains(out, "without saying why") {
			j.t.Errorf("%v: status %d, %s", args, code, out)
		}
	}
}

// hostile ends or stops services at random moments, but for the ledger, whose
// end is the appliance's.
func (j *journey) hostile(r *rand.Rand, end time.Time) map[string]int {
	hits := map[string]int{}
	roles := []string{"egress", "router", "guard", "registry"}
	for time.Now().Before(end) {
		time.Sleep(time.Duration(r.IntN(700)) * time.Millisecond)
		role := roles[r.IntN(len(roles))]
		pid := 0
		for _, s := range j.status().Services {
			if s.Name == role {
				pid = s.PID
			}
		}
		sig := []syscall.Signal{syscall.SIGKILL, syscall.SIGKILL, syscall.SIGSTOP}[r.IntN(3)]
		if pid == 0 || syscall.Kill(pid, sig) != nil {
			continue
		}
		hits[role+" "+sig.String()]++
		if sig == syscall.SIGSTOP {
			time.AfterFunc(time.Duration(r.IntN(3000))*time.Millisecond, func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
		}
	}
	return hits
}

// governs wants an agent that runs now to be watched and held.
func (j *journey) governs(name string) {
	j.t.Helper()
	if out, code := j.run("agent", "launch", name); code != 0 && !strings.Contains(out, "runs already") {
		j.ok("agent", "launch", name, "--agent", "busy", "--policy", j.at("disk.yaml"))
	}
	in := func(script string) string {
		out, _ := j.run("agent", "connect", name, "--", "/bin/sh", "-c", script)
		return out
	}
	host := fmt.Sprintf("198.51.100.%d", 1+time.Now().UnixNano()%250) // a denial stands for a minute
	mark := fmt.Sprintf("/workspace/c%d", time.Now().UnixNano())
	if out := in("busybox cp /bin/busybox " + mark + "; " + mark + " echo loose"); strings.Contains(out, "loose") {
		j.t.Errorf("agent %s ran a program that is not listed: %s", name, out)
	}
	j.recorded(mark)
	done := make(chan string, 1)
	go func() { done <- in("probe http://" + host + "/") }()
	id := j.pending(host)
	j.ok("approve", id, "--deny", "--operator", "eve")
	if s := <-done; !strings.Contains(s, "403") {
		j.t.Errorf("agent %s: the denied client said %q", name, s)
	}
}

// settled stops all agents, and wants the supervisor to hold no more than before.
func (j *journey) settled(pid, before int) {
	j.t.Helper()
	for _, ag := range j.status().Agents {
		j.run("agent", "stop", ag.Name)
	}
	now := 0
	defer func() { j.t.Logf("%d descriptors, before %d", now, before) }()
	j.wait(fmt.Sprintf("no more than %d descriptors", before+8), func() bool {
		now = j.descriptors(pid)
		return now <= before+8 // connections that are about to be closed
	})
}

// steady counts descriptors when their number has not changed for a second: after
// a start, launchers that wait for the next ones are made.
func (j *journey) steady(pid int) (n int) {
	j.t.Helper()
	since := time.Now()
	j.wait("a steady number of descriptors", func() bool {
		if now := j.descriptors(pid); now != n {
			n, since = now, time.Now()
		}
		return time.Since(since) > time.Second
	})
	return n
}

func (j *journey) descriptors(pid int) int {
	j.t.Helper()
	es, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	j.check(err)
	return len(es)
}

// nothingLeft looks for mounts, loop devices, processes and pins of this host.
func (j *journey) nothingLeft() {
	j.t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	j.check(err)
	if strings.Contains(string(b), j.host) {
		j.t.Errorf("mounts stay:\n%s", b)
	}
	for _, f := range glob(j, "/sys/block/loop*/loop/backing_file") {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), j.dir) {
			j.t.Errorf("%s stays: %s", f, b)
		}
	}
	for _, p := range glob(j, "/proc/[0-9]*/root") {
		exe, err := os.Readlink(filepath.Dir(p) + "/exe")
		if err == nil && strings.HasPrefix(exe, j.host) {
			j.t.Errorf("process %s stays: %s", p, exe)
		}
	}
	sum := sha256.Sum256([]byte(filepath.Join(j.host, "var/lib/clawbox")))
	for _, pattern := range []string{"/sys/fs/cgroup/*/clawbox-%.4x", "/sys/fs/cgroup/clawbox-%.4x"} {
		if left := glob(j, fmt.Sprintf(pattern, sum[:6])); len(left) > 0 {
			j.t.Errorf("%v stay", left)
		}
	}
	if _, err := os.Stat(filepath.Join(j.host, "var/lib/clawbox/running")); !errors.Is(err, os.ErrNotExist) {
		j.t.Errorf("it did not end in order: %v", err)
	}
}

func glob(j *journey, pattern string) []string {
	j.t.Helper()
	names, err := filepath.Glob(pattern)
	j.check(err)
	return names
}
