package egress

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/holds"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/router"
	"github.com/clawbox/clawbox/policies"
)

func TestDNS(t *testing.T) {
	l := newLab(t)
	l.network(policies.Network{Default: policies.Hold, Deny: []policies.HostRule{{Domain: "evil.example"}, rule("half.example", 443)}})
	code, a := l.query("api.example.com", dnsmessage.TypeA)
	if code != 0 || len(a) != 1 || !fakes.Contains(a[0]) {
		t.Fatalf("got %v %v", code, a)
	}
	for name, same := range map[string]bool{"api.example.com": true, "API.Example.COM": true, "other.example.com": false} {
		if _, b := l.query(name, dnsmessage.TypeA); len(b) != 1 || (b[0] == a[0]) != same {
			t.Errorf("%s: got %v beside %v", name, b, a)
		}
	}
	for _, x := range []struct {
		name string
		typ  dnsmessage.Type
		code dnsmessage.RCode
		n    int
	}{
		{"api.example.com", dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, 0},
		{"api.example.com", dnsmessage.TypeTXT, dnsmessage.RCodeSuccess, 0},
		{"api.example.com", dnsmessage.TypeMX, dnsmessage.RCodeSuccess, 0},
		{"api.example.com", dnsmessage.Type(65), dnsmessage.RCodeSuccess, 0}, // HTTPS: no keys for an encrypted hello
		{"evil.example", dnsmessage.TypeA, dnsmessage.RCodeNameError, 0},
		{"a.b.EVIL.example", dnsmessage.TypeA, dnsmessage.RCodeNameError, 0},
		{"evil.example", dnsmessage.TypeTXT, dnsmessage.RCodeNameError, 0},
		{"half.example", dnsmessage.TypeA, dnsmessage.RCodeSuccess, 1},
		{"1.2.3.4", dnsmessage.TypeA, dnsmessage.RCodeNameError, 0},
		{"127.1", dnsmessage.TypeA, dnsmessage.RCodeNameError, 0},
		{"bad name.example", dnsmessage.TypeA, dnsmessage.RCodeNameError, 0},
		{"4.3.2.1.in-addr.arpa", dnsmessage.TypePTR, dnsmessage.RCodeNameError, 0},
		{"localhost", dnsmessage.TypeA, dnsmessage.RCodeSuccess, 1},
		{"localhost", dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, 1},
		{InferenceHost, dnsmessage.TypeA, dnsmessage.RCodeSuccess, 1},
	} {
		if code, as := l.query(x.name, x.typ); code != x.code || len(as) != x.n {
			t.Errorf("%s %v: got %v %v, want %v and %d", x.name, x.typ, code, as, x.code, x.n)
		}
	}
	if _, as := l.query("localhost", dnsmessage.TypeA); as[0] != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("localhost is %v", as)
	}
	l.query("evil.example", dnsmessage.TypeA)
	n := l.book.find(func(r ledger.Record) bool { return r.Kind == ledger.KindDNS && r.Host == "evil.example" })
	if len(n) != 1 || n[0].Verdict != ledger.Denied || n[0].Reason != policies.ReasonDenied || n[0].Agent != "a1" || n[0].Detail == "" {
		t.Errorf("records of a refused name: %+v", n)
	}
	if asked, _ := l.outside(); len(asked) != 0 {
		t.Errorf("names went outside: %v", asked)
	}
}

// Packets that are no question get no answer, or an error; nothing crashes.
func TestDNSRubbish(t *testing.T) {
	l := newLab(t)
	for name, x := range map[string]struct {
		in    []byte
		reply bool
	}{
		"empty": {[]byte{}, false}, "short": {[]byte{1, 2, 3}, false}, "zeros": {make([]byte, 12), true},
		"long": {make([]byte, 1000), false}, "response": {append([]byte{0, 1, 0x80, 0}, make([]byte, 8)...), false},
		"counts": {[]byte{0, 1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0}, true},
	} {
		b := &box{proxy: l.proxy, agent: l.agent, names: newNames("x"), ctx: t.Context()}
		if out := b.answer(x.in); (out != nil) != x.reply {
			t.Errorf("%s: got % x", name, out)
		}
	}
}

