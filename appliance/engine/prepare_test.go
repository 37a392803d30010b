package engine

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// layer puts a blob into a store-like folder.
func layer(t *testing.T, dir, title, content string) Layer {
	t.Helper()
	hex := fmt.Sprintf("%x", sha256.Sum256([]byte(content)))
	path := filepath.Join(dir, hex)
	if err := os.WriteFile(path, []byte(content), 0o444); err != nil && !os.IsPermission(err) {
		t.Fatal(err)
	}
	return Layer{
		MediaType: "application/vnd.cncf.model.weight.v1.raw", Title: title,
		Digest: "sha256:" + hex, Size: int64(len(content)), Path: path,
	}
}

func oneModelAt(t *testing.T, dir, name string) Model {
	return Model{name, []Layer{layer(t, dir, "model.gguf", "GGUF "+name), layer(t, dir, "template", "{{ .Prompt }}")}}
}

func oneModel(t *testing.T, name string) Model { return oneModelAt(t, openTemp(t), name) }

// files lists what is below dir, by relative path.
func files(t *testing.T, dir string) map[string]os.FileInfo {
	t.Helper()
	out := map[string]os.FileInfo{}
	err := filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		if err == nil && !fi.IsDir() {
			rel, _ := filepath.Rel(dir, p)
			out[rel] = fi
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPrepareLinksAndDescribes(t *testing.T) {
	store, dir := t.TempDir(), t.TempDir()
	m := oneModelAt(t, store, "tiny")
	m.Layers = append(m.Layers, layer(t, store, "params.json", "{}"), layer(t, store, "README.md", "hello"))
	for range 2 { // again changes nothing
		if err := Prepare(dir, []Model{m}); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(filepath.Join(dir, "models/manifests/registry.ollama.ai/library/tiny/latest"))
	if err != nil {
		t.Fatal(err)
	}
	var mf manifest
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&mf); err != nil {
		t.Fatal(err)
	}
	want := []string{mediaModel, mediaTemplate, mediaParams}
	if len(mf.Layers) != len(want) {
		t.Fatalf("%d layers, want %d: %s", len(mf.Layers), len(want), raw)
	}
	got := files(t, filepath.Join(dir, "models/blobs"))
	for i, l := range mf.Layers {
		if l.MediaType != want[i] || l.Digest != m.Layers[i].Digest || l.Size != m.Layers[i].Size {
			t.Errorf("layer %d is %+v, want %s of %+v", i, l, want[i], m.Layers[i])
		}
		src, _ := os.Stat(m.Layers[i].Path)
		if !os.SameFile(src, got[strings.Replace(l.Digest, ":", "-", 1)]) {
			t.Errorf("%s isn't a link to the store", l.MediaType)
		}
	}
	config := strings.Replace(mf.Config.Digest, ":", "-", 1)
	b, err := os.ReadFile(filepath.Join(dir, "models/blobs", config))
	if err != nil || digestOf(b) != mf.Config.Digest || int64(len(b)) != mf.Config.Size {
		t.Errorf("config %s: %d bytes with digest %s, %v", mf.Config.Digest, len(b), digestOf(b), err)
	}
	if len(got) != len(want)+1 {
		t.Errorf("%d blobs, want %d layers and the config: %v", len(got), len(want), got)
	}
}

func TestPrepareRemovesTheRest(t *testing.T) {
	store, dir := t.TempDir(), t.TempDir()
	a, b := oneModelAt(t, store, "a"), oneModelAt(t, store, "b") // they share the template
	if err := Prepare(dir, []Model{a, b}); err != nil {
		t.Fatal(err)
	}
	if n := len(files(t, dir)); n != 2+2+1+2 {
		t.Fatalf("%d files, want 2 manifests, 2 configs, 1 template, 2 weights", n)
	}
	stray := filepath.Join(dir, "models/blobs/sha256-stray")
	if err := os.WriteFile(stray, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// A name that is another file must be replaced, not believed.
	wrong := filepath.Join(dir, "models/blobs", strings.Replace(b.Layers[0].Digest, ":", "-", 1))
	os.Remove(wrong)
	if err := os.WriteFile(wrong, []byte("evil"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Prepare(dir, []Model{b}); err != nil {
		t.Fatal(err)
	}
	if n := len(files(t, dir)); n != 4 {
		t.Errorf("%d files left, want b's 4: %v", n, files(t, dir))
	}
	if got, _ := os.ReadFile(wrong); string(got) != "GGUF b" {
		t.Errorf("weights are %q", got)
	}
	for _, l := range a.Layers { // links go, the store stays
		if _, err := os.Stat(l.Path); err != nil {
			t.Error(err)
		}
	}
}

func TestPrepareRefuses(t *testing.T) {
	store := t.TempDir()
	ok := oneModelAt(t, store, "m")
	with := func(l ...Layer) Model { return Model{"m", append(ok.Layers[:2:2], l...)} }
	bad := func(change func(*Layer)) Model {
		l := ok.Layers[0]
		change(&l)
		return Model{"m", []Layer{l}}
	}
	for name, c := range map[string]struct {
		m    Model
		want string
	}{
		"path as name":   {Model{"../m", ok.Layers}, "name: want"},
		"tag in name":    {Model{"m:7b", ok.Layers}, "name: want"},
		"no weights":     {Model{"m", ok.Layers[1:]}, "no GGUF file"},
		"split weights":  {with(layer(t, store, "model-2.gguf", "more")), "one GGUF"},
		"safetensors":    {with(layer(t, store, "model.safetensors", "x")), "doesn't know"},
		"digest":         {bad(func(l *Layer) { l.Digest = "sha256:../../etc/passwd" }), "64 hex"},
		"size":           {bad(func(l *Layer) { l.Size++ }), "want a regular file of 7"},
		"absent":         {bad(func(l *Layer) { l.Path += "x" }), "no such file"},
		"another device": {bad(func(l *Layer) { l.Path = "/proc/version"; l.Size = 0 }), "file system"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			err := Prepare(dir, []Model{c.m})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
			for f := range files(t, dir) {
				if strings.HasPrefix(f, "models/manifests") {
					t.Errorf("%s is left: the engine would offer a broken model", f)
				}
			}
		})
	}
}
