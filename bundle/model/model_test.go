package model

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/bundle/content"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("MODEL_TEST_PLACE"); dir != "" {
		placeChild(dir)
	}
	os.Exit(m.Run())
}

// shard is a safetensors file of one U8 tensor with n bytes.
func shard(name string, n int) string {
	return string(st(fmt.Sprintf(`{%q:{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}`, name, n, n), n))
}

// hf is a small folder as Hugging Face publishes them.
func hf() map[string]string {
	return map[string]string{
		"config.json":                      `{"architectures":["LlamaForCausalLM"],"quantization_config":{"quant_method":"fp8"}}`,
		"tokenizer.json":                   `{}`,
		"README.md":                        "# a model",
		".gitattributes":                   "*.safetensors filter=lfs",
		"model-00001-of-00002.safetensors": shard("a", 1000),
		"model-00002-of-00002.safetensors": shard("b", 2000),
		"model.safetensors.index.json":     `{"metadata":{"total_size":3000},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}`,
	}
}

func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "m")
	for n, text := range files {
		p := filepath.Join(dir, n)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func scan(t *testing.T, p string, o Options) *Folder {
	t.Helper()
	f, err := Scan(p, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestScan(t *testing.T) {
	files := hf()
	files["modeling.py"] = "import os"
	files["config.json"] = `{"architectures":["X"],"auto_map":{"AutoModel":"modeling.X"}}`
	f := scan(t, write(t, files), Options{})
	if len(f.Files) != 7 || f.Facts.Params != 3000 || f.Facts.Precision != "u8" || f.Facts.Format != "safetensors" || f.Facts.Architecture != "X" {
		t.Errorf("got %d files, %+v", len(f.Files), f.Facts)
	}
	if len(f.Facts.Code) != 1 || len(f.Facts.Asks) != 1 || !strings.Contains(f.Facts.Asks[0], "modeling.X") {
		t.Errorf("code %v, asks %v", f.Facts.Code, f.Facts.Asks)
	}
}

func TestScanRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(map[string]string)
		want   string
	}{
		"pickle":           {func(m map[string]string) { m["pytorch_model.bin"] = "x" }, "pytorch_model.bin: pickles run code"},
		"pickle in a coat": {func(m map[string]string) { m["tokenizer.dat"] = "\x80\x04\x95abc" }, "tokenizer.dat: pickles"},
		"torch archive":    {func(m map[string]string) { m["vocab"] = "PK\x03\x04data.pkl" }, "vocab: pickles"},
		"missing shard":    {func(m map[string]string) { delete(m, "model-00002-of-00002.safetensors") }, "not complete"},
		"no index, missing": {func(m map[string]string) {
			delete(m, "model.safetensors.index.json")
			delete(m, "model-00001-of-00002.safetensors")
		}, "model-00001-of-00002.safetensors is missing"},
		"other model's index": {func(m map[string]string) {
			m["model.safetensors.index.json"] = `{"weight_map":{"a":"model-00001-of-00002.safetensors","c":"model-00002-of-00002.safetensors"}}`
		}, "different models"},
		"index too short": {func(m map[string]string) {
			m["model-00001-of-00002.safetensors"] = string(st(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 2))
		}, "has 2 tensors, the index names 1"},
		"damaged header": {func(m map[string]string) { m["model-00001-of-00002.safetensors"] += "x" }, "appended"},
		"bad config":     {func(m map[string]string) { m["config.json"] = "{" }, "want JSON"},
		"no weights": {func(m map[string]string) {
			for _, n := range []string{"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"} {
				delete(m, n)
			}
		}, "no .gguf and no .safetensors"},
		"name": {func(m map[string]string) { m["a\nb"] = "x" }, "control characters"},
	} {
		t.Run(name, func(t *testing.T) {
			files := hf()
			c.change(files)
			f, err := Scan(write(t, files), Options{})
			if err == nil {
				f.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

// TestKinds: content decides where a name says nothing.
func TestKinds(t *testing.T) {
	odd := strings.Repeat(" ", 0x280-len(`{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}`)) // the length reads 80 02: a pickle's beginning
	for text, want := range map[string]Kind{
		shard("a", 3): Weight,
		string(st(`{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}`+odd, 0)): Weight,
		head(0, 0).String(): Weight, "\x80\x02}q": Pickle, "\x80\x05\x95": Pickle, "PK\x03\x04": Pickle,
		"\x7fELF\x02": Code, "#!/bin/sh": Code, "{}": Config, "": Config, "\x80": Config,
	} {
		f := File{Name: "0a1b2c", Kind: fit("0a1b2c").kind}
		if err := f.sniff(strings.NewReader(text)); err != nil || f.Kind != want {
			t.Errorf("%.20q is %s, %v; want %s", text, f.Kind, err, want)
		}
	}
}

func TestScanOptions(t *testing.T) {
	files := hf()
	files["original/consolidated.00.pth"] = "\x80\x02x"
	dir := write(t, files)
	if f := scan(t, dir, Options{Exclude: []string{"original"}}); len(f.Files) != 6 {
		t.Errorf("got %d files, want 6", len(f.Files))
	}
	if f := scan(t, dir, Options{Pickles: true}); len(f.Files) != 7 {
		t.Errorf("got %d files, want 7", len(f.Files))
	}
}

// TestLinks: a Hugging Face cache is made of links; none may lead out.
func TestLinks(t *testing.T) {
	base := t.TempDir()
	cache := filepath.Join(base, "models--acme--tiny")
	snap := filepath.Join(cache, "snapshots", "0123abc")
	for _, d := range []string{filepath.Join(cache, "blobs"), snap, filepath.Join(cache, "refs")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(cache, "blobs", "aa"), []byte(shard("a", 10)), 0o644))
	must(os.WriteFile(filepath.Join(cache, "refs", "main"), []byte("0123abc"), 0o644))
	must(os.Symlink("../../blobs/aa", filepath.Join(snap, "model.safetensors")))
	for _, p := range []string{cache, snap} {
		if f := scan(t, p, Options{}); len(f.Files) != 1 || f.Facts.Params != 10 {
			t.Errorf("%s: got %+v", p, f.Files)
		}
	}
	if f := scan(t, filepath.Join(snap, "model.safetensors"), Options{}); len(f.Files) != 1 || f.Files[0].Name != "model.safetensors" {
		t.Errorf("got %+v", f.Files)
	}
	must(os.WriteFile(filepath.Join(base, "secret"), []byte("x"), 0o600))
	for name, to := range map[string]string{"absolute": filepath.Join(base, "secret"), "relative": "../../../secret", "folder": "../../blobs", "dangling": "nowhere"} {
		l := filepath.Join(snap, "x.json")
		must(os.Symlink(to, l))
		if f, err := Scan(snap, Options{}); err == nil {
			f.Close()
			t.Errorf("%s link: no error", name)
		}
		must(os.Remove(l))
	}
	must(syscall.Mkfifo(filepath.Join(snap, "pipe"), 0o600))
	if _, err := Scan(snap, Options{}); err == nil || !strings.Contains(err.Error(), "special file") {
		t.Errorf("FIFO: %v", err)
	}
}

// TestRevision: which snapshot a cache's folder means is read from a small file
// of it, and from nothing else that may be in its place.
func TestRevision(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("s3cret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, make := range map[string]func(main string) error{
		"FIFO":     func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"link out": func(p string) error { return os.Symlink(secret, p) },
		"link in":  func(p string) error { return os.Symlink("../blobs/aa", p) },
		"folder out": func(p string) error {
			return errors.Join(os.Remove(filepath.Dir(p)), os.Symlink(filepath.Dir(secret), filepath.Dir(p)), os.WriteFile(filepath.Join(filepath.Dir(secret), "main"), []byte("s3cret"), 0o600))
		},
		"sparse":  func(p string) error { return errors.Join(os.WriteFile(p, nil, 0o644), os.Truncate(p, 1<<40)) },
		"path":    func(p string) error { return os.WriteFile(p, []byte("../0123abc"), 0o644) },
		"escapes": func(p string) error { return os.WriteFile(p, []byte("\x1b[8m"), 0o644) },
		"empty":   func(p string) error { return os.WriteFile(p, nil, 0o644) },
	} {
		cache := filepath.Join(t.TempDir(), "models--acme--tiny")
		snap := filepath.Join(cache, "snapshots", "0123abc")
		for _, d := range []string{filepath.Join(cache, "blobs"), snap, filepath.Join(cache, "refs")} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		err := errors.Join(os.WriteFile(filepath.Join(cache, "blobs", "aa"), []byte("0123abc"), 0o644),
			os.WriteFile(filepath.Join(snap, "model.safetensors"), []byte(shard("a", 10)), 0o644), make(filepath.Join(cache, "refs", "main")))
		if err != nil {
			t.Fatal(err)
		}
		done := goScan(cache)
		select {
		case err := <-done:
			if err == nil || strings.Contains(err.Error(), "s3cret") || len(err.Error()) > 1000 || !strings.Contains(err.Error(), "name the snapshot itself") {
				t.Errorf("%s: got %.300v", what, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: Scan waits", what)
		}
	}
}

func goScan(p string) <-chan error {
	done := make(chan error, 1)
	go func() {
		f, err := Scan(p, Options{})
		if err == nil {
			f.Close()
		}
		done <- err
	}()
	return done
}

func store(t *testing.T) *content.Store {
	t.Helper()
	s, err := content.Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func imported(t *testing.T, s *content.Store, name string) Model {
	t.Helper()
	m, err := Import(t.Context(), s, scan(t, write(t, hf()), Options{}), About{Name: name, Version: "1.0.0", Licence: "MIT"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestImport(t *testing.T) {
	s := store(t)
	m := imported(t, s, "tiny")
	got, err := Open(s, "tiny:1.0.0")
	if err != nil || !slices.Equal(got.Files, m.Files) || got.Licence != "MIT" || got.Facts.Architecture != "LlamaForCausalLM" || got.Facts.Quantization != "fp8" {
		t.Errorf("got %+v, %v", got, err)
	}
	x, err := Verify(t.Context(), s, got, nil)
	if err != nil || x.Params != 3000 {
		t.Errorf("got %+v, %v", x, err)
	}
	if other := imported(t, store(t), "tiny"); other.Manifest.Digest != m.Manifest.Digest {
		t.Error("the same files made another model")
	}
	var read int64
	if _, err := Import(t.Context(), s, scan(t, write(t, hf()), Options{}), About{Name: "again"}, func(_ string, n int64) { read += n }); err != nil {
		t.Fatal(err)
	}
	if read != m.Size() {
		t.Errorf("the second import read %d bytes, want %d: each once", read, m.Size())
	}
	ms, err := List(s)
	if err != nil || len(ms) != 2 || ms[1].Ref != "again:latest" {
		t.Errorf("got %v, %v", ms, err)
	}
	if _, err := Open(s, "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// TestNamelessWeights: a NIM cache holds weights by digest, and other tools'
// models hold formats that we don't know.
func TestNamelessWeights(t *testing.T) {
	s := store(t)
	dir := write(t, map[string]string{"ngc/hub/blobs/0a1b": shard("a", 50), "ngc/hub/refs/main": "1"})
	if _, err := Import(t.Context(), s, scan(t, dir, Options{}), About{Name: "cache"}, nil); err != nil {
		t.Fatal(err)
	}
	m, err := Open(s, "cache:latest")
	if err != nil {
		t.Fatal(err)
	}
	if x, err := Verify(t.Context(), s, m, nil); err != nil || x.Params != 50 || len(x.Notes) != 0 {
		t.Errorf("got %+v, %v", x, err)
	}
	for i := range m.Files {
		m.Files[i].Kind = Weight
		m.Files[i].Format = ""
	}
	if x, err := Verify(t.Context(), s, m, nil); err != nil || x.Params != 50 || len(x.Notes) != 1 {
		t.Errorf("got %+v, %v", x, err)
	}
}

// TestImportLeavesNoName: a source that changes, or a cancelled import.
func TestImportLeavesNoName(t *testing.T) {
	dir := write(t, hf())
	f := scan(t, dir, Options{})
	s := store(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Import(ended, s, f, About{Name: "m"}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	damaged := strings.Replace(shard("a", 1000), `"U8"`, `"X8"`, 1)
	for name, text := range map[string]string{"longer": shard("a", 1001), "other header": damaged, "pickle": "\x80\x04x", "shorter": "x"} {
		p := filepath.Join(dir, "model-00001-of-00002.safetensors")
		if name == "pickle" {
			p = filepath.Join(dir, "tokenizer.json")
		}
		was, _ := os.ReadFile(p)
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Import(t.Context(), s, f, About{Name: "m"}, nil); err == nil {
			t.Errorf("%s: imported", name)
		}
		os.WriteFile(p, was, 0o644)
	}
	for _, a := range []About{{}, {Name: "A"}, {Name: "../x"}, {Name: "x", Ref: "a b"}} {
		if _, err := Import(t.Context(), s, f, a, nil); err == nil {
			t.Errorf("%+v: imported", a)
		}
	}
	if ms, err := List(s); err != nil || len(ms) != 0 {
		t.Errorf("got %v, %v; want none", ms, err)
	}
	if es, _ := os.ReadDir(filepath.Join(s.Dir(), "tmp")); len(es) != 0 {
		t.Errorf("tmp holds %v", es)
	}
}

func TestVerifyFindsRot(t *testing.T) {
	s := store(t)
	m := imported(t, s, "tiny")
	i := slices.IndexFunc(m.Files, func(f File) bool { return f.Size > 2000 })
	p := s.Path(m.Files[i].Digest)
	b, _ := os.ReadFile(p)
	b[len(b)-1] ^= 1
	if err := errors.Join(os.Chmod(p, 0o644), os.WriteFile(p, b, 0o444)); err != nil {
		t.Fatal(err)
	}
	_, err := Verify(t.Context(), s, m, nil)
	if !errors.Is(err, content.ErrMismatch) || !strings.Contains(err.Error(), m.Files[i].Name) {
		t.Errorf("got %v, want the damaged file's name", err)
	}
}

// TestHostileManifest: a manifest that came with a push names files freely.
func TestHostileManifest(t *testing.T) {
	layer := func(name string) v1.Descriptor {
		return v1.Descriptor{MediaType: Weight.media(), Annotations: map[string]string{pathNote: name}}
	}
	for name, c := range map[string]struct {
		layers []v1.Descriptor
		want   string
	}{
		"parent":   {[]v1.Descriptor{layer("../x.gguf")}, "clean relative path"},
		"absolute": {[]v1.Descriptor{layer("/x.gguf")}, "clean relative path"},
		"no name":  {[]v1.Descriptor{{MediaType: Weight.media()}}, "clean relative path"},
		"twice":    {[]v1.Descriptor{layer("x"), layer("x")}, "twice"},
		"nested":   {[]v1.Descriptor{layer("a/b/c"), layer("a")}, "and a folder"},
		"packed":   {[]v1.Descriptor{{MediaType: "application/vnd.cncf.model.weight.v1.tar", Annotations: map[string]string{pathNote: "x"}}}, "raw layers"},
		"empty":    {nil, "0 files"},
	} {
		_, err := unpack(&v1.Manifest{ArtifactType: ArtifactType, Layers: c.layers})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	if _, err := unpack(&v1.Manifest{ArtifactType: "x"}); !errors.Is(err, errNot) {
		t.Errorf("got %v", err)
	}
}

func TestLink(t *testing.T) {
	s := store(t)
	m := imported(t, s, "tiny")
	dir := filepath.Join(filepath.Dir(s.Dir()), "view")
	if err := Link(s, m, dir); err != nil {
		t.Fatal(err)
	}
	for _, f := range m.Files {
		a, err := os.Stat(filepath.Join(dir, f.Name))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := os.Stat(s.Path(f.Digest))
		if !os.SameFile(a, b) || a.Mode() != 0o444 {
			t.Errorf("%s: same %v, mode %v", f.Name, os.SameFile(a, b), a.Mode())
		}
	}
	if err := Link(s, m, dir); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("second Link: %v", err)
	}
	if err := os.Remove(s.Path(m.Files[0].Digest)); err != nil {
		t.Fatal(err)
	}
	if err := Link(s, m, dir+"2"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent blob: %v", err)
	}
	for _, pattern := range []string{dir + "2*", filepath.Join(filepath.Dir(dir), ".view*")} {
		if es, _ := filepath.Glob(pattern); len(es) != 0 {
			t.Errorf("left %v", es)
		}
	}
}

// TestLinkBeside: what lies beside the view is somebody else's.
func TestLinkBeside(t *testing.T) {
	s := store(t)
	m := imported(t, s, "tiny")
	dir := filepath.Join(filepath.Dir(s.Dir()), "view")
	mine := filepath.Join(dir+".new", "thesis.txt")
	if err := errors.Join(os.MkdirAll(filepath.Dir(mine), 0o755), os.WriteFile(mine, []byte("x"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := Link(s, m, dir); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(mine); err != nil || string(b) != "x" {
		t.Errorf("%s: got %q, %v", mine, b, err)
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o755 {
		t.Errorf("the view has mode %v, %v: want 0755", fi.Mode(), err)
	}
}

// TestConsumers holds the table against the contracts, and keeps credentials
// out of it for ever.
func TestConsumers(t *testing.T) {
	m := Model{About: About{Name: "nano", Ref: "nano:1"}, Facts: Facts{Format: "safetensors"}}
	want := map[string]struct{ dir, env string }{
		"vllm":       {"/models/nano", "HF_HUB_OFFLINE=1"},
		"nim-cache":  {"/opt/nim/.cache", "NIM_CACHE_PATH=/opt/nim/.cache"},
		"nim-path":   {"/opt/nim/models/nano", "NIM_MODEL_PATH=/opt/nim/models/nano"},
		"nim-native": {"/opt/nim/models/nano", "NIM_ENGINE_MODEL_PATH=/opt/nim/models/nano"},
	}
	if len(want) != len(Consumers) {
		t.Errorf("%d consumers, this test knows %d", len(Consumers), len(want))
	}
	for name, w := range want {
		c, err := For(name, m, "vllm-bf16-tp1")
		if err != nil {
			t.Fatal(err)
		}
		k, v, _ := strings.Cut(w.env, "=")
		if c.Dir != w.dir || c.Env[k] != v {
			t.Errorf("%s: %+v", name, c)
		}
		for k, v := range c.Env {
			for _, bad := range []string{"KEY", "TOKEN", "SECRET", "PASSWORD"} {
				if strings.Contains(k, bad) {
					t.Errorf("%s sets %s", name, k)
				}
			}
			if strings.ContainsAny(v, "{}") {
				t.Errorf("%s: %s=%s is not filled", name, k, v)
			}
		}
		if !filepath.IsAbs(c.Dir) || strings.HasPrefix(name, "nim") && c.UID != 1000 {
			t.Errorf("%s: %s as %d", name, c.Dir, c.UID)
		}
	}
	if c, _ := For("vllm", m, ""); !slices.Equal(c.Args, []string{"--model", "/models/nano", "--served-model-name", "nano"}) {
		t.Errorf("vllm args %v", c.Args)
	}
	for _, x := range [][2]string{{"none", "x"}, {"nim-cache", ""}} {
		if _, err := For(x[0], m, x[1]); err == nil {
			t.Errorf("For(%q, %q) succeeded", x[0], x[1])
		}
	}
	m.Facts.Format = "gguf"
	if _, err := For("nim-path", m, "x"); err == nil {
		t.Error("NIM takes GGUF")
	}
}

func TestNIMContract(t *testing.T) {
	for want, c := range map[string]struct {
		labels map[string]string
		env    []string
	}{
		"nim-native": {map[string]string{"com.nvidia.nim.model_download_protocol": "native-v1"}, []string{"NIM_X=1"}},
		"nim-path":   {nil, []string{"NIM_CACHE_PATH=/x", "NIM_MODEL_PATH="}},
		"nim-cache":  {nil, []string{"PATH=/bin", "NIM_CACHE_PATH=/opt/nim/.cache"}},
	} {
		if got, err := NIMContract(c.labels, c.env); got != want || err != nil {
			t.Errorf("got %s, %v; want %s", got, err, want)
		}
	}
	if _, err := NIMContract(map[string]string{"com.nvidia.nim.model_download_protocol": "v9"}, nil); err == nil {
		t.Error("unknown protocol accepted")
	}
	if _, err := NIMContract(nil, []string{"PATH=/bin"}); err == nil {
		t.Error("any image is a NIM image")
	}
}

// TestPlace mounts each kind of consumer's folder, in a mount namespace of a
// process of its own.
func TestPlace(t *testing.T) {
	dir := t.TempDir()
	s, err := content.Open(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	m := imported(t, s, "tiny")
	if err := Link(s, m, filepath.Join(dir, "view")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "MODEL_TEST_PLACE="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) {
		t.Skipf("a mount namespace: %v", err)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if bytes.Contains(out, []byte("SKIP")) {
		t.Skipf("%s", out)
	}
	if _, err := Verify(t.Context(), s, m, nil); err != nil {
		t.Errorf("the store after its consumers: %v", err)
	}
}

// placeChild is root in a namespace of its own, as a consumer in a container is.
func placeChild(dir string) {
	die := func(what string, err error) {
		fmt.Println(what, err)
		os.Exit(1)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fmt.Println("SKIP make / private:", err)
		os.Exit(0)
	}
	to := filepath.Join(dir, "to")
	if err := os.Mkdir(to, 0o755); err != nil {
		die("mkdir", err)
	}
	weights := filepath.Join(to, "model-00001-of-00002.safetensors")
	for _, c := range []Consumer{{Name: "ro"}, {Name: "rw", Writable: true, UID: 1000}} {
		undo, err := c.Place(filepath.Join(dir, "view"), to, filepath.Join(dir, "scratch"))
		if err != nil {
			die(c.Name, err)
		}
		_, rerr := os.ReadFile(weights)
		werr := os.WriteFile(weights, []byte("changed"), 0o644)
		if rerr != nil || (werr == nil) != c.Writable || !c.Writable && !errors.Is(werr, unix.EROFS) {
			die(c.Name, fmt.Errorf("read %v, write %v", rerr, werr))
		}
		if c.Writable { // the model's user makes a lock file beside the weights
			fi, err := os.Stat(to)
			if err != nil || fi.Sys().(*syscall.Stat_t).Uid != 1000 {
				die("owner of the cache", err)
			}
		}
		if err := undo(); err != nil {
			die("undo", err)
		}
	}
	os.Exit(0)
}
