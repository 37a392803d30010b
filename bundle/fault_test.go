package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
)

// init is the process that TestKilledLoad kills, at a chunk of its load.
func init() {
	dir := os.Getenv("BUNDLE_TEST_LOAD")
	if dir == "" {
		return
	}
	n, err := strconv.Atoi(os.Getenv("BUNDLE_TEST_CHUNK"))
	if err != nil {
		panic(err)
	}
	trust, err := manifest.LoadTrust(filepath.Join(dir, "trust.pub"))
	if err != nil {
		panic(err)
	}
	m, err := OpenMedia(trust, filepath.Join(dir, "out"))
	if err != nil {
		panic(err)
	}
	s, err := content.Open(filepath.Join(dir, "store"))
	if err != nil {
		panic(err)
	}
	if err := m.Load(context.Background(), s, &stopAt{n: n}); err != nil {
		panic(err)
	}
	os.Exit(0)
}

// stopAt kills its process at the n-th chunk.
type stopAt struct {
	counter
	n int
}

func (s *stopAt) Start(string, int64) Task { return s }

func (s *stopAt) Add(int64) {
	if s.n--; s.n == 0 {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

// big builds a bundle of one file of n bytes, and another small one.
func big(t *testing.T, n, parity int) *site {
	t.Helper()
	s := newSite(t)
	write(t, filepath.Join(s.dir, "weights.bin"), noise(7, n))
	s.recipe(t, `{name: clawbox, kind: file, source: "file:clawbox.bin", path: bin/clawbox, mode: "0755", redistributable: true}`,
		`{name: weights, kind: file, source: "file:weights.bin", path: share/weights, redistributable: true}`)
	s.opt.PartSize, s.opt.Parity = 5<<20, parity
	s.mustBuild(t)
	return s
}

func (s *site) media(t *testing.T) *Media {
	t.Helper()
	m, err := OpenMedia(s.trust, s.opt.Out)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestEachChunk: one flipped bit in each chunk is found, and the chunk is
// named; with parity it is rebuilt.
func TestEachChunk(t *testing.T) {
	for _, parity := range []int{0, 1} {
		s := big(t, 9<<20+5, parity)
		m := s.media(t)
		n := 0
		for _, b := range m.index.Blobs {
			for i := range b.Len() {
				src := b.Source(i)
				ss := spans(m.release, src)
				at := ss[len(ss)-1] // the later part, if it lies in two
				path := m.parts[at.part-1]
				flip(t, path, at.offset+at.n/2)
				s.checkChunk(t, b, i, ss[0], parity > 0)
				flip(t, path, at.offset+at.n/2)
				n++
			}
		}
		if n < 7 {
			t.Errorf("%d chunks only", n)
		}
	}
}

func (s *site) checkChunk(t *testing.T, b manifest.Blob, i int, at span, rebuilt bool) {
	t.Helper()
	m := s.media(t)
	named := func(err error) bool {
		var te *manifest.TamperedError
		return errors.As(err, &te) && te.Part == at.part && te.Offset == at.offset && strings.Contains(te.What, b.Digest.String())
	}
	if err := m.Verify(t.Context(), nil); !named(err) {
		t.Errorf("chunk %d of %s: Verify = %v, want it named", i, b.Digest, err)
	}
	var warned []error
	st := newStore(t)
	err := m.LoadWith(t.Context(), st, LoadOptions{Warn: func(err error) { warned = append(warned, err) }})
	if !rebuilt {
		if !named(err) {
			t.Errorf("chunk %d of %s: Load = %v, want it named", i, b.Digest, err)
		}
		sound(t, st, 0)
		return
	}
	if err != nil || len(warned) != 1 || !named(warned[0]) || !strings.Contains(warned[0].Error(), "rebuilt from parity") {
		t.Errorf("chunk %d of %s: Load = %v, told %v", i, b.Digest, err, warned)
	}
	sound(t, st, 4)
}

// sick is a device with read errors: each read of one of its bad places fails
// so many times.
type sick struct {
	mediaFile
	path string
	mu   *sync.Mutex
	bad  map[int64]int // offset in the first part: failures left
	n    *int64        // bytes that were read
}

func (s *sick) ReadAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at, left := range s.bad {
		if strings.HasSuffix(s.path, "part-0001") && off <= at && at < off+int64(len(p)) && left != 0 {
			s.bad[at]--
			return 0, &os.PathError{Op: "read", Path: s.path, Err: syscall.EIO}
		}
	}
	*s.n += int64(len(p))
	return s.mediaFile.ReadAt(p, off)
}

// sicken makes m read from a device with read errors, and counts its bytes.
func sicken(m *Media, bad map[int64]int) *int64 {
	var mu sync.Mutex
	n := new(int64)
	m.open = func(path string) (mediaFile, int64, error) {
		f, size, err := openPart(path)
		return &sick{f, path, &mu, bad, n}, size, err
	}
	m.pause = func(try int) time.Duration {
		if try < 3 {
			return time.Millisecond
		}
		return -1
	}
	return n
}

// TestReadErrors: a device that answers with EIO and then recovers costs a
// warning; one that doesn't is an error with a place, and what was read before
// it stays. Without errors each byte is read once.
func TestReadErrors(t *testing.T) {
	s := big(t, 13<<20, 0)
	m := s.media(t)
	n := sicken(m, nil)
	must(t, m.Load(t.Context(), newStore(t), nil))
	if want := m.release.Size() - between(t, m); *n != want {
		t.Errorf("read %d bytes of media, want %d", *n, want)
	}

	m = s.media(t)
	sicken(m, map[int64]int{1000: 2, 5 << 20 / 2: 3})
	var warned []error
	st := newStore(t)
	must(t, m.LoadWith(t.Context(), st, LoadOptions{Warn: func(err error) { warned = append(warned, err) }}))
	if len(warned) == 0 || !strings.Contains(warned[0].Error(), "input/output error; it could be read") {
		t.Errorf("told %v", warned)
	}
	sound(t, st, 4)

	m = s.media(t)
	sicken(m, map[int64]int{5<<20 - 100: -1})
	st = newStore(t)
	err := m.Load(t.Context(), st, nil)
	var te *manifest.TamperedError
	if !errors.As(err, &te) || te.Part != 1 || !strings.Contains(err.Error(), "input/output error") || !strings.Contains(err.Error(), "copy ") {
		t.Errorf("got %v, want a place in part 1", err)
	}
	sound(t, st, 0)
	left, err := m.Missing(st)
	if must(t, err); left > m.release.Size()-300_000 {
		t.Errorf("%d of %d bytes are missing: nothing was kept", left, m.release.Size())
	}
	c := &counter{}
	if err := s.media(t).Load(t.Context(), st, c); err != nil || c.n != left {
		t.Errorf("second load: %d bytes, %v; want %d", c.n, err, left)
	}
	sound(t, st, 4)
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// TestRealDevice: a block device whose medium is gone gives EIO; when it is
// back, the load goes on by itself.
func TestRealDevice(t *testing.T) {
	s := big(t, 13<<20, 0)
	img, mnt := filepath.Join(s.dir, "stick.img"), t.TempDir()
	for _, c := range [][]string{{"truncate", "-s", "32M", img}, {"mkfs.ext4", "-q", "-d", s.opt.Out, img}, {"mount", "-o", "loop,ro,noload", img, mnt}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%s: %v: %s", strings.Join(c, " "), err, out)
		}
	}
	defer exec.Command("umount", "-l", mnt).Run()
	m, err := OpenMedia(s.trust, mnt)
	must(t, err)
	whole := read(t, img)
	must(t, os.Truncate(img, 1<<20)) // everything behind the first MiB is gone
	back := make(chan error, 1)
	m.pause = func(try int) time.Duration {
		if try == 0 { // it was read, and failed: now it comes back
			f, err := os.OpenFile(img, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt(whole[1<<20:], 1<<20)
				err = errors.Join(err, f.Close())
			}
			back <- err
		}
		if try < 200 {
			return 50 * time.Millisecond
		}
		return -1
	}
	var warned []error
	st := newStore(t)
	if err := m.LoadWith(t.Context(), st, LoadOptions{Warn: func(err error) { warned = append(warned, err) }}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-back:
		must(t, err)
	default:
		t.Fatal("the load never met the missing medium")
	}
	if len(warned) == 0 || !strings.Contains(warned[0].Error(), "input/output error") {
		t.Errorf("told %v, want an input/output error", warned)
	}
	sound(t, st, 4)
}

// filler takes the room away after the first bytes.
type filler struct {
	counter
	fill func()
	once sync.Once
}

func (f *filler) Start(string, int64) Task { return f }
func (f *filler) Add(n int64)              { f.counter.Add(n); f.once.Do(f.fill) }

// TestFullAtHalf: somebody else fills the disk in the middle. The error says
// what is needed; when there is room again, the load goes on.
func TestFullAtHalf(t *testing.T) {
	s := big(t, 13<<20, 0)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Skipf("mount a small tmpfs: %v", err)
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	st := newStoreAt(t, filepath.Join(dir, "store"))
	ballast := filepath.Join(dir, "ballast")
	m := s.media(t)
	err := m.Load(t.Context(), st, &filler{fill: func() { os.WriteFile(ballast, make([]byte, 8<<20), 0o600) }})
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "still needs 13.6 MB") {
		t.Fatalf("got %v, want what is needed", err)
	}
	sound(t, st, 0)
	left, err := m.Missing(st)
	must(t, err, os.Remove(ballast))
	c := &counter{}
	if err := m.Load(t.Context(), st, c); err != nil || c.n != left || left == m.release.Size() {
		t.Errorf("second load: %d bytes, %v; want %d", c.n, err, left)
	}
	sound(t, st, 4)
}

// TestKilledLoad: SIGKILL at each chunk; the next load goes on where the
// journal says, and the store is right.
func TestKilledLoad(t *testing.T) {
	s := big(t, 5<<20+1, 0)
	vkey, err := vkeyOf(s)
	must(t, err)
	write(t, filepath.Join(s.dir, "trust.pub"), []byte(vkey+"\n"))
	must(t, os.Chmod(filepath.Join(s.dir, "trust.pub"), 0o600))
	for n := 1; ; n++ {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "BUNDLE_TEST_LOAD="+s.dir, fmt.Sprint("BUNDLE_TEST_CHUNK=", n))
		out, err := cmd.CombinedOutput()
		st := newStoreAt(t, filepath.Join(s.dir, "store"))
		if err == nil {
			if n < 7 {
				t.Errorf("only %d chunks", n)
			}
			sound(t, st, 4)
			return
		}
		if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
			t.Fatalf("chunk %d: %v\n%s", n, err, out)
		}
		sound(t, st, 0)
		must(t, s.media(t).Load(t.Context(), st, nil))
		sound(t, st, 4)
		must(t, os.RemoveAll(filepath.Join(s.dir, "store")))
	}
}

