package installer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// installed makes a finished installation of sequence 2.
func installed(t *testing.T) (root string, m *madeUp, p Plan) {
	t.Helper()
	root, m = fast(t), makeUp(2, goodPolicy)
	p = planFor(t, root, m)
	if _, err := Run(t.Context(), p, m.env()); err != nil {
		t.Fatal(err)
	}
	return root, m, p
}

func TestReinstallVerifies(t *testing.T) {
	root, m, p := installed(t)
	before := tree(t, root)
	res, err := Run(t.Context(), p, m.env())
	if err != nil || res.Mode != "verified" || len(res.Changed) != 0 {
		t.Errorf("got %+v, %v", res, err)
	}
	diffTrees(t, tree(t, root), before)
}

// Whatever an accident or an intruder changed is put right and named; what the
// operator may change is left.
func TestReinstallRepairs(t *testing.T) {
	root, m, p := installed(t)
	before := tree(t, root)
	slot := filepath.Join(root, "opt/clawbox/slots/0.1.2-2")
	var blob string
	for h, b := range m.blobs {
		if len(b) > 100_000 {
			blob = filepath.Join(root, "var/lib/clawbox/store/blobs/sha256", h)
		}
	}
	for name, row := range map[string]struct {
		step string
		harm func() error
	}{
		"program changed":  {"slot", func() error { return os.WriteFile(filepath.Join(slot, "bin/clawbox"), []byte("evil"), 0o755) }},
		"program gone":     {"slot", func() error { return os.Remove(filepath.Join(slot, "bin/clawbox-launch")) }},
		"program setuid":   {"slot", func() error { return os.Chmod(filepath.Join(slot, "bin/ollama"), 0o777) }},
		"stranger in slot": {"slot", func() error { return os.WriteFile(filepath.Join(slot, "bin/extra"), nil, 0o755) }},
		"link in slot": {"slot", func() error {
			os.Remove(filepath.Join(slot, "bin/clawbox"))
			return os.Symlink("/bin/sh", filepath.Join(slot, "bin/clawbox"))
		}},
		"blob rotten": {"payload", func() error { os.Chmod(blob, 0o644); return flip(blob, 10) }},
		"blob gone":   {"payload", func() error { return os.Remove(blob) }},
		"open keys":   {"folders", func() error { return os.Chmod(filepath.Join(root, "var/lib/clawbox/keys"), 0o755) }},
		"no trust":    {"trust", func() error { return os.Remove(filepath.Join(root, "etc/clawbox/trusted.vkeys")) }},
		"no vkey":     {"keys", func() error { return os.Remove(filepath.Join(root, "etc/clawbox/ledger.vkey")) }},
		"no config":   {"config", func() error { return os.Remove(filepath.Join(root, "etc/clawbox/appliance.yaml")) }},
		"no link":     {"activate", func() error { return os.Remove(filepath.Join(root, "opt/clawbox/current")) }},
		"other link": {"activate", func() error {
			p := filepath.Join(root, "opt/clawbox/current")
			os.Remove(p)
			return os.Symlink("/tmp", p)
		}},
	} {
		if err := row.harm(); err != nil {
			t.Fatal(err)
		}
		res, err := Run(t.Context(), p, m.env())
		if err != nil || res.Changed[row.step] == "" || len(res.Changed) != 1 {
			t.Errorf("%s: got %+v, %v; want a repair by %s alone", name, res, err, row.step)
		}
		diffTrees(t, tree(t, root), before)
	}

	cfg := config.File(root)
	b, err := os.ReadFile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if a, ok, err := Kept(root, m.Release); !ok || err != nil || !reflect.DeepEqual(a, goodAnswers(root, m.Release)) {
		t.Errorf("kept answers: got %+v, %v, %v", a, ok, err)
	}
	edited := strings.Replace(string(b), "holdSeconds: 120", "holdSeconds: 30", 1)
	if err := os.WriteFile(cfg, []byte(edited), 0o644); err != nil {
		t.Fatal(err)
	}
	if res, err := Run(t.Context(), p, m.env()); err != nil || len(res.Changed) != 0 {
		t.Errorf("an edited configuration: got %+v, %v", res, err)
	}
	if b, _ := os.ReadFile(cfg); string(b) != edited {
		t.Error("the operator's edit was undone")
	}
}

