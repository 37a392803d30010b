package content

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("CONTENT_TEST_WRITER"); dir != "" {
		slowWriter(dir)
	}
	if dir := os.Getenv("CONTENT_TEST_KILL"); dir != "" {
		killWriter(dir, os.Getenv("CONTENT_TEST_STEP"))
	}
	if dir := os.Getenv("CONTENT_TEST_HOLDER"); dir != "" {
		holdStore(dir)
	}
	os.Exit(m.Run())
}

// slowWriter starts a blob, says so, and never ends it: the process that the
// kill test kills.
func slowWriter(dir string) {
	s, err := Open(dir)
	if err != nil {
		panic(err)
	}
	w, err := s.Create(sum([]byte("never")), 8<<20)
	if err != nil {
		panic(err)
	}
	if _, err := w.Write(make([]byte, 4<<20)); err != nil {
		panic(err)
	}
	fmt.Println("half")
	time.Sleep(time.Minute)
	os.Exit(1)
}

func sum(b []byte) v1.Hash {
	s := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(s[:])}
}

func open(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t *testing.T, s *Store, b []byte) v1.Hash {
	t.Helper()
	if err := s.Put(t.Context(), sum(b), int64(len(b)), bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	return sum(b)
}

// clean fails the test when tmp/ holds anything.
func clean(t *testing.T, s *Store) {
	t.Helper()
	es, err := os.ReadDir(s.path(tmpDir))
	if err != nil || len(es) != 0 {
		t.Errorf("tmp holds %v, %v", es, err)
	}
}

func TestPut(t *testing.T) {
	s := open(t)
	for _, n := range []int{0, 1, 4095, 1 << 20, 3<<20 + 7} {
		b := bytes.Repeat([]byte{byte(n)}, n)
		h := put(t, s, b)
		if got, err := s.Stat(h); err != nil || got != int64(n) {
			t.Errorf("Stat = %d, %v; want %d", got, err, n)
		}
		f, err := s.Open(h)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(f)
		f.Close()
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d bytes: read back %d, %v", n, len(got), err)
		}
		if fi, _ := os.Stat(s.Path(h)); fi.Mode() != 0o444 {
			t.Errorf("mode %v, want 0444", fi.Mode())
		}
	}
	clean(t, s)
}

// TestPutRefuses: content that is not what was promised leaves nothing.
func TestPutRefuses(t *testing.T) {
	s := open(t)
	good := []byte("good bytes")
	broken := errors.New("cable pulled")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx  context.Context
		h    v1.Hash
		size int64
		r    io.Reader
		want error
	}{
		"other content":  {t.Context(), sum(good), 10, strings.NewReader("evil bytes"), ErrMismatch},
		"short":          {t.Context(), sum(good), 10, strings.NewReader("good byte"), ErrMismatch},
		"long":           {t.Context(), sum(good), 10, strings.NewReader("good bytes!"), ErrMismatch},
		"size too large": {t.Context(), sum(good), 11, bytes.NewReader(good), ErrMismatch},
		"size too small": {t.Context(), sum(good), 9, bytes.NewReader(good), ErrMismatch},
		"unknown size":   {t.Context(), sum(good), -1, strings.NewReader("evil"), ErrMismatch},
		"read error":     {t.Context(), sum(good), 10, iotest.ErrReader(broken), broken},
		"half then fail": {t.Context(), sum(good), 10, io.MultiReader(strings.NewReader("good"), iotest.ErrReader(broken)), broken},
		"cancelled":      {ended, sum(good), 10, bytes.NewReader(good), context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			if err := s.Put(c.ctx, c.h, c.size, c.r); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if _, err := s.Stat(c.h); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Stat after a refused Put: %v", err)
			}
			clean(t, s)
		})
	}
}

