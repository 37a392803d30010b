package egress

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/holds"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

func TestHoldOnce(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	a, b := l.connect("tcp", "new.example:7000"), l.connect("tcp", "new.example:7000")
	io.WriteString(a, "ping\n") // bytes wait too
	p := one(t, l)
	eventually(t, "both wait", func() bool { return l.holds.List()[0].Waiting == 2 })
	if p.Agent != "a1" || p.Host != "new.example" || p.Port != 7000 || len(p.ID) != 16 || p.Change != "network: {allow: [{host: new.example, ports: [7000]}]}" {
		t.Errorf("pending %+v", p)
	}
	a.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a held connection must be open and silent, got %v", err)
	}
	if asked, dialed := l.outside(); len(asked)+len(dialed) != 0 {
		t.Errorf("outside before the answer: asked %v, dialled %v", asked, dialed)
	}
	if err := l.answer(p, true, holds.Once); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	a.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(a, buf); err != nil || string(buf) != "ping\n" {
		t.Errorf("got %q, %v", buf, err)
	}
	if !echoes(b, "pong") {
		t.Error("the other one that waited is not admitted")
	}
	l.connect("tcp", "new.example:7000")
	one(t, l) // asks again
	rs := l.book.find(func(r ledger.Record) bool { return r.Kind == ledger.KindApproval })
	if len(rs) != 1 || rs[0].Attrs["operator"] != "ada" || rs[0].Attrs["scope"] != "once" || rs[0].Verdict != ledger.Allowed || rs[0].Host != "new.example" || rs[0].Port != 7000 {
		t.Errorf("records %+v", rs)
	}
	if got := l.book.reasons(ledger.KindConnect); got[0] != "held net.unlisted" || !contains(got, "allowed approval.once") {
		t.Errorf("records %v", got)
	}
	if err := l.answer(p, true, holds.Once); !errors.Is(err, holds.ErrNoPending) {
		t.Errorf("answered twice: got %v", err)
	}
}

// An answer that comes after the client went away admits the next connection, once.
func TestHoldOnceForNobody(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	a := l.connect("tcp", "new.example:7000")
	p := one(t, l)
	a.Close()
	eventually(t, "nobody waits", func() bool { return l.holds.List()[0].Waiting == 0 })
	if err := l.answer(p, true, holds.Once); err != nil {
		t.Fatal(err)
	}
	if !echoes(l.connect("tcp", "new.example:7000"), "x") {
		t.Error("the next connection is not admitted")
	}
	l.connect("tcp", "new.example:7000")
	one(t, l)
}

func TestHoldSession(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	a := l.connect("tcp", "new.example:7000")
	p := one(t, l)
	if err := l.answer(p, true, holds.Session); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{a, l.connect("tcp", "new.example:7000"), l.connect("tcp", "new.example:7000")} {
		if !echoes(c, "x") {
			t.Error("not admitted")
		}
	}
	l.connect("tcp", "new.example:7001")
	if p := one(t, l); p.Port != 7001 {
		t.Errorf("pending %+v, want another port to ask again", p)
	}
	l.proxy.Recheck("a1")
	if !echoes(a, "still") {
		t.Error("recheck closed a connection that the session allows")
	}
	if err := l.revoke("new.example", 7000); err != nil {
		t.Fatal(err)
	}
	l.proxy.Recheck("a1")
	if err := cut(t, a); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("revoked: got %v", err)
	}
	l.at.Close()
	l.attach()
	l.connect("tcp", "new.example:7000")
	eventually(t, "the question is asked again in another life", func() bool { // the other port's is listed, too, until its time is over
		return slices.ContainsFunc(l.holds.List(), func(p holds.Pending) bool { return p.Port == 7000 && !p.Ended })
	})
}

