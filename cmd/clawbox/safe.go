package main

import (
	"io"

	"github.com/clawbox/clawbox/bundle"
	"github.com/clawbox/clawbox/internal/legible"
	"github.com/spf13/cobra"
)

// printable replaces what could move a terminal's cursor, hide text or pass
// for another column: the agent chooses some of the words that an operator
// reads.
func printable(s string) string { return legible.Line(s) }

// escaper passes on text with its control characters made visible, lines and
// tabs kept. Every verb has it in place of standard output and standard error
// (see legibly); who has to write other bytes says so with unescaped or exact.
type escaper struct{ w io.Writer }

func (e escaper) Write(p []byte) (int, error) { return legible.Writer{W: e.w}.Write(p) }

// legibly puts an escaper before what a verb prints: names on a stick, a model's
// configuration and what a registry says are chosen by strangers.
func legibly(cmd *cobra.Command) {
	cmd.SetOut(escaper{unescaped(cmd.OutOrStdout())})
	cmd.SetErr(escaper{unescaped(cmd.ErrOrStderr())})
}

// unescaped is what lies behind an escaper: for who draws on a terminal, or
// hands one on.
func unescaped(w io.Writer) io.Writer {
	if e, ok := w.(escaper); ok {
		return e.w
	}
	return w
}

// exact is for bytes that another program reads: unescaped, unless they go to a
// terminal.
func exact(w io.Writer) io.Writer {
	if isTerminal(w) {
		return escaper{unescaped(w)}
	}
	return unescaped(w)
}

// progress shows on standard error what a verb is doing.
func progress(cmd *cobra.Command) bundle.Reporter {
	w := unescaped(cmd.ErrOrStderr())
	return bundle.NewProgress(w, isTerminal(w))
}