func vkeyOf(s *site) (string, error) {
	note, err := os.ReadFile(filepath.Join(s.opt.Out, topDir, noteFile))
	if err != nil {
		return "", err
	}
	r, _, err := manifest.Unverified(note)
	if err != nil {
		return "", err
	}
	return r.Roles.Release.Keys[0], nil
}

// TestTwoLoads: the second load of one store refuses, naming the first, or
// waits for it.
func TestTwoLoads(t *testing.T) {
	s := big(t, 9<<20, 0)
	st := newStore(t)
	first, second := s.media(t), s.media(t)
	var refused, waited error
	done := make(chan struct{})
	err := first.Load(t.Context(), st, &filler{fill: func() {
		refused = second.Load(t.Context(), st, nil)
		told := make(chan content.Holder)
		go func() {
			defer close(done)
			waited = second.LoadWith(t.Context(), st, LoadOptions{Waiting: func(h content.Holder) { told <- h }})
		}()
		if h := <-told; h.PID != os.Getpid() {
			refused = errors.Join(refused, fmt.Errorf("waits for %s", h))
		}
	}})
	<-done
	must(t, err, waited)
	var busy *content.BusyError
	if !errors.As(refused, &busy) || !strings.Contains(refused.Error(), fmt.Sprintf("process %d", os.Getpid())) || !strings.Contains(refused.Error(), "try again") {
		t.Errorf("got %v, want who has the store", refused)
	}
	sound(t, st, 4)
}

