package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/ledger"
	"golang.org/x/sys/unix"
)

// TestComplete counts what an agent did against what the ledger holds: each
// open, connect and exec that succeeded has exactly its record, with every core
// busy, a neighbour that floods the guard, a ledger that stands still for a
// while, and one that is killed.
func TestComplete(t *testing.T) {
	j := newRelease(t, "crowd", crowdPolicy)
	// Its allowance would soon slow the neighbour down, and it is to flood to the end.
	j.write("answers.yaml", answersText+"recordMiB: 4096\n")
	j.install()
	daemon := j.serveAlone()
	t.Run("full", func(t *testing.T) { j.as(t).full() })
	t.Run("slow ledger", func(t *testing.T) { j.as(t).slowLedger() })
	t.Run("killed ledger", func(t *testing.T) { j.as(t).killedLedger(daemon) })
}

// TestPaced: an agent that floods the ledger gets what it may write, and then
// runs at the pace at which it may write more; others are as they were.
func TestPaced(t *testing.T) {
	j := newRelease(t, "crowd", crowdPolicy)
	j.write("answers.yaml", answersText+"recordMiB: 4\n")
	j.install()
	j.serve()
	j.ok("agent", "launch", "calm", "--agent", "busy")
	before := j.ledgerSize()
	j.ok("agent", "launch", "loud", "--agent", "busy", "--", "/bin/crowd", "flood", "long")
	j.recorded("[budget.records]")
	j.wait("the flood to stand still", func() bool {
		n := j.ledgerSize()
		time.Sleep(time.Second)
		return j.ledgerSize()-n < 4<<10
	})
	// 2 MiB, and what was in the guard's ring when it was frozen: at full speed
	// that is a few seconds' work.
	n := j.ledgerSize() - before
	t.Logf("the flood wrote %d bytes", n)
	if n < 1<<20 || n > 64<<20 {
		t.Errorf("the flood wrote %d bytes, want 2 to 64 MiB", n)
	}
	if s := j.ok("agent", "status", "loud"); !strings.Contains(s, "slowed down 1 times") || !strings.Contains(s, "now until") {
		t.Errorf("status says\n%s", s)
	}
	if out, code := j.run("agent", "connect", "calm", "--", "/bin/busybox", "echo", "here"); code != 0 || out != "here\n" {
		t.Errorf("the other agent: status %d, %s", code, out)
	}
	began := time.Now()
	j.ok("agent", "stop", "loud", "--grace", "0s")
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("a frozen agent took %v to stop", d)
	}
	// Its launcher would stand still as it did, and give no answer.
	began = time.Now()
	j.fails(4, "agent loud is in debt of records", "agent", "launch", "loud")
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("the launch of an agent in debt took %v to be refused", d)
	}
	if s := j.ok("agent", "status", "loud"); !strings.Contains(s, "stopped on request") {
		t.Errorf("after a launch that was refused status says\n%s", s)
	}
	j.ok("audit", "verify")
	if n := j.status().Lost; n != 0 {
		t.Errorf("%d events were lost", n)
	}
}

// ledgerSize is what the ledger's files hold, in bytes.
func (j *journey) ledgerSize() (n int64) {
	j.t.Helper()
	j.check(filepath.WalkDir(filepath.Join(j.host, "var/lib/clawbox/ledger"), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // files come and go
		}
		if st, err := d.Info(); err == nil {
			n += st.Size()
		}
		return nil
	}))
	return n
}

const crowdPolicy = `apiVersion: clawbox.io/v1
kind: AgentPolicy
metadata: {name: busy}
filesystem: {read: [/bin, /etc, /proc, /dev], write: [/workspace, /tmp], workdir: /workspace}
process: {exec: [/bin/busybox, /bin/crowd], spawn: true, seccomp: default}
network: {default: deny, allow: [{cidr: 198.51.0.0/16, ports: [80]}]}
audit: {files: all, network: all}
budgets: {processes: 64, memory: 256MiB, wallTime: 10m}
`

