package manifest

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/mod/semver"

	"github.com/clawbox/clawbox/bundle/content"
)

// Kind is a row of Kinds.
type Kind struct {
	// Placed items have a Path in the slot; the others are used from the store.
	Placed bool
	// Order is the place in the media: what is needed first comes first.
	Order int
	// Made items are the build's own; no recipe names them.
	Made bool
}

// Kinds lists what an item can be.
var Kinds = map[string]Kind{
	"file":   {Placed: true, Order: 1},
	"policy": {Placed: true, Order: 2},
	"debs":   {Placed: true, Order: 3}, // a folder of packages
	"image":  {Order: 4},
	"model":  {Order: 6},             // by far the largest: last
	"sbom":   {Made: true, Order: 5}, // known when the images have been read
}

var (
	nameForm     = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)
	platformForm = regexp.MustCompile(`^[a-z0-9]{1,32}/[a-z0-9]{1,32}(/[a-z0-9.]{1,32})?$`)
	modeForm     = regexp.MustCompile(`^0[0-7]{3}$`)
)

// CheckName refuses what can't name a release or an item.
func CheckName(s string) error {
	if !nameForm.MatchString(s) {
		return fmt.Errorf("name %.80q: want 1 to 64 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit", s)
	}
	return nil
}

// CheckVersion refuses what is not a full semantic version.
func CheckVersion(s string) error {
	v := "v" + s
	if !semver.IsValid(v) || semver.Canonical(v)+semver.Build(v) != v || len(s) > 64 {
		return fmt.Errorf("version %.80q: want a semantic version such as 1.4.0 or 1.4.0-rc.1", s)
	}
	return nil
}

// CheckPath refuses a slot path that is absolute, not clean, or leaves the slot.
func CheckPath(p string) error {
	if !fs.ValidPath(p) || p == "." || len(p) > 255 || strings.ContainsFunc(p, odd) || p != path.Clean(p) {
		return fmt.Errorf("path %.80q: want a clean relative path such as bin/clawbox, without '..' and control characters", p)
	}
	return nil
}

func odd(r rune) bool { return r == '\\' || r == unicode.ReplacementChar || !unicode.IsPrint(r) }

// CheckMode refuses permissions that nothing in a slot may have: setuid, and
// write access for anyone but the owner.
func CheckMode(m string) error {
	if !modeForm.MatchString(m) {
		return fmt.Errorf("mode %.20q: want four octal digits such as \"0755\"", m)
	}
	if strings.ContainsAny(m[2:], "2367") {
		return fmt.Errorf("mode %s lets group or others write: want 0755, 0644 or less", m)
	}
	return nil
}

// CheckPlatform refuses what is not os/arch or os/arch/variant.
func CheckPlatform(p string) error {
	if !platformForm.MatchString(p) {
		return fmt.Errorf("platform %.80q: want os/architecture such as linux/amd64", p)
	}
	return nil
}

// CheckLicence refuses control characters and essays.
func CheckLicence(s string) error {
	if len(s) > 256 || strings.ContainsFunc(s, odd) {
		return fmt.Errorf("licence %.80q: want an SPDX expression of at most 256 printable bytes", s)
	}
	return nil
}

// check holds the whole release against its rules.
func (r Release) check() error {
	if r.Format != ReleaseFormat {
		return fmt.Errorf("release: format %.80q, want %s: made by another version of clawbox", r.Format, ReleaseFormat)
	}
	if err := CheckName(r.Name); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	if err := CheckVersion(r.Version); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	if r.Sequence < 1 {
		return fmt.Errorf("release: sequence %d, want 1 or more", r.Sequence)
	}
	if y := r.Created.Year(); y < 1970 || y > 9999 || r.Created.Nanosecond() != 0 || r.Created.Location().String() != "UTC" {
		return fmt.Errorf("release: created %v, want a time in UTC, whole seconds, from 1970 on", r.Created)
	}
	if r.ChunkSize != ChunkSize {
		return fmt.Errorf("release: chunkSize %d, want %d", r.ChunkSize, ChunkSize)
	}
	if r.Index.Size < 1 || r.Index.Size > MaxIndex {
		return fmt.Errorf("release: index of %d bytes, want 1 to %d", r.Index.Size, MaxIndex)
	}
	if err := r.checkStep(); err != nil {
		return err
	}
	if err := r.checkFiles(); err != nil {
		return err
	}
	if err := r.checkOptions(); err != nil {
		return err
	}
	if r.Encryption == "" {
		if err := r.checkItems(); err != nil {
			return fmt.Errorf("release: %w", err)
		}
	} else if len(r.Items) > 0 {
		return fmt.Errorf("release: %d items in the note of an encrypted release, want them in its index", len(r.Items))
	}
	return r.Roles.Release.check()
}

