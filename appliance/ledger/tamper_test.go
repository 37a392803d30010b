package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// smallLog is a closed log of n entries of a few bytes: small enough to flip
// its bytes one by one. The bytes needn't be events for Verify.
// Its wal holds one bundle at most, so that few entries make many files.
func smallLog(t testing.TB, k keys, n, step int) string { return logOf(t, k, n, step, width) }

// logOf is smallLog with so many entries in the wal.
func logOf(t testing.TB, k keys, n, step, most int) string {
	t.Helper()
	dir := newLog(t, k, 0, 1)
	w, _, err := load(&osDisk{dir: dir}, dir, k.s, k.v)
	must(t, err)
	w.most = most
	for i := 0; i < n; {
		var es [][]byte
		for j := i; j < min(i+step, n); j++ {
			es = append(es, fmt.Appendf(nil, "e%d", j))
		}
		did, err := w.commit(es)
		must(t, err)
		i += did
		if w.due() {
			must(t, w.rotate())
		}
	}
	must(t, w.publish())
	must(t, w.tidy())
	_, err = Verify(dir, k.v, Options{})
	must(t, err)
	return dir
}

func logFiles(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, p)
		}
		return err
	}))
	return out
}

// refused fails the test unless Verify finds a Fault, and returns it.
func refused(t testing.TB, dir string, k keys, what string, o Options) *Fault {
	t.Helper()
	_, err := Verify(dir, k.v, o)
	var f *Fault
	if !errors.As(err, &f) {
		t.Fatalf("%s: Verify says %v, want a Fault", what, err)
	}
	return f
}

// TestEveryByteCounts changes single bytes: all of them in the checkpoint and
// the wal, one in five in the bundles, one in 67 in the tiles (so that every
// position in a hash has its turn).
func TestEveryByteCounts(t *testing.T) {
	k := newKeys(t, "ledger.example")
	dir := smallLog(t, k, 570, 20)
	tried := 0
	for _, p := range logFiles(t, dir) {
		b, err := os.ReadFile(p)
		must(t, err)
		step := 1
		switch {
		case strings.Contains(p, "/tile/0/"):
			step = 67
		case strings.Contains(p, "/tile/entries/"):
			step = 5
		}
		name, err := filepath.Rel(dir, p)
		must(t, err)
		f, err := os.OpenFile(p, os.O_WRONLY, 0)
		must(t, err)
		for i := 0; i < len(b); i += step {
			flip := []byte{b[i] ^ byte(1<<(i%8))}
			_, err := f.WriteAt(flip, int64(i))
			must(t, err)
			fault := refused(t, dir, k, fmt.Sprintf("%s byte %d", name, i), Options{})
			other := strings.Replace(name, "tile/0/", "tile/entries/", 1) // the pair can't be told apart
			if fault.File != name && fault.File != other && !strings.Contains(fault.Error(), name) {
				t.Fatalf("%s byte %d: the fault names %s: %v", name, i, fault.File, fault)
			}
			_, err = f.WriteAt(b[i:i+1], int64(i))
			must(t, err)
			tried++
		}
		must(t, f.Close())
	}
	t.Logf("%d changes, each refused", tried)
	_, err := Verify(dir, k.v, Options{})
	must(t, err)
}

// TestCheckpointIsCanonical tries every value in the places where base64 has
// spare bits, and every way to add to a note that note.Open lets pass.
func TestCheckpointIsCanonical(t *testing.T) {
	k := newKeys(t, "ledger.example")
	p := peaks{}
	for i := range 5 {
		p.add([32]byte{byte(i)})
	}
	h, err := signHead(k.s, &p, 1)
	must(t, err)
	good, open := h.Checkpoint, strict(k.v)
	if _, err := open(good); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		near := bytes.IndexByte(good[i:], '\n')
		if near > 4 {
			continue
		}
		for c := range 256 {
			b := bytes.Clone(good)
			b[i] = byte(c)
			if _, err := open(b); (err == nil) != (b[i] == good[i]) {
				t.Fatalf("byte %d as %#x: %v", i, c, err)
			}
		}
	}
	other := newKeys(t, "witness.example")
	text, _, _ := strings.Cut(string(good), "\n\n")
	sig := string(good[len(text)+2:])
	second, err := signHead(other.s, &p, 1)
	must(t, err)
	_, theirs, _ := strings.Cut(string(second.Checkpoint), "\n\n")
	for _, bad := range []string{
		"", string(good) + sig, string(good) + theirs, text + "\n\n" + theirs + sig, string(good) + "\n", string(second.Checkpoint),
		text + "\nextension\n\n" + sig, text[:len(text)-1] + "\n\n" + sig,
	} {
		if _, err := open([]byte(bad)); err == nil {
			t.Fatalf("accepted %q", bad)
		}
	}
	if _, err := anchored(k.v)([]byte(string(good) + theirs)); err != nil {
		t.Errorf("an anchor with a witness's line: %v", err)
	}
}

