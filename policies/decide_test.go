package policies

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// One policy with every kind of rule; line numbers are asserted.
const rich = `apiVersion: clawbox.io/v1
kind: AgentPolicy
metadata: {name: rich}
filesystem:
  read: [/usr, /data/in]
  write: [/work, /tmp]
process:
  exec: [/usr/local/bin/node, /opt/tools/]
  spawn: true
network:
  default: hold
  allow:
    - api.example.com:443
    - "*.cdn.example"
    - {domain: corp.example, ports: [22, 443]}
    - {cidr: 10.1.0.0/16, ports: [443]}
    - {host: 192.0.2.7}
    - {cidr: "fd00::/8"}
    - "*:8443"
  deny:
    - {domain: evil.example}
    - bad.corp.example
    - {host: worse.corp.example, ports: [22]}
    - {cidr: 10.1.9.0/24}
    - {host: "*", ports: [25]}
inference:
  routes:
    - {models: [tiny, small], upstream: local}
    - {models: [big], upstream: cloud}
`

func TestDecide(t *testing.T) {
	p := mustParse(t, rich)
	path := func(a Action, s string) Request { return Request{Action: a, Path: s} }
	conn := func(h string, port int) Request { return Request{Action: Connect, Host: h, Port: port} }
	for _, c := range []struct {
		r      Request
		v      Verdict
		reason string
		rule   string
	}{
		{path(Read, "/usr"), Allow, ReasonRead, "t.yaml:5: read /usr"},
		{path(Read, "/usr/lib/x"), Allow, ReasonRead, "t.yaml:5: read /usr"},
		{path(Read, "//usr/./lib//"), Allow, ReasonRead, "t.yaml:5: read /usr"},
		{path(Read, "/work/x"), Allow, ReasonRead, "t.yaml:6: write /work"},
		{path(Read, "/usrx"), Deny, ReasonUnreadable, ""},
		{path(Read, "/data"), Deny, ReasonUnreadable, ""},
		{path(Read, "/"), Deny, ReasonUnreadable, ""},
		{path(Read, "/opt/tools"), Allow, ReasonRead, "t.yaml:8: exec /opt/tools/"},
		{path(Read, "/opt/tools/a/b"), Allow, ReasonRead, "t.yaml:8: exec /opt/tools/"},
		{path(Read, "/opt/toolsx"), Deny, ReasonUnreadable, ""},
		{path(Read, "/usr/../etc/shadow"), Deny, ReasonPath, ""},
		{path(Read, "/usr/.."), Deny, ReasonPath, ""},
		{path(Read, "usr"), Deny, ReasonPath, ""},
		{path(Read, ""), Deny, ReasonPath, ""},
		{path(Read, "/usr/\x00"), Deny, ReasonPath, ""},
		{path(Read, "/usr/"+strings.Repeat("a", 4096)), Deny, ReasonPath, ""},
		{path(Read, "/usr/..."), Allow, ReasonRead, "t.yaml:5: read /usr"},
		{path(Read, "/usr/\xff"), Allow, ReasonRead, "t.yaml:5: read /usr"},
		{path(Write, "/work"), Allow, ReasonWrite, "t.yaml:6: write /work"},
		{path(Write, "/tmp/a/b"), Allow, ReasonWrite, "t.yaml:6: write /tmp"},
		{path(Write, "/usr/lib/x"), Deny, ReasonReadOnly, "t.yaml:5: read /usr"},
		{path(Write, "/opt/tools/x"), Deny, ReasonReadOnly, "t.yaml:8: exec /opt/tools/"},
		{path(Write, "/etc/passwd"), Deny, ReasonUnreadable, ""},
		{path(Write, "/work/../etc"), Deny, ReasonPath, ""},
		{path(Exec, "/usr/local/bin/node"), Allow, ReasonExec, "t.yaml:8: exec /usr/local/bin/node"},
		{path(Exec, "/usr/local/bin/node/x"), Deny, ReasonUnexecutable, ""},
		{path(Exec, "/usr/local/bin/nodex"), Deny, ReasonUnexecutable, ""},
		{path(Exec, "/usr/local/bin"), Deny, ReasonUnexecutable, ""},
		{path(Exec, "/opt/tools/jq"), Allow, ReasonExec, "t.yaml:8: exec /opt/tools/"},
		{path(Exec, "/opt/tools"), Deny, ReasonUnexecutable, ""},
		{path(Exec, "/opt/toolsx"), Deny, ReasonUnexecutable, ""},
		{path(Exec, "/work/a.out"), Deny, ReasonWritable, "t.yaml:6: write /work"},
		{path(Exec, "/opt/tools/../../bin/sh"), Deny, ReasonPath, ""},
		{path(Exec, "node"), Deny, ReasonPath, ""},

		{conn("api.example.com", 443), Allow, ReasonNet, "t.yaml:13: allow api.example.com:443"},
		{conn("API.Example.COM.", 443), Allow, ReasonNet, "t.yaml:13: allow api.example.com:443"},
		{conn("api.example.com", 80), Hold, ReasonUnlisted, ""},
		{conn("api.example.com.evil.example", 443), Deny, ReasonDenied, "t.yaml:21: deny domain evil.example"},
		{conn("xapi.example.com", 443), Hold, ReasonUnlisted, ""},
		{conn("x.api.example.com", 443), Hold, ReasonUnlisted, ""},
		{conn("a.cdn.example", 443), Allow, ReasonNet, "t.yaml:14: allow *.cdn.example"},
		{conn("a.cdn.example", 80), Allow, ReasonNet, "t.yaml:14: allow *.cdn.example"},
		{conn("a.cdn.example", 22), Hold, ReasonUnlisted, ""},
		{conn("cdn.example", 443), Hold, ReasonUnlisted, ""},
		{conn("a.b.cdn.example", 443), Hold, ReasonUnlisted, ""},
		{conn("xcdn.example", 443), Hold, ReasonUnlisted, ""},
		{conn("corp.example", 22), Allow, ReasonNet, "t.yaml:15: allow domain corp.example:22,443"},
		{conn("a.b.corp.example", 443), Allow, ReasonNet, "t.yaml:15: allow domain corp.example:22,443"},
		{conn("xcorp.example", 443), Hold, ReasonUnlisted, ""},
		{conn("a.corp.example", 80), Hold, ReasonUnlisted, ""},
		{conn("bad.corp.example", 443), Deny, ReasonDenied, "t.yaml:22: deny bad.corp.example"},
		{conn("BAD.corp.example.", 9999), Deny, ReasonDenied, "t.yaml:22: deny bad.corp.example"},
		{conn("a.bad.corp.example", 443), Allow, ReasonNet, "t.yaml:15: allow domain corp.example:22,443"},
		{conn("worse.corp.example", 22), Deny, ReasonDenied, "t.yaml:23: deny worse.corp.example:22"},
		{conn("worse.corp.example", 443), Allow, ReasonNet, "t.yaml:15: allow domain corp.example:22,443"},
		{conn("evil.example", 1), Deny, ReasonDenied, "t.yaml:21: deny domain evil.example"},
		{conn("a.b.evil.example", 443), Deny, ReasonDenied, "t.yaml:21: deny domain evil.example"},
		{conn("notevil.example", 443), Hold, ReasonUnlisted, ""},
		{conn("10.1.2.3", 443), Allow, ReasonNet, "t.yaml:16: allow 10.1.0.0/16:443"},
		{conn("::ffff:10.1.2.3", 443), Allow, ReasonNet, "t.yaml:16: allow 10.1.0.0/16:443"},
		{conn("[::ffff:10.1.9.3]", 443), Deny, ReasonDenied, "t.yaml:24: deny 10.1.9.0/24"},
		{conn("10.1.9.3", 443), Deny, ReasonDenied, "t.yaml:24: deny 10.1.9.0/24"},
		{conn("10.1.0.0", 443), Allow, ReasonNet, "t.yaml:16: allow 10.1.0.0/16:443"},
		{conn("10.1.255.255", 443), Allow, ReasonNet, "t.yaml:16: allow 10.1.0.0/16:443"},
		{conn("10.0.255.255", 443), Hold, ReasonUnlisted, ""},
		{conn("10.2.0.0", 443), Hold, ReasonUnlisted, ""},
		{conn("10.2.0.1", 443), Hold, ReasonUnlisted, ""},
		{conn("10.1.2.3.nip.example", 443), Hold, ReasonUnlisted, ""},
		{conn("192.0.2.7", 80), Allow, ReasonNet, "t.yaml:17: allow 192.0.2.7"},
		{conn("192.0.2.7", 22), Hold, ReasonUnlisted, ""},
		{conn("[fd00::1]", 443), Allow, ReasonNet, "t.yaml:18: allow fd00::/8"},
		{conn("fe80::1%lo", 443), Deny, ReasonHost, ""},
		{conn("any.thing.example", 8443), Allow, ReasonNet, "t.yaml:19: allow *:8443"},
		{conn("203.0.113.9", 8443), Hold, ReasonUnlisted, ""}, // allow "*" is for names
		{conn("any.thing.example", 25), Deny, ReasonDenied, "t.yaml:25: deny *:25"},
		{conn("203.0.113.9", 25), Deny, ReasonDenied, "t.yaml:25: deny *:25"}, // deny "*" is for both
		{conn("0x0a010203", 443), Deny, ReasonHost, ""},
		{conn("", 443), Deny, ReasonHost, ""},
		{conn("a b", 443), Deny, ReasonHost, ""},
		{conn("*", 8443), Deny, ReasonHost, ""},
		{conn("*.cdn.example", 443), Deny, ReasonHost, ""},
		{conn("api.example.com", 0), Deny, ReasonPort, ""},
		{conn("api.example.com", -443), Deny, ReasonPort, ""},
		{conn("api.example.com", 65979), Deny, ReasonPort, ""},

		{Request{Action: Infer, Model: "tiny"}, Allow, ReasonInfer, "t.yaml:28: route tiny, small to local"},
		{Request{Action: Infer, Model: "small", Sensitive: true}, Allow, ReasonInfer, "t.yaml:28: route tiny, small to local"},
		{Request{Action: Infer, Model: "big"}, Allow, ReasonInfer, "t.yaml:29: route big to cloud"},
		{Request{Action: Infer, Model: "big", Sensitive: true}, Deny, ReasonSensitive, "t.yaml:29: route big to cloud"},
		{Request{Action: Infer, Model: "Big"}, Deny, ReasonUnrouted, ""},
		{Request{Action: Infer, Model: "*"}, Deny, ReasonUnrouted, ""},
		{Request{Action: Infer}, Deny, ReasonModel, ""},
		{Request{Action: Infer, Model: "a\nb"}, Deny, ReasonModel, ""},
		{Request{Action: Infer, Model: strings.Repeat("m", 257)}, Deny, ReasonModel, ""},

		{Request{}, Deny, ReasonAction, ""},
		{Request{Action: "READ", Path: "/usr"}, Deny, ReasonAction, ""},
	} {
		d := p.Decide(c.r)
		if d.Verdict != c.v || d.Reason != c.reason || d.Rule != c.rule {
			t.Errorf("%s: got %+v\nwant %s %s %q", c.r, d, c.v, c.reason, c.rule)
		}
		if text := p.Explain(c.r); !strings.Contains(text, c.reason) || !strings.Contains(text, c.rule) || meanings[d.Reason] == "" {
			t.Errorf("%+v is explained as %q", c.r, text)
		}
	}
}

