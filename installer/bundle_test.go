package installer

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
)

const realRecipe = `apiVersion: clawbox.io/v1
kind: Recipe
metadata: {name: demo, version: 0.1.0}
sequence: 7
items:
  - {name: openclaw, kind: image, source: "oci-layout:image", licence: MIT, redistributable: true}
  - {name: tiny, kind: model, source: "dir:model", licence: MIT, redistributable: true}
  - {name: clawbox, kind: file, source: "file:clawbox.bin", path: bin/clawbox, mode: "0755", licence: MIT, redistributable: true}
  - {name: launch, kind: file, source: "file:launch.bin", path: bin/clawbox-launch, mode: "0755", licence: MIT, redistributable: true}
  - {name: engine, kind: file, source: "file:engine.bin", path: bin/ollama, mode: "0755", licence: MIT, redistributable: true}
  - {name: openclaw-policy, kind: policy, source: "file:openclaw.yaml", licence: MIT, redistributable: true}
`

// realMedia builds a small signed bundle and gives its folder and key file.
func realMedia(t *testing.T, policy string) (dir, key string) {
	t.Helper()
	src := t.TempDir()
	put := func(name, data string) {
		p := filepath.Join(src, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("recipe.yaml", realRecipe)
	put("clawbox.bin", "#!/bin/sh\necho clawbox\n")
	put("launch.bin", strings.Repeat("launch", 1000))
	put("engine.bin", strings.Repeat("engine", 100000))
	put("openclaw.yaml", policy)
	header := `{"w":{"dtype":"I8","shape":[1600000],"data_offsets":[0,1600000]}}`
	put("model/tiny.safetensors", string(binary.LittleEndian.AppendUint64(nil, uint64(len(header))))+header+strings.Repeat("weights!", 200000))
	img, err := random.Image(100_000, 2)
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", "amd64"
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	p, err := layout.Write(filepath.Join(src, "image"), empty.Index)
	if err == nil {
		err = p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "latest"}))
	}
	if err != nil {
		t.Fatal(err)
	}
	skey, vkey, err := manifest.GenerateKey("acme.example")
	if err != nil {
		t.Fatal(err)
	}
	s, err := manifest.ParseSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	put("acme.vkey", vkey+"\n")
	dir = filepath.Join(src, "stick")
	_, err = bundle.Build(t.Context(), bundle.BuildOptions{
		Recipe: filepath.Join(src, "recipe.yaml"), Out: dir, Store: filepath.Join(src, "work"),
		Signers: []manifest.Signer{s}, PartSize: bundle.MinPartSize,
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir, filepath.Join(src, "acme.vkey")
}

// installFrom does what `clawbox install` does with media below dir.
func installFrom(t *testing.T, root, dir string, deep bool, keys ...string) (Result, error) {
	t.Helper()
	trust, _, err := Trust(root, 0, keys...)
	if err != nil {
		return Result{}, err
	}
	m, err := bundle.OpenMedia(trust, dir)
	if err != nil {
		return Result{}, err
	}
	rel, env, err := FromMedia(m, trust, nil)
	if err != nil {
		return Result{}, err
	}
	if deep {
		env.Verify = func(ctx context.Context) error { return m.Verify(ctx, nil) }
	}
	f := goodFacts(root)
	f.Time = time.Now() // the release was made just now
	if f.MediaRead, err = MediaRate(dir); err != nil {
		return Result{}, err
	}
	p, err := NewPlan(f, goodAnswers(root, rel), rel)
	if err != nil {
		return Result{}, err
	}
	return Run(t.Context(), p, env)
}

func TestRealBundle(t *testing.T) {
	dir, key := realMedia(t, goodPolicy)
	root := t.TempDir()
	res, err := installFrom(t, root, dir, false, key)
	if err != nil {
		t.Fatal(err)
	}
	if res.Sequence != 7 || res.Mode != "installed" {
		t.Errorf("got %+v", res)
	}
	b, err := os.ReadFile(filepath.Join(root, "usr/local/bin/clawbox"))
	if err != nil || string(b) != "#!/bin/sh\necho clawbox\n" {
		t.Errorf("the command is %q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(root, "opt/clawbox/current/policies/openclaw-policy.yaml")); err != nil {
		t.Error(err)
	}
	// Again, with the keys that were kept: nothing to do.
	res, err = installFrom(t, root, dir, false)
	if err != nil || res.Mode != "verified" || len(res.Changed) != 0 {
		t.Errorf("the second run: got %+v, %v", res, err)
	}
	other, otherKey := realMedia(t, goodPolicy)
	if _, err := installFrom(t, root, other, false); !errors.Is(err, manifest.ErrUntrusted) {
		t.Errorf("another publisher's media: got %v; want ErrUntrusted", err)
	}
	if _, err := installFrom(t, root, other, false, otherKey); err == nil || !strings.Contains(err.Error(), "not among the installed ones") {
		t.Errorf("another publisher's key: got %v", err)
	}
}

// Nothing may appear below the root when media are not what was signed.
func TestTamperedBundle(t *testing.T) {
	good, key := realMedia(t, goodPolicy)
	parts, err := filepath.Glob(filepath.Join(good, "clawbox/parts/*"))
	if err != nil || len(parts) < 2 {
		t.Fatalf("parts: %v, %v", parts, err)
	}
	rel := func(p string) string { r, _ := filepath.Rel(good, p); return r }
	rows := map[string]struct {
		deep   bool
		want   string
		damage func(dir string) error
	}{
		"note":          {false, "release.note", func(d string) error { return flip(filepath.Join(d, "clawbox/release.note"), 100) }},
		"index":         {false, "index.json", func(d string) error { return flip(filepath.Join(d, "clawbox/index.json"), 50) }},
		"part missing":  {false, "part-0002", func(d string) error { return os.Remove(filepath.Join(d, rel(parts[1]))) }},
		"part cut":      {false, "part-0001", func(d string) error { return os.Truncate(filepath.Join(d, rel(parts[0])), 1000) }},
		"payload, deep": {true, "of item tiny", func(d string) error { return flip(filepath.Join(d, rel(parts[1])), 5000) }},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			dir, root := filepath.Join(t.TempDir(), "stick"), t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(good)); err != nil {
				t.Fatal(err)
			}
			if err := row.damage(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := installFrom(t, root, dir, row.deep, key); err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v; want a refusal that names %s", err, row.want)
			}
			untouched(t, root)
		})
	}
}

