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
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// played is an appliance that does what the real one does to the installer's
// eyes: it starts with Boot, answers on the health socket, and changes state.
type played struct {
	root  string
	sick  bool // the release that is tried never gets healthy
	dies  bool // it ends at once
	stays bool

	srv     *http.Server
	ended   error
	entered []int64 // sequences that ran, in order
}

func (p *played) Start(ctx context.Context) error {
	p.ended = nil
	s, err := Boot(ctx, p.root)
	if err != nil {
		p.ended = err
		return nil // as systemd: the program ends, later
	}
	file := config.File(p.root)
	if s.Program != "" {
		file = s.Config
		if _, err := os.Stat(s.Program); err != nil {
			return err
		}
	}
	c, err := config.Load(file)
	if err != nil {
		return err
	}
	p.entered = append(p.entered, c.Release.Sequence)
	trial := strings.Contains(file, "/next/")
	if p.dies && trial {
		p.ended = errors.New("exit status 3")
		return nil
	}
	if err := p.work(c); err != nil {
		return err
	}
	sock := filepath.Join(c.Paths.Run, "health.sock")
	os.Remove(sock) // of one that was killed
	l, err := net.Listen("unix", sock)
	if err != nil {
		return err
	}
	p.srv = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if p.sick && trial {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		json.NewEncoder(w).Encode(map[string]any{"sequence": c.Release.Sequence, "error": "no guard"})
	})}
	go p.srv.Serve(l)
	return nil
}

// work is what a release does to the state: its ledger grows, it writes agents'
// records, and answers come.
func (p *played) work(c config.Config) error {
	head := filepath.Join(c.Paths.Ledger, headFile)
	b, _ := os.ReadFile(head)
	for path, text := range map[string]string{
		head: fmt.Sprintf("clawbox/edge-7\n%d\nroot\n", max(headSize(b), 0)+5),
		filepath.Join(c.Paths.State, "agents/ada/agent.json"):     strings.Replace(adaRecord(c.Release.Sequence), "idle", "ran under "+c.Release.Version, 1),
		filepath.Join(c.Paths.State, "egress/approvals.json"):     "answers under " + c.Release.Version,
		filepath.Join(c.Paths.State, "agents/new-in/agent.json"):  "{}",
		filepath.Join(c.Paths.State, "agents/ada/workspace/file"): "written",
	} {
		if strings.Contains(path, "new-in") && c.Release.Sequence == 1 {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (p *played) Running(context.Context) bool { return p.srv != nil }
func (p *played) Alive(context.Context) error  { return p.ended }
func (p *played) Stays() bool                  { return p.stays }
func (p *played) Stop(context.Context) error {
	if p.srv != nil {
		p.srv.Close()
		p.srv = nil
	}
	return nil
}

// adaRecord is an agent's record under a release.
func adaRecord(sequence int64) string {
	b, _ := json.Marshal(map[string]any{
		"name": "ada", "image": fmt.Sprintf("openclaw:0.1.%d", sequence), "policy": "openclaw.yaml",
		"source": []byte(policyOf(sequence)), "why": "idle", "newField": 7,
	})
	return string(b)
}

// policyOf differs from release to release.
func policyOf(sequence int64) string {
	return strings.Replace(goodPolicy, "demo", fmt.Sprintf("demo%d", sequence), 1)
}

func release(sequence int64) *madeUp { return makeUp(sequence, policyOf(sequence)) }

// begun is an installation of sequence 1 that has run, and its service.
func begun(t *testing.T, root string) *played {
	t.Helper()
	m := release(1)
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), planFor(t, root, m), m.env()); err != nil {
		t.Fatal(err)
	}
	p := &played{root: root, stays: true}
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(context.Background()) })
	return p
}

// upgrade does what `clawbox upgrade` does.
func upgrade(ctx context.Context, root string, m *madeUp, env ChangeEnv) (ChangeResult, error) {
	p, err := NewUpgrade(goodFacts(root), root, "", m.Release)
	if err != nil {
		return ChangeResult{}, err
	}
	env.Trust, env.Load = m.trust, m.load
	return Apply(ctx, p, env)
}

