// Package engine runs the embedded model engine (ollama) over the blobs of the
// appliance's content store, without copying them:
//
//	err := engine.Prepare(dir, []engine.Model{{Name: "tiny", Layers: layers}})
//	e, err := engine.Start(ctx, engine.Config{Binary: bin, Dir: dir, Listen: "127.0.0.1:11434", UID: 960, GID: 960})
//	defer e.Close()
//	// e.URL() + "/v1/chat/completions"
//
// Prepare lays dir out as the engine's model directory. Weights, template and
// parameters are hard links into the store, so an 80 GB model costs an inode
// entry; only a small description is written per model. The engine can't change
// any of it: the links stay root's, mode 0444, and the engine runs as a
// user of its own that may write to dir/home and nowhere else.
//
// Start runs the binary with a minimal environment, no supplementary groups and
// no_new_privs, waits until it answers, and restarts it with growing pauses when
// it dies.
//
// With Config.NetNS it listens on the loopback of a namespace of its own, which
// no user of the host reaches.
//
// Limits: without NetNS every process in the host's network namespace can
// reach the engine; agents can't, because theirs has no other side.
// Prepare trusts that the store verified a blob's digest; it checks sizes only.
package engine

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

// Model is one model as the store holds it.
type Model struct {
	Name   string // what clients put into "model"; lower-case letters, digits, ".", "_", "-"
	Layers []Layer
}

// Layer is one blob of a ModelPack artifact.
type Layer struct {
	MediaType string // ModelPack's or ollama's
	Title     string // org.opencontainers.image.title: the file's name
	Digest    string // "sha256:" and 64 hex digits
	Size      int64  // bytes
	Path      string // the blob in the store, on dir's file system
}

// The engine's media types (ollama, server/images.go, GetModel).
const (
	mediaModel    = "application/vnd.ollama.image.model"
	mediaTemplate = "application/vnd.ollama.image.template"
	mediaSystem   = "application/vnd.ollama.image.system"
	mediaParams   = "application/vnd.ollama.image.params"
	mediaLicense  = "application/vnd.ollama.image.license"
	mediaConfig   = "application/vnd.docker.container.image.v1+json"
	mediaManifest = "application/vnd.docker.distribution.manifest.v2+json"
)

// titles says what a file of a model directory is to the engine. Patterns are
// path.Match's; the first that matches the base name wins. An empty media type
// is a file that the engine has no use for.
var titles = []struct{ pattern, media string }{
	{"*.gguf", mediaModel},
	{"template", mediaTemplate},
	{"params.json", mediaParams},
	{"params", mediaParams},
	{"system", mediaSystem},
	{"LICENSE*", mediaLicense},
	{"license*", mediaLicense},
	{"README*", ""},
	{"*.md", ""},
}

