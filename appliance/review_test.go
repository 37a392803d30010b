package appliance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/egress"
	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/appliance/holds"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/service"
	"github.com/clawbox/clawbox/policies"
	"golang.org/x/sys/unix"
)

// pretend is a part whose service is h, in this process.
func pretend(t testing.TB, role string, h service.Handler) *part {
	t.Helper()
	x, y, err := service.Pair()
	must(t, err)
	ours, err := service.NewConn(x, nil)
	must(t, err)
	theirs, err := service.NewConn(y, h)
	must(t, err)
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return &part{role: role, p: &service.Process{Role: role, Conn: ours}}
}

// heldRequest is one that waits in a real book, as egress shows it.
func heldRequest(t testing.TB) control.Pending {
	t.Helper()
	b, err := holds.Open(holds.Config{File: filepath.Join(t.TempDir(), "book"), Recorder: quiet{}, Timeout: time.Minute})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	go b.Ask(ctx, holds.Question{Subject: holds.Subject{Agent: "ada", Host: "api.example", Port: 443}, Policy: "p"}, nil)
	srv := httptest.NewServer(holds.Handler(b, func(string) {}))
	t.Cleanup(srv.Close)
	for {
		resp, err := http.Get(srv.URL + "/v1/approvals")
		must(t, err)
		var h control.Held
		must(t, json.NewDecoder(resp.Body).Decode(&h))
		resp.Body.Close()
		if len(h.Pending) > 0 {
			return h.Pending[0]
		}
		time.Sleep(time.Millisecond)
	}
}

type quiet struct{}

func (quiet) Record(context.Context, ...ledger.Record) error { return nil }

// TestBentApproval: an egress that shows an operator one policy change and the
// supervisor another is refused, and nothing is wanted of the policy. What the
// operator answers is on the ledger by the supervisor's hand.
func TestBentApproval(t *testing.T) {
	honest := heldRequest(t)
	bent := honest
	bent.Change = `network: {allow: [{host: "*"}]}`
	other := honest
	other.Digest = "sha256:00"
	for name, c := range map[string]struct {
		shows control.Pending
		code  string
	}{"honest": {honest, ""}, "bent": {bent, "refused"}, "another digest": {other, "refused"}} {
		t.Run(name, func(t *testing.T) {
			a := bare(t)
			must(t, a.openLedgerBy(openHere))
			defer a.log.Close()
			var posted int
			d := newDesk(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPost {
					posted++
					if n := len(a.asked.now); (n == 1) != (name == "honest") {
						t.Errorf("%d policy changes are wanted", n)
					}
				}
				json.NewEncoder(w).Encode(control.Held{Pending: []control.Pending{c.shows}})
			}))
			a.parts = []*part{pretend(t, "egress", func(_ context.Context, r *service.Request) (any, error) {
				f, err := r.File(0)
				must(t, err)
				defer f.Close()
				conn, err := net.FileConn(f)
				must(t, err)
				return nil, d.put(conn)
			})}
			body, err := json.Marshal(control.AnswerRequest{Digest: honest.Digest, Allow: true, Scope: "always", Operator: "ada"})
			must(t, err)
			w := httptest.NewRecorder()
			a.approvals().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/approvals/"+honest.ID, bytes.NewReader(body)))
			var e control.Error
			_ = json.Unmarshal(w.Body.Bytes(), &e)
			if e.Code != c.code || posted == 1 != (c.code == "") {
				t.Errorf("code %q, want %q; forwarded %d times: %s", e.Code, c.code, posted, w.Body)
			}
			rs := entries(t, a)
			last := rs[len(rs)-1]
			if (last.Reason == "approval.answered") != (c.code == "") {
				t.Errorf("the ledger ends with %+v", last)
			}
		})
	}
}

// TestForeignWriterIsEnded: a service that writes what isn't its own to write
// is not only cut off, it is replaced.
func TestForeignWriterIsEnded(t *testing.T) {
	a := served(t)
	ctx := context.Background()
	must(t, a.startRouter(ctx))
	old := a.part("router").process()
	w := writerFor(t, a, "router")
	if err := w.Record(ctx, ledger.Record{Kind: ledger.KindApproval, Verdict: ledger.Allowed}); err == nil {
		t.Fatal("the router wrote an approval")
	}
	<-old.Done()
	soon(t, "another router", func() bool { p := a.part("router").process(); return p != nil && p != old })
}

// soon waits for what comes by itself.
func soon(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 20 s for %s", what)
		}
	}
}

