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

// text is one string literal of a JSON document, or a number long enough to
// be somebody's.
type text struct {
	lit   []byte // with its quotes
	start int    // lit is b[start:start+len(lit)]
	top   string // top-level key that it stands under
	key   string // nearest key above it
	depth int    // objects and arrays around it
	isKey bool
	isNum bool     // lit is a number
	path  []string // the key that leads through each bracket, "" in arrays; for f alone
}

// walk calls f for every string literal of b, keys too, and every number that
// longNumber, in order. b must be valid JSON: json.Valid has been asked, so no
// syntax is checked here.
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
			if t.path = keys; len(keys) > 0 {
				t.top = keys[0]
			}
			f(t)
			i = end - 1
		case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
			end := numberEnd(b, i)
			if end-i >= longNumber {
				f(text{lit: b[i:end], start: i, depth: len(open), isNum: true})
			}
			i = end - 1
		}
	}
}

// longNumber is the length of the shortest number that a detector knows, in bytes.
const longNumber = 14

func numberEnd(b []byte, i int) int {
	for i < len(b) && (bytesAre[b[i]]&isDigit != 0 || bytes.IndexByte([]byte("+-.eE"), b[i]) >= 0) {
		i++
	}
	return i
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

// elements returns the values of the array b, which must be valid JSON.
func elements(b []byte) (out [][]byte) {
	depth, from := 0, 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{', '[':
			if depth++; depth == 1 {
				from = i + 1
			}
		case '}', ']':
			depth--
		case '"':
			i = stringEnd(b, i) - 1
		}
		if depth == 0 || depth == 1 && b[i] == ',' {
			if v := bytes.TrimSpace(b[from:i]); len(v) > 0 {
				out = append(out, v)
			}
			from = i + 1
		}
	}
	return out
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
func decode(lit []byte) []byte { return unescape(lit[1 : len(lit)-1]) }

// unescape replaces the escapes of JSON in s, and leaves alone what is none.
// Every escape is longer than what it stands for: same length, same bytes.
func unescape(s []byte) []byte {
	n := bytes.IndexByte(s, '\\')
	if n < 0 {
		return s
	}
	out := make([]byte, 0, len(s))
	for n >= 0 {
		out = append(out, s[:n]...)
		s = s[n:]
		r, k := escape(s)
		if k == 0 {
			r, k = '\\', 1
		}
		out = utf8.AppendRune(out, r)
		s = s[k:]
		n = bytes.IndexByte(s, '\\')
	}
	return append(out, s...)
}

// escape reads the escape that s begins with and returns its length, 0 if
// there is none. Two that are a surrogate pair are one.
func escape(s []byte) (rune, int) {
	if len(s) < 2 {
		return 0, 0
	}
	if i := strings.IndexByte(`"\/bfnrt`, s[1]); i >= 0 {
		return rune("\"\\/\b\f\n\r\t"[i]), 2
	}
	r, ok := hex4(s)
	if !ok {
		return 0, 0
	}
	if utf16.IsSurrogate(r) {
		if p, ok := hex4(s[6:]); ok {
			if r := utf16.DecodeRune(r, p); r != utf8.RuneError {
				return r, 12
			}
		}
		r = utf8.RuneError
	}
	return r, 6
}

// hex4 reads \uXXXX.
func hex4(s []byte) (rune, bool) {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(s[2:6]), 16, 16)
	return rune(n), err == nil
}
