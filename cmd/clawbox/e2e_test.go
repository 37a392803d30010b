package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/internal/ocitree"
)

// journey is a small release, its stick, and a host to install it on.
type journey struct {
	t    *testing.T
	dir  string
	host string
}

// newJourney builds the two programs, an image around busybox and a program
// of testdata, and a stick.
func newJourney(t *testing.T) *journey { return newRelease(t, "probe", policy) }

func newRelease(t *testing.T, prog, policy string) *journey {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("needs root for namespaces, cgroups and BPF; got uid %d", os.Geteuid())
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skipf("needs a static busybox for the image (Debian: busybox-static): %v", err)
	}
	// A short path: sockets below it have 107 bytes. Not below TMPDIR of the
	// test, which others may not pass: the engine's user must.
	dir, err := os.MkdirTemp("/var/tmp", "clawbox-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	j := &journey{t: t, dir: dir, host: filepath.Join(dir, "host")}
	j.sh("go", "build", "-o", j.at("clawbox"), ".")
	j.env("CGO_ENABLED=0", "go", "build", "-o", j.at("clawbox-launch"), "../clawbox-launch")
	j.env("CGO_ENABLED=0", "go", "build", "-o", j.at(prog), "./testdata/"+prog)
	j.image(map[string]string{"bin/busybox": busybox, "bin/sh": busybox, "bin/other": busybox, "bin/" + prog: j.at(prog)})
	j.write("recipe.yaml", recipe)
	j.write("policy.yaml", policy)
	j.write("answers.yaml", answersText)
	j.ok("key", "generate", "e2e", "--out", j.at("e2e"))
	j.ok("bundle", "-f", j.at("recipe.yaml"), "-o", j.at("stick"), "--key", j.at("e2e.key"), "--store", j.at("store"), "--part-size", "4MiB")
	return j
}

// recipe has a name in the store that stays from release to release: the policy's.
const recipe = `apiVersion: clawbox.io/v1
kind: Recipe
metadata: {name: e2e, version: 0.1.0}
sequence: 1
items:
  - {name: busy, kind: image, source: "oci-layout:image:latest", licence: GPL-2.0-only, redistributable: true}
  - {name: clawbox, kind: file, source: "file:clawbox", path: bin/clawbox, mode: "0755", licence: Apache-2.0, redistributable: true}
  - {name: clawbox-launch, kind: file, source: "file:clawbox-launch", path: bin/clawbox-launch, mode: "0755", licence: Apache-2.0, redistributable: true}
  - {name: busy-policy, kind: policy, ref: "e2e/rules:stable", source: "file:policy.yaml", path: policies/busy.yaml, licence: Apache-2.0, redistributable: true}
`

const policy = `apiVersion: clawbox.io/v1
kind: AgentPolicy
metadata: {name: busy}
filesystem: {read: [/bin, /etc, /proc, /dev], write: [/workspace, /tmp], workdir: /workspace}
process: {exec: [/bin/busybox, /bin/sh, /bin/probe], spawn: true, seccomp: default}
network: {default: hold}
budgets: {processes: 32, memory: 128MiB, wallTime: 10m}
`

const answersText = `apiVersion: clawbox.io/v1
kind: Answers
operator: tester
start: none
registry: 127.0.0.1:5917
holdSeconds: 20
agents:
  - {name: busy, image: "busy:0.1.0", policy: busy.yaml, args: [/bin/busybox, sleep, "100000"]}
`

// image writes an OCI layout with one image of the programs given, by their
// place in it.
func (j *journey) image(programs map[string]string) {
	j.check(os.MkdirAll(j.at("root/etc"), 0o755))
	j.check(os.MkdirAll(j.at("root/bin"), 0o755))
	for name, from := range programs {
		prog, err := os.ReadFile(from)
		j.check(err)
		j.check(os.WriteFile(j.at("root/"+name), prog, 0o755))
	}
	j.check(ocitree.Write(j.at("image"), os.DirFS(j.at("root")), v1.Config{}))
}