// serveAlone serves in a network namespace of its own, in which everything
// that the policy allows is there: one server.
func (j *journey) serveAlone() *exec.Cmd {
	j.t.Helper()
	script := `busybox ip link set lo up && busybox ip route add local 198.51.0.0/16 dev lo && exec "$0" --root "$1" serve`
	cmd := exec.Command("/bin/sh", "-c", script, filepath.Join(j.host, "usr/local/bin/clawbox"), j.host)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	j.start(cmd)
	l, err := listenIn(cmd.Process.Pid)
	j.check(err)
	j.t.Cleanup(func() { l.Close() })
	go func() {
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			go func() {
				defer c.Close()
				_, _ = c.Read(make([]byte, 512)) // the request
				fmt.Fprint(c, "HTTP/1.0 204 No Content\r\n\r\n")
			}()
		}
	}()
	return cmd
}

// listenIn listens on port 80 in another process's network.
func listenIn(pid int) (l net.Listener, err error) {
	there, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, err
	}
	defer there.Close()
	done := make(chan struct{})
	go func() { // on a thread that ends with it
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err == nil {
			l, err = net.Listen("tcp4", ":80")
		}
	}()
	<-done
	return l, err
}

// noise keeps the host busy, by a process of its own and by an agent that
// opens files as fast as it can, until the result is called.
func (j *journey) noise() func() {
	j.t.Helper()
	j.ok("agent", "launch", "loud", "--agent", "busy", "--", "/bin/crowd", "flood")
	c := exec.Command("busybox", "sh", "-c", "while :; do :; done") // last: what fails leaves none behind
	j.check(c.Start())
	return func() {
		j.run("agent", "stop", "loud", "--grace", "0s") // with a killed ledger it has ended
		c.Process.Kill()
		c.Wait()
	}
}

// deeds are how often each is done.
type deeds struct{ open, connect, exec int }

// many is 20,000 of what fits a minute, and of all with CLAWBOX_LONG=1.
func many() deeds {
	if os.Getenv("CLAWBOX_LONG") != "" {
		return deeds{20000, 20000, 20000}
	}
	return deeds{20000, 5000, 5000}
}

// each calls f for every kind at the same time, and waits.
func (d deeds) each(f func(what string, n int)) {
	var wg sync.WaitGroup
	for what, n := range map[string]int{"open": d.open, "connect": d.connect, "exec": d.exec} {
		wg.Go(func() { f(what, n) })
	}
	wg.Wait()
}

// crowd begins deeds in the agent, and returns what waits for their end.
func (j *journey) crowd(round string, d deeds) (wait func()) {
	j.ok("agent", "launch", round, "--agent", "busy")
	done := make(chan struct{})
	quiet := j.noise()
	go func() {
		defer close(done)
		defer quiet()
		d.each(func(what string, n int) {
			began := time.Now()
			out, code := j.run("agent", "connect", round, "--", "/bin/crowd", what, fmt.Sprint(n), "/workspace/"+what)
			j.t.Logf("%s: %d times %s in %v: status %d %.300s", round, n, what, time.Since(began).Round(time.Millisecond), code, out)
		})
	}()
	return func() { <-done }
}

// tally is what an agent's crowd has done. The agent must run: its files are on
// a disk of its own.
func (j *journey) tally(round, what string) []byte {
	j.t.Helper()
	return []byte(j.ok("agent", "connect", round, "--", "/bin/busybox", "cat", "/workspace/"+what))
}

func succeeded(tally []byte) int {
	return bytes.Count(tally, []byte("d")) + bytes.Count(tally, []byte("a"))
}

// full: everything there is, all at once.
func (j *journey) full() {
	d := many()
	j.crowd("full", d)()
	d.each(func(what string, n int) {
		if got := succeeded(j.tally("full", what)); got != n {
			j.t.Errorf("%d of %d deeds of kind %s succeeded", got, n, what)
		}
	})
	j.counted("full")
}

// slowLedger: the ledger stands still for a second, twice.
func (j *journey) slowLedger() {
	wait := j.crowd("slow", deeds{5000, 1000, 1000})
	for range 2 {
		time.Sleep(time.Second)
		pid := j.service("ledger").PID
		j.check(syscall.Kill(pid, syscall.SIGSTOP))
		time.Sleep(time.Second)
		j.check(syscall.Kill(pid, syscall.SIGCONT))
	}
	wait()
	j.counted("slow")
}