// What cannot be repaired without losing something is refused.
func TestReinstallRefuses(t *testing.T) {
	for name, row := range map[string]struct {
		path, want string
		harm       func(string) error
	}{
		"no ledger key":    {"var/lib/clawbox/keys/ledger.key", "backup", os.Remove},
		"open ledger key":  {"var/lib/clawbox/keys/ledger.key", "0644", func(p string) error { return os.Chmod(p, 0o644) }},
		"other receipt":    {"var/lib/clawbox/receipts/2.json", "receipt", func(p string) error { return flip(p, 60) }},
		"file for command": {"usr/local/bin/clawbox", "move it away", func(p string) error { os.Remove(p); return os.WriteFile(p, nil, 0o755) }},
		"foreign store":    {"var/lib/clawbox/store", "of user 1000", func(p string) error { return os.Chown(p, 1000, 1000) }},
		"link for keys": {"var/lib/clawbox/keys", "symbolic link", func(p string) error {
			os.Rename(p, p+".moved")
			return os.Symlink(p+".moved", p)
		}},
		"journal": {"var/lib/clawbox/install/journal", "journal:1", func(p string) error { return flip(p, 3) }},
	} {
		root, m, p := installed(t)
		if err := row.harm(filepath.Join(root, row.path)); errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
			t.Logf("%s: left out: user %d: %v", name, os.Geteuid(), err)
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		if res, err := Run(t.Context(), p, m.env()); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: got %+v, %v; want a refusal with %q", name, res, err, row.want)
		}
	}
}

func TestSequences(t *testing.T) {
	root, _, _ := installed(t)
	before := tree(t, root)
	try := func(m *madeUp, a func(*Answers)) error {
		ans := goodAnswers(root, m.Release)
		a(&ans)
		p, err := NewPlan(goodFacts(root), ans, m.Release)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Run(t.Context(), p, m.env())
		return err
	}
	same := func(*Answers) {}
	if err := try(makeUp(1, goodPolicy), same); !errors.Is(err, manifest.ErrRollback) {
		t.Errorf("a lower sequence: got %v", err)
	}
	if err := try(makeUp(3, goodPolicy), same); err == nil || !strings.Contains(err.Error(), "clawbox upgrade") {
		t.Errorf("a higher sequence: got %v", err)
	}
	if err := try(makeUp(2, goodPolicy+"\n"), same); err == nil || !strings.Contains(err.Error(), "two contents") {
		t.Errorf("the same sequence with other bytes: got %v", err)
	}
	if err := try(makeUp(2, goodPolicy), func(a *Answers) { a.HoldSeconds = 60 }); err == nil || !strings.Contains(err.Error(), "other answers") {
		t.Errorf("other answers: got %v", err)
	}
	diffTrees(t, tree(t, root), before)
}

// stopAt runs until step fails by a broken loader or a cancelled context.
func stopAt(t *testing.T, root string, m *madeUp, step string) error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	env := m.env()
	env.hook = func(s, phase string) {
		if s == step && phase == "started" {
			cancel()
		}
	}
	_, err := Run(ctx, planFor(t, root, m), env)
	return err
}

func TestMidway(t *testing.T) {
	root, m := fast(t), makeUp(1, goodPolicy)
	err := stopAt(t, root, m, "slot")
	var step *StepError
	if !errors.As(err, &step) || step.Step != "slot" || step.Active || !slices.Equal(step.Done, []string{"folders", "trust", "payload", "policies"}) || !errors.Is(err, context.Canceled) {
		t.Fatalf("got %+v", err)
	}
	for _, s := range []string{"nothing is active", "same media"} {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%v lacks %q", err, s)
		}
	}
	other := makeUp(2, goodPolicy)
	_, err = Run(t.Context(), planFor(t, root, other), other.env())
	if err == nil || !strings.Contains(err.Error(), "0.1.1") || !strings.Contains(err.Error(), "0.1.2") {
		t.Errorf("another bundle midway: got %v; want a refusal with both names", err)
	}
	// Other answers for the same release start over and converge.
	a := goodAnswers(root, m.Release)
	a.HoldSeconds = 7
	p, err := NewPlan(goodFacts(root), a, m.Release)
	if err != nil {
		t.Fatal(err)
	}
	if res, err := Run(t.Context(), p, m.env()); err != nil || res.Mode != "resumed" {
		t.Fatalf("got %+v, %v", res, err)
	}
	if c, err := config.Load(config.File(root)); err != nil || c.HoldSeconds != 7 {
		t.Errorf("got %+v, %v", c, err)
	}
}

