package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/installer"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/mod/sumdb/note"
)

// place is an installation with a real ledger.
type place struct {
	t          *testing.T
	root       string
	l          installer.Layout
	c          config.Config
	skey, vkey string
}

func newPlace(t *testing.T, root string) *place {
	t.Helper()
	p := &place{t: t, root: root, l: installer.Layout{Prefix: root}, c: config.Default(root)}
	var err error
	if p.skey, p.vkey, err = note.GenerateKey(rand.Reader, "clawbox/test"); err != nil {
		t.Fatal(err)
	}
	digest := "sha256:" + strings.Repeat("1", 64)
	p.c.Release = config.Release{Name: "demo", Version: "1.0.0", Sequence: 1, Digest: digest}
	p.c.Paths.Slot = p.l.Slot("1.0.0", 1)
	p.c.Credentials = map[string]config.Credential{"gh": {KeyFile: filepath.Join(root, "secret/gh")}}
	b, err := p.c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	p.put(p.l.Config(), string(b))
	head, _ := json.Marshal(map[string]any{"name": "demo", "version": "1.0.0", "sequence": 1, "digest": digest, "plan": "p"})
	p.put(p.l.Journal(), fmt.Sprintf("{\"time\":\"2026-01-01T00:00:00Z\",\"event\":\"begin\",\"head\":%s}\n{\"time\":\"2026-01-01T00:00:00Z\",\"event\":\"commit\",\"head\":%s}\n", head, head))
	p.put(p.l.LedgerS(), p.skey+"\n")
	p.put(p.l.LedgerV(), p.vkey+"\n")
	p.put(filepath.Join(root, "secret/gh"), "ghp-the-credential")
	p.put(filepath.Join(p.c.Paths.Receipts, "1.json"), "{}")
	p.put(filepath.Join(p.c.Paths.Receipts, "1.entry"), "0\n")
	p.put(filepath.Join(p.c.Paths.State, "agents/ada/agent.json"), `{"name":"ada"}`)
	p.put(filepath.Join(p.c.Paths.State, "agents/ada/disk.img"), "THE-DISK-ITSELF")
	p.put(filepath.Join(p.c.Paths.State, "agents/ada/snapshots/monday/disk.img"), "data"+strings.Repeat("\x00", 3<<20)+"end"+strings.Repeat("\x00", 100))
	p.put(filepath.Join(p.c.Paths.State, "egress/approvals.json"), "{}")
	p.put(filepath.Join(p.c.Paths.State, "uids.json"), "{}")
	return p
}

func (p *place) put(path, text string) {
	p.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) read(path string) string {
	p.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(b)
}

