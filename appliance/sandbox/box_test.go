package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/guard"
)

// Agents of one image share its files and no inode: none sees what another opens,
// or makes it wait for a lock.
func TestOwnInodes(t *testing.T) {
	b := newBench(t)
	one, out := b.start(Spec{Name: "one"}, "flock=/bin/probe", "watch=/bin/probe")
	await(t, "the watch", func() bool { return strings.Contains(out.String(), "watching: ok") })
	if got, _, why := b.run(Spec{Name: "two"}, "flock=/bin/probe", "mode=/bin/probe"); got["flock=/bin/probe"] != "ok" {
		t.Errorf("the other's lock: %v %s", got, why)
	}
	_, why := one.Wait()
	if got := answers(out.String()); got["flock=/bin/probe"] != "ok" || got["watch=/bin/probe"] != "ok 1" {
		t.Errorf("got %v %s; want one opening, its own", got, why)
	}
}

func TestStatus(t *testing.T) {
	b := newBench(t)
	if _, code, why := b.run(Spec{}, "exit=3"); code != 3 || why != "exited with status 3" {
		t.Errorf("exit: got %d, %q", code, why)
	}
	box, out := b.start(Spec{}, "trap")
	await(t, "trap", func() bool { return strings.Contains(out.String(), "ready") })
	if err := box.Stop(t.Context(), 10*time.Second); err != nil {
		t.Error(err)
	}
	if code, why := box.Wait(); code != 7 || why != "stopped on request" {
		t.Errorf("after SIGTERM: %d, %q; want the agent's own 7", code, why)
	}
	box, out = b.start(Spec{}, "ignore", "print=on", "sleep=60")
	await(t, "start", func() bool { return strings.Contains(out.String(), "print=on") })
	if err := box.Stop(t.Context(), 50*time.Millisecond); err != nil {
		t.Error(err)
	}
	if code, _ := box.Wait(); code != 137 {
		t.Errorf("after SIGKILL: %d, want 137", code)
	}
	if _, err := box.Exec(t.Context(), ExecSpec{Args: []string{"/bin/probe"}}); !errors.Is(err, errEnded) {
		t.Errorf("exec in an ended sandbox: %v, want %v", err, errEnded)
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if !eventually(ok) {
		t.Fatalf("%s: nothing after 20 s", what)
	}
}

func eventually(ok func() bool) bool {
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

func TestBudgets(t *testing.T) {
	b := newBench(t)
	events := make(chan Event, 100)
	spec := func(name string) Spec {
		p := policy()
		p.Budgets.Processes, p.Budgets.Memory = 60, 64<<20
		return Spec{Name: name, Policy: p, Event: func(e Event) { events <- e }}
	}
	hit := func(want string) {
		t.Helper()
		for {
			select {
			case e := <-events:
				if e.Budget == want && e.Count > 0 {
					return
				}
			case <-time.After(10 * time.Second):
				t.Errorf("no event for %s", want)
				return
			}
		}
	}
	t.Run("processes", func(t *testing.T) {
		box, out := b.start(spec("a"), "forks=500", "print=over", "sleep=60")
		await(t, "fork bomb", func() bool { return strings.Contains(out.String(), "print=over") })
		st, err := box.Stats()
		if err != nil || st.Tasks > 60+supervisorTasks || st.Tasks < 10 || st.Memory == 0 || st.CPU == 0 {
			t.Errorf("stats %+v, %v; want at most %d tasks", st, err, 60+supervisorTasks)
		}
		if got := answers(out.String())["forks=500"]; got != "EAGAIN" {
			t.Errorf("fork bomb ended with %q, want EAGAIN", got)
		}
		hit("processes")
		if err := box.Stop(t.Context(), 0); err != nil {
			t.Error(err)
		}
	})
	t.Run("memory", func(t *testing.T) {
		if _, code, why := b.run(spec("b"), "eat=200", "print=over"); code != 137 || !strings.HasPrefix(why, "budget memory") {
			t.Errorf("memory bomb: status %d, %q; want 137 for lack of memory", code, why)
		}
		hit("memory")
	})
	t.Run("scratch", func(t *testing.T) {
		s := spec("c")
		s.Policy.Budgets.Scratch = 1 << 20
		got, _, _ := b.run(s, "fill=/tmp/big")
		if got["fill=/tmp/big"] != "ENOSPC" {
			t.Errorf("filling /tmp: %v, want ENOSPC", got)
		}
	})
	t.Run("wallTime", func(t *testing.T) {
		s := spec("d")
		s.Policy.Budgets.WallTime = 300 * time.Millisecond
		_, code, why := b.run(s, "ignore", "sleep=60")
		if code != 137 || !strings.HasPrefix(why, "budget wallTime") {
			t.Errorf("wall time: %d, %q", code, why)
		}
		hit("wallTime")
	})
}

// TestExec joins a running sandbox and finds the same confinement.
func TestExec(t *testing.T) {
	b := newBench(t)
	box, _ := b.start(Spec{}, "sleep=60")
	out := &buffer{}
	run := func(e ExecSpec) (map[string]string, int) {
		t.Helper()
		out = &buffer{}
		e.Stdout, e.Stderr = out, out
		code, err := box.Exec(t.Context(), e)
		if err != nil {
			t.Fatalf("%v: %v; output %s", e.Args, err, out)
		}
		return answers(out.String()), code
	}
	tries := []string{
		"pids", "signals=1", "read=/private/key", "call=mount", "links", "cwd", "env=MORE", "list=/",
		"status=CapEff,CapBnd,NoNewPrivs,Seccomp,Uid", "fds", "exit=5",
	}
	got, code := run(ExecSpec{Args: append([]string{"probe"}, tries...), Env: []string{"MORE=x"}})
	want := map[string]string{
		"signals=1": scoped(), "read=/private/key": "EACCES", "call=mount": "EPERM", "links": "ok lo:loopback", "cwd": "ok /workspace", "env=MORE": "ok x", "list=/": "EACCES",
		tries[8]: "ok Uid=700000,700000,700000,700000 CapEff=0000000000000000 CapBnd=0000000000000000 NoNewPrivs=1 Seccomp=2",
	}
	for k, w := range want {
		if got[k] != w {
			t.Errorf("%s: got %q, want %q", k, got[k], w)
		}
	}
	if code != 5 || len(strings.Fields(got["pids"])) != 2 {
		t.Errorf("status %d, processes %q; want 5, and only itself: the agent is in another Landlock domain", code, got["pids"])
	}
	if strings.Contains(got["fds"], "pidfd") || strings.Contains(got["fds"], "socket") || strings.Contains(got["fds"], "/dev/null") {
		t.Errorf("descriptors: %s", got["fds"])
	}
	if got, _ := run(ExecSpec{Args: []string{"/bin/probe", "cat"}, Stdin: strings.NewReader("hello\n")}); got["cat"] != "ok 6" {
		t.Errorf("cat: %v", got)
	}
	if _, err := box.Exec(t.Context(), ExecSpec{Args: []string{"/usr/bin/hidden"}}); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("unlisted program: %v, want a refusal", err)
	}
	if _, err := box.Exec(t.Context(), ExecSpec{Args: []string{"nonesuch"}}); err == nil || !strings.Contains(err.Error(), `no program "nonesuch"`) {
		t.Errorf("absent program: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out = &buffer{}
	go func() {
		eventually(func() bool { return strings.Contains(out.String(), "print=on") })
		cancel()
	}()
	if code, err := box.Exec(ctx, ExecSpec{Args: []string{"/bin/probe", "print=on", "sleep=60"}, Stdout: out}); code != 137 {
		t.Errorf("cancelled: %d, %v; want 137", code, err)
	}
}

func TestTerminal(t *testing.T) {
	b := newBench(t)
	box, agent := b.start(Spec{}, "sleep=1", "append=/dev/pts/0", "print=done", "sleep=60")
	out := &buffer{}
	sizes := make(chan Size, 1)
	sizes <- Size{Rows: 40, Cols: 100}
	r, w := io.Pipe()
	defer w.Close()
	go func() {
		w.Write([]byte("line\n\x04"))
		eventually(func() bool { return strings.Contains(agent.String(), "print=done") })
		w.Write([]byte("more\n\x04"))
	}()
	code, err := box.Exec(t.Context(), ExecSpec{Args: []string{"/bin/probe", "cat", "tty", "cat"}, TTY: true, Stdin: r, Stdout: out, Resize: sizes})
	got := answers(out.String())
	if err != nil || code != 0 || !strings.Contains(out.String(), "cat: ok 5\r\n") || got["tty"] != "ok /dev/pts/0 40x100 TIOCSTI=EPERM TIOCSETD=EPERM" {
		t.Errorf("status %d, %v, output %q", code, err, out)
	}
	if got := answers(agent.String())["append=/dev/pts/0"]; got != "EACCES" {
		t.Errorf("the agent opens the operator's terminal: %q", got)
	}
}

// TestStartFails: what cannot start says why and leaves nothing.
func TestStartFails(t *testing.T) {
	b := newBench(t)
	tests := map[string]struct {
		change func(*Spec)
		want   string
	}{
		"name":        {func(s *Spec) { s.Name = "../x" }, `name "../x"; want`},
		"no policy":   {func(s *Spec) { s.Policy = nil }, "no policy"},
		"landlock":    {func(s *Spec) { s.Policy.Require.Landlock = b.l.abi + 1 }, fmt.Sprintf("requires Landlock ABI %d, this kernel has %d", b.l.abi+1, b.l.abi)},
		"no guard":    {func(s *Spec) { s.Policy.Require.Tier = "T3" }, "requires guard tier T3"},
		"entry point": {func(s *Spec) { s.Image.Entrypoint = []string{"nope"} }, `no program "nope"`},
		"no entry":    {func(s *Spec) { s.Image.Entrypoint, s.Args = nil, nil }, "no entry point"},
		"workdir":     {func(s *Spec) { s.Policy.Filesystem.Workdir = "/none" }, "filesystem.workdir"},
		"limit":       {func(s *Spec) { s.Policy.Budgets.OpenFiles = 1 << 30 }, "nofile to 1073741824, hard limit is"},
		"writable":    {func(s *Spec) { s.Policy.Filesystem.Write = []string{"/tools/two/x"} }, "symbolic link"},
		"guard":       {func(s *Spec) { s.Guard = func(guard.Scope) (io.Closer, error) { return nil, errors.New("no eyes") } }, "guard: no eyes"},
		"network": {func(s *Spec) {
			s.Network = func(context.Context, int, *os.File) (io.Closer, error) { return nil, errors.New("no wire") }
		}, "network: no wire"},
		"exec format": {func(s *Spec) { s.Image.Entrypoint = []string{"/data/in"} }, `no program "/data/in"`},
		"profile":     {func(s *Spec) { s.Policy.Process.Seccomp = "loose" }, `no system call profile "loose"`},
		"kernel":      {func(s *Spec) { s.Policy.Require.Kernel = "99.1" }, "requires kernel 99.1"},
		"feature":     {func(s *Spec) { s.Policy.Require.Features = []string{"exec-deny"} }, `the guard's tier is ""`},
		"new feature": {func(s *Spec) { s.Policy.Require.Features = []string{"telepathy"} }, "cannot show"},
		"pinned": {func(s *Spec) {
			s.Policy.Process.ExecHashes = map[string]string{"/bin/probe": "sha256:" + strings.Repeat("0", 64)}
		}, "policy test wants sha256:000"},
		"user":        {func(s *Spec) { s.Policy.Process.User = "0" }, `process.user "0"`},
		"neighbour":   {func(s *Spec) { s.Policy.Process.Group = "700001" }, `process.group "700001"`},
		"capability":  {func(s *Spec) { s.Policy.Process.Capabilities = []string{"SYS_ADMIN"} }, `capability "SYS_ADMIN"`},
		"trust":       {func(s *Spec) { s.TrustPEM = []byte("-----BEGIN KEY-----\nAAAA\n-----END KEY-----\n") }, `type "KEY"`},
		"environment": {func(s *Spec) { s.Env = []string{"X"} }, `environment entry "X"`},
	}
	for name, x := range tests {
		t.Run(name, func(t *testing.T) {
			s := Spec{Name: "agent", Image: b.image, Policy: policy(), Args: []string{"print=ran"}}
			out := &buffer{}
			s.Stdout = out
			x.change(&s)
			box, err := b.l.Start(t.Context(), s)
			if err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("got %v, %v; want an error with %q", box, err, x.want)
			}
			if out.String() != "" {
				t.Errorf("the agent ran: %s", out)
			}
		})
	}
	left, _ := filepath.Glob(filepath.Join(b.state, "agents", "*", skeletonPrefix+"*.new"))
	for _, r := range b.l.h.roots() {
		more, _ := filepath.Glob(filepath.Join(r, b.l.parent, "agent*"))
		left = append(left, more...)
	}
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestHooks: order, arguments and closing.
func TestHooks(t *testing.T) {
	b := newBench(t)
	var log []string
	hook := func(name string) closer { return func() error { log = append(log, "close "+name); return nil } }
	s := Spec{
		Guard: func(sc guard.Scope) (io.Closer, error) {
			log = append(log, fmt.Sprintf("guard %s %d", sc.ID, len(sc.Exec)))
			return hook("guard"), nil
		},
		Network: func(_ context.Context, pid int, ns *os.File) (io.Closer, error) {
			own, _ := os.Readlink("/proc/self/ns/net")
			in, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
			log = append(log, fmt.Sprintf("network %v", ns != nil && in != "" && in != own))
			return hook("network"), nil
		},
	}
	b.run(s, "print=x")
	if got := strings.Join(log, "; "); got != "guard agent 1; network true; close network; close guard" {
		t.Error(got)
	}
}

type closer func() error

func (c closer) Close() error { return c() }

// TestDaemonDies kills a daemon; its sandbox must not outlive it, and the next
// daemon must find the state usable.
func TestDaemonDies(t *testing.T) {
	need(t)
	state := t.TempDir()
	img, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), "CLAWBOX_TEST_DAEMON="+state, "CLAWBOX_TEST_LAUNCHER="+programs.launcher, "CLAWBOX_TEST_LAYERS="+strings.Join(img.Layers, ":"))
	var errs bytes.Buffer
	c.Stderr = &errs
	r, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(r, &pid); err != nil {
		c.Process.Kill()
		t.Fatalf("daemon: %v, %s", err, errs.String())
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if err := c.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.Wait()
	// A pidfd becomes readable when its process ends, reaped or not.
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 20_000); n != 1 {
		t.Fatalf("the sandbox outlived its daemon by 20 s: %v", err)
	}
	l, err := Open(Options{State: state, Launcher: programs.launcher, UIDBase: 700_000})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range l.h.roots() {
		if left, _ := filepath.Glob(filepath.Join(r, l.parent, "*-*")); len(left) > 0 {
			t.Errorf("left after sweep: %v", left)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// daemon runs a sandbox until it is killed.
func daemon(state string) int {
	l, err := Open(Options{State: state, Launcher: os.Getenv("CLAWBOX_TEST_LAUNCHER"), UIDBase: 700_000})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	img := Image{Ref: "probe", Layers: filepath.SplitList(os.Getenv("CLAWBOX_TEST_LAYERS")), Entrypoint: []string{"/bin/probe"}}
	box, err := l.Start(context.Background(), Spec{Name: "agent", Image: img, Policy: policy(), Args: []string{"ignore", "forks=3", "sleep=600"}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(box.PID())
	select {}
}

// TestWarm: waiting launchers serve starts, and one that was ended does not.
func TestWarm(t *testing.T) {
	b := newBench(t)
	b.l.warm = make(chan *shell, 2)
	for round := range 2 {
		b.l.refill()
		if len(b.l.warm) != 2 {
			t.Fatalf("%d wait, want 2", len(b.l.warm))
		}
		if round == 1 {
			b.l.filling.Lock() // the last start has others made soon
			sh := <-b.l.warm
			sh.p.signal(unix.SIGKILL)
			<-sh.p.done
			b.l.warm <- sh
			b.l.filling.Unlock()
		}
		if got, code, why := b.run(Spec{}, "write=/workspace/f", "links", "cwd"); code != 0 || got["write=/workspace/f"] != "ok" || got["links"] != "ok lo:loopback" {
			t.Errorf("%d, %s, %v", code, why, got)
		}
	}
}

// BenchmarkStart is a whole life: start, the agent's first word, end.
func BenchmarkStart(b *testing.B) {
	bn := newBench(b)
	for b.Loop() {
		box, _ := bn.start(Spec{}, "print=x")
		box.Wait()
	}
}

// BenchmarkExec joins a running sandbox for a program that ends at once.
func BenchmarkExec(b *testing.B) {
	bn := newBench(b)
	box, _ := bn.start(Spec{}, "sleep=600")
	for b.Loop() {
		if _, err := box.Exec(b.Context(), ExecSpec{Args: []string{"/bin/probe", "print=x"}}); err != nil {
			b.Fatal(err)
		}
	}
}