// whole says which release is in place, and fails on anything in between.
func whole(t *testing.T, root string) int64 {
	t.Helper()
	l := Layout{root}
	c, err := config.Load(l.Config())
	if err != nil {
		t.Fatal(err)
	}
	n := c.Release.Sequence
	slot, _ := os.Readlink(l.Current())
	h, err := replay(l.Journal())
	if err != nil || h.last == nil || h.open != nil {
		t.Fatalf("the install journal: %+v, %v", h, err)
	}
	b, err := os.ReadFile(filepath.Join(c.Paths.State, "agents/ada/agent.json"))
	if err != nil {
		t.Fatal(err)
	}
	var ada struct{ Image string }
	json.Unmarshal(b, &ada)
	got := []string{slot, c.Paths.Slot, fmt.Sprint(h.last.Sequence), ada.Image, c.Agents[0].Image}
	v := fmt.Sprintf("0.1.%d", n)
	want := []string{"slots/" + v + "-" + fmt.Sprint(n), filepath.Join(root, "opt/clawbox/slots", v+"-"+fmt.Sprint(n)), fmt.Sprint(n), "openclaw:" + v, "openclaw:" + v}
	if !slices.Equal(got, want) {
		t.Errorf("in between: got %q; want %q", got, want)
	}
	if there(l.Try()) || there(l.Tried()) {
		t.Error("a marker stays")
	}
	if err := l.settled(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(root, "usr/local/bin/clawbox")); err != nil {
		t.Error(err)
	}
	return n
}

func ledgerSize(t *testing.T, root string) int64 {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "var/lib/clawbox/ledger", headFile))
	if err != nil {
		t.Fatal(err)
	}
	return headSize(b)
}

// events lists what the ledger would be told, without the counters.
func events(t *testing.T, root string) (out []string) {
	t.Helper()
	es, err := os.ReadDir(Layout{root}.Events())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range es {
		out = append(out, strings.TrimSuffix(e.Name()[9:], ".json"))
	}
	return out
}

func TestUpgrade(t *testing.T) {
	root := fast(t)
	p := begun(t, root)
	edited := strings.Replace(read(t, config.File(root)), "holdSeconds: 120", "holdSeconds: 33", 1)
	write(t, config.File(root), edited)
	m := release(3)
	res, err := upgrade(t.Context(), root, m, ChangeEnv{Service: p})
	if err != nil {
		t.Fatal(err)
	}
	if n := whole(t, root); n != 3 || !strings.Contains(res.To, "0.1.3") || len(p.entered) != 2 {
		t.Errorf("got %d, %+v, entered %v", n, res, p.entered)
	}
	c, _ := config.Load(config.File(root))
	if c.HoldSeconds != 33 || !slices.Equal(c.Engine.Models, []string{"tiny:0.1.3"}) || !strings.Contains(c.Engine.Binary, "0.1.3-3") {
		t.Errorf("got %+v", c)
	}
	if got := events(t, root); !slices.Equal(got, []string{"begun", "tried", "committed"}) {
		t.Errorf("events %q", got)
	}
	// Installing the same media again finds all as it should be.
	a, ok, err := Kept(root, m.Release)
	if !ok || err != nil {
		t.Fatal(err)
	}
	plan, err := NewPlan(goodFacts(root), a, m.Release)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := Run(t.Context(), plan, m.env()); err != nil || r.Mode != "verified" || len(r.Changed) != 0 {
		t.Errorf("install of the same media: %+v, %v", r, err)
	}
	if c, _ := config.Load(config.File(root)); c.HoldSeconds != 33 {
		t.Error("the operator's edit was lost")
	}
}

