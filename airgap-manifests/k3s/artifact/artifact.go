// Package artifact builds a K3s from Go modules, with all that it needs to run
// without its self-extracting wrapper:
//
//	r, err := artifact.Build(ctx, artifact.Options{Modules: "airgap-manifests/k3s", Out: "dist/k3s", Version: "1.35", Log: os.Stderr})
//
// Out/1.35 then holds
//
//	bin/        k3s and its names (k3s-server, kubectl, ctr, …), runc, the shim, CNI plugins
//	manifests/  K3s's own manifests that are not embedded in this build
//	images/     an OCI layout: pause, coredns, local-path-provisioner, busybox
//
// Everything compiled is a Go module that a nested module's go.sum holds;
// busybox is Debian's busybox-static. The programs are static. The same inputs
// give the same bytes: paths are trimmed, no build time is stamped.
//
// Each part is keyed by its go.mod, go.sum, sources, flags and tool versions;
// a part whose key and outputs are what they were is not built again. A cold
// K3s takes 12 CPU-minutes and 3.3 GB of memory; from Go's build cache, a link.
//
// The result is for tests and for operators who want to build from source. K3s
// checks that it was compiled by the Go release that its makers chose; this
// build tells it that ours is the one. Customers take K3s's release binary.
package artifact

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Options says what to build and where. All fields but Log are required.
type Options struct {
	Modules string    // the folder with the nested modules
	Out     string    // dist/k3s
	Version string    // "1.34" or "1.35"
	Log     io.Writer // progress and the tools' output; nil discards
}

// Report says what a build did.
type Report struct {
	Dir   string          // Out/Version
	Built []string        // the parts that were built; none when nothing changed
	Took  []time.Duration // of each part built
}

// release is what the module graph does not say of a K3s.
type release struct {
	module  string // nested module
	version string // what K3s calls itself
}

var releases = map[string]release{
	"1.34": {"v1.34", "v1.34.0+k3s1"},
	"1.35": {"v1.35", "v1.35.0+k3s1"},
}

// Versions lists what can be built, oldest first.
func Versions() []string { return slices.Sorted(maps.Keys(releases)) }

type builder struct {
	Options
	ctx    context.Context
	report Report
}

// Build builds one version. After an error, finished parts stay and the
// version's folder is what it was.
func Build(ctx context.Context, o Options) (Report, error) {
	r, ok := releases[o.Version]
	if !ok {
		return Report{}, fmt.Errorf("artifact: version %q: want one of %s", o.Version, strings.Join(Versions(), ", "))
	}
	if o.Modules == "" || o.Out == "" {
		return Report{}, errors.New("artifact: Modules and Out: want both")
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	b := &builder{Options: o, ctx: ctx}
	var err error
	if b.Out, err = filepath.Abs(o.Out); err != nil {
		return Report{}, err
	}
	if b.Modules, err = filepath.Abs(o.Modules); err != nil {
		return Report{}, err
	}
	if err := b.all(r); err != nil {
		return b.report, fmt.Errorf("artifact: K3s %s: %w", o.Version, err)
	}
	return b.report, nil
}

// all builds the parts, the cheap ones first, and joins them.
func (b *builder) all(r release) error {
	parts, err := b.parts(r)
	if err != nil {
		return err
	}
	for _, p := range parts {
		if err := b.build(p); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	if err := b.images(); err != nil {
		return fmt.Errorf("images: %w", err)
	}
	return b.assemble(r, parts)
}

// dir is where a part's programs are kept.
func (b *builder) dir(part string) string { return filepath.Join(b.Out, "parts", part) }

// links are the names by which K3s's one program is called.
var links = []string{"k3s-server", "k3s-agent", "k3s-etcd-snapshot", "k3s-secrets-encrypt", "k3s-certificate", "k3s-token", "kubectl", "crictl", "ctr", "containerd"}

// manifests are files of the k3s module that its wrapper would unpack. What
// package k3s disables or replaces (cloud controller, coredns, …) is left out.
var manifests = []string{"rolebindings.yaml", "runtimes.yaml"}

// assemble makes Out/Version out of hard links, beside it first, so that a
// reader sees the old folder or the new one.
func (b *builder) assemble(r release, parts []part) error {
	to := filepath.Join(b.Out, b.Version)
	tmp := to + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	defer os.RemoveAll(tmp) // nothing, once renamed
	if err := os.MkdirAll(filepath.Join(tmp, "bin"), 0o755); err != nil {
		return err
	}
	for _, p := range parts {
		for _, g := range p.progs {
			if g.image {
				continue
			}
			if err := os.Link(filepath.Join(b.dir(p.name), g.out), filepath.Join(tmp, "bin", g.out)); err != nil {
				return err
			}
		}
	}
	for _, l := range links {
		if err := os.Symlink("k3s", filepath.Join(tmp, "bin", l)); err != nil {
			return err
		}
	}
	if err := b.copyManifests(r, filepath.Join(tmp, "manifests")); err != nil {
		return err
	}
	if err := os.CopyFS(filepath.Join(tmp, "images"), os.DirFS(b.dir("images"))); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(tmp, "version"), []byte(r.version+"\n"), 0o644); err != nil {
		return err
	}
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	b.report.Dir = to
	return os.Rename(tmp, to)
}

func (b *builder) copyManifests(r release, to string) error {
	m, err := b.module(r.module, k3sModule)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, f := range manifests {
		y, err := os.ReadFile(filepath.Join(m.Dir, "manifests", f))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, f), y, 0o644); err != nil {
			return err
		}
	}
	return nil
}