// TestReady: an item is announced when all of it is there and before the load
// is over; the listener's error ends the load.
func TestReady(t *testing.T) {
	s := newSite(t)
	s.mustBuild(t)
	st := newStore(t)
	var names []string
	var left int64
	m := s.media(t)
	c := &counter{}
	must(t, m.LoadWith(t.Context(), st, LoadOptions{Progress: c, Ready: func(_ context.Context, it manifest.Item) error {
		names = append(names, it.Name)
		if it.Name == "app" {
			n, err := m.Missing(st)
			left = n
			return errors.Join(err, complete(&pool{store: st}, it))
		}
		return complete(&pool{store: st}, it)
	}}))
	want := []string{"clawbox", "rules", "app", "app.cyclonedx", "app.spdx", "sbom.cyclonedx", "sbom.spdx", "tiny"}
	if !slices.Equal(names, want) {
		t.Errorf("announced %v, want %v", names, want)
	}
	t.Logf("%d bytes were missing when the image was complete", left)
	names = nil
	must(t, m.LoadWith(t.Context(), st, LoadOptions{Ready: func(_ context.Context, it manifest.Item) error {
		names = append(names, it.Name)
		return nil
	}}))
	if slices.Sort(names); len(names) != 8 {
		t.Errorf("announced of what was there already: %v", names)
	}
	broken := errors.New("import failed")
	st = newStore(t)
	err := m.LoadWith(t.Context(), st, LoadOptions{Ready: func(context.Context, manifest.Item) error { return broken }})
	if !errors.Is(err, broken) {
		t.Errorf("got %v, want the listener's error", err)
	}
	sound(t, st, 0)
}

