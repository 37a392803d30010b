package router

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// finds counts sensitive content by class. Its text form ("card=1 email=2")
// is what records and messages show.
type finds map[class]int

func (f finds) String() string {
	var out []string
	for _, c := range slices.Sorted(maps.Keys(f)) {
		out = append(out, fmt.Sprintf("%s=%d", c, f[c]))
	}
	return strings.Join(out, " ")
}

// inspect looks at every string of the valid JSON document b.
func inspect(b []byte) finds {
	var f finds
	rewrite(b, 0, func(s []byte) []byte {
		for _, h := range scan(s, nil) {
			if f == nil {
				f = finds{}
			}
			f[h.class]++
		}
		return nil
	})
	return f
}

// mask returns b with every find replaced by its class and a number, the same
// for the same value.
func mask(b []byte) []byte {
	names := map[string]string{}
	nums := map[class]int{}
	return rewrite(b, 0, func(s []byte) []byte {
		hits := scan(s, nil)
		if len(hits) == 0 {
			return nil
		}
		var out []byte
		last := 0
		for _, h := range hits {
			v := string(s[h.from:h.to])
			if names[v] == "" {
				nums[h.class]++
				names[v] = fmt.Sprintf("[%s_%d]", strings.ToUpper(string(h.class)), nums[h.class])
			}
			out = append(append(out, s[last:h.from]...), names[v]...)
			last = h.to
		}
		return append(out, s[last:]...)
	})
}

// nesting bounds how deep JSON inside strings is followed: tool calls carry
// their arguments as JSON text, and so may a result in them.
const nesting = 3

// rewrite gives the decoded form of every string in b to f and puts what f
// returns, if not nil, in its place. A string that is itself JSON with escapes
// is entered, so that \u0040 inside one is seen.
func rewrite(b []byte, depth int, f func([]byte) []byte) []byte {
	var out []byte
	last := 0
	walk(b, func(t text) {
		s := decode(t.lit)
		var r []byte
		if depth < nesting && holdsJSON(s) {
			if n := rewrite(s, depth+1, f); !bytes.Equal(n, s) {
				r = n
			}
		} else {
			r = f(s)
		}
		if r == nil {
			return
		}
		q, _ := json.Marshal(string(r)) // a string always encodes
		out = append(append(out, b[last:t.start]...), q...)
		last = t.start + len(t.lit)
	})
	if last == 0 {
		return b
	}
	return append(out, b[last:]...)
}

// holdsJSON says whether a string is worth entering: only escapes hide anything.
func holdsJSON(s []byte) bool {
	return len(s) > 1 && (s[0] == '{' || s[0] == '[') && bytes.IndexByte(s, '\\') >= 0 && json.Valid(s)
}
