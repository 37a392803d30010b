package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/bundle/model"
)

// checkModel holds the fields that are about models to their form.
func (r Recipe) checkModel(it Item) error {
	folder := it.Kind == "model" && strings.HasPrefix(it.Source, "dir:")
	chosen := it.Target != (model.Target{}) || len(it.Profiles) > 0
	switch {
	case it.Pickles && it.Kind != "model":
		return r.fail(it.Line, "pickles for the "+it.Kind+" "+it.Name, "it for models only", "remove it")
	case !folder && (chosen || len(it.Exclude) > 0):
		return r.fail(it.Line, "target, profiles or exclude for "+it.Name, "them for models from a folder (dir:) only", "remove them")
	case !chosen:
		return nil
	}
	if _, ok := model.GPUs[it.Target.GPU]; !ok {
		return r.fail(it.Line, fmt.Sprintf("target.gpu %.40q", it.Target.GPU), "one of "+strings.Join(model.GPUNames(), ", "), "")
	}
	for _, p := range it.Profiles {
		if !fs.ValidPath(p.Name) || p.Name == "." {
			return r.fail(it.Line, fmt.Sprintf("profile %.80q", p.Name), "a folder or a file in the model's folder", "")
		}
	}
	return nil
}

// modelDir makes a ModelPack artifact of a folder, or of the profile in it that
// the target's GPUs are best served with. Nothing in it depends on the machine:
// no times, owners or modes.
func (j *job) modelDir(ctx context.Context) (fetched, error) {
	dir, out := j.recipe.path(j.arg), &manifest.Model{}
	if j.item.Target.GPU != "" {
		c, err := j.choose(dir)
		if err != nil {
			return fetched{}, err
		}
		dir = filepath.Join(dir, filepath.FromSlash(c.Name))
		out.Profile, out.Target = c.Name, fmt.Sprintf("%d × %s", c.TensorParallel, j.item.Target.GPU)
	}
	files, facts, err := j.modelFiles(ctx, dir)
	if err != nil {
		return fetched{}, err
	}
	about := model.About{Name: j.item.Name, Version: j.recipe.Metadata.Version, Licence: j.item.Licence}
	raw, layers, err := model.Pack(about, facts, files)
	if err != nil {
		return fetched{}, err
	}
	config, err := j.pool.put(ctx, modelConfig, raw)
	if err != nil {
		return fetched{}, err
	}
	root, err := j.pool.artifact(ctx, model.ArtifactType, config, layers)
	said(out, files, facts)
	return fetched{root: root, resolved: root.Digest, model: out}, err
}

func (j *job) modelOptions() model.Options {
	return model.Options{Pickles: j.item.Pickles, Exclude: j.item.Exclude}
}

// modelFiles reads a folder, each file once, and makes its files part of the
// pool. Headers are looked at before and after: a file that changed meanwhile is
// an error.
func (j *job) modelFiles(ctx context.Context, dir string) ([]model.File, model.Facts, error) {
	f, err := model.Scan(dir, j.modelOptions())
	if err != nil {
		return nil, model.Facts{}, err
	}
	defer f.Close()
	files := append([]model.File{}, f.Files...)
	for i := range files {
		if files[i].Digest, err = j.modelFile(ctx, f, files[i]); err != nil {
			return nil, f.Facts, err
		}
	}
	again, err := model.Scan(dir, j.modelOptions())
	if err != nil {
		return nil, f.Facts, err
	}
	if !reflect.DeepEqual(again.Files, f.Files) || !reflect.DeepEqual(again.Facts, f.Facts) {
		err = fmt.Errorf("%s changed while it was read: build again when it is complete", dir)
	}
	return files, f.Facts, errors.Join(err, again.Close())
}

func (j *job) modelFile(ctx context.Context, f *model.Folder, x model.File) (v1.Hash, error) {
	in, err := f.Open(x)
	if err != nil {
		return v1.Hash{}, err
	}
	defer in.Close()
	l, h, err := j.hash(ctx, in, j.item.Name+"/"+x.Name)
	if err == nil && l.size != x.Size {
		err = fmt.Errorf("%s changed while it was read: build again when it is complete", in.Name())
	}
	if err == nil {
		j.pool.addLocal(h, l)
	}
	return h, err
}

// said notes what the release tells of a model.
func said(out *manifest.Model, files []model.File, x model.Facts) {
	out.Format, out.Architecture = manifest.Plain(x.Format), manifest.Plain(x.Architecture)
	out.Precision, out.Quantization, out.Params = manifest.Plain(x.Precision), manifest.Plain(x.Quantization), x.Params
	for _, f := range files {
		if f.Kind == model.Code || f.Kind == model.Pickle {
			out.Code = append(out.Code, manifest.CodeFile{Name: manifest.Plain(f.Name), Digest: f.Digest})
		}
	}
	for _, s := range x.Asks {
		out.Asks = append(out.Asks, manifest.Plain(s))
	}
}

// foreignModel checks a model that another tool packed; nil for an artifact that
// is not ModelPack.
func (j *job) foreignModel(root v1.Descriptor) (*manifest.Model, error) {
	if !root.MediaType.IsImage() {
		return nil, nil
	}
	raw, err := j.pool.manifest(root)
	if err != nil {
		return nil, err
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	files, facts, ok, err := model.Inspect(m, j.pool.open, j.modelOptions())
	if err != nil || !ok {
		return nil, err
	}
	out := &manifest.Model{}
	said(out, files, facts)
	return out, nil
}

// choose scans the headers of every profile and takes the one that suits the
// target.
func (j *job) choose(dir string) (model.Choice, error) {
	ps := j.item.Profiles
	if len(ps) == 0 {
		var err error
		if ps, err = profiles(dir); err != nil {
			return model.Choice{}, err
		}
	}
	ps = append([]model.Profile{}, ps...)
	for i := range ps {
		f, err := model.Scan(filepath.Join(dir, filepath.FromSlash(ps[i].Name)), j.modelOptions())
		if err != nil {
			return model.Choice{}, err
		}
		ps[i] = f.Facts.Complete(ps[i])
		if err := f.Close(); err != nil {
			return model.Choice{}, err
		}
	}
	return model.Select(j.item.Target, ps)
}

// profiles are the subfolders of a model's folder.
func profiles(dir string) (out []model.Profile, err error) {
	es, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range es {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			out = append(out, model.Profile{Name: e.Name()})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has no folders: with a target each profile is a folder of its own; list others under profiles", dir)
	}
	return out, nil
}