// TestStamps: what a service writes carries its name, and what it says of time
// and agent is held against what the ledger knows.
func TestStamps(t *testing.T) {
	a := served(t)
	ctx := context.Background()
	must(t, a.nameAgents(ctx))
	w := writerFor(t, a, "egress")
	now := time.Now()
	for _, r := range []ledger.Record{
		{Agent: "ada"},
		{Agent: "ada", Time: now.Add(-time.Hour), Attrs: map[string]any{"came": "never", "writer": "ledger"}},
		{Agent: "ada", Time: now.Add(time.Hour)},
		{Agent: "eve"},
	} {
		r.Kind, r.Verdict = ledger.KindConnect, ledger.Denied
		must(t, w.Record(ctx, r))
	}
	a.dismissAll()
	for i, r := range entries(t, a)[1:] {
		came, isCome := r.Attrs["came"]
		if r.Attrs["writer"] != "egress" || isCome != (i == 1 || i == 2) || came == "never" || (r.Attrs["agent_unknown"] == true) != (i == 3) {
			t.Errorf("record %d: %v", i, r.Attrs)
		}
	}
}

// TestStuckService: one that is stopped is ended by whoever waits for it, and
// by the look after it; the supervisor answers meanwhile.
func TestStuckService(t *testing.T) {
	a := served(t)
	ctx := context.Background()
	must(t, a.startRouter(ctx))
	p := a.part("router").process()
	stop(t, p.PID)
	short, cancel := context.WithTimeoutCause(ctx, 100*time.Millisecond, errStuck)
	defer cancel()
	if err := a.part("router").call(short, callAgent, agentInfo{}, nil); !errors.Is(err, errStuck) {
		t.Errorf("a call to it: %v", err)
	}
	<-p.Done()
	soon(t, "another router", func() bool { q := a.part("router").process(); return q != nil && q != p })
	p = a.part("router").process()
	stop(t, p.PID)
	go heed(p, time.Millisecond, 50*time.Millisecond)
	<-p.Done()
	// Without the ledger's service the status comes all the same.
	stop(t, a.part("ledger").process().PID)
	start := time.Now()
	if st := a.Status(); len(st.Services) != 2 || time.Since(start) > 3*lookTime {
		t.Errorf("after %v the status says %+v", time.Since(start), st)
	}
	must(t, syscall.Kill(a.part("ledger").process().PID, syscall.SIGCONT))
}

// stop stops a process, and returns when it has stopped.
func stop(t testing.TB, pid int) {
	t.Helper()
	must(t, syscall.Kill(pid, syscall.SIGSTOP))
	soon(t, "the process to stop", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		must(t, err)
		_, rest, _ := strings.Cut(string(b), ") ")
		return strings.HasPrefix(rest, "T")
	})
}

// TestPushWaits: a service that is being started has perhaps been told what is
// no longer so; who has news waits, and tells it then.
func TestPushWaits(t *testing.T) {
	told := make(chan string, 1)
	p := pretend(t, "router", func(_ context.Context, r *service.Request) (any, error) { told <- r.Method; return nil, nil })
	a := &Appliance{parts: []*part{{role: "router"}}}
	part := a.parts[0]
	part.starting.Lock()
	done := make(chan struct{})
	go func() { defer close(done); a.push("router", callForget, ref{"ada"}) }()
	select {
	case <-told:
		t.Fatal("told before it runs")
	case <-time.After(20 * time.Millisecond):
	}
	part.mu.Lock()
	part.p = p.p
	part.mu.Unlock()
	part.starting.Unlock()
	if m := <-told; m != callForget {
		t.Errorf("told %q", m)
	}
	<-done
}

// TestSameCrew: an agent in whose start a service was replaced is refused.
func TestSameCrew(t *testing.T) {
	a := &Appliance{parts: []*part{pretend(t, "guard", nil), pretend(t, "router", nil), pretend(t, "egress", nil)}}
	before := a.crew()
	must(t, a.sameCrew(before))
	a.parts[2].p = &service.Process{}
	if err := a.sameCrew(before); err == nil || !strings.Contains(err.Error(), "egress") {
		t.Errorf("another egress: %v", err)
	}
}

// TestTierAtRestart: a second guard that reaches less than the operator
// accepted is no guard, and the first one's tier stays.
func TestTierAtRestart(t *testing.T) {
	a := &Appliance{tier: guard.Tier("T3")}
	if err := a.judgeTier(guardState{Tier: guard.TierNone, Why: "a test"}); err == nil || !strings.Contains(err.Error(), "a test") {
		t.Errorf("got %v", err)
	}
	if a.tier != "T3" {
		t.Errorf("the tier is %s", a.tier)
	}
}

