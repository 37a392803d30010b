package policies

import (
	"fmt"
	"net/netip"
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
	// A call on the last of 100 inspected destinations.
	src := head + "network:\n  allow:\n"
	for i := range 100 {
		src += fmt.Sprintf("    - {host: h%d.example, ports: [443], binaries: [/usr/bin/], protocol: http, calls: [{method: GET, path: \"/repos/*/issues/**\"}], denyCalls: [{path: \"/**/secret/**\"}]}\n", i)
	}
	q := mustParse(b, src)
	r := Request{Action: Call, Host: "h99.example", Port: 443, Binary: "/usr/bin/git", Message: &Message{Protocol: "http", Method: "GET", Path: "/repos/a/issues/7"}}
	if d := q.Decide(r); d.Verdict != Allow {
		b.Fatalf("%+v", d)
	}
	b.Run("call, 100 rules", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			q.Decide(r)
		}
	})
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
