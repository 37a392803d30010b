package installer

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clawbox/clawbox/installer/host"
)

// world is a machine, answers and a release, to make one thing wrong with.
type world struct {
	f *host.Facts
	a *Answers
	r *Release
}

// row makes one thing wrong; the named check must say so, with a remedy.
type row struct {
	check string
	want  Severity
	mod   func(w world)
}

// soloRows are about the checks of every profile.
var soloRows = []row{
	{"root-user", Refusal, func(w world) { w.f.UID = 1000 }},
	{"os", Warning, func(w world) { w.f.OS = host.OS{ID: "slackware", Version: "15", Pretty: "Slackware"} }},
	{"arch", Refusal, func(w world) { w.f.Arch = "riscv64"; w.r.Items[5].Platforms = nil }},
	{"cpus", Warning, func(w world) { w.f.CPUs = 1 }},
	{"memory", Warning, func(w world) { w.f.Memory.Total = 2 << 30 }},
	{"memory", Refusal, func(w world) { w.f.Memory.Total = 512 << 20 }},
	{"model-memory", Warning, func(w world) { w.r.Items[6].Size = 15 << 30 }},
	{"disk-space", Refusal, func(w world) { w.f.Disk.Free = 1 << 20 }},
	{"disk-inodes", Refusal, func(w world) { w.f.Disk.Inodes = 10 }},
	{"disk-writable", Refusal, func(w world) { w.f.Disk.Options = []string{"ro"} }},
	{"disk-exec", Refusal, func(w world) { w.f.Disk.Options = []string{"rw", "noexec"} }},
	{"disk-type", Refusal, func(w world) { w.f.Disk.FSType = "exfat" }},
	{"disk-volatile", Refusal, func(w world) { w.f.Disk.FSType = "tmpfs" }},
	{"disk-fsync", Warning, func(w world) { w.f.Disk.Fsync = time.Second }},
	{"clock", Refusal, func(w world) { w.f.Time = time.Unix(0, 0) }},
	{"clock-sync", Note, func(w world) { w.f.ClockSync = false }},
	{"ports", Refusal, func(w world) { w.f.Listening = []string{"0.0.0.0:5000"} }},
	{"ports", Refusal, func(w world) { w.f.Listening = []string{"127.0.0.1:11434"} }},
	{"ports", Refusal, func(w world) { w.f.Listening = []string{"[::]:5000"} }},
	{"ports", Note, func(w world) { w.f.Listening = []string{"127.0.0.1:5000"}; w.f.Earlier.Active = true }},
	{"uid-range", Refusal, func(w world) { w.f.UIDs = []host.Range{{First: 400100, Count: 1, Owner: "x"}} }},
	{"uid-range", Refusal, func(w world) { w.f.UIDs = []host.Range{{First: 401030, Count: 1, Owner: "x"}} }},
	{"uid-range", Refusal, func(w world) { w.f.UIDs = []host.Range{{First: 1000, Count: 1 << 20, Owner: "x"}} }},
	{"socket-path", Refusal, func(w world) { w.a.Root = "/" + strings.Repeat("long", 30) }},
	{"gpu", Note, func(w world) { w.f.GPUs = []host.GPU{{Device: "0x2330"}} }},
	{"gpu-bound", Warning, func(w world) { w.f.GPUs = []host.GPU{{Address: "0000:01:00.0", Driver: "nouveau"}} }},
	{"gpu-errors", Warning, func(w world) { w.f.GPUs = []host.GPU{{Address: "0000:01:00.0", Errors: 1}} }},
	{"secure-boot", Warning, func(w world) { w.f.GPUs, w.f.Secure = []host.GPU{{Device: "0x2330"}}, true }},
	{"fips", Warning, func(w world) { w.f.FIPS = true }},
	{"offline", Note, func(w world) { w.f.Routes = []string{"eno1"} }},
	{"kernel", Warning, func(w world) { w.f.Kernel = host.Kernel{Release: "5.15.0", Major: 5, Minor: 15} }},
	{"kernel", Refusal, func(w world) { w.f.Kernel = host.Kernel{Release: "5.4.0", Major: 5, Minor: 4} }},
	{"landlock", Refusal, func(w world) { w.f.Landlock = 0 }},
	{"landlock", Refusal, func(w world) { w.f.Landlock = 2 }},
	{"seccomp", Refusal, func(w world) { w.f.Seccomp = false }},
	{"namespaces", Refusal, func(w world) { w.f.Namespaces = []string{"mnt"} }},
	{"overlay", Refusal, func(w world) { w.f.Overlay = false }},
	{"cgroups", Refusal, func(w world) { w.f.Cgroup.Controllers = []string{"cpu"} }},
	{"cgroup2", Refusal, func(w world) { w.f.Cgroup.Unified = "" }},
	{"guard-tier", Refusal, func(w world) { w.f.BPF.Tracepoint = false }},
	{"bpf-lsm", Note, func(w world) { w.f.BPF.LSM = false }},
	{"mandatory-access", Warning, func(w world) { w.f.SELinux = "enforcing" }},
	{"user-namespaces", Note, func(w world) { w.f.UserNS = 0 }},
	{"systemd", Refusal, func(w world) { w.a.Start = "systemd" }}, // with a root of its own
	{"systemd", Refusal, func(w world) { w.a.Start, w.a.Root, w.f.Systemd = "systemd", "/", false }},
	{"profile", Refusal, func(w world) { w.a.Profile = "both" }},
	{"answers", Refusal, func(w world) { w.a.Operator = "" }},
	{"answers", Refusal, func(w world) { w.a.Registry = "0.0.0.0:1" }},
	{"answers", Refusal, func(w world) { w.a.Accept = []string{"everything"} }},
	{"programs", Refusal, func(w world) { w.r.Items[0].Path = "bin/other" }},
	{"programs", Refusal, func(w world) { w.r.Items[1].Mode = 0o644 }},
	{"places", Refusal, func(w world) { w.r.Items[3].Path = "../../etc/passwd" }},
	{"places", Refusal, func(w world) { w.r.Items[3].Path = "/etc/passwd" }},
	{"places", Refusal, func(w world) { w.r.Items[3].Path = mainPath }},
	{"places", Refusal, func(w world) { w.r.Items[4].Path = "etc/openclaw.yaml" }},
	{"platforms", Refusal, func(w world) { w.r.Items[5].Platforms = []string{"linux/s390x"} }},
	{"agents", Refusal, func(w world) { w.a.Agents[0].Image = "other" }},
	{"agents", Note, func(w world) { w.a.Agents = nil }},
	{"agent-policies", Refusal, func(w world) { w.a.Agents[0].Policy = "other.yaml" }},
	{"models", Refusal, func(w world) { w.a.Engine.Models = []string{"other"} }},
	{"engine", Refusal, func(w world) { w.r.Items[2].Path = "bin/else" }},
	{"engine", Note, func(w world) { w.a.Engine.Listen = "" }},
	{"licences", Note, func(w world) { w.r.Items[5].Redistributable = false }},
}

