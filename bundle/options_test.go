package bundle

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// parts lists what the bundle in dir has below folder.
func partsIn(t *testing.T, dir, folder string) (out []string) {
	t.Helper()
	es, err := os.ReadDir(filepath.Join(dir, topDir, folder))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		out = append(out, filepath.Join(dir, topDir, folder, e.Name()))
	}
	return out
}

// loadFrom opens what o says, and loads it into st.
func loadFrom(t *testing.T, o MediaOptions, st *content.Store) error {
	t.Helper()
	m, err := o.Open()
	if err != nil {
		return err
	}
	return m.Load(t.Context(), st, nil)
}

// TestParity: any two of the files may go; three are too many.
func TestParity(t *testing.T) {
	s := newSite(t)
	s.opt.Parity, s.opt.PartSize = 2, 2<<20
	r := s.mustBuild(t)
	if len(r.Parity) != 2 || r.Parity[0].Size != 2<<20 {
		t.Fatalf("parity %+v", r.Parity)
	}
	all := append(partsIn(t, s.opt.Out, partsDir), partsIn(t, s.opt.Out, parityDir)...)
	o := MediaOptions{Trust: s.trust, Dirs: []string{s.opt.Out}}
	for i := range all {
		k := (i + 1) % len(all)
		for _, p := range []string{all[i], all[k]} {
			if err := os.Rename(p, p+".gone"); err != nil {
				t.Fatal(err)
			}
		}
		away := filepath.Join(s.dir, "away")
		for _, p := range []string{all[i], all[k]} { // a stranger beside the parts would be refused
			if err := os.Rename(p+".gone", away+filepath.Base(p)); err != nil {
				t.Fatal(err)
			}
		}
		st := newStore(t)
		if err := loadFrom(t, o, st); err != nil {
			t.Errorf("without %s and %s: %v", all[i], all[k], err)
		}
		sound(t, st, 8)
		for _, p := range []string{all[i], all[k]} {
			if err := os.Rename(away+filepath.Base(p), p); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, p := range all[:3] {
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := loadFrom(t, o, newStore(t)); !errors.Is(err, manifest.ErrIncomplete) {
		t.Errorf("without three parts: %v", err)
	}
}

// TestEncrypted: who has no identity sees neither names nor bytes; who has one
// loads, also when a part is lost.
// tallied counts what is read of the media.
type tallied struct {
	mediaFile
	n *atomic.Int64
}

func (c tallied) ReadAt(p []byte, off int64) (int, error) {
	k, err := c.mediaFile.ReadAt(p, off)
	c.n.Add(int64(k))
	return k, err
}

// beyondRepair is a bundle of some 20 MiB of which more is damaged than parity can
// rebuild, open, and the count of what is read of it. look sees each file that is
// opened.
func beyondRepair(t *testing.T, look func(path string)) (*Media, *atomic.Int64) {
	t.Helper()
	s := newSite(t)
	s.bigModel(t, 1, 2, 3, 4)
	s.opt.Parity, s.opt.PartSize = 2, 1<<20
	s.mustBuild(t)
	paths := partsIn(t, s.opt.Out, partsDir)
	for _, p := range append(partsIn(t, s.opt.Out, parityDir), paths[8:]...) {
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(make([]byte, 1<<19), 1<<18); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	m, err := OpenMedia(s.trust, s.opt.Out)
	if err != nil {
		t.Fatal(err)
	}
	n, open := &atomic.Int64{}, m.open
	m.open = func(p string) (mediaFile, int64, error) {
		look(p)
		f, k, err := open(p)
		if err != nil {
			return nil, 0, err
		}
		return tallied{f, n}, k, nil
	}
	return m, n
}

// TestMendEnds: rebuilding ends with its context.
func TestMendEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	m, n := beyondRepair(t, func(p string) {
		if strings.Contains(p, parityDir) {
			cancel() // somebody gives up when the rebuilding begins
		}
	})
	if err := m.Verify(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if n := n.Load(); n > 128<<20 {
		t.Errorf("%d MiB were read of a bundle of 20", n>>20)
	}
}

// TestMendOnce: a chunk that can't be mended is not tried again at once, such as
// for the next client of a registry.
func TestMendOnce(t *testing.T) {
	m, n := beyondRepair(t, func(string) {})
	gone, open := false, m.open
	m.open = func(p string) (mediaFile, int64, error) {
		if gone && strings.Contains(p, parityDir) {
			return nil, 0, fs.ErrNotExist
		}
		return open(p)
	}
	m.pause = func(int) time.Duration { return -1 }
	i := slices.IndexFunc(m.index.Blobs, func(b manifest.Blob) bool { return b.Size > 8<<20 })
	get := func() int64 {
		n.Store(0)
		b, err := m.OpenBlob(t.Context(), m.index.Blobs[i].Digest, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if _, err := io.ReadAll(b); !errors.Is(err, manifest.ErrTampered) {
			t.Errorf("got %v", err)
		}
		return n.Load()
	}
	if first, second := get(), get(); second > 32<<20 {
		t.Errorf("%d MiB were read for the first client, %d MiB for the second", first>>20, second>>20)
	}
	// What can't be read may come back.
	m.beyond, gone = &beyond{}, true
	get()
	gone = false
	if back := get(); back < 64<<20 {
		t.Errorf("%d MiB were read when all parts were back: it was not tried again", back>>20)
	}
}

func TestEncrypted(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	s.opt.Recipients, s.opt.Parity = []string{id.Recipient().String()}, 1
	r := s.mustBuild(t)
	if len(r.Items) != 8 || r.Encryption != manifest.Age {
		t.Errorf("items %v, encryption %q", r.Items, r.Encryption)
	}
	for p, b := range tree(t, s.opt.Out) {
		for _, secret := range []string{"tiny", "clawbox.bin", "rules", "gguf", string(noise(1, 40))} {
			if strings.Contains(b, secret) {
				t.Errorf("%s holds %.20q in the clear", p, secret)
			}
		}
	}
	o := MediaOptions{Trust: s.trust, Dirs: []string{s.opt.Out}}
	if _, err := o.Open(); !errors.Is(err, manifest.ErrSealed) || !strings.Contains(err.Error(), "--identity") {
		t.Errorf("without an identity: %v", err)
	}
	if i, err := o.Inspect(); err != nil || !i.Sealed || len(i.Items) != 0 {
		t.Errorf("inspect without an identity: %+v, %v", i, err)
	}
	o.Identities = []age.Identity{other}
	if _, err := o.Open(); !errors.Is(err, manifest.ErrSealed) {
		t.Errorf("with another identity: %v", err)
	}
	o.Identities = append(o.Identities, id)
	if i, err := o.Inspect(); err != nil || i.Sealed || len(i.Items) != 8 {
		t.Errorf("inspect: %+v, %v", i, err)
	}
	m, err := o.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if err := os.Remove(partsIn(t, s.opt.Out, partsDir)[1]); err != nil {
		t.Fatal(err)
	}
	st := newStore(t)
	if err := loadFrom(t, o, st); err != nil {
		t.Error(err)
	}
	sound(t, st, 8)
}

// TestOutputs: parts are spread over sticks and read from them in any order.
func TestOutputs(t *testing.T) {
	s := newSite(t)
	a, b, c := s.opt.Out, filepath.Join(s.dir, "b"), filepath.Join(s.dir, "c")
	s.opt.OutSize = 4 << 20
	s.opt.More = []Output{{b, 4 << 20}, {Dir: c}}
	s.mustBuild(t)
	for _, d := range []string{a, b, c} {
		if n := len(partsIn(t, d, partsDir)); n == 0 || n > 3 {
			t.Errorf("%s has %d parts", d, n)
		}
	}
	for _, dirs := range [][]string{{a, b, c}, {c, a, b}} {
		st := newStore(t)
		if err := loadFrom(t, MediaOptions{Trust: s.trust, Dirs: dirs}, st); err != nil {
			t.Error(err)
		}
		sound(t, st, 8)
	}
	if err := loadFrom(t, MediaOptions{Trust: s.trust, Dirs: []string{a, c}}, newStore(t)); !errors.Is(err, manifest.ErrIncomplete) {
		t.Errorf("without a stick: %v", err)
	}
	before := tree(t, a)
	s.opt.More = []Output{{filepath.Join(s.dir, "d"), 3 << 20}}
	s.opt.Rehash = true
	if _, err := s.build(t); err == nil || !strings.Contains(err.Error(), "free") {
		t.Errorf("too little room: %v", err)
	}
	if !maps.Equal(before, tree(t, a)) {
		t.Error("the refused build changed the first stick")
	}
	if _, err := os.Lstat(filepath.Join(s.dir, "d")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the refused build left a directory: %v", err)
	}
}

// tasks records the names of what was done.
type tasks struct {
	mu    sync.Mutex
	names []string
}

func (l *tasks) Start(name string, _ int64) Task {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.names = append(l.names, name)
	return quiet{}
}

// TestUnchanged: what has not changed is not read; a new version needs a new
// note only; a file that was touched, here or on the media, is read again.
func TestUnchanged(t *testing.T) {
	s := newSite(t)
	time.Sleep(200 * time.Millisecond) // stamps are believed from then on
	s.mustBuild(t)
	first := tree(t, s.opt.Out)
	run := func(want ...string) manifest.Release {
		t.Helper()
		l := &tasks{}
		s.opt.Progress = l
		r := s.mustBuild(t)
		got := strings.Join(l.names, "; ")
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("did %q, want %q", got, w)
			}
		}
		if len(want) == 0 && strings.Contains(got, "tiny.gguf") || strings.Contains(got, "write") != (len(want) > 0) {
			t.Errorf("did %q, want %q", got, want)
		}
		return r
	}
	run()
	if !maps.Equal(first, tree(t, s.opt.Out)) {
		t.Error("the bundle changed")
	}
	recipe := string(read(t, s.opt.Recipe))
	write(t, s.opt.Recipe, []byte(strings.Replace(recipe, "sequence: 3", "sequence: 4", 1)))
	if r := run(); r.Sequence != 4 {
		t.Errorf("sequence %d", r.Sequence)
	}
	s.load(t)
	p := partsIn(t, s.opt.Out, partsDir)[2]
	b := read(t, p)
	write(t, p, b)
	run("write")
	flip(t, filepath.Join(s.dir, "model/tiny.gguf"), 77)
	s.opt.UpdateLock = true
	run("hash tiny/tiny.gguf", "write")
	s.load(t)
}

// TestSameBytes: the same lock gives the same bytes in another directory, with
// another work store and parity.
func TestSameBytes(t *testing.T) {
	s := newSite(t)
	s.opt.Parity = 1
	s.mustBuild(t)
	o := s.opt
	o.Out, o.Store = filepath.Join(t.TempDir(), "else"), filepath.Join(t.TempDir(), "work")
	if _, err := Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(tree(t, s.opt.Out), tree(t, o.Out)) {
		t.Error("two builds differ")
	}
}

// bigModel gives the site a model of some chunks, each with its own seed.
func (s *site) bigModel(t *testing.T, seeds ...int64) {
	t.Helper()
	b := gguf(0, len(seeds)*manifest.ChunkSize+1000)
	for i, x := range seeds {
		copy(b[max(64, i*manifest.ChunkSize):(i+1)*manifest.ChunkSize], noise(x, manifest.ChunkSize))
	}
	copy(b[len(seeds)*manifest.ChunkSize:], noise(99, 1000))
	write(t, filepath.Join(s.dir, "model/tiny.gguf"), b)
}

// version makes the recipe that of release n.
func (s *site) version(t *testing.T, n string) {
	t.Helper()
	r := strings.NewReplacer("version: 0.1.0", "version: 0."+n+".0", "sequence: 3", "sequence: "+n).Replace(demoRecipe)
	write(t, s.opt.Recipe, []byte(r))
}

// TestSince: three releases, the second and third as differences.
func TestSince(t *testing.T) {
	s := newSite(t)
	s.opt.UpdateLock = true
	s.version(t, "3")
	s.bigModel(t, 10, 11, 12, 13)
	full := s.mustBuild(t)
	st := newStore(t)
	if err := loadFrom(t, MediaOptions{Trust: s.trust, Dirs: []string{s.opt.Out}}, st); err != nil {
		t.Fatal(err)
	}
	next := func(n string, want int64, seeds ...int64) {
		t.Helper()
		var err error
		if s.opt.Since, err = OpenSince(s.trust, s.opt.Out); err != nil {
			t.Fatal(err)
		}
		s.opt.Out = filepath.Join(s.dir, "out"+n)
		s.version(t, n)
		s.bigModel(t, seeds...)
		r := s.mustBuild(t)
		if r.Base == nil || r.Size() < want || r.Size() > want+20_000 {
			t.Errorf("release %s: %d bytes upon %v, want %d and some manifests (the first has %d)", n, r.Size(), r.Base, want, full.Size())
		}
		o := MediaOptions{Trust: s.trust, Dirs: []string{s.opt.Out}}
		m, err := o.Open()
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Verify(t.Context(), nil); err != nil {
			t.Error(err)
		}
		fresh := newStore(t)
		if err := m.Load(t.Context(), fresh, nil); !errors.Is(err, manifest.ErrNoBase) || !strings.Contains(err.Error(), r.Base.String()) {
			t.Errorf("on a host without the base: %v", err)
		}
		if len(tree(t, filepath.Join(fresh.Dir(), "blobs"))) > 0 {
			t.Error("the refused load wrote blobs")
		}
		if err := m.Load(t.Context(), st, nil); err != nil {
			t.Fatal(err)
		}
		if got := blob(t, st, "tiny:0."+n+".0", "tiny.gguf"); !bytes.Equal(got, read(t, filepath.Join(s.dir, "model/tiny.gguf"))) {
			t.Error("the model is another")
		}
	}
	next("4", manifest.ChunkSize, 10, 11, 20, 13)       // one chunk is new
	next("5", 2*manifest.ChunkSize, 10, 20, 11, 13, 30) // moved; one is new, and the header of a longer tensor
	next("6", 0, 10, 20, 11, 13, 30)                    // only the version
	next("7", 2*manifest.ChunkSize, 12, 13, 30, 20, 10) // all moved; 12 went with release 4, and 10 had the header in it
	sound(t, st, 8+4*8)
}

// TestSinceRefuses: a base that nobody trusted signed, or that is newer.
func TestSinceRefuses(t *testing.T) {
	s := newSite(t)
	s.mustBuild(t)
	_, stranger := newSigner(t, "else")
	if _, err := OpenSince(stranger, s.opt.Out); !errors.Is(err, manifest.ErrUntrusted) {
		t.Errorf("stranger: %v", err)
	}
	if _, err := OpenSince(s.trust, s.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no release: %v", err)
	}
	var err error
	if s.opt.Since, err = OpenSince(s.trust, filepath.Join(s.opt.Out, topDir)); err != nil {
		t.Fatal(err)
	}
	s.version(t, "2")
	s.opt.UpdateLock = true
	if _, err := s.build(t); err == nil || !strings.Contains(err.Error(), "raise the recipe's sequence") {
		t.Errorf("older than its base: %v", err)
	}
}

// firstRoot is root 1: boss signs roots, and the site's key releases.
func (s *site) firstRoot(boss manifest.Signer) manifest.Root {
	return manifest.Root{Format: manifest.RootFormat, Name: "acme", Version: 1, Roles: manifest.RootRoles{
		Root: manifest.Role{Keys: []string{boss.Key()}, Threshold: 1}, Release: manifest.Role{Keys: []string{s.opt.Signers[0].Key()}, Threshold: 1},
	}}
}

// TestRootsDiffer: a root must be the same on every stick.
func TestRootsDiffer(t *testing.T) {
	s := newSite(t)
	boss, _ := newSigner(t, "boss")
	n1, err := manifest.SignRoot(s.firstRoot(boss), boss)
	if err != nil {
		t.Fatal(err)
	}
	second := filepath.Join(s.dir, "second")
	s.opt.Roots, s.opt.OutSize, s.opt.More = [][]byte{n1}, 4<<20, []Output{{Dir: second}}
	s.mustBuild(t)
	m, err := MediaOptions{Trust: s.trust, Dirs: []string{s.opt.Out, second}}.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Verify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(second, topDir, rootDir, manifest.RootName(1))
	write(t, p, []byte("something else\n"))
	if err := m.Verify(t.Context(), nil); !errors.Is(err, manifest.ErrTampered) || !strings.Contains(err.Error(), p) {
		t.Errorf("another root on the second stick: %v", err)
	}
	if err := os.Remove(p); err != nil {
		t.Fatal(err)
	}
	if err := m.Verify(t.Context(), nil); err != nil {
		t.Errorf("no root on the second stick: %v", err)
	}
}

// TestRootsOnMedia: a host that pins root 1 follows the media to root 2, and
// takes no release of the key that went.
func TestRootsOnMedia(t *testing.T) {
	s := newSite(t)
	boss, _ := newSigner(t, "boss")
	old := s.opt.Signers[0]
	r1 := s.firstRoot(boss)
	n1, err := manifest.SignRoot(r1, boss)
	if err != nil {
		t.Fatal(err)
	}
	pin, err := manifest.TrustRoot(n1)
	if err != nil {
		t.Fatal(err)
	}
	s.opt.Roots = [][]byte{n1}
	s.mustBuild(t)
	o := MediaOptions{Trust: pin, Dirs: []string{s.opt.Out}}
	if _, err := o.Open(); err != nil {
		t.Fatal(err)
	}
	r2, err := r1.Next()
	if err != nil {
		t.Fatal(err)
	}
	fresh, _ := newSigner(t, "fresh")
	r2.Roles.Release.Keys = []string{fresh.Key()}
	n2, err := manifest.SignRoot(r2, boss)
	if err != nil {
		t.Fatal(err)
	}
	s.opt.Roots = [][]byte{n1, n2}
	if _, err := s.build(t); err == nil || !strings.Contains(err.Error(), "not in the release's roles") {
		t.Errorf("signed by the key that went: %v", err)
	}
	s.opt.Signers = []manifest.Signer{fresh}
	s.mustBuild(t)
	m, err := o.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
	r, _, ok := m.Trust().Root()
	if !ok || r.Version != 2 {
		t.Errorf("root %+v", r)
	}
	path := filepath.Join(s.dir, "root.note")
	if err := manifest.KeepRoot(path, m.Trust()); err != nil {
		t.Fatal(err)
	}
	s.opt.Signers, s.opt.Roots, s.opt.Out = []manifest.Signer{old}, [][]byte{n1}, filepath.Join(s.dir, "stolen")
	s.mustBuild(t)
	kept, err := manifest.LoadTrust(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (MediaOptions{Trust: kept, Dirs: []string{s.opt.Out}}).Open(); !errors.Is(err, manifest.ErrUntrusted) {
		t.Errorf("a release of the key that went: %v", err)
	}
}