// What an upgrade may not be is refused with nothing changed.
func TestUpgradeRefused(t *testing.T) {
	root := fast(t)
	p := begun(t, root)
	good := release(3)
	res, err := upgrade(t.Context(), root, good, ChangeEnv{Service: p})
	if err != nil {
		t.Fatal(res, err)
	}
	before := tree(t, root)
	other, late, named, poor := release(3), release(9), release(4), release(4)
	other.Digest = "sha256:" + strings.Repeat("0", 64)
	late.UpgradesFrom = 4
	named.Name = "other"
	poor.Items = poor.Items[1:] // without the main program
	for _, c := range []struct {
		name string
		m    *madeUp
		err  error
		word string
	}{
		{"older", release(2), manifest.ErrRollback, "clawbox rollback"},
		{"same", release(3), ErrInstalled, "clawbox install"},
		{"same number, other content", other, nil, "two contents"},
		{"needs one in between", late, manifest.ErrSkipped, "in between"},
		{"of another name", named, nil, "the same name"},
		{"without programs", poor, nil, mainPath},
	} {
		_, err := upgrade(t.Context(), root, c.m, ChangeEnv{Service: p})
		if err == nil || c.err != nil && !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
	diffTrees(t, tree(t, root), before)
	if _, err := NewUpgrade(goodFacts(root), t.TempDir(), "", good.Release); err == nil || !strings.Contains(err.Error(), "clawbox install") {
		t.Errorf("without an installation: %v", err)
	}
}

// A release that does not hold is taken back, whatever is wrong with it; the
// ledger keeps what it got, and the next upgrade works.
func TestReturn(t *testing.T) {
	bad := func(name string) Gate { return gate{name, errors.New(name + " does not hold")} }
	for _, c := range []struct {
		name string
		do   func(*played, *ChangeEnv)
		word string
	}{
		{"dies", func(p *played, _ *ChangeEnv) { p.dies = true }, "exit status 3"},
		{"sick", func(p *played, e *ChangeEnv) { p.sick, e.Deadline = true, 300*time.Millisecond }, "no guard"},
		{"gate", func(_ *played, e *ChangeEnv) { e.Gates = []Gate{bad("tier")} }, "gate tier"},
		{"agents", func(_ *played, e *ChangeEnv) { e.Agents = &crew{names: []string{"ada"}, fail: 1} }, "ada does not start"},
		{"cancelled", func(_ *played, e *ChangeEnv) { e.Gates = []Gate{gate{"ask", context.Canceled}} }, "canceled"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := fast(t)
			p := begun(t, root)
			p.Stop(t.Context())
			p.Start(t.Context()) // twice, so that there is something to lose
			before := read(t, filepath.Join(root, "var/lib/clawbox/agents/ada/agent.json"))
			size := ledgerSize(t, root)
			env := ChangeEnv{Service: p}
			c.do(p, &env)
			_, err := upgrade(t.Context(), root, release(2), env)
			var back *ReturnedError
			if !errors.As(err, &back) || !strings.Contains(err.Error(), c.word) || !strings.Contains(back.From, "0.1.1") {
				t.Fatalf("got %v", err)
			}
			if n := whole(t, root); n != 1 || p.entered[len(p.entered)-1] != 1 {
				t.Errorf("got %d, entered %v", n, p.entered)
			}
			if ledgerSize(t, root) < size {
				t.Error("the ledger was rewound")
			}
			if got := events(t, root); !slices.Equal(got, []string{"begun", "tried", "returned"}) {
				t.Errorf("events %q", got)
			}
			if there(filepath.Join(root, "var/lib/clawbox/agents/new-in/agent.json")) {
				t.Error("a record of the release that was taken back stays in place")
			}
			p.Stop(t.Context())
			if got := read(t, filepath.Join(root, "var/lib/clawbox/agents/ada/agent.json")); got != before {
				t.Errorf("the agent's record is\n%s\nwas\n%s", got, before)
			}
			if _, err := upgrade(t.Context(), root, release(2), ChangeEnv{Service: &played{root: root, stays: true}}); err != nil {
				t.Errorf("the next upgrade: %v", err)
			}
		})
	}
}

type gate struct {
	name string
	err  error
}

func (g gate) Name() string                       { return g.name }
func (g gate) Pass(context.Context, Change) error { return g.err }

// crew are agents that do not start a number of times.
type crew struct {
	names   []string
	fail    int
	started []string
}

func (c *crew) Running(context.Context) ([]string, error) { return c.names, nil }
func (c *crew) Start(_ context.Context, names []string) error {
	if c.fail--; c.fail >= 0 {
		return errors.New("ada does not start")
	}
	c.started = append(c.started, names...)
	return nil
}

// Before anything is stopped a failure leaves the installed release running.
func TestUpgradeStopsEarly(t *testing.T) {
	root := fast(t)
	p := begun(t, root)
	m := makeUp(2, "apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: x}\nnetwrok: {}\n")
	_, err := upgrade(t.Context(), root, m, ChangeEnv{Service: p})
	if err == nil || !strings.Contains(err.Error(), "netwrok") || !strings.Contains(err.Error(), "runs on as before") {
		t.Fatalf("got %v", err)
	}
	if n := whole(t, root); n != 1 || !p.Running(t.Context()) || len(p.entered) != 1 {
		t.Errorf("got %d, entered %v", n, p.entered)
	}
}

