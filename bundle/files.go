package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// The artifacts that we make. Model types: CNCF ModelPack model-spec v0.0.7,
// specs-go/v1; the empty config: OCI image-spec 1.1, manifest.md.
const (
	// FileArtifact is the artifact type of kinds file and policy.
	FileArtifact = "application/vnd.clawbox.file.v1"

	// titleNote holds a file's name; modelPath is ModelPack's own key for it.
	titleNote = "org.opencontainers.image.title"
	modelPath = "org.cncf.model.filepath"

	modelArtifact     = "application/vnd.cncf.model.manifest.v1+json"
	modelConfig       = "application/vnd.cncf.model.config.v1+json"
	modelWeight       = "application/vnd.cncf.model.weight.v1.raw"
	modelWeightConfig = "application/vnd.cncf.model.weight.config.v1.raw"

	emptyConfig = "application/vnd.oci.empty.v1+json"
	rawLayer    = "application/octet-stream"
)

// weightFormats maps a weight file's extension to ModelPack's name of the
// format; every other file is configuration.
var weightFormats = map[string]string{".gguf": "gguf", ".safetensors": "safetensors"}

// artifact stores a manifest with the given config and layers.
func (p *pool) artifact(ctx context.Context, kind string, config v1.Descriptor, layers []v1.Descriptor) (v1.Descriptor, error) {
	d, err := p.putJSON(ctx, types.OCIManifestSchema1, v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: kind, Config: config, Layers: layers,
	})
	d.ArtifactType = kind
	return d, err
}

// fileArtifact wraps one blob.
func (j *job) fileArtifact(ctx context.Context, h v1.Hash, size int64) (fetched, error) {
	config, err := j.pool.put(ctx, emptyConfig, []byte("{}"))
	if err != nil {
		return fetched{}, err
	}
	root, err := j.pool.artifact(ctx, FileArtifact, config, []v1.Descriptor{{
		MediaType: rawLayer, Digest: h, Size: size, Annotations: map[string]string{titleNote: path.Base(j.item.Path)},
	}})
	return fetched{root: root, resolved: h}, err
}

// file takes a local file. It is hashed now, and again when it is written.
func (j *job) file(ctx context.Context) (fetched, error) {
	p := j.recipe.path(j.arg)
	l, h, err := j.hash(ctx, p, j.item.Name)
	if err != nil {
		return fetched{}, err
	}
	if want := j.item.SHA256; want != "" && want != h.Hex {
		return fetched{}, fmt.Errorf("its sha256 is %s, the recipe wants %s: it is another file than the one that was pinned", h.Hex, want)
	}
	j.pool.addLocal(h, l)
	return j.fileArtifact(ctx, h, l.size)
}

func describeMode(m fs.FileMode) string {
	if m.IsDir() {
		return "directory"
	}
	return "special file (" + m.Type().String() + ")"
}

// counted reports what is read, and stops when its context ends.
type counted struct {
	ctx  context.Context
	r    io.Reader
	task Task
}

func (c counted) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.task.Add(int64(n))
	return n, err
}

// modelDir makes a ModelPack artifact of a directory, one raw layer per file,
// in the order of their paths. Nothing in it depends on the machine: no
// times, owners or modes.
func (j *job) modelDir(ctx context.Context) (fetched, error) {
	dir := j.recipe.path(j.arg)
	names, err := modelFiles(dir)
	if err != nil {
		return fetched{}, err
	}
	var layers []v1.Descriptor
	format := ""
	for _, name := range names {
		p := filepath.Join(dir, filepath.FromSlash(name))
		l, h, err := j.hash(ctx, p, j.item.Name+"/"+name)
		if err != nil {
			return fetched{}, err
		}
		j.pool.addLocal(h, l)
		d := v1.Descriptor{MediaType: modelWeightConfig, Digest: h, Size: l.size, Annotations: map[string]string{titleNote: name, modelPath: name}}
		if f, ok := weightFormats[path.Ext(name)]; ok {
			d.MediaType, format = modelWeight, f
		}
		layers = append(layers, d)
	}
	if format == "" {
		return fetched{}, fmt.Errorf("%s holds no .gguf and no .safetensors file: is it a model's directory?", dir)
	}
	config, err := j.modelConfig(ctx, format, layers)
	if err != nil {
		return fetched{}, err
	}
	root, err := j.pool.artifact(ctx, modelArtifact, config, layers)
	return fetched{root: root, resolved: root.Digest}, err
}