// A line that a power cut tore is as good as none, at every length.
func TestTornJournal(t *testing.T) {
	root, m := fast(t), makeUp(1, goodPolicy)
	if err := stopAt(t, root, m, "config"); err == nil {
		t.Fatal("did not stop")
	}
	j := filepath.Join(root, "var/lib/clawbox/install/journal")
	whole, err := os.ReadFile(j)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(whole) {
		if err := os.WriteFile(j, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		h, err := replay(j)
		if err != nil || h.size > int64(cut) {
			t.Fatalf("cut to %d bytes: %+v, %v", cut, h, err)
		}
	}
	if err := os.WriteFile(j, whole[:len(whole)-9], 0o600); err != nil {
		t.Fatal(err)
	}
	if res, err := Run(t.Context(), planFor(t, root, m), m.env()); err != nil || res.Mode != "resumed" {
		t.Errorf("got %+v, %v", res, err)
	}
	if b, _ := os.ReadFile(j); strings.Contains(string(b), "}{") || strings.Count(string(b), `"commit"`) != 1 {
		t.Errorf("the journal is %s", b)
	}
}

func TestLock(t *testing.T) {
	root, m := fast(t), makeUp(1, goodPolicy)
	env := m.env()
	env.Load = func(ctx context.Context, s *content.Store) error {
		_, err := Run(ctx, planFor(t, root, m), m.env())
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
			t.Errorf("a second installer: got %v", err)
		}
		return m.load(ctx, s)
	}
	if _, err := Run(t.Context(), planFor(t, root, m), env); err != nil {
		t.Fatal(err)
	}
}