func TestPreflight(t *testing.T) {
	testRows(t, soloRows, soloRows, func() (host.Facts, Answers, Release) {
		r := makeUp(1, goodPolicy).Release
		return goodFacts("/srv/box"), goodAnswers("/srv/box", r), r
	})
}

// testRows holds a profile's checks against rows. A good world must pass all of
// them, and each check must have a row, in rows or in known, that it fails.
func testRows(t *testing.T, rows, known []row, good func() (host.Facts, Answers, Release)) {
	t.Helper()
	base := statuses(Preflight(good()))
	for c, s := range base {
		if s.Severity == Refusal || s.Severity == Warning {
			t.Errorf("a good machine: %v", s)
		}
		if !slices.ContainsFunc(known, func(r row) bool { return r.check == c && r.want != OK }) {
			t.Errorf("no row makes the check %q fail", c)
		}
	}
	if len(base) < 40 {
		t.Errorf("got %d checks", len(base))
	}
	for i, row := range rows {
		f, a, r := good()
		row.mod(world{&f, &a, &r})
		got := statuses(Preflight(f, a, r))
		x := got[row.check]
		if x.Severity != row.want {
			t.Errorf("row %d: got %v; want %s %s", i, x, row.want, row.check)
		}
		if x.Severity == Refusal && (x.Remedy == "" || x.Wanted == "" || x.Got == "") {
			t.Errorf("row %d: a refusal without help: %+v", i, x)
		}
		_, err := NewPlan(f, a, r)
		var pre *ErrPreflight
		if refused := errors.As(err, &pre); refused != (row.want == Refusal) {
			t.Errorf("row %d (%s %s): NewPlan gave %v", i, row.check, row.want, err)
		} else if refused && !strings.Contains(err.Error(), row.check) {
			t.Errorf("row %d: %v does not name %s", i, err, row.check)
		}
	}
}

