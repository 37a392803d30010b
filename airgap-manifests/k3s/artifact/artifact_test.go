package artifact

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

func testBuilder(t *testing.T) *builder {
	dir := t.TempDir()
	return &builder{ctx: t.Context(), Options: Options{Modules: filepath.Join(dir, "modules"), Out: filepath.Join(dir, "out"), Log: io.Discard}}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestOnce builds a part again when, and only when, something changed.
func TestOnce(t *testing.T) {
	b := testBuilder(t)
	out := filepath.Join(b.dir("x"), "prog")
	n := 0
	fill := func() error {
		n++
		write(t, out, "bytes")
		return nil
	}
	for _, step := range []struct {
		what   string
		change func()
		key    string
		want   int
	}{
		{"the first time", func() {}, "k1", 1},
		{"nothing changed", func() {}, "k1", 1},
		{"another key", func() {}, "k2", 2},
		{"a damaged output", func() { write(t, out, "bytez") }, "k2", 3},
		{"a further file", func() { write(t, out+"2", "") }, "k2", 4},
		{"a lost output", func() { os.Remove(out) }, "k2", 5},
		{"nothing changed since", func() {}, "k2", 5},
	} {
		step.change()
		if err := b.once("x", step.key, fill); err != nil || n != step.want {
			t.Errorf("%s: built %d times (%v), want %d", step.what, n, err, step.want)
		}
	}
	failed := errors.New("no compiler")
	if err := b.once("x", "k3", func() error { write(t, out, "half"); return failed }); !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
	if err := b.once("x", "k3", fill); err != nil || n != 6 {
		t.Errorf("after a failed build: built %d times (%v), want 6", n, err)
	}
	if len(b.report.Built) != 5+1 {
		t.Errorf("reported %v", b.report.Built)
	}
}

func TestKey(t *testing.T) {
	b := testBuilder(t)
	mod := filepath.Join(b.Modules, "m")
	write(t, filepath.Join(mod, "go.mod"), "module m\n\ngo 1.25\n")
	write(t, filepath.Join(mod, "go.sum"), "a\n")
	p := part{name: "m", module: "m", env: []string{"CGO_ENABLED=0"}, progs: []prog{{pkg: "m", out: "m"}}}
	key := func() string {
		t.Helper()
		k, err := b.key(p)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	seen := map[string]string{key(): "the first"}
	for _, c := range []struct {
		what   string
		change func()
		same   bool
	}{
		{"a test", func() { write(t, filepath.Join(mod, "x_test.go"), "package m") }, true},
		{"go.sum", func() { write(t, filepath.Join(mod, "go.sum"), "b\n") }, false},
		{"a source", func() { write(t, filepath.Join(mod, "x.go"), "package m") }, false},
		{"the linker's flags", func() { p.ld = []string{"-X", "m.v=1"} }, false},
		{"tags", func() { p.tags = []string{"seccomp"} }, false},
		{"the program", func() { p.progs = []prog{{pkg: "m/n", out: "m"}} }, false},
		{"the environment", func() { p.env = []string{"CGO_ENABLED=0", "GOAMD64=v3"} }, false},
	} {
		c.change()
		k := key()
		if was, ok := seen[k]; ok != c.same {
			t.Errorf("%s changed: the key is the one after %q: %v, want %v", c.what, was, ok, c.same)
		}
		seen[k] = c.what
	}
}

// TestImage reads an image back from the layout that it was added to.
func TestImage(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "prog"), "program")
	im := image{ref: "box:1", path: "usr/bin/box", links: []string{"sh"}, entry: []string{"/usr/bin/box"}}
	var digests []string
	for _, l := range []string{"a", "b"} {
		p, err := layout.Write(filepath.Join(dir, l), empty.Index)
		if err != nil {
			t.Fatal(err)
		}
		if err := im.add(p, filepath.Join(dir, "prog")); err != nil {
			t.Fatal(err)
		}
		ix, err := p.ImageIndex()
		if err != nil {
			t.Fatal(err)
		}
		m, err := ix.IndexManifest()
		if err != nil || len(m.Manifests) != 1 || m.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "box:1" {
			t.Fatalf("index %+v, %v", m, err)
		}
		digests = append(digests, m.Manifests[0].Digest.String())
		img, err := ix.Image(m.Manifests[0].Digest)
		if err != nil {
			t.Fatal(err)
		}
		ls, err := img.Layers()
		if err != nil || len(ls) != 1 {
			t.Fatal(len(ls), err)
		}
		r, err := ls[0].Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, h.FileInfo().Mode().String()+" "+h.Name+h.Linkname)
		}
		if s := strings.Join(got, ", "); s != "dtrwxrwxrwx tmp/, drwxr-xr-x usr/, drwxr-xr-x usr/bin/, -rwxr-xr-x usr/bin/box, Lrwxrwxrwx usr/bin/shbox" {
			t.Errorf("layer: %s", s)
		}
	}
	if digests[0] != digests[1] {
		t.Errorf("the same program gave %v", digests)
	}
}

func TestBuildErrors(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Version: "1.20", Modules: "m", Out: "o"}, `version "1.20": want one of 1.34, 1.35`},
		{Options{Version: "1.35"}, "want both"},
	} {
		if _, err := Build(t.Context(), c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want an error with %q", c.o, err, c.want)
		}
	}
}
