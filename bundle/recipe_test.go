package bundle

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/bundle/manifest"
)

func TestRecipeTraps(t *testing.T) {
	const item = "  - {name: rules, kind: policy, source: \"file:rules.yaml\"}\n"
	sub := func(old, new string) string {
		s := strings.Replace(demoRecipe, old, new, 1)
		if s == demoRecipe {
			t.Fatalf("%q is not in the demo recipe", old)
		}
		return s
	}
	add := func(s string) string { return demoRecipe + "  - " + s + "\n" }
	for name, c := range map[string]struct {
		src  string
		line int
		want string
	}{
		"empty":              {"", 1, "an empty file"},
		"comment only":       {"# nothing\n", 1, "an empty file"},
		"not a mapping":      {"- a\n", 1, "a list"},
		"broken":             {"a: [\n", 0, "r.yaml"},
		"second document":    {demoRecipe + "---\nkind: Recipe\n", 10, "a second document"},
		"unknown field":      {sub("sequence: 3", "sequence: 3\nevil: yes"), 5, `unknown field "evil"`},
		"unknown item field": {add(`{name: x, kind: file, sources: "file:x"}`), 10, `unknown field "sources"`},
		"other case":         {sub("sequence: 3", "Sequence: 3"), 4, `unknown field "Sequence"`},
		"duplicate":          {sub("sequence: 3", "sequence: 3\nsequence: 4"), 5, "field sequence a second time"},
		"duplicate in item":  {add(`{name: x, name: y, kind: file, source: "file:x"}`), 10, "field name a second time"},
		"number for string":  {sub("version: 0.1.0", "version: 1.0"), 3, `"1.0" for version`},
		"octal mode":         {sub(`mode: "0755"`, "mode: 0755"), 8, "for mode"},
		"string for number":  {sub("sequence: 3", `sequence: "3"`), 4, "a whole number"},
		"float sequence":     {sub("sequence: 3", "sequence: 3.5"), 4, "a whole number"},
		"huge sequence":      {sub("sequence: 3", "sequence: 99999999999999999999"), 4, "for sequence"},
		"norway":             {sub("redistributable: true", "redistributable: yes"), 6, "true or false"},
		"null":               {sub("sequence: 3", "sequence:"), 4, "nothing for sequence"},
		"anchor":             {sub("sequence: 3", "sequence: &a 3"), 4, "an anchor or alias"},
		"tag":                {sub("sequence: 3", `sequence: !!int "3"`), 4, "the tag"},
		"merge":              {sub("sequence: 3", "<<: {sequence: 3}"), 4, "unknown field"},
		"scalar for list":    {sub("platforms: [linux/amd64]", "platforms: linux/amd64"), 7, "a list"},
		"not utf-8":          {"kind: \xff\n", 1, "not UTF-8"},
		"kind":               {sub("kind: Recipe", "kind: Cake"), 1, `kind "Cake"`},
		"no sequence":        {sub("sequence: 3\n", ""), 1, "sequence 0"},
		"no items":           {strings.Split(demoRecipe, "items:")[0], 1, "no items"},
		"version":            {sub("version: 0.1.0", "version: latest"), 1, "semantic version"},
		"created":            {sub("2025-01-02T03:04:05Z", "yesterday"), 1, "metadata.created"},
		"item name":          {add(`{name: "../x", kind: file, source: "file:x"}`), 10, "name"},
		"item kind":          {add(`{name: x, kind: virus, source: "file:x"}`), 10, `kind "virus"`},
		"same name":          {demoRecipe + item, 10, "name rules"},
		"same path":          {add(`{name: x, kind: file, source: "file:x", path: bin/clawbox}`), 10, "path bin/clawbox"},
		"path out":           {add(`{name: x, kind: file, source: "file:x", path: ../../etc/shadow}`), 10, "clean relative path"},
		"setuid":             {add(`{name: x, kind: file, source: "file:x", mode: "4755"}`), 10, "mode"},
		"path for image":     {add(`{name: x, kind: image, source: "docker://x", path: x}`), 10, "files, policies and debs only"},
		"no source":          {add(`{name: x, kind: file}`), 10, "source"},
		"unknown source":     {add(`{name: x, kind: file, source: "ftp://x"}`), 10, "one of docker://REF"},
		"http":               {add(`{name: x, kind: file, source: "http://x"}`), 10, "source"},
		"source of image":    {add(`{name: x, kind: image, source: "file:x"}`), 10, "one of docker://REF, oci-layout:DIR[:TAG], docker-archive:FILE"},
		"https, no sum":      {add(`{name: x, kind: file, source: "https://example.com/x"}`), 10, "no sha256"},
		"https, password":    {add(`{name: x, kind: file, source: "https://me:secret@example.com/x", sha256: "` + strings.Repeat("a", 64) + `"}`), 10, "credentials"},
		"sum form":           {add(`{name: x, kind: file, source: "file:x", sha256: "ABC"}`), 10, "64 lower-case"},
		"platform form":      {add(`{name: x, kind: image, source: "docker://x", platforms: [amd64]}`), 10, "os/architecture"},
		"platform twice":     {add(`{name: x, kind: image, source: "docker://x", platforms: [linux/amd64, linux/amd64]}`), 10, "twice"},
		"file platforms":     {add(`{name: x, kind: file, source: "file:x", platforms: [linux/amd64]}`), 10, "images only"},
		"licence escape":     {add(`{name: x, kind: file, source: "file:x", licence: "\e[2J"}`), 10, "licence"},
		"ref":                {add(`{name: x, kind: file, source: "file:x", ref: "a b"}`), 10, "spaces"},
	} {
		_, err := ParseRecipe("r.yaml", []byte(c.src))
		var se *SyntaxError
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		} else if c.line > 0 && (!errors.As(err, &se) || se.Line != c.line || se.File != "r.yaml") {
			t.Errorf("%s: got %v, want line %d", name, err, c.line)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error shows a password: %v", name, err)
		}
	}
}