// modelConfig is ModelPack's config: what is known of the model, and the
// digests of its files.
func (j *job) modelConfig(ctx context.Context, format string, layers []v1.Descriptor) (v1.Descriptor, error) {
	type object = map[string]any // encoding/json sorts the keys
	var ids []v1.Hash
	for _, l := range layers {
		ids = append(ids, l.Digest)
	}
	about := object{"name": j.item.Name, "version": j.recipe.Metadata.Version}
	if j.item.Licence != "" {
		about["licenses"] = []string{j.item.Licence}
	}
	return j.pool.putJSON(ctx, modelConfig, object{
		"descriptor": about, "config": object{"format": format}, "modelfs": object{"type": "layers", "diffIds": ids},
	})
}

// maxModelFiles bounds the files of one model; its manifest must stay small.
const maxModelFiles = 4096

// modelFiles lists the regular files below dir, as sorted slash paths. A
// symbolic link to a file inside dir counts as that file; one that leaves dir,
// and anything else that is no file, is refused.
func modelFiles(dir string) ([]string, error) {
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	err = filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if err := insideDir(root, p); err != nil {
			return err
		}
		if names = append(names, filepath.ToSlash(name)); len(names) > maxModelFiles {
			return fmt.Errorf("%s holds more than %d files: is it a model's directory?", dir, maxModelFiles)
		}
		return nil
	})
	slices.Sort(names)
	return names, err
}

// insideDir refuses a path that is not, in the end, a regular file below root.
func insideDir(root, p string) error {
	to, err := filepath.EvalSymlinks(p)
	if err != nil {
		return err
	}
	if rel, err := filepath.Rel(root, to); err != nil || !filepath.IsLocal(rel) {
		return fmt.Errorf("%s leads out of the model's directory, to %s: copy the file into it", p, to)
	}
	fi, err := os.Lstat(to)
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is a %s, want regular files only", p, describeMode(fi.Mode()))
	}
	return nil
}

// client follows redirects to https only.
var client = &http.Client{CheckRedirect: func(req *http.Request, via []*http.Request) error {
	if req.URL.Scheme != "https" {
		return permanent{errors.New("redirected away from https")}
	}
	if len(via) > 10 {
		return permanent{errors.New("more than 10 redirects")}
	}
	return nil
}}

// https downloads a file whose sha256 the recipe gives.
func (j *job) https(ctx context.Context) (fetched, error) {
	h := v1.Hash{Algorithm: "sha256", Hex: j.item.SHA256}
	if n, err := j.pool.store.Stat(h); err == nil {
		return j.fileArtifact(ctx, h, n)
	}
	err := retry(ctx, func() error { return j.download(ctx, h) })
	if err != nil {
		return fetched{}, err
	}
	n, err := j.pool.store.Stat(h)
	if err != nil {
		return fetched{}, err
	}
	return j.fileArtifact(ctx, h, n)
}

func (j *job) download(ctx context.Context, h v1.Hash) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+j.arg, nil)
	if err != nil {
		return permanent{err}
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		err := fmt.Errorf("the server answers %s", strings.TrimSpace(resp.Status))
		if resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests {
			return permanent{err}
		}
		return err
	}
	task := j.progress.Start("get "+j.item.Name, resp.ContentLength)
	err = j.pool.store.Put(ctx, h, resp.ContentLength, counted{ctx, resp.Body, task})
	task.Done(err)
	return err
}
