package deb

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Request is what a closure is wanted of.
type Request struct {
	// Packages are names, or NAME=VERSION.
	Packages []string
	// Installed is what a clean target has: its version by name.
	Installed map[string]string
	// Recommends takes recommended packages too, where they can be had.
	Recommends bool
}

// File is one .deb to carry.
type File struct {
	Name, Version, Arch string
	URL, SHA256         string
	Size                int64  // bytes
	Why                 string // who wants it: a package, or "" for what was asked for
}

// Plan is a closure, by name.
type Plan struct {
	Files []File
	Notes []string // recommended packages that can't be had, packages that are upgraded
}

// Size is the sum of the files in bytes.
func (p Plan) Size() (n int64) {
	for _, f := range p.Files {
		n += f.Size
	}
	return n
}

// Expand fills {kernel} and {branch} in names of packages, such as
// linux-modules-nvidia-{branch}-server-open-{kernel}. A name whose placeholder
// has no value is an error: it would be looked for as it stands.
func Expand(names []string, kernel, branch string) ([]string, error) {
	r := strings.NewReplacer("{kernel}", kernel, "{branch}", branch)
	var out []string
	for _, n := range names {
		if strings.Contains(n, "{kernel}") && kernel == "" || strings.Contains(n, "{branch}") && branch == "" {
			return nil, fmt.Errorf("package %s: name the target's kernel (uname -r there) and the driver's branch", n)
		}
		out = append(out, r.Replace(n))
	}
	return out, nil
}

// ReadManifest reads what a clean installation has: lines of a name and a
// version, as Ubuntu publishes with its images and dpkg-query -W prints; or
// dpkg's status file.
func ReadManifest(r io.Reader) (map[string]string, error) {
	in := bufio.NewReader(r)
	out := map[string]string{}
	if head, _ := in.Peek(8); string(head) == "Package:" {
		return out, Stanzas(in, func(s Stanza) error {
			if strings.HasSuffix(s["status"], " installed") {
				out[s["package"]] = s["version"]
			}
			return nil
		})
	}
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		f := strings.Fields(lines.Text())
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		name, _, _ := strings.Cut(f[0], ":") // libc6:amd64
		if len(f) != 2 || !packageName.MatchString(name) {
			return nil, fmt.Errorf("manifest, line %d: got %.80q, want NAME VERSION", n, lines.Text())
		}
		if _, err := ParseVersion(f[1]); err != nil {
			return nil, fmt.Errorf("manifest, line %d: %w", n, err)
		}
		out[name] = f[1]
	}
	return out, lines.Err()
}

// Closure works out what to carry. Errors name everything that is missing or in
// conflict.
func (x *Index) Closure(r Request) (Plan, error) {
	c := &closure{x: x, req: r, chosen: map[string]*Package{}, why: map[string]string{}}
	for _, n := range r.Packages {
		name, version, pinned := strings.Cut(n, "=")
		d := Dep{Name: name}
		if pinned {
			d.Op, d.Version = "=", version
		}
		c.want(Relation{d}, "")
	}
	for len(c.queue) > 0 {
		p := c.queue[0]
		c.queue = c.queue[1:]
		c.follow(p)
	}
	c.conflicts()
	if len(c.errs) > 0 {
		return Plan{}, fmt.Errorf("closure of %s: %w", strings.Join(r.Packages, ", "), errors.Join(c.errs...))
	}
	return c.plan(), nil
}

// closure is one resolution: what is chosen so far, and whose needs are not yet
// looked at.
type closure struct {
	x      *Index
	req    Request
	chosen map[string]*Package
	why    map[string]string
	queue  []*Package
	notes  []string
	errs   []error
}

// follow takes the needs of a chosen package.
func (c *closure) follow(p *Package) {
	if c.chosen[p.Name] != p {
		return // replaced by a higher version meanwhile
	}
	for _, r := range p.depends {
		c.want(r, p.Name)
	}
	if !c.req.Recommends {
		return
	}
	for _, r := range p.recommends {
		if len(c.best(r)) == 0 && !c.satisfied(r) {
			c.notes = append(c.notes, fmt.Sprintf("%s recommends %s, which can't be had", p.Name, r))
			continue
		}
		c.want(r, p.Name)
	}
}

