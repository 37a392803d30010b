package bundle

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/bundle/licence"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/bundle/model"
)

// TestRecipeDocument: every example of docs/recipe.md is read, and every field
// of what it describes stands in it.
func TestRecipeDocument(t *testing.T) {
	text := string(read(t, "../docs/recipe.md"))
	dir := t.TempDir()
	readers := map[string]func(path string) error{
		"recipe":   func(p string) error { _, err := LoadRecipe(p); return err },
		"packages": func(p string) error { _, err := LoadPackages(p); return err },
		"lock":     func(p string) error { _, err := loadLock(p); return err },
	}
	n := map[string]int{}
	for _, part := range strings.Split(text, "```yaml ")[1:] {
		kind, rest, _ := strings.Cut(part, "\n")
		src, _, ok := strings.Cut(rest, "```")
		load := readers[kind]
		if load == nil || !ok {
			t.Fatalf("an example of kind %q", kind)
		}
		n[kind]++
		p := filepath.Join(dir, kind+".yaml")
		write(t, p, []byte(src))
		if err := load(p); err != nil {
			t.Errorf("%v in\n%s", err, src)
		}
	}
	if n["recipe"] < 4 || n["packages"] < 1 || n["lock"] < 1 {
		t.Errorf("examples: %v", n)
	}
	for _, v := range []any{
		Recipe{},
		Metadata{},
		Component{},
		Item{},
		Lock{},
		LockItem{},
		LockPackage{},
		Packages{},
		DebArchive{},
		manifest.AllowedKey{},
		model.Target{},
		model.Profile{},
		licence.Acceptance{},
	} {
		for _, f := range fields(reflect.TypeOf(v)) {
			if !strings.Contains(text, f+":") && !strings.Contains(text, "`"+f+"`") && !strings.Contains(text, "."+f+"`") {
				t.Errorf("%T: no word of %s", v, f)
			}
		}
	}
	for _, s := range schemes {
		if !strings.Contains(text, "`"+s.prefix+s.arg+"`") {
			t.Errorf("no word of the source %s%s", s.prefix, s.arg)
		}
	}
}