// grow adds entries to the ledger.
func (p *place) grow(n int) {
	p.t.Helper()
	s, err := note.NewSigner(p.skey)
	if err != nil {
		p.t.Fatal(err)
	}
	v, err := note.NewVerifier(p.vkey)
	if err != nil {
		p.t.Fatal(err)
	}
	open := func() (*ledger.Log, error) { return ledger.Open(p.c.Paths.Ledger, s, v) }
	if _, err := os.Stat(p.c.Paths.Ledger); err != nil {
		open = func() (*ledger.Log, error) { return ledger.Create(p.c.Paths.Ledger, s) }
	}
	l, err := open()
	if err != nil {
		p.t.Fatal(err)
	}
	for range n {
		if err := l.Record(context.Background(), ledger.Record{Kind: ledger.KindService, Verdict: ledger.Allowed, Reason: "service.started"}); err != nil {
			p.t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *place) size() int64 {
	p.t.Helper()
	v, err := note.NewVerifier(p.vkey)
	if err != nil {
		p.t.Fatal(err)
	}
	r, err := ledger.Verify(p.c.Paths.Ledger, v, ledger.Options{})
	if err != nil {
		p.t.Fatal(err)
	}
	return r.Size
}

func (p *place) backup(rs ...age.Recipient) []byte {
	p.t.Helper()
	var b bytes.Buffer
	if _, err := Write(p.t.Context(), &b, p.root, Options{rs}); err != nil {
		p.t.Fatal(err)
	}
	return b.Bytes()
}

func (p *place) restore(b []byte, o RestoreOptions) error {
	o.Operator = "ann"
	_, _, err := Restore(p.t.Context(), bytes.NewReader(b), p.root, o)
	return err
}

func identity(t *testing.T) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// Back on the same host after everything was lost but the key.
func TestRoundTrip(t *testing.T) {
	p := newPlace(t, t.TempDir())
	p.grow(300) // more than a bundle
	b := p.backup()
	snap := filepath.Join(p.c.Paths.State, "agents/ada/snapshots/monday/disk.img")
	want := p.read(snap)
	for _, d := range []string{p.c.Paths.Ledger, filepath.Join(p.c.Paths.State, "agents"), p.c.Paths.Receipts, filepath.Join(p.c.Paths.State, "egress")} {
		if err := os.RemoveAll(d); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // again: it changes nothing
		if err := p.restore(b, RestoreOptions{}); err != nil {
			t.Fatal(err)
		}
		if p.size() != 300 || p.read(snap) != want || p.read(filepath.Join(p.c.Paths.State, "agents/ada/agent.json")) != `{"name":"ada"}` {
			t.Errorf("got a ledger of %d entries", p.size())
		}
	}
	st, err := os.Stat(snap)
	if err != nil || st.Size() != int64(len(want)) {
		t.Errorf("the snapshot has %v, %v; want %d", st, err, len(want))
	}
	if _, err := os.Stat(filepath.Join(p.c.Paths.State, "agents/ada/disk.img")); err == nil {
		t.Error("an agent's disk was in the backup")
	}
	ev, _ := filepath.Glob(filepath.Join(p.c.Paths.Receipts, "changes/*restored.json"))
	if len(ev) == 0 {
		t.Error("the ledger is not told of it")
	}
	p.grow(1) // it goes on
}

// What no backup may do to a ledger.
func TestLedgerOnlyGrows(t *testing.T) {
	p := newPlace(t, t.TempDir())
	p.grow(10)
	old := p.backup()
	p.grow(5)
	if err := p.restore(old, RestoreOptions{Replace: true}); !errors.Is(err, ErrLonger) {
		t.Errorf("an older backup: %v", err)
	}
	if p.size() != 15 {
		t.Errorf("got %d entries", p.size())
	}
	// A fork: the same key, another history of the same length.
	q := newPlace(t, t.TempDir())
	q.skey, q.vkey = p.skey, p.vkey
	q.grow(20)
	fork := q.c
	fork.Paths, fork.Credentials = p.c.Paths, p.c.Credentials
	text, err := fork.Encode()
	if err != nil {
		t.Fatal(err)
	}
	q.put(q.l.LedgerV(), p.vkey+"\n")
	q.put(q.l.LedgerS(), p.skey+"\n")
	b := q.backupAs(string(text))
	var f *ledger.Fault
	if err := p.restore(b, RestoreOptions{Replace: true}); !errors.As(err, &f) {
		t.Errorf("a fork: %v", err)
	}
	if p.size() != 15 {
		t.Errorf("got %d entries", p.size())
	}
}

// backupAs is a backup whose configuration is another one.
func (p *place) backupAs(configuration string) []byte {
	p.t.Helper()
	file := p.l.Config()
	now := p.read(file)
	defer p.put(file, now)
	w := &writing{cfg: p.c, l: p.l, copy: filepath.Join(p.l.Install(), ".backup")}
	w.about = About{Format: Format, Version: "1.0.0", Sequence: 1, Digest: p.c.Release.Digest}
	var err error
	if w.key, err = readKey(p.l.LedgerS(), note.NewSigner); err != nil {
		p.t.Fatal(err)
	}
	defer os.RemoveAll(w.copy)
	if err := w.copyLedger(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	p.put(file, configuration)
	var b bytes.Buffer
	if err := w.stream(p.t.Context(), &b, nil); err != nil {
		p.t.Fatal(err)
	}
	return b.Bytes()
}

// On a fresh machine: keys come only encrypted, and another ledger is moved
// aside only when told to.
func TestFreshMachine(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "host")
	p := newPlace(t, root)
	p.grow(12)
	id := identity(t)
	plain, sealed := p.backup(), p.backup(id.Recipient())
	for _, secret := range []string{p.skey, "ghp-the-credential"} {
		if bytes.Contains(inside(t, plain, nil), []byte(secret)) {
			t.Errorf("a backup that is not encrypted holds %.12s…", secret)
		}
		if !bytes.Contains(inside(t, sealed, id), []byte(secret)) {
			t.Errorf("the encrypted backup lacks %.12s…", secret)
		}
	}
	if err := os.Rename(root, filepath.Join(dir, "lost")); err != nil {
		t.Fatal(err)
	}
	q := newPlace(t, root) // installed anew, with another key
	q.grow(2)
	v, err := LoadKey(p.vkey)
	if err != nil {
		t.Fatal(err)
	}
	with := RestoreOptions{Identities: []age.Identity{id}, Key: v}
	for _, c := range []struct {
		name string
		b    []byte
		o    RestoreOptions
		word string
	}{
		{"no identity", sealed, RestoreOptions{}, "--identity"},
		{"other identity", sealed, RestoreOptions{Identities: []age.Identity{identity(t)}}, "decrypt"},
		{"no keys", plain, RestoreOptions{Replace: true, Key: v}, "without keys"},
		{"nobody vouches", sealed, RestoreOptions{Identities: with.Identities, Replace: true}, "--ledger-key"},
		{"another ledger", sealed, with, "--replace"},
	} {
		if err := q.restore(c.b, c.o); err == nil || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.word)
		}
		if q.size() != 2 {
			t.Fatalf("%s: the ledger was replaced", c.name)
		}
	}
	with.Check = true
	with.Replace = true
	if err := q.restore(sealed, with); err != nil || q.size() != 2 {
		t.Errorf("check: %v", err)
	}
	with.Check = false
	if err := q.restore(sealed, with); err != nil {
		t.Fatal(err)
	}
	if p.size() != 12 || q.read(q.l.LedgerS()) != p.skey+"\n" {
		t.Errorf("got %d entries", p.size())
	}
	aside, _ := filepath.Glob(q.c.Paths.Ledger + ".before-restore-*")
	if len(aside) != 1 {
		t.Errorf("the other ledger: %v", aside)
	}
	p.grow(1)
}

