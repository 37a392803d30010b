package airgapmanifests_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	airgapmanifests "github.com/clawbox/clawbox/airgap-manifests"
	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/policies"
)

// TestRecipesParse holds each recipe against the real parser.
func TestRecipesParse(t *testing.T) {
	if got := airgapmanifests.Names(); !slices.Equal(got, []string{"demo", "nemotron"}) {
		t.Errorf("recipes %v", got)
	}
	for _, name := range airgapmanifests.Names() {
		src, err := airgapmanifests.Recipe(name)
		if err != nil {
			t.Fatal(err)
		}
		r, err := bundle.ParseRecipe(name+".yaml", src)
		if err != nil {
			t.Fatal(err)
		}
		if r.Metadata.Name != name {
			t.Errorf("%s.yaml calls itself %s", name, r.Metadata.Name)
		}
		for _, it := range r.Items {
			if it.Licence == "" {
				t.Errorf("%s: item %s has no licence", name, it.Name)
			}
			if strings.Contains(it.Source, "nvcr.io") && it.Redistributable {
				t.Errorf("%s: item %s is from NGC and can't be redistributable", name, it.Name)
			}
		}
		// The models that a comment offers must be right too.
		full := strings.ReplaceAll(string(src), "  # - {", "  - {")
		if _, err := bundle.ParseRecipe(name+".yaml", []byte(full)); err != nil {
			t.Errorf("with the commented items: %v", err)
		}
	}
	if _, err := airgapmanifests.Recipe("other"); err == nil || !strings.Contains(err.Error(), "demo, nemotron") {
		t.Errorf("got %v, want an error that lists the recipes", err)
	}
}

// TestDemoSourcesInTheRepository checks the paths that don't come from a build.
func TestDemoSourcesInTheRepository(t *testing.T) {
	r, err := bundle.LoadRecipe("recipes/demo.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, it := range r.Items {
		_, path, _ := strings.Cut(it.Source, ":")
		if strings.HasPrefix(path, "../../dist/") {
			continue
		}
		if _, err := os.Stat(filepath.Join("recipes", path)); err != nil {
			t.Errorf("item %s: %v", it.Name, err)
		}
	}
}

func TestOpenClawsPolicy(t *testing.T) {
	src, err := os.ReadFile("recipes/openclaw.yaml")
	if err != nil {
		t.Fatal(err)
	}
	p, err := policies.Parse("openclaw.yaml", src)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		req  policies.Request
		want policies.Verdict
	}{
		{policies.Request{Action: policies.Exec, Path: "/usr/local/bin/node"}, policies.Allow},
		{policies.Request{Action: policies.Exec, Path: "/bin/sh"}, policies.Allow},
		{policies.Request{Action: policies.Exec, Path: "/usr/bin/nc.openbsd"}, policies.Deny},
		{policies.Request{Action: policies.Exec, Path: "/usr/bin/ssh"}, policies.Deny},
		{policies.Request{Action: policies.Exec, Path: "/workspace/x"}, policies.Deny},
		{policies.Request{Action: policies.Connect, Host: "example.com", Port: 443}, policies.Hold},
		{policies.Request{Action: policies.Infer, Model: "tiny"}, policies.Allow},
	} {
		if got := p.Decide(c.req); got.Verdict != c.want {
			t.Errorf("%+v: %+v, want %s", c.req, got, c.want)
		}
	}
	dist := "openclaw/rootfs/usr/local/bin/openclaw"
	if _, err := os.Stat(dist); err != nil || !slices.Contains(p.Process.Exec, "/"+strings.TrimPrefix(dist, "openclaw/rootfs/")) {
		t.Errorf("the image's start script isn't listed (%v)", err)
	}
}