// TestStructure drops, cuts, swaps and adds.
func TestStructure(t *testing.T) {
	k := newKeys(t, "ledger.example")
	foreign := smallLog(t, newKeys(t, "ledger.example"), 600, 32)
	older := smallLog(t, k, 550, 32)
	sound := smallLog(t, k, 600, 32)
	for name, c := range map[string]struct {
		do   func(t *testing.T, dir string)
		want string // in the error
	}{
		"drop checkpoint":   {rm("checkpoint"), "checkpoint"},
		"drop wal":          {rm("wal"), "wal"},
		"drop bundle":       {rm("tile/entries/001"), "tile/entries/001"},
		"drop tile":         {rm("tile/0/000"), "tile/0/000"},
		"drop all tiles":    {rm("tile"), "tile/entries/000"},
		"empty checkpoint":  {cut("checkpoint", 0), "checkpoint"},
		"empty wal":         {cut("wal", 0), "wal"},
		"cut wal by a byte": {cut("wal", -1), "wal, entry 600"},
		"cut wal to start":  {cut("wal", 314), "wal, entry 521"},
		"cut tile":          {cut("tile/0/001", -32), "tile/entries/001, entry 511"},
		"cut bundle":        {cut("tile/entries/001", -5), "tile/entries/001"},
		"grow tile":         {add("tile/0/001", "x"), "tile/0/001"},
		"grow bundle":       {add("tile/entries/001", "\x00\x01x"), "tile/entries/001"},
		"grow wal":          {add("wal", "E"), "wal, entry 600"},
		"grow checkpoint":   {add("checkpoint", "\n"), "checkpoint"},
		"stranger":          {add("notes.txt", "x"), "notes.txt"},
		"stranger in tile":  {add("tile/0/002", "x"), "tile/0/002"},
		"partial tile":      {add("tile/0/001.p", "x"), "tile/0/001.p"},
		"left-over":         {add("wal.new", "x"), "start it once"},
		"empty directory":   {func(t *testing.T, d string) { must(t, os.Mkdir(filepath.Join(d, "tile/7"), 0o700)) }, "tile/7"},
		"level too high":    {func(t *testing.T, d string) { must(t, os.Mkdir(filepath.Join(d, "tile/1"), 0o700)) }, "tile/1"},
		"symlink for tile":  {link, "tile/0/000"},
		"pipe for wal": {func(t *testing.T, d string) {
			must(t, os.Remove(filepath.Join(d, walFile)))
			must(t, unix.Mkfifo(filepath.Join(d, walFile), 0o600))
		}, "wal"},
		"swap bundles": {swap("tile/entries/000", "tile/entries/001"), "tile/entries/000, entry 0"},
		"swap both pairs": {func(t *testing.T, d string) {
			swap("tile/entries/000", "tile/entries/001")(t, d)
			swap("tile/0/000", "tile/0/001")(t, d)
		}, "wal, entry 512"},
		"foreign checkpoint": {copyFrom(foreign, "checkpoint"), "checkpoint"},
		"foreign wal":        {copyFrom(foreign, "wal"), "wal"},
		"older checkpoint":   {copyFrom(older, "checkpoint"), "checkpoint"},
		"older wal":          {copyFrom(older, "wal"), "wal, entry 550"},
		"swap wal entries":   {swapEntries, "wal"},
		"insert wal entry":   {insertEntry, "wal"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "log")
			must(t, os.CopyFS(dir, os.DirFS(sound)))
			c.do(t, dir)
			f := refused(t, dir, k, name, Options{})
			if !strings.Contains(f.Error(), c.want) {
				t.Errorf("fault is %q, want it to name %q", f, c.want)
			}
		})
	}
}

func rm(name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) { must(t, os.RemoveAll(filepath.Join(dir, name))) }
}

func cut(name string, to int64) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		p := filepath.Join(dir, name)
		if to < 0 {
			fi, err := os.Stat(p)
			must(t, err)
			to += fi.Size()
		}
		must(t, os.Truncate(p, to))
	}
}

func add(name, s string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		must(t, err)
		_, err = f.WriteString(s)
		must(t, err)
		must(t, f.Close())
	}
}

