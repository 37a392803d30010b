package bundle

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/bundle/model"
)

const (
	apiVersion = "clawbox.io/v1"
	maxSource  = 1 << 20 // bytes of a recipe or a lock
)

// Recipe says what goes into a bundle. Paths in it are relative to its file.
type Recipe struct {
	APIVersion string   `yaml:"apiVersion"`
	Kind       string   `yaml:"kind"`
	Metadata   Metadata `yaml:"metadata"`
	Sequence   int64    `yaml:"sequence"`
	// UpgradesFrom and Components say what the release may follow on
	// (manifest.CheckStep). Both may be left out.
	UpgradesFrom int64       `yaml:"upgradesFrom,omitempty"`
	Components   []Component `yaml:"components,omitempty"`
	Items        []Item      `yaml:"items"`

	file string
}

// Metadata names the release. Created is its time in RFC 3339; without it the
// lock keeps the time of the first build, or $SOURCE_DATE_EPOCH.
type Metadata struct {
	Name    string `yaml:"name"`
	Version string `yaml:"version"`
	Created string `yaml:"created,omitempty"`
}

// Component is a part of the release whose versions follow on each other by
// rules, such as k3s.
type Component struct {
	Name    string `yaml:"name"`
	Version string `yaml:"version"`
}

// components are those of the release.
func (r Recipe) components() (out []manifest.Component) {
	for _, c := range r.Components {
		out = append(out, manifest.Component(c))
	}
	return out
}

// Item is one thing to bundle.
type Item struct {
	Name string `yaml:"name"`
	Kind string `yaml:"kind"` // manifest.Kinds
	// Source is docker://REF, oci-layout:DIR[:TAG], docker-archive:FILE,
	// dir:DIR, file:FILE, https://… or deb:FILE
	Source string `yaml:"source"`
	// SHA256 pins a file, in hex; required for https.
	SHA256 string `yaml:"sha256,omitempty"`
	// Ref is the name in the host's store. Default: for docker:// the
	// reference itself, otherwise NAME:VERSION.
	Ref string `yaml:"ref,omitempty"`
	// Platforms to take from a multi-platform image. Default: linux/amd64.
	Platforms []string `yaml:"platforms,omitempty"`
	// Licence is an SPDX expression. What is not Redistributable, or has Terms,
	// needs an acceptance in the lock. Terms is a text's file, or sha256:HEX.
	Licence         string `yaml:"licence,omitempty"`
	Redistributable bool   `yaml:"redistributable,omitempty"`
	Terms           string `yaml:"terms,omitempty"`
	// AllowedKeys lets key material through that is meant to be there.
	AllowedKeys []manifest.AllowedKey `yaml:"allowedKeys,omitempty"`
	// Path in the slot and mode, for files, policies and debs. Default:
	// files/NAME, policies/NAME.yaml or debs/NAME, "0644".
	Path string `yaml:"path,omitempty"`
	Mode string `yaml:"mode,omitempty"`
	// Of models from a folder. Target chooses among Profiles, which are
	// subfolders; Exclude leaves files out, Pickles lets them in.
	Target   model.Target    `yaml:"target,omitempty"`
	Profiles []model.Profile `yaml:"profiles,omitempty"`
	Exclude  []string        `yaml:"exclude,omitempty"`
	Pickles  bool            `yaml:"pickles,omitempty"`

	Line int64 `yaml:"-"`
}

// LoadRecipe reads a recipe strictly. Its errors say file, line, what was got,
// what was wanted and what to do.
func LoadRecipe(path string) (Recipe, error) {
	src, err := readSmall(path, maxSource)
	if err != nil {
		return Recipe{}, fmt.Errorf("recipe: %w", err)
	}
	return ParseRecipe(path, src)
}

// ParseRecipe is LoadRecipe for bytes; path is the name of the file.
func ParseRecipe(path string, src []byte) (Recipe, error) {
	r := Recipe{file: path}
	if err := (strict{path}).parse(src, &r); err != nil {
		return Recipe{}, err
	}
	for i := range r.Items {
		r.Items[i].fill(r.Metadata.Version)
	}
	if err := r.check(); err != nil {
		return Recipe{}, err
	}
	return r, nil
}

// readSmall reads a file of at most limit bytes.
func readSmall(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return b, err
}

// fill sets what the recipe left to us.
func (it *Item) fill(version string) {
	if it.Ref == "" {
		it.Ref = it.Name + ":" + version
		if ref, ok := strings.CutPrefix(it.Source, "docker://"); ok {
			if tag, err := name.NewTag(ref); err == nil {
				it.Ref = tag.Name()
			}
		}
	}
	if manifest.Kinds[it.Kind].Placed {
		if it.Path == "" {
			it.Path = map[string]string{"file": "files/", "policy": "policies/", "debs": "debs/"}[it.Kind] + it.Name
			if it.Kind == "policy" {
				it.Path += ".yaml"
			}
		}
		if it.Mode == "" {
			it.Mode = "0644"
		}
	}
}

func (r Recipe) fail(line int64, got, want, next string) error {
	return &SyntaxError{File: r.file, Line: max(1, int(line)), Got: got, Want: want, Next: next}
}