func (j *journey) at(name string) string { return filepath.Join(j.dir, name) }

func (j *journey) check(err error) {
	j.t.Helper()
	if err != nil {
		j.t.Fatal(err)
	}
}

func (j *journey) write(name, text string) {
	j.t.Helper()
	j.check(os.WriteFile(j.at(name), []byte(text), 0o644))
}

func (j *journey) sh(args ...string) { j.t.Helper(); j.env("", args...) }

func (j *journey) env(env string, args ...string) {
	j.t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env)
	if out, err := cmd.CombinedOutput(); err != nil {
		j.t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// run runs clawbox against the host and returns all output and the status.
func (j *journey) run(args ...string) (string, int) {
	j.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, j.at("clawbox"), append([]string{"--root", j.host}, args...)...)
	out, err := cmd.CombinedOutput()
	var e *exec.ExitError
	if err != nil && !errors.As(err, &e) {
		j.t.Fatalf("clawbox %v: %v", args, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// ok wants success.
func (j *journey) ok(args ...string) string {
	j.t.Helper()
	out, code := j.run(args...)
	if code != 0 {
		j.t.Fatalf("clawbox %s: status %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// fails wants a status, and a word in the message.
func (j *journey) fails(code int, word string, args ...string) {
	j.t.Helper()
	out, got := j.run(args...)
	if got != code || !strings.Contains(out, word) {
		j.t.Fatalf("clawbox %s: status %d, want %d and %q in\n%s", strings.Join(args, " "), got, code, word, out)
	}
}

func (j *journey) install() {
	j.t.Helper()
	j.ok("install", j.at("stick"), "--key", j.at("e2e.pub"), "--answers", j.at("answers.yaml"))
}

// inside runs a script in the sandbox.
func (j *journey) inside(script string) (string, int) {
	j.t.Helper()
	return j.run("agent", "connect", "busy", "--", "/bin/sh", "-c", script)
}

// serve starts the installed appliance and waits until it answers.
func (j *journey) serve() *exec.Cmd {
	j.t.Helper()
	return j.start(exec.Command(filepath.Join(j.host, "usr/local/bin/clawbox"), "--root", j.host, "serve"))
}

// start runs a command that serves, until the test ends.
func (j *journey) start(cmd *exec.Cmd) *exec.Cmd {
	j.t.Helper()
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	j.check(cmd.Start())
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	j.t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-done
		if j.t.Failed() {
			j.t.Logf("serve said:\n%s", log.String())
		}
	})
	j.wait("the appliance", func() bool {
		_, code := j.run("status")
		return code == 0
	})
	return cmd
}

func (j *journey) wait(what string, f func() bool) {
	j.t.Helper()
	for end := time.Now().Add(30 * time.Second); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			j.t.Fatalf("waited 30 s for %s", what)
		}
	}
}

// TestJourney is the main job on a small release: install, govern, approve,
// prove; then the faults that an operator meets.
func TestJourney(t *testing.T) {
	j := newJourney(t)
	if !t.Run("tampered stick", j.tampered) {
		t.FailNow() // a stick that was left tampered with is no start
	}
	j.install()
	if out := j.ok("install", j.at("stick"), "--answers", j.at("answers.yaml")); !strings.Contains(out, "nothing to repair") {
		t.Errorf("installing again said\n%s", out)
	}
	daemon := j.serve()
	j.ok("agent", "launch", "busy")
	t.Run("governed", func(t *testing.T) { j.as(t).governed() })
	t.Run("held", func(t *testing.T) { j.as(t).held() })
	t.Run("reload", func(t *testing.T) { j.as(t).reload() })
	t.Run("registry", func(t *testing.T) { j.as(t).registry() })
	t.Run("health", func(t *testing.T) { j.as(t).health() })
	t.Run("daemon killed", func(t *testing.T) { j.as(t).daemonKilled(daemon) })
	t.Run("ledger", func(t *testing.T) { j.as(t).ledger() })
}

// as makes failures belong to a subtest.
func (j *journey) as(t *testing.T) *journey { return &journey{t: t, dir: j.dir, host: j.host} }

// tampered flips bytes all over the stick; each is refused by verify and by
// install, and nothing appears below the host's root.
func (j *journey) tampered(t *testing.T) {
	j = j.as(t)
	parts, _ := filepath.Glob(j.at("stick/clawbox/parts/*"))
	for _, path := range append(parts, j.at("stick/clawbox/index.json"), j.at("stick/clawbox/release.note")) {
		b, err := os.ReadFile(path)
		j.check(err)
		for _, at := range []int{0, len(b) / 3, len(b) - 1} {
			b[at] ^= 0x01
			j.check(os.WriteFile(path, b, 0o644))
			j.fails(3, filepath.Base(path), "verify", j.at("stick"), "--key", j.at("e2e.pub"))
			j.fails(3, filepath.Base(path), "install", j.at("stick"), "--key", j.at("e2e.pub"), "--answers", j.at("answers.yaml"), "--deep")
			b[at] ^= 0x01
			j.check(os.WriteFile(path, b, 0o644))
			if _, err := os.Stat(j.host); err == nil {
				t.Fatalf("a refused install made %s", j.host)
			}
		}
	}
}

// governed looks at the four layers from inside, and at their records.
func (j *journey) governed() {
	j.t.Helper()
	cases := []struct{ script, want, record string }{
		{"busybox cat " + j.host + "/etc/clawbox/appliance.yaml", "No such file", "appliance.yaml"},
		{"echo x > /bin/planted", "Read-only", "/bin/planted"},
		{"/bin/other true", "Permission denied", "/bin/other"},
		{"busybox cp /bin/busybox /workspace/b && /workspace/b true", "Permission denied", "/workspace/b"},
		{"busybox kill -9 1; busybox true && echo alive", "alive", "kill refused"},
		{"busybox mount -t tmpfs none /tmp", "permission denied", "mount refused"},
		{"probe http://127.0.0.1:5917/v2/", "net.", "[net."},
		{"probe http://169.254.169.254/", "net.", "169.254.169.254"},
	}
	for _, c := range cases {
		out, _ := j.inside(c.script)
		if !strings.Contains(out, c.want) {
			j.t.Errorf("%s: said %q, want %q", c.script, out, c.want)
		}
		if c.record == "" {
			continue
		}
		j.wait("a record of "+c.record, func() bool {
			return strings.Contains(j.ok("audit", "replay", "--agent", "busy", "--verdict", "denied"), c.record)
		})
	}
	out, _ := j.inside("busybox ls /proc | busybox grep -c '^[0-9]'; busybox cut -d: -f1 /proc/net/dev | busybox tail -n +3")
	if f := strings.Fields(out); len(f) != 2 || f[1] != "lo" {
		j.t.Errorf("the sandbox sees processes and interfaces %q, want a few and lo", f)
	}
}

// held holds a literal address that no rule names, denies it, and finds both
// records.
func (j *journey) held() {
	j.t.Helper()
	out := make(chan string, 1)
	go func() {
		s, _ := j.inside("probe http://192.0.2.7/")
		out <- s
	}()
	var id string
	j.wait("a held request", func() bool {
		for line := range strings.Lines(j.ok("approve")) {
			if f := strings.Fields(line); len(f) > 2 && f[2] == "192.0.2.7:80" {
				id = f[0]
			}
		}
		return id != ""
	})
	j.ok("approve", id, "--deny", "--operator", "eve")
	if s := <-out; !strings.Contains(s, "403") {
		j.t.Errorf("the denied client said %q", s)
	}
	j.fails(5, "nothing is held", "approve", id, "--once")
	if s := j.ok("audit", "replay", "--kind", "approval"); !strings.Contains(s, "192.0.2.7") {
		j.t.Errorf("no approval record in\n%s", s)
	}
}

// reload changes network rules while the agent runs; locked layers are refused.
func (j *journey) reload() {
	j.t.Helper()
	j.write("closed.yaml", strings.Replace(policy, "default: hold", "default: deny", 1))
	j.ok("agent", "reload", "busy", j.at("closed.yaml"))
	if out, _ := j.inside("probe http://192.0.2.8/"); !strings.Contains(out, "403") {
		j.t.Errorf("an unlisted host after the reload said %q, want 403", out)
	}
	j.write("wider.yaml", strings.Replace(policy, "/bin/probe]", "/bin/probe, /bin/other]", 1))
	j.fails(4, "process rules are locked", "agent", "reload", "busy", j.at("wider.yaml"))
}

// registry answers like one.
func (j *journey) registry() {
	j.t.Helper()
	c, err := net.Dial("tcp", "127.0.0.1:5917")
	j.check(err)
	defer c.Close()
	fmt.Fprint(c, "GET /v2/busy/tags/list HTTP/1.0\r\n\r\n")
	b, err := io.ReadAll(c)
	j.check(err)
	if !bytes.Contains(b, []byte("0.1.0")) {
		j.t.Errorf("the registry lists\n%s", b)
	}
}

// health answers what the installer's health gate asks for.
func (j *journey) health() {
	j.t.Helper()
	c, err := net.Dial("unix", filepath.Join(j.host, "run/clawbox/health.sock"))
	j.check(err)
	defer c.Close()
	fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n")
	b, err := io.ReadAll(c)
	j.check(err)
	if !bytes.Contains(b, []byte("200 OK")) || !bytes.Contains(b, []byte(`"sequence":1`)) {
		j.t.Errorf("the health socket says\n%s", b)
	}
}

// daemonKilled kills the appliance: the sandbox dies with it, and the next
// start goes on with the same ledger and the agent's files.
func (j *journey) daemonKilled(daemon *exec.Cmd) {
	j.t.Helper()
	j.inside("echo kept > /workspace/kept")
	var pid int
	out := j.ok("agent", "status", "busy")
	fmt.Sscanf(out[strings.Index(out, "pid "):], "pid %d", &pid)
	if pid == 0 {
		j.t.Fatalf("no pid in\n%s", out)
	}
	j.check(daemon.Process.Kill())
	j.wait("the sandbox to die with its daemon", func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) })
	j.fails(6, "serve", "status")
	j.serve()
	j.ok("agent", "launch", "busy")
	if out, _ := j.inside("busybox cat /workspace/kept"); !strings.Contains(out, "kept") {
		j.t.Errorf("the agent's file after the restart: %q", out)
	}
	j.ok("audit", "verify")
}

// ledger changes every file of a copy, a byte here and there, and cuts its
// tail: each is found.
func (j *journey) ledger() {
	j.t.Helper()
	anchor := j.at("anchor")
	j.check(os.WriteFile(anchor, []byte(j.ok("audit", "anchor")), 0o644))
	j.ok("audit", "verify", "--anchor", anchor)
	dir := j.at("copy")
	j.check(os.CopyFS(dir, os.DirFS(filepath.Join(j.host, "var/lib/clawbox/ledger"))))
	files, _ := filepath.Glob(dir + "/*")
	for _, path := range files {
		b, err := os.ReadFile(path)
		j.check(err)
		for _, at := range []int{0, len(b) / 2, len(b) - 1} {
			b[at] ^= 0x01
			j.check(os.WriteFile(path, b, 0o600))
			j.fails(3, filepath.Base(path), "audit", "verify", "--dir", dir)
			b[at] ^= 0x01
		}
		j.check(os.WriteFile(path, b[:len(b)-1], 0o600))
		j.fails(3, filepath.Base(path), "audit", "verify", "--dir", dir)
		j.check(os.WriteFile(path, b, 0o600))
	}
}