// Cut off wherever it is and given again, a restore on a new machine arrives at the
// same: at no step is the other ledger taken for the backup's.
func TestCutOff(t *testing.T) {
	id := identity(t)
	for n := range parts {
		dir := t.TempDir()
		root := filepath.Join(dir, "host")
		p := newPlace(t, root)
		p.grow(12)
		b := p.backup(id.Recipient())
		if err := os.Rename(root, filepath.Join(dir, "lost")); err != nil {
			t.Fatal(err)
		}
		q := newPlace(t, root)
		q.grow(20)
		v, err := LoadKey(p.vkey)
		if err != nil {
			t.Fatal(err)
		}
		o := RestoreOptions{Identities: []age.Identity{id}, Key: v, Replace: true, Operator: "ann"}
		was := parts
		parts = slices.Clone(parts)
		parts[n].root = func(config.Config, installer.Layout) string { return "/dev/null/cut" }
		err = q.restore(b, o)
		failed := parts[n].name
		parts = was
		if err == nil && n < 4 {
			t.Errorf("%s: nothing failed", failed)
		}
		if err := q.restore(b, o); err != nil {
			t.Errorf("cut off at %s and given again: %v", failed, err)
			continue
		}
		if p.size() != 12 || q.read(q.l.LedgerS()) != p.skey+"\n" || q.read(q.l.LedgerV()) != p.vkey+"\n" {
			t.Errorf("cut off at %s: it is not the backup's", failed)
		}
		p.grow(1)
	}
}

// Nothing is written, and work ends with its context, before it is clear who signed.
func TestNobodysBackup(t *testing.T) {
	p := newPlace(t, t.TempDir())
	p.grow(3)
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	const size = 1 << 32
	if err := w.WriteHeader(&tar.Header{Name: "agents/ada/snapshots/monday/disk.img", Typeflag: tar.TypeReg, Size: size}); err != nil {
		t.Fatal(err)
	}
	for range size / (1 << 20) {
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, _, err = Restore(ctx, bytes.NewReader(b.Bytes()), p.root, RestoreOptions{Operator: "ann"})
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
		t.Errorf("after %s: %v", time.Since(start), err)
	}
	if es, _ := filepath.Glob(filepath.Join(p.c.Paths.State, ".restore*")); len(es) > 0 {
		t.Errorf("%v stays", es)
	}
	// A sparse file, as GNU tar writes them: a map of one hole of 4 TiB.
	var raw bytes.Buffer
	w = tar.NewWriter(&raw)
	const hole = "1\n4398046511104\n0\n"
	h := &tar.Header{Name: "etc/x", Typeflag: tar.TypeReg, Size: 512, PAXRecords: map[string]string{"AAA.sparse.major": "1", "AAA.sparse.minor": "0", "AAA.sparse.name": "etc/x", "AAA.sparse.realsize": "4398046511104"}}
	if err := errors.Join(w.WriteHeader(h), second(w.Write([]byte(hole+strings.Repeat("\x00", 512-len(hole))))), w.Close()); err != nil {
		t.Fatal(err)
	}
	b.Reset()
	z.Reset(&b)
	if _, err := z.Write(bytes.ReplaceAll(raw.Bytes(), []byte("AAA.sparse"), []byte("GNU.sparse"))); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.restore(b.Bytes(), RestoreOptions{}); err == nil || !strings.Contains(err.Error(), "sparse") {
		t.Errorf("a sparse file: %v", err)
	}
}

func second(_ int, err error) error { return err }

