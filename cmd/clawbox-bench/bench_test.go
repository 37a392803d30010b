package main

import (
	"encoding/xml"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/clawbox/clawbox/policies"
)

const ms = time.Millisecond

func TestQuantiles(t *testing.T) {
	s := samples{5, 1, 4, 2, 3}
	for _, c := range []struct {
		p    float64
		want time.Duration
	}{{0, 1}, {0.5, 3}, {0.9, 5}, {0.99, 5}, {1, 5}} {
		if got := s.at(c.p); got != c.want {
			t.Errorf("%v: got %d, want %d", c.p, got, c.want)
		}
	}
	if samples(nil).median() != 0 {
		t.Error("a median of nothing")
	}
	if _, err := readSamples([]byte("1\nx\n")); err == nil {
		t.Error("x is a sample")
	}
}

// Rounds are compared with each other, so that a slow minute counts for both.
func TestRounds(t *testing.T) {
	r := rounds{host: {{10 * ms}, {100 * ms}, {1000 * ms}}, clawbox: {{12 * ms}, {102 * ms}, {1500 * ms}}}
	if got := r.more(clawbox, host); got != 2*ms {
		t.Errorf("more: %v, want 2ms", got)
	}
	if got := r.ratio(clawbox, host); got != 1.2 {
		t.Errorf("ratio: %v, want 1.2", got)
	}
	if r.ratio("nowhere", host) != 0 {
		t.Error("a ratio of nothing")
	}
}

func TestShow(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0 ns", 920: "920 ns", 9600: "9.6 µs", 330 * time.Microsecond: "330 µs", 2700 * time.Microsecond: "2.7 ms", 1500 * ms: "1.5 s", -3 * ms: "-3 ms"} {
		if got := show(d); got != want {
			t.Errorf("%d: got %q, want %q", d, got, want)
		}
	}
}

// What is written is what was measured: nothing for a place that was not, and
// no verdict without a target.
func TestReport(t *testing.T) {
	r := rounds{host: {{10 * ms, 20 * ms}}, clawbox: {{30 * ms}}, audited: {{40 * ms}}}
	with := newRow("a < b", r)
	with.target, with.got, with.met = "≤ 1 ms", "40 ms", false
	rep := report{machine: "a machine", lab: []string{"bwrap 1", "runc is not installed"}, rounds: 3, audit: "tier T3", rows: []row{with, newRow("c", rounds{host: {{ms}}})}}
	dir := t.TempDir()
	if err := rep.write(dir); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "bench-guard.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| a < b | 20 ms / 20 ms | – | – | 30 ms / 30 ms (1.50 ×) | 40 ms / 40 ms (2.00 ×) | ≤ 1 ms | not met: 40 ms |",
		"| c | 1 ms / 1 ms | – | – | – | – | – | – |", "a machine", "runc is not installed", "tier T3", "3 rounds",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%q is missing in\n%s", want, b)
		}
	}
	f, err := os.Open(filepath.Join(dir, "bench-guard.svg"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	bars := 0
	for d := xml.NewDecoder(f); ; {
		tok, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := tok.(xml.StartElement); ok && e.Name.Local == "rect" {
			bars++
		}
	}
	// Background, one legend entry for each place but the host, two bars.
	if want := 1 + len(places) - 1 + 2; bars != want {
		t.Errorf("got %d rectangles, want %d", bars, want)
	}
}

func TestCommandLine(t *testing.T) {
	for _, args := range [][]string{nil, {"other"}, {"guard", "-rounds", "0"}, {"guard", "more"}, {"guard", "-nothing"}} {
		if err := run(t.Context(), args); err == nil {
			t.Errorf("%q passes", args)
		}
	}
}

// The policy of the sandboxes is one, and the reload takes a rule away.
func TestPolicy(t *testing.T) {
	text := strings.Replace(policyText, "%s", "T4", 1)
	p, err := policies.Parse("bench.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	q := policies.Request{Action: policies.Connect, Host: "192.0.2.1", Port: 7000}
	if d := p.Decide(q); d.Verdict != policies.Allow {
		t.Error(d)
	}
	if p, err = policies.Parse("bench.yaml", []byte(strings.Replace(text, forbidden, "", 1))); err != nil {
		t.Fatal(err)
	}
	if d := p.Decide(q); d.Verdict != policies.Deny {
		t.Error(d)
	}
}