// maxShards is what Reed-Solomon over bytes can do, data and parity together.
const maxShards = 256

// checkFiles holds parts, parity parts and roots against their rules.
func (r Release) checkFiles() error {
	least := 1
	if r.Base != nil {
		least = 0 // all of it may be in the base
	}
	if len(r.Parts) < least || len(r.Parts) > MaxParts {
		return fmt.Errorf("release: %d parts, want %d to %d", len(r.Parts), least, MaxParts)
	}
	if k := len(r.Parts) + len(r.Parity); len(r.Parity) > 0 && (k > maxShards || len(r.Parts) == 0) {
		return fmt.Errorf("release: %d parity parts for %d parts, want parts and no more than %d in all: make the parts larger",
			len(r.Parity), len(r.Parts), maxShards)
	}
	var longest int64
	for i, p := range r.Parts {
		if err := p.check(PartName(i + 1)); err != nil {
			return err
		}
		if sealed := r.Encryption != ""; sealed != (p.Content > 0) || p.Content > p.Size {
			return fmt.Errorf("release: %s: %d bytes of content in %d, want it with encryption only, and not more", p.Name, p.Content, p.Size)
		}
		if p.SHA256 != (Sum{}) {
			return fmt.Errorf("release: %s has a sum, want one for parity parts only", p.Name)
		}
		longest = max(longest, p.Size)
	}
	for i, p := range r.Parity {
		if err := p.check(ParityName(i + 1)); err != nil {
			return err
		}
		if p.Size != longest || p.Content != 0 || p.SHA256 == (Sum{}) {
			return fmt.Errorf("release: %s has %d bytes, want %d, as the longest part, a sum and no content", p.Name, p.Size, longest)
		}
	}
	return nil
}

func (p Part) check(name string) error {
	if p.Name != name {
		return fmt.Errorf("release: %s is named %.80q", name, p.Name)
	}
	if p.Size < 1 || p.Size > MaxPart {
		return fmt.Errorf("release: %s has %d bytes, want 1 to %d", p.Name, p.Size, int64(MaxPart))
	}
	return nil
}

// checkOptions holds base, encryption and roots against their rules.
func (r Release) checkOptions() error {
	if b := r.Base; b != nil {
		if err := errors.Join(CheckName(b.Name), CheckVersion(b.Version)); err != nil {
			return fmt.Errorf("release: base: %w", err)
		}
		if b.Sequence < 1 || b.Sequence > r.Sequence {
			return fmt.Errorf("release: base has sequence %d, want 1 to %d", b.Sequence, r.Sequence)
		}
	}
	if r.Encryption != "" && r.Encryption != Age {
		return fmt.Errorf("release: encryption %.80q, want %s: made by another version of clawbox", r.Encryption, Age)
	}
	if len(r.Roots) > MaxRoots {
		return fmt.Errorf("release: %d roots, want at most %d", len(r.Roots), MaxRoots)
	}
	for i, f := range r.Roots {
		if f.Size < 1 || f.Size > MaxRoot {
			return fmt.Errorf("release: root %d of %d bytes, want 1 to %d", i+1, f.Size, MaxRoot)
		}
	}
	return nil
}

// Size returns the payload on the media in bytes.
func (r Release) Size() (n int64) {
	for _, p := range r.Parts {
		n += p.Payload()
	}
	return n
}

