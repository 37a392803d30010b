package diff

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/mod/semver"

	"github.com/clawbox/clawbox/bundle/deb"
	"github.com/clawbox/clawbox/bundle/manifest"
	"github.com/clawbox/clawbox/bundle/sbom"
)

// packages compares the packages of an image: out of SBOMs when both sides
// carry one, else out of the layers when that was asked for. What two different
// tools found is not compared.
func (d *comparison) packages(p couple, it *Item) {
	x, err := d.a.listed(d.ctx, p.a)
	y, err2 := d.b.listed(d.ctx, p.b)
	if err = errors.Join(err, err2); err != nil {
		d.note("%s: an SBOM could not be read: %v", it.Name, err)
	}
	it.Source = "sbom"
	if x == nil || y == nil {
		if !d.o.Packages {
			it.Source = ""
			d.note("%s: packages were not compared: no SBOM on both sides; --packages reads the layers", it.Name)
			return
		}
		it.Source = "layers"
		x, err = d.a.scanned(d.ctx, p.a, it.Name, d.note)
		y, err2 = d.b.scanned(d.ctx, p.b, it.Name, d.note)
		if err = errors.Join(err, err2); err != nil {
			it.Source = ""
			d.note("%s: the layers could not be read on both sides, so packages were not compared: %v", it.Name, err)
			return
		}
	}
	it.Packages = changes(x, y)
}

// listed reads the SBOMs whose subject is an image or one of its platforms; nil
// when there is none.
func (s *Side) listed(ctx context.Context, it *manifest.Item) (out []sbom.Package, err error) {
	mine := map[v1.Hash]bool{}
	if err := s.walk(ctx, it.Descriptor, func(d v1.Descriptor) error { mine[d.Digest] = true; return nil }); err != nil {
		return nil, err
	}
	for _, d := range s.refs {
		m, err := s.manifest(ctx, d)
		if err != nil || m.Subject == nil || !mine[m.Subject.Digest] || m.ArtifactType != sbom.CycloneDXType || len(m.Layers) != 1 {
			continue // an image's own manifest, or another kind of document
		}
		b, err := s.read(ctx, m.Layers[0], maxSBOM)
		if err != nil {
			return nil, err
		}
		ps, err := sbom.ReadCycloneDX(b)
		if err != nil {
			return nil, err
		}
		out = append(append([]sbom.Package{}, out...), ps...) // none is not nil
	}
	return out, nil
}

// scanned reads the layers of all platforms.
func (s *Side) scanned(ctx context.Context, it *manifest.Item, name string, note func(string, ...any)) (out []sbom.Package, err error) {
	err = s.walk(ctx, it.Descriptor, func(d v1.Descriptor) error {
		if !d.MediaType.IsImage() || d.Platform != nil && d.Platform.OS == "unknown" { // BuildKit's attestations
			return nil
		}
		m, err := s.manifest(ctx, d)
		if err != nil {
			return err
		}
		var ls []sbom.Layer
		for _, l := range m.Layers {
			if strings.Contains(string(l.MediaType), "tar") {
				ls = append(ls, sbom.Layer{Digest: l.Digest, Open: func() (io.ReadCloser, error) { return s.open(ctx, l.Digest) }})
			} else {
				note("%s: %s: not read: layer %s of type %.80s", s.From, name, l.Digest, l.MediaType)
			}
		}
		img, err := sbom.Scan(ctx, ls, nil)
		for _, u := range img.Unread {
			note("%s: %s: not read: %s", s.From, name, u)
		}
		out = append(out, img.Packages...)
		return err
	})
	return out, err
}

// key tells one package from another, whatever its version.
type key struct{ kind, name, arch string }

// versions lists each package's versions, sorted.
func versions(ps []sbom.Package) (vs map[key][]string, source map[key]string) {
	vs, source = map[key][]string{}, map[key]string{}
	for _, p := range ps {
		k := key{p.Type, p.Name, p.Arch}
		if !slices.Contains(vs[k], p.Version) {
			vs[k] = append(vs[k], p.Version)
		}
		source[k] = p.Source
	}
	for k := range vs {
		slices.Sort(vs[k])
	}
	return vs, source
}

// changes lists the packages whose versions differ, sorted.
func changes(x, y []sbom.Package) (out []Package) {
	old, oldSource := versions(x)
	now, nowSource := versions(y)
	all := maps.Clone(old)
	maps.Copy(all, now)
	for k := range all {
		a, b := old[k], now[k]
		if slices.Equal(a, b) {
			continue
		}
		p := Package{Type: k.kind, Name: k.name, Arch: k.arch, Source: cmp.Or(nowSource[k], oldSource[k]), A: append([]string{}, a...), B: append([]string{}, b...)}
		p.Change = changed(k.kind, a, b)
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Package) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Arch, b.Arch))
	})
	return out
}

// changed names a change of versions. Of several versions at once only their
// coming and going is told.
func changed(kind string, a, b []string) string {
	switch {
	case len(a) == 0:
		return Added
	case len(b) == 0:
		return Removed
	case len(a) > 1 || len(b) > 1:
		return Changed
	}
	order, ok := orders[kind]
	if !ok {
		return Changed
	}
	n, err := order(a[0], b[0])
	switch {
	case err != nil || n == 0:
		return Changed
	case n < 0:
		return Upgraded
	}
	return Downgraded
}

// orders compare versions as each kind of package does; an error for what has
// no order that is known here.
var orders = map[string]func(a, b string) (int, error){
	"deb": compareDeb, "golang": compareSemver, "npm": compareSemver, "pypi": compareNumbers, "apk": compareNumbers,
}

func compareDeb(a, b string) (int, error) {
	x, err := deb.ParseVersion(a)
	y, err2 := deb.ParseVersion(b)
	if err = errors.Join(err, err2); err != nil {
		return 0, err
	}
	return x.Compare(y), nil
}

func compareSemver(a, b string) (int, error) {
	a, b = "v"+strings.TrimPrefix(a, "v"), "v"+strings.TrimPrefix(b, "v")
	if !semver.IsValid(a) || !semver.IsValid(b) {
		return 0, fmt.Errorf("%s and %s are no semantic versions", a, b)
	}
	return semver.Compare(a, b), nil
}

// numbers are the versions of Python and Alpine that need no rules for letters.
var numbers = regexp.MustCompile(`^\d{1,9}(\.\d{1,9}){0,9}(-r\d{1,9})?$`)

func compareNumbers(a, b string) (int, error) {
	if !numbers.MatchString(a) || !numbers.MatchString(b) {
		return 0, fmt.Errorf("%s and %s are not plain numbers", a, b)
	}
	x, xr, _ := strings.Cut(a, "-r")
	y, yr, _ := strings.Cut(b, "-r")
	return cmp.Or(slices.Compare(ints(x), ints(y)), slices.Compare(ints(xr), ints(yr))), nil
}

func ints(s string) (out []int) {
	for f := range strings.SplitSeq(s, ".") {
		n, _ := strconv.Atoi(f) // checked by numbers; "" is 0
		out = append(out, n)
	}
	return out
}
