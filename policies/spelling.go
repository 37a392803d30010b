package policies

import (
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Other spellings: what some servers take for the same as what was sent. A
// denial counts them all; an allowance is refused where one of them is not
// covered too.

// unparamed drops the parameters of a path's segments, "/admin;v=1/users",
// which servers in Java take out before they route (RFC 3986, 3.3).
func unparamed(p string) string {
	if !strings.Contains(p, ";") {
		return p
	}
	segments := strings.Split(p, "/")
	for i, s := range segments {
		segments[i], _, _ = strings.Cut(s, ";")
	}
	return path.Clean("/" + strings.Join(segments, "/"))
}

// deniesPath matches a path in every spelling.
func deniesPath(pattern, p string) bool {
	return widePath(pattern, p) || strings.Contains(p, ";") && widePath(pattern, unparamed(p))
}

// resembles says whether p is another spelling of a path that the rule is for:
// letters in another case, parameters of segments, a final slash, or the
// folder itself of "/x/**".
func (h *HostRule) resembles(p string) bool {
	trim := func(s string) string { return "/" + strings.Trim(s, "/") }
	patterns := []string{trim(h.Path)}
	if bare := strings.TrimRight(h.Path, "*"); bare != h.Path && strings.HasSuffix(bare, "/") {
		patterns = append(patterns, trim(bare))
	}
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		return run(pattern, trim(p), '/', sameLetter) || run(pattern, trim(unparamed(p)), '/', sameLetter)
	})
}

// parameter gives the name that frameworks read a query key as: PHP makes
// underscores of dots and blanks, and "a[]" and "a[0]" are lists named "a" in
// PHP, Ruby and Node.
func parameter(key string) string {
	if i := strings.IndexByte(key, '['); i > 0 {
		key = key[:i]
	}
	return strings.NewReplacer(".", "_", " ", "_").Replace(strings.ToLower(strings.ToUpper(strings.TrimLeft(key, " "))))
}

// spelled gives the values of a parameter under every spelling of its name;
// with wide the name is a pattern as well.
func spelled(q url.Values, name string, glob bool) (out []string) {
	for k, vs := range q {
		if parameter(k) == parameter(name) || glob && wide(name, k) {
			out = append(out, vs...)
		}
	}
	return out
}

// roams says whether a value climbs out of the folder that it begins with.
func roams(v string) bool {
	if d, err := url.PathUnescape(v); err == nil {
		v = d
	}
	return slices.Contains(strings.FieldsFunc(v, func(r rune) bool { return r == '/' || r == '\\' }), "..")
}

// everyValue is every for parameters and arguments: a star in a pattern of a
// path does not lead out of its folder.
func everyValue(patterns, values []string) bool {
	return every(patterns, values) && !slices.ContainsFunc(values, func(v string) bool {
		return roams(v) && !slices.ContainsFunc(patterns, func(p string) bool {
			return narrow(p, v, 0) && !(strings.Contains(p, "*") && strings.Contains(p, "/"))
		})
	})
}

// maxSpelled bounds the values whose spellings are looked at, in bytes: no
// path and no number is longer.
const maxSpelled = 4 << 10

// readings adds to each value what a server could make of it: without blanks
// around it, decoded, as a clean path from the root, as the path of a URL, as
// another way to write the number.
func readings(values []string) (out []string) {
	for _, v := range values {
		out = append(out, v)
		if len(v) > maxSpelled {
			continue
		}
		s := strings.TrimSpace(v)
		forms := []string{s, number(s)}
		if d, err := url.PathUnescape(s); err == nil {
			s = d
		}
		if _, rest, ok := strings.Cut(s, "://"); ok {
			_, rest, _ = strings.Cut(rest, "/")
			forms = append(forms, s, "/"+rest, path.Clean("/"+rest))
		} else if rest, ok := strings.CutPrefix(s, "file:"); ok {
			forms = append(forms, path.Clean("/"+rest))
		}
		if slashed := strings.ReplaceAll(s, `\`, "/"); strings.Contains(slashed, "/") {
			forms = append(forms, s, slashed, path.Clean(slashed), path.Clean("/"+slashed))
		}
		for _, f := range forms {
			if f != "" && f != v {
				out = append(out, f)
			}
		}
	}
	return out
}

// number writes a number as JavaScript would, or gives "".
func number(s string) string {
	f, err := strconv.ParseFloat(s, 64)
	switch {
	case err != nil || f != f || f > 1e300 || f < -1e300:
		return ""
	case f == 0:
		return "0"
	}
	return strconv.FormatFloat(f, 'f', -1, 64)
}
