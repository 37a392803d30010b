package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/clawbox/clawbox/bundle/manifest"
)

// TestEveryPartFlips: a changed byte anywhere in the payload is found by
// Verify, which says where, and by Load, which leaves a sound store.
func TestEveryPartFlips(t *testing.T) {
	out, trust := demo(t)
	m, err := OpenMedia(trust, out)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range m.release.Parts {
		path := filepath.Join(out, topDir, partsDir, p.Name)
		offs := []int64{0, p.Size / 2, p.Size - 1}
		for _, b := range m.index.Blobs {
			if b.Part == i+1 && b.Offset < p.Size && b.Size > 0 {
				offs = append(offs, b.Offset) // the first byte of each blob
			}
		}
		for _, off := range offs {
			flip(t, path, off)
			checkDamaged(t, out, trust, p.Name, off)
			flip(t, path, off)
		}
	}
	if err := m.Verify(t.Context(), nil); err != nil {
		t.Errorf("after all flips were undone: %v", err)
	}
}

// between counts the bytes that lie between blobs.
func between(t *testing.T, m *Media) (n int64) {
	t.Helper()
	gs, err := m.index.Gaps(m.release.Parts)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range gs {
		n += g.Length
	}
	return n
}

// TestGaps: large blobs begin at whole blocks; what lies before them is zero, and
// Verify says where it isn't. A load doesn't use it.
func TestGaps(t *testing.T) {
	out, trust := demo(t)
	m, err := OpenMedia(trust, out)
	if err != nil {
		t.Fatal(err)
	}
	large := 0
	for _, b := range m.index.Blobs {
		if b.Size >= manifest.Large {
			large++
			if b.Offset%manifest.Block != 0 {
				t.Errorf("%d bytes begin at %d", b.Size, b.Offset)
			}
		}
	}
	gs, err := m.index.Gaps(m.release.Parts)
	if err != nil || large == 0 || len(gs) == 0 {
		t.Fatalf("%d large blobs, gaps %v, %v", large, gs, err)
	}
	for _, g := range gs {
		for _, off := range []int64{g.Offset, g.Offset + g.Length - 1} {
			flip(t, m.parts[g.Part-1], off)
			var te *manifest.TamperedError
			if err := m.Verify(t.Context(), nil); !errors.As(err, &te) || te.Part != g.Part || te.Offset != g.Offset || !strings.Contains(te.What, manifest.PartName(g.Part)) {
				t.Errorf("a byte at %d of %+v: Verify = %v", off, g, err)
			}
			s := newStore(t)
			if err := m.Load(t.Context(), s, nil); err != nil {
				t.Errorf("a byte at %d of %+v: Load = %v", off, g, err)
			}
			flip(t, m.parts[g.Part-1], off)
		}
	}
}

