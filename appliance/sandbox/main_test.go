package sandbox

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/clawbox/clawbox/appliance/confine"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/policies"
)

var _ Blobs = (*content.Store)(nil)

// programs holds the launcher and the probe, built once for all tests.
var programs struct {
	launcher, probe string
	runtime         string // clawbox-runc
	err             error
	dir             string // kept for all tests
}

// shared is the image of base, unpacked once: layers are read-only anyway.
var shared = sync.OnceValues(func() (Image, error) {
	bl := &blobs{programs.dir, map[string]v1.Descriptor{}}
	layers, err := base()
	if err != nil {
		return Image{}, err
	}
	if err := bl.image("probe", v1.Config{Entrypoint: []string{"/bin/probe"}, Env: []string{"FROM=image"}}, layers...); err != nil {
		return Image{}, err
	}
	im, err := OpenImages(programs.dir, bl)
	if err != nil {
		return Image{}, err
	}
	return im.Prepare(context.Background(), "probe")
})

func TestMain(m *testing.M) {
	if d := os.Getenv("CLAWBOX_TEST_DAEMON"); d != "" {
		os.Exit(daemon(d))
	}
	dir, err := os.MkdirTemp("", "clawbox-sandbox-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	programs.dir = dir
	// Built beforehand for a machine without Go, such as a virtual one.
	from := os.Getenv("CLAWBOX_TEST_PROGRAMS")
	if from == "" {
		from = dir
		programs.err = errors.Join(build(dir, "clawbox-launch", "../../cmd/clawbox-launch"), build(dir, "probe", "./testdata/probe"),
			build(dir, "clawbox-runc", "../../cmd/clawbox-runc"))
	}
	programs.launcher, programs.probe = filepath.Join(from, "clawbox-launch"), filepath.Join(from, "probe")
	programs.runtime = filepath.Join(from, "clawbox-runc")
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func build(dir, name, pkg string) error {
	out := filepath.Join(dir, name)
	c := exec.Command("go", "build", "-o", out, pkg)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, b)
	}
	return os.Chmod(out, 0o755)
}

// blobs is a store in memory, with files for what is open.
type blobs struct {
	dir  string
	refs map[string]v1.Descriptor
}

func newBlobs(t testing.TB) *blobs {
	t.Helper()
	return &blobs{t.TempDir(), map[string]v1.Descriptor{}}
}

func (b *blobs) Resolve(ref string) (v1.Descriptor, error) {
	d, ok := b.refs[ref]
	if !ok {
		return d, fs.ErrNotExist
	}
	return d, nil
}

func (b *blobs) Open(h v1.Hash) (*os.File, error) { return os.Open(filepath.Join(b.dir, h.Hex)) }

func (b *blobs) put(p []byte) (v1.Descriptor, error) {
	h, n, err := v1.SHA256(bytes.NewReader(p))
	if err != nil {
		return v1.Descriptor{}, err
	}
	return v1.Descriptor{Digest: h, Size: n}, os.WriteFile(filepath.Join(b.dir, h.Hex), p, 0o600)
}

// file is an entry of a layer. Mode 0 means 0644.
type file struct {
	name, data, link string
	typ              byte
	mode             int64
}

func layer(files ...file) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if f.typ == 0 {
			f.typ = tar.TypeReg
		}
		if f.mode == 0 {
			f.mode = 0o644
		}
		h := &tar.Header{Name: f.name, Typeflag: f.typ, Mode: f.mode, Size: int64(len(f.data)), Linkname: f.link, ModTime: time.Unix(1e9, 0)}
		if f.typ == tar.TypeReg {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "x", "SCHILY.xattr.trusted.overlay.redirect": "/etc"}
		}
		if err := errors.Join(w.WriteHeader(h), second(w.Write([]byte(f.data)))); err != nil {
			panic(err)
		}
	}
	w.Close()
	return b.Bytes()
}

func second(_ int, err error) error { return err }

func gz(p []byte) []byte {
	var b bytes.Buffer
	w, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	w.Write(p)
	w.Close()
	return b.Bytes()
}

// image stores an image of uncompressed layers, bottom first.
func (b *blobs) image(ref string, c v1.Config, layers ...[]byte) error {
	cf := v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, Config: c, RootFS: v1.RootFS{Type: "layers"}}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	for _, l := range layers {
		h, _, _ := v1.SHA256(bytes.NewReader(l))
		d, err := b.put(gz(l))
		if err != nil {
			return err
		}
		d.MediaType = types.OCILayer
		cf.RootFS.DiffIDs, m.Layers = append(cf.RootFS.DiffIDs, h), append(m.Layers, d)
	}
	var err error
	if m.Config, err = b.json(cf, types.OCIConfigJSON); err != nil {
		return err
	}
	b.refs[ref], err = b.json(m, types.OCIManifestSchema1)
	return err
}

func (b *blobs) json(v any, mt types.MediaType) (v1.Descriptor, error) {
	p, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	d, err := b.put(p)
	d.MediaType = mt
	return d, err
}