func swap(a, b string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		a, b, tmp := filepath.Join(dir, a), filepath.Join(dir, b), filepath.Join(dir, "tmp")
		must(t, os.Rename(a, tmp))
		must(t, os.Rename(b, a))
		must(t, os.Rename(tmp, b))
	}
}

func link(t *testing.T, dir string) {
	p := filepath.Join(dir, "tile/0/000")
	must(t, os.Rename(p, dir+".moved"))
	must(t, os.Symlink(dir+".moved", p))
}

func copyFrom(src, name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		b, err := os.ReadFile(filepath.Join(src, name))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
}

// frames rewrites the wal's frames with right checksums: what somebody does
// who knows the format and lacks the key.
func frames(t *testing.T, dir string, f func([][2][]byte) [][2][]byte) {
	p := filepath.Join(dir, walFile)
	b, err := os.ReadFile(p)
	must(t, err)
	var fs [][2][]byte
	for at := b[len(walMagic):]; len(at) > 0; {
		kind, body, rest, err := nextFrame(at)
		must(t, err)
		fs, at = append(fs, [2][]byte{{kind}, body}), rest
	}
	out := []byte(walMagic)
	for _, x := range f(fs) {
		out = appendFrame(out, x[0][0], x[1])
	}
	must(t, os.WriteFile(p, out, 0o600))
}

func swapEntries(t *testing.T, dir string) {
	frames(t, dir, func(fs [][2][]byte) [][2][]byte { fs[2], fs[3] = fs[3], fs[2]; return fs })
}

func insertEntry(t *testing.T, dir string) {
	frames(t, dir, func(fs [][2][]byte) [][2][]byte {
		return append(fs[:2:2], append([][2][]byte{{{frameEntry}, []byte("x")}}, fs[2:]...)...)
	})
}

// TestRollbackNeedsAnchor: the whole directory put back to an older state is
// consistent in itself; only a checkpoint kept elsewhere shows it.
func TestRollbackNeedsAnchor(t *testing.T) {
	k := newKeys(t, "ledger.example")
	dir := newLog(t, k, 300, 50)
	old := dir + ".old"
	must(t, os.CopyFS(old, os.DirFS(dir)))
	l, err := Open(dir, k.s, k.v)
	must(t, err)
	fill(t, l, 100, 100)
	must(t, l.Close())
	r, err := Verify(dir, k.v, Options{})
	must(t, err)
	if _, err := Verify(old, k.v, Options{}); err != nil {
		t.Fatal(err)
	}
	f := refused(t, old, k, "rolled back", Options{Anchors: [][]byte{[]byte(r.Checkpoint)}})
	if f.File != "anchor 0" {
		t.Errorf("fault is %v", f)
	}
	// A fork by the key's holder: same size, other entries.
	fork, err := Open(old, k.s, k.v)
	must(t, err)
	fill(t, fork, 99, 99)
	fill(t, fork, 30, 7)
	must(t, fork.Close())
	f = refused(t, old, k, "forked", Options{Anchors: [][]byte{[]byte(r.Checkpoint)}})
	if f.File != "anchor 0" || f.Entry != 399 {
		t.Errorf("fault is %v", f)
	}
}

// TestOpenFailsClosed: what Open reads and finds changed it doesn't repair.
func TestOpenFailsClosed(t *testing.T) {
	k := newKeys(t, "ledger.example")
	sound := smallLog(t, k, 600, 32)
	for name, do := range map[string]func(*testing.T, string){
		"drop checkpoint":  rm("checkpoint"),
		"drop wal":         rm("wal"),
		"drop last tile":   rm("tile/0/001"),
		"cut answered":     cut("wal", -1),
		"cut much":         cut("wal", 400),
		"swap wal entries": swapEntries,
		"swap tiles":       swap("tile/0/000", "tile/0/001"),
		"change in wal":    func(t *testing.T, d string) { flipAt(t, d, 500) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "log")
			must(t, os.CopyFS(dir, os.DirFS(sound)))
			do(t, dir)
			before := snapshot(t, dir)
			if l, err := Open(dir, k.s, k.v); err == nil {
				l.Close()
				t.Fatal("opened")
			} else {
				t.Log(err)
			}
			if snapshot(t, dir) != before {
				t.Error("a refused Open changed the files")
			}
		})
	}
}

func flipAt(t *testing.T, dir string, at int) {
	p := filepath.Join(dir, walFile)
	b, err := os.ReadFile(p)
	must(t, err)
	b[at] ^= 1
	must(t, os.WriteFile(p, b, 0o600))
}