func TestDNSFlood(t *testing.T) {
	l := newLab(t)
	b := &box{proxy: l.proxy, agent: l.agent, names: newNames("x"), ctx: t.Context()}
	q := func(i int) dnsmessage.RCode {
		code, _ := b.resolve(dnsmessage.Question{Name: dnsmessage.MustNewName(fmt.Sprintf("n%d.example.", i)), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET})
		return code
	}
	for i := range maxFresh {
		if code := q(i); code != 0 {
			t.Fatalf("name %d: %v", i, code)
		}
	}
	for i := range 100 {
		if code := q(maxFresh + i); code != dnsmessage.RCodeRefused {
			t.Fatalf("name %d: %v", i, code)
		}
	}
	if code := q(3); code != 0 {
		t.Error("a known name is refused in a flood")
	}
	if got := l.book.reasons(ledger.KindDNS); len(got) != 1 || got[0] != "denied dns.flood" {
		t.Errorf("got %v, want one record", got)
	}
}

func TestNamesTable(t *testing.T) {
	n := newNames("a1")
	first, _ := n.addr("first.example")
	seen := map[netip.Addr]string{first: "first.example"}
	for i := range 3 * maxNames {
		n.fresh = 0
		name := fmt.Sprintf("n%d.example", i)
		a, ok := n.addr(name)
		if !ok || !fakes.Contains(a) || a == self.Addr() {
			t.Fatalf("%s: %v %v", name, a, ok)
		}
		if got, ok := n.name(a); !ok || got != name {
			t.Fatalf("%v stands for %q, want %q", a, got, name)
		}
		seen[a] = name
		n.name(first) // in use: must stay
	}
	if a, _ := n.addr("first.example"); a != first {
		t.Error("a name in use was forgotten")
	}
	if len(n.byName) != maxNames || len(n.byAddr) != maxNames || n.used.Len() != maxNames {
		t.Errorf("got %d, %d, %d entries, want %d", len(n.byName), len(n.byAddr), n.used.Len(), maxNames)
	}
	if other, _ := newNames("a2").addr("first.example"); other == first {
		t.Error("two agents share an address for a name: the seed has no effect")
	}
}