// killedLedger: the ledger is killed in the middle.
func (j *journey) killedLedger(daemon *exec.Cmd) {
	wait := j.crowd("killed", deeds{200000, 20000, 20000})
	pid := j.service("ledger").PID
	j.wait("the crowd to be at work", func() bool {
		for what, n := range map[string]int{"open": 5000, "exec": 100, "connect": 100} {
			out, code := j.run("agent", "connect", "killed", "--", "/bin/busybox", "cat", "/workspace/"+what)
			if code != 0 || succeeded([]byte(out)) < n {
				return false
			}
		}
		return true
	})
	j.check(syscall.Kill(pid, syscall.SIGKILL))
	wait()
	j.wait("the appliance to end", func() bool { return daemon.ProcessState != nil })
	j.serveAlone()
	j.ok("agent", "launch", "killed")
	j.counted("killed")
}

// counted holds a round's deeds against the ledger.
func (j *journey) counted(round string) {
	j.t.Helper()
	tallies := map[string][]byte{}
	for _, what := range []string{"open", "connect", "exec"} {
		tallies[what] = j.tally(round, what)
	}
	j.ok("agent", "stop", round, "--grace", "0s") // then all of it is recorded
	j.ok("audit", "verify")
	told, decided := j.told(round)
	j.matched(round, "open", tallies["open"], told, func(i int) string { return fmt.Sprintf("/tmp/deed-%d", i) })
	j.matched(round, "exec", tallies["exec"], told, spelling)
	j.matched(round, "connect", tallies["connect"], told, address)
	j.matched(round, "answer", tallies["connect"], decided, address)
}

// told counts an agent's records of deeds: the guard's by path or address, and
// egress's decisions by address.
func (j *journey) told(round string) (deeds, decided map[string]int) {
	j.t.Helper()
	deeds, decided = map[string]int{}, map[string]int{}
	again := map[string]bool{} // an event that was recorded, and not acknowledged when the guard died
	for e, err := range ledger.Read(filepath.Join(j.host, "var/lib/clawbox/ledger"), 0) {
		j.check(err)
		r := e.Record
		if seq := r.Attrs["seq"]; seq != nil {
			// Not by its time: another guard measures the clocks' distance anew.
			id := fmt.Sprint(r.Kind, r.Path, r.Host, seq)
			if again[id] {
				continue
			}
			again[id] = true
		}
		switch {
		case r.Agent != round:
		case r.Kind == ledger.KindWeakening:
			j.t.Errorf("%s: %s", r.Reason, r.Detail)
		case r.Reason == "net.attempt":
			deeds[r.Host]++
		case r.Reason == "net.allowed" || r.Reason == "net.unlisted":
			decided[fmt.Sprintf("%s:%d", r.Host, r.Port)]++
		case r.Verdict == ledger.Allowed && (r.Kind == ledger.KindExec || r.Kind == ledger.KindFile):
			deeds[r.Path]++
		}
	}
	return deeds, decided
}

// matched wants exactly one record of each deed that is done.
func (j *journey) matched(round, what string, tally []byte, told map[string]int, name func(int) string) {
	j.t.Helper()
	did, missing, twice := 0, 0, 0
	for i, state := range tally {
		n := told[name(i)]
		if n > 1 {
			twice++
		}
		if state == 'a' || state == 'd' && what != "answer" {
			did++
			missing += max(0, 1-n)
		}
	}
	j.t.Logf("%s: %d times %s done, %d without a record, %d with more than one", round, did, what, missing, twice)
	if did == 0 || missing > 0 || twice > 0 {
		j.t.Errorf("%s: %d times %s done, %d without a record, %d with more than one", round, did, what, missing, twice)
	}
}

// address is where deed i of crowd connects to.
func address(i int) string {
	net := "198.51"
	if i%50 == 49 {
		net = "203.0"
	}
	return fmt.Sprintf("%s.%d.%d:80", net, i/250, 1+i%250)
}

// spelling is the program's name in deed i of crowd.
func spelling(i int) string {
	var b strings.Builder
	b.WriteString("/bin")
	for k := range 15 {
		b.WriteString("/." + strings.Repeat("/", i>>k&1))
	}
	return b.String() + "/busybox"
}