// TestAtStart: rules that can't work before the agent starts again.
func TestAtStart(t *testing.T) {
	const head = "apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: p}\n"
	parse := func(s string) *policies.Policy {
		p, err := policies.Parse("p.yaml", []byte(head+s))
		must(t, err)
		return p
	}
	const (
		none = "network: {allow: [{host: a.example}]}\n"
		insp = "network: {allow: [{host: a.example, ports: [443], inspect: true, protocol: http, access: full}]}\n"
		more = "network: {allow: [{host: a.example, ports: [443], inspect: true, protocol: http, access: full}, {host: b.example, ports: [443], inspect: true, protocol: http, access: full}]}\n"
		web  = "network: {allow: [{host: a.example, ports: [80], protocol: http, access: full}]}\n"
		cred = "credentials: [{name: tok, env: TOK}]\n"
	)
	for _, c := range []struct{ old, now, want string }{
		{none, none, ""}, {insp, none, ""}, {insp, more, ""}, {none, insp, "CA"}, {none, web, ""}, {none, none + cred, "credentials"}, {none + cred, none + cred, ""},
	} {
		if got := atStart(parse(c.old), parse(c.now)); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%q to %q: %q", c.old, c.now, got)
		}
	}
}

// TestNobodyOfOurs: no policy makes an agent one of the appliance's own users.
func TestNobodyOfOurs(t *testing.T) {
	a := &Appliance{cfg: config.Config{UIDBase: 400000, Engine: config.Engine{UID: 401024}}}
	for id, want := range map[string]bool{"": true, "own": true, "1000": true, "401024": false, "401025": false, "401027": false, "401039": false, "401040": true} {
		if err := a.strangers(policies.Process{User: id}); (err == nil) != want {
			t.Errorf("user %q: %v", id, err)
		}
		if err := a.strangers(policies.Process{Group: id}); (err == nil) != want {
			t.Errorf("group %q: %v", id, err)
		}
	}
}

// TestDoor: there is room for so many, and where only root may come nobody
// else does.
func TestDoor(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o711))
	must(t, os.Chmod(dir, 0o711))
	hello := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	serve := func(s socket) string {
		s.h = hello
		srv, l, err := serveUnix(dir, s)
		must(t, err)
		go srv.Serve(l)
		t.Cleanup(func() { srv.Close() })
		return filepath.Join(dir, s.name)
	}
	path := serve(socket{name: "a", mode: 0o666, conns: 2})
	for range 2 {
		c, err := net.Dial("unix", path)
		must(t, err)
		defer c.Close()
	}
	time.Sleep(10 * time.Millisecond)
	if s := greet(path); s != "" {
		t.Errorf("the third one was told %q", s)
	}
	if os.Geteuid() != 0 {
		t.Skipf("needs root to come as somebody else; got uid %d", os.Geteuid())
	}
	open, root := serve(socket{name: "b", mode: 0o666, conns: 2}), serve(socket{name: "c", mode: 0o666, conns: 2, root: true})
	if greet(open) == "" || greet(root) == "" {
		t.Error("root was not let in")
	}
	said := make(chan [2]string)
	go func() {
		runtime.LockOSThread() // for good: it is another user's from now on
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); e != 0 {
			t.Error(e)
		}
		said <- [2]string{greet(open), greet(root)}
	}()
	if s := <-said; s[0] == "" || s[1] != "" {
		t.Errorf("another user was told %q", s)
	}
	full := serve(socket{name: "d", mode: 0o666, conns: 8})
	held := make(chan bool)
	go func() {
		runtime.LockOSThread()
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); e != 0 {
			t.Error(e)
		}
		for range 20 {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				err = unix.Connect(fd, &unix.SockaddrUnix{Name: full})
			}
			if err != nil {
				t.Error(err)
			}
			defer unix.Close(fd)
		}
		held <- true
		<-held
	}()
	<-held
	defer close(held)
	for range 3 {
		if greet(full) == "" {
			t.Error("another user keeps root out")
		}
	}
}

