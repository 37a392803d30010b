package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// facts is what the program probe says about a kernel.
type facts struct {
	Tier     string
	Why      string
	LSM      string
	Landlock int
	Cgroup   string
	Features map[string]string
}

// host is one boot of one kernel.
type host struct {
	kernel  string
	boot    boot
	booted  time.Duration
	facts   facts
	results []*result
}

// result is what one package's tests said.
type result struct {
	pkg      string
	passed   int
	failed   []string
	skipped  map[string]string // test to reason
	excluded map[string]string
	output   map[string]string // by test, until it passed
	code     int
	took     time.Duration
}

// add takes one event. Only leaves count: a test with subtests passes or fails
// with them, but its skip counts.
func (r *result) add(e event, verbose bool) {
	if verbose {
		fmt.Fprint(os.Stderr, e.Output)
	}
	if r.output == nil {
		r.output, r.skipped = map[string]string{}, map[string]string{}
	}
	switch e.Action {
	case "output":
		r.output[e.Test] += e.Output
	case "pass":
		if e.Test != "" {
			r.passed++
			delete(r.output, e.Test)
		}
	case "fail":
		if e.Test != "" {
			r.failed = append(r.failed, e.Test)
		}
	case "skip":
		r.skipped[e.Test] = reason(r.output[e.Test])
		delete(r.output, e.Test)
	}
}

// reason is the line that t.Skip printed.
func reason(out string) string {
	var said []string
	for line := range strings.Lines(out) {
		l := strings.TrimSpace(line)
		if l != "" && !strings.HasPrefix(l, "===") && !strings.HasPrefix(l, "---") {
			said = append(said, l)
		}
	}
	if len(said) == 0 {
		return ""
	}
	return strings.Join(said, " ")
}

// ok: nothing failed, the process ended well, every skip has a reason, and
// something ran.
func (r *result) ok() bool {
	for _, why := range r.skipped {
		if why == "" {
			return false
		}
	}
	return r.code == 0 && len(r.failed) == 0 && r.passed+len(r.skipped) > 0
}

func (r *result) verdict() string {
	if r.ok() {
		return "ok"
	}
	return fmt.Sprintf("FAIL (status %d)", r.code)
}

type report struct{ hosts []*host }

func (r *report) failed() bool {
	return slices.ContainsFunc(r.hosts, func(h *host) bool {
		return !h.tierOK() || slices.ContainsFunc(h.results, func(s *result) bool { return !s.ok() })
	})
}

func (h *host) tierOK() bool { return h.facts.Tier == h.boot.want }

func (r *report) print(w io.Writer) {
	if len(r.hosts) == 0 {
		return
	}
	r.features(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nKERNEL\tBOOT\tTIER\tLANDLOCK\tPACKAGE\tPASS\tFAIL\tSKIP\tSECONDS\tRESULT")
	for _, h := range r.hosts {
		for _, s := range h.results {
			fmt.Fprintf(t, "%s\t%s\t%s\tABI %d\t%s\t%d\t%d\t%d\t%.0f\t%s\n", h.kernel, h.boot.name, h.facts.Tier, h.facts.Landlock,
				s.pkg, s.passed, len(s.failed), len(s.skipped)+len(s.excluded), s.took.Seconds(), s.verdict())
		}
	}
	t.Flush()
	for _, h := range r.hosts {
		h.details(w)
	}
}

// features prints what each kernel offers, one column per boot.
func (r *report) features(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	fmt.Fprint(t, "FEATURE")
	for _, h := range r.hosts {
		fmt.Fprintf(t, "\t%s, %s", h.kernel, h.boot.name)
	}
	fmt.Fprintln(t)
	for _, f := range slices.Sorted(maps.Keys(r.hosts[0].facts.Features)) {
		fmt.Fprint(t, f)
		for _, h := range r.hosts {
			fmt.Fprintf(t, "\t%s", h.facts.Features[f])
		}
		fmt.Fprintln(t)
	}
}

// details tells every skip's reason, and every failure's output.
func (h *host) details(w io.Writer) {
	at := h.kernel + ", " + h.boot.name
	if !h.tierOK() {
		fmt.Fprintf(w, "\n%s: the guard reached tier %q, want %s: %s\n", at, h.facts.Tier, h.boot.want, h.facts.Why)
	}
	for _, s := range h.results {
		for name, why := range sorted(s.excluded) {
			fmt.Fprintf(w, "%s: %s: left out %s: %s\n", at, s.pkg, name, why)
		}
		for name, why := range sorted(s.skipped) {
			fmt.Fprintf(w, "%s: %s: skipped %s: %s\n", at, s.pkg, name, why)
		}
		if s.ok() {
			continue
		}
		for name, out := range sorted(s.output) {
			if name == "" || slices.Contains(s.failed, name) {
				fmt.Fprintf(w, "\n%s: %s: FAILED %s\n%s", at, s.pkg, name, out)
			}
		}
	}
}

func sorted(m map[string]string) func(func(string, string) bool) {
	return func(yield func(string, string) bool) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}
