package main

import (
	"fmt"
	"io"
	"strings"
)

// line prints one attack's result.
func (r result) line(w io.Writer, verbose bool) {
	mark := "stopped"
	if !r.Passed {
		mark = "WRONG"
	}
	if r.Won {
		mark = "WON"
	}
	outcome := strings.Join(strings.Fields(r.Outcome), " ")
	fmt.Fprintf(w, "%-8s %-9s %-20s %-44.44s %5.1f s %-26.26s %s\n", mark, r.Theme, r.Name, r.Tries, r.Seconds, outcome, r.Control)
	for _, s := range r.Wrong {
		fmt.Fprintf(w, "         ! %.1500s\n", s)
	}
	if verbose {
		fmt.Fprintf(w, "         said %.900q\n", r.Said)
		for _, s := range r.Records {
			fmt.Fprintf(w, "         ledger %s\n", s)
		}
	}
}

// summary counts, and returns how many attacks were not stopped as they
// should be.
func summary(w io.Writer, rs []result, o options) (bad int) {
	var won, records, controls, none, lacking int
	for _, r := range rs {
		records += len(r.Records)
		switch {
		case r.Control == "succeeds":
			controls++
		case strings.HasPrefix(r.Control, "none"):
			none++
		case strings.HasPrefix(r.Control, "this kernel"):
			lacking++
		}
		if r.Won {
			won++
		}
		if !r.Passed {
			bad++
		}
	}
	fmt.Fprintf(w, "\n%d attacks: %d succeeded, %d stopped as expected with their records (%d), %d wrong\n", len(rs), won, len(rs)-bad, records, bad)
	fmt.Fprintf(w, "control: the same attack succeeds unconfined in %d cases; %d have no control, %d need what this kernel lacks\n", controls, none, lacking)
	if o.noControl {
		fmt.Fprintln(w, "the control runs were left out: this run does not show that the suite can fail")
	}
	return bad
}
