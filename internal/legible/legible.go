// Package legible makes words of strangers fit for a person's eyes: names of
// files on a stick, what a model's configuration says, what a registry answers.
//
// What is not printable moves a cursor, hides or reorders text, or passes for
// another line: control characters (C0, DEL, C1), format characters such as the
// bidi overrides, separators other than the space, and bytes that are not UTF-8.
// Each becomes U+FFFD:
//
//	fmt.Fprintln(legible.Writer{W: os.Stderr}, err)  // lines and tabs stay
//	fmt.Printf("%s\n", legible.Line(name))           // not even they
//
// JSON keeps every character, escaped.
package legible

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
)

func line(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return unicode.ReplacementChar
}

func text(r rune) rune {
	if r == '\n' || r == '\t' {
		return r
	}
	return line(r)
}

// Line returns s on one line, every character printable: for a name, which must
// not pass for two, nor for another column.
func Line(s string) string { return strings.Map(line, s) }

// Writer passes text on to W, every character printable but for line feeds and
// tabs. A character must come in one Write whole.
type Writer struct{ W io.Writer }

// Write is io.Writer.
func (w Writer) Write(p []byte) (int, error) {
	if _, err := w.W.Write(bytes.Map(text, p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// JSON passes JSON text on to W, and writes what is not printable as the escape
// sequence that means the same.
type JSON struct{ W io.Writer }

// Write is io.Writer.
func (w JSON) Write(p []byte) (int, error) {
	var b bytes.Buffer
	for _, r := range string(p) {
		if r == '\n' || unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		for _, u := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(&b, `\u%04x`, u)
		}
	}
	if _, err := w.W.Write(b.Bytes()); err != nil {
		return 0, err
	}
	return len(p), nil
}
