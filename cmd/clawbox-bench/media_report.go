package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// mediaReport is what one run of "clawbox-bench bundle" has found.
type mediaReport struct {
	machine, version string
	floor            floor
	peer             int64 // bytes of the largest file that the peer is given
	loads            []load
	samples          []sample
}

// middle is the sample of median wall time.
func (r mediaReport) middle(tool, step, load string) (sample, bool) {
	var s []sample
	for _, x := range r.samples {
		if x.tool == tool && x.step == step && x.load == load {
			s = append(s, x)
		}
	}
	if len(s) == 0 {
		return sample{}, false
	}
	slices.SortFunc(s, func(a, b sample) int { return int(a.Wall - b.Wall) })
	return s[len(s)/2], true
}

func (s sample) times(n int64) float64 { return float64(n) / float64(s.payload) }

// perGB is CPU-seconds per 10^9 bytes of payload.
func (s sample) perGB() float64 { return s.CPU.Seconds() / (float64(s.payload) / 1e9) }

var mediaHead = []string{"payload", "step", "tool", "written ÷ payload", "read ÷ payload", "scratch ÷ payload", "CPU-s per GB", "peak RSS", "wall time"}

func (r mediaReport) lines() (out [][]string) {
	for _, l := range r.loads {
		for _, step := range steps {
			for _, tool := range []string{oursName, theirsName} {
				s, ok := r.middle(tool, step, l.name)
				if !ok {
					continue
				}
				out = append(out, []string{
					l.name, step, tool, fmt.Sprintf("%.3f", s.times(s.Written)), fmt.Sprintf("%.3f", s.times(s.Read)), fmt.Sprintf("%.3f", s.times(s.Scratch)),
					fmt.Sprintf("%.2f", s.perGB()), fmt.Sprintf("%d MiB", s.RSS>>20), show(s.Wall),
				})
			}
		}
	}
	return out
}

// target is one line of what the issue asks for, held against the big files.
type target struct {
	what string
	met  func(sample) bool
	of   func(sample) bool // which samples it is about
	show func(sample) string
}

func ofStep(names ...string) func(sample) bool {
	return func(s sample) bool { return slices.Contains(names, s.step) }
}

var mediaTargets = []target{
	{"bytes written at most 1.02 × payload", func(s sample) bool { return s.times(s.Written) <= 1.02 }, ofStep("create", "install"), func(s sample) string { return fmt.Sprintf("%.3f ×", s.times(s.Written)) }},
	{"media read once (at most 1.005 × payload)", func(s sample) bool { return s.times(s.Read) <= 1.005 }, ofStep("verify", "install"), func(s sample) string { return fmt.Sprintf("%.3f ×", s.times(s.Read)) }},
	{"at most 1 CPU-second per GB", func(s sample) bool { return s.perGB() <= 1 }, ofStep("create", "verify", "install"), func(s sample) string { return fmt.Sprintf("%.2f s", s.perGB()) }},
	{"at most 256 MiB of memory", func(s sample) bool { return s.RSS <= 256<<20 }, ofStep(steps...), func(s sample) string { return fmt.Sprintf("%d MiB", s.RSS>>20) }},
	{"inspect in at most 100 ms", func(s sample) bool { return s.Wall <= 100*time.Millisecond }, ofStep("inspect"), func(s sample) string { return show(s.Wall) }},
	{"inspect reads at most 16 MiB, its program apart", func(s sample) bool { return s.Read <= 16<<20 }, ofStep("inspect"), func(s sample) string { return fmt.Sprintf("%.1f MiB", float64(s.Read)/(1<<20)) }},
	{"no temporary space (at most 1 % of the payload)", func(s sample) bool { return s.times(s.Scratch) <= 0.01 }, ofStep("create", "install"), func(s sample) string { return fmt.Sprintf("%.3f ×", s.times(s.Scratch)) }},
}

// verdicts holds every target against every big file.
func (r mediaReport) verdicts() (out [][]string) {
	for _, t := range mediaTargets {
		met, got := true, []string{}
		for _, l := range r.loads {
			for _, step := range steps {
				s, ok := r.middle(oursName, step, l.name)
				if !ok || !l.big || !t.of(s) {
					continue
				}
				met = met && t.met(s)
				got = append(got, fmt.Sprintf("%s %s: %s", l.name, step, t.show(s)))
			}
		}
		word := "met"
		if !met {
			word = "not met"
		}
		out = append(out, []string{t.what, word, strings.Join(got, "; ")})
	}
	return out
}

func (r mediaReport) text() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\npeer: zarf %s\nfloor: %s\n\n", r.machine, r.version, r.floor)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, l := range append([][]string{mediaHead}, r.lines()...) {
		fmt.Fprintln(w, strings.Join(l, "\t"))
	}
	fmt.Fprintln(w)
	w.Flush()
	for _, v := range r.verdicts() {
		fmt.Fprintf(&b, "%s: %s (%s)\n", v[1], v[0], v[2])
	}
	return b.String()
}

const mediaIntro = `# What a bundle costs

Written by ` + "`make bench-bundle`" + ` on %s.

Machine: %s. Peer: zarf %s, which builds from the module proxy.

Both tools take turns with the same files on the same disk, each step with cold file caches. Bytes are what the process wrote to and
read from the disk (` + "`write_bytes` and `read_bytes` of /proc/PID/io" + `), the pages of its program apart. Scratch is the most disk space in use
at once beyond what was left at the end. The big file can't be compressed. The image set is served by a registry on loopback, whose own
disk traffic is not counted; its payload is each distinct layer once. The peer is given files of up to %s: it needs several times the room.

create: from source to media · inspect: print what is in it · verify: hold all of it to its sums · install: for clawbox into the store
that registry and engine serve from (` + "`clawbox load`" + `), for zarf the file to its place, or the images into a registry.

Floor, measured in the same run: %s. Several threads at once cost each other more.

`

// write puts tables and plot into dir.
func (r mediaReport) write(dir string) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, mediaIntro, time.Now().UTC().Format("2 January 2006"), r.machine, r.version, gigabytes(r.peer), r.floor)
	table(&b, mediaHead, r.lines())
	b.WriteString("\n")
	table(&b, []string{"target for clawbox, one big file", "result", "measured"}, r.verdicts())
	b.WriteString("\n![bytes written and CPU time over size](bench-bundle.svg)\n")
	if err := os.WriteFile(filepath.Join(dir, "bench-bundle.md"), b.Bytes(), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "bench-bundle.svg"), r.plot(), 0o644)
}

func table(b *bytes.Buffer, head []string, lines [][]string) {
	fmt.Fprintf(b, "| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat("---|", len(head)))
	for _, l := range lines {
		fmt.Fprintf(b, "| %s |\n", strings.Join(l, " | "))
	}
}
