package policies

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func preset(t testing.TB, name string) *Policy {
	t.Helper()
	p, err := Preset(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A preset is a base for others, so it leaves no field to chance: read over
// two different bases it comes out the same.
func TestPresetsAreComplete(t *testing.T) {
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, f := range files {
		name, isYAML := strings.CutSuffix(f.Name(), ".yaml")
		if !isYAML {
			continue
		}
		found++
		src, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		poison := mustParse(t, strings.NewReplacer("evil.example", "poison.example", "/workspace", "/poison", "500", "77", "64", "78", "1.5", "79", "1024", "80", "2h", "81h", "200000", "82", "20MiB", "83MiB", "40MiB", "84MiB", "3GiB", "85GiB", "5000", "86").Replace(full))
		p, err := parse("preset/"+f.Name(), src, poison)
		if err != nil {
			t.Fatal(err)
		}
		if q := preset(t, name); p.Name != name || string(p.YAML()) != string(q.YAML()) {
			t.Errorf("%s leaves out a field:\n%s", f.Name(), p.YAML())
		}
		checkCanonical(t, p)
	}
	if found != len(Presets()) {
		t.Errorf("%d preset files, %d names", found, len(Presets()))
	}
}

// What the three profiles promise.
func TestPresetPromises(t *testing.T) {
	for _, c := range []struct {
		preset string
		r      Request
		want   Verdict
	}{
		{"sandbox", Request{Action: Connect, Host: "example.com", Port: 443}, Deny},
		{"sandbox", Request{Action: Connect, Host: "10.0.0.1", Port: 443}, Deny},
		{"sandbox", Request{Action: Write, Path: "/tmp/x"}, Allow},
		{"sandbox", Request{Action: Write, Path: "/usr/x"}, Deny},
		{"sandbox", Request{Action: Write, Path: "/workspace/x"}, Deny},
		{"sandbox", Request{Action: Read, Path: "/etc/passwd"}, Allow},
		{"sandbox", Request{Action: Read, Path: "/root/.ssh/id"}, Deny},
		{"sandbox", Request{Action: Exec, Path: "/bin/sh"}, Deny},
		{"sandbox", Request{Action: Infer, Model: "m", Sensitive: true}, Allow},
		{"development", Request{Action: Connect, Host: "192.168.1.4", Port: 22}, Allow},
		{"development", Request{Action: Connect, Host: "fd00::4", Port: 443}, Allow},
		{"development", Request{Action: Connect, Host: "git.internal", Port: 443}, Allow},
		{"development", Request{Action: Connect, Host: "example.com", Port: 443}, Deny},
		{"development", Request{Action: Connect, Host: "8.8.8.8", Port: 443}, Deny},
		{"development", Request{Action: Connect, Host: "169.254.169.254", Port: 80}, Deny},
		{"development", Request{Action: Connect, Host: "metadata.google.internal", Port: 80}, Deny},
		{"development", Request{Action: Connect, Host: "172.32.0.1", Port: 80}, Deny},
		{"development", Request{Action: Exec, Path: "/usr/bin/git"}, Allow},
		{"development", Request{Action: Exec, Path: "/workspace/a.out"}, Deny},
		{"development", Request{Action: Write, Path: "/workspace/a"}, Allow},
		{"development", Request{Action: Write, Path: "/home/a"}, Deny},
		{"production", Request{Action: Connect, Host: "example.com", Port: 443}, Hold},
		{"production", Request{Action: Exec, Path: "/usr/bin/curl"}, Deny},
		{"production", Request{Action: Write, Path: "/workspace/a"}, Allow},
	} {
		if d := preset(t, c.preset).Decide(c.r); d.Verdict != c.want {
			t.Errorf("%s: %s: got %+v, want %s", c.preset, c.r, d, c.want)
		}
	}
	if p := preset(t, "sandbox"); p.Process.Spawn || p.Process.Seccomp != "strict" {
		t.Errorf("sandbox spawns: %+v", p.Process)
	}
	if p := preset(t, "production"); p.Audit.Files != "all" {
		t.Errorf("production audits %q", p.Audit.Files)
	}
	for _, name := range Presets() {
		p := preset(t, name)
		b := p.Budgets
		if b.Processes == 0 || b.Memory == 0 || b.CPU == 0 || b.Scratch == 0 || b.OpenFiles == 0 || b.WallTime < time.Minute {
			t.Errorf("%s has a budget without bound: %+v", name, b)
		}
		if p.Inference.Sensitive != "deny" || p.Inference.Budget.Requests == 0 || p.Inference.Budget.Tokens == 0 {
			t.Errorf("%s: inference %+v", name, p.Inference)
		}
	}
}

func TestPresetUnknown(t *testing.T) {
	for _, name := range []string{"", "prod", "../policies/sandbox", "sandbox.yaml"} {
		if p, err := Preset(name); err == nil || p != nil || !strings.Contains(err.Error(), "want one of sandbox, development, production") {
			t.Errorf("%q: got %v, %v", name, p, err)
		}
	}
}

// A caller may change the copy it got without changing the next one.
func TestPresetIsFresh(t *testing.T) {
	p := preset(t, "sandbox")
	digest := p.Digest()
	p.Filesystem.Read[0], p.Network.Default = "/changed", Hold
	if got := preset(t, "sandbox").Digest(); got != digest {
		t.Error("a preset changed")
	}
}

func TestFromPreset(t *testing.T) {
	for path, want := range map[string]bool{"/usr": true, "/opt": true, "/usr/bin": false, "/data": false, "": false} {
		if FromPreset(path) != want {
			t.Errorf("%q: got %v", path, !want)
		}
	}
}

func TestWithAllow(t *testing.T) {
	p := mustParse(t, full)
	before := p.Digest()
	ask := Request{Action: Connect, Host: "new.example", Port: 8443}
	q := p.WithAllow(HostRule{Host: "New.Example.", Ports: []int{8443}, Line: 99})
	if d := q.Decide(ask); d.Verdict != Allow || d.Rule != "added: allow new.example:8443" {
		t.Errorf("got %+v", d)
	}
	if d := p.Decide(ask); d.Verdict != Hold || p.Digest() != before {
		t.Errorf("the original changed: %+v", d)
	}
	checkCanonical(t, q)
	if r := q.WithAllow(HostRule{Host: "new.example", Ports: []int{8443}}); r.Digest() != q.Digest() {
		t.Error("the same approval twice adds two rules")
	}
	// An approval never overrides a denial.
	q = p.WithAllow(HostRule{Host: "a.evil.example", Ports: []int{443}})
	if d := q.Decide(Request{Action: Connect, Host: "a.evil.example", Port: 443}); d.Reason != ReasonDenied {
		t.Errorf("got %+v", d)
	}
	for _, r := range []HostRule{
		{},
		{Host: "a.example", Domain: "b.example"},
		{Domain: "b.example", CIDR: "10.0.0.0/8"},
		{Host: "a..b"},
		{Host: "x}, {domain: com"},
		{Host: "a", Ports: []int{0}},
		{CIDR: "10.0.0.1/8"},
		{Domain: "*"},
		{Host: "https://a"},
		{Host: "a\nb"},
		{Host: "\xff"},
		{Host: "x", Ports: []int{80, 80}},
	} {
		if q := p.WithAllow(r); q.Digest() != before {
			t.Errorf("%+v was added:\n%s", r, q.YAML())
		}
	}
	// Two copies of one policy do not write into each other, even where the
	// list has room to grow in place.
	q.Network.Allow = slices.Grow(q.Network.Allow, 8)
	a, b := q.WithAllow(HostRule{Host: "a.example"}), q.WithAllow(HostRule{Host: "b.example"})
	hosts := func(p *Policy) string { return p.Network.Allow[len(p.Network.Allow)-1].Host }
	if hosts(a) != "a.example" || hosts(b) != "b.example" {
		t.Errorf("got %s and %s", hosts(a), hosts(b))
	}
}
