package bundle

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/bundle/model"
)

// tensorFile is a safetensors file with one tensor of n elements of a type of
// bytes each.
func tensorFile(dtype string, bytes, n int) []byte {
	h := fmt.Sprintf(`{"w":{"dtype":%q,"shape":[%d],"data_offsets":[0,%d]}}`, dtype, n, n*bytes)
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(h)))
	return append(append(b, h...), make([]byte, n*bytes)...)
}

// TestModelCode: code that comes with a model, and configuration that asks to
// run it, stand in the release.
func TestModelCode(t *testing.T) {
	s := newSite(t)
	write(t, filepath.Join(s.dir, "m/model.safetensors"), tensorFile("BF16", 2, 100))
	write(t, filepath.Join(s.dir, "m/modeling_x.py"), []byte("import os\n"))
	write(t, filepath.Join(s.dir, "m/config.json"), []byte(`{"architectures":["XForCausalLM"],"auto_map":{"AutoModel":"modeling_x.X"}}`))
	s.recipe(t, `{name: x, kind: model, source: "dir:m", licence: MIT, redistributable: true}`)
	r := s.mustBuild(t)
	m := r.Items[0].Model
	if m == nil || m.Architecture != "XForCausalLM" || m.Precision != "bf16" || m.Params != 100 || len(m.Code) != 1 || m.Code[0].Name != "modeling_x.py" ||
		m.Code[0].Digest.Hex != fmt.Sprintf("%x", sha256.Sum256([]byte("import os\n"))) || len(m.Asks) != 1 || !strings.Contains(m.Asks[0], "auto_map") {
		t.Fatalf("got %+v", m)
	}
	var out strings.Builder
	i, err := Inspect(s.trust, s.opt.Out)
	if err != nil || i.Print(&out) != nil || !strings.Contains(out.String(), "code: modeling_x.py  "+m.Code[0].Digest.String()) || !strings.Contains(out.String(), "asks the engine to run code") {
		t.Errorf("%v\n%s", err, out.String())
	}
	got, err := model.Open(s.load(t), "x:0.1.0")
	if err != nil || len(got.Files) != 3 || got.Facts.Architecture != "XForCausalLM" {
		t.Errorf("in the store: %+v, %v", got, err)
	}
}

// TestModelRefused: what package model refuses, a build refuses.
func TestModelRefused(t *testing.T) {
	for name, c := range map[string]struct{ file, text, field, want string }{
		"pickle":          {"model/pytorch_model.bin", "\x80\x04.", "", "pickles run code"},
		"pickle allowed":  {"model/pytorch_model.bin", "\x80\x04.", ", pickles: true", ""},
		"pickle left out": {"model/pytorch_model.bin", "\x80\x04.", `, exclude: ["*.bin"]`, ""},
		"cut off":         {"model/more.gguf", string(gguf(1, 5000)[:4000]), "", "cut off"},
		"no header":       {"model/more.gguf", "weights", "", "want GGUF"},
		"appended":        {"model/m.safetensors", string(tensorFile("I8", 1, 9)) + "x", "", "appended"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			write(t, filepath.Join(s.dir, c.file), []byte(c.text))
			s.recipe(t, `{name: x, kind: model, source: "dir:model", redistributable: true`+c.field+`}`)
			r, err := s.build(t)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if name == "pickle allowed" && (len(r.Items[0].Model.Code) != 1) {
				t.Errorf("the release doesn't say what was let through: %+v", r.Items[0].Model)
			}
		})
	}
}

// TestForeignModel: a model that another tool packed is held to the same rules.
func TestForeignModel(t *testing.T) {
	s := newSite(t)
	s.recipe(t, `{name: x, kind: model, source: "dir:model", ref: "x:1", redistributable: true}`)
	s.mustBuild(t)
	st := s.load(t)
	next := newSite(t)
	next.recipe(t, `{name: x, kind: model, source: "oci-layout:`+st.Dir()+`:1", redistributable: true}`)
	if r := next.mustBuild(t); r.Items[0].Model == nil || r.Items[0].Model.Format != "gguf" {
		t.Errorf("got %+v", r.Items[0])
	}
	m, err := model.Open(st, "x:1")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range m.Files {
		if f.Kind == model.Weight { // one that lies
			p := st.Path(f.Digest)
			if err := errors.Join(os.Chmod(p, 0o644), os.Truncate(p, f.Size-100)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := next.build(t); err == nil {
		t.Error("took damaged weights")
	}
}

// TestProfiles: of several forms of a model the one for the target is taken.
func TestProfiles(t *testing.T) {
	s := newSite(t)
	write(t, filepath.Join(s.dir, "m/bf16/model.safetensors"), tensorFile("BF16", 2, 1000))
	write(t, filepath.Join(s.dir, "m/fp8/model.safetensors"), tensorFile("F8_E4M3", 1, 1000))
	write(t, filepath.Join(s.dir, "m/int4/model.safetensors"), tensorFile("U8", 1, 500))
	for target, want := range map[string]string{
		`{gpu: h200}, profiles: [{name: bf16}, {name: fp8}]`:                                           "bf16",
		`{gpu: h200}, profiles: [{name: bf16, gpus: 2}, {name: fp8}]`:                                  "fp8",
		`{gpu: t4}, profiles: [{name: bf16}, {name: int4, precision: int4}]`:                           "int4",
		`{gpu: a100-80gb}, profiles: [{name: fp8}, {name: "int4/model.safetensors", precision: int4}]`: "int4/model.safetensors",
		`{gpu: h100-80gb}, profiles: [{name: bf16, weights: 900000000000}, {name: fp8}]`:               "fp8",
		`{gpu: t4}, profiles: [{name: bf16}, {name: fp8}]`:                                             "error: no profile fits",
		`{gpu: t4}`:                           "error: want one of bf16",
		`{gpu: t4}, profiles: [{name: none}]`: "error: no such file",
		`{gpu: h200, count: 2}, profiles: [{name: bf16}], exclude: ["*.safetensors"]`: "error: no .gguf",
	} {
		s.recipe(t, `{name: x, kind: model, source: "dir:m", redistributable: true, target: `+target+`}`)
		s.opt.UpdateLock = true
		r, err := s.build(t)
		if e, bad := strings.CutPrefix(want, "error: "); bad {
			if err == nil || !strings.Contains(err.Error(), e) {
				t.Errorf("%s: got %v, want %q", target, err, e)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", target, err)
			continue
		}
		if m := r.Items[0].Model; m.Profile != want || !strings.Contains(target, strings.TrimPrefix(m.Target, "1 × ")) {
			t.Errorf("%s: got %s for %s", target, m.Profile, m.Target)
		}
		got, err := model.Open(s.load(t), "x:0.1.0")
		if err != nil || len(got.Files) != 1 || got.Files[0].Name != "model.safetensors" {
			t.Errorf("%s: files %v, %v", target, got.Files, err)
		}
	}
}