func TestHoldAlways(t *testing.T) {
	file := t.TempDir() + "/approvals.json"
	where := func(_ *Config, h *holds.Config) { h.File = file }
	l := newLab(t, steered(steer(t)), where)
	a := l.connect("tcp", "new.example:7000")
	if err := l.answer(one(t, l), true, holds.Always); err != nil {
		t.Fatal(err)
	}
	if !echoes(a, "x") {
		t.Error("not admitted")
	}
	// A new daemon.
	l = newLab(t, steered(steer(t)), where)
	if !echoes(l.connect("tcp", "new.example:7000"), "x") {
		t.Error("forgotten at the next start")
	}
	if as := l.holds.Standing(); len(as) != 1 || as[0].Operator != "ada" || as[0].Policy != "test" {
		t.Errorf("got %+v", as)
	}
	// Neither another policy nor a deny rule.
	l.mu.Lock()
	q := *l.pol
	q.Name = "other"
	l.pol = &q
	l.mu.Unlock()
	l.connect("tcp", "new.example:7000")
	one(t, l)
	l.mu.Lock()
	back := q
	back.Name = "test"
	l.pol = &back
	l.mu.Unlock()
	l.network(policies.Network{Default: policies.Hold, Deny: []policies.HostRule{rule("new.example", 7000)}})
	if st, body := l.get("new.example:7000", "new.example"); st != 403 || !strings.Contains(body, policies.ReasonDenied) {
		t.Errorf("an approval overrides a deny rule: got %d %s", st, body)
	}
	if err := l.revoke("new.example", 7000); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(file); err != nil || !strings.Contains(string(b), `"grants": []`) {
		t.Errorf("the file after Revoke: %s %v", b, err)
	}
}

func TestHoldDeny(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	a := l.connect("tcp", "new.example:80")
	if err := l.answer(one(t, l), false, holds.Once); err != nil {
		t.Fatal(err)
	}
	if err := cut(t, a); err == nil {
		t.Error("want a reset")
	}
	for range 3 { // remembered: no new question
		if st, body := l.get("new.example:80", "new.example"); st != 403 || !strings.Contains(body, "net.hold_denied") {
			t.Errorf("got %d %s", st, body)
		}
	}
	if n := len(l.holds.List()); n != 0 {
		t.Errorf("%d pending", n)
	}
}

func TestHoldTimeout(t *testing.T) {
	l := newLab(t, steered(steer(t)), func(_ *Config, h *holds.Config) { h.Timeout = 100 * time.Millisecond })
	if st, body := l.get("new.example:80", "new.example"); st != 403 || !strings.Contains(body, "net.hold_timeout") {
		t.Errorf("got %d %s", st, body)
	}
	if n := len(l.holds.List()); n != 0 {
		t.Errorf("%d pending", n)
	}
	if got := l.book.reasons(ledger.KindConnect); len(got) != 2 || got[0] != "held net.unlisted" || got[1] != "denied net.hold_timeout" {
		t.Errorf("records %v", got)
	}
}

func TestHoldFull(t *testing.T) {
	l := newLab(t, steered(steer(t)), func(_ *Config, h *holds.Config) { h.PerAgent = 2 })
	l.connect("tcp", "n1.example:80")
	l.connect("tcp", "n2.example:80")
	eventually(t, "two pending", func() bool { return len(l.holds.List()) == 2 })
	if st, body := l.get("n3.example:80", "n3.example"); st != 403 || !strings.Contains(body, "net.hold_full") {
		t.Errorf("got %d %s", st, body)
	}
	// A second connection to a known one is welcome.
	l.connect("tcp", "n2.example:80")
	eventually(t, "joined", func() bool { // the two may have come in either order
		return slices.ContainsFunc(l.holds.List(), func(p holds.Pending) bool { return p.Host == "n2.example" && p.Waiting == 2 })
	})
}

