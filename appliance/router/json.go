package router

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
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

// nearest skips arrays, which have no key of their own.
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

// decode returns the bytes that a literal of valid JSON stands for. Most of a
// prompt passes here, so it copies only what has escapes; invalid UTF-8 stays.
func decode(lit []byte) []byte {
	in := lit[1 : len(lit)-1]
	n := bytes.IndexByte(in, '\\')
	if n < 0 {
		return in
	}
	out := make([]byte, 0, len(in))
	for n >= 0 {
		out = append(out, in[:n]...)
		if in = in[n:]; in[1] == 'u' {
			var r rune
			r, in = unicodeEscape(in)
			out = utf8.AppendRune(out, r)
		} else {
			out = append(out, plain(in[1]))
			in = in[2:]
		}
		n = bytes.IndexByte(in, '\\')
	}
	return append(out, in...)
}

// plain is what a backslash and c stand for.
func plain(c byte) byte {
	if i := strings.IndexByte("bfnrt", c); i >= 0 {
		return "\b\f\n\r\t"[i]
	}
	return c // quote, backslash, slash
}

// unicodeEscape reads \uXXXX, or two of them where they are a surrogate pair,
// and returns the rest.
func unicodeEscape(in []byte) (rune, []byte) {
	r := hex4(in)
	if utf16.IsSurrogate(r) {
		if len(in) >= 12 && in[6] == '\\' && in[7] == 'u' {
			if p := utf16.DecodeRune(r, hex4(in[6:])); p != utf8.RuneError {
				return p, in[12:]
			}
		}
		r = utf8.RuneError
	}
	return r, in[6:]
}

func hex4(in []byte) rune {
	n, _ := strconv.ParseUint(string(in[2:6]), 16, 16) // valid JSON: four hex digits
	return rune(n)
}
