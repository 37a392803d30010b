package inspect

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

const (
	maxDepth = 64
	maxKeys  = 100_000 // values of a whole document
)

// object is a JSON object. Values are object, []any, string, json.Number,
// bool or nil, read strictly: the stdlib's decoder takes the last of two equal
// keys, replaces what is not UTF-8, and matches the fields of structs in any
// case; servers differ in each of these.
type object = map[string]any

// readJSON reads one document: RFC 8259 grammar, UTF-8, no lone surrogates,
// no key twice in one object, not even in another case, bounded.
func readJSON(b []byte) (any, error) {
	if !utf8.Valid(b) {
		return nil, fmt.Errorf("bytes that are not UTF-8")
	}
	if !json.Valid(b) {
		return nil, fmt.Errorf("not JSON")
	}
	if loneSurrogate(b) {
		return nil, fmt.Errorf("a \\u escape of half a character")
	}
	d := jsonReader{Decoder: json.NewDecoder(bytes.NewReader(b))}
	d.UseNumber()
	v, err := d.value(0)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("more after the first document")
	}
	return v, nil
}

type jsonReader struct {
	*json.Decoder
	n int
}

func (d *jsonReader) value(depth int) (any, error) {
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	if d.n++; d.n > maxKeys || depth > maxDepth {
		return nil, fmt.Errorf("more than %d values, or deeper than %d", maxKeys, maxDepth)
	}
	switch t {
	case json.Delim('{'):
		return d.object(depth)
	case json.Delim('['):
		return d.array(depth)
	}
	return t, nil
}

func (d *jsonReader) array(depth int) (any, error) {
	a := []any{}
	for d.More() {
		v, err := d.value(depth + 1)
		if err != nil {
			return nil, err
		}
		a = append(a, v)
	}
	_, err := d.Token()
	return a, err
}

func (d *jsonReader) object(depth int) (any, error) {
	o, seen := object{}, map[string]string{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		k := t.(string)
		if strings.Contains(k, "\x00") { // where text ends, for servers in C
			return nil, fmt.Errorf("a NUL character in key %.40q", k)
		}
		if was, twice := seen[fold(k)]; twice {
			return nil, fmt.Errorf("keys %.40q and %.40q in one object", was, k)
		}
		seen[fold(k)] = k
		if o[k], err = d.value(depth + 1); err != nil {
			return nil, err
		}
	}
	_, err := d.Token()
	return o, err
}

// fold gives equal text for what a reader that ignores case takes for equal,
// the two letters outside ASCII included that fold into it.
func fold(s string) string {
	return strings.ToLower(strings.ToUpper(s))
}

// loneSurrogate finds \uD800 to \uDFFF outside a pair; b is valid JSON.
func loneSurrogate(b []byte) bool {
	for i := 0; i+1 < len(b); i++ {
		if b[i] != '\\' {
			continue
		}
		if i++; b[i] != 'u' {
			continue
		}
		switch surrogate(b[i-1:]) {
		case 1:
			if surrogate(b[i+5:]) != 2 {
				return true
			}
			i += 6
		case 2:
			return true
		}
	}
	return false
}

// surrogate says whether b begins with a \u escape of a high (1) or low (2) half.
func surrogate(b []byte) int {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' || b[2]|0x20 != 'd' {
		return 0
	}
	switch strings.IndexByte("89abcdefABCDEF", b[3]) {
	case 0, 1, 2, 3, 8, 9:
		return 1
	case 4, 5, 6, 7, 10, 11, 12, 13:
		return 2
	}
	return 0
}

// known refuses a key that only a reader which ignores case takes for one of
// the names, and with closed any other key that is not among them.
func known(o object, closed bool, names ...string) error {
	for k := range o {
		hit := false
		for _, n := range names {
			if k != n && fold(k) == fold(n) {
				return fmt.Errorf("key %.40q, which some readers take for %q", k, n)
			}
			hit = hit || k == n
		}
		if closed && !hit {
			return fmt.Errorf("key %.40q, which is none of %v", k, names)
		}
	}
	return nil
}