// What can't be recorded or stored has no effect, and the question stays.
func TestAnswerFails(t *testing.T) {
	dir := t.TempDir() + "/gone"
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l := newLab(t, steered(steer(t)), func(_ *Config, h *holds.Config) { h.File = dir + "/approvals.json" })
	a := l.connect("tcp", "new.example:7000")
	p := one(t, l)
	l.book.breakDown(errors.New("disk full"))
	if err := l.answer(p, true, holds.Session); err == nil {
		t.Error("want an error without a record")
	}
	l.book.breakDown(nil)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := l.answer(p, true, holds.Always); err == nil {
		t.Error("want an error without a file")
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, ans := range map[string]holds.Answer{
		"scope":       {Digest: p.Digest, Allow: true, Scope: "for ever", Operator: "ada"},
		"no scope":    {Digest: p.Digest, Allow: true, Operator: "ada"},
		"no operator": {Digest: p.Digest, Allow: true, Scope: holds.Once, Operator: " "},
		"deny always": {Digest: p.Digest, Scope: holds.Always, Operator: "ada"},
	} {
		if err := l.holds.Answer(t.Context(), p.ID, ans); !errors.Is(err, holds.ErrAnswer) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := l.answer(holds.Pending{ID: "guess"}, true, holds.Once); !errors.Is(err, holds.ErrNoPending) {
		t.Errorf("got %v", err)
	}
	if q := one(t, l); q.ID != p.ID || q.Waiting != 1 || len(l.holds.Standing()) != 0 {
		t.Errorf("pending %+v, approvals %v", q, l.holds.Standing())
	}
	if _, dialed := l.outside(); len(dialed) != 0 {
		t.Errorf("dialled %v", dialed)
	}
	if err := l.answer(p, true, holds.Once); err != nil || !echoes(a, "x") {
		t.Errorf("the good answer at last: %v", err)
	}
}

// An approved name still may not lead inside.
func TestApprovalKeepsGuard(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	l.resolves("rebind.example", "127.0.0.1")
	done := make(chan string)
	go func() { _, body := l.get("rebind.example:80", "rebind.example"); done <- body }()
	if err := l.answer(one(t, l), true, holds.Session); err != nil {
		t.Fatal(err)
	}
	if body := <-done; !strings.Contains(body, "net.ssrf") {
		t.Errorf("got %s", body)
	}
}

// The process hint of a held connection is the one that made it.
func TestHoldProcess(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	_, as := l.query("new.example", 1)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	sh := shell(t, l, ctx, "exec 3<>/dev/tcp/"+as[0].String()+"/7000; exec sleep 60")
	wg.Go(func() { _ = sh.Wait() })
	p := one(t, l)
	if !strings.HasSuffix(p.Process, " (pid "+itoa(sh.Process.Pid)+")") {
		t.Errorf("got process %q, want pid %d", p.Process, sh.Process.Pid)
	}
	r := l.book.find(func(r ledger.Record) bool { return r.Verdict == ledger.Held })[0]
	if r.Process.PID != sh.Process.Pid || r.Process.PPID != os.Getpid() || r.Process.Comm == "" || r.Process.UID != os.Getuid() {
		t.Errorf("record %+v", r)
	}
}

func TestReload(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	both := []policies.HostRule{rule("a.example", 7000), rule("b.example", 7000)}
	l.network(policies.Network{Default: policies.Hold, Allow: both})
	a, b := l.connect("tcp", "a.example:7000"), l.connect("tcp", "b.example:7000")
	held, lost := l.connect("tcp", "c.example:7000"), l.connect("tcp", "d.example:7000")
	if !echoes(a, "x") || !echoes(b, "x") {
		t.Fatal("no echo")
	}
	eventually(t, "two held", func() bool { return len(l.holds.List()) == 2 })
	l.network(policies.Network{Default: policies.Hold, Allow: []policies.HostRule{both[1], rule("c.example", 7000)}, Deny: []policies.HostRule{rule("d.example")}})
	l.proxy.Recheck("someone else")
	if !echoes(a, "x") {
		t.Error("another agent's recheck closed it")
	}
	l.proxy.Recheck("a1")
	if err := cut(t, a); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a: got %v, want a reset", err)
	}
	if !echoes(b, "still") {
		t.Error("b was closed, and is still allowed")
	}
	if !echoes(held, "at last") {
		t.Error("c is allowed now, and still waits")
	}
	if err := cut(t, lost); err == nil {
		t.Error("d is denied now, and still waits")
	}
	if got := l.book.reasons(ledger.KindConnect); !contains(got, "denied net.policy_changed") || !contains(got, "denied net.denied") {
		t.Errorf("records %v", got)
	}
	// A connection that was let in once stays under hold, not under deny.
	l.network(policies.Network{Default: policies.Hold})
	o := l.connect("tcp", "e.example:7000")
	eventually(t, "e is held", func() bool { return contains(hosts(l), "e.example") })
	for _, p := range l.holds.List() {
		if p.Host == "e.example" {
			if err := l.answer(p, true, holds.Once); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !echoes(o, "x") {
		t.Fatal("no echo")
	}
	l.proxy.Recheck("a1")
	if !echoes(o, "x") {
		t.Error("recheck closed what an operator let in")
	}
	l.network(policies.Network{Default: policies.Deny})
	l.proxy.Recheck("a1")
	if err := cut(t, o); err == nil {
		t.Error("denied, and still open")
	}
}

// A policy that changes between the decision and the connection counts too.
func TestReloadWhileDialling(t *testing.T) {
	var l *lab
	l = newLab(t, steered(steer(t)), func(c *Config, _ *holds.Config) {
		dial := c.Dial
		c.Dial = func(ctx context.Context, n, a string) (net.Conn, error) {
			l.network(policies.Network{Default: policies.Deny})
			l.proxy.Recheck("a1")
			return dial(ctx, n, a)
		}
	})
	l.network(allow(rule("a.example", 7000)))
	c := l.connect("tcp", "a.example:7000")
	if err := cut(t, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
	eventually(t, "a record", func() bool { return contains(l.book.reasons(ledger.KindConnect), "denied net.policy_changed") })
}

func hosts(l *lab) (out []string) {
	for _, p := range l.holds.List() {
		out = append(out, p.Host)
	}
	return out
}

// answer is an operator's.
func (l *lab) answer(p holds.Pending, allow bool, s holds.Scope) error {
	return l.holds.Answer(l.t.Context(), p.ID, holds.Answer{Digest: p.Digest, Allow: allow, Scope: s, Operator: "ada"})
}

// revoke takes back all that stands for a destination.
func (l *lab) revoke(host string, port int) error {
	var errs []error
	for _, g := range l.holds.Standing() {
		if g.Host == host && g.Port == port {
			_, err := l.holds.Revoke(l.t.Context(), g.ID, "ada")
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// A program that the destination's rules do not list is asked about, and what
// "always" would add keeps what they have inspected.
func TestHoldProgram(t *testing.T) {
	l := newLab(t, steered(steer(t)), func(c *Config, _ *holds.Config) {
		c.Who = whois(Caller{PID: 7, UID: 1000, Comm: "curl", Binary: "/usr/bin/curl", Ancestors: []string{"/bin/sh"}})
	})
	r := ruleFor("http", policies.CallRule{Method: "GET", Path: "/v1/**"})
	r.Binaries = []string{"/usr/bin/claw"}
	l.network(policies.Network{Default: policies.Hold, Allow: []policies.HostRule{r}})
	l.connect("tcp", "a.example:443")
	p := one(t, l)
	if p.Reason != policies.ReasonBinary || p.Binary != "/usr/bin/curl" || len(p.Ancestors) != 1 {
		t.Errorf("pending %+v", p)
	}
	if a := p.Allow; !a.Inspect || a.Protocol != "http" || len(a.Calls) != 1 || len(a.Binaries) != 1 || a.Binaries[0] != "/usr/bin/curl" {
		t.Errorf("always would add %s", a.YAML())
	}
	q := l.policy().WithAllow(p.Allow)
	for path, want := range map[string]policies.Verdict{"/v1/a": policies.Allow, "/v2": policies.Deny} {
		m := &policies.Message{Protocol: "http", Method: "GET", Path: path}
		if d := q.Decide(policies.Request{Action: policies.Call, Host: "a.example", Port: 443, Binary: "/usr/bin/curl", Message: m}); d.Verdict != want {
			t.Errorf("%s after always: %+v", path, d)
		}
	}
}
