package policies

import (
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
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
	if widePath(pattern, p) {
		return true
	}
	if n := norm.NFKC.String(pattern); n != pattern && widePath(n, p) {
		return true
	}
	return slices.ContainsFunc(respelled(p), func(s string) bool { return widePath(pattern, s) || widePath(norm.NFKC.String(pattern), s) })
}

// respelled gives the other paths that a server may take p for, none where p
// has nothing that anybody reads in two ways. Windows drops dots and blanks at
// the end of a name, and takes what follows a colon for a stream of the file;
// others decode once more, or fold letters that look alike (NFKC), or read a
// backslash as a slash.
func respelled(p string) (out []string) {
	if unambiguous(p) {
		return nil
	}
	for _, s := range []string{p, simplified(p)} {
		for _, t := range []string{s, unparamed(s), trimmed(s, ""), trimmed(s, ";"), trimmed(s, ";:")} {
			if t != p && !slices.Contains(out, t) {
				out = append(out, t)
			}
		}
	}
	return out
}

// unambiguous says that respelled has nothing to do, as with nearly all paths.
func unambiguous(p string) bool {
	for i := range len(p) {
		switch c := p[i]; {
		case c <= ' ' || c >= utf8.RuneSelf || strings.IndexByte(`%;:\`, c) >= 0:
			return false
		case c == '.' && (i+1 == len(p) || p[i+1] == '/'):
			return false
		}
	}
	return true
}

// maxDecoded is how often a path is decoded again.
const maxDecoded = 4

// simplified is p decoded, in Unicode's plainest form, without the characters
// that show nothing, with slashes for backslashes.
func simplified(p string) string {
	for range maxDecoded {
		d := decoded(p)
		if d == p {
			break
		}
		p = d
	}
	p = strings.Map(func(r rune) rune {
		switch {
		case r == '\\':
			return '/'
		case unicode.In(r, unicode.Cf, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector):
			return -1
		}
		return r
	}, norm.NFKC.String(p))
	return path.Clean("/" + p)
}

// decoded takes percent signs for what they encode, where they encode something.
func decoded(p string) string {
	if !strings.Contains(p, "%") {
		return p
	}
	b := make([]byte, 0, len(p))
	for i := 0; i < len(p); i++ {
		if p[i] == '%' && i+2 < len(p) {
			if n, err := strconv.ParseUint(p[i+1:i+3], 16, 8); err == nil {
				b = append(b, byte(n))
				i += 2
				continue
			}
		}
		b = append(b, p[i])
	}
	return string(b)
}

// trimmed drops from each segment what follows one of the characters of cut,
// then blanks around it and dots behind it.
func trimmed(p, cut string) string {
	segments := strings.Split(p, "/")
	for i, s := range segments {
		if at := strings.IndexAny(s, cut); at >= 0 {
			s = s[:at]
		}
		s = strings.TrimLeftFunc(s, unicode.IsSpace)
		segments[i] = strings.TrimRightFunc(s, func(r rune) bool { return r == '.' || unicode.IsSpace(r) || unicode.IsControl(r) })
	}
	return path.Clean("/" + strings.Join(segments, "/"))
}

// resembles says whether p is another spelling of a path that the rule is for:
// letters in another case, what respelled gives, a final slash, or the folder
// itself of "/x/**".
func (h *HostRule) resembles(p string) bool {
	trim := func(s string) string { return "/" + strings.Trim(s, "/") }
	patterns := []string{trim(h.Path)}
	if bare := strings.TrimRight(h.Path, "*"); bare != h.Path && strings.HasSuffix(bare, "/") {
		patterns = append(patterns, trim(bare))
	}
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		return slices.ContainsFunc(append(respelled(p), p), func(s string) bool { return run(pattern, trim(s), '/', sameLetter) })
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
