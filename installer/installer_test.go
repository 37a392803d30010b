package installer

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/installer/host"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/mod/sumdb/note"
)

// TestMain lets this binary be an installer that kills itself: see the kill
// matrix.
func TestMain(m *testing.M) {
	if root := os.Getenv("CLAWBOX_TEST_ROOT"); root != "" {
		os.Exit(childMain(root, os.Getenv("CLAWBOX_TEST_KILL")))
	}
	if root := os.Getenv("CLAWBOX_TEST_CHANGE"); root != "" {
		os.Exit(changeMain(root, os.Getenv("CLAWBOX_TEST_KILL")))
	}
	os.Exit(m.Run())
}

const goodPolicy = "apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: demo}\n"

// madeUp is a release whose bytes are in memory, the same in every process.
type madeUp struct {
	Release
	blobs map[string][]byte // hex → bytes
	roots map[string]v1.Descriptor
	trust manifest.Trust
}

// testKey "signed" the made-up releases.
func testKey() string {
	pub := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	k, err := note.NewEd25519VerifierKey("test.example", pub)
	if err != nil {
		panic(err)
	}
	return k
}

func (m *madeUp) blob(b []byte) v1.Hash {
	sum := sha256.Sum256(b)
	h := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
	m.blobs[h.Hex] = b
	m.Bytes += int64(len(b))
	return h
}

// add makes an item that is an artifact with one layer.
func (m *madeUp) add(it Item, data string) {
	l := m.blob([]byte(data))
	cfg := m.blob([]byte("{}"))
	b, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: "application/vnd.oci.image.manifest.v1+json",
		Config: v1.Descriptor{MediaType: "application/vnd.oci.empty.v1+json", Size: 2, Digest: cfg},
		Layers: []v1.Descriptor{{MediaType: "application/octet-stream", Size: int64(len(data)), Digest: l}},
	})
	if err != nil {
		panic(err)
	}
	if it.Ref == "" {
		it.Ref = it.Name + ":" + m.Version
	}
	it.Digest, it.Size, it.Redistributable = m.blob(b), int64(len(data)), true
	m.roots[it.Ref] = v1.Descriptor{MediaType: "application/vnd.oci.image.manifest.v1+json", Size: int64(len(b)), Digest: it.Digest}
	m.Items = append(m.Items, it)
}

func makeUp(seq int64, policy string) *madeUp {
	m := &madeUp{blobs: map[string][]byte{}, roots: map[string]v1.Descriptor{}}
	m.Name, m.Version, m.Sequence, m.Signers = "demo", fmt.Sprintf("0.1.%d", seq), seq, []string{"test.example"}
	m.Created = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	m.add(Item{Name: "clawbox", Kind: "file", Path: mainPath, Mode: 0o755}, "#!/bin/sh\nexit 0\n")
	m.add(Item{Name: "launch", Kind: "file", Path: launcherPath, Mode: 0o755}, "\x7fELF launcher")
	m.add(Item{Name: "engine", Kind: "file", Path: enginePath, Mode: 0o755}, strings.Repeat("engine ", 10000))
	m.add(Item{Name: "notes", Kind: "file", Path: "share/doc/notes.txt", Mode: 0o640}, "read me\n")
	m.add(Item{Name: "openclaw-policy", Kind: "policy", Path: "policies/openclaw.yaml"}, policy)
	m.add(Item{Name: "openclaw", Kind: "image", Platforms: []string{"linux/amd64", "linux/arm64"}}, strings.Repeat("layer", 100000))
	m.add(Item{Name: "tiny", Kind: "model"}, strings.Repeat("weights", 100000))
	sum := sha256.Sum256(fmt.Append(nil, seq, policy))
	m.Digest = "sha256:" + hex.EncodeToString(sum[:])
	t, err := manifest.NewTrust(1, testKey())
	if err != nil {
		panic(err)
	}
	m.trust = t
	return m
}

// load does what bundle.Media.Load promises: verified blobs, each once, in
// order, then names.
func (m *madeUp) load(ctx context.Context, s *content.Store) error {
	return m.loadAs(ctx, s, func(ref string, d v1.Descriptor) content.Name { return content.Name{Ref: ref, Descriptor: d} })
}

// beside is LoadBeside.
func (m *madeUp) beside(ctx context.Context, s *content.Store) error {
	return m.loadAs(ctx, s, content.Pin)
}

func (m *madeUp) loadAs(ctx context.Context, s *content.Store, name func(string, v1.Descriptor) content.Name) error {
	var names []string
	for h := range m.blobs {
		names = append(names, h)
	}
	slices.Sort(names)
	for _, h := range names {
		b := m.blobs[h]
		if err := s.Put(ctx, v1.Hash{Algorithm: "sha256", Hex: h}, int64(len(b)), bytes.NewReader(b)); err != nil {
			return err
		}
	}
	var all []content.Name
	for _, it := range m.Items {
		all = append(all, name(it.Ref, m.roots[it.Ref]))
	}
	return s.TagAll(all)
}

