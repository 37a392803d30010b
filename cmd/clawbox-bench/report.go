package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// report is what one run has found.
type report struct {
	machine string
	lab     []string
	rounds  int
	audit   string
	rows    []row
}

var places = []string{host, bwrap, runcName, clawbox, audited}

// thisMachine names processor, cores, memory and kernel.
func thisMachine() string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	var si unix.Sysinfo_t
	_ = unix.Sysinfo(&si)
	load, _ := os.ReadFile("/proc/loadavg")
	return fmt.Sprintf("%s, %d cores, %d MiB of memory, Linux %s, %s; load average when it began %.4s", processor(), runtime.NumCPU(),
		uint64(si.Totalram)*uint64(si.Unit)>>20, unix.ByteSliceToString(u.Release[:]), runtime.Version(), load)
}

func processor() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return runtime.GOARCH + " processor"
}

// show writes a duration with three digits.
func show(d time.Duration) string {
	switch a := d.Abs(); {
	case a < time.Microsecond:
		return fmt.Sprintf("%d ns", d.Nanoseconds())
	case a < time.Millisecond:
		return fmt.Sprintf("%.3g µs", float64(d)/1e3)
	case a < time.Second:
		return fmt.Sprintf("%.3g ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.3g s", d.Seconds())
}

func signed(d time.Duration) string {
	if d > 0 {
		return "+" + show(d)
	}
	return show(d)
}

// cell is "median / p90 (ratio)".
func (r row) cell(place string) string {
	s := r.cells[place]
	if len(s) == 0 {
		return "–"
	}
	p := r.tail
	if p == 0 {
		p = 0.9
	}
	text := show(s.median()) + " / " + show(s.at(p))
	if q := r.ratios[place]; q > 0 && place != host {
		text += fmt.Sprintf(" (%.2f ×)", q)
	}
	return text
}

func (r row) verdict() string {
	switch {
	case r.target == "":
		return "–"
	case r.met:
		return "met: " + r.got
	}
	return "not met: " + r.got
}

// lines are the table's, without its head.
func (r report) lines() (out [][]string) {
	for _, w := range r.rows {
		l := []string{w.label()}
		for _, p := range places {
			l = append(l, w.cell(p))
		}
		target := w.target
		if target == "" {
			target = "–"
		}
		out = append(out, append(l, target, w.verdict()))
	}
	return out
}

// label says which quantile is beside the median, where it is not p90.
func (r row) label() string {
	if r.tail != 0 {
		return fmt.Sprintf("%s (p%.0f)", r.name, 100*r.tail)
	}
	return r.name
}

var head = slices.Concat([]string{"work"}, places, []string{"target", "result"})

// text is for a terminal.
func (r report) text() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n%s\n%s\n\n", r.machine, strings.Join(r.lab, "; "), r.audit)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, l := range append([][]string{head}, r.lines()...) {
		fmt.Fprintln(w, strings.Join(l, "\t"))
	}
	w.Flush()
	return b.String()
}

const intro = `# What the guard costs

Written by ` + "`make bench-guard`" + ` on %s.

Machine: %s. Compared: %s.
Audit during the run: %s.

The same files and the same programs run on the host (by chroot), in bubblewrap and runc with every namespace and a
read-only root, and in clawbox sandboxes with seccomp, Landlock and the guard: once with the default audit (every exec
and everything refused is put on a ledger on disk), once with full audit (also every opened file and every connection),
against which the targets are held. The places take turns, %d rounds, each round beginning
with another one. A cell is median / p90 of all samples, and in brackets the median over the rounds of the ratio to the
host. Differences and ratios in the result are medians over the rounds, too.

`

const outro = `
Cold start is timed from the request to the first byte from a static program; clawbox has guard and egress attached by then
and the start on its ledger, the others have no way out at all. clawbox keeps two launchers waiting, as the appliance does by
default: their namespaces, mounts that every sandbox has, cgroup, sockets and steering are made ahead, the image, the agent's
folders, the guard's watch and the agent's own confinement are not. The rows below tell what an agent's first start takes, which
makes its disk, and what a start takes when no launcher waits, as most of a hundred at once. The appliance's services run inside the benchmark here; in the appliance they are
processes of their own, which adds some calls between processes to a start. /workspace, where builds and git write, is a folder of the host's file system; clawbox's is
a file system of its own in one file there, because its policy bounds the disk. On the host's turns the guard is loaded and
watches nothing. Exec is fork to reaped. Connect is the system call alone. Single calls are timed 0.4 s after their place was
started, when clawbox has made the next launcher ready. The rows without the guard show what namespaces, overlayfs, Landlock and seccomp take of it. New connections and requests
go to servers on the host's loopback: directly from the host, from clawbox through DNS, steering, policy, two durable
ledger records and a second connection; a relay without any rule, and one durable write of a record's size, stand beside them. An unlisted program is in the image and not on the policy's list.

![ratios to the host](bench-guard.svg)
`

// write puts table and plot into dir.
func (r report) write(dir string) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, intro, time.Now().UTC().Format("2 January 2006"), r.machine, strings.Join(r.lab, "; "), r.audit, r.rounds)
	fmt.Fprintf(&b, "| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat("---|", len(head)))
	for _, l := range r.lines() {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(l, " | "))
	}
	b.WriteString(outro)
	if err := os.WriteFile(filepath.Join(dir, "bench-guard.md"), b.Bytes(), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "bench-guard.svg"), r.plot(), 0o644)
}
