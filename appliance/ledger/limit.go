package ledger

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// mapStrings applies f to every string of the record; the attributes' strings
// are shrink's business.
func mapStrings(r *Record, f func(string) string) {
	for _, p := range []*string{&r.Agent, &r.Policy, &r.Reason, &r.Detail, &r.Process.Comm, &r.Path, &r.Host, &r.Model} {
		*p = f(*p)
	}
}

// legible keeps valid UTF-8 as it is and writes each other byte as \xNN, so
// that two different paths stay different.
func legible(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		c, n := utf8.DecodeRuneInString(s[i:])
		if c == utf8.RuneError && n == 1 {
			fmt.Fprintf(&b, `\x%02x`, s[i])
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// limit cuts s to about most bytes and says how much is gone.
func limit(s string, most int) string {
	if len(s) <= most {
		return s
	}
	n := most
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return fmt.Sprintf("%s…[%d bytes cut]", s[:n], len(s)-n)
}

// attrsRoom is what the attributes may take, in bytes of JSON, once an event
// has to be cut.
const attrsRoom = 16 << 10

// shrink cuts every string, and every attribute's value, to most bytes. Of
// the attributes it keeps, in the order of their names, what fits in
// attrsRoom; "attributes_cut" counts the others.
func shrink(r *Record, most int) {
	mapStrings(r, func(s string) string { return limit(s, most) })
	keep := map[string]any{}
	room, cut := attrsRoom, 0
	for _, k := range slices.Sorted(maps.Keys(r.Attrs)) {
		v := shorten(r.Attrs[k], most)
		b, err := json.Marshal(v)
		if room -= len(k)*6 + len(b); err != nil || room < 0 {
			cut++
			continue
		}
		keep[k] = v
	}
	if cut > 0 {
		keep["attributes_cut"] = int64(cut)
	}
	r.Attrs = keep
}

// shorten turns a value that is too long into the beginning of its text.
func shorten(v any, most int) any {
	if s, ok := v.(string); ok {
		return limit(s, most)
	}
	b, err := json.Marshal(v)
	if err == nil && len(b) <= most {
		return v
	}
	return limit(string(b), most)
}