func (r Recipe) check() error {
	if r.APIVersion != apiVersion || r.Kind != "Recipe" {
		return r.fail(1, fmt.Sprintf("apiVersion %q and kind %q", r.APIVersion, r.Kind), apiVersion+" and Recipe", "")
	}
	if err := manifest.CheckName(r.Metadata.Name); err != nil {
		return r.fail(1, "metadata."+err.Error(), "a name", "")
	}
	if err := manifest.CheckVersion(r.Metadata.Version); err != nil {
		return r.fail(1, "metadata."+err.Error(), "a version", "")
	}
	if _, err := parseTime(r.Metadata.Created); err != nil {
		return r.fail(1, "metadata.created "+err.Error(), "a time such as 2025-01-31T12:00:00Z", "")
	}
	if r.Sequence < 1 {
		return r.fail(1, fmt.Sprintf("sequence %d", r.Sequence), "1 or more", "raise it with every release: hosts refuse a lower one")
	}
	if r.UpgradesFrom < 0 || r.UpgradesFrom > 0 && r.UpgradesFrom >= r.Sequence {
		return r.fail(1, fmt.Sprintf("upgradesFrom %d", r.UpgradesFrom), fmt.Sprintf("a sequence below %d", r.Sequence), "name the oldest release that may be upgraded to this one, or leave it out")
	}
	if err := manifest.CheckComponents(r.components()); err != nil {
		return r.fail(1, err.Error(), "each component once, with a semantic version", "")
	}
	if len(r.Items) == 0 {
		return r.fail(1, "no items", "at least one", "")
	}
	seen := map[string]int64{}
	for _, it := range r.Items {
		if err := r.checkItem(it); err != nil {
			return err
		}
		for _, k := range []string{"name " + it.Name, "ref " + it.Ref, "path " + it.Path} {
			if l, ok := seen[k]; ok && k != "path " {
				return r.fail(it.Line, k, "one that is not taken", fmt.Sprintf("the item in line %d has it", l))
			}
			seen[k] = it.Line
		}
	}
	return nil
}

// parseTime reads RFC 3339 to whole seconds; the empty string is the zero time.
func parseTime(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil || t.Nanosecond() != 0 {
		return time.Time{}, fmt.Errorf("%.40q", s)
	}
	return t.UTC(), nil
}

var sha256Form = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (r Recipe) checkItem(it Item) error {
	at := func(err error) error { return r.fail(it.Line, err.Error(), "a valid item", "") }
	kind, ok := manifest.Kinds[it.Kind]
	if !ok || kind.Made {
		return r.fail(it.Line, fmt.Sprintf("kind %.40q", it.Kind), "file, policy, debs, image or model", "")
	}
	if err := manifest.CheckName(it.Name); err != nil {
		return at(err)
	}
	if err := content.CheckRef(it.Ref); err != nil {
		return at(err)
	}
	if err := r.checkTerms(it); err != nil {
		return err
	}
	if err := r.checkModel(it); err != nil {
		return err
	}
	if kind.Placed {
		if err := manifest.CheckPath(it.Path); err != nil {
			return at(err)
		}
		if err := manifest.CheckMode(it.Mode); err != nil {
			return at(err)
		}
	} else if it.Path != "" || it.Mode != "" {
		return r.fail(it.Line, fmt.Sprintf("path or mode for %s, which is of kind %s", it.Name, it.Kind), "them for files, policies and debs only", "remove them")
	}
	return r.checkSource(it)
}

func (r Recipe) checkSource(it Item) error {
	if u, err := url.Parse(it.Source); err == nil && u.User != nil {
		return r.fail(it.Line, "credentials in the source of "+it.Name, "none: the recipe and the lock are kept and shown", "use docker login for registries")
	}
	sch, arg, ok := splitSource(it.Source)
	if !ok || arg == "" {
		return r.fail(it.Line, fmt.Sprintf("source %.80q", it.Source), "one of "+schemeNames(), "")
	}
	if !slices.Contains(sch.kinds, it.Kind) {
		return r.fail(it.Line, fmt.Sprintf("source %.80q for the %s %s", it.Source, it.Kind, it.Name), "one of "+schemesFor(it.Kind), "")
	}
	if it.SHA256 != "" && (it.Kind != "file" && it.Kind != "policy" || !sha256Form.MatchString(it.SHA256)) {
		return r.fail(it.Line, fmt.Sprintf("sha256 %.80q", it.SHA256), "64 lower-case hex digits, for files and policies only", "")
	}
	if it.SHA256 == "" && sch.prefix == "https://" {
		return r.fail(it.Line, "no sha256 for "+it.Source, "the file's sha256, got from its publisher", "")
	}
	if len(it.Platforms) > 0 && it.Kind != "image" {
		return r.fail(it.Line, "platforms for the "+it.Kind+" "+it.Name, "platforms for images only", "remove them")
	}
	for i, p := range it.Platforms {
		if err := manifest.CheckPlatform(p); err != nil {
			return r.fail(it.Line, err.Error(), "os/architecture", "")
		}
		if slices.Contains(it.Platforms[:i], p) {
			return r.fail(it.Line, "platform "+p+" twice", "each once", "")
		}
	}
	return nil
}

// path resolves a source's path against the recipe's directory.
func (r Recipe) path(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(filepath.Dir(r.file), p)
}