// The namespace holds nothing but lo, and unanswered UDP fails at once.
func TestNothingElse(t *testing.T) {
	l := newLab(t)
	err := within(l.ns, func() error {
		ifs, err := net.Interfaces()
		if err != nil || len(ifs) != 1 || ifs[0].Flags&net.FlagLoopback == 0 {
			return fmt.Errorf("got %v, %v", ifs, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	c := l.connect("udp", "8.8.8.8:53")
	c.SetDeadline(time.Now().Add(3 * time.Second))
	c.Write(make([]byte, 20))
	if _, err := c.Read(make([]byte, 20)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("UDP to 8.8.8.8: got %v, want ECONNREFUSED", err)
	}
}

func TestAllow(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	l.network(allow(rule("echo.example", 7000, 22), policies.HostRule{CIDR: "192.0.2.0/24", Ports: []int{9}}))
	c := l.connect("tcp", "echo.example:7000")
	if !echoes(c, "some byte") {
		t.Fatal("no echo")
	}
	c.(*net.TCPConn).CloseWrite() // half-close goes through
	if err := cut(t, c); err != nil {
		t.Errorf("got %v, want an orderly end", err)
	}
	eventually(t, "the closing record", func() bool { return contains(l.book.reasons(ledger.KindConnect), "net.closed") })
	rs := l.book.find(func(r ledger.Record) bool { return r.Kind == ledger.KindConnect })
	if len(rs) != 2 || rs[0].Verdict != ledger.Allowed || rs[0].Reason != policies.ReasonNet || rs[0].Host != "echo.example" || rs[0].Port != 7000 ||
		rs[0].Policy != l.policy().Digest() || rs[1].Attrs["bytes_sent"] != int64(10) || rs[1].Attrs["bytes_received"] != int64(10) ||
		rs[1].Attrs["address"] != "203.0.113.7:7000" || rs[1].Attrs["conn"] != rs[0].Attrs["conn"] {
		t.Errorf("records: %+v", rs)
	}
	if !echoes(l.connect("tcp", "192.0.2.55:9"), "literal") {
		t.Error("an allowed address does not work")
	}
	if asked, dialed := l.outside(); len(asked) != 1 || asked[0] != "echo.example" || len(dialed) != 2 || dialed[1] != "192.0.2.55:9" {
		t.Errorf("outside: asked %v, dialled %v", asked, dialed)
	}
}

// The client that waits for the server's greeting gets it.
func TestServerSpeaksFirst(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	l.network(allow(rule("ssh.example", 22)))
	l.serve(func(c net.Conn) { io.WriteString(c, "SSH-2.0-x\r\n"); echo(c) })
	for _, then := range []string{"SSH-2.0-y\r\n", "EHLO me\r\n", "get ready\n"} {
		c := l.connect("tcp", "ssh.example:22")
		buf := make([]byte, 11)
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "SSH-2.0-x\r\n" {
			t.Fatalf("got %q, %v", buf, err)
		}
		if !echoes(c, then) {
			t.Errorf("no echo of %q", then)
		}
	}
	// Having been silent is no way round the comparison of names.
	c := l.connect("tcp", "ssh.example:22")
	io.ReadFull(c, make([]byte, 11))
	c.Write(hello(t, "other.example"))
	if err := cut(t, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
	eventually(t, "a record", func() bool { return contains(l.book.reasons(ledger.KindConnect), "denied net.sni_mismatch") })
}

func TestDenied(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	l.network(policies.Network{Default: policies.Deny, Allow: []policies.HostRule{rule("*", 80, 443)}, Deny: []policies.HostRule{rule("half.example", 80)}})
	st, body := l.get("half.example:80", "half.example")
	var e struct {
		Error struct {
			Code, Host, Detail, Remedy string
			Port                       int
		}
	}
	if err := json.Unmarshal([]byte(body), &e); err != nil || st != 403 || e.Error.Code != policies.ReasonDenied || e.Error.Host != "half.example" || e.Error.Port != 80 || e.Error.Remedy == "" || e.Error.Detail == "" {
		t.Errorf("got %d %s", st, body)
	}
	if st, body := l.get("unlisted.example:8080", "x"); st != 403 || !strings.Contains(body, policies.ReasonUnlisted) {
		t.Errorf("got %d %s", st, body)
	}
	c := l.connect("tcp", "unlisted.example:8443")
	c.Write(hello(t, "unlisted.example"))
	if err := cut(t, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("TLS: got %v, want a reset", err)
	}
	c = l.connect("tcp", "unlisted.example:25") // says nothing
	if err := cut(t, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("silent: got %v, want a reset", err)
	}
	got := l.book.find(func(r ledger.Record) bool { return r.Kind == ledger.KindConnect })
	if len(got) != 4 {
		t.Fatalf("got %d records: %+v", len(got), got)
	}
	for _, r := range got {
		if r.Verdict != ledger.Denied {
			t.Errorf("got %+v", r)
		}
	}
	if asked, dialed := l.outside(); len(asked)+len(dialed) != 0 {
		t.Errorf("outside: asked %v, dialled %v", asked, dialed)
	}
}

// Addresses that no policy opens, as literals and behind names.
func TestAddressGuard(t *testing.T) {
	own := ""
	as, _ := net.InterfaceAddrs()
	for _, a := range as {
		if ip := a.(*net.IPNet).IP; ip.To4() != nil && !ip.IsLoopback() && forbidden(netip.MustParseAddr(ip.String())) == "" {
			own = ip.String()
		}
	}
	l := newLab(t, steered(steer(t)), func(c *Config, _ *holds.Config) { c.Hosts = map[string]string{"intranet.example": "10.20.30.40"} })
	l.network(allow(rule("*", 80), policies.HostRule{CIDR: "0.0.0.0/0", Ports: []int{80}}, policies.HostRule{CIDR: "::/0", Ports: []int{80}}))
	bad := []string{
		"127.0.0.1", "127.8.8.8", "0.0.0.1", "169.254.169.254", "169.254.1.1", "100.100.100.200", "168.63.129.16", "192.0.0.192", "198.18.0.1", "198.19.255.255",
		"fe80::1", "fd00:ec2::254", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:0:1::", "::ffff:127.0.0.1", "::7f00:1", "fec0::1", "100::1", "::1", "224.0.0.1", "240.0.0.1", "ff02::1", "255.255.255.255", "0.0.0.0", "::",
		"::ffff:0:7f00:1", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42", "fd00:a9fe:a9fe::1", "fd00:100::100:200", "100.96.0.96", "100.80.80.80",
	}
	if own != "" {
		bad = append(bad, own)
	}
	for _, a := range bad {
		if p := netip.MustParseAddr(a); own != a && forbidden(p) == "" {
			t.Errorf("%s is not forbidden", a)
		}
		name := "n" + strings.NewReplacer(":", "-", ".", "-").Replace(a) + "x.example"
		l.resolves(name, "203.0.113.9", a)
		if st, body := l.get(name+":80", name); st != 502 || !strings.Contains(body, "net.ssrf") {
			t.Errorf("name → %s: got %d %s", a, st, body)
		}
	}
	for _, a := range []string{"127.8.8.8", "169.254.169.254", "198.19.3.4", "fd00:ec2::254", own} {
		if a == "" {
			continue
		}
		if st, body := l.get(net.JoinHostPort(a, "80"), a); st != 403 || !strings.Contains(body, "net.ssrf") {
			t.Errorf("literal %s: got %d %s", a, st, body)
		}
	}
	if _, dialed := l.outside(); len(dialed) != 0 {
		t.Fatalf("dialled %v", dialed)
	}
	l.serve(httpOK)
	for name, x := range map[string]struct {
		addrs  string
		net    policies.Network
		status int
	}{
		"intranet.example": {"", allow(rule("*", 80)), 200},         // in hosts
		"rfc1918.example":  {"10.1.2.3", allow(rule("*", 80)), 502}, // nobody named the address
		"ula.example":      {"fd12::1", allow(rule("*", 80)), 502},
		"cgnat.example":    {"100.64.0.9", allow(rule("*", 80)), 502},
		"named.example":    {"10.1.2.3", allow(rule("*", 80), policies.HostRule{CIDR: "10.1.0.0/16", Ports: []int{80}}), 200},
		"port.example":     {"10.1.2.3", allow(rule("*", 80), policies.HostRule{CIDR: "10.1.0.0/16", Ports: []int{81}}), 502},
		"denied.example":   {"203.0.113.50", policies.Network{Default: policies.Deny, Allow: []policies.HostRule{rule("*", 80)}, Deny: []policies.HostRule{{CIDR: "203.0.113.0/24"}}}, 502},
		"public.example":   {"203.0.113.50", allow(rule("*", 80)), 200},
	} {
		l.network(x.net)
		if x.addrs != "" {
			l.resolves(name, x.addrs)
		}
		if st, body := l.get(name+":80", name); st != x.status {
			t.Errorf("%s: got %d %s, want %d", name, st, body, x.status)
		}
	}
}

// TestClusterIsClosed: the preset development, and whatever leads to private
// addresses, does not lead to the pods and services of the host's own cluster.
func TestClusterIsClosed(t *testing.T) {
	l := newLab(t, steered(steer(t)), func(c *Config, _ *holds.Config) {
		c.Cluster = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("10.43.0.0/16")}
		c.Hosts = map[string]string{"site.internal": "10.43.0.64", "api.internal": "10.43.0.1"}
	})
	l.serve(httpOK)
	const head = "apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: d}\n"
	use := func(src string) {
		p, err := policies.Parse("d.yaml", []byte(head+src))
		if err != nil {
			t.Fatal(err)
		}
		l.mu.Lock()
		l.pol = p
		l.mu.Unlock()
	}
	l.resolves("svc.local", "10.43.0.77")
	l.resolves("near.local", "10.44.0.1")
	const dev = "extends: development\n"
	// In place of the lists that a preset has, a policy's own stand.
	in := func(rules string) string { return "network: {default: hold, allow: [" + rules + "]}\n" }
	wide := "{cidr: 10.0.0.0/8, ports: [80, 6443]}, {domain: local, ports: [80]}, {domain: internal, ports: [80]}, "
	for _, x := range []struct {
		policy, to string
		status     int
		reason     string
	}{
		{dev, "10.44.0.1:80", 200, ""},
		{dev, "near.local:80", 200, ""},
		{dev, "10.43.0.1:80", 403, "net.ssrf"}, // the API server
		{dev, "10.42.0.1:80", 403, "net.ssrf"}, // a node
		{dev, "10.42.0.9:80", 403, policies.ReasonAddress},
		{dev, "10.43.0.64:80", 403, policies.ReasonAddress},
		{dev, "svc.local:80", 502, "net.ssrf"},
		{dev, "site.internal:80", 200, ""}, // the operator said so
		{dev, "api.internal:80", 502, "net.ssrf"},
		{in("{host: \"*\", ports: [80]}"), "10.43.0.64:80", 403, policies.ReasonAddress}, // and is not held
		{in(wide + "{cidr: 10.43.0.0/24, ports: [80, 6443]}"), "10.43.0.64:80", 200, ""},
		{in(wide + "{cidr: 10.43.0.0/24, ports: [80, 6443]}"), "svc.local:80", 200, ""},
		{in(wide + "{cidr: 10.43.0.0/24, ports: [80, 6443]}"), "10.43.0.1:80", 403, "net.ssrf"},
		{in(wide + "{host: 10.43.0.1, ports: [80]}"), "10.43.0.1:80", 403, "net.ssrf"},
		{in(wide + "{cidr: 10.43.0.0/24, ports: [80, 6443]}"), "10.43.0.64:6443", 403, "net.ssrf"},
		{in("{cidr: 10.40.0.0/13, ports: [80]}"), "10.43.0.64:80", 403, policies.ReasonAddress},
	} {
		use(x.policy)
		host, _, _ := net.SplitHostPort(x.to)
		st, body := l.get(x.to, host)
		if st != x.status || x.reason != "" && !strings.Contains(body, x.reason) {
			t.Errorf("%s under %.60s: got %d %s, want %d %s", x.to, x.policy, st, body, x.status, x.reason)
		}
	}
	if _, dialed := l.outside(); contains(dialed, "10.43.0.1:") || contains(dialed, "10.42.") || contains(dialed, ":6443") {
		t.Errorf("dialled %v", dialed)
	}
}

// TestClusterClosesAgain: a reload that leaves only a wide rule ends what a
// narrow one had let in.
func TestClusterClosesAgain(t *testing.T) {
	l := newLab(t, steered(steer(t)), func(c *Config, _ *holds.Config) { c.Cluster = []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")} })
	wide := policies.HostRule{CIDR: "10.0.0.0/8", Ports: []int{7000}}
	l.network(allow(wide, policies.HostRule{CIDR: "10.43.0.0/24", Ports: []int{7000}}))
	c := l.connect("tcp", "10.43.0.64:7000")
	if !echoes(c, "\x00") {
		t.Fatal("no echo")
	}
	l.network(allow(wide))
	l.proxy.Recheck("a1")
	if err := cut(t, c); err == nil {
		t.Error("it ended in order, want a reset")
	}
}

func TestSameHost(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	l.network(allow(rule("a.example", 80, 443, 8443), policies.HostRule{CIDR: "192.0.2.0/24", Ports: []int{443}}))
	l.serve(echo)
	const get = "GET / HTTP/1.1\r\nHost: %s\r\n\r\n"
	for name, x := range map[string]struct {
		to, send string
		reason   string // of a refusal
	}{
		"tls same":         {"a.example:443", string(hello(t, "a.example")), ""},
		"tls case":         {"a.example:443", string(hello(t, "A.Example")), ""},
		"tls other":        {"a.example:443", string(hello(t, "b.example")), "net.sni_mismatch"},
		"tls none":         {"a.example:443", string(hello(t, "192.0.2.1")), "net.sni_mismatch"},
		"tls 8443":         {"a.example:8443", string(hello(t, "a.example")), ""},
		"tls 8443 other":   {"a.example:8443", string(hello(t, "b.example")), "net.sni_mismatch"},
		"tls broken":       {"a.example:443", "\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00", "net.sni_mismatch"},
		"tls on 80":        {"a.example:80", string(hello(t, "a.example")), "net.protocol"},
		"ssh on 443":       {"a.example:443", "SSH-2.0-x\r\n", "net.protocol"},
		"http same":        {"a.example:80", fmt.Sprintf(get, "a.example"), ""},
		"http port":        {"a.example:80", fmt.Sprintf(get, "A.example:80"), ""},
		"http other":       {"a.example:80", fmt.Sprintf(get, "b.example"), "net.host_mismatch"},
		"http none":        {"a.example:80", "GET / HTTP/1.0\r\n\r\n", "net.host_mismatch"},
		"http two first":   {"a.example:80", "GET / HTTP/1.1\r\nHost: b.example\r\nHost: a.example\r\n\r\n", "net.host_mismatch"},
		"http two":         {"a.example:80", "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n", "net.host_mismatch"},
		"http space":       {"a.example:80", "GET / HTTP/1.1\r\nHost : b.example\r\nHost: a.example\r\n\r\n", "net.host_mismatch"},
		"http folded":      {"a.example:80", "GET / HTTP/1.1\r\nHost: a.example\r\n b.example\r\n\r\n", "net.host_mismatch"},
		"http absolute":    {"a.example:80", "GET http://b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "net.host_mismatch"},
		"http absolute ok": {"a.example:80", "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", ""},
		"http connect":     {"a.example:80", "CONNECT b.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n", "net.host_mismatch"},
		"http lf":          {"a.example:80", "GET / HTTP/1.1\nHost: b.example\n\n", "net.host_mismatch"},
		"http 8443 other":  {"a.example:8443", fmt.Sprintf(get, "b.example"), "net.host_mismatch"},
		"h2c on 80":        {"a.example:80", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "net.host_mismatch"},
		"h2c elsewhere":    {"a.example:8443", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "net.host_mismatch"},
		"empty line first": {"a.example:8443", "\r\n" + fmt.Sprintf(get, "b.example"), "net.host_mismatch"},
		"feed first":       {"a.example:8443", "\n" + fmt.Sprintf(get, "b.example"), "net.host_mismatch"},
		"space first":      {"a.example:8443", " " + fmt.Sprintf(get, "b.example"), "net.host_mismatch"},
		"lower case":       {"a.example:8443", "get / HTTP/1.1\r\nHost: b.example\r\n\r\n", "net.host_mismatch"},
		"odd method":       {"a.example:8443", "G!T / HTTP/1.1\r\nHost: b.example\r\n\r\n", "net.host_mismatch"},
		"long method":      {"a.example:8443", strings.Repeat("A", 40) + " / HTTP/1.1\r\nHost: b.example\r\n\r\n", "net.host_mismatch"},
		"HTTP/1.2":         {"a.example:8443", "GET / HTTP/1.2\r\nHost: b.example\r\n\r\n", "net.host_mismatch"},
		"http/1.1":         {"a.example:8443", "GET / http/1.1\r\nHost: b.example\r\n\r\n", "net.host_mismatch"},
		"space last":       {"a.example:8443", "GET / HTTP/1.1 \r\nHost: b.example\r\n\r\n", "net.host_mismatch"},
		"tabs":             {"a.example:8443", "GET\t/\tHTTP/1.1\r\nHost: b.example\r\n\r\n", "net.host_mismatch"},
		"two spaces":       {"a.example:8443", "GET  / HTTP/1.1\r\nHost: b.example\r\n\r\n", "net.host_mismatch"},
		"connect same":     {"a.example:8443", "CONNECT a.example:22 HTTP/1.1\r\nHost: a.example:22\r\n\r\n", "net.host_mismatch"},
		"raw 8443":         {"a.example:8443", "\x00\x01\x02raw", ""},
		"smtp 8443":        {"a.example:8443", "EHLO x\r\n", ""},
		"literal":          {"192.0.2.9:443", string(hello(t, "whatever.example")), ""},
	} {
		t.Run(name, func(t *testing.T) {
			was := len(l.book.reasons(ledger.KindConnect))
			c := l.connect("tcp", x.to)
			ok := false
			if strings.Contains(x.send, " HTTP/1.1\r\n") && x.reason == "" {
				l.serve(httpOK)
				defer l.serve(echo)
				io.WriteString(c, x.send)
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				ok = err == nil && resp.StatusCode == 200 && resp.Close
			} else {
				ok = echoes(c, x.send)
			}
			if ok != (x.reason == "") {
				t.Fatalf("went through: %v", ok)
			}
			if x.reason != "" {
				if got := l.book.reasons(ledger.KindConnect)[was:]; len(got) != 1 || got[0] != "denied "+x.reason {
					t.Errorf("records %v, want %s", got, x.reason)
				}
			}
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
			if x.reason == "" { // its closing record must not count for the next case
				eventually(t, "closed", func() bool { return len(l.book.reasons(ledger.KindConnect)) == was+2 })
			}
		})
	}
	// In pieces, byte by byte, it is the same.
	c := l.connect("tcp", "a.example:443")
	b := hello(t, "a.example")
	go func() {
		for i := range b {
			c.Write(b[i : i+1])
			if i%100 == 0 {
				time.Sleep(2 * time.Millisecond)
			}
		}
	}()
	got := make([]byte, len(b))
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, b) {
		t.Errorf("a hello in pieces: %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	l.network(allow(rule("down.example", 80)))
	l.serve(nil)
	if st, body := l.get("down.example:80", "down.example"); st != 502 || !strings.Contains(body, "net.unreachable") {
		t.Errorf("got %d %s", st, body)
	}
	if got := l.book.reasons(ledger.KindConnect); len(got) != 2 || got[1] != "allowed net.unreachable" {
		t.Errorf("records %v", got)
	}
}

// No record, no connection, whatever the policy says.
func TestLedgerFirst(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	l.network(policies.Network{Default: policies.Hold, Allow: []policies.HostRule{rule("a.example", 80)}})
	l.book.breakDown(errors.New("disk full"))
	for _, host := range []string{"a.example", "held.example"} {
		if st, body := l.get(host+":80", host); st != 403 || !strings.Contains(body, "ledger.unavailable") {
			t.Errorf("%s: got %d %s", host, st, body)
		}
	}
	if asked, dialed := l.outside(); len(asked)+len(dialed) != 0 || len(l.holds.List()) != 0 {
		t.Errorf("outside: asked %v, dialled %v, pending %v", asked, dialed, l.holds.List())
	}
}

func TestInference(t *testing.T) {
	l := newLab(t, steered(steer(t)), func(c *Config, _ *holds.Config) {
		c.Models = func(a Agent) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { fmt.Fprintf(w, "%s %s", a.ID, q.URL.Path) })
		}
	})
	l.network(policies.Network{Default: policies.Deny, Deny: []policies.HostRule{{Host: "*"}}})
	for range 3 {
		if st, body := l.get("inference.local:80", "inference.local"); st != 200 || body != "a1 /" {
			t.Errorf("got %d %s", st, body)
		}
	}
	_, as := l.query("inference.local", dnsmessage.TypeA)
	c, err := l.tryConnect("tcp", as[0].String()+":443")
	if err == nil { // else the reset came before connect returned
		err = cut(t, c)
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("port 443: got %v, want a reset", err)
	}
	if got := l.book.reasons(ledger.KindConnect); len(got) != 1 || got[0] != "denied infer.port" {
		t.Errorf("records %v", got)
	}
}

// An agent's call goes through the real router to an upstream that streams.
func TestRouter(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\ndata: [DONE]\n\n")
	}))
	t.Cleanup(up.Close)
	log := &book{}
	r, err := router.New(router.Config{Recorder: log, Upstreams: map[string]config.Upstream{"local": {URL: up.URL + "/v1"}}})
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t, steered(steer(t)), func(c *Config, _ *holds.Config) { c.Models = r.Handler })
	l.mu.Lock()
	l.pol = &policies.Policy{Name: "test", Inference: policies.Inference{Routes: []policies.Route{{Models: []string{"tiny"}, Upstream: "local"}}}}
	l.mu.Unlock()
	for model, want := range map[string]string{"tiny": "[DONE]", "huge": "infer.unlisted"} {
		c := l.connect("tcp", "inference.local:80")
		body := fmt.Sprintf(`{"model":%q,"stream":true}`, model)
		fmt.Fprintf(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: inference.local\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if b, err := io.ReadAll(c); err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s: got %s %v, want %s in it", model, b, err, want)
		}
	}
	eventually(t, "three records", func() bool { return len(log.reasons(ledger.KindModel)) == 3 })
}

// A loop of refusals is slowed, a burst is not.
func TestPace(t *testing.T) {
	var p router.Pace
	now := time.Now()
	for i := range router.DenyBurst {
		if w := p.Turn(now, 1); w > 0 {
			t.Fatalf("refusal %d waits %v", i, w)
		}
	}
	for i := range 10 {
		if w := p.Turn(now, 1); w != time.Duration(i+1)*router.DenyEvery {
			t.Errorf("refusal %d after the burst waits %v", i, w)
		}
	}
	if w := p.Turn(now.Add(time.Hour), 1); w > 0 {
		t.Errorf("after an hour: %v", w)
	}
	if w := p.Turn(now.Add(time.Hour), router.DenyBurst); w != router.DenyEvery {
		t.Errorf("many turns at once: got %v", w)
	}
}

// curl and glibc's resolver in the sandbox need nothing but resolv.conf.
func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip(err)
	}
	l := newLab(t, steered(steer(t)))
	l.network(allow(rule("web.example", 8080)))
	l.serve(httpOK)
	conf := t.TempDir() + "/resolv.conf"
	if err := os.WriteFile(conf, []byte("nameserver 127.0.0.53\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err = within(l.ns, func() error {
		cmd := exec.Command("/bin/sh", "-c", `mount --bind "$0" /etc/resolv.conf && "$1" -sS --noproxy '*' -m 10 http://web.example:8080/x; "$1" -sS --noproxy '*' -m 10 http://no.example/`, conf, curl)
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Unshareflags: unix.CLONE_NEWNS}
		return cmd.Run()
	})
	if err != nil || !strings.Contains(out.String(), "web.example:8080") || !strings.Contains(out.String(), policies.ReasonUnlisted) {
		t.Errorf("got %v: %s", err, out.String())
	}
}

