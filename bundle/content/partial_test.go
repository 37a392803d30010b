package content

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// setPace makes entries often, so that small blobs have several.
func setPace(t testing.TB, n int64) {
	t.Helper()
	old := pace
	pace = n
	t.Cleanup(func() { pace = old })
}

func resume(t *testing.T, s *Store, b []byte) *Partial {
	t.Helper()
	p, err := s.Resume(sum(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func has(t *testing.T, s *Store, b []byte) {
	t.Helper()
	if got, err := os.ReadFile(s.Path(sum(b))); err != nil || !bytes.Equal(got, b) {
		t.Errorf("blob of %d bytes: read back %d, %v", len(b), len(got), err)
	}
}

// empty fails the test when nothing should be under way and something is.
func empty(t *testing.T, s *Store, dirs ...string) {
	t.Helper()
	for _, d := range append(dirs, tmpDir) {
		if es, err := os.ReadDir(s.path(d)); len(es) > 0 {
			t.Errorf("%s holds %v, %v", d, es, err)
		}
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	for i, x := 0, uint32(2463534242); i < n; i++ {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}

func TestResume(t *testing.T) {
	setPace(t, 1000)
	s, b := open(t), noise(10_000)
	for at := 0; at < len(b); {
		p := resume(t, s, b)
		if p.Size() != int64(at) {
			t.Fatalf("resumed at %d, want %d", p.Size(), at)
		}
		if _, err := s.Resume(sum(b), int64(len(b))); !errors.Is(err, ErrBusy) {
			t.Errorf("two writers of one blob: %v, want ErrBusy", err)
		}
		n := min(2777, len(b)-at)
		_, err := p.Write(b[at : at+n])
		must(t, err)
		at += n
		if at == len(b) {
			must(t, p.Commit())
			break
		}
		must(t, p.Close(), p.Close())
		if got := s.Begun(sum(b), int64(len(b))); got != int64(at) {
			t.Errorf("Begun = %d, want %d", got, at)
		}
	}
	has(t, s, b)
	empty(t, s, partialDir)
}

// TestResumeForgets: what was not made safe is written again, and nothing
// of another blob, of garbage or of a cut-off file is believed.
func TestResumeForgets(t *testing.T) {
	b := noise(10_000)
	for name, c := range map[string]struct {
		spoil func(path string) error
		want  int64
	}{
		"as it is":           {func(string) error { return nil }, 5000},
		"bytes behind":       {func(p string) error { return appendTo(p, b) }, 5000},
		"file cut off":       {func(p string) error { return os.Truncate(p, 4999) }, 0},
		"journal lost":       {func(p string) error { return os.Remove(p + journal) }, 0},
		"journal cut off":    {func(p string) error { return os.Truncate(p+journal, slotStep+slotLen-1) }, 0},
		"journal is garbage": {func(p string) error { return os.WriteFile(p+journal, noise(9000), 0o600) }, 0},
		"file lost":          {func(p string) error { return os.Remove(p) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			p := resume(t, s, b)
			_, err := p.Write(b[:5000])
			must(t, err, p.Close(), c.spoil(p.path))
			p = resume(t, s, b)
			if p.Size() != c.want {
				t.Fatalf("resumed at %d, want %d", p.Size(), c.want)
			}
			_, err = p.Write(b[c.want:])
			must(t, err, p.Commit())
			has(t, s, b)
			empty(t, s, partialDir)
		})
	}
}

func appendTo(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

func TestResumeRefuses(t *testing.T) {
	s, b := open(t), noise(300)
	p := resume(t, s, b)
	if _, err := p.Write(make([]byte, 301)); !errors.Is(err, ErrMismatch) {
		t.Errorf("too much: %v", err)
	}
	_, err := p.Write(make([]byte, 300))
	must(t, err)
	if err := p.Commit(); !errors.Is(err, ErrMismatch) {
		t.Errorf("other content: %v", err)
	}
	empty(t, s, partialDir)
	if p = resume(t, s, b); p.Size() != 0 {
		t.Errorf("what was refused is still there: %d bytes", p.Size())
	}
	_, err = p.Write(b[:299])
	must(t, err)
	if err := p.Commit(); !errors.Is(err, ErrMismatch) {
		t.Errorf("short: %v", err)
	}
	if _, err := s.Stat(sum(b)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused blob is there: %v", err)
	}
	for _, h := range []v1.Hash{{}, {Algorithm: "sha256", Hex: "../x"}} {
		if _, err := s.Resume(h, 1); err == nil {
			t.Errorf("Resume(%q) succeeded", h)
		}
	}
	empty(t, s, partialDir)
}

// TestPieces: chunks hashed one by one, from the states between them, add up
// to the digest of the whole.
func TestPieces(t *testing.T) {
	const chunk = 1024
	b := noise(5*chunk + 77)
	var states []State
	at := StartState
	for off := 0; off < 5*chunk; off += chunk {
		c, err := at.Piece(int64(off), b[off:off+chunk])
		must(t, err)
		at, err = c.State()
		must(t, err)
		states = append(states, at)
	}
	// Each chunk by itself, backwards: from a state to the next one.
	for i := 4; i > 0; i-- {
		c, err := states[i-1].Piece(int64(i*chunk), b[i*chunk:(i+1)*chunk])
		must(t, err)
		if got, err := c.State(); err != nil || got != states[i] {
			t.Errorf("chunk %d: state %s, %v; want %s", i, got, err, states[i])
		}
	}
	last, err := states[4].Piece(5*chunk, b[5*chunk:])
	must(t, err)
	if last.Digest() != sum(b) {
		t.Errorf("digest %s, want %s", last.Digest(), sum(b))
	}
	if _, err := last.State(); err == nil {
		t.Error("a piece that ends within a block has a state")
	}
	if _, err := at.Piece(13, nil); err == nil {
		t.Error("a piece may begin within a block")
	}
}

// TestPairs: two pieces at a time are what each is alone, whatever their lengths.
func TestPairs(t *testing.T) {
	b := noise(4096)
	one, err := StartState.Piece(0, b[:1024])
	must(t, err)
	mid, err := one.State()
	must(t, err)
	for _, n := range []int{0, 1, 63, 64, 65, 128, 1000, 1024} {
		for _, m := range []int{0, 64, 77, 3072} {
			x, y := Stretch{StartState, 0, b[:n]}, Stretch{mid, 1024, b[1024 : 1024+m]}
			p, q, err := Pieces(x, y)
			must(t, err)
			for _, c := range []struct {
				got Piece
				of  Stretch
			}{{p, x}, {q, y}} {
				want, err := c.of.From.Piece(c.of.Off, c.of.Data)
				must(t, err)
				if c.got.Digest() != want.Digest() || c.got.off != want.off || c.got.from != want.from || !bytes.Equal(c.got.data, want.data) {
					t.Errorf("%d beside %d bytes: got %s of %d bytes, want %s", n, m, c.got.Digest(), len(c.got.data), want.Digest())
				}
			}
		}
	}
	for _, bad := range [][2]Stretch{{{StartState, 13, nil}, {StartState, 0, nil}}, {{StartState, 0, nil}, {StartState, -64, nil}}} {
		if _, _, err := Pieces(bad[0], bad[1]); err == nil {
			t.Errorf("at %d and %d: got no error", bad[0].Off, bad[1].Off)
		}
	}
}

func TestAppend(t *testing.T) {
	s, b := open(t), noise(3000)
	p := resume(t, s, b)
	one, err := StartState.Piece(0, b[:1024])
	must(t, err, p.Append(one))
	if err := p.Append(one); err == nil {
		t.Error("the same piece twice")
	}
	two, err := StartState.Piece(1024, b[1024:]) // the place is right, the state is not
	must(t, err)
	if err := p.Append(two); err == nil {
		t.Error("a piece from another state")
	}
	if err := p.Append(Piece{}); err == nil {
		t.Error("a piece that nobody hashed")
	}
	must(t, p.Close())
	p = resume(t, s, b)
	at, ok := p.State()
	if p.Size() != 1024 || !ok {
		t.Fatalf("resumed at %d", p.Size())
	}
	two, err = at.Piece(1024, b[1024:])
	must(t, err, p.Append(two), p.Commit())
	has(t, s, b)
	empty(t, s, partialDir)
}

func TestUpload(t *testing.T) {
	s, b := open(t), noise(9000)
	u, err := s.NewUpload()
	must(t, err)
	id := u.ID()
	if _, err := s.Upload(id); !errors.Is(err, ErrBusy) {
		t.Errorf("two requests in one session: %v", err)
	}
	must(t, u.Close())
	for at := 0; at < len(b); at += 3000 {
		if u, err = s.Upload(id); err != nil || u.Size() != int64(at) {
			t.Fatalf("at %d: %v", at, err)
		}
		_, err = u.Write(b[at : at+3000])
		must(t, err)
		if at < 6000 {
			must(t, u.Close())
		}
	}
	if l, err := s.Uploads(); err != nil || len(l) != 1 || l[0].ID != id || l[0].Size != 9000 {
		t.Errorf("sessions %v, %v", l, err)
	}
	must(t, u.Commit(sum(b)))
	has(t, s, b)
	for _, id := range []string{id, "", "../partial/x", "0123"} {
		if _, err := s.Upload(id); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("session %q: %v, want fs.ErrNotExist", id, err)
		}
	}
	if u, err = s.NewUpload(); err != nil {
		t.Fatal(err)
	}
	if err := u.Commit(sum([]byte("something else"))); !errors.Is(err, ErrMismatch) {
		t.Errorf("other content: %v", err)
	}
	empty(t, s, uploadDir, partialDir)
}

func TestDelete(t *testing.T) {
	s := open(t)
	h := put(t, s, []byte("{}"))
	must(t, s.Tag("x", v1.Descriptor{Digest: h, Size: 2}))
	if err := s.Delete(h); !errors.Is(err, ErrReferenced) {
		t.Errorf("got %v, want ErrReferenced", err)
	}
	must(t, s.Untag("x"), s.Delete(h))
	if err := s.Delete(h); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

func TestGC(t *testing.T) {
	s := open(t)
	layer, config, orphan := put(t, s, []byte("layer")), put(t, s, []byte("{ }")), put(t, s, []byte("orphan"))
	man := put(t, s, []byte(`{"config":{"digest":"`+config.String()+`","size":3},"layers":[{"digest":"`+layer.String()+`","size":5}]}`))
	index := put(t, s, []byte(`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"`+man.String()+`","size":1}]}`))
	rooted := put(t, s, []byte("rooted"))
	ni, err := s.Stat(index)
	must(t, err, s.Tag("app", v1.Descriptor{MediaType: types.OCIImageIndex, Digest: index, Size: ni}))
	p := resume(t, s, []byte("begun"))
	_, err = p.Write([]byte("be"))
	must(t, err, p.Close())
	busy := resume(t, s, []byte("under way"))
	u, err := s.NewUpload()
	must(t, err, u.Close())
	roots := []v1.Descriptor{{Digest: rooted, Size: 6}}

	for _, o := range []GCOptions{{Roots: roots, Grace: time.Hour}, {Roots: roots, DryRun: true}} {
		if _, err := s.GC(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Stat(orphan); err != nil {
			t.Errorf("%+v: deleted: %v", o, err)
		}
	}
	r, err := s.GC(t.Context(), GCOptions{Roots: roots})
	if err != nil || r.Deleted != 1 || r.Kept != 5 || r.Partial != 2 || r.Bytes != 8 {
		t.Errorf("%+v, %v", r, err)
	}
	for _, h := range []v1.Hash{layer, config, man, index, rooted} {
		if _, err := s.Stat(h); err != nil {
			t.Error(err)
		}
	}
	_, err = busy.Write([]byte("under way"))
	must(t, err, busy.Commit())
	empty(t, s, partialDir, uploadDir)

	// What isn't what its digest promises may have needed anything.
	bad := put(t, s, []byte(`{"layers":[]}`))
	must(t, s.Tag("bad", v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: bad, Size: 13}), s.Untag("app"),
		os.Chmod(s.Path(bad), 0o644), os.WriteFile(s.Path(bad), []byte(`{"layers" []}`), 0o644))
	if _, err := s.GC(t.Context(), GCOptions{}); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("collected beside a damaged manifest: %v", err)
	}
	if _, err := s.Stat(man); err != nil {
		t.Error(err)
	}
}

// TestGCMarks: what is a layer to one is a manifest to the other, in either
// order, and what is no manifest stops nobody, whatever type it was given.
func TestGCMarks(t *testing.T) {
	s := open(t)
	text := func(format string, args ...any) v1.Descriptor {
		b := fmt.Appendf(nil, format, args...)
		return v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: put(t, s, b), Size: int64(len(b))}
	}
	layer, other, lower, config, sibling := text("layer"), text("of another type"), text("not JSON"), text("{}"), text("beside a digest that is none")
	inner := text(`{"layers":[{"digest":"%s"}]}`, layer.Digest)
	outer := text(`{"layers":[{"mediaType":"a/b","digest":"%s"},{"mediaType":"%s","digest":"%s"}],"subject":{"mediaType":"%[2]s","digest":"%s"}}`,
		inner.Digest, types.OCIManifestSchema1, other.Digest, lower.Digest)
	index := text(`{"manifests":[{"mediaType":"%s","digest":"%s"}],"layers":5,"config":{"digest":"%s"},"blobs":["x",{"digest":"sha256:../../x"},{"digest":"md5:00"},{"digest":"%s"}]}`,
		types.OCIManifestSchema1, lower.Digest, config.Digest, sibling.Digest)
	for i, order := range [][]v1.Descriptor{{outer, inner, index}, {index, inner, outer}} {
		for j, d := range order {
			must(t, s.Tag(fmt.Sprint("r:", j), d))
		}
		if r, err := s.GC(t.Context(), GCOptions{}); err != nil || r.Deleted != 0 || r.Kept != 8 {
			t.Errorf("order %d: %+v, %v", i, r, err)
		}
	}
	long := v1.Descriptor{Digest: index.Digest, MediaType: types.OCIManifestSchema1} // a pushed blob is a root without a type
	for range 3000 {
		long = text(`{"manifests":[{"mediaType":"%s","digest":"%s"}]}`, types.OCIManifestSchema1, long.Digest)
	}
	if r, err := s.GC(t.Context(), GCOptions{Roots: []v1.Descriptor{{Digest: long.Digest}}}); err != nil || r.Kept != 3008 {
		t.Errorf("a long chain: %+v, %v", r, err)
	}
}

// FuzzEntry: a slot of the journal is what encode makes, or nothing.
func FuzzEntry(f *testing.F) {
	f.Add(entry{seq: 1}.encode())
	f.Add(noise(slotLen))
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, ok := decodeEntry(b); ok && !bytes.Equal(e.encode(), b) {
			t.Error("not canonical")
		}
	})
}