func statuses(fs []Finding) map[string]Finding {
	out := map[string]Finding{}
	for _, f := range fs {
		out[f.Check] = f
	}
	return out
}

// Not knowing is not the same as being fine.
func TestFailedProbes(t *testing.T) {
	m := makeUp(1, goodPolicy)
	for _, p := range []string{"memory", "landlock", "seccomp", "namespaces", "overlay", "cgroup", "disk", "uids", "listening", "kernel"} {
		f := goodFacts("/srv/box")
		f.Failed[p] = "EPERM from a probe"
		_, err := NewPlan(f, goodAnswers("/srv/box", m.Release), m.Release)
		if err == nil || !strings.Contains(err.Error(), "EPERM from a probe") {
			t.Errorf("%s: got %v; want a refusal with the reason", p, err)
		}
	}
}

// Each weakening turns exactly its refusals into warnings, and is recorded.
func TestWeakenings(t *testing.T) {
	m := makeUp(1, goodPolicy)
	for name, mod := range map[string]func(*host.Facts){
		"tier-T4":        func(f *host.Facts) { f.BPF = host.BPF{}; f.Cgroup.Unified = "" },
		"landlock-old":   func(f *host.Facts) { f.Landlock = 1 },
		"clock-unsure":   func(f *host.Facts) { f.Time = time.Unix(0, 0) },
		"volatile-state": func(f *host.Facts) { f.Disk.FSType = "tmpfs" },
	} {
		root := t.TempDir()
		f, a := goodFacts(root), goodAnswers(root, m.Release)
		mod(&f)
		if _, err := NewPlan(f, a, m.Release); err == nil || !strings.Contains(err.Error(), "accept: ["+name+"]") {
			t.Errorf("%s: got %v; want a refusal that names it", name, err)
		}
		a.Accept = []string{name}
		p, err := NewPlan(f, a, m.Release)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := Run(t.Context(), p, m.env()); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(root, "var/lib/clawbox/receipts/1.json"))
		if err != nil {
			t.Fatal(err)
		}
		rc, err := ParseReceipt(b)
		if err != nil || rc.Weakenings[name] == "" || len(rc.Warnings) == 0 {
			t.Errorf("%s is not in the receipt: %+v, %v", name, rc, err)
		}
		if tier := a.Config(m.Release).AcceptTier; (tier == "T4") != (name == "tier-T4") {
			t.Errorf("%s: acceptTier %s", name, tier)
		}
	}
	// An accepted weakening that is not needed changes nothing but the record,
	// and no weakening helps against the absence of Landlock.
	f, a := goodFacts("/srv/box"), goodAnswers("/srv/box", m.Release)
	f.Landlock, a.Accept = 0, weakeningNames()
	if _, err := NewPlan(f, a, m.Release); err == nil {
		t.Error("a machine without Landlock was accepted")
	}
}

