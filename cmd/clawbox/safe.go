package main

import (
	"bytes"
	"io"
	"strings"
	"unicode"
)

// printable replaces what could move a terminal's cursor, hide text or pass
// for another column: the agent chooses some of the words that an operator
// reads.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, s)
}

// escaper passes on text with its control characters made visible, lines and
// tabs kept.
type escaper struct{ w io.Writer }

func (e escaper) Write(p []byte) (int, error) {
	out := bytes.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, p)
	if _, err := e.w.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}
