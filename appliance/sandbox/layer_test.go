package sandbox

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

func extractTo(t *testing.T, files ...file) (string, error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir, extract(t.Context(), dir, bytes.NewReader(layer(files...)))
}

// TestExtractRefuses: no entry reaches outside, and nothing but files,
// directories and links is made.
func TestExtractRefuses(t *testing.T) {
	tests := map[string][]file{
		"climbing name":          {{name: "../x"}},
		"climbing inside":        {{name: "a/../../x"}},
		"hard link out":          {{name: "x", typ: tar.TypeLink, link: "../../etc/passwd"}},
		"hard link to link out":  {{name: "l", typ: tar.TypeSymlink, link: "/etc"}, {name: "x", typ: tar.TypeLink, link: "l/passwd"}},
		"through link out":       {{name: "l", typ: tar.TypeSymlink, link: "../.."}, {name: "l/x"}},
		"through absolute link":  {{name: "l", typ: tar.TypeSymlink, link: "/tmp"}, {name: "l/x"}},
		"opaque through link":    {{name: "l", typ: tar.TypeSymlink, link: "/tmp"}, {name: "l/.wh..wh..opq"}},
		"whiteout through link":  {{name: "l", typ: tar.TypeSymlink, link: "/tmp"}, {name: "l/.wh.x"}},
		"whiteout of the parent": {{name: ".wh..."}, {name: ".wh..", data: ""}},
		"character device":       {{name: "dev/null", typ: tar.TypeChar}},
		"block device":           {{name: "sda", typ: tar.TypeBlock}},
		"pipe":                   {{name: "p", typ: tar.TypeFifo}},
	}
	for name, files := range tests {
		t.Run(name, func(t *testing.T) {
			dir, err := extractTo(t, files...)
			if err == nil {
				t.Error("accepted")
			}
			if more, _ := os.ReadDir(filepath.Dir(dir)); len(more) != 1 {
				t.Errorf("written outside: %v", more)
			}
		})
	}
}

func TestExtract(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skipf("trusted attributes need root; euid is %d", os.Geteuid())
	}
	dir, err := extractTo(t,
		file{name: "/abs"}, file{name: "./suid", mode: 0o6755, data: "x"}, file{name: "secret", mode: 0o600},
		file{name: "d/", typ: tar.TypeDir, mode: 0o1777}, file{name: "d/.wh..wh..opq"}, file{name: "d/.wh.old"}, file{name: "d/new", data: "1"},
		file{name: "d/.wh.new"}, file{name: "hard", typ: tar.TypeLink, link: "/d/new"}, file{name: "soft", typ: tar.TypeSymlink, link: "/etc/shadow"},
		file{name: "twice", data: "first"}, file{name: "twice", data: "second"}, file{name: "soft2", typ: tar.TypeSymlink, link: "/etc/passwd"},
		file{name: "soft2", data: "replaces the link, not its target"})
	if err != nil {
		t.Fatal(err)
	}
	modes := map[string]string{
		".": "drwxr-xr-x", "abs": "-rw-r--r--", "suid": "-rwxr-xr-x", "secret": "-rw-r--r--", "d": "drwxr-xr-x", "d/old": "Dc---------",
		"d/new": "-rw-r--r--", "soft": "Lrwxrwxrwx", "soft2": "-rw-r--r--",
	}
	for name, want := range modes {
		st, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || st.Mode().String() != want {
			t.Errorf("%s: %v, %v; want %s", name, st.Mode(), err, want)
		}
	}
	var st, st2 unix.Stat_t
	unix.Lstat(filepath.Join(dir, "d/old"), &st)
	if st.Rdev != 0 {
		t.Errorf("whiteout has device %d, want 0", st.Rdev)
	}
	unix.Lstat(filepath.Join(dir, "d/new"), &st)
	unix.Lstat(filepath.Join(dir, "hard"), &st2)
	if st.Ino != st2.Ino {
		t.Error("hard link is another file")
	}
	buf := make([]byte, 64)
	if n, err := unix.Getxattr(filepath.Join(dir, "d"), "trusted.overlay.opaque", buf); err != nil || string(buf[:n]) != "y" {
		t.Errorf("opaque: %q, %v", buf[:max(n, 0)], err)
	}
	if n, err := unix.Listxattr(filepath.Join(dir, "suid"), buf); n != 0 {
		t.Errorf("attributes kept: %q, %v", buf[:max(n, 0)], err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "twice")); string(b) != "second" {
		t.Errorf("twice: %q", b)
	}
	if st, _ := os.Stat(filepath.Join(dir, "abs")); st.ModTime().Unix() != 1e9 {
		t.Errorf("time: %v", st.ModTime())
	}
}

