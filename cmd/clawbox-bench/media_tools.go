package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	airgapmanifests "github.com/clawbox/clawbox/airgap-manifests"
	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/bundle/manifest"
)

const (
	oursName   = "clawbox"
	theirsName = "zarf"
)

// steps are the four things that the tools are compared by, in order.
var steps = []string{"create", "inspect", "verify", "install"}

// tool is one way through the steps. Everything it writes lies below one
// folder of its own, which is removed after its turn.
type tool struct {
	name string
	dir  string
	env  []string
	prep func(context.Context) error // what is not measured
	args map[string][]string         // step → command line; a step may be missing
	done map[string]func() error     // step → what follows it, not measured; may be missing
}

// load is what they all carry.
type load struct {
	name  string
	bytes int64
	big   bool // one file: belongs to the plot over sizes
}

// take gives each tool its turn.
func (rep *mediaReport) take(ctx context.Context, room string, l load, turns []tool) error {
	rep.loads = appendNew(rep.loads, l)
	for _, t := range turns {
		if err := os.MkdirAll(t.dir, 0o755); err != nil {
			return err
		}
		if t.prep != nil {
			if err := t.prep(ctx); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
		}
		for _, step := range steps {
			args := t.args[step]
			if args == nil {
				continue
			}
			fmt.Fprintf(os.Stderr, "%s: %s %s …\n", l.name, t.name, step)
			s, err := spend(ctx, room, t.env, expand(args)...)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", l.name, step, err)
			}
			rep.samples = append(rep.samples, sample{tool: t.name, step: step, load: l.name, payload: l.bytes, spent: s})
			if f := t.done[step]; f != nil {
				if err := f(); err != nil {
					return err
				}
			}
		}
		if err := os.RemoveAll(t.dir); err != nil {
			return err
		}
	}
	return nil
}

// expand replaces an argument with a * by the one file that it names.
func expand(args []string) (out []string) {
	for _, a := range args {
		if m, err := filepath.Glob(a); err == nil && len(m) == 1 && strings.Contains(a, "*") {
			a = m[0]
		}
		out = append(out, a)
	}
	return out
}

func appendNew(ls []load, l load) []load {
	for _, have := range ls {
		if have == l {
			return ls
		}
	}
	return append(ls, l)
}

// ourTool is clawbox with a recipe of these items.
func ourTool(o mediaOptions, dir, items string) tool {
	d := filepath.Join(dir, oursName)
	in := func(s string) string { return filepath.Join(d, s) }
	return tool{
		name: oursName, dir: d,
		prep: func(ctx context.Context) error {
			if err := os.WriteFile(in("recipe.yaml"), []byte(recipeHead+items), 0o644); err != nil {
				return err
			}
			out, err := exec.CommandContext(ctx, o.ours, "key", "generate", "bench", "--out", filepath.Join(d, "bench")).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		},
		args: map[string][]string{
			"create":  {o.ours, "bundle", "-f", in("recipe.yaml"), "-o", in("stick"), "--key", in("bench.key"), "--store", in("work")},
			"inspect": {o.ours, "inspect", in("stick"), "--key", in("bench.pub")},
			"verify":  {o.ours, "verify", in("stick"), "--key", in("bench.pub")},
			"install": {o.ours, "load", in("stick"), "--key", in("bench.pub"), "--store", in("store")},
		},
	}
}

const recipeHead = `apiVersion: clawbox.io/v1
kind: Recipe
metadata: {name: bench, version: 1.0.0}
sequence: 1
items:
`

func ourFile(o mediaOptions, dir, file string) tool {
	return ourTool(o, dir, fmt.Sprintf("  - {name: weights, kind: file, source: %q, licence: CC0-1.0, redistributable: true}\n", "file:"+file))
}

// ourImages allows the published keys that the demo's recipe allows in the same
// layers.
func ourImages(o mediaOptions, dir string, set *imageSetup) (tool, error) {
	keys, err := publishedKeys()
	if err != nil {
		return tool{}, err
	}
	var b strings.Builder
	for i, ref := range set.refs {
		fmt.Fprintf(&b, "  - {name: image-%d, kind: image, source: %q, licence: MIT, redistributable: true, allowedKeys: %s}\n", i, "docker://"+ref, keys)
	}
	return ourTool(o, dir, b.String()), nil
}

// publishedKeys is the list, as a recipe has it.
func publishedKeys() (string, error) {
	src, err := airgapmanifests.Recipe("demo")
	if err != nil {
		return "", err
	}
	r, err := bundle.ParseRecipe("demo.yaml", src)
	if err != nil {
		return "", err
	}
	var ks []manifest.AllowedKey
	for _, it := range r.Items {
		ks = append(ks, it.AllowedKeys...)
	}
	b, err := json.Marshal(ks) // JSON is YAML
	return string(b), err
}

// theirTool is zarf with a package of one component, as an uncompressed tar,
// which is its fastest. Its SBOMs are switched off: they are a separate job. A
// package without a cluster can place files and mirror images; both are what
// "install" stands for here. Its verify takes signed packages only and makes
// keys only at a terminal, so there is none.
func theirTool(o mediaOptions, dir, component string, install ...string) tool {
	d := filepath.Join(dir, theirsName)
	in := func(s string) string { return filepath.Join(d, s) }
	global := []string{"--tmpdir", in("tmp"), "--cache", in("cache"), "--plain-http", "--no-color", "-l", "warn"}
	run := func(args ...string) []string { return append(append([]string{o.theirs}, args...), global...) }
	pkg := in("out/zarf-package-*.tar*")
	return tool{
		name: theirsName, dir: d, env: []string{"HOME=" + d},
		prep: func(context.Context) error {
			for _, sub := range []string{"pkg", "out", "tmp", "cache", "target"} {
				if err := os.MkdirAll(in(sub), 0o755); err != nil {
					return err
				}
			}
			return os.WriteFile(in("pkg/zarf.yaml"), []byte("kind: ZarfPackageConfig\nmetadata: {name: bench, version: 1.0.0, uncompressed: true}\ncomponents:\n- name: bench\n  required: true\n"+component), 0o644)
		},
		args: map[string][]string{
			"create":  run("package", "create", in("pkg"), "-o", in("out"), "--confirm", "--skip-sbom"),
			"inspect": run("package", "inspect", "definition", pkg),
			"install": run(append(install, pkg, "--confirm")...),
		},
	}
}

func theirFile(o mediaOptions, dir, file string) tool {
	target := filepath.Join(dir, theirsName, "target", "weights.bin")
	return theirTool(o, dir, fmt.Sprintf("  files:\n  - {source: %q, target: %q}\n", file, target), "package", "deploy")
}

func theirImages(o mediaOptions, dir string, set *imageSetup) tool {
	return theirTool(o, dir, "  images:\n  - "+strings.Join(set.refs, "\n  - ")+"\n",
		"package", "mirror-resources", "--images", "--registry-url", set.target, "--registry-push-username", "bench", "--registry-push-password", "bench")
}

func peerVersion(ctx context.Context, path string) string {
	out, err := exec.CommandContext(ctx, path, "version").Output()
	if err != nil {
		return "unknown version"
	}
	return strings.TrimSpace(string(out))
}
