// Package airgapmanifests holds what releases are made from: recipes for
// `clawbox bundle`, and, in folders beside it, the recipes' ingredients.
//
//	recipes/demo.yaml      the agent, a tiny model and its engine: runs anywhere, offline
//	recipes/nemotron.yaml  NVIDIA Nemotron by NIM on K3s, for hosts with a GPU
//	recipes/openclaw.yaml  the policy of the demo's agent
//	openclaw/              builds the image of the agent
//	tinymodel/             writes the demo's model
//	ollama/                a module of its own that builds the engine
//	k3s/                   the files of a node, and modules that build a K3s
//	charts/                what runs on the cluster, as Helm charts
//
// The recipes are embedded, so that an operator with the program alone can
// start from one; a recipe's paths are relative to the place it is written to:
//
//	src, err := airgapmanifests.Recipe("nemotron")
//
// In this repository demo.yaml is used where it stands: it finds the files that
// `make demo` builds in ../../dist.
package airgapmanifests

import (
	"embed"
	"fmt"
	"io/fs"
	"strings"
)

//go:embed recipes/demo.yaml recipes/nemotron.yaml
var recipes embed.FS

// Names lists the recipes.
func Names() []string {
	ents, err := recipes.ReadDir("recipes")
	if err != nil {
		panic(err) // embedded: it is there or the program didn't build
	}
	var names []string
	for _, e := range ents {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	return names
}

// Recipe returns the text of a recipe.
func Recipe(name string) ([]byte, error) {
	b, err := recipes.ReadFile("recipes/" + name + ".yaml")
	if err != nil {
		return nil, fmt.Errorf("airgapmanifests: no recipe %q: want one of %s", name, strings.Join(Names(), ", "))
	}
	return b, nil
}

//go:embed charts
var charts embed.FS

// Chart returns the files of a chart, by their paths inside it.
func Chart(name string) (map[string][]byte, error) {
	dir, err := fs.Sub(charts, "charts/"+name)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	err = fs.WalkDir(dir, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files[p], err = fs.ReadFile(dir, p)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("airgapmanifests: no chart %q: %w", name, err)
	}
	return files, nil
}
