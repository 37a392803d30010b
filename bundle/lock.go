package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"go.yaml.in/yaml/v4"

	"github.com/clawbox/clawbox/bundle/licence"
	"github.com/clawbox/clawbox/internal/durable"
)

// Lock pins what a recipe's names meant when it was first built.
type Lock struct {
	APIVersion string     `yaml:"apiVersion"`
	Kind       string     `yaml:"kind"`
	Created    string     `yaml:"created"` // the release's time
	Items      []LockItem `yaml:"items"`
	// Acceptances say who decided what about items that may not simply be
	// handed on.
	Acceptances []licence.Acceptance `yaml:"acceptances,omitempty"`
}

// LockItem pins one item. Resolved is the digest at the source (of a tag's
// manifest, a file, a directory), Root that of the manifest in the bundle.
type LockItem struct {
	Name      string   `yaml:"name"`
	Source    string   `yaml:"source"`
	Platforms []string `yaml:"platforms,omitempty"`
	Resolved  string   `yaml:"resolved"`
	Root      string   `yaml:"root"`
	MediaType string   `yaml:"mediaType"`
	Size      int64    `yaml:"size"` // of the root, in bytes
	// Packages are the closure, of kind debs.
	Packages []LockPackage `yaml:"packages,omitempty"`

	Line int64 `yaml:"-"`
}

// LockPackage pins one .deb.
type LockPackage struct {
	Name    string `yaml:"name"`
	Version string `yaml:"version"`
	Arch    string `yaml:"arch"`
	URL     string `yaml:"url"`
	SHA256  string `yaml:"sha256"` // in hex
	Size    int64  `yaml:"size"`   // bytes

	Line int64 `yaml:"-"`
}

// LockError says that an item is not what the lock pins.
type LockError struct{ Lock, Item, Got, Want string }

func (e *LockError) Error() string {
	return fmt.Sprintf("item %s no longer matches %s: got %s, want %s; if the change is meant, build again with --update-lock",
		e.Item, e.Lock, e.Got, e.Want)
}

// lockPath is bundle.lock beside the recipe, unless opt says otherwise.
func (o BuildOptions) lockPath(r Recipe) string {
	if o.Lock != "" {
		return o.Lock
	}
	return r.path("bundle.lock")
}

// loadLock returns nil when there is no lock yet.
func loadLock(path string) (*Lock, error) {
	src, err := readSmall(path, maxSource)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	var l Lock
	if err := (strict{path}).parse(src, &l); err != nil {
		return nil, err
	}
	if l.APIVersion != apiVersion || l.Kind != "Lock" {
		return nil, &SyntaxError{path, 1, fmt.Sprintf("apiVersion %q and kind %q", l.APIVersion, l.Kind), apiVersion + " and Lock", ""}
	}
	if t, err := parseTime(l.Created); err != nil || t.IsZero() {
		return nil, &SyntaxError{path, 1, "created " + strconv.Quote(l.Created), "a time such as 2025-01-31T12:00:00Z", ""}
	}
	for _, it := range l.Items {
		if err := it.check(path); err != nil {
			return nil, err
		}
	}
	for _, a := range l.Acceptances {
		if err := a.Check(); err != nil {
			return nil, &SyntaxError{path, int(a.Line), err.Error(), "a whole acceptance", "record it again with clawbox bundle"}
		}
	}
	return &l, nil
}

func (p LockItem) check(path string) error {
	for _, d := range []string{p.Resolved, p.Root} {
		if _, err := v1.NewHash(d); err != nil {
			return &SyntaxError{path, int(p.Line), err.Error(), "sha256:<64 hex digits>", "build with --update-lock"}
		}
	}
	for _, k := range p.Packages {
		if !sha256Form.MatchString(k.SHA256) || k.Size < 1 || k.Name == "" || k.URL == "" {
			return &SyntaxError{path, int(k.Line), fmt.Sprintf("package %.80q of %d bytes, sha256 %.80q", k.Name, k.Size, k.SHA256), "a name, a URL, a size and 64 hex digits", "build with --update-lock"}
		}
	}
	return nil
}

// find returns the pin of it, or nil when there is no lock. A lock that lacks
// the item, or pins it for another source, is an error.
func (l *Lock) find(path string, it Item) (*LockItem, error) {
	if l == nil {
		return nil, nil
	}
	i := slices.IndexFunc(l.Items, func(x LockItem) bool { return x.Name == it.Name })
	if i < 0 {
		return nil, &LockError{path, it.Name, "an item that the lock lacks", "every item in it"}
	}
	p := &l.Items[i]
	if p.Source != it.Source {
		return nil, &LockError{path, it.Name, "source " + it.Source, p.Source}
	}
	if !slices.Equal(p.Platforms, it.Platforms) {
		return nil, &LockError{path, it.Name, fmt.Sprintf("platforms %v", it.Platforms), fmt.Sprint(p.Platforms)}
	}
	return p, nil
}

// root returns the pinned root's descriptor.
func (p *LockItem) root() v1.Descriptor {
	h, _ := v1.NewHash(p.Root) // checked by loadLock
	return v1.Descriptor{MediaType: types.MediaType(p.MediaType), Digest: h, Size: p.Size}
}

// pin makes the lock entry for what was fetched.
func pin(it Item, f fetched) LockItem {
	return LockItem{
		Name: it.Name, Source: it.Source, Platforms: it.Platforms, Resolved: f.resolved.String(),
		Root: f.root.Digest.String(), MediaType: string(f.root.MediaType), Size: f.root.Size, Packages: f.packages,
	}
}

// save writes the lock, durably.
func (l Lock) save(path string) error {
	b, err := yaml.Dump(l, yaml.WithV4Defaults())
	if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	head := "# Written by clawbox bundle: what the recipe's names stand for. Keep it beside\n# the recipe; same lock, same bytes. clawbox bundle --update-lock renews it.\n"
	return durable.WriteFile(path, append([]byte(head), b...), 0o644)
}

// created chooses the release's time: the recipe's, else the lock's, else
// $SOURCE_DATE_EPOCH (reproducible-builds.org), else now.
func created(r Recipe, l *Lock) (time.Time, error) {
	if r.Metadata.Created != "" {
		return parseTime(r.Metadata.Created)
	}
	if l != nil {
		return parseTime(l.Created)
	}
	if s := os.Getenv("SOURCE_DATE_EPOCH"); s != "" {
		n, err := strconv.ParseInt(s, 10, 40)
		if err != nil || n < 0 {
			return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH is %.40q, want seconds since 1970", s)
		}
		return time.Unix(n, 0).UTC(), nil
	}
	return time.Now().UTC().Truncate(time.Second), nil
}
