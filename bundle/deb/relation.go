package deb

import (
	"fmt"
	"regexp"
	"strings"
)

// Dep is one package of a relation: a name and, where it is asked for, a
// version.
type Dep struct {
	Name    string
	Op      string // "", <<, <=, =, >=, >>
	Version string
}

func (d Dep) String() string {
	if d.Op == "" {
		return d.Name
	}
	return d.Name + " (" + d.Op + " " + d.Version + ")"
}

// Relation is a list of alternatives: any one will do.
type Relation []Dep

func (r Relation) String() string {
	var s []string
	for _, d := range r {
		s = append(s, d.String())
	}
	return strings.Join(s, " | ")
}

// depForm is one alternative (Policy 7.1): name, architecture qualifier, version,
// architecture list, build profiles. Binary packages use the first three.
var depForm = regexp.MustCompile(`^([a-z0-9][a-z0-9+.-]+)(?::([a-z0-9-]+))?\s*(?:\(\s*(<<|<=|=|>=|>>|<|>)\s*([^\s)]+)\s*\))?$`)

// oldOps are the forms that Policy 7.1 calls deprecated; dpkg takes them so.
var oldOps = map[string]string{"<": "<=", ">": ">="}

// ParseRelations reads a field such as Depends.
func ParseRelations(s string) ([]Relation, error) {
	var out []Relation
	for group := range strings.SplitSeq(s, ",") {
		if group = strings.TrimSpace(group); group == "" {
			continue
		}
		var r Relation
		for alt := range strings.SplitSeq(group, "|") {
			m := depForm.FindStringSubmatch(strings.TrimSpace(alt))
			if m == nil {
				return nil, fmt.Errorf("%.80q: want NAME or NAME (OP VERSION)", alt)
			}
			d := Dep{m[1], m[3], m[4]}
			if o, ok := oldOps[d.Op]; ok {
				d.Op = o
			}
			if d.Op != "" {
				if _, err := ParseVersion(d.Version); err != nil {
					return nil, err
				}
			}
			r = append(r, d)
		}
		out = append(out, r)
	}
	return out, nil
}

// Provide is a virtual package, with a version or without.
type Provide struct{ Name, Version string }

func parseProvides(s string) ([]Provide, error) {
	rs, err := ParseRelations(s)
	if err != nil {
		return nil, fmt.Errorf("provides: %w", err)
	}
	var out []Provide
	for _, r := range rs {
		if len(r) != 1 || r[0].Op != "" && r[0].Op != "=" {
			return nil, fmt.Errorf("provides: %s: want NAME or NAME (= VERSION)", r)
		}
		out = append(out, Provide{r[0].Name, r[0].Version})
	}
	return out, nil
}

// takes says whether a version satisfies the dep. A provider without a version
// satisfies only a dep without one (Policy 7.5).
func (d Dep) takes(version string) bool {
	if d.Op == "" {
		return true
	}
	have, err := ParseVersion(version)
	want, err2 := ParseVersion(d.Version)
	if err != nil || err2 != nil {
		return false
	}
	c := have.Compare(want)
	return map[string]bool{"<<": c < 0, "<=": c <= 0, "=": c == 0, ">=": c >= 0, ">>": c > 0}[d.Op]
}