// A byte flipped in the payload is found while loading: nothing gets active,
// and good media finish the job.
func TestDamagedPayload(t *testing.T) {
	good, key := realMedia(t, goodPolicy)
	dir, root := filepath.Join(t.TempDir(), "stick"), t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(good)); err != nil {
		t.Fatal(err)
	}
	parts, _ := filepath.Glob(filepath.Join(dir, "clawbox/parts/*"))
	if err := flip(parts[len(parts)-1], 1000); err != nil {
		t.Fatal(err)
	}
	_, err := installFrom(t, root, dir, false, key)
	var spoiled *SpoiledError
	if !errors.As(err, &spoiled) || spoiled.Blobs == 0 || !errors.Is(err, manifest.ErrTampered) {
		t.Fatalf("got %v; want a SpoiledError with ErrTampered", err)
	}
	store := filepath.Join(root, "var/lib/clawbox/store")
	err = filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && !strings.HasPrefix(p, store+"/") {
			t.Errorf("%s is left", p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if res, err := installFrom(t, root, good, false, key); err != nil || res.Mode != "installed" {
		t.Errorf("good media: got %+v, %v", res, err)
	}
}

func TestBadPolicy(t *testing.T) {
	dir, key := realMedia(t, "apiVersion: clawbox.io/v1\nkind: AgentPolicy\nmetadata: {name: x}\nnetwrok: {}\n")
	root := t.TempDir()
	_, err := installFrom(t, root, dir, false, key)
	var step *StepError
	if !errors.As(err, &step) || step.Step != "policies" || step.Active || !strings.Contains(err.Error(), "netwrok") {
		t.Errorf("got %v; want the step policies to refuse netwrok", err)
	}
}

func flip(path string, off int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		return err
	}
	b[0] ^= 1
	_, err = f.WriteAt(b, off)
	return err
}
