package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/appliance/engine"
	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/model"

	"github.com/clawbox/clawbox/airgap-manifests/tinymodel"
)

// clawbox runs a command line and returns standard output.
func clawbox(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out, errs bytes.Buffer
	c := newRoot()
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(&errs)
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

// weightFile writes a safetensors file of one tensor.
func weightFile(t *testing.T, path string) {
	t.Helper()
	const header = `{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}`
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	b = append(append(b, header...), make([]byte, 16)...)
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestModelVerbs(t *testing.T) {
	dir := t.TempDir()
	src, store := filepath.Join(dir, "src"), filepath.Join(dir, "store")
	if err := os.Mkdir(src, 0o755); err != nil {
		t.Fatal(err)
	}
	weightFile(t, filepath.Join(src, "model.safetensors"))
	for n, s := range map[string]string{"config.json": `{"auto_map":{"AutoModel":"m.X"}}`, "m.py": "raise SystemExit"} {
		if err := os.WriteFile(filepath.Join(src, n), []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := clawbox(t, "model", "list", "--store", store); err == nil || status(err) != exitNotFound {
		t.Errorf("list of no store: %v", err)
	}
	out, err := clawbox(t, "model", "import", src, "--name", "small", "--store", store)
	if err != nil || !strings.Contains(out, "code: m.py  sha256:") || !strings.Contains(out, "asks the engine to run code: config.json: auto_map") {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err = clawbox(t, "model", "list", "--store", store, "-o", "json")
	var ms []modelJSON
	if err != nil || json.Unmarshal([]byte(out), &ms) != nil || len(ms) != 1 || ms[0].Ref != "small:latest" || len(ms[0].Code) != 1 {
		t.Fatalf("%v\n%s", err, out)
	}
	view := filepath.Join(dir, "view")
	out, err = clawbox(t, "model", "view", "small:latest", view, "--for", "vllm", "--store", store)
	if err != nil || !strings.Contains(out, "HF_HUB_OFFLINE=1") || !strings.Contains(out, "on /models/small, read-only") {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err = clawbox(t, "model", "verify", "--store", store); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// The view's file is the store's: as root we can still damage it.
	p := filepath.Join(view, "model.safetensors")
	if err := os.Chmod(p, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(p, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, "x")
	f.Close()
	if _, err = clawbox(t, "model", "verify", "small:latest", "--store", store); err == nil || status(err) != exitUntrusted || !strings.Contains(err.Error(), "model.safetensors") {
		t.Errorf("damaged: %v", err)
	}
	if err := os.WriteFile(filepath.Join(src, "pytorch_model.bin"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := clawbox(t, "model", "import", src, "--name", "p", "--store", store); err == nil || !strings.Contains(err.Error(), "--allow-pickle") {
		t.Errorf("pickle: %v", err)
	}
}

// TestEngineTakesImportedModel: what import makes of the demo's model, the
// embedded engine lays out as links to the same blobs.
func TestEngineTakesImportedModel(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	if err := tinymodel.WriteDir(src, []tinymodel.Script{{Name: "hi", When: tinymodel.Plain, Text: "hello"}}); err != nil {
		t.Fatal(err)
	}
	if out, err := clawbox(t, "model", "import", src, "--name", "tiny", "--store", filepath.Join(dir, "store")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s, err := content.Open(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := model.Open(s, "tiny:latest")
	if err != nil {
		t.Fatal(err)
	}
	e := engine.Model{Name: m.Name}
	for _, f := range m.Files {
		e.Layers = append(e.Layers, engine.Layer{Title: f.Name, Digest: f.Digest.String(), Size: f.Size, Path: s.Path(f.Digest)})
	}
	if err := engine.Prepare(filepath.Join(dir, "run"), []engine.Model{e}); err != nil {
		t.Fatal(err)
	}
	for _, f := range m.Files {
		a, err := os.Stat(filepath.Join(dir, "run", "models", "blobs", "sha256-"+f.Digest.Hex))
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := os.Stat(s.Path(f.Digest)); !os.SameFile(a, b) {
			t.Errorf("%s was copied", f.Name)
		}
	}
}