func TestPlan(t *testing.T) {
	m := makeUp(1, goodPolicy)
	f, a := goodFacts("/"), goodAnswers("/", m.Release)
	a.Start = "systemd"
	p, err := NewPlan(f, a, m.Release)
	if err != nil {
		t.Fatal(err)
	}
	q, _ := NewPlan(f, a, m.Release)
	if !reflect.DeepEqual(p, q) {
		t.Error("NewPlan is not pure")
	}
	f.Disk.Write, f.MediaRead = 1, 0
	if q, _ := NewPlan(f, a, m.Release); q.Digest != p.Digest || q.Forecast.Time != 0 || !strings.Contains(q.Forecast.Basis, "not measured") {
		t.Errorf("another measurement: %+v", q.Forecast)
	}
	a.HoldSeconds++
	if q, _ := NewPlan(f, a, m.Release); q.Digest == p.Digest {
		t.Error("other answers have the same digest")
	}
	var out strings.Builder
	if err := p.Print(&out); err != nil {
		t.Fatal(err)
	}
	for _, s := range p.Steps {
		if !strings.Contains(out.String(), s.Title) || s.Why == "" {
			t.Errorf("the plan does not explain %s", s.ID)
		}
	}
	last := p.Steps[len(p.Steps)-1].ID
	if last != "start" || p.Steps[len(p.Steps)-2].ID != "activate" {
		t.Errorf("the last steps are %v", p.Steps[len(p.Steps)-2:])
	}
}

func TestForecast(t *testing.T) {
	p := Plan{Release: Release{Bytes: 1000 << 20}, Steps: []Step{{ID: "payload", Bytes: 1000 << 20}, {ID: "slot", Bytes: 100 << 20}}}
	for _, row := range []struct{ media, disk, secs int64 }{{100 << 20, 1000 << 20, 10}, {1000 << 20, 100 << 20, 11}, {50 << 20, 50 << 20, 22}} {
		p.Facts.MediaRead, p.Facts.Disk.Write = row.media, row.disk
		if got := forecast(p); got.Time != time.Duration(row.secs)*time.Second || got.Write != 1100<<20 {
			t.Errorf("media %d, disk %d: got %+v; want %d s", row.media, row.disk, got, row.secs)
		}
	}
}

func TestAnswersFile(t *testing.T) {
	r := makeUp(1, goodPolicy).Release
	f := filepath.Join(t.TempDir(), "answers.yaml")
	rows := []struct{ src, want string }{
		{"apiVersion: clawbox.io/v1\nkind: Answers\noperator: Ann\n", ""},
		{"apiVersion: clawbox.io/v1\nkind: Answers\noperator: Ann\nstart: none\nroot: /srv/box\naccept: [tier-T4]\nhosts: {a.example: 10.0.0.1}\n", ""},
		{"kind: Answers\noperator: Ann\n", "apiVersion"},
		{"apiVersion: clawbox.io/v1\noperator: Ann\n", "kind"},
		{"apiVersion: clawbox.io/v1\nkind: Answers\n", "operator"},
		{"apiVersion: clawbox.io/v1\nkind: Answers\noperator: Ann\nprofile: cluster\n", "cluster.role"},
		{"apiVersion: clawbox.io/v1\nkind: Answers\noperator: Ann\nprofile: x\n", "profile"},
		{"apiVersion: clawbox.io/v1\nkind: Answers\noperator: Ann\naccept: [all]\n", "tier-T4"},
		{"apiVersion: clawbox.io/v1\nkind: Answers\noperator: Ann\nroot: srv\n", "root"},
		{"apiVersion: clawbox.io/v1\nkind: Answers\noperator: Ann\nstart: maybe\n", "start"},
		{"apiVersion: clawbox.io/v1\nkind: Answers\noperator: Ann\nuidBase: 65000\n", "uidBase"},
		{"apiVersion: clawbox.io/v1\nkind: Answers\noperator: Ann\nagent: []\n", "unknown field"},
		{"apiVersion: clawbox.io/v1\nkind: Answers\noperator: \"a\\nb\"\n", "operator"},
	}
	for _, row := range rows {
		if err := os.WriteFile(f, []byte(row.src), 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := LoadAnswers(f, r)
		if row.want == "" {
			b, err2 := a.Encode()
			if err != nil || err2 != nil || len(a.Agents) != 1 {
				t.Errorf("%q: got %+v, %v, %v", row.src, a, err, err2)
			}
			os.WriteFile(f, b, 0o600)
			if again, err := LoadAnswers(f, r); err != nil || !reflect.DeepEqual(a, again) {
				t.Errorf("%q does not come back: %+v, %v", b, again, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%q: got %v; want %q", row.src, err, row.want)
		}
	}
}