// checkItems also bounds an item by the payload, as only a base gives more.
func (r Release) checkItems() error {
	for _, it := range r.Items {
		if it.TotalSize > r.Size() && r.Base == nil {
			return fmt.Errorf("item %s: %d bytes in a bundle of %d", it.Name, it.TotalSize, r.Size())
		}
	}
	return checkItems(r.Items)
}

func checkItems(items []Item) error {
	if len(items) < 1 {
		return errors.New("no items")
	}
	seen := map[string]string{}
	for _, it := range items {
		if err := it.check(); err != nil {
			return fmt.Errorf("item %.80q: %w", it.Name, err)
		}
		for _, key := range []string{"name " + it.Name, "ref " + it.Ref, "path " + it.Path} {
			if other, ok := seen[key]; ok && key != "path " {
				return fmt.Errorf("items %s and %s have the same %s", other, it.Name, key)
			}
			seen[key] = it.Name
		}
	}
	return checkNested(items)
}

// checkNested refuses a file that another item needs as a folder.
func checkNested(items []Item) error {
	files := map[string]string{}
	for _, it := range items {
		files[it.Path] = it.Name
	}
	for _, it := range items {
		for d := path.Dir(it.Path); it.Path != "" && d != "."; d = path.Dir(d) {
			if other, ok := files[d]; ok {
				return fmt.Errorf("item %s wants %s as a folder, item %s as a file", it.Name, d, other)
			}
		}
	}
	return nil
}

func (it Item) check() error {
	kind, ok := Kinds[it.Kind]
	if !ok {
		return fmt.Errorf("kind %.80q, want one of %s", it.Kind, strings.Join(slices.Sorted(maps.Keys(Kinds)), ", "))
	}
	if err := CheckName(it.Name); err != nil {
		return err
	}
	if err := content.CheckRef(it.Ref); err != nil {
		return err
	}
	if err := checkRoot(it.Descriptor); err != nil {
		return err
	}
	if err := CheckLicence(it.Licence); err != nil {
		return err
	}
	for _, p := range it.Platforms {
		if err := CheckPlatform(p); err != nil {
			return err
		}
	}
	if it.TotalSize < it.Descriptor.Size {
		return fmt.Errorf("totalSize %d is less than its manifest's %d", it.TotalSize, it.Descriptor.Size)
	}
	if err := it.checkTerms(); err != nil {
		return err
	}
	if err := it.checkModel(); err != nil {
		return err
	}
	return it.checkPlace(kind)
}

func (it Item) checkPlace(k Kind) error {
	if !k.Placed {
		if it.Path != "" || it.Mode != "" {
			return fmt.Errorf("a %s has no path and no mode", it.Kind)
		}
		return nil
	}
	if err := CheckPath(it.Path); err != nil {
		return err
	}
	return CheckMode(it.Mode)
}

func checkRoot(d v1.Descriptor) error {
	if _, err := SumOf(d.Digest); err != nil {
		return err
	}
	if d.Size < 2 || d.Size > maxRoot {
		return fmt.Errorf("manifest of %d bytes, want 2 to %d", d.Size, maxRoot)
	}
	if d.MediaType == "" || len(d.MediaType) > 255 || strings.ContainsFunc(string(d.MediaType), odd) {
		return fmt.Errorf("media type %.80q", d.MediaType)
	}
	if d.Data != nil || d.URLs != nil || d.Annotations != nil || d.Platform != nil {
		return fmt.Errorf("descriptor: only mediaType, size, digest and artifactType are allowed")
	}
	return nil
}

func (r Role) check() error {
	if r.Threshold < 1 || r.Threshold > len(r.Keys) || len(r.Keys) > maxKeys {
		return fmt.Errorf("release: threshold %d of %d keys: want 1 or more and no more than the keys, of which %d at most",
			r.Threshold, len(r.Keys), maxKeys)
	}
	if _, err := NewTrust(r.Threshold, slices.Clone(r.Keys)...); err != nil {
		return fmt.Errorf("release: roles: %w", err)
	}
	return nil
}
