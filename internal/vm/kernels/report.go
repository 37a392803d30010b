package main

import (
	"cmp"
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
	begun    map[string]bool   // started, and not heard of since
	ended    string            // what test2json says of the whole: "pass" only after the line PASS
	code     int
	err      error // the guest was lost, or the run was interrupted
	took     time.Duration
	seconds  map[string]float64 // by test that passed, its subtests' with it
}

// add takes one event. Only leaves count: a test with subtests passes or fails
// with them, but its skip counts.
func (r *result) add(e event, verbose bool) {
	if verbose {
		fmt.Fprint(os.Stderr, e.Output)
	}
	if r.output == nil {
		r.output, r.skipped, r.begun = map[string]string{}, map[string]string{}, map[string]bool{}
		r.seconds = map[string]float64{}
	}
	if e.Test == "" && (e.Action == "pass" || e.Action == "fail") {
		r.ended = e.Action
		return
	}
	if e.Action != "output" {
		delete(r.begun, e.Test)
	}
	switch e.Action {
	case "run":
		r.begun[e.Test] = true
	case "output":
		r.output[e.Test] += e.Output
	case "pass":
		r.passed++
		if !strings.Contains(e.Test, "/") {
			r.seconds[e.Test] = e.Elapsed
		}
		delete(r.output, e.Test)
	case "fail":
		r.failed = append(r.failed, e.Test)
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

// wrong says why the package did not pass, or nothing: a test failed or did not
// end, the binary did not come to its last line, a skip has no reason, or
// nothing ran.
func (r *result) wrong() string {
	switch {
	case r.err != nil:
		return "INTERRUPTED"
	case len(r.failed) > 0:
		return fmt.Sprintf("FAIL (%d tests)", len(r.failed))
	case r.code != 0:
		return fmt.Sprintf("FAIL (status %d)", r.code)
	case len(r.begun) > 0 || r.ended != "pass":
		return fmt.Sprintf("FAIL (ended early, %d tests unfinished)", len(r.begun))
	case r.passed+len(r.skipped) == 0:
		return "FAIL (nothing ran)"
	}
	for name, why := range r.skipped {
		if why == "" {
			return "FAIL (" + name + " skips without a reason)"
		}
	}
	return ""
}

// slowest names the n tests that took longest.
func (r *result) slowest(n int) string {
	names := slices.SortedFunc(maps.Keys(r.seconds), func(a, b string) int { return cmp.Compare(r.seconds[b], r.seconds[a]) })
	var out []string
	for _, t := range names[:min(n, len(names))] {
		out = append(out, fmt.Sprintf("%s %.0f s", t, r.seconds[t]))
	}
	return strings.Join(out, ", ")
}

func (r *result) ok() bool { return r.wrong() == "" }

func (r *result) verdict() string {
	if w := r.wrong(); w != "" {
		return w
	}
	return "ok"
}

type report struct {
	hosts []*host
	// The machines and packages that the options chose: what is missing was
	// not run.
	planned int
}

// ran counts the packages whose tests ran to their end, well or not.
func (r *report) ran() (n int) {
	for _, h := range r.hosts {
		for _, s := range h.results {
			if s.err == nil {
				n++
			}
		}
	}
	return n
}

func (r *report) failed() bool {
	return r.ran() < r.planned || slices.ContainsFunc(r.hosts, func(h *host) bool {
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
	if n := r.ran(); n < r.planned {
		fmt.Fprintf(w, "\nonly %d of %d packages ran: this run shows nothing about the others\n", n, r.planned)
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
			if name == "" || slices.Contains(s.failed, name) || s.begun[name] {
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
