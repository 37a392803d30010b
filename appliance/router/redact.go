package router

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
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

// inspect looks at every string and long number of the valid JSON document b.
func inspect(b []byte) finds {
	var r redaction
	r.document(b, true)
	return r.found
}

// mask returns b with every find replaced by its class and a number, the same
// for the same value. A number that is masked becomes a string.
func mask(b []byte) []byte {
	var r redaction
	return r.document(b, true)
}

// redaction is what has been found and masked in a document.
type redaction struct {
	found finds
	names map[string]string // mask by value
	nums  map[class]int
}

// document masks the numbers of the valid JSON document b, and the strings if
// asked to.
func (r *redaction) document(b []byte, texts bool) []byte {
	var out []byte
	last := 0
	walk(b, func(t text) {
		var s []byte
		switch {
		case t.isNum:
			s = r.replace(t.lit, scan(t.lit, nil))
		case texts:
			s = r.text(decode(t.lit))
		}
		if s == nil {
			return
		}
		q, _ := json.Marshal(string(s)) // a string always encodes
		out = append(append(out, b[last:t.start]...), q...)
		last = t.start + len(t.lit)
	})
	if last == 0 {
		return b
	}
	return append(out, b[last:]...)
}

// text masks s, or returns nil. What is JSON stays JSON: whoever gets the
// arguments of a tool may parse them.
func (r *redaction) text(s []byte) []byte {
	hits := look(s, 0)
	if len(hits) == 0 {
		return nil
	}
	if t := bytes.TrimSpace(s); len(t) > 0 && (t[0] == '{' || t[0] == '[') && json.Valid(s) {
		s = r.document(s, false)
		hits = look(s, 0)
	}
	if out := r.replace(s, hits); out != nil {
		return out
	}
	return s
}

// replace puts the masks of hits into s; nil without hits.
func (r *redaction) replace(s []byte, hits []hit) []byte {
	var out []byte
	last := 0
	for _, h := range hits {
		out = append(append(out, s[last:h.from]...), r.name(h.class, s[h.from:h.to])...)
		last = h.to
	}
	if last == 0 {
		return nil
	}
	return append(out, s[last:]...)
}

// name counts a find and returns its mask.
func (r *redaction) name(c class, v []byte) string {
	if r.found == nil {
		r.found, r.names, r.nums = finds{}, map[string]string{}, map[class]int{}
	}
	r.found[c]++
	for range nesting {
		v = unescape(v)
	}
	if r.names[string(v)] == "" {
		r.nums[c]++
		r.names[string(v)] = fmt.Sprintf("[%s_%d]", strings.ToUpper(string(c)), r.nums[c])
	}
	return r.names[string(v)]
}

// nesting bounds how many times escapes are undone: tool calls carry their
// arguments as JSON text, and so may a result in them, and prose around both.
const nesting = 4

// look returns the finds of s, those also that escapes of JSON hide, however
// the text around them looks: who reads it may undo the escapes.
func look(s []byte, depth int) []hit {
	hits := scan(s, nil)
	if depth == nesting {
		return hits
	}
	u := unescape(s)
	if len(u) == len(s) {
		return hits
	}
	return merge(behind(s, look(u, depth+1)), hits)
}

// merge joins two lists in order. Of two finds that overlap, that of deep
// counts: "\nbob@x.com" begins with a line end rather than with an n.
func merge(deep, flat []hit) []hit {
	if len(deep) == 0 {
		return flat
	}
	out := make([]hit, 0, len(deep)+len(flat))
	for _, h := range flat {
		for len(deep) > 0 && deep[0].to <= h.from {
			out, deep = append(out, deep[0]), deep[1:]
		}
		if len(deep) == 0 || h.to <= deep[0].from {
			out = append(out, h)
		}
	}
	return append(out, deep...)
}

// behind translates finds of unescape(s), which are in order, to s.
func behind(s []byte, hits []hit) []hit {
	i, at := 0, 0 // s[i] stands for byte at of unescape(s)
	pos := func(v int) int {
		for at < v {
			r, k := spell(s[i:])
			i, at = i+k, at+r
		}
		return i
	}
	for n, h := range hits {
		hits[n].from, hits[n].to = pos(h.from), pos(h.to)
	}
	return hits
}

// spell returns how many bytes the k bytes that s begins with stand for.
func spell(s []byte) (n, k int) {
	if s[0] == '\\' {
		if r, k := escape(s); k > 0 {
			return utf8.RuneLen(r), k
		}
	}
	return 1, 1
}
