package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/bundle/diff"
)

// runHere runs a command line in this process and returns what it printed.
func runHere(t *testing.T, args ...string) (out, errs string) {
	t.Helper()
	c := newRoot()
	var o, e bytes.Buffer
	c.SetArgs(args)
	c.SetOut(&o)
	c.SetErr(&e)
	if err := c.ExecuteContext(t.Context()); err != nil {
		t.Fatalf("clawbox %s: %v\n%s", strings.Join(args, " "), err, &e)
	}
	return o.String(), e.String()
}

// TestDiffHost: an installed host is compared with a stick, by its own keys;
// and the stick is served as a registry.
func TestDiffHost(t *testing.T) {
	dir := t.TempDir()
	at := func(p string) string { return filepath.Join(dir, p) }
	runHere(t, "key", "generate", "acme", "--out", at("acme"))
	for i, v := range []string{"1.0.0", "1.1.0"} {
		text := fmt.Sprintf(`apiVersion: clawbox.io/v1
kind: Recipe
metadata: {name: demo, version: %s}
sequence: %d
items:
  - {name: notes, kind: file, source: "file:notes.txt", path: share/notes.txt, licence: Apache-2.0, redistributable: true}
`, v, i+1)
		for name, text := range map[string]string{"recipe.yaml": text, "notes.txt": "notes of " + v} {
			if err := os.WriteFile(at(name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		runHere(t, "bundle", "-f", at("recipe.yaml"), "-o", at(v), "--key", at("acme.key"), "--store", at("work"), "--lock", at(v+".lock"))
	}
	root := at("host")
	runHere(t, "load", at("1.0.0"), "--store", filepath.Join(root, "var/lib/clawbox/store"), "--key", at("acme.pub"))
	installed(t, root, at("acme.pub"))
	out, errs := runHere(t, "diff", at("1.1.0"), "--root", root)
	for _, want := range []string{"from  host", "demo 1.0.0 (sequence 1)", "signed by acme", "changed file notes", "1 items change, 0 stay"} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
	if errs != "" {
		t.Errorf("said %s", errs)
	}
	serveStick(t, at("1.1.0"), at("acme.pub"))
}

// installed puts down what an installer leaves of release 1.0.0.
func installed(t *testing.T, root, key string) {
	t.Helper()
	in := func(p string) string { return filepath.Join(root, p) }
	c := config.Config{
		APIVersion: config.APIVersion, Kind: config.Kind, Release: config.Release{Name: "demo", Version: "1.0.0", Sequence: 1, Digest: "sha256:" + strings.Repeat("0", 64)},
		Paths: config.Paths{
			Slot: in("opt/clawbox/slots/1"), Store: in("var/lib/clawbox/store"), State: in("var/lib/clawbox"), Ledger: in("var/lib/clawbox/ledger"),
			Run: in("run/clawbox"), Keys: in("var/lib/clawbox/keys"), Receipts: in("var/lib/clawbox/receipts"),
		},
		Registry: "127.0.0.1:5000", HoldSeconds: 60, UIDBase: 200000, AcceptTier: "T3",
	}
	b, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	for p, b := range map[string][]byte{"etc/clawbox/appliance.yaml": b, "etc/clawbox/trusted.vkeys": pub} {
		if err := os.MkdirAll(filepath.Dir(in(p)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(in(p), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// serveStick asks the handler of registry serve --media for a manifest.
func serveStick(t *testing.T, stick, key string) {
	t.Helper()
	o := registryServe{media: []string{stick}, mediaFlags: mediaFlags{keys: []string{key}}}
	var log bytes.Buffer
	h, err := o.handler(t.Context(), &log, "")
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	defer srv.Close()
	res, err := http.Get(srv.URL + "/v2/notes/manifests/1.1.0")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Errorf("the stick's manifest: %s\n%s", res.Status, &log)
	}
}

// TestDiffHelp: the help names every field of the JSON.
func TestDiffHelp(t *testing.T) {
	help := diffCmd(&app{}).Long
	var named func(reflect.Type)
	named = func(x reflect.Type) {
		for x.Kind() == reflect.Pointer || x.Kind() == reflect.Slice {
			x = x.Elem()
		}
		if x.Kind() != reflect.Struct {
			return
		}
		for i := range x.NumField() {
			name, _, _ := strings.Cut(x.Field(i).Tag.Get("json"), ",")
			if !regexp.MustCompile(`\b` + name + `\b`).MatchString(help) {
				t.Errorf("the help of diff doesn't name %q", name)
			}
			named(x.Field(i).Type)
		}
	}
	named(reflect.TypeFor[diff.Report]())
}