// Without steering the named ports work, and the weakening is recorded.
func TestUnsteered(t *testing.T) {
	l := newLab(t)
	w := l.book.find(func(r ledger.Record) bool { return r.Kind == ledger.KindWeakening })
	if len(w) != 1 || w[0].Reason != "net.unsteered" || w[0].Agent != "a1" {
		t.Fatalf("records %+v", w)
	}
	l.at.Close()
	l.network(allow(rule("a.example", 7000)))
	l.attach()
	if !echoes(l.connect("tcp", "a.example:7000"), "x") {
		t.Error("a port that the policy names does not work")
	}
	if st, body := l.get("b.example:80", "b.example"); st != 403 {
		t.Errorf("got %d %s", st, body)
	}
	if _, err := l.tryConnect("tcp", "192.0.2.1:7001"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("another port: got %v, want ECONNREFUSED", err)
	}
	// The ledger must take the weakening, or nothing is attached.
	l.book.breakDown(errors.New("disk full"))
	a := l.agent
	a.ID = "a2"
	if _, err := l.proxy.Attach(t.Context(), a, newNetns(t)); err == nil {
		t.Error("attached without a record of the weakening")
	}
}

// Close undoes everything, and Attach works again.
func TestCloseAndAgain(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	l.network(allow(rule("a.example", 7000)))
	for range 3 {
		c := l.connect("tcp", "a.example:7000")
		if !echoes(c, "x") {
			t.Fatal("no echo")
		}
		if err := l.at.Close(); err != nil {
			t.Fatal(err)
		}
		if err := cut(t, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("open connection: got %v, want a reset", err)
		}
		if _, err := l.tryConnect("tcp", "203.0.113.1:80"); !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("after Close: got %v, want ENETUNREACH", err)
		}
		l.attach()
	}
}

func TestNewRefuses(t *testing.T) {
	h, err := holds.Open(holds.Config{Recorder: &book{}})
	if err != nil {
		t.Fatal(err)
	}
	for _, hosts := range []map[string]string{
		{"a.example": "127.0.0.1"},
		{"a.example": "::1"},
		{"a.example": "169.254.169.254"},
		{"a.example": "b"},
		{"bad name": "10.0.0.1"},
		{"a.example": "10.0.0.1", "A.example": "10.0.0.2"},
		{InferenceHost: "10.0.0.1"},
	} {
		if _, err := New(Config{Recorder: &book{}, Holds: h, Hosts: hosts}); err == nil {
			t.Errorf("%v: want an error", hosts)
		}
	}
	if _, err := New(Config{Holds: h}); err == nil {
		t.Error("no recorder: want an error")
	}
}