func checkDamaged(t *testing.T, out string, trust manifest.Trust, part string, off int64) {
	t.Helper()
	m, err := OpenMedia(trust, out)
	if err != nil {
		t.Fatalf("%s at %d: OpenMedia reads payload? %v", part, off, err)
	}
	err = m.Verify(t.Context(), nil)
	var te *manifest.TamperedError
	if !errors.As(err, &te) || te.Part < 1 {
		t.Fatalf("%s at %d: Verify = %v, want a TamperedError with the part", part, off, err)
	}
	// The damage lies in the chunk that begins at the reported place.
	at := int64(te.Part-1)*MinPartSize + te.Offset
	var n int
	if _, err := fmt.Sscanf(part, "part-%04d", &n); err != nil {
		t.Fatal(err)
	}
	if got := int64(n-1)*MinPartSize + off; got < at || got >= at+manifest.ChunkSize {
		t.Errorf("%s at %d: reported at part %d offset %d", part, off, te.Part, te.Offset)
	}
	b, off64 := findBlob(m, at)
	for _, s := range spans(m.release, b.Source(int(off64/manifest.ChunkSize))) {
		if !strings.Contains(te.Detail[strings.Index(te.Detail, "; copy "):], m.parts[s.part-1]) {
			t.Errorf("the damage may lie in %s, and the advice does not name it: %v", m.parts[s.part-1], err)
		}
	}
	if strings.Contains(te.Detail, ",,") {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(te.What, "sha256:") || !strings.Contains(err.Error(), "copy ") || strings.HasSuffix(te.What, "item ") {
		t.Errorf("the error names no blob, item or next step: %v", err)
	}
	s := newStore(t)
	if err := m.Load(t.Context(), s, nil); !errors.Is(err, manifest.ErrTampered) {
		t.Errorf("%s at %d: Load = %v, want ErrTampered", part, off, err)
	}
	sound(t, s, 0)
}

// findBlob says which blob holds byte at of the payload, and where in it.
func findBlob(m *Media, at int64) (manifest.Blob, int64) {
	for _, b := range m.index.Blobs {
		if off := at - int64(b.Part-1)*MinPartSize - b.Offset; off >= 0 && off < b.Size {
			return b, off
		}
	}
	return manifest.Blob{}, 0
}

// TestEveryByteOfTheSmallFiles: no byte of release.note or index.json may
// change.
func TestEveryByteOfTheSmallFiles(t *testing.T) {
	out, trust := demo(t)
	for _, name := range []string{noteFile, indexFile} {
		path := filepath.Join(out, topDir, name)
		for off := range int64(len(read(t, path))) {
			flip(t, path, off)
			_, err := OpenMedia(trust, out)
			if !errors.Is(err, manifest.ErrTampered) && !errors.Is(err, manifest.ErrUntrusted) {
				t.Fatalf("%s byte %d: got %v, want ErrTampered or ErrUntrusted", name, off, err)
			}
			flip(t, path, off)
		}
	}
	if _, err := OpenMedia(trust, out); err != nil {
		t.Error(err)
	}
}

// TestWrongFiles: what is missing, cut off, grown, foreign or too much.
func TestWrongFiles(t *testing.T) {
	out, trust := demo(t)
	other, _ := demo(t) // the same release, signed by somebody else
	part2 := filepath.Join(topDir, partsDir, "part-0002")
	incomplete := []string{"part missing", "part cut off", "part is a link", "no note", "note empty", "no index", "index cut off"}
	for name, c := range map[string]struct {
		change func(dir string) error
		want   string
	}{
		"index cut off":  {func(d string) error { return os.Truncate(filepath.Join(d, topDir, indexFile), 9) }, "index.json: got 9 bytes"},
		"part missing":   {func(d string) error { return os.Remove(filepath.Join(d, part2)) }, "part-0002 of 1048576 bytes is missing"},
		"part cut off":   {func(d string) error { return os.Truncate(filepath.Join(d, part2), 1000) }, "got 1000 bytes, want 1048576"},
		"part grown":     {func(d string) error { return os.Truncate(filepath.Join(d, part2), 1048577) }, "got 1048577 bytes, want 1048576"},
		"part is a link": {func(d string) error { return relink(filepath.Join(d, part2)) }, "part-0002 of 1048576 bytes is missing"},
		"note is a link": {func(d string) error { return relink(filepath.Join(d, topDir, noteFile)) }, "is a symbolic link, want a regular file"},
		"no note":        {func(d string) error { return os.Remove(filepath.Join(d, topDir, noteFile)) }, "incomplete"},
		"no index":       {func(d string) error { return os.Remove(filepath.Join(d, topDir, indexFile)) }, "no clawbox/index.json"},
		"note cut off":   {func(d string) error { return os.Truncate(filepath.Join(d, topDir, noteFile), 500) }, "release.note"},
		"note empty":     {func(d string) error { return os.Truncate(filepath.Join(d, topDir, noteFile), 0) }, "release.note"},
		"note huge":      {func(d string) error { return os.Truncate(filepath.Join(d, topDir, noteFile), 1<<40) }, "want at most"},
		"index huge":     {func(d string) error { return os.Truncate(filepath.Join(d, topDir, indexFile), 1<<40) }, "want at most"},
		"no folder":      {func(d string) error { return os.RemoveAll(filepath.Join(d, topDir)) }, "is the stick mounted"},
		"other's note": {func(d string) error {
			return os.WriteFile(filepath.Join(d, topDir, noteFile), read(t, filepath.Join(other, topDir, noteFile)), 0o644)
		}, "signed by acme+"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			copyTree(t, out, dir)
			if err := c.change(dir); err != nil {
				t.Fatal(err)
			}
			_, err := OpenMedia(trust, dir)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if got := errors.Is(err, manifest.ErrIncomplete); got != slices.Contains(incomplete, name) {
				t.Errorf("%v: is it ErrIncomplete? %v", err, got)
			}
		})
	}
}

func relink(path string) error {
	return errors.Join(os.Rename(path, path+".real"), os.Symlink(path+".real", path))
}

