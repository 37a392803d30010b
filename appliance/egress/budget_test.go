package egress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// No minute ever holds more than the limit, whatever the rhythm.
func TestWindow(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	for _, step := range []time.Duration{time.Millisecond, 333 * time.Millisecond, time.Second, 7 * time.Second, time.Minute} {
		var w window
		var took []time.Time
		const limit = 10
		for now := start; now.Sub(start) < 5*time.Minute; now = now.Add(step) {
			if w.add(now, limit) {
				took = append(took, now)
			}
		}
		for i := limit; i < len(took); i++ {
			if d := took[i].Sub(took[i-limit]); d < time.Minute {
				t.Fatalf("step %v: %d events in %v", step, limit+1, d)
			}
		}
		if want := min(limit*4, int(5*time.Minute/step)); len(took) < want {
			t.Errorf("step %v: %d events in 5 minutes, want %d or more", step, len(took), want)
		}
	}
	var w window
	if !w.add(start, 1) || w.add(start.Add(-time.Hour), 1) {
		t.Error("a clock that was set back must not give a new budget")
	}
	if !w.add(start.Add(24*time.Hour), 1) {
		t.Error("a day later: refused")
	}
}

func TestBudgets(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	set := func(b policies.LinkBudget) {
		r := rule("*", 7000)
		r.Budget = b
		l.network(allow(r))
	}
	const to = "a.example:7000"
	set(policies.LinkBudget{Connections: 2})
	a, b := l.connect("tcp", to), l.connect("tcp", "b.example:7000") // one budget for all names of the rule
	if !echoes(a, "x") || !echoes(b, "x") {
		t.Fatal("no echo")
	}
	if err := cut(t, l.connect("tcp", to)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a third: got %v, want a reset", err)
	}
	b.Close()
	eventually(t, "room again", func() bool { return echoes(l.connect("tcp", to), "x") })
	a.Close()

	set(policies.LinkBudget{PerMinute: 3})
	n := 0
	for range 6 {
		if echoes(l.connect("tcp", to), "x") {
			n++
		}
	}
	if n != 3 {
		t.Errorf("%d connections in a minute, want 3", n)
	}
	for name, budget := range map[string]policies.LinkBudget{"up": {Up: 100_000}, "down": {Down: 100_000}} {
		set(budget)
		l.network(policies.Network{Default: policies.Deny, Allow: []policies.HostRule{{Host: name + ".example", Ports: []int{7000}, Budget: budget}}})
		c := l.connect("tcp", name+".example:7000")
		c.SetDeadline(time.Now().Add(5 * time.Second))
		go io.Copy(c, io.LimitReader(zeros{}, 10<<20))
		got, _ := io.Copy(io.Discard, c)
		if got > 200_000 {
			t.Errorf("%s: %d bytes came back, the budget is 100000", name, got)
		}
		if err := cut(t, l.connect("tcp", name+".example:7000")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: the next connection: got %v, want a reset", name, err)
		}
	}
	for _, d := range denials(l) {
		if d.Reason != "net.budget" || d.Detail == "" {
			t.Errorf("record %+v", d)
		}
	}
	if len(denials(l)) < 6 {
		t.Errorf("%d denials in the ledger", len(denials(l)))
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// Where requests are seen it is them that are counted, over all connections.
func TestRequestBudget(t *testing.T) {
	l, site := inspectLab(t, hello200)
	r := ruleFor("http")
	r.Budget = policies.LinkBudget{PerMinute: 3}
	l.network(allow(r))
	for i := range 5 {
		st, body, _ := do(t, l.client(i%2 == 0), "GET", "https://a.example/", "")
		if want := map[bool]int{true: 200, false: 403}[i < 3]; st != want || (st == 403) != strings.Contains(body, "net.budget") {
			t.Errorf("request %d: got %d %s", i, st, body)
		}
	}
	if site.count() != 3 {
		t.Errorf("%d requests reached the site", site.count())
	}
	big := ruleFor("http")
	big.Path, big.Budget = "/big", policies.LinkBudget{Down: 50_000}
	l.network(allow(big))
	l.serve(func(c net.Conn) {
		br := bufio.NewReader(c)
		if _, err := http.ReadRequest(br); err == nil {
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
			io.Copy(c, io.LimitReader(zeros{}, 1_000_000))
		}
	})
	c := l.connect("tcp", "a.example:80")
	c.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprint(c, "GET /big HTTP/1.1\r\nHost: a.example\r\n\r\n")
	if n, _ := io.Copy(io.Discard, c); n > 200_000 {
		t.Errorf("%d bytes of an answer beyond its budget", n)
	}
	eventually(t, "a denial in the ledger", func() bool { d := denials(l); return d[len(d)-1].Reason == "net.budget" })
}

// A rule for some programs lets only them and their children through, and an
// unknown program is none of them.
func TestCallers(t *testing.T) {
	var mu sync.Mutex
	var who *Caller
	l, site := inspectLab(t, hello200, func(c *Config, _ *holdsConfig) {
		c.Who = func(string, netip.AddrPort, netip.AddrPort) (Caller, bool) {
			mu.Lock()
			defer mu.Unlock()
			if who == nil {
				return Caller{}, false
			}
			w := *who
			w.At = 1
			return w, true
		}
	})
	r := ruleFor("http")
	r.Binaries = []string{"/usr/bin/claw"}
	l.network(allow(r))
	for name, x := range map[string]struct {
		who  *Caller
		want int
	}{
		"itself":     {&Caller{PID: 5, Binary: "/usr/bin/claw"}, 200},
		"a child":    {&Caller{PID: 5, Binary: "/usr/bin/curl", Ancestors: []string{"/bin/sh", "/usr/bin/claw"}}, 200},
		"another":    {&Caller{PID: 5, Binary: "/usr/bin/curl", Ancestors: []string{"/bin/sh"}}, 403},
		"its prefix": {&Caller{PID: 5, Binary: "/usr/bin/claw2"}, 403},
		"no path":    {&Caller{PID: 5}, 403},
		"unknown":    {nil, 403},
	} {
		mu.Lock()
		who = x.who
		mu.Unlock()
		was := site.count()
		st, body, _ := do(t, l.client(false), "GET", "http://a.example/", "")
		if st != x.want || st != 200 && (!strings.Contains(body, policies.ReasonBinary) || site.count() != was) {
			t.Errorf("%s: got %d %s", name, st, body)
		}
	}
	rs := l.book.find(func(r ledger.Record) bool { return r.Process.PID == 5 })
	if len(rs) < 5 {
		t.Errorf("%d records name the process", len(rs))
	}
}

// Where a name may lead, beyond TestAddressGuard: the networks of the rule,
// and never a control plane inside.
func TestAllowedIPs(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	l.serve(httpOK)
	r := func(ips ...string) policies.HostRule {
		return policies.HostRule{Host: "a.example", Ports: []int{80, 6443, 10250}, AllowedIPs: ips}
	}
	for name, x := range map[string]struct {
		leads, port string
		rule        policies.HostRule
		status      int
		reason      string
	}{
		"private, listed":      {"10.1.2.3", "80", r("10.0.0.0/8"), 200, ""},
		"private, not listed":  {"10.1.2.3", "80", r("192.168.0.0/16"), 502, "net.ssrf"},
		"public, not listed":   {"203.0.113.7", "80", r("10.0.0.0/8"), 502, policies.ReasonAddress},
		"one of two":           {"10.1.2.3 203.0.113.7", "80", r("10.0.0.0/8"), 502, policies.ReasonAddress},
		"public, no list":      {"203.0.113.7", "80", r(), 200, ""},
		"mapped":               {"::ffff:10.1.2.3", "80", r(), 502, "net.ssrf"},
		"mapped, listed":       {"::ffff:10.1.2.3", "80", r("10.0.0.0/8"), 200, ""},
		"loopback, listed":     {"127.0.0.1", "80", r("127.0.0.0/8"), 502, "net.ssrf"},
		"metadata, listed":     {"169.254.169.254", "80", r("169.254.0.0/16"), 502, "net.ssrf"},
		"control plane":        {"10.1.2.3", "6443", r("10.0.0.0/8"), 502, "net.ssrf"},
		"kubelet":              {"10.1.2.3", "10250", r("10.0.0.0/8"), 502, "net.ssrf"},
		"control plane public": {"203.0.113.7", "6443", r(), 200, ""},
	} {
		l.network(allow(x.rule))
		l.resolves("a.example", strings.Fields(x.leads)...)
		st, body := l.get("a.example:"+x.port, "a.example:"+x.port)
		if st != x.status || !strings.Contains(body, x.reason) {
			t.Errorf("%s: got %d %s, want %d %s", name, st, body, x.status, x.reason)
		}
	}
	// By its address a control plane is as little reached as by a name.
	l.network(allow(policies.HostRule{CIDR: "10.0.0.0/8", Ports: []int{80, 6443}}))
	if st, body := l.get("10.1.2.3:80", "10.1.2.3"); st != 200 {
		t.Errorf("port 80: got %d %s", st, body)
	}
	if st, body := l.get("10.1.2.3:6443", "10.1.2.3"); st != 403 || !strings.Contains(body, "net.ssrf") {
		t.Errorf("port 6443: got %d %s", st, body)
	}
}

// A name that leads elsewhere with each question reaches only what was checked.
func TestRebinding(t *testing.T) {
	var n atomic.Int64
	l, _ := inspectLab(t, hello200, func(c *Config, _ *holdsConfig) {
		c.Lookup = func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr([]string{"203.0.113.7", "127.0.0.1", "10.0.0.1"}[n.Add(1)%3])}, nil
		}
	})
	l.network(allow(ruleFor("http"), rule("a.example", 7000)))
	for range 9 {
		do(t, l.client(false), "GET", "https://a.example/", "")
		c := l.connect("tcp", "a.example:7000")
		io.WriteString(c, "x\n")
		c.Close()
	}
	eventually(t, "nine lookups twice", func() bool { _, d := l.outside(); return len(d) >= 6 })
	_, dialed := l.outside()
	for _, d := range dialed {
		if !strings.HasPrefix(d, "203.0.113.7:") {
			t.Errorf("dialled %s", d)
		}
	}
}