func snapshot(t *testing.T, dir string) string {
	var s strings.Builder
	for _, p := range logFiles(t, dir) {
		b, err := os.ReadFile(p)
		must(t, err)
		fmt.Fprintf(&s, "%s %x\n", p, b)
	}
	return s.String()
}

// TestDamageBeforeLastCommitIsNotATear: an honest crash can hit the last
// commit only, even when the checkpoint file lags behind.
func TestDamageBeforeLastCommitIsNotATear(t *testing.T) {
	k := newKeys(t, "ledger.example")
	dir := smallLog(t, k, 40, 10)
	copyFrom(smallLog(t, k, 0, 10), "checkpoint")(t, dir) // as if power was lost within the second
	l, err := Open(dir, k.s, k.v)
	must(t, err)
	must(t, l.Close())
	copyFrom(smallLog(t, k, 0, 10), "checkpoint")(t, dir)
	flipAt(t, dir, 500)
	if _, err := Open(dir, k.s, k.v); err == nil || !strings.Contains(err.Error(), "finished after it") {
		t.Fatalf("Open: %v", err)
	}
}

// TestUpperTile: 256 full tiles make one of the next level.
func TestUpperTile(t *testing.T) {
	k := newKeys(t, "ledger.example")
	dir := smallLog(t, k, width*width+3, width)
	r, err := Verify(dir, k.v, Options{})
	must(t, err)
	if r.Tiles != width+1 {
		t.Fatalf("%d tiles", r.Tiles)
	}
	p, err := Prove(dir, 70)
	must(t, err)
	if _, err := CheckProof(p, k.v); err == nil || !strings.HasPrefix(err.Error(), "decode event") { // not an event, but proved
		t.Error(err)
	}
	name := filepath.Join(dir, "tile/1/000")
	b := readFile(t, name)
	b[32*200] ^= 4
	must(t, os.WriteFile(name, b, 0o600))
	if f := refused(t, dir, k, "upper tile", Options{}); f.File != "tile/1/000" || f.Entry != 200*width {
		t.Errorf("fault is %v", f)
	}
	if l, err := Open(dir, k.s, k.v); err == nil {
		l.Close()
		t.Error("opened over a changed upper tile")
	}
}

// TestCutToCommit: the wal's own checkpoints state what the log was, but make no
// checkpoint file: who cuts the log off at a commit needs an older one.
func TestCutToCommit(t *testing.T) {
	k := newKeys(t, "ledger.example")
	sound := newLog(t, k, width+50, 1)
	w, err := readWal(sound, strict(k.v))
	must(t, err)
	for i, c := range w.commits {
		for what, cp := range map[string][]byte{"": nil, ", with its checkpoint": c.Checkpoint} {
			if i == len(w.commits)-1 && cp == nil {
				continue // nothing was changed
			}
			dir := filepath.Join(t.TempDir(), "log")
			must(t, os.CopyFS(dir, os.DirFS(sound)))
			b := readFile(t, dir, walFile)
			must(t, os.WriteFile(filepath.Join(dir, walFile), b[:bytes.Index(b, c.Checkpoint)+len(c.Checkpoint)], 0o600))
			if cp != nil {
				must(t, os.WriteFile(filepath.Join(dir, checkpointFile), cp, 0o600))
			}
			refused(t, dir, k, fmt.Sprintf("cut to commit %d%s", c.Commit, what), Options{})
			must(t, os.RemoveAll(dir))
		}
	}
}

// TestOlderWal: a wal whose checkpoints could be files, as they once were, is
// gone on with until it rotates.
func TestOlderWal(t *testing.T) {
	k := newKeys(t, "ledger.example")
	dir := newLog(t, k, 20, 1)
	frames(t, dir, func(fs [][2][]byte) [][2][]byte {
		for i := range fs {
			if fs[i][0][0] == frameCheckpoint {
				h := must1(strict(k.v)(fs[i][1]))(t)
				h = must1(h.signed(k.s, commitLine))(t)
				fs[i][1] = h.Checkpoint
			}
		}
		return fs
	})
	_, err := Verify(dir, k.v, Options{})
	must(t, err)
	l, err := Open(dir, k.s, k.v)
	must(t, err)
	fill(t, l, walEntries, 100)
	must(t, l.Close())
	_, err = Verify(dir, k.v, Options{})
	must(t, err)
	w, err := readWal(dir, strict(k.v))
	must(t, err)
	for _, c := range w.commits {
		if c.published {
			t.Errorf("commit %d could be made the checkpoint file", c.Commit)
		}
	}
}