var (
	nameRE   = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,79}$`)
	digestRE = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// manifest is the engine's description of a model: an image manifest, version 2 schema 2.
type manifest struct {
	SchemaVersion int     `json:"schemaVersion"`
	MediaType     string  `json:"mediaType"`
	Config        entry   `json:"config"`
	Layers        []entry `json:"layers"`
}

type entry struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

// Prepare makes dir/models hold exactly the given models: missing links are made,
// those of other models are removed. It may run again at any time while no engine runs on
// dir. After an error no model is visible that isn't complete.
func Prepare(dir string, models []Model) error {
	p := &layout{root: filepath.Join(dir, "models"), keep: map[string]bool{}}
	var plans []plan
	for _, m := range models {
		pl, err := describe(m)
		if err != nil {
			return fmt.Errorf("engine: model %q: %w", m.Name, err)
		}
		plans = append(plans, pl)
	}
	for _, d := range []string{p.blobs(""), p.manifests("")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("engine: %w", err)
		}
	}
	for _, pl := range plans {
		if err := p.place(pl); err != nil {
			return fmt.Errorf("engine: model %q: %w", pl.name, err)
		}
	}
	return p.sweep()
}

// plan is a model ready to be laid out.
type plan struct {
	name     string
	links    []Layer
	config   []byte
	manifest []byte
}

// describe checks a model and renders what the engine wants to read about it.
func describe(m Model) (plan, error) {
	if !nameRE.MatchString(m.Name) {
		return plan{}, fmt.Errorf("name: want lower-case letters, digits, '.', '_' and '-', at most 80")
	}
	pl := plan{name: m.Name}
	mf := manifest{SchemaVersion: 2, MediaType: mediaManifest, Layers: []entry{}}
	have := map[string]string{}
	for _, l := range m.Layers {
		media, err := l.media()
		if err != nil {
			return plan{}, err
		}
		if media == "" {
			continue
		}
		if was, dup := have[media]; dup && media != mediaLicense {
			return plan{}, fmt.Errorf("files %q and %q are both %s: the engine takes one; split weights must be merged into one GGUF file", was, l.Title, media)
		}
		have[media] = l.Title
		pl.links = append(pl.links, l)
		mf.Layers = append(mf.Layers, entry{media, l.Digest, l.Size})
	}
	if _, ok := have[mediaModel]; !ok {
		return plan{}, errors.New("no GGUF file among its layers: the embedded engine runs GGUF models only; serve others with vLLM or NIM")
	}
	return pl.render(mf)
}

func (pl plan) render(mf manifest) (_ plan, err error) {
	ids := []string{}
	for _, l := range mf.Layers {
		ids = append(ids, l.Digest)
	}
	// The engine reads the architecture from the GGUF file; these fields only decorate lists.
	pl.config, err = json.Marshal(map[string]any{
		"model_format": "gguf", "architecture": runtime.GOARCH, "os": "linux",
		"rootfs": map[string]any{"type": "layers", "diff_ids": ids},
	})
	if err != nil {
		return pl, err
	}
	mf.Config = entry{mediaConfig, digestOf(pl.config), int64(len(pl.config))}
	pl.manifest, err = json.Marshal(mf)
	return pl, err
}

// media returns the engine's media type for the layer, "" if the engine doesn't
// need it.
func (l Layer) media() (string, error) {
	if !digestRE.MatchString(l.Digest) {
		return "", fmt.Errorf("layer %q: digest %q: want sha256: and 64 hex digits", l.Title, l.Digest)
	}
	if strings.HasPrefix(l.MediaType, "application/vnd.ollama.image.") {
		return l.MediaType, nil
	}
	if strings.HasPrefix(l.MediaType, "application/vnd.cncf.model.doc.") {
		return "", nil
	}
	for _, t := range titles {
		if ok, _ := filepath.Match(t.pattern, filepath.Base(l.Title)); ok {
			return t.media, nil
		}
	}
	return "", fmt.Errorf("layer %q (%s): the engine doesn't know such a file; it takes *.gguf, template, params.json, system and LICENSE", l.Title, l.MediaType)
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// layout is the engine's model directory and what belongs there.
type layout struct {
	root string
	keep map[string]bool // paths of the models given
}

func (p *layout) blobs(digest string) string {
	return filepath.Join(p.root, "blobs", strings.Replace(digest, ":", "-", 1))
}

func (p *layout) manifests(name string) string {
	return filepath.Join(p.root, "manifests", "registry.ollama.ai", "library", name)
}

// place makes one model's links, then its config, and its manifest last: the manifest
// is what makes the engine see the model.
func (p *layout) place(pl plan) error {
	for _, l := range pl.links {
		if err := link(l, p.blobs(l.Digest)); err != nil {
			return err
		}
		p.keep[p.blobs(l.Digest)] = true
	}
	config := p.blobs(digestOf(pl.config))
	p.keep[config] = true
	if err := write(config, pl.config); err != nil {
		return err
	}
	dir := p.manifests(pl.name)
	p.keep[dir] = true
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return write(filepath.Join(dir, "latest"), pl.manifest)
}

// sweep removes models and blobs that nobody asked for, manifests first.
func (p *layout) sweep() error {
	for _, dir := range []string{p.manifests(""), p.blobs("")} {
		ents, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("engine: %w", err)
		}
		for _, e := range ents {
			if path := filepath.Join(dir, e.Name()); !p.keep[path] {
				if err := os.RemoveAll(path); err != nil {
					return fmt.Errorf("engine: %w", err)
				}
			}
		}
	}
	return nil
}

// link makes path another name of the layer's blob. A name that is there
// already is kept if it is the same file.
func link(l Layer, path string) error {
	src, err := os.Stat(l.Path)
	if err != nil {
		return fmt.Errorf("layer %q: %w", l.Title, err)
	}
	if !src.Mode().IsRegular() || src.Size() != l.Size {
		return fmt.Errorf("layer %q: %s has %d bytes, want a regular file of %d: the store is damaged or the manifest is another model's",
			l.Title, l.Path, src.Size(), l.Size)
	}
	if dst, err := os.Lstat(path); err == nil {
		if os.SameFile(src, dst) {
			return nil
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(l.Path, path); err != nil {
		return fmt.Errorf("layer %q: %w (the engine's directory must be on the store's file system, models aren't copied)", l.Title, err)
	}
	return nil
}

// write puts a small file in place by rename. It needs no fsync: the file is
// made again at each start.
func write(path string, b []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, b) {
		return nil
	}
	tmp := path + ".new"
	defer os.Remove(tmp) // a no-op once renamed
	if err := os.WriteFile(tmp, b, 0o444); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
