package sbom

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// component is what is read of a CycloneDX component.
type component struct {
	PURL       string      `json:"purl"`
	Properties []property  `json:"properties"`
	Components []component `json:"components"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// ReadCycloneDX returns the packages of a CycloneDX document in JSON, ours or
// another tool's: the components, at any depth, that have a package URL of a
// type that Scan knows. Unknown fields are passed over, as the format grows.
func ReadCycloneDX(b []byte) ([]Package, error) {
	var d struct {
		Format     string      `json:"bomFormat"`
		Components []component `json:"components"`
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("sbom: %d bytes, want at most %d", len(b), maxFile)
	}
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, fmt.Errorf("sbom: %w", err)
	}
	if d.Format != "CycloneDX" {
		return nil, fmt.Errorf("sbom: bomFormat %.40q, want CycloneDX", d.Format)
	}
	var out []Package
	if err := collect(d.Components, &out); err != nil {
		return nil, err
	}
	slices.SortFunc(out, comparePackages)
	return slices.Compact(out), nil
}

func collect(cs []component, out *[]Package) error {
	for _, c := range cs {
		if p, ok := parsePURL(c.PURL); ok {
			for _, x := range c.Properties {
				if x.Name == "clawbox:source" {
					p.Source = x.Value
				}
			}
			if *out = append(*out, p); len(*out) > maxPackages {
				return fmt.Errorf("sbom: more than %d packages", maxPackages)
			}
		}
		if err := collect(c.Components, out); err != nil {
			return err
		}
	}
	return nil
}

// namespaced says of each type that is read whether the namespace is a part of
// the package's name. A distribution's isn't.
var namespaced = map[string]bool{"deb": false, "apk": false, "golang": true, "npm": true, "pypi": false}

// parsePURL is PURL backwards (package-url/purl-spec).
func parsePURL(s string) (p Package, ok bool) {
	rest, ok := strings.CutPrefix(s, "pkg:")
	if !ok {
		return p, false
	}
	rest, _, _ = strings.Cut(rest, "#")
	rest, query, _ := strings.Cut(rest, "?")
	at := strings.LastIndexByte(rest, '@')
	kind, name, found := strings.Cut(rest[:max(at, 0)], "/")
	whole, known := namespaced[kind]
	if at < 0 || !found || !known {
		return p, false
	}
	if !whole {
		name = name[strings.LastIndexByte(name, '/')+1:]
	}
	p.Type = kind
	var errs [2]error
	p.Name, errs[0] = url.PathUnescape(name)
	p.Version, errs[1] = url.PathUnescape(rest[at+1:])
	q, err := url.ParseQuery(query)
	if errs[0] != nil || errs[1] != nil || err != nil || p.Name == "" {
		return p, false
	}
	p.Arch = q.Get("arch")
	return p, true
}