// TestPrepare unpacks every compression once, and damaged content never.
func TestPrepare(t *testing.T) {
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]func([]byte) []byte{
		"gzip": gz,
		"zstd": func(b []byte) []byte { return z.EncodeAll(b, nil) },
		"tar":  func(b []byte) []byte { return b },
	}
	for name, pack := range tests {
		t.Run(name, func(t *testing.T) {
			state := t.TempDir()
			im, bl := openImages(t, state)
			l := layer(file{name: "f", data: name})
			imageOf(t, bl, "i", l, pack(l), runtime.GOARCH)
			var wg sync.WaitGroup
			for range 4 { // concurrent askers share one unpacking
				wg.Go(func() {
					if img, err := im.Prepare(t.Context(), "i"); err != nil || len(img.Layers) != 1 {
						t.Error(img, err)
					}
				})
			}
			wg.Wait()
			ds, _ := filepath.Glob(filepath.Join(state, "layers", "*", "f"))
			if len(ds) != 1 {
				t.Errorf("unpacked: %v", ds)
			}
			if torn, _ := filepath.Glob(filepath.Join(state, "layers", tempPrefix+"*")); len(torn) != 0 {
				t.Errorf("left behind: %v", torn)
			}
		})
	}
}

func openImages(t *testing.T, state string) (*Images, *blobs) {
	t.Helper()
	bl := newBlobs(t)
	im, err := OpenImages(state, bl)
	if err != nil {
		t.Fatal(err)
	}
	return im, bl
}

// imageOf stores an image whose one layer is stored as packed, and whose id
// is that of plain; ref leads through an index.
func imageOf(t *testing.T, bl *blobs, ref string, plain, packed []byte, arch string) {
	t.Helper()
	must := func(d v1.Descriptor, err error) v1.Descriptor {
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	h, _, _ := v1.SHA256(bytes.NewReader(plain))
	l := must(bl.put(packed))
	l.MediaType = types.OCILayer
	c := must(bl.json(v1.ConfigFile{OS: "linux", Architecture: arch, RootFS: v1.RootFS{DiffIDs: []v1.Hash{h}}}, types.OCIConfigJSON))
	m := must(bl.json(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: c, Layers: []v1.Descriptor{l}}, types.OCIManifestSchema1))
	m.Platform = &v1.Platform{OS: "linux", Architecture: arch}
	bl.refs[ref] = must(bl.json(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{m}}, types.OCIImageIndex))
}

func TestPrepareRefuses(t *testing.T) {
	good := layer(file{name: "f", data: "good"})
	tests := map[string]struct {
		packed []byte
		arch   string
		spoil  bool
		want   string
	}{
		"other content":   {gz(layer(file{name: "f", data: "evil"})), runtime.GOARCH, false, "unpacked content has sha256"},
		"tail":            {append(bytes.Clone(good), 0), runtime.GOARCH, false, "unpacked content has sha256"},
		"torn":            {gz(good)[:100], runtime.GOARCH, false, "EOF"},
		"other platform":  {gz(good), "vax", false, "no manifest for linux/" + runtime.GOARCH},
		"damaged in rest": {gz(good), runtime.GOARCH, true, "the store is damaged"},
	}
	for name, x := range tests {
		t.Run(name, func(t *testing.T) {
			state := t.TempDir()
			im, bl := openImages(t, state)
			imageOf(t, bl, "i", good, x.packed, x.arch)
			if x.spoil {
				p := filepath.Join(bl.dir, bl.refs["i"].Digest.Hex)
				b, _ := os.ReadFile(p)
				if err := os.WriteFile(p, append(b, ' '), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := im.Prepare(t.Context(), "i"); err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("got %v, want an error with %q", err, x.want)
			}
			if left, _ := os.ReadDir(filepath.Join(state, "layers")); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	im, _ := openImages(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := extract(ctx, t.TempDir(), bytes.NewReader(good)); err == nil {
		t.Error("a cancelled unpacking went on")
	}
	if _, err := im.Prepare(t.Context(), "absent"); err == nil {
		t.Error("an absent image was prepared")
	}
}

// TestTornLayer: what a crash left is removed, and the layer unpacked anew.
func TestTornLayer(t *testing.T) {
	state := t.TempDir()
	torn := filepath.Join(state, "layers", tempPrefix+"1")
	if err := os.MkdirAll(filepath.Join(torn, "half"), 0o755); err != nil {
		t.Fatal(err)
	}
	openImages(t, state)
	if _, err := os.Stat(torn); !os.IsNotExist(err) {
		t.Errorf("torn directory: %v", err)
	}
}