// TestReadyMany: what a load with a listener looks at after a blob does not grow
// with the items that wait for others.
func TestReadyMany(t *testing.T) {
	st := newStore(t)
	m := &Media{}
	want := func(i int) []byte { return fmt.Appendf(nil, `{"manifests":[],"annotations":{"n":"%d"}}`, i) }
	for i := range 4000 {
		h, n, _ := v1.SHA256(bytes.NewReader(want(i)))
		m.release.Items = append(m.release.Items, manifest.Item{Name: fmt.Sprint(i), Descriptor: v1.Descriptor{MediaType: types.OCIImageIndex, Digest: h, Size: n}})
	}
	var came []string
	h := newHerald(t.Context(), m, st, func(_ context.Context, it manifest.Item) error { came = append(came, it.Name); return nil }, func(error) {})
	must(t, h.begin())
	begin := time.Now()
	for range 500 {
		must(t, h.next(v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}))
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("500 blobs that nobody waits for took %v", d)
	}
	d := m.release.Items[7].Descriptor
	must(t, st.Put(t.Context(), d.Digest, d.Size, bytes.NewReader(want(7))))
	must(t, h.next(d.Digest))
	if must(t, h.end(nil)); !slices.Equal(came, []string{"7"}) || len(h.waits) != 3999 {
		t.Errorf("%q came, %d wait", came, len(h.waits))
	}
}

// TestNames: a load names all items or none; beside an installed release it moves
// no name, and what it brought stays all the same.
func TestNames(t *testing.T) {
	out, trust := demo(t)
	m, err := OpenMedia(trust, out)
	must(t, err)
	st := newStore(t)
	other := v1.Descriptor{Size: 2}
	other.Digest, _, _ = v1.SHA256(strings.NewReader("{}"))
	must(t, st.Put(t.Context(), other.Digest, 2, strings.NewReader("{}")))
	must(t, st.Tag("app:0.1.0", other))
	must(t, m.LoadWith(t.Context(), st, LoadOptions{Beside: true}))
	if d, err := st.Resolve("app:0.1.0"); err != nil || d.Digest != other.Digest {
		t.Errorf("app:0.1.0 leads to %s, %v; want %s", d.Digest, err, other.Digest)
	}
	r, err := st.GC(t.Context(), content.GCOptions{})
	if n, merr := m.Missing(st); n != 0 || r.Deleted != 0 {
		t.Errorf("collected %+v, %v; %d bytes are missing, %v", r, err, n, merr)
	}
	sound(t, st, 1+len(m.Release().Items))
	must(t, m.LoadWith(t.Context(), st, LoadOptions{Beside: true}))

	filler := other
	filler.Annotations = map[string]string{"x": strings.Repeat("x", 16<<20-5000)}
	must(t, st.Tag("filler:1", filler))
	if err := m.Load(t.Context(), st, nil); err == nil || !strings.Contains(err.Error(), "index.json") {
		t.Errorf("loaded into a full index: %v", err)
	}
	sound(t, st, 2+len(m.Release().Items))
	must(t, st.Untag("filler:1"))
	must(t, m.Load(t.Context(), st, nil))
	sound(t, st, 2*len(m.Release().Items)-2) // of two SBOMs the names are pins themselves
	if d, err := st.Resolve("app:0.1.0"); err != nil || d.Digest == other.Digest {
		t.Errorf("app:0.1.0 leads to %s, %v", d.Digest, err)
	}
}