func TestBadDigests(t *testing.T) {
	s := open(t)
	for _, h := range []v1.Hash{
		{},
		{Algorithm: "sha256", Hex: "../../../etc/passwd"},
		{Algorithm: "..", Hex: strings.Repeat("a", 64)},
		{Algorithm: "sha256", Hex: strings.Repeat("A", 64)},
		{Algorithm: "sha512", Hex: strings.Repeat("a", 128)},
		{Algorithm: "sha256", Hex: strings.Repeat("a", 64) + "\n"},
	} {
		if s.Path(h) != "" {
			t.Errorf("Path(%q) = %q", h, s.Path(h))
		}
		if _, err := s.Stat(h); err == nil {
			t.Errorf("Stat(%q) succeeded", h)
		}
		if _, err := s.Open(h); err == nil {
			t.Errorf("Open(%q) succeeded", h)
		}
		if err := s.Put(t.Context(), h, -1, strings.NewReader("")); err == nil {
			t.Errorf("Put(%q) succeeded", h)
		}
	}
}

// TestPutPresent: a second Put doesn't read its source.
func TestPutPresent(t *testing.T) {
	s := open(t)
	h := put(t, s, []byte("x"))
	if err := s.Put(t.Context(), h, 1, iotest.ErrReader(errors.New("read"))); err != nil {
		t.Error(err)
	}
}