func TestStrangers(t *testing.T) {
	out, trust := demo(t)
	for _, name := range []string{"install.sh", "parts/part-0099", "parts/.hidden", "sub/x", "parts/sub/x"} {
		dir := t.TempDir()
		copyTree(t, out, dir)
		write(t, filepath.Join(dir, "holiday.jpg"), nil) // beside clawbox/: not our business
		m, err := OpenMedia(trust, dir)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, topDir, name), []byte("x"))
		_, oerr := OpenMedia(trust, dir)
		for _, err := range []error{oerr, m.Verify(t.Context(), nil)} {
			if first := strings.TrimSuffix(name, "/x"); !errors.Is(err, manifest.ErrTampered) || !strings.Contains(err.Error(), first) {
				t.Errorf("%s: got %v", name, err)
			}
			if strings.Contains(fmt.Sprint(err), "holiday") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// TestOtherReleasesPart: a part of the right size from another release.
func TestOtherReleasesPart(t *testing.T) {
	out, trust := demo(t)
	m, err := OpenMedia(trust, out)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(out, topDir, partsDir, "part-0003"), noise(99, MinPartSize))
	err = m.Verify(t.Context(), nil)
	var te *manifest.TamperedError
	if !errors.As(err, &te) || !strings.Contains(err.Error(), "tiny") {
		t.Errorf("got %v, want damage of item tiny", err)
	}
}

func TestTrust(t *testing.T) {
	out, trust := demo(t)
	_, stranger := newSigner(t, "acme")
	for name, tr := range map[string]manifest.Trust{"stranger": stranger, "nobody": {}} {
		if _, err := OpenMedia(tr, out); !errors.Is(err, manifest.ErrUntrusted) {
			t.Errorf("%s: got %v, want ErrUntrusted", name, err)
		}
	}
	m, err := OpenMedia(trust, out)
	if err != nil {
		t.Fatal(err)
	}
	if err := manifest.CheckSequence(4, m.Release().Sequence); !errors.Is(err, manifest.ErrRollback) {
		t.Errorf("got %v, want ErrRollback", err)
	}
}

// sticks spreads the parts of a bundle over n directories, round-robin; the
// small files lie on the last one only.
func sticks(t *testing.T, out string, n int) (dirs []string) {
	t.Helper()
	for range n {
		d := t.TempDir()
		write(t, filepath.Join(d, topDir, partsDir, "x"), nil)
		os.Remove(filepath.Join(d, topDir, partsDir, "x"))
		dirs = append(dirs, d)
	}
	es, err := os.ReadDir(filepath.Join(out, topDir, partsDir))
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range es {
		write(t, filepath.Join(dirs[i%n], topDir, partsDir, e.Name()), read(t, filepath.Join(out, topDir, partsDir, e.Name())))
	}
	for _, f := range []string{noteFile, indexFile} {
		write(t, filepath.Join(dirs[n-1], topDir, f), read(t, filepath.Join(out, topDir, f)))
	}
	return dirs
}

func TestThreeSticks(t *testing.T) {
	out, trust := demo(t)
	dirs := sticks(t, out, 3)
	for range 3 {
		dirs = append(dirs[1:], dirs[0]) // any order
		m, err := OpenMedia(trust, dirs...)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Verify(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		s := newStore(t)
		if err := m.Load(t.Context(), s, nil); err != nil {
			t.Fatal(err)
		}
		sound(t, s, 8)
	}
	_, err := OpenMedia(trust, dirs[1], dirs[2])
	if err == nil || !strings.Contains(err.Error(), "is missing") && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("two of three sticks: %v", err)
	}
	second, _ := demo(t)
	if _, err := OpenMedia(trust, out, second); err == nil || !strings.Contains(err.Error(), "different releases") {
		t.Errorf("sticks of two releases: %v", err)
	}
}

// TestReadOnlyMedia: nothing is written to media, not even a time stamp that
// would need it.
func TestReadOnlyMedia(t *testing.T) {
	out, trust := demo(t)
	mnt := t.TempDir()
	if err := syscall.Mount(out, mnt, "", syscall.MS_BIND, ""); err != nil {
		t.Skipf("bind mount: %v", err)
	}
	defer syscall.Unmount(mnt, syscall.MNT_DETACH)
	if err := syscall.Mount("", mnt, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(mnt, "x"), nil, 0o644); !errors.Is(err, syscall.EROFS) {
		t.Fatalf("the mount is not read-only: %v", err)
	}
	m, err := OpenMedia(trust, mnt)
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	if err := errors.Join(m.Verify(t.Context(), nil), m.Load(t.Context(), s, nil)); err != nil {
		t.Fatal(err)
	}
	sound(t, s, 8)
}

