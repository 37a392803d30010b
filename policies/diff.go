package policies

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Other is the kind of a Difference that is neither wider nor narrower.
const Other = "other"

// Difference is one thing that an agent may do under one policy and not under
// another, or that is done to it otherwise.
type Difference struct {
	Kind  string `json:"kind"`  // Wider, Narrower, Same or Other
	Field string `json:"field"` // of the canonical form
	Words string `json:"words"`
}

// String gives the difference in one line.
func (d Difference) String() string { return d.Kind + ": " + d.Words }

// Diff says in words what changes for an agent when b takes the place of a.
// Every field is compared: no difference means one digest.
func Diff(a, b *Policy) []Difference {
	d := &differ{a: a, b: b}
	d.plain("metadata.name", a.Name, b.Name, "the policy's name")
	d.files()
	d.process()
	d.network()
	d.credentials()
	d.inference()
	d.budgets()
	d.demands()
	if len(d.out) == 0 && a.Digest() != b.Digest() {
		d.say(Same, "", "the same, in another order")
	}
	return d.out
}

type differ struct {
	a, b *Policy
	out  []Difference
}

func (d *differ) say(kind, field, format string, args ...any) {
	d.out = append(d.out, Difference{kind, field, fmt.Sprintf(format, args...)})
}

// plain compares what has no order of strength.
func (d *differ) plain(field, x, y, what string) {
	if x != y {
		d.say(Other, field, "%s is now %s, was %s", what, orNone(y), orNone(x))
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// ranked compares words that come weakest first.
func (d *differ) ranked(field, what, x, y string, weakFirst ...string) {
	if x == y {
		return
	}
	kind := Narrower
	if slices.Index(weakFirst, y) < slices.Index(weakFirst, x) {
		kind = Wider
	}
	d.say(kind, field, "%s is now %s, was %s", what, orNone(y), orNone(x))
}

// only gives what x has and y has not.
func only(x, y []string) []string {
	return slices.DeleteFunc(slices.Clone(x), func(s string) bool { return slices.Contains(y, s) })
}

// covered compares lists of which an entry may cover others: in says whether
// the policy's other entries do.
func (d *differ) covered(field, verb string, list func(*Policy) []string, in func(*Policy, string) bool) {
	x, y := list(d.a), list(d.b)
	for _, s := range only(y, x) {
		if in(d.a, s) {
			d.say(Same, field, "%s is listed for %s; another entry covered it", s, verb)
			continue
		}
		d.say(Wider, field, "agent may now %s %s", verb, s)
	}
	for _, s := range only(x, y) {
		if in(d.b, s) {
			d.say(Same, field, "%s is no longer listed for %s; another entry covers it", s, verb)
			continue
		}
		d.say(Narrower, field, "agent may no longer %s %s", verb, s)
	}
}

// listed compares lists of which no entry covers another.
func (d *differ) listed(field, verb string, x, y []string) {
	for _, s := range only(y, x) {
		d.say(Wider, field, "agent may now %s %s", verb, s)
	}
	for _, s := range only(x, y) {
		d.say(Narrower, field, "agent may no longer %s %s", verb, s)
	}
}

func (d *differ) files() {
	d.covered("filesystem.read", "read", func(p *Policy) []string { return p.Filesystem.Read }, func(p *Policy, s string) bool {
		_, ok := below(s, slices.Concat(p.Filesystem.Read, p.Filesystem.Write))
		return ok
	})
	d.covered("filesystem.write", "write", func(p *Policy) []string { return p.Filesystem.Write }, func(p *Policy, s string) bool {
		_, ok := below(s, p.Filesystem.Write)
		return ok
	})
	d.plain("filesystem.workdir", d.a.Filesystem.Workdir, d.b.Filesystem.Workdir, "the working folder")
}

func (d *differ) process() {
	x, y := d.a.Process, d.b.Process
	d.covered("process.exec", "run", func(p *Policy) []string { return p.Process.Exec }, func(p *Policy, s string) bool {
		return slices.ContainsFunc(p.Process.Exec, func(e string) bool { return execCovers(e, s) })
	})
	d.pins(x.ExecHashes, y.ExecHashes)
	if x.Spawn != y.Spawn {
		kind, word := Wider, "now"
		if x.Spawn {
			kind, word = Narrower, "no longer"
		}
		d.say(kind, "process.spawn", "agent may %s start processes", word)
	}
	d.ranked("process.seccomp", "the system call profile", x.Seccomp, y.Seccomp, "default", "strict")
	d.ranked("process.violation", "what happens to a program that is not listed", x.Violation, y.Violation, "deny", "kill")
	d.plain("process.user", x.User, y.User, "the user id")
	d.plain("process.group", x.Group, y.Group, "the group id")
	d.listed("process.capabilities", "use the capability", x.Capabilities, y.Capabilities)
}

func (d *differ) pins(x, y map[string]string) {
	for _, path := range slices.Sorted(maps.Keys(y)) {
		switch {
		case x[path] == "":
			d.say(Narrower, "process.exec", "%s may now run with one content only, %s", path, y[path])
		case x[path] != y[path]:
			d.say(Other, "process.exec", "%s is now pinned to %s, was %s", path, y[path], x[path])
		}
	}
	for _, path := range slices.Sorted(maps.Keys(x)) {
		if y[path] == "" {
			d.say(Wider, "process.exec", "%s is no longer pinned to one content", path)
		}
	}
}

func (d *differ) credentials() {
	words := func(cs []Credential) []string {
		out := make([]string, len(cs))
		for i, c := range cs {
			out[i] = c.Name + " (placeholder in " + c.Env + ", put into " + orAnyHeader(c.Header) + ")"
		}
		return out
	}
	d.listed("credentials", "use the credential", words(d.a.Credentials), words(d.b.Credentials))
}

func orAnyHeader(h string) string {
	if h == "" {
		return "any header"
	}
	return "the header " + h
}

func (d *differ) inference() {
	d.routes()
	d.ranked("inference.sensitive", "what is done with sensitive content that would leave the host", d.a.Inference.Sensitive, d.b.Inference.Sensitive, "strip", "deny")
	bx, by := d.a.Inference.Budget, d.b.Inference.Budget
	d.bound("inference.budget.requests", "model calls", int64(bx.Requests), int64(by.Requests), formatCount)
	d.bound("inference.budget.tokens", "tokens", int64(bx.Tokens), int64(by.Tokens), formatCount)
}

// routes compares where the calls for each model go: the first route that names
// it counts, so a route that is gone can hand its models to a later one.
func (d *differ) routes() {
	x, y := d.a.Inference.Routes, d.b.Inference.Routes
	n, seen := len(d.out), map[string]bool{}
	for _, r := range slices.Concat(x, y, []Route{{Models: []string{"*"}}}) {
		for _, m := range r.Models {
			if !seen[m] {
				was, _ := routeOf(x, m)
				is, _ := routeOf(y, m)
				d.route(m, was.Upstream, is.Upstream)
			}
			seen[m] = true
		}
	}
	if n == len(d.out) && !slices.EqualFunc(x, y, func(a, b Route) bool { return a.String() == b.String() }) {
		d.say(Same, "inference.routes", "calls of every model go where they went, by other routes")
	}
}

// route compares where calls for one model go, "" for nowhere; "*" is any that no
// route names.
func (d *differ) route(model, x, y string) {
	const field = "inference.routes"
	name := "the model " + model
	if model == "*" {
		name = "any other model"
	}
	switch {
	case x == y:
	case x == "":
		d.say(Wider, field, "agent may now call %s at %s", name, y)
	case y == "":
		d.say(Narrower, field, "agent may no longer call %s at %s", name, x)
	case y == Local:
		d.say(Narrower, field, "calls of %s now go to %s, were for %s", name, y, x)
	default: // what is said there leaves the host, or goes to somebody else
		d.say(Wider, field, "calls of %s now go to %s, were for %s", name, y, x)
	}
}

func formatCount(n int64) string { return strconv.FormatInt(n, 10) }

// bound compares ceilings, of which 0 is none.
func (d *differ) bound(field, what string, x, y int64, format func(int64) string) {
	if x == y {
		return
	}
	word := func(n int64) string {
		if n == 0 {
			return unlimited
		}
		return format(n)
	}
	kind := Narrower
	if y == 0 || x != 0 && y > x {
		kind = Wider
	}
	d.say(kind, field, "%s: now %s, was %s", what, word(y), word(x))
}

func (d *differ) budgets() {
	x, y := d.a.Budgets, d.b.Budgets
	rate := func(n int64) string { return formatSize(n) + " a second" }
	milli := func(n int64) string { return formatCPU(float64(n) / 1000) }
	for _, l := range []struct {
		field, what string
		x, y        int64
		format      func(int64) string
	}{
		{"processes", "tasks", int64(x.Processes), int64(y.Processes), formatCount},
		{"memory", "memory", x.Memory, y.Memory, formatSize},
		{"cpu", "CPU cores", int64(x.CPU*1000 + .5), int64(y.CPU*1000 + .5), milli},
		{"scratch", "/tmp", x.Scratch, y.Scratch, formatSize},
		{"disk", "disk space", x.Disk, y.Disk, formatSize},
		{"inodes", "files and folders", int64(x.Inodes), int64(y.Inodes), formatCount},
		{"diskRead", "reading from disk", x.DiskRead, y.DiskRead, rate},
		{"diskWrite", "writing to disk", x.DiskWrite, y.DiskWrite, rate},
		{"openFiles", "open files per process", int64(x.OpenFiles), int64(y.OpenFiles), formatCount},
		{"wallTime", "running time", int64(x.WallTime), int64(y.WallTime), formatNanos},
	} {
		d.bound("budgets."+l.field, l.what, l.x, l.y, l.format)
	}
}

func (d *differ) demands() {
	x, y := d.a.Require, d.b.Require
	d.ranked("audit.files", "file accesses recorded", d.a.Audit.Files, d.b.Audit.Files, "denied", "all")
	d.ranked("audit.network", "network calls recorded", d.a.Audit.Network, d.b.Audit.Network, "decisions", "all")
	d.demand("require.landlock", "the Landlock ABI demanded of the host", x.Landlock, y.Landlock)
	d.ranked("require.tier", "the guard tier demanded of the host", x.Tier, y.Tier, "T4", "T3", "T2", "T1")
	if x.Kernel != y.Kernel {
		kind := Narrower
		if releaseOrder(y.Kernel) < releaseOrder(x.Kernel) {
			kind = Wider
		}
		d.say(kind, "require.kernel", "the kernel demanded of the host is now %s, was %s", orNone(y.Kernel), orNone(x.Kernel))
	}
	for _, f := range only(y.Features, x.Features) {
		d.say(Narrower, "require.features", "the host must now have %s", f)
	}
	for _, f := range only(x.Features, y.Features) {
		d.say(Wider, "require.features", "the host need no longer have %s", f)
	}
}

func (d *differ) demand(field, what string, x, y int) {
	if x != y {
		kind := Narrower
		if y < x {
			kind = Wider
		}
		d.say(kind, field, "%s is now %d, was %d", what, y, x)
	}
}

// releaseOrder makes 6.10 more than 6.9.
func releaseOrder(s string) int {
	major, minor, _ := strings.Cut(s, ".")
	m, _ := strconv.Atoi(major)
	n, _ := strconv.Atoi(minor)
	return m*1000 + n
}