// Back to the kept release, with the present state or with that of then; and
// forward again.
func TestRollback(t *testing.T) {
	root := fast(t)
	p := begun(t, root)
	if _, err := NewRollback(goodFacts(root), root, "", false); err == nil || !strings.Contains(err.Error(), "no upgrade") {
		t.Errorf("before any upgrade: %v", err)
	}
	agents := &crew{names: []string{"ada"}}
	env := ChangeEnv{Service: p, Agents: agents}
	if _, err := upgrade(t.Context(), root, release(2), env); err != nil {
		t.Fatal(err)
	}
	for _, old := range []bool{true, false, false} {
		was := whole(t, root)
		plan, err := NewRollback(goodFacts(root), root, "Bob", old)
		if err != nil {
			t.Fatal(err)
		}
		res, err := Apply(t.Context(), plan, env)
		if err != nil || res.Kind != Rollback {
			t.Fatal(res, err)
		}
		if n := whole(t, root); n != 3-was {
			t.Errorf("got %d from %d", n, was)
		}
	}
	if len(agents.started) != 4 {
		t.Errorf("agents started: %v", agents.started)
	}
	// A kept slot that somebody changed is put right from the store, or refused.
	prog := filepath.Join(root, "opt/clawbox/slots/0.1.2-2/bin/clawbox")
	write(t, prog, "evil")
	plan, err := NewRollback(goodFacts(root), root, "", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Apply(t.Context(), plan, env); err != nil {
		t.Fatal(err)
	}
	if read(t, prog) == "evil" {
		t.Error("a changed program was entered")
	}
}

// Only the present release and the kept one stay.
func TestPrune(t *testing.T) {
	root := fast(t)
	p := begun(t, root)
	for n := int64(2); n < 5; n++ {
		if _, err := upgrade(t.Context(), root, release(n), ChangeEnv{Service: p}); err != nil {
			t.Fatal(err)
		}
	}
	for dir, want := range map[string]int{"opt/clawbox/slots": 2, "var/lib/clawbox/install/states": 1, "var/lib/clawbox/install/releases": 2} {
		es, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil || len(es) != want {
			t.Errorf("%s: %v, %v; want %d", dir, es, err, want)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// changeMain is this binary as an installer that upgrades and kills itself.
func changeMain(root, kill string) int {
	env := ChangeEnv{Service: &played{root: root}, Agents: &crew{names: []string{"ada"}}}
	env.hook = func(step, phase string) {
		if kill == step+":"+phase {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	if _, err := upgrade(context.Background(), root, release(2), env); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func killedUpgrade(t *testing.T, root, kill string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run=^$")
	cmd.Env = append(os.Environ(), "CLAWBOX_TEST_CHANGE="+root, "CLAWBOX_TEST_KILL="+kill)
	out, _ := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != -1 {
		t.Fatalf("killed at %s: got status %d\n%s", kill, got, out)
	}
}

// Killed around every line of the journal, with the next line torn as a power
// cut tears it or not begun: the next start finds one of the two releases whole,
// and which one changes at the commit alone. Then the upgrade is given again.
func TestChangeKillMatrix(t *testing.T) {
	var points []string
	for _, s := range changeSteps {
		for _, phase := range []string{"before", "started", "acted", "done"} {
			points = append(points, s.id+":"+phase)
		}
	}
	points = append(points, "commit:before", "commit:done", "finish:done")
	first := fast(t)
	begun(t, first).Stop(t.Context())
	sizeBefore := ledgerSize(t, first)
	for i, kill := range points {
		t.Run(kill, func(t *testing.T) {
			root := filepath.Join(fast(t), "root")
			begun(t, root).Stop(t.Context())
			killedUpgrade(t, root, kill)
			if i%2 == 1 {
				tear(t, Layout{root}.Changes())
			}
			s, err := Boot(t.Context(), root)
			if err != nil {
				t.Fatal(err)
			}
			want := int64(1)
			if slices.Index(points, "commit:done") <= i {
				want = 2
			}
			if n := whole(t, root); n != want || s.Program != "" && want == 1 {
				t.Errorf("after %s: release %d, %+v; want %d", kill, n, s, want)
			}
			if ledgerSize(t, root) < sizeBefore {
				t.Error("the ledger was rewound")
			}
			again, err := Boot(t.Context(), root)
			if err != nil || again.Program != "" {
				t.Errorf("the start after that: %+v, %v", again, err)
			}
			if want == 2 {
				return
			}
			if _, err := upgrade(t.Context(), root, release(2), ChangeEnv{Service: &played{root: root}}); err != nil || whole(t, root) != 2 {
				t.Errorf("given again: %v", err)
			}
		})
	}
}

// tear leaves the beginning of a line, as a power cut does.
func tear(t *testing.T, journal string) {
	t.Helper()
	f, err := os.OpenFile(journal, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(`{"time":"2026-01-01T00:00:00Z","event":"com`); err != nil {
		t.Fatal(err)
	}
}

// Cut off between any two of a commit's, or a return's, own steps.
func TestChangeCutInside(t *testing.T) {
	for n := range finishing {
		root := filepath.Join(fast(t), "root")
		begun(t, root).Stop(t.Context())
		killedUpgrade(t, root, "commit:done")
		c, err := replayChanges(Layout{root}.Changes())
		if err != nil || !c.committed {
			t.Fatalf("%+v, %v", c, err)
		}
		for _, f := range finishing[:n] {
			if err := f(Layout{root}, *c.open); err != nil {
				t.Fatal(err)
			}
		}
		if s, err := Boot(t.Context(), root); err != nil || whole(t, root) != 2 {
			t.Errorf("after %d steps of the commit: %+v, %v", n, s, err)
		}
	}
	all := SoloState(config.Default("/"), Layout{})
	for n := range all {
		root := filepath.Join(fast(t), "root")
		begun(t, root).Stop(t.Context())
		killedUpgrade(t, root, "gates:done")
		cfg, err := config.Load(config.File(root))
		if err != nil {
			t.Fatal(err)
		}
		c, err := replayChanges(Layout{root}.Changes())
		if err != nil {
			t.Fatal(err)
		}
		if err := restoreState(t.Context(), SoloState(cfg, Layout{root})[:n], c.open.state(Layout{root})); err != nil {
			t.Fatal(err)
		}
		if s, err := Boot(t.Context(), root); err != nil || whole(t, root) != 1 {
			t.Errorf("after %d kinds of state: %+v, %v", n, s, err)
		}
	}
}

// Every prefix of the journal, which is every power cut, is decided, and a
// commit that is not whole is none.
func TestChangeJournalTorn(t *testing.T) {
	root := filepath.Join(fast(t), "root")
	begun(t, root).Stop(t.Context())
	killedUpgrade(t, root, "commit:done")
	path := Layout{root}.Changes()
	b := read(t, path)
	for cut := range len(b) {
		write(t, path, b[:cut])
		c, err := replayChanges(path)
		if err != nil || c.committed || c.size > int64(cut) {
			t.Fatalf("cut to %d of %d bytes: %+v, %v", cut, len(b), c, err)
		}
	}
	write(t, path, strings.Replace(b, `"commit"`, `"comit"`, 1))
	if _, err := Boot(t.Context(), root); err == nil || !strings.Contains(err.Error(), "comit") {
		t.Errorf("a journal that can't be read: %v", err)
	}
}

// Somebody else's start never enters a release, and never runs beside a change.
func TestBootWatched(t *testing.T) {
	root := fast(t)
	p := begun(t, root)
	var refused []string
	env := ChangeEnv{Service: p}
	// Between "arm" and "try" whoever comes first enters the release.
	env.hook = func(step, phase string) {
		if phase == "acted" && step != "arm" {
			if _, err := Boot(t.Context(), root); err != nil {
				refused = append(refused, step)
			}
		}
	}
	if _, err := upgrade(t.Context(), root, release(2), env); err != nil {
		t.Fatal(err)
	}
	if want := []string{"stop", "state", "carry", "try", "gates"}; !slices.Equal(refused, want) {
		t.Errorf("starts refused at %q; want %q", refused, want)
	}
}