// want sees that a relation holds, and chooses a package for it if it doesn't.
func (c *closure) want(r Relation, by string) {
	if c.satisfied(r) {
		return
	}
	best := c.best(r)
	if len(best) == 0 {
		c.errs = append(c.errs, c.missing(r, by))
		return
	}
	p := best[0]
	if old := c.chosen[p.Name]; old != nil {
		c.errs = append(c.errs, fmt.Errorf("%s wants %s, but %s is chosen for %s: name the version that suits both as NAME=VERSION", who(by), r, old, who(c.why[p.Name])))
		return
	}
	if v, ok := c.req.Installed[p.Name]; ok {
		c.notes = append(c.notes, fmt.Sprintf("%s %s of the target is replaced by %s", p.Name, v, p.Version))
	}
	c.chosen[p.Name], c.why[p.Name] = p, by
	c.queue = append(c.queue, p)
}

func who(by string) string {
	if by == "" {
		return "the request"
	}
	return by
}

func (c *closure) missing(r Relation, by string) error {
	var have []string
	for _, d := range r {
		for _, p := range c.x.byName[d.Name] {
			have = append(have, p.String())
		}
	}
	s := "no source has it: add the archive or component that does"
	if len(have) > 0 {
		s = "the sources have " + strings.Join(have[:min(len(have), 5)], ", ")
	}
	return fmt.Errorf("%s wants %s: %s", who(by), r, s)
}

// best are the candidates of the first alternative that has any.
func (c *closure) best(r Relation) []*Package {
	for _, d := range r {
		if ps := c.x.candidates(d); len(ps) > 0 {
			return ps
		}
	}
	return nil
}

// satisfied looks at what is chosen, and at what the target has and keeps.
func (c *closure) satisfied(r Relation) bool {
	return slices.ContainsFunc(r, func(d Dep) bool {
		if p := c.chosen[d.Name]; p != nil && d.takes(p.Version.String()) {
			return true
		}
		if v, ok := c.kept(d.Name); ok && d.takes(v) {
			return true
		}
		for _, v := range c.x.by[d.Name] {
			if d.takes(v.version) && (c.chosen[v.p.Name] == v.p || c.has(v.p)) {
				return true
			}
		}
		return false
	})
}

// kept is the version that the target has of a package that is not replaced.
func (c *closure) kept(name string) (string, bool) {
	if c.chosen[name] != nil {
		return "", false
	}
	v, ok := c.req.Installed[name]
	return v, ok
}

// has says whether the target keeps exactly p. Of other versions than the
// sources have, it isn't known what they provide.
func (c *closure) has(p *Package) bool {
	v, ok := c.kept(p.Name)
	return ok && v == p.Version.String()
}

// conflicts holds the chosen against each other and against what the target
// keeps.
func (c *closure) conflicts() {
	for _, p := range c.sorted() {
		for _, r := range p.against {
			for _, d := range r {
				c.conflict(p, d)
			}
		}
	}
	for name, v := range c.req.Installed {
		for _, p := range c.x.byName[name] {
			if p.Version.String() != v || c.chosen[name] != nil {
				continue
			}
			for _, r := range p.against {
				if q := c.chosen[r[0].Name]; q != nil && r[0].takes(q.Version.String()) {
					c.errs = append(c.errs, fmt.Errorf("%s of the target is in conflict with %s", p, q))
				}
			}
		}
	}
}

func (c *closure) conflict(p *Package, d Dep) {
	if q := c.chosen[d.Name]; q != nil && q != p && d.takes(q.Version.String()) {
		c.errs = append(c.errs, fmt.Errorf("%s (for %s) is in conflict with %s (for %s)", p, who(c.why[p.Name]), q, who(c.why[q.Name])))
	}
	if v, ok := c.kept(d.Name); ok && d.Name != p.Name && d.takes(v) {
		c.errs = append(c.errs, fmt.Errorf("%s (for %s) is in conflict with %s %s of the target", p, who(c.why[p.Name]), d.Name, v))
	}
	for _, v := range c.x.by[d.Name] { // a package may be in conflict with what it provides itself
		if v.p != p && d.takes(v.version) && (c.chosen[v.p.Name] == v.p || c.has(v.p)) {
			c.errs = append(c.errs, fmt.Errorf("%s is in conflict with %s, which %s provides", p, d, v.p))
		}
	}
}

func (c *closure) sorted() (ps []*Package) {
	for _, p := range c.chosen {
		ps = append(ps, p)
	}
	slices.SortFunc(ps, func(a, b *Package) int { return cmp.Compare(a.Name, b.Name) })
	return ps
}

func (c *closure) plan() Plan {
	slices.Sort(c.notes)
	out := Plan{Notes: c.notes}
	for _, p := range c.sorted() {
		out.Files = append(out.Files, File{p.Name, p.Version.String(), p.Arch, p.URL, p.SHA256, p.Size, c.why[p.Name]})
	}
	return out
}
