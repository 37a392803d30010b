package router

import (
	"bytes"
	"encoding/json"
	"errors"
)

var errNegative = errors.New("negative number")

// field is a top-level member: b[start:end] is its value.
type field struct {
	key        string
	start, end int
}

// text is one string literal of a JSON document.
type text struct {
	lit   []byte // with its quotes
	start int    // lit is b[start:start+len(lit)]
	top   string // top-level key that it stands under
	key   string // nearest key above it
	depth int    // objects and arrays around it
	isKey bool
}

// walk calls f for every string literal of b, keys too, in order. b must be
// valid JSON: json.Valid has been asked, so no syntax is checked here.
func walk(b []byte, f func(text)) {
	var open []byte   // the brackets around i
	var keys []string // the current key of each
	key := false      // the next string is a key
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{', '[':
			open, keys, key = append(open, b[i]), append(keys, ""), b[i] == '{'
		case '}', ']':
			open, keys, key = open[:len(open)-1], keys[:len(keys)-1], false
		case ',':
			key = open[len(open)-1] == '{'
		case '"':
			end := stringEnd(b, i)
			t := text{lit: b[i:end], start: i, depth: len(open), isKey: key}
			if key {
				keys[len(keys)-1], key = string(decode(t.lit)), false
			} else {
				t.key = nearest(keys)
			}
			if len(keys) > 0 {
				t.top = keys[0]
			}
			f(t)
			i = end - 1
		}
	}
}

func nearest(keys []string) string {
	for i := len(keys) - 1; i >= 0; i-- {
		if keys[i] != "" {
			return keys[i]
		}
	}
	return ""
}

// topLevel returns the members of the object b, which must be valid JSON.
func topLevel(b []byte) []field {
	var fs []field
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 && len(fs) > 0 {
				fs[len(fs)-1].end = i
			}
		case ',':
			if depth == 1 {
				fs[len(fs)-1].end = i
			}
		case ':':
			if depth == 1 {
				fs[len(fs)-1].start = i + 1
			}
		case '"':
			end := stringEnd(b, i)
			if depth == 1 && (len(fs) == 0 || fs[len(fs)-1].end > 0) {
				fs = append(fs, field{key: string(decode(b[i:end]))})
			}
			i = end - 1
		}
	}
	for i := range fs { // a span is the value alone
		v := b[fs[i].start:fs[i].end]
		t := bytes.TrimLeft(v, " \t\r\n")
		fs[i].start += len(v) - len(t)
		fs[i].end = fs[i].start + len(bytes.TrimRight(t, " \t\r\n"))
	}
	return fs
}

// stringEnd returns the index after the literal that begins at i.
func stringEnd(b []byte, i int) int {
	for j := i + 1; ; j++ {
		n := bytes.IndexByte(b[j:], '"')
		if n < 0 {
			return len(b)
		}
		j += n
		k := j
		for b[k-1] == '\\' {
			k--
		}
		if (j-k)%2 == 0 {
			return j + 1
		}
	}
}

// decode returns the bytes that a literal stands for.
func decode(lit []byte) []byte {
	if bytes.IndexByte(lit, '\\') < 0 {
		return lit[1 : len(lit)-1]
	}
	var s string
	_ = json.Unmarshal(lit, &s) // part of valid JSON
	return []byte(s)
}