func (m *madeUp) env() Env { return Env{Trust: m.trust, Load: m.load} }

// goodFacts is a machine that has everything.
func goodFacts(root string) host.Facts {
	return host.Facts{
		Time: time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC), Hostname: "edge-7", Root: root,
		OS: host.OS{ID: "debian", Version: "12", Pretty: "Debian 12"}, Arch: "amd64", CPUs: 4,
		Memory: host.Memory{Total: 16 << 30, Available: 8 << 30}, Kernel: host.Kernel{Release: "6.12.1", Major: 6, Minor: 12},
		LSM: []string{"landlock", "bpf"}, Landlock: 6, Seccomp: true, UserNS: 1000, Overlay: true, Systemd: true, ClockSync: true,
		Namespaces: []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"},
		Cgroup:     host.Cgroup{Version: "v2", Controllers: []string{"cpu", "memory", "pids"}, Unified: "/sys/fs/cgroup"},
		BPF:        host.BPF{Tracepoint: true, CgroupSock: true, SkLookup: true, LSM: true, BTF: true},
		Disk:       host.Disk{Path: root, FSType: "ext4", Options: []string{"rw"}, Free: 100 << 30, Inodes: 1 << 20, Write: 500 << 20, Fsync: time.Millisecond},
		MediaRead:  100 << 20, Failed: map[string]string{},
	}
}

func goodAnswers(root string, r Release) Answers {
	a := DefaultAnswers(r)
	a.Root, a.Start, a.Operator = root, "none", "Ann Operator"
	return a
}

func planFor(t *testing.T, root string, m *madeUp) Plan {
	t.Helper()
	p, err := NewPlan(goodFacts(root), goodAnswers(root, m.Release), m.Release)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// childMain installs below root and kills itself at "step:phase".
func childMain(root, kill string) int {
	m := makeUp(1, goodPolicy)
	p, err := NewPlan(goodFacts(root), goodAnswers(root, m.Release), m.Release)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	env := m.env()
	die := func() { syscall.Kill(os.Getpid(), syscall.SIGKILL); select {} }
	env.hook = func(step, phase string) {
		if kill == step+":"+phase {
			die()
		}
	}
	if kill == "payload:middle" {
		env.Load = func(ctx context.Context, s *content.Store) error {
			half := *m
			half.Items, half.blobs = nil, map[string][]byte{}
			for h, b := range m.blobs {
				if len(half.blobs) < 3 {
					half.blobs[h] = b
				}
			}
			if err := half.load(ctx, s); err != nil {
				return err
			}
			w, err := s.Create(m.Items[5].Digest, 1000)
			if err == nil {
				w.Write([]byte("torn"))
			}
			die()
			return nil
		}
	}
	if _, err := Run(context.Background(), p, env); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// tree describes everything below root: path, mode, target or digest. What
// differs from one installation to the next by nature (keys, times, the
// journal) is only named.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		st, err := d.Info()
		if err != nil {
			return err
		}
		s := st.Mode().String()
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(p)
			s += " → " + to
		case d.Type().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			switch filepath.Base(p) {
			case "ledger.key", "ledger.vkey", "journal", "lock":
				b = nil
			case "1.json":
				rc, err := ParseReceipt(b)
				if err != nil {
					return err
				}
				rc.Time, rc.Plan, rc.Host, rc.Release = time.Time{}, "", host.Facts{}, config.Release{}
				b, _ = json.Marshal(rc)
			}
			b = bytes.ReplaceAll(b, []byte(root), []byte("ROOT"))
			s += fmt.Sprintf(" %x", sha256.Sum256(b))
		}
		out[rel] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func diffTrees(t *testing.T, got, want map[string]string) {
	t.Helper()
	for p, s := range want {
		if got[p] != s {
			t.Errorf("%s: got %q; want %q", p, got[p], s)
		}
	}
	for p := range got {
		if _, ok := want[p]; !ok {
			t.Errorf("%s: is there and should not be", p)
		}
	}
}

func untouched(t *testing.T, dir string) {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(es) > 0 {
		t.Errorf("the refused run left %v in %s", es, dir)
	}
}

func TestInstall(t *testing.T) {
	root := t.TempDir()
	m := makeUp(1, goodPolicy)
	p := planFor(t, root, m)
	defer syscall.Umask(syscall.Umask(0o077)) // modes must not depend on it
	res, err := Run(t.Context(), p, m.env())
	if err != nil {
		t.Fatal(err)
	}
	if res.Mode != "installed" || !strings.Contains(res.Next, "serve --config") {
		t.Errorf("got %+v", res)
	}
	c, err := config.Load(filepath.Join(root, "etc/clawbox/appliance.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Release.Digest != m.Digest || len(c.Agents) != 1 || c.Agents[0].Policy != "openclaw.yaml" || len(c.Engine.Models) != 1 {
		t.Errorf("got the configuration %+v", c)
	}
	for p, mode := range map[string]fs.FileMode{
		"var": 0o755, "var/lib": 0o755, "var/lib/clawbox": 0o711, "var/lib/clawbox/install": 0o700, "etc/clawbox/appliance.yaml": 0o640, "var/lib/clawbox/keys": 0o700, "run/clawbox": 0o755, "var/lib/clawbox/ledger": 0o700,
		"var/lib/clawbox/keys/ledger.key": 0o600, "var/lib/clawbox/receipts/1.json": 0o600,
		"opt/clawbox/current/bin/clawbox": 0o755, "opt/clawbox/slots/0.1.1-1/share/doc/notes.txt": 0o640,
		"opt/clawbox/current/policies/openclaw.yaml": 0o644, "usr/local/bin/clawbox": 0o755,
	} {
		st, err := os.Stat(filepath.Join(root, p))
		if err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: got %v, %v; want mode %o", p, st, err, mode)
		}
	}
	if _, err := os.Lstat(filepath.Join(root, "etc/systemd")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("start: none wrote a unit: %v", err)
	}
	// The public key on disk belongs to the private one.
	s, err := manifest.LoadSigner(filepath.Join(root, "var/lib/clawbox/keys/ledger.key"))
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(root, "etc/clawbox/ledger.vkey")); strings.TrimSpace(string(b)) != s.Key() || s.Name() != "clawbox/edge-7" {
		t.Errorf("ledger.vkey is %q; want %q", b, s.Key())
	}
	b, err := os.ReadFile(filepath.Join(root, "var/lib/clawbox/receipts/1.json"))
	if err != nil {
		t.Fatal(err)
	}
	rc, err := ParseReceipt(b)
	if err != nil || rc.Operator != "Ann Operator" || rc.Plan != p.Digest || rc.Release.Digest != m.Digest || !slices.Equal(rc.Signers, m.Signers) {
		t.Errorf("got the receipt %+v, %v", rc, err)
	}
}

