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
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/bundle/content"
)

// played is an appliance that does what the real one does to the installer's
// eyes: it starts with Boot, answers on the health socket, and changes state.
type played struct {
	root  string
	sick  bool // the release that is tried never gets healthy
	dies  bool // it ends at once
	stays bool
	// stumbles: the release that is returned to ends at its first start, and is
	// started again a little later, as systemd does.
	stumbles bool

	srv     *http.Server
	ended   error
	looks   int     // how often it is looked at until it is started again
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
	if p.stumbles && !trial && len(p.entered) > 2 {
		p.stumbles, p.ended, p.looks = false, errors.New("it took too long to start"), 3
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
func (p *played) Stays() bool                  { return p.stays }
func (p *played) Alive(ctx context.Context) error {
	if p.looks > 0 {
		if p.looks--; p.looks == 0 {
			return p.Start(ctx)
		}
	}
	return p.ended
}

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

// release has an image whose name is the same in all of them, and another one
// that only some have.
func release(sequence int64) *madeUp {
	m := makeUp(sequence, policyOf(sequence))
	m.add(Item{Name: "shared", Kind: "image", Ref: sharedRef, Platforms: []string{"linux/amd64"}}, fmt.Sprint("shared of ", sequence))
	if sequence > 1 {
		m.add(Item{Name: "late", Kind: "image", Ref: "late:1", Platforms: []string{"linux/amd64"}}, fmt.Sprint("late of ", sequence))
	}
	return m
}

const sharedRef = "ghcr.io/acme/shared:1.2"

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
	env.Trust, env.Load = m.trust, m.beside
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
	named(t, l, n)
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

// named fails unless every name of release n leads to what was signed for it, and
// what no release in place brought has none.
func named(t *testing.T, l Layout, n int64) {
	t.Helper()
	r, err := l.ReleaseOf(n)
	if err != nil {
		t.Fatal(err)
	}
	s, err := content.Open(l.Store())
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range r.Items {
		if d, err := s.Resolve(it.Ref); err != nil || d.Digest != it.Digest || d.Annotations[content.Pinned] != "" {
			t.Errorf("release %d is in place, and %s leads to %s, %v; want %s", n, it.Ref, d.Digest, err, it.Digest)
		}
		if d, err := s.Resolve(it.pin()); err != nil || d.Digest != it.Digest {
			t.Errorf("%s has no pin: %v", it.Ref, err)
		}
	}
	if _, err := s.Resolve("late:1"); n == 1 && !there(l.Kept()) && err == nil {
		t.Error("a name that no release in place has")
	}
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
