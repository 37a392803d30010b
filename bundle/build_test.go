package bundle

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/bundle/model"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("BUNDLE_TEST_BUILD"); dir != "" {
		slowBuild(dir)
	}
	pause = time.Millisecond
	os.Exit(m.Run())
}

// slowBuild builds dir/recipe.yaml and stands still in the middle of writing:
// the process that the kill test kills.
func slowBuild(dir string) {
	s, err := manifest.LoadSigner(filepath.Join(dir, "signing.key"))
	if err != nil {
		panic(err)
	}
	stop := &stopper{after: 3 << 20, stop: func() { os.Stdout.WriteString("half"); time.Sleep(time.Minute) }}
	_, err = Build(context.Background(), BuildOptions{
		Recipe: filepath.Join(dir, "recipe.yaml"), Out: filepath.Join(dir, "out"), Store: filepath.Join(dir, "work"),
		Signers: []manifest.Signer{s}, PartSize: MinPartSize, Progress: onlyWrites{stop}, Rehash: true,
	})
	panic(err)
}

// onlyWrites passes the writing of parts on, and no other task.
type onlyWrites struct{ Progress }

func (o onlyWrites) Start(name string, total int64) Task {
	if strings.HasPrefix(name, "write ") {
		return o.Progress.Start(name, total)
	}
	return quiet{}
}

// site is a directory with sources, and what a build there needs.
type site struct {
	dir   string
	opt   BuildOptions
	trust manifest.Trust
}

func newSite(t *testing.T) *site {
	t.Helper()
	dir := t.TempDir()
	s, trust := newSigner(t, "acme")
	return &site{dir, BuildOptions{
		Recipe: sources(t, dir), Out: filepath.Join(dir, "out"), Store: filepath.Join(dir, "work"),
		Signers: []manifest.Signer{s}, PartSize: MinPartSize,
	}, trust}
}

// recipe replaces the items of the demo recipe.
func (s *site) recipe(t *testing.T, items ...string) {
	t.Helper()
	head, _, _ := strings.Cut(demoRecipe, "items:\n")
	write(t, s.opt.Recipe, []byte(head+"items:\n  - "+strings.Join(items, "\n  - ")+"\n"))
}

func (s *site) build(t *testing.T) (manifest.Release, error) {
	t.Helper()
	return Build(t.Context(), s.opt)
}