// Killed before and after each line of the journal, and in the middle of the
// payload; then run again: the result is that of an undisturbed run.
func TestKillMatrix(t *testing.T) {
	want := filepath.Join(fast(t), "root")
	install(t, want, "", 0)
	wantTree := tree(t, want)
	points := []string{"payload:middle"}
	for _, s := range planFor(t, want, makeUp(1, goodPolicy)).Steps {
		for _, phase := range []string{"before", "started", "acted", "done"} {
			points = append(points, s.ID+":"+phase)
		}
	}
	for _, kill := range points {
		t.Run(kill, func(t *testing.T) {
			root := filepath.Join(fast(t), "root")
			install(t, root, kill, -1)
			active := kill == "activate:acted" || kill == "activate:done"
			if _, err := os.Stat(filepath.Join(root, "opt/clawbox/current/bin/clawbox")); (err == nil) != active {
				t.Errorf("killed at %s: active: %v", kill, err == nil)
			}
			install(t, root, "", 0)
			diffTrees(t, tree(t, root), wantTree)
		})
	}
}

// Killed anywhere, not only between two steps: at moments spread over a whole
// run, four times in a row on the same root, then finished.
func TestKilledAnywhere(t *testing.T) {
	want := filepath.Join(fast(t), "root")
	start := time.Now()
	install(t, want, "", 0)
	whole := time.Since(start)
	wantTree := tree(t, want)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const rounds, kills = 6, 4
	for i := range rounds {
		root := filepath.Join(fast(t), "root")
		if err := os.MkdirAll(root, 0o755); err != nil {
			t.Fatal(err)
		}
		for k := range kills {
			cmd := commandFor(exe, root, "")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(whole * time.Duration(1+i*kills+k) / (rounds*kills + 1))
			cmd.Process.Kill()
			cmd.Wait()
		}
		install(t, root, "", 0)
		diffTrees(t, tree(t, root), wantTree)
	}
}

// fast gives a folder in memory where there is one: being killed, unlike a
// power cut, loses nothing that was written, so fsync's cost is in vain here.
func fast(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "clawbox-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// install runs this binary as an installer; want is its exit status, -1 for
// death by signal.
func install(t *testing.T, root, kill string, want int) {
	t.Helper()
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := commandFor(exe, root, kill)
	out, _ := cmd.CombinedOutput()
	if got := cmd.ProcessState.ExitCode(); got != want {
		t.Fatalf("killed at %q: got exit status %d; want %d\n%s", kill, got, want, out)
	}
}