// TestCrowd: no user keeps another from the health socket, and all of them
// together not the one that the appliance runs as.
func TestCrowd(t *testing.T) {
	root := self()
	c := crowd{most: healthConns}
	in := map[uint32]int{}
	for range healthConns {
		for uid := root + 1; uid <= root+3; uid++ {
			if c.enter(uid) {
				in[uid]++
			}
		}
	}
	if in[root+1] != 4 || in[root+2] != 4 || in[root+3] != 4 || c.enter(root+4) {
		t.Errorf("others are in as %v, want four each and three quarters of %d together", in, healthConns)
	}
	for i := range healthConns / 4 {
		if !c.enter(root) {
			t.Errorf("only %d of root's own were let in", i)
		}
	}
	if c.enter(root) {
		t.Errorf("more than %d are in", healthConns)
	}
	c.leave(root + 1)
	if c.enter(root+2) || !c.enter(root+4) {
		t.Error("a place that became free went to a user who has a quarter already, or to nobody")
	}
	for _, uid := range []uint32{root + 2, root + 3, root} {
		for range 4 {
			c.leave(uid)
		}
	}
	for range 3 {
		c.leave(root + 1)
	}
	c.leave(root + 4)
	if len(c.in)+c.others != 0 {
		t.Errorf("they left, and there are still %v and %d", c.in, c.others)
	}
	for range healthConns {
		if !c.enter(root) {
			t.Fatal("root may not have all places where nobody else comes")
		}
	}
}

// greet asks a socket, from this thread.
func greet(path string) string {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return ""
	}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	if _, err := unix.Write(fd, []byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
		return ""
	}
	b := make([]byte, 4096)
	n, _ := unix.Read(fd, b)
	return string(b[:max(n, 0)])
}

// TestDeskOfTheGone: a connection of an agent that has just ended doesn't leave
// its policy to the next of its name.
func TestDeskOfTheGone(t *testing.T) {
	rs := &routerService{desks: map[string]*desk{}}
	info := agentInfo{ID: "ada", Policy: "p.yaml", Source: []byte("apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: p}\n")}
	old, err := rs.agents.put(info)
	must(t, err)
	rs.agents.drop("ada")
	if _, err := rs.desk(old); err == nil {
		t.Error("it was served")
	}
	if _, err := rs.agents.put(info); err != nil {
		t.Fatal(err)
	}
	if _, err := rs.desk(old); err == nil {
		t.Error("it was served as the next of its name")
	}
}

// TestHandedOver: egress's word does not make a connection an agent's: the router
// takes those that were made in the network namespace of the agent's sandbox.
func TestHandedOver(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	must(t, err)
	defer c.Close()
	stream, err := c.(*net.TCPConn).File()
	must(t, err)
	defer stream.Close()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	defer pc.Close()
	packets, err := pc.(*net.UDPConn).File()
	must(t, err)
	defer packets.Close()
	here, err := egress.Netns(stream)
	must(t, err)
	rs := &routerService{desks: map[string]*desk{}}
	info := agentInfo{ID: "ada", Policy: "p.yaml", Source: []byte("apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: p}\n")}
	put := func(netns uint64) *listed {
		info.Netns = netns
		ag, err := rs.agents.put(info)
		must(t, err)
		return ag
	}
	if _, err := ofAgent(put(0), stream); err == nil {
		t.Error("an agent without a sandbox has a connection")
	}
	if _, err := ofAgent(put(here+1), stream); err == nil {
		t.Error("another namespace's connection is the agent's")
	}
	other, err := c.(*net.TCPConn).File() // which the router closes
	must(t, err)
	_, err = rs.take(context.Background(), &service.Request{Method: callConn, Body: []byte(`{"agent": "ada"}`), Files: []*os.File{other}})
	if err == nil || !strings.Contains(err.Error(), "network namespace") {
		t.Errorf("the router takes another namespace's connection: %v", err)
	}
	ag := put(here)
	if put(0) != ag || ag.net.Load() != here {
		t.Error("who tells of the agent without its namespace makes it forget that")
	}
	if _, err := ofAgent(ag, packets); err == nil {
		t.Error("a socket for packets is a connection")
	}
	got, err := ofAgent(ag, stream)
	must(t, err)
	got.Close()
}

// TestPacedIsBounded: no service has an agent paused for ever, or in the past.
func TestPacedIsBounded(t *testing.T) {
	a := bare(t)
	must(t, a.openLedgerBy(openHere))
	defer a.log.Close()
	ag := a.agents["ada"]
	for wait, most := range map[time.Duration]time.Duration{1<<63 - 1: longest, -1 << 62: 0} {
		ag.mu.Lock()
		ag.paused = time.Time{}
		ag.mu.Unlock()
		b, err := json.Marshal(pacing{Agent: "ada", Wait: wait, Grown: true})
		must(t, err)
		must(t, a.paced(&service.Request{Method: callPaced, Body: b}))
		ag.mu.Lock()
		if left := time.Until(ag.paused); left > most || left < most-time.Minute {
			t.Errorf("told to wait %v, it waits %v, want %v", wait, left, most)
		}
		ag.mu.Unlock()
	}
}