func (s *site) mustBuild(t *testing.T) manifest.Release {
	t.Helper()
	r, err := s.build(t)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// load opens and loads what was built.
func (s *site) load(t *testing.T) *content.Store {
	t.Helper()
	m, err := OpenMedia(s.trust, s.opt.Out)
	if err != nil {
		t.Fatal(err)
	}
	st := newStore(t)
	if err := errors.Join(m.Verify(t.Context(), nil), m.Load(t.Context(), st, nil)); err != nil {
		t.Fatal(err)
	}
	return st
}

// TestBuildReplaces: a second build replaces the first; a failed one doesn't.
func TestBuildReplaces(t *testing.T) {
	s := newSite(t)
	s.mustBuild(t)
	first := tree(t, s.opt.Out)
	write(t, filepath.Join(s.dir, "rules.yaml"), []byte("changed\n"))
	var le *LockError
	if _, err := s.build(t); !errors.As(err, &le) || le.Item != "rules" || !strings.Contains(err.Error(), "--update-lock") {
		t.Errorf("got %v, want a LockError for rules", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := s.opt
	o.UpdateLock, o.Progress = true, onlyWrites{&stopper{after: 1 << 20, stop: cancel}}
	if _, err := Build(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if !maps.Equal(first, tree(t, s.opt.Out)) {
		t.Error("a failed build changed the bundle")
	}
	s.opt.UpdateLock = true
	s.mustBuild(t)
	if got := blob(t, s.load(t), "rules:0.1.0", ""); string(got) != "changed\n" {
		t.Errorf("got %q", got)
	}
	if es, _ := os.ReadDir(s.opt.Out); len(es) != 1 {
		t.Errorf("%s holds %v, want clawbox only", s.opt.Out, es)
	}
}

// TestKilledBuild: SIGKILL in the middle of the parts leaves the old bundle as
// it is, and the next build cleans up.
func TestKilledBuild(t *testing.T) {
	s := newSite(t)
	skey, vkey, err := manifest.GenerateKey("acme")
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(s.dir, "signing.key")
	write(t, key, []byte(skey))
	if err := os.Chmod(key, 0o600); err != nil {
		t.Fatal(err)
	}
	signer, err := manifest.ParseSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	s.opt.Signers = []manifest.Signer{signer}
	if s.trust, err = manifest.NewTrust(1, vkey); err != nil {
		t.Fatal(err)
	}
	s.mustBuild(t)
	first := tree(t, filepath.Join(s.opt.Out, topDir))

	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "BUNDLE_TEST_BUILD="+s.dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.build(t); err == nil || !strings.Contains(err.Error(), "another build") {
		t.Errorf("a build beside a build: %v", err)
	}
	cmd.Process.Signal(syscall.SIGKILL)
	cmd.Wait()
	if es, _ := os.ReadDir(filepath.Join(s.opt.Out, newDir, partsDir)); len(es) == 0 {
		t.Error("the killed build had written no part")
	}
	if !maps.Equal(first, tree(t, filepath.Join(s.opt.Out, topDir))) {
		t.Error("a killed build changed the bundle")
	}
	s.mustBuild(t)
	if !maps.Equal(first, tree(t, filepath.Join(s.opt.Out, topDir))) {
		t.Error("the next build gives another bundle")
	}
	if es, _ := os.ReadDir(s.opt.Out); len(es) != 1 {
		t.Errorf("%s holds %v, want clawbox only", s.opt.Out, es)
	}
}

// TestCutOffSwap: a power cut between the two renames of a swap, on a file
// system that can't exchange names, leaves no bundle; and the old one comes
// back when a new build fails.
func TestCutOffSwap(t *testing.T) {
	s := newSite(t)
	s.mustBuild(t)
	first := tree(t, filepath.Join(s.opt.Out, topDir))
	if err := os.Rename(filepath.Join(s.opt.Out, topDir), filepath.Join(s.opt.Out, oldDir)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenMedia(s.trust, s.opt.Out); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	o := s.opt
	o.Rehash, o.Progress = true, onlyWrites{&stopper{after: 1, stop: cancel}}
	if _, err := Build(ctx, o); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want context.Canceled", err)
	}
	if !maps.Equal(first, tree(t, filepath.Join(s.opt.Out, topDir))) {
		t.Error("the old bundle did not come back")
	}
}

// TestChangedWhileBuilding: a source that changes between hashing and writing
// is found, and nothing is signed.
func TestChangedWhileBuilding(t *testing.T) {
	s := newSite(t)
	s.opt.Progress = onHash{func() { flip(t, filepath.Join(s.dir, "model/tiny.gguf"), 5<<20) }}
	if _, err := s.build(t); err == nil || !strings.Contains(err.Error(), "item tiny") || !strings.Contains(err.Error(), "changed meanwhile") {
		t.Errorf("got %v, want a changed tiny.gguf", err)
	}
	if _, err := os.Lstat(s.opt.Out); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory that the build made is still there (%v)", err)
	}
}

// TestFailedBuildKeepsDirs: only directories that the run made, and nobody
// uses, go away with a failed build.
func TestFailedBuildKeepsDirs(t *testing.T) {
	s := newSite(t)
	old := filepath.Join(s.dir, "there before")
	s.opt.Out = filepath.Join(old, "a", "b")
	s.opt.Progress = onHash{func() { flip(t, filepath.Join(s.dir, "model/tiny.gguf"), 5<<20) }}
	if err := os.Mkdir(old, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := s.build(t); err == nil {
		t.Fatal("built")
	}
	if es, err := os.ReadDir(old); err != nil || len(es) > 0 {
		t.Errorf("left %v, %v", es, err)
	}
}

// onHash calls do when the model has been hashed.
type onHash struct{ do func() }

func (o onHash) Start(name string, _ int64) Task {
	if strings.HasSuffix(name, "tiny.gguf") {
		return doneTask(o)
	}
	return quiet{}
}

type doneTask struct{ do func() }

func (doneTask) Add(int64)    {}
func (d doneTask) Done(error) { d.do() }

func TestBuildNoSpace(t *testing.T) {
	s := newSite(t)
	s.opt.Out = t.TempDir()
	if err := syscall.Mount("tmpfs", s.opt.Out, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("mount a small tmpfs: %v", err)
	}
	defer syscall.Unmount(s.opt.Out, 0)
	if _, err := s.build(t); err == nil || !strings.Contains(err.Error(), "free") {
		t.Errorf("got %v, want too little space", err)
	}
	if es, _ := os.ReadDir(s.opt.Out); len(es) != 0 {
		t.Errorf("left %v", es)
	}
}

// TestPartsNoSpace: a disk that fills up while parts are written.
func TestPartsNoSpace(t *testing.T) {
	s := newSite(t)
	s.opt.Out = t.TempDir()
	if err := syscall.Mount("tmpfs", s.opt.Out, "tmpfs", 0, "size=9m"); err != nil {
		t.Skipf("mount a small tmpfs: %v", err)
	}
	defer syscall.Unmount(s.opt.Out, 0)
	s.opt.Progress = onlyWrites{&stopper{after: 1, stop: func() { write(t, filepath.Join(s.opt.Out, "other"), make([]byte, 6<<20)) }}}
	if _, err := s.build(t); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
	if es, _ := os.ReadDir(s.opt.Out); len(es) != 1 {
		t.Errorf("left %v beside the other file", es)
	}
}

func TestBuildRefuses(t *testing.T) {
	s := newSite(t)
	for name, o := range map[string]BuildOptions{
		"no signer":  {Recipe: s.opt.Recipe, Out: s.opt.Out, Store: s.opt.Store},
		"no out":     {Recipe: s.opt.Recipe, Store: s.opt.Store, Signers: s.opt.Signers},
		"tiny parts": {Recipe: s.opt.Recipe, Out: s.opt.Out, Store: s.opt.Store, Signers: s.opt.Signers, PartSize: 1},
		"huge parts": {Recipe: s.opt.Recipe, Out: s.opt.Out, Store: s.opt.Store, Signers: s.opt.Signers, PartSize: 1 << 32},
		"no recipe":  {Recipe: s.opt.Recipe + ".none", Out: s.opt.Out, Store: s.opt.Store, Signers: s.opt.Signers},
	} {
		if _, err := Build(t.Context(), o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestLockTraps(t *testing.T) {
	s := newSite(t)
	s.mustBuild(t)
	lock := filepath.Join(s.dir, "bundle.lock")
	good := string(read(t, lock))
	for name, c := range map[string]struct{ old, new, want string }{
		"unknown field":  {"kind: Lock", "kind: Lock\nevil: 1", "unknown field"},
		"twice":          {"kind: Lock", "kind: Lock\nkind: Lock", "second time"},
		"kind":           {"kind: Lock", "kind: Recipe", `kind "Recipe"`},
		"time":           {"created: ", "created: x", "bundle.lock:"},
		"digest":         {"root: sha256:", "root: sha512:", "bundle.lock:"},
		"other source":   {"file:rules.yaml", "file:else.yaml", "item rules no longer matches"},
		"other platform": {"linux/amd64", "linux/arm64", "item app no longer matches"},
		"other name":     {"name: rules", "name: elses", "item rules no longer matches"},
	} {
		write(t, lock, []byte(strings.Replace(good, c.old, c.new, 1)))
		if _, err := s.build(t); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	write(t, lock, []byte(good))
	s.mustBuild(t)
	s.recipe(t, `{name: rules, kind: policy, source: "file:rules.yaml", redistributable: true}`)
	if _, err := s.build(t); err == nil || !strings.Contains(err.Error(), "--update-lock") {
		t.Errorf("recipe with fewer items: %v", err)
	}
}

// TestDockerArchive takes what docker save writes.
func TestDockerArchive(t *testing.T) {
	s := newSite(t)
	img := image(t, 7, "amd64")
	tag, err := name.NewTag("example.com/app:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(filepath.Join(s.dir, "app.tar"), tag, img); err != nil {
		t.Fatal(err)
	}
	s.recipe(t, `{name: app, kind: image, source: "docker-archive:app.tar", redistributable: true}`)
	r := s.mustBuild(t)
	if got := r.Items[0].Platforms; len(got) != 1 || got[0] != "linux/amd64" {
		t.Errorf("platforms %v", got)
	}
	checkLayers(t, s.load(t), "app:0.1.0", img)
	s.opt.Out += "2" // the lock holds for a second build
	s.mustBuild(t)
	s.recipe(t, `{name: app, kind: image, source: "docker-archive:app.tar", platforms: [linux/arm64], redistributable: true}`)
	s.opt.UpdateLock = true
	if _, err := s.build(t); err == nil || !strings.Contains(err.Error(), "wants linux/arm64") {
		t.Errorf("wrong platform: %v", err)
	}
}

// checkLayers compares the unpacked layers of ref in the store with img's.
func checkLayers(t *testing.T, s *content.Store, ref string, img v1.Image) {
	t.Helper()
	d, err := s.Resolve(ref)
	if err != nil {
		t.Fatal(err)
	}
	got, err := layout.Path(s.Dir()).Image(d.Digest)
	if err != nil {
		t.Fatal(err)
	}
	gl, err := got.Layers()
	if err != nil {
		t.Fatal(err)
	}
	wl, err := img.Layers()
	if err != nil || len(gl) != len(wl) {
		t.Fatalf("%d layers, want %d, %v", len(gl), len(wl), err)
	}
	for i := range wl {
		a, err := gl[i].DiffID()
		b, err2 := wl[i].DiffID()
		if a != b || err != nil || err2 != nil {
			t.Errorf("layer %d is %v, want %v (%v, %v)", i, a, b, err, err2)
		}
	}
}

// TestModelDirs: links inside count as files; links out and odd files don't.
func TestModelDirs(t *testing.T) {
	for name, c := range map[string]struct {
		make func(dir string) error
		want string // "": accepted
	}{
		"link inside":  {func(d string) error { return os.Symlink("tiny.gguf", filepath.Join(d, "model.gguf")) }, ""},
		"link out":     {func(d string) error { return os.Symlink("/etc/passwd", filepath.Join(d, "passwd")) }, "must end inside"},
		"link up":      {func(d string) error { return os.Symlink("../rules.yaml", filepath.Join(d, "x")) }, "must end inside"},
		"folder link":  {func(d string) error { return os.Symlink("..", filepath.Join(d, "up")) }, "must end inside"},
		"dangling":     {func(d string) error { return os.Symlink("none", filepath.Join(d, "x")) }, "no such file"},
		"pipe":         {func(d string) error { return syscall.Mkfifo(filepath.Join(d, "pipe"), 0o644) }, "special file"},
		"no weights":   {func(d string) error { return os.Remove(filepath.Join(d, "tiny.gguf")) }, "no .gguf"},
		"no directory": {func(d string) error { return os.RemoveAll(d) }, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.recipe(t, `{name: tiny, kind: model, source: "dir:model", redistributable: true}`)
			if err := c.make(filepath.Join(s.dir, "model")); err != nil {
				t.Fatal(err)
			}
			_, err := s.build(t)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestModelPack(t *testing.T) {
	s := newSite(t)
	s.recipe(t, `{name: tiny, kind: model, source: "dir:model", licence: MIT, redistributable: true}`)
	r := s.mustBuild(t)
	st := s.load(t)
	d, err := st.Resolve("tiny:0.1.0")
	if err != nil {
		t.Fatal(err)
	}
	if d.ArtifactType != model.ArtifactType || r.Items[0].Descriptor.ArtifactType != model.ArtifactType {
		t.Errorf("artifact type %q", d.ArtifactType)
	}
	m, err := v1.ParseManifest(bytes.NewReader(read(t, st.Path(d.Digest))))
	if err != nil {
		t.Fatal(err)
	}
	const weightConfig = "application/vnd.cncf.model.weight.config.v1.raw"
	want := []struct{ title, media string }{{"config.json", weightConfig}, {"empty.txt", weightConfig}, {"tiny.gguf", "application/vnd.cncf.model.weight.v1.raw"}}
	for i, w := range want {
		l := m.Layers[i]
		if l.Annotations[titleNote] != w.title || l.Annotations["org.cncf.model.filepath"] != w.title || string(l.MediaType) != w.media {
			t.Errorf("layer %d: %v %s, want %v", i, l.Annotations, l.MediaType, w)
		}
	}
	config := string(read(t, st.Path(m.Config.Digest)))
	for _, want := range []string{`"format":"gguf"`, `"licenses":["MIT"]`, `"type":"layers"`, m.Layers[2].Digest.String()} {
		if !strings.Contains(config, want) {
			t.Errorf("%s is not in the config %s", want, config)
		}
	}
}

// resign changes the release that was built, and signs it again: what a
// trusted but careless builder could do.
func (s *site) resign(t *testing.T, change func(*manifest.Release)) {
	t.Helper()
	path := filepath.Join(s.opt.Out, topDir, noteFile)
	r, _, err := manifest.Unverified(read(t, path))
	if err != nil {
		t.Fatal(err)
	}
	change(&r)
	note, err := manifest.Sign(r, s.opt.Signers...)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, note)
}

// TestCarelessBuilder: a signature over an item that is not whole is no way
// past the reader.
func TestCarelessBuilder(t *testing.T) {
	s := newSite(t)
	s.mustBuild(t)
	s.resign(t, func(r *manifest.Release) { // an image whose root is the layer of a file
		it := &r.Items[1]
		m, err := OpenMedia(s.trust, s.opt.Out)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range m.index.Blobs {
			if b.Size > 1000 && b.Size < 1<<20 {
				it.Descriptor.Digest, it.Descriptor.Size, it.TotalSize = b.Digest, b.Size, b.Size
				return
			}
		}
	})
	m, err := OpenMedia(s.trust, s.opt.Out)
	if err != nil {
		t.Fatal(err)
	}
	st := newStore(t)
	if err := m.Load(t.Context(), st, nil); err == nil || !strings.Contains(err.Error(), "item app") {
		t.Errorf("an item that is no manifest: %v", err)
	}
	sound(t, st, 0)
}