func TestRecipeDefaults(t *testing.T) {
	r, err := ParseRecipe("dir/r.yaml", []byte(demoRecipe+`  - {name: web, kind: image, source: "docker://ghcr.io/acme/web:1.2"}
  - {name: hub, kind: image, source: "docker://nginx"}
  - {name: data, kind: file, source: "file:/abs/data"}
`))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range map[int]Item{
		0: {Ref: "tiny:0.1.0"}, 2: {Ref: "clawbox:0.1.0", Path: "bin/clawbox", Mode: "0755"},
		3: {Ref: "rules:0.1.0", Path: "policies/rules.yaml", Mode: "0644"}, 4: {Ref: "ghcr.io/acme/web:1.2"},
		5: {Ref: "index.docker.io/library/nginx:latest"}, 6: {Ref: "data:0.1.0", Path: "files/data", Mode: "0644"},
	} {
		if got := r.Items[i]; got.Ref != want.Ref || got.Path != want.Path || got.Mode != want.Mode {
			t.Errorf("item %d: %q %q %q, want %q %q %q", i, got.Ref, got.Path, got.Mode, want.Ref, want.Path, want.Mode)
		}
	}
	if got := r.path("x"); got != "dir/x" {
		t.Errorf("path %q", got)
	}
	if got := r.path("/abs/x"); got != "/abs/x" {
		t.Errorf("path %q", got)
	}
}

func TestRecipeStep(t *testing.T) {
	head := strings.Replace(demoRecipe, "sequence: 3\n", "sequence: 4\nupgradesFrom: %s\ncomponents: [{name: k3s, version: %s}]\n", 1)
	for _, c := range []struct{ from, version, want string }{
		{"3", "1.34.0", ""},
		{"4", "1.34.0", "below 4"},
		{"3", "v1.34", "semantic version"},
	} {
		r, err := ParseRecipe("r.yaml", fmt.Appendf(nil, head, c.from, c.version))
		if c.want == "" {
			if err != nil || r.UpgradesFrom != 3 || r.components()[0] != (manifest.Component{Name: "k3s", Version: "1.34.0"}) {
				t.Errorf("got %+v, %v", r, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: got %v, want %q", c, err, c.want)
		}
	}
}