// TestLoadGoesOn: a load that was cut off keeps its whole blobs, and the next
// one reads the others only.
func TestLoadGoesOn(t *testing.T) {
	out, trust := demo(t)
	m, err := OpenMedia(trust, out)
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := m.Load(ctx, s, &stopper{after: 1 << 20, stop: cancel}); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want context.Canceled", err)
	}
	sound(t, s, 0)
	left, err := m.Missing(s)
	if err != nil || left == 0 || left >= m.release.Size() {
		t.Errorf("%d of %d bytes are missing, %v; want some", left, m.release.Size(), err)
	}
	c := &counter{}
	if err := m.Load(t.Context(), s, c); err != nil || c.n != left {
		t.Errorf("second load: %d bytes, %v; want %d", c.n, err, left)
	}
	sound(t, s, 8)
}

// stopper cancels after some bytes.
type stopper struct {
	counter
	after int64
	stop  func()
}

func (s *stopper) Start(string, int64) Task { return s }

func (s *stopper) Add(n int64) {
	if s.n += n; s.n > s.after {
		s.stop()
	}
}

// TestUnreadablePart: an I/O error is damage with a place, not a crash.
func TestUnreadablePart(t *testing.T) {
	out, trust := demo(t)
	m, err := OpenMedia(trust, out)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(m.parts[3]); err != nil { // the stick is pulled out
		t.Fatal(err)
	}
	m.pause = impatient
	s := newStore(t)
	for name, err := range map[string]error{"Verify": m.Verify(t.Context(), nil), "Load": m.Load(t.Context(), s, nil)} {
		var te *manifest.TamperedError
		if !errors.As(err, &te) || te.Part != 4 {
			t.Errorf("%s: got %v, want damage in part 4", name, err)
		}
	}
	sound(t, s, 0)
}

// impatient tries twice without waiting.
func impatient(try int) time.Duration {
	if try > 0 {
		return -1
	}
	return 0
}

// TestLoadNoSpace: a full disk is met before the first byte.
func TestLoadNoSpace(t *testing.T) {
	out, trust := demo(t)
	m, err := OpenMedia(trust, out)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("mount a small tmpfs: %v", err)
	}
	defer syscall.Unmount(dir, 0)
	s := newStoreAt(t, dir)
	if err := m.Load(t.Context(), s, nil); err == nil || !strings.Contains(err.Error(), "free") {
		t.Errorf("got %v, want too little space", err)
	}
	sound(t, s, 0)
}

func TestVerifyReportsMany(t *testing.T) {
	out, trust := demo(t)
	m, err := OpenMedia(trust, out)
	if err != nil {
		t.Fatal(err)
	}
	last := m.release.Parts[len(m.release.Parts)-1]
	flip(t, filepath.Join(out, topDir, partsDir, "part-0001"), 0)
	flip(t, filepath.Join(out, topDir, partsDir, last.Name), last.Size-1)
	write(t, filepath.Join(out, topDir, "evil"), nil)
	err = m.Verify(t.Context(), nil)
	for _, want := range []string{"part-0001 at offset 0", "item clawbox", "item tiny", "evil"} {
		if !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%q is not in the report:\n%v", want, err)
		}
	}
}

// TestManyStrangers: a stick with many names beside what was signed costs no more
// than one with few, and their names can't pass for words of ours.
func TestManyStrangers(t *testing.T) {
	out, trust := demo(t)
	dir := filepath.Join(out, topDir, partsDir)
	for i := range 20_000 {
		if err := os.Symlink("x", filepath.Join(dir, fmt.Sprintf("\x1b[8m\nall is well %d", i))); err != nil {
			t.Fatal(err)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := OpenMedia(trust, out)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, manifest.ErrTampered) || strings.Contains(err.Error(), "\x1b") || strings.Contains(err.Error(), "\nall is well") {
		t.Errorf("got %q", err)
	}
	if n := strings.Count(err.Error(), "not named by the release"); n != maxDamage {
		t.Errorf("%d are named, want %d", n, maxDamage)
	}
	if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 1 {
		t.Errorf("%d MiB were allocated, want 1 at most", n)
	}
}

// TestFullReport: what can't be reported any more is not rescued: each rescue may
// read all parts many times.
func TestFullReport(t *testing.T) {
	out, trust := demo(t)
	m, err := OpenMedia(trust, out)
	if err != nil {
		t.Fatal(err)
	}
	m.open = func(p string) (mediaFile, int64, error) {
		t.Errorf("%s was opened", p)
		return nil, 0, fs.ErrNotExist
	}
	b := m.index.Blobs[0]
	first := &manifest.TamperedError{What: "x"}
	for _, v := range []*verifier{{errs: make([]error, maxDamage)}, {errs: make([]error, 1), warned: make([]error, maxDamage-1)}} {
		if _, err := (mediaOnly{m.reader(nil), v}).rescue(t.Context(), b, 0, make([]byte, b.Size), first); err != first {
			t.Errorf("got %v, want %v", err, first)
		}
	}
}