// TestLooksAtProcesses: a process that does not exist may be a hidden one, so
// the kernel reports the look, and it is recorded.
func TestLooksAtProcesses(t *testing.T) {
	p, err := policies.Parse("p.yaml", []byte("apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: p}\nfilesystem: {read: [/proc, /etc]}\n"))
	must(t, err)
	if l := looks(p); !slices.Contains(l, "/etc") || slices.Contains(l, "/proc") {
		t.Errorf("the kernel keeps quiet about %v", l)
	}
	w := &witness{agents: func(string) (*governing, bool) { return &governing{p, "d"}, true }}
	for path, want := range map[string]int{
		"/proc/4711/environ": 1, "/proc/4711": 1, "/proc//4711/x": 1, "/proc/self/nothing": 0, "/proc/nothing": 0, "/etc/4711": 0, "/proc/4711x": 0, "/root/x": 1,
	} {
		e := guard.Event{Kind: guard.Refused, Scope: "ada", Path: path, Syscall: "openat", Errno: syscall.ENOENT}
		if got := len(w.observe(nil, e)); got != want {
			t.Errorf("%s: %d records, want %d", path, got, want)
		}
	}
}

// TestBurrow: a guard finds its place again when somebody swept it away, and
// nobody sweeps away that of a living appliance.
func TestBurrow(t *testing.T) {
	root, err := guard.Cgroup2Dir()
	if err != nil || os.Geteuid() != 0 {
		t.Skipf("needs root and a cgroup v2 hierarchy: uid %d, %v", os.Geteuid(), err)
	}
	living, dead := filepath.Join(root, burrowPrefix+"1"), filepath.Join(root, burrowPrefix+"4194305")
	for _, d := range []string{living, dead} {
		must(t, os.MkdirAll(d, 0o755))
		defer os.Remove(d)
	}
	b, err := newBurrow(root, 65534)
	must(t, err)
	if _, err := os.Stat(living); err != nil {
		t.Errorf("that of a living one: %v", err)
	}
	if _, err := os.Stat(dead); err == nil {
		t.Error("that of a dead one stays")
	}
	must(t, b.Close())
	f, err := b.leaf()
	must(t, err)
	must(t, f.Close())
	if owner(filepath.Join(b.dir, "self")) != 65534 {
		t.Error("it is not the guard's")
	}
	must(t, b.Close())
	must(t, b.Close())
}

// TestReloadSaysWhatHolds: the answer to a reload is of the new policy.
func TestReloadSaysWhatHolds(t *testing.T) {
	a := bare(t)
	must(t, a.openLedgerBy(openHere))
	defer a.log.Close()
	p := *a.agents["ada"].policy()
	p.Network.Default = policies.Hold
	src := p.YAML()
	st, err := a.Reload(context.Background(), "ada", control.PolicyRequest{Name: "new.yaml", Source: src})
	must(t, err)
	want, err := policies.Parse("new.yaml", src)
	must(t, err)
	if st.Digest != want.Digest() {
		t.Errorf("digest %s, want %s", st.Digest, want.Digest())
	}
}

// TestGive: what root owned in an earlier release becomes a service's, once,
// and what links lead to stays what it was.
func TestGive(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skipf("needs root to give files away; got uid %d", os.Geteuid())
	}
	dir := t.TempDir()
	tree, file, secret := filepath.Join(dir, "tree"), filepath.Join(dir, "tree", "sub", "file"), filepath.Join(dir, "secret")
	must(t, os.MkdirAll(filepath.Dir(file), 0o700))
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.WriteFile(secret, nil, 0o600))
	must(t, os.Symlink(secret, filepath.Join(tree, "link")))
	must(t, os.Lchown(file, 4711, 4711)) // an earlier attempt came so far
	must(t, give(tree, 4711))
	for _, p := range []string{tree, filepath.Dir(file), file, filepath.Join(tree, "link")} {
		if owner(p) != 4711 {
			t.Errorf("%s is user %d's", p, owner(p))
		}
	}
	if owner(secret) != 0 {
		t.Error("a link was followed")
	}
	must(t, os.Lchown(file, 0, 0))
	must(t, give(tree, 4711))
	if owner(file) != 0 {
		t.Error("a tree that is given already was walked again")
	}
}
