package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// CNCF ModelPack, model-spec v0.0.7, specs-go/v1.
const (
	ArtifactType = "application/vnd.cncf.model.manifest.v1+json"
	configType   = "application/vnd.cncf.model.config.v1+json"
	pathNote     = "org.cncf.model.filepath"
	titleNote    = "org.opencontainers.image.title" // what registry clients name files by
)

// mediaTypes are ModelPack's layers that lie raw. Weights come first: it is
// what a raw weight layer of another tool is read as.
var mediaTypes = []struct {
	kind  Kind
	media types.MediaType
}{
	{Weight, "application/vnd.cncf.model.weight.v1.raw"},
	{Config, "application/vnd.cncf.model.weight.config.v1.raw"},
	{Doc, "application/vnd.cncf.model.doc.v1.raw"},
	{Code, "application/vnd.cncf.model.code.v1.raw"},
	{Pickle, "application/vnd.cncf.model.weight.v1.raw"},
}

// About is what the files don't say.
type About struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
	Licence string `json:"licence,omitempty"` // SPDX expression
	Ref     string `json:"ref"`               // name in the store; default NAME:VERSION
}

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

func (a About) filled() (About, error) {
	if !nameForm.MatchString(a.Name) {
		return a, fmt.Errorf("name %.80q: want 1 to 64 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit", a.Name)
	}
	if a.Version == "" {
		a.Version = "latest"
	}
	if a.Ref == "" {
		a.Ref = a.Name + ":" + a.Version
	}
	return a, nil
}

// packed is ModelPack's config, as far as we write it. Nothing in it depends on
// the machine or the time, so the same files make the same model.
type packed struct {
	Config struct {
		Architecture string `json:"architecture,omitempty"`
		Format       string `json:"format,omitempty"`
		ParamSize    string `json:"paramSize,omitempty"`
		Precision    string `json:"precision,omitempty"`
		Quantization string `json:"quantization,omitempty"`
	} `json:"config"`
	Descriptor struct {
		Licenses []string `json:"licenses,omitempty"`
		Name     string   `json:"name,omitempty"`
		Version  string   `json:"version,omitempty"`
	} `json:"descriptor"`
	ModelFS struct {
		DiffIDs []v1.Hash `json:"diffIds"`
		Type    string    `json:"type"`
	} `json:"modelfs"`
}

// Pack describes files, whose digests are known, as ModelPack: the bytes of the
// config, and the layers of a manifest of ArtifactType.
func Pack(a About, x Facts, files []File) (config []byte, layers []v1.Descriptor, err error) {
	var p packed
	p.Descriptor.Name, p.Descriptor.Version = a.Name, a.Version
	if a.Licence != "" {
		p.Descriptor.Licenses = []string{a.Licence}
	}
	p.Config.Format, p.Config.Architecture = x.Format, x.Architecture
	p.Config.Precision, p.Config.Quantization = x.Precision, x.Quantization
	p.Config.ParamSize = paramSize(x.Params)
	p.ModelFS.Type = "layers"
	for _, f := range files {
		d := v1.Descriptor{MediaType: f.Kind.media(), Digest: f.Digest, Size: f.Size, Annotations: map[string]string{titleNote: f.Name, pathNote: f.Name}}
		layers = append(layers, d)
		p.ModelFS.DiffIDs = append(p.ModelFS.DiffIDs, f.Digest)
	}
	config, err = json.Marshal(p)
	return config, layers, err
}

func (k Kind) media() types.MediaType {
	for _, m := range mediaTypes {
		if m.kind == k {
			return m.media
		}
	}
	panic("model: no media type for kind " + string(k))
}

// paramSize writes a count as model cards do: 8.0b, 671m.
func paramSize(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.1fb", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%dm", n/1e6)
	}
	return ""
}

// errNot says that a manifest is something else; List passes over it.
var errNot = errors.New("not a model")

// unpack reads a manifest's layers back as files.
func unpack(m *v1.Manifest) ([]File, error) {
	if m.ArtifactType != ArtifactType && m.Config.MediaType != configType {
		return nil, fmt.Errorf("artifact type %.80q: %w", m.ArtifactType, errNot)
	}
	var files []File
	seen := map[string]bool{}
	for _, d := range m.Layers {
		f, err := file(d)
		if err != nil {
			return nil, err
		}
		if seen[f.Name] {
			return nil, fmt.Errorf("file %s is there twice", f.Name)
		}
		seen[f.Name] = true
		files = append(files, f)
	}
	for _, f := range files {
		for d := path.Dir(f.Name); d != "."; d = path.Dir(d) {
			if seen[d] {
				return nil, fmt.Errorf("%s is a file, and a folder of %s", d, f.Name)
			}
		}
	}
	if len(files) == 0 || len(files) > MaxFiles {
		return nil, fmt.Errorf("%d files, want 1 to %d", len(files), MaxFiles)
	}
	return files, nil
}

func file(d v1.Descriptor) (File, error) {
	name := d.Annotations[pathNote]
	if name == "" {
		name = d.Annotations[titleNote]
	}
	if !fs.ValidPath(name) || name == "." || len(name) > 512 || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }) {
		return File{}, fmt.Errorf("layer %s is named %.80q, want a clean relative path", d.Digest, name)
	}
	f := File{Name: name, Size: d.Size, Digest: d.Digest}
	for _, m := range mediaTypes {
		if m.media == d.MediaType {
			f.Kind = m.kind
			break
		}
	}
	if f.Kind == "" {
		return f, fmt.Errorf("layer %s has media type %.80q: want ModelPack's raw layers; packed ones can't be shared without a copy, push the model with raw layers", name, d.MediaType)
	}
	if k := fit(name); f.Kind == Weight {
		f.Kind, f.Format = k.kind, k.format
		if k.kind != Pickle {
			f.Kind = Weight
		}
	}
	return f, nil
}

// readAll reads a small blob whole.
func readAll(r io.Reader, size int64) ([]byte, error) {
	if size > maxManifest {
		return nil, fmt.Errorf("%d bytes, want at most %d", size, maxManifest)
	}
	return io.ReadAll(io.LimitReader(r, size+1))
}

const maxManifest = 4 << 20
