package ledger

import (
	"strconv"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// escapes are the bytes that a JSON string can't hold as they are.
var escapes = func() (t [256]bool) {
	for c := range 256 {
		t[c] = c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf
	}
	return t
}()

// appendString appends s as encoding/json would without HTML in mind (Go 1.22
// and later: \b and \f have short forms, U+2028 and U+2029 are escaped). A byte
// that is not UTF-8 becomes the four characters \xNN, so that two different
// paths stay different; see legible.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	from := 0
	for i := 0; i < len(s); {
		if !escapes[s[i]] {
			i++
			continue
		}
		b = append(b, s[from:i]...)
		var n int
		b, n = appendEscaped(b, s[i:])
		i += n
		from = i
	}
	b = append(b, s[from:]...)
	return append(b, '"')
}

// appendEscaped appends the first character of s, and says how long it was.
func appendEscaped(b []byte, s string) ([]byte, int) {
	c := s[0]
	if c >= utf8.RuneSelf {
		return appendRune(b, s)
	}
	switch c {
	case '"', '\\':
		return append(b, '\\', c), 1
	case '\b':
		return append(b, `\b`...), 1
	case '\f':
		return append(b, `\f`...), 1
	case '\n':
		return append(b, `\n`...), 1
	case '\r':
		return append(b, `\r`...), 1
	case '\t':
		return append(b, `\t`...), 1
	}
	return append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15]), 1
}

func appendRune(b []byte, s string) ([]byte, int) {
	c, n := utf8.DecodeRuneInString(s)
	switch {
	case c == utf8.RuneError && n == 1:
		return append(b, '\\', '\\', 'x', hexDigits[s[0]>>4], hexDigits[s[0]&15]), 1
	case c == '\u2028' || c == '\u2029':
		return append(b, '\\', 'u', '2', '0', '2', hexDigits[c&15]), n
	}
	return append(b, s[:n]...), n
}

// appendNumber appends n, which is not there when it is 0.
func appendNumber(b []byte, n int) []byte {
	if n == 0 {
		return b
	}
	return strconv.AppendInt(b, int64(n), 10)
}

// appendWord appends s, which is not there when it is empty.
func appendWord(b []byte, s string) []byte {
	if s == "" {
		return b
	}
	return appendString(b, s)
}
