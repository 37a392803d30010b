package deb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Package is one package of an archive.
type Package struct {
	Name, Arch string
	Version    Version
	URL        string
	SHA256     string // in hex
	Size       int64  // bytes
	priority   int

	depends, recommends, against []Relation // against: Breaks and Conflicts
	provides                     []Provide
}

func (p *Package) String() string { return p.Name + " " + p.Version.String() }

// Index holds the packages of one architecture, from any number of sources.
type Index struct {
	arch   string
	byName map[string][]*Package // highest version first
	by     map[string][]provider // of virtual packages
}

type provider struct {
	p       *Package
	version string // "" when it provides no version
}

// NewIndex makes an index for an architecture such as amd64.
func NewIndex(arch string) *Index {
	return &Index{arch: arch, byName: map[string][]*Package{}, by: map[string][]provider{}}
}

// Len is the number of packages.
func (x *Index) Len() (n int) {
	for _, ps := range x.byName {
		n += len(ps)
	}
	return n
}

// Read adds a source's packages: InRelease, then each component's Packages.
func (x *Index) Read(ctx context.Context, s Source, fetch Fetch) error {
	r, err := s.readRelease(ctx, fetch)
	if err != nil {
		return fmt.Errorf("debian archive: %w", err)
	}
	names := []string{"Packages"}
	if !s.flat() {
		if names = nil; len(s.Components) == 0 {
			return fmt.Errorf("debian archive: %s %s: no components, want main or others", s.URI, s.Suite)
		}
		for _, c := range s.Components {
			names = append(names, c+"/binary-"+x.arch+"/Packages")
		}
	}
	for _, n := range names {
		if err := s.packages(ctx, fetch, r, n, func(st Stanza) error { return x.add(s, st) }); err != nil {
			return fmt.Errorf("debian archive: %w", err)
		}
	}
	return nil
}

// priorities rank providers of a virtual package, as Policy 2.5 ranks packages.
var priorities = map[string]int{"required": 0, "important": 1, "standard": 2, "optional": 3, "extra": 4}

// packageName is Policy 5.6.1.
var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]{1,}$`)

// add takes a paragraph of a Packages file.
func (x *Index) add(s Source, st Stanza) error {
	if a := st["architecture"]; a != x.arch && a != "all" {
		return nil // a flat repository may hold several
	}
	p := &Package{Name: st["package"], Arch: st["architecture"], SHA256: st["sha256"], priority: 5}
	if r, ok := priorities[st["priority"]]; ok {
		p.priority = r
	}
	fail := func(err error) error { return fmt.Errorf("package %.80q: %w", st["package"], err) }
	var err error
	if p.Version, err = ParseVersion(st["version"]); err != nil {
		return fail(err)
	}
	if p.Size, err = strconv.ParseInt(st["size"], 10, 64); err != nil || p.Size < 1 {
		return fail(fmt.Errorf("size %.20q", st["size"]))
	}
	file := strings.TrimPrefix(st["filename"], "./")
	if !packageName.MatchString(p.Name) || len(p.SHA256) != 64 || file == "" || strings.HasPrefix(file, "/") || slices.Contains(strings.Split(file, "/"), "..") {
		return fail(errors.New("want a name, a sha256 and a relative file name"))
	}
	p.URL = s.pool() + "/" + file
	if err := p.relations(st); err != nil {
		return fail(err)
	}
	x.insert(p)
	return nil
}

func (p *Package) relations(st Stanza) (err error) {
	for _, f := range []struct {
		field string
		into  *[]Relation
	}{{"pre-depends", &p.depends}, {"depends", &p.depends}, {"recommends", &p.recommends}, {"breaks", &p.against}, {"conflicts", &p.against}} {
		rs, err := ParseRelations(st[f.field])
		if err != nil {
			return fmt.Errorf("%s: %w", f.field, err)
		}
		*f.into = append(*f.into, rs...)
	}
	p.provides, err = parseProvides(st["provides"])
	return err
}

// insert keeps the highest version first; the same version from two sources
// counts once.
func (x *Index) insert(p *Package) {
	ps := x.byName[p.Name]
	i, same := slices.BinarySearchFunc(ps, p, func(a, b *Package) int { return b.Version.Compare(a.Version) })
	if same {
		return
	}
	x.byName[p.Name] = slices.Insert(ps, i, p)
	for _, v := range p.provides {
		x.by[v.Name] = append(x.by[v.Name], provider{p, v.Version})
	}
}

// candidates are what could satisfy one alternative, the best first: packages of
// the name, then providers by priority, name and version.
func (x *Index) candidates(d Dep) (out []*Package) {
	for _, p := range x.byName[d.Name] {
		if d.takes(p.Version.String()) {
			out = append(out, p)
		}
	}
	var virtual []*Package
	for _, v := range x.by[d.Name] {
		if d.takes(v.version) && x.byName[v.p.Name][0] == v.p {
			virtual = append(virtual, v.p)
		}
	}
	slices.SortFunc(virtual, func(a, b *Package) int {
		return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(a.Name, b.Name))
	})
	return append(out, virtual...)
}