// Rules that Parse would refuse, in a policy made by hand, match no address
// by its text and never panic.
func TestDecideHandmadeRules(t *testing.T) {
	for _, r := range []HostRule{{}, {Domain: "0.0.1"}, {Host: "*.0.0.1"}, {CIDR: "10.0.0.1"}, {CIDR: "x"}, {Host: "**"}, {Domain: "."}} {
		p := &Policy{Network: Network{Allow: []HostRule{r}}}
		if d := p.Decide(Request{Action: Connect, Host: "10.0.0.1", Port: 443}); d.Verdict != Deny {
			t.Errorf("%+v: got %+v", r, d)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	p := mustParse(b, rich)
	for _, r := range []Request{
		{Action: Read, Path: "/usr/lib/x"},
		{Action: Exec, Path: "/opt/tools/jq"},
		{Action: Connect, Host: "api.example.com", Port: 443},
		{Action: Connect, Host: "nobody.example", Port: 443},
		{Action: Infer, Model: "big"},
	} {
		b.Run(r.String(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.Decide(r)
			}
		})
	}
	b.Run("parse", func(b *testing.B) {
		for b.Loop() {
			mustParse(b, rich)
		}
	})
}

func TestDecideStrip(t *testing.T) {
	p := mustParse(t, rich+"  sensitive: strip\n")
	for model, want := range map[string]Decision{
		"tiny": {Verdict: Allow, Reason: ReasonInfer, Rule: "t.yaml:28: route tiny, small to local", Upstream: "local"},
		"big":  {Verdict: Allow, Reason: ReasonStrip, Rule: "t.yaml:29: route big to cloud", Upstream: "cloud", Strip: true},
	} {
		if d := p.Decide(Request{Action: Infer, Model: model, Sensitive: true}); d != want {
			t.Errorf("got %+v, want %+v", d, want)
		}
	}
}

func TestDecideWithoutPolicy(t *testing.T) {
	var p *Policy
	if d := p.Decide(Request{Action: Read, Path: "/"}); d.Verdict != Deny || d.Reason != ReasonPolicy {
		t.Errorf("nil policy: %+v", d)
	}
	zero := &Policy{}
	for _, r := range []Request{{Action: Read, Path: "/"}, {Action: Exec, Path: "/bin/sh"}, {Action: Connect, Host: "a", Port: 1}, {Action: Infer, Model: "m"}} {
		if d := zero.Decide(r); d.Verdict != Deny {
			t.Errorf("zero policy, %s: %+v", r, d)
		}
	}
}

func TestRuleOfPresetIsNamed(t *testing.T) {
	p := mustParse(t, head+"extends: development\n")
	d := p.Decide(Request{Action: Connect, Host: "10.0.0.1", Port: 22})
	if !strings.HasPrefix(d.Rule, "preset/development.yaml:") {
		t.Errorf("got rule %q", d.Rule)
	}
}

func TestDenyAddr(t *testing.T) {
	p := mustParse(t, rich)
	for addr, want := range map[string]bool{
		"10.1.9.1": true, "::ffff:10.1.9.1": true, "10.1.8.1": false, "203.0.113.1": false, "fe80::1%lo": false,
	} {
		rule, denied := p.DenyAddr(netip.MustParseAddr(addr), 443)
		if denied != want || denied != (rule != "") && want {
			t.Errorf("%s: got %v by %q", addr, denied, rule)
		}
	}
	if _, denied := p.DenyAddr(netip.Addr{}, 443); !denied {
		t.Error("the zero address passes")
	}
}

func TestDescribe(t *testing.T) {
	text := mustParse(t, rich).Describe()
	for _, want := range []string{
		"Policy rich (canonical, from t.yaml)", "may read /usr, /data/in", "may write /work, /tmp; starts in /tmp",
		"entry point and /usr/local/bin/node, /opt/tools/; may start processes", "must not connect to domain evil.example, any port",
		"may connect to *.cdn.example, ports 80 and 443", "held until an operator", "may call models tiny, small at upstream local", "2GiB of memory",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

// The reference: the language as docs/policy.md says it, slow and obvious.

// chain is p and every folder above it; nil for a path that cannot be asked about.
func chain(p string) []string {
	if !strings.HasPrefix(p, "/") || strings.Contains(p, "\x00") || len(p) > 4095 {
		return nil
	}
	at, out := "", []string{"/"}
	for _, c := range strings.Split(p, "/") {
		switch c {
		case "..":
			return nil
		case "", ".":
			continue
		}
		at += "/" + c
		out = append(out, at)
	}
	return out
}

func meet(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}

func refPath(p *Policy, r Request) Verdict {
	c := chain(r.Path)
	if c == nil {
		return Deny
	}
	leaf := c[len(c)-1]
	listed, readable := false, false
	for _, e := range p.Process.Exec {
		for _, folder := range c {
			inside := folder != leaf && strings.TrimSuffix(folder, "/")+"/" == e
			listed = listed || inside
			readable = readable || inside || strings.TrimSuffix(folder, "/")+"/" == e
		}
		listed = listed || leaf == e && leaf != "/"
		readable = readable || leaf == e
	}
	writable := meet(c, p.Filesystem.Write)
	ok := map[Action]bool{
		Read:  meet(c, p.Filesystem.Read) || writable || readable,
		Write: writable,
		Exec:  listed && !writable,
	}[r.Action]
	if ok {
		return Allow
	}
	return Deny
}

// refHost matches label by label, from the right.
func refHost(r HostRule, host string) bool {
	addr, err := netip.ParseAddr(host)
	if r.CIDR != "" {
		return err == nil && netip.MustParsePrefix(r.CIDR).Contains(addr)
	}
	pattern := r.Host
	if r.Domain != "" {
		pattern = r.Domain
	}
	want, got := strings.Split(pattern, "."), strings.Split(host, ".")
	if err == nil {
		return host == r.Host
	}
	if len(got) < len(want) || r.Domain == "" && len(got) != len(want) {
		return false
	}
	for i := 1; i <= len(want); i++ {
		if w := want[len(want)-i]; w != "*" && w != got[len(got)-i] {
			return false
		}
	}
	return true
}

func refConnect(p *Policy, r Request) Verdict {
	host := strings.TrimSuffix(strings.ToLower(r.Host), ".")
	_, noAddr := netip.ParseAddr(host)
	if host == "" || strings.ContainsAny(host, "* ") || r.Port < 1 || r.Port > 65535 {
		return Deny
	}
	for _, d := range p.Network.Deny {
		if (len(d.Ports) == 0 || slices.Contains(d.Ports, r.Port)) && (d.Host == "*" || refHost(d, host)) {
			return Deny
		}
	}
	for _, a := range p.Network.Allow {
		ports := a.Ports
		if len(ports) == 0 {
			ports = []int{80, 443}
		}
		if slices.Contains(ports, r.Port) && (a.Host == "*" && noAddr != nil || a.Host != "*" && refHost(a, host)) {
			return Allow
		}
	}
	return p.Network.Default
}

func refInfer(p *Policy, r Request) (Verdict, string, bool) {
	for _, route := range p.Inference.Routes {
		for _, m := range route.Models {
			if r.Model == "" || m != r.Model && m != "*" {
				continue
			}
			if r.Sensitive && route.Upstream != "local" && p.Inference.Sensitive == "deny" {
				return Deny, route.Upstream, false
			}
			return Allow, route.Upstream, r.Sensitive && route.Upstream != "local"
		}
	}
	return Deny, "", false
}

// world makes small random policies and requests that often meet.
type world struct{ *rand.Rand }

func pick[T any](w world, of ...T) T { return of[w.IntN(len(of))] }

func some[T any](w world, gen func() T) []T {
	out := make([]T, w.IntN(4))
	for i := range out {
		out[i] = gen()
	}
	return out
}

func (w world) path() string {
	s := ""
	for range 1 + w.IntN(3) {
		s += "/" + pick(w, "a", "b", "ab")
	}
	return s
}

func (w world) host() string {
	s := pick(w, "a", "b", "ab", "xn--bcher-kva")
	for range w.IntN(3) {
		s = pick(w, "a", "b", "ab") + "." + s
	}
	return pick(w, s, s, s, "10.0.0.1", "10.0.1.1", "fd00::1")
}

func (w world) rule(v Verdict) HostRule {
	r := HostRule{Ports: pick(w, nil, []int{443}, []int{22, 8443})}
	switch h := w.host(); w.IntN(5) {
	case 0:
		r.CIDR = pick(w, "10.0.0.0/24", "10.0.0.0/8", "fd00::/8")
	case 1:
		if _, addr := isAddr(h); !addr {
			r.Domain = h
			return r
		}
		r.Host = h
	case 2:
		r.Host = "*"
		if v == Deny && r.Ports == nil {
			r.Ports = []int{443}
		}
	case 3:
		r.Host = h
		if _, addr := isAddr(h); v == Allow && !addr {
			r.Host = "*." + h
		}
	default:
		r.Host = h
	}
	return r
}

func (w world) policy(base *Policy) *Policy {
	p := *base
	p.at = nil
	p.Filesystem = Filesystem{Read: append(some(w, w.path), "/c"), Write: some(w, w.path), Workdir: "/c"}
	p.Process.Exec = some(w, func() string { return w.path() + pick(w, "", "/") })
	p.Network = Network{
		Default: pick(w, Deny, Hold),
		Allow:   some(w, func() HostRule { return w.rule(Allow) }),
		Deny:    some(w, func() HostRule { return w.rule(Deny) }),
	}
	p.Inference.Routes = some(w, func() Route {
		return Route{Models: pick(w, []string{"*"}, []string{"m"}, []string{"n", "m"}), Upstream: pick(w, "local", "cloud")}
	})
	p.Inference.Sensitive = pick(w, "deny", "strip")
	return &p
}

func (w world) request() Request {
	p, h := w.path(), w.host()
	return Request{
		Action:    pick(w, Read, Write, Exec, Connect, Connect, Infer),
		Path:      pick(w, p, p, p, p, "/", p+"/", "/."+p, p+"/../a", p[1:], ""),
		Host:      pick(w, h, h, h, h, strings.ToUpper(h), h+" ", "", "*"),
		Port:      pick(w, 443, 443, 80, 22, 8443, 0, 65536),
		Model:     pick(w, "m", "n", "o", ""),
		Sensitive: w.IntN(2) == 0,
	}
}

func refDecide(p *Policy, r Request) (v Verdict, upstream string, strip bool) {
	switch r.Action {
	case Connect:
		return refConnect(p, r), "", false
	case Infer:
		return refInfer(p, r)
	}
	return refPath(p, r), "", false
}

func agree(p *Policy, r Request) error {
	d := p.Decide(r)
	v, up, strip := refDecide(p, r)
	if d.Verdict != v || d.Upstream != up || d.Strip != strip {
		return fmt.Errorf("%s: got %+v, the reference says %s %q %v, under\n%s", r, d, v, up, strip, p.YAML())
	}
	return nil
}

// Decide against the reference, and the laws that hold for every policy.
func TestDecideAgainstReference(t *testing.T) {
	base := preset(t, "sandbox")
	seen, parsed := map[Verdict]int{}, 0
	for seed := range uint64(4000) {
		w := world{rand.New(rand.NewPCG(seed, 1))}
		p := w.policy(base)
		again, err := Parse("again.yaml", p.YAML())
		if err == nil {
			parsed++
		}
		q := *p
		q.Network.Deny = append(slices.Clone(p.Network.Deny), w.rule(Deny))
		wider := p.WithAllow(w.rule(Allow))
		for range 10 {
			r := w.request()
			d := p.Decide(r)
			seen[d.Verdict]++
			if err := agree(p, r); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if err == nil && again.Decide(r).Verdict != d.Verdict {
				t.Fatalf("seed %d: %s: parsed again, %+v became %+v\n%s", seed, r, d, again.Decide(r), p.YAML())
			}
			if n := q.Decide(r); n.Verdict != d.Verdict && n.Verdict != Deny {
				t.Fatalf("seed %d: %s: one more deny rule turned %s into %s", seed, r, d.Verdict, n.Verdict)
			}
			if n := wider.Decide(r); n.Verdict != d.Verdict && (n.Verdict != Allow || d.Reason != ReasonUnlisted) {
				t.Fatalf("seed %d: %s: one more allow rule turned %+v into %+v", seed, r, d, n)
			}
		}
	}
	for _, v := range []Verdict{Allow, Deny, Hold} {
		if seen[v] < 1000 {
			t.Errorf("the generator is too narrow: %v", seen)
		}
	}
	if parsed < 1000 { // the others contradict themselves, such as read inside write
		t.Errorf("only %d of 4000 random policies parse", parsed)
	}
}