// A loader that leaves something out or names something else is found.
func TestLoaderLies(t *testing.T) {
	m := makeUp(1, goodPolicy)
	for name, load := range map[string]func(context.Context, *content.Store) error{
		"nothing": func(context.Context, *content.Store) error { return nil },
		"other ref": func(ctx context.Context, s *content.Store) error {
			if err := m.load(ctx, s); err != nil {
				return err
			}
			return s.Tag(m.Items[5].Ref, m.roots[m.Items[6].Ref])
		},
	} {
		root := fast(t)
		env := m.env()
		env.Load = load
		var step *StepError
		if _, err := Run(t.Context(), planFor(t, root, m), env); !errors.As(err, &step) || step.Step != "payload" {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestChangedPlan(t *testing.T) {
	root, m := fast(t), makeUp(1, goodPolicy)
	p := planFor(t, root, m)
	p.Answers.Operator = "Mallory"
	if _, err := Run(t.Context(), p, m.env()); err == nil || !strings.Contains(err.Error(), "changed after it was made") {
		t.Errorf("got %v", err)
	}
	p = planFor(t, root, m)
	p.Facts.UID = 1000
	var pre *ErrPreflight
	if _, err := Run(t.Context(), p, m.env()); !errors.As(err, &pre) {
		t.Errorf("got %v", err)
	}
	untouched(t, root)
}

// Answers that leave everything out come back as they were kept: a resumed
// installation must not suggest again what the operator took away.
func TestKeptAnswers(t *testing.T) {
	root, m := fast(t), makeUp(1, goodPolicy)
	if _, ok, err := Kept(root, m.Release); ok || err != nil {
		t.Errorf("without an installation: %v, %v", ok, err)
	}
	a := goodAnswers(root, m.Release)
	a.Agents, a.Engine = nil, EngineAnswers{}
	p, err := NewPlan(goodFacts(root), a, m.Release)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), p, m.env()); err != nil {
		t.Fatal(err)
	}
	kept, ok, err := Kept(root, m.Release)
	if !ok || err != nil || len(kept.Agents) != 0 || kept.Engine.Listen != "" {
		t.Fatalf("got %+v, %v, %v", kept, ok, err)
	}
	q, err := NewPlan(goodFacts(root), kept, m.Release)
	if err != nil || q.Digest != p.Digest {
		t.Errorf("got plan %s, %v; want %s", q.Digest, err, p.Digest)
	}
}

// With systemd: started, waited for, enabled last; and stopped again where it
// does not become healthy. systemctl and the appliance are stand-ins, the
// files and the socket are real.
func TestService(t *testing.T) {
	for name, healthy := range map[string]bool{"healthy": true, "sick": false} {
		t.Run(name, func(t *testing.T) {
			root, m := fast(t), makeUp(1, goodPolicy)
			r := &run{Plan: Plan{Release: m.Release, Answers: goodAnswers(root, m.Release)}, l: Layout{root}, changed: map[string]string{}}
			for _, d := range []string{r.l.Run(), filepath.Dir(r.l.Wants()), filepath.Dir(r.l.Unit())} {
				if err := os.MkdirAll(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			var calls []string
			r.env.Ready = 3 * time.Second // a loaded machine needs some for two answers
			r.env.Systemctl = func(_ context.Context, args ...string) error {
				calls = append(calls, args[0])
				if args[0] == "restart" {
					if _, err := os.Lstat(r.l.Wants()); !errors.Is(err, fs.ErrNotExist) {
						t.Error("enabled before it was healthy")
					}
					serveHealth(t, filepath.Join(r.l.Run(), "health.sock"), healthy)
				}
				return nil
			}
			if _, err := r.unit(t.Context()); err != nil {
				t.Fatal(err)
			}
			_, err := r.start(t.Context())
			if (err == nil) != healthy {
				t.Fatalf("got %v", err)
			}
			if healthy {
				if !r.enabled() || calls[0] != "daemon-reload" {
					t.Errorf("enabled: %v, calls %v", r.enabled(), calls)
				}
				return
			}
			if r.enabled() || calls[len(calls)-1] != "stop" || !strings.Contains(err.Error(), "no guard") {
				t.Errorf("enabled: %v, calls %v, %v", r.enabled(), calls, err)
			}
		})
	}
}

// serveHealth answers like an appliance, not ready at first.
func serveHealth(t *testing.T, sock string, healthy bool) {
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n++
		if n == 1 || !healthy {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		json.NewEncoder(w).Encode(map[string]any{"sequence": 1, "error": "no guard"})
	})}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
}

// The unit is one that systemd accepts.
func TestUnit(t *testing.T) {
	root := t.TempDir()
	r := &run{Plan: Plan{Answers: goodAnswers("/", makeUp(1, goodPolicy).Release)}, l: Layout{root}}
	if err := os.MkdirAll(filepath.Dir(r.l.Unit()), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := r.unit(t.Context()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(r.l.Unit())
	if err != nil || strings.Contains(string(b), "%!") || strings.Contains(string(b), "network-online") {
		t.Errorf("got %s, %v", b, err)
	}
	exe, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skipf("systemd-analyze is not installed: %v", err)
	}
	prog := filepath.Join(root, "opt/clawbox/current/bin/clawbox")
	os.MkdirAll(filepath.Dir(prog), 0o755)
	os.WriteFile(prog, []byte("#!/bin/sh\n"), 0o755)
	cmd := exec.Command(exe, "verify", "--man=no", r.l.Unit())
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "clawbox.service:") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

func TestTrust(t *testing.T) {
	root := t.TempDir()
	_, vkey, err := manifest.GenerateKey("a.example")
	if err != nil {
		t.Fatal(err)
	}
	_, vkey2, err := manifest.GenerateKey("b.example")
	if err != nil {
		t.Fatal(err)
	}
	k1, k2 := filepath.Join(t.TempDir(), "1"), filepath.Join(t.TempDir(), "2")
	os.WriteFile(k1, []byte(vkey+"\n"), 0o644)
	os.WriteFile(k2, []byte(vkey2+"\n"), 0o644)
	if _, _, err := Trust(root, 0); err == nil || !strings.Contains(err.Error(), "--key") {
		t.Errorf("no key: got %v", err)
	}
	if _, _, err := Trust(root, 0, k1+".gone"); err == nil {
		t.Error("a missing key file was taken for no installation")
	}
	tr, _, err := Trust(root, 2, k1, k2)
	if err != nil || tr.Threshold() != 2 {
		t.Fatalf("got %+v, %v", tr, err)
	}
	// Kept and read back: the threshold too.
	own := Layout{root}.Trust()
	os.MkdirAll(filepath.Dir(own), 0o755)
	os.WriteFile(own, encodeTrust(tr), 0o644)
	if tr, where, err := Trust(root, 0); err != nil || tr.Threshold() != 2 || len(tr.Keys()) != 2 || where != own {
		t.Errorf("got %+v from %s, %v", tr, where, err)
	}
	os.WriteFile(own, []byte(vkey+"\n"), 0o644)
	if _, _, err := Trust(root, 0, k2); err == nil {
		t.Error("a key that is not installed was accepted")
	}
	os.WriteFile(own, []byte(vkey+"\n"+vkey2+"\n"), 0o644)
	if tr, _, err := Trust(root, 0); err != nil || tr.Threshold() != 2 {
		t.Errorf("without a threshold: got %d, %v; want all", tr.Threshold(), err)
	}
	os.Chmod(own, 0o666)
	if _, _, err := Trust(root, 0); err == nil {
		t.Error("keys that everyone may write were accepted")
	}
}