// base is the image that most tests run: the probe under several names, a
// script, and files that a policy may or may not let it read.
func base() ([][]byte, error) {
	p, err := os.ReadFile(programs.probe)
	if err != nil {
		return nil, err
	}
	low := layer(
		file{name: "bin/", typ: tar.TypeDir}, file{name: "bin/probe", data: string(p), mode: 0o4755},
		file{name: "usr/bin/hidden", data: string(p), mode: 0o755}, file{name: "tools/one", data: string(p), mode: 0o755},
		file{name: "bin/script", data: "#!/bin/probe print=from\n", mode: 0o755},
		file{name: "etc/passwd", data: "root:x:0:0:root:/root:/bin/sh\n"}, file{name: "etc/secret", data: "secret\n", mode: 0o600},
		file{name: "data/in", data: "input\n"}, file{name: "private/key", data: "key\n"},
		file{name: "gone", data: "x"}, file{name: "dir/old", data: "x"},
	)
	top := layer(file{name: ".wh.gone"}, file{name: "dir/.wh..wh..opq"}, file{name: "dir/new", data: "x"},
		file{name: "tools/two", typ: tar.TypeSymlink, link: "/bin/probe"})
	return [][]byte{low, top}, nil
}

// bench is everything that a test of running sandboxes needs.
type bench struct {
	t     testing.TB
	l     *Local
	image Image
	state string
	pods  *Pods // nil: sandboxes of our own
}

// need skips where sandboxes cannot run, with the proof.
func need(t testing.TB) {
	t.Helper()
	if programs.err != nil {
		t.Fatal(programs.err)
	}
	if os.Geteuid() != 0 {
		t.Skipf("sandboxes need root; euid is %d", os.Geteuid())
	}
}

func newBench(t testing.TB) *bench {
	t.Helper()
	need(t)
	state := t.TempDir()
	b := &bench{t: t, state: state}
	var err error
	if b.image, err = shared(); err != nil {
		t.Fatal(err)
	}
	if b.l, err = Open(Options{State: state, Launcher: programs.launcher, UIDBase: 700_000}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.l.Close(); err != nil {
			t.Error(err)
		}
		for _, r := range b.l.h.roots() {
			if _, err := os.Stat(filepath.Join(r, b.l.parent)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("cgroups left behind in %s: %v", r, err)
			}
		}
	})
	return b
}

// landlock is what the tests' policies require: 3, or less where the kernel
// has less. There, truncate is bounded by the read-only mounts alone (before
// 3), and signals by user ids alone (before 6).
func landlock() int {
	v, _ := confine.LandlockABI()
	return min(v, 3)
}

// scoped is what an agent's signal to PID 1 gives: EPERM from Landlock, or
// success that the kernel takes for nothing (before ABI 6).
func scoped() string {
	if v, _ := confine.LandlockABI(); v < 6 {
		return "ok"
	}
	return "EPERM"
}

// policy is a complete policy that tests narrow or widen.
func policy() *policies.Policy {
	return &policies.Policy{
		Name: "test",
		Filesystem: policies.Filesystem{
			Read: []string{"/bin", "/etc", "/proc", "/dev", "/data", "/tools", "/dir"}, Write: []string{"/workspace", "/tmp"}, Workdir: "/workspace",
		},
		Process: policies.Process{Exec: []string{"/bin/probe"}, Spawn: true, Seccomp: "default"},
		Budgets: policies.Budgets{Processes: 40, Memory: 256 << 20, Scratch: 8 << 20, OpenFiles: 256, WallTime: time.Minute},
		Require: policies.Require{Landlock: landlock(), Tier: "T4"},
	}
}

// buffer takes output from several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// run starts an agent with probe arguments, waits, and returns its lines.
func (b *bench) run(s Spec, args ...string) (map[string]string, int, string) {
	b.t.Helper()
	box, out := b.start(s, args...)
	code, why := box.Wait()
	if box.err != nil {
		b.t.Errorf("end of sandbox: %v", box.err)
	}
	return answers(out.String()), code, why
}

func (b *bench) start(s Spec, args ...string) (*Box, *buffer) {
	b.t.Helper()
	out := &buffer{}
	if s.Name == "" {
		s.Name = "agent"
	}
	if s.Policy == nil {
		s.Policy = policy()
	}
	s.Image, s.Args, s.Stdout, s.Stderr = b.image, args, out, out
	start := b.l.Start
	if b.pods != nil {
		start = b.pods.Start
	}
	box, err := start(context.Background(), s)
	if err != nil {
		b.t.Fatalf("start: %v\noutput: %s", err, out)
	}
	b.t.Cleanup(func() { box.Stop(context.Background(), 0) })
	return box, out
}

func answers(out string) map[string]string {
	m := map[string]string{}
	for l := range strings.Lines(out) {
		if k, v, ok := strings.Cut(strings.TrimRight(l, "\r\n"), ": "); ok {
			m[k] = strings.TrimSpace(v)
		}
	}
	return m
}