// TestTornBlob: a file of the wrong size, which another tool may have left
// under the final name, is replaced and not taken for present.
func TestTornBlob(t *testing.T) {
	s := open(t)
	b := []byte("whole content")
	if err := os.WriteFile(s.Path(sum(b)), b[:5], 0o644); err != nil {
		t.Fatal(err)
	}
	put(t, s, b)
	if got, err := os.ReadFile(s.Path(sum(b))); err != nil || !bytes.Equal(got, b) {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestWriterLearnsDigest(t *testing.T) {
	s := open(t)
	w, err := s.Create(v1.Hash{}, -1)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"he", "llo"} {
		if _, err := io.WriteString(w, p); err != nil {
			t.Fatal(err)
		}
	}
	if w.Digest() != sum([]byte("hello")) || w.Size() != 5 {
		t.Errorf("got %s, %d", w.Digest(), w.Size())
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := w.Abort(); err != nil {
		t.Errorf("Abort after Commit: %v", err)
	}
	if _, err := s.Stat(sum([]byte("hello"))); err != nil {
		t.Error(err)
	}
	clean(t, s)
}

func TestConcurrentPuts(t *testing.T) {
	s := open(t)
	b := bytes.Repeat([]byte("same"), 1<<18)
	var wg sync.WaitGroup
	errs := make(chan error, 16)
	for range 16 {
		wg.Go(func() {
			other, err := Open(s.Dir()) // sweeps, while the others write
			if err == nil {
				err = other.Put(t.Context(), sum(b), int64(len(b)), iotest.HalfReader(bytes.NewReader(b)))
			}
			errs <- err
		})
	}
	wg.Wait()
	for range 16 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if got, _ := os.ReadFile(s.Path(sum(b))); !bytes.Equal(got, b) {
		t.Error("content differs")
	}
	clean(t, s)
}

// TestKilledWriter: SIGKILL in the middle of a blob leaves no blob, and the
// next Open sweeps what it left, but nothing of a living writer.
func TestKilledWriter(t *testing.T) {
	s := open(t)
	alive, err := s.Create(sum([]byte("alive")), 5)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "CONTENT_TEST_WRITER="+s.Dir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if es, _ := os.ReadDir(s.path(tmpDir)); len(es) != 2 {
		t.Errorf("before the kill tmp holds %v, want two files", es)
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() // "signal: killed"
	if err := os.WriteFile(s.path("."+indexFile+".tmp-123"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.Dir()); err != nil {
		t.Fatal(err)
	}
	if es, _ := os.ReadDir(s.path(tmpDir)); len(es) != 1 {
		t.Errorf("after the sweep tmp holds %v, want the living writer's file", es)
	}
	if _, err := os.Stat(s.path("." + indexFile + ".tmp-123")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("cut-off index write still there: %v", err)
	}
	if _, err := s.Stat(sum([]byte("never"))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("torn blob: %v", err)
	}
	if _, err := alive.Write([]byte("alive")); err != nil {
		t.Error(err)
	}
	if err := alive.Commit(); err != nil {
		t.Error(err)
	}
	clean(t, s)
}

func TestRefs(t *testing.T) {
	s := open(t)
	a, b := put(t, s, []byte("{}")), put(t, s, []byte("[1]"))
	if _, err := s.Resolve("app:1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
	d := v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: a, Size: 2, Annotations: map[string]string{"k": "v"}}
	for _, ref := range []string{"app:1", "app:2"} {
		if err := s.Tag(ref, d); err != nil {
			t.Fatal(err)
		}
	}
	if len(d.Annotations) != 1 {
		t.Error("Tag changed its argument")
	}
	if err := s.Tag("app:1", v1.Descriptor{Digest: b, Size: 3}); err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]v1.Hash{"app:1": b, "app:2": a} {
		if got, err := s.Resolve(ref); err != nil || got.Digest != want {
			t.Errorf("Resolve(%s) = %v, %v; want %v", ref, got.Digest, err, want)
		}
	}
	if err := errors.Join(s.Untag("app:1"), s.Untag("app:1"), s.Untag("")); err != nil {
		t.Error(err)
	}
	if ds, err := s.Refs(); err != nil || len(ds) != 1 {
		t.Errorf("Refs = %v, %v; want one", ds, err)
	}
}

func TestTagRefuses(t *testing.T) {
	s := open(t)
	h := put(t, s, []byte("{}"))
	good := v1.Descriptor{Digest: h, Size: 2}
	for _, ref := range []string{"", " ", "a b", "a\x00", "a\n", "a\u0085b", "a\u200bb", "\xff", strings.Repeat("x", 513)} {
		if err := s.Tag(ref, good); err == nil {
			t.Errorf("Tag(%q) succeeded", ref)
		}
	}
	if err := s.Tag("x", v1.Descriptor{Digest: h, Size: 3}); err == nil {
		t.Error("tagged a descriptor with the wrong size")
	}
	if err := s.Tag("x", v1.Descriptor{Digest: sum([]byte("absent")), Size: 6}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
	if ds, _ := s.Refs(); len(ds) != 0 {
		t.Errorf("refs %v", ds)
	}
}

// TestTagAll: all names or none, and what has two keeps its bytes when the first
// moves.
func TestTagAll(t *testing.T) {
	s := open(t)
	d := func(text string) v1.Descriptor {
		return v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: put(t, s, []byte(text)), Size: int64(len(text))}
	}
	one, two := d("{}"), d("{ }")
	lost := v1.Descriptor{Digest: sum([]byte("absent")), Size: 6}
	for _, bad := range []Name{
		{"b:1", lost},
		{"a b", one},
		{"b:1", v1.Descriptor{Digest: one.Digest, Size: 7}},
		{"b:1", v1.Descriptor{Digest: one.Digest, Size: 2, Annotations: map[string]string{"x": strings.Repeat("x", maxIndex)}}},
	} {
		if err := s.TagAll([]Name{{"a:1", one}, bad}); err == nil {
			t.Errorf("%s was set", bad.Ref)
		}
		if ds, err := s.Refs(); err != nil || len(ds) != 0 {
			t.Fatalf("%d refs, %v", len(ds), err)
		}
	}
	if err := s.TagAll([]Name{{"host:5/a:1", one}, {"b:1", two}, {"host:5/a:1", two}, Pin("host:5/a:1", one), Pin("host:5/a:1", two)}); err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]v1.Descriptor{"host:5/a:1": two, "b:1": two, "host:5/a@" + one.Digest.String(): one} {
		if got, err := s.Resolve(ref); err != nil || got.Digest != want.Digest || (got.Annotations[Pinned] != "") != strings.Contains(ref, "@") {
			t.Errorf("%s: %v, %v", ref, got, err)
		}
	}
	if r, err := s.GC(t.Context(), GCOptions{}); err != nil || r.Kept != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	if err := s.Untag("b:1", "", Pin("host:5/a@sha256:00", one).Ref); err != nil {
		t.Fatal(err)
	}
	if ds, err := s.Refs(); err != nil || len(ds) != 2 {
		t.Errorf("%d refs, %v", len(ds), err)
	}
	if n := Pin(strings.Repeat("x", maxRef), one); CheckRef(n.Ref) != nil {
		t.Errorf("a long name's pin: %v", CheckRef(n.Ref))
	}
	many := make([]Name, 2000)
	for i := range many {
		many[i] = Name{fmt.Sprint("m:", i), one}
	}
	begin := time.Now()
	if err := s.TagAll(many); err != nil || time.Since(begin) > 5*time.Second {
		t.Errorf("2000 names: %v, %v", time.Since(begin), err)
	}
}

func TestConcurrentTags(t *testing.T) {
	s := open(t)
	h := put(t, s, []byte("{}"))
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			other, err := Open(s.Dir())
			if err == nil {
				err = other.Tag(fmt.Sprintf("r:%d", i), v1.Descriptor{Digest: h, Size: 2})
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if ds, err := s.Refs(); err != nil || len(ds) != 20 {
		t.Errorf("%d refs, %v; want 20", len(ds), err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"somebody's directory": {"thesis.txt": "x"},
		"other version":        {layoutFile: `{"imageLayoutVersion":"2.0.0"}`},
		"garbage":              {layoutFile: "\x00"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for n, text := range files {
				if err := os.WriteFile(filepath.Join(dir, n), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := Open(dir); err == nil {
				t.Error("Open succeeded")
			}
			if es, _ := os.ReadDir(dir); len(es) != len(files) {
				t.Errorf("Open left something: %v", es)
			}
		})
	}
}

// TestForeignLayout: a layout that another tool wrote is a store, and a store
// is a layout that the other tool can check.
func TestForeignLayout(t *testing.T) {
	dir := t.TempDir()
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	idx, err := random.Index(10, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	p, err := layout.Write(dir, idx)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	n, err := s.Stat(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Tag("img:1", v1.Descriptor{MediaType: types.DockerManifestSchema2, Digest: d, Size: n}); err != nil {
		t.Fatal(err)
	}
	got, err := layout.Path(dir).Image(d)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := got.Layers()
	if err != nil || len(layers) != 2 {
		t.Fatalf("%d layers, %v; want 2", len(layers), err)
	}
	for _, l := range layers {
		h, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(s.Path(h))
		if err != nil || sum(b) != h {
			t.Errorf("layer %s: %v, content %s", h, err, sum(b))
		}
	}
}

// TestNoSpace: a full disk is met before the first byte, and leaves nothing.
func TestNoSpace(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=3m"); err != nil {
		t.Skipf("mount a small tmpfs: %v", err)
	}
	defer syscall.Unmount(dir, 0)
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4<<20)
	if err := s.Put(t.Context(), sum(b), int64(len(b)), bytes.NewReader(b)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("known size: got %v, want ENOSPC", err)
	}
	if err := s.Put(t.Context(), sum(b), -1, bytes.NewReader(b)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("unknown size: got %v, want ENOSPC", err)
	}
	clean(t, s)
	put(t, s, b[:1<<20])
}

// TestReadOnly: a store on read-only media opens and reads; a Put says why not.
func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=3m"); err != nil {
		t.Skipf("mount a tmpfs: %v", err)
	}
	defer syscall.Unmount(dir, 0)
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	h := put(t, s, []byte("x"))
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stat(h); err != nil {
		t.Error(err)
	}
	if err := s.Put(t.Context(), sum(nil), 0, strings.NewReader("")); !errors.Is(err, syscall.EROFS) {
		t.Errorf("got %v, want EROFS", err)
	}
}