// TestNoClock: what is old is said by the sequence alone. A release from 1970
// and one from 2100 are read alike, an older sequence is refused whatever its
// date, and nothing on the way from the media into the store asks for the time.
func TestNoClock(t *testing.T) {
	for _, year := range []string{"1970", "2100"} {
		s := newSite(t)
		path := s.opt.Recipe
		write(t, path, bytes.Replace(read(t, path), []byte("2025-01-02"), []byte(year+"-01-02"), 1))
		s.mustBuild(t)
		m := s.media(t)
		if got := m.Release().Created.Year(); strconv.Itoa(got) != year {
			t.Fatalf("created in %d, want %s", got, year)
		}
		must(t, m.Load(t.Context(), newStore(t), nil), manifest.CheckSequence(3, m.Release().Sequence))
		if err := manifest.CheckSequence(4, m.Release().Sequence); !errors.Is(err, manifest.ErrRollback) {
			t.Errorf("%s: got %v, want ErrRollback", year, err)
		}
	}
	files := []string{"media.go", "reader.go", "mend.go", "stream.go", "load.go", "herald.go", "verify.go"}
	more, err := filepath.Glob("manifest/*.go")
	must(t, err)
	for _, name := range append(files, more...) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		must(t, err)
		ast.Inspect(f, func(n ast.Node) bool {
			if x, ok := n.(*ast.SelectorExpr); ok {
				if p, ok := x.X.(*ast.Ident); ok && p.Name == "time" && slices.Contains([]string{"Now", "Since", "Until"}, x.Sel.Name) {
					t.Errorf("%s calls time.%s", name, x.Sel.Name)
				}
			}
			return true
		})
	}
}

// TestTwoDamaged: parity rebuilds a chunk also when another part is damaged at
// the same place, as long as there are parity parts enough.
func TestTwoDamaged(t *testing.T) {
	s := big(t, 23<<20, 2)
	m := s.media(t)
	for i, p := range m.parts[:2] {
		scratch(t, p, int64(i))
	}
	st := newStore(t)
	must(t, s.media(t).Load(t.Context(), st, nil))
	sound(t, st, 4)
	scratch(t, m.parts[2], 2)
	if err := s.media(t).Load(t.Context(), newStore(t), nil); !errors.Is(err, manifest.ErrTampered) {
		t.Errorf("three damaged, two parity parts: %v", err)
	}
}

// scratch damages a part at a place that is the same for all, each in its own
// way: equal errors would cancel each other out in the code, and be repaired.
func scratch(t *testing.T, path string, seed int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt(noise(100+seed, 64), 3<<20)
	must(t, err, f.Close())
}

// What a hostile stick has in the place of a file isn't opened at all: a device
// may do something then. A pipe's writer shows it: it waits for a reader.
func TestNothingElseIsOpened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "release.note")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	opened := make(chan error, 1)
	go func() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		opened <- errors.Join(err, f.Close())
	}()
	for range 20 { // the writer may come late
		if _, _, err := openFile(path); err == nil {
			t.Error("a pipe was opened")
		}
		time.Sleep(10 * time.Millisecond)
	}
	select {
	case err := <-opened:
		t.Fatalf("its other end was opened: %v", err)
	default:
	}
	r, err := os.Open(path) // lets the writer go
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := <-opened; err != nil {
		t.Error(err)
	}
}
