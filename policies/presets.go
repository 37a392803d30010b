package policies

import (
	"embed"
	"fmt"
	"slices"
	"strings"
)

//go:embed *.yaml
var presets embed.FS

// Presets lists the policies that ship with clawbox, strictest first.
func Presets() []string { return []string{"sandbox", "development", "production"} }

// Preset gives a fresh copy of a policy that ships with clawbox.
func Preset(name string) (*Policy, error) {
	if !slices.Contains(Presets(), name) {
		return nil, fmt.Errorf("got preset %q, want one of %s: name one of them, or a policy file", name, strings.Join(Presets(), ", "))
	}
	file := name + ".yaml"
	src, err := presets.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return parse("preset/"+file, src, &Policy{})
}

// FromPreset says whether a preset lists path as readable. Such a path names
// a habit of Unix, not a promise about one image: the sandbox may leave it
// out where the image lacks it. A path that only an operator wrote must exist.
func FromPreset(path string) bool {
	for _, name := range Presets() {
		if p, err := Preset(name); err == nil && slices.Contains(p.Filesystem.Read, path) {
			return true
		}
	}
	return false
}