// inside is the archive itself.
func inside(t *testing.T, b []byte, id age.Identity) []byte {
	t.Helper()
	dir := t.TempDir()
	var ids []age.Identity
	if id != nil {
		ids = append(ids, id)
	}
	u, err := unpack(t.Context(), bytes.NewReader(b), dir, ids)
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for _, f := range u.about.Files {
		x, err := os.ReadFile(filepath.Join(dir, f.name()))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, x...)
	}
	return out
}

// A backup that was damaged, cut, or is of something else touches nothing.
func TestRefused(t *testing.T) {
	p := newPlace(t, t.TempDir())
	p.grow(3)
	b := p.backup()
	before := p.read(p.l.Config())
	p.put(p.l.Config(), strings.Replace(before, "holdSeconds: 120", "holdSeconds: 99", 1))
	edited := p.read(p.l.Config())
	for n := 0; n < len(b); n += max(1, len(b)/20) {
		if err := p.restore(b[:n], RestoreOptions{}); err == nil {
			t.Errorf("cut to %d of %d bytes it was restored", n, len(b))
		}
		x := bytes.Clone(b)
		x[n] ^= 1
		if err := p.restore(x, RestoreOptions{}); err == nil && p.read(p.l.Config()) != before {
			t.Errorf("with byte %d flipped something else was restored", n)
		}
		p.put(p.l.Config(), edited)
	}
	if err := p.restore([]byte("hello"), RestoreOptions{}); err == nil {
		t.Error("a text was restored")
	}
	other := newPlace(t, t.TempDir())
	v, err := LoadKey(p.vkey)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.restore(b, RestoreOptions{Key: v}); err == nil || !strings.Contains(err.Error(), "other paths") {
		t.Errorf("another prefix: %v", err)
	}
	if _, err := Write(t.Context(), io.Discard, t.TempDir(), Options{}); err == nil || !strings.Contains(err.Error(), "clawbox install") {
		t.Errorf("nothing installed: %v", err)
	}
	if _, err := Write(t.Context(), full{}, p.root, Options{}); err == nil {
		t.Error("a full disk was not noticed")
	}
	if es, _ := filepath.Glob(filepath.Join(p.c.Paths.State, ".restore*")); len(es) > 0 {
		t.Errorf("%v stays", es)
	}
}

// A part takes its place whole, and what was there is never missing: not when the
// new one can't come, and not where two names can't trade places.
func TestPut(t *testing.T) {
	defer func(f func(string, string) error) { exchange = f }(exchange)
	for name, f := range map[string]func(string, string) error{
		"exchanged": exchange,
		"renamed":   func(string, string) error { return syscall.EINVAL },
		"refused":   func(a, b string) error { return &os.LinkError{Op: "exchange", Old: a, New: b, Err: syscall.EIO} },
	} {
		exchange = f
		dir := t.TempDir()
		from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
		p := &place{t: t}
		p.put(filepath.Join(from, "new"), "new")
		p.put(filepath.Join(to, "old"), "old")
		r := &restoring{stamp: "now"}
		err := r.put(from, to)
		aside := to + ".before-restore-now"
		switch {
		case name == "refused" && (err == nil || p.read(filepath.Join(to, "old")) != "old" || len(r.aside) != 0 || exists(aside)):
			t.Errorf("%s: %v, aside %v", name, err, r.aside)
		case name != "refused" && (err != nil || p.read(filepath.Join(to, "new")) != "new" || p.read(filepath.Join(aside, "old")) != "old" || len(r.aside) != 1):
			t.Errorf("%s: %v, aside %v", name, err, r.aside)
		}
		if err := r.put(filepath.Join(dir, "none"), to); err == nil || !exists(to) {
			t.Errorf("%s: nothing to put: %v", name, err)
		}
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left") }

// FuzzUnpack: whatever a file holds, nothing is written outside the folder, and
// what is accepted is what its list says.
func FuzzUnpack(f *testing.F) {
	var b bytes.Buffer
	skey, _, err := note.GenerateKey(rand.Reader, "clawbox/test")
	if err != nil {
		f.Fatal(err)
	}
	key, err := note.NewSigner(skey)
	if err != nil {
		f.Fatal(err)
	}
	w := &writing{about: About{Format: Format}, key: key}
	if err := w.stream(f.Context(), &b, nil); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte(ageHead))
	f.Fuzz(func(t *testing.T, in []byte) {
		top := t.TempDir()
		dir := filepath.Join(top, "in")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		u, err := unpack(t.Context(), bytes.NewReader(in), dir, nil)
		if err == nil && (u.about.Format != Format || u.text == "" || u.note == nil) {
			t.Errorf("accepted %+v", u)
		}
		if es, _ := os.ReadDir(top); len(es) != 1 {
			t.Errorf("something was written beside the folder: %v", es)
		}
	})
}
