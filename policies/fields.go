package policies

import (
	"regexp"
	"slices"
	"strconv"
	"time"

	"go.yaml.in/yaml/v4"
)

// The head of a canonical policy.
const (
	apiVersion = "clawbox.io/v1"
	kind       = "AgentPolicy"
)

// Ceilings of what the kernel could mean: pid_max and nr_open of Linux on
// 64 bits, and more cores than any host has.
const (
	maxTasks = 1 << 22
	maxFiles = 1 << 20
	maxCores = 4096
)

// canonical reads the canonical dialect over the values that p already has.
func (d *decoder) canonical(n *yaml.Node) {
	var head string
	d.object(n, "", object{
		"apiVersion":  func(c *yaml.Node) { d.word(c, "apiVersion", &head, apiVersion) },
		"kind":        func(c *yaml.Node) { d.word(c, "kind", &head, kind) },
		"metadata":    d.metadata,
		"extends":     func(c *yaml.Node) { d.word(c, "extends", &head, Presets()...) },
		"filesystem":  d.filesystem,
		"process":     d.process,
		"network":     d.network,
		"credentials": d.credentials,
		"inference":   d.inference,
		"budgets":     d.budgets,
		"audit":       d.audit,
		"require":     d.require,
	})
	for _, f := range []struct{ name, example string }{
		{"kind", "kind: " + kind}, {"metadata.name", "metadata: {name: my-agent}"},
	} {
		if d.set[f.name] == nil {
			d.fail(n, "a policy without "+f.name, f.name, "add "+f.example)
		}
	}
}

// nameForm is also what a file name and a log field can carry unescaped.
var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

func (d *decoder) metadata(n *yaml.Node) {
	d.object(n, "metadata", object{"name": func(c *yaml.Node) {
		d.p.Name = d.label(c, "metadata.name")
	}})
}

// label reads a short lower-case name.
func (d *decoder) label(n *yaml.Node, what string) string {
	s, ok := d.str(n, what)
	if ok && !nameForm.MatchString(s) {
		d.fail(n, quote(s), "1 to 63 of a-z, 0-9, dot, hyphen and underscore for "+what, "begin and end with a letter or digit")
	}
	return s
}

func (d *decoder) filesystem(n *yaml.Node) {
	f := &d.p.Filesystem
	d.object(n, "filesystem", object{
		"read":  func(c *yaml.Node) { f.Read = d.paths(c, "filesystem.read") },
		"write": func(c *yaml.Node) { f.Write = d.paths(c, "filesystem.write") },
		"workdir": func(c *yaml.Node) {
			if s, ok := d.str(c, "filesystem.workdir"); ok && d.path(c, s, "filesystem.workdir") {
				f.Workdir = s
			}
		},
	})
}

func (d *decoder) process(n *yaml.Node) {
	p := &d.p.Process
	d.object(n, "process", object{
		"exec":         d.programs,
		"spawn":        func(c *yaml.Node) { d.boolean(c, "process.spawn", &p.Spawn) },
		"seccomp":      func(c *yaml.Node) { d.word(c, "process.seccomp", &p.Seccomp, "default", "strict") },
		"violation":    func(c *yaml.Node) { d.word(c, "process.violation", &p.Violation, "deny", "kill") },
		"user":         func(c *yaml.Node) { d.id(c, "process.user", &p.User) },
		"group":        func(c *yaml.Node) { d.id(c, "process.group", &p.Group) },
		"capabilities": func(c *yaml.Node) { p.Capabilities = d.capabilities(c) },
	})
}

func (d *decoder) network(n *yaml.Node) {
	net := &d.p.Network
	d.object(n, "network", object{
		"default": func(c *yaml.Node) { d.word(c, "network.default", (*string)(&net.Default), "deny", "hold") },
		"allow":   func(c *yaml.Node) { net.Allow = d.hostRules(c, Allow) },
		"deny":    func(c *yaml.Node) { net.Deny = d.hostRules(c, Deny) },
	})
}

func (d *decoder) inference(n *yaml.Node) {
	i := &d.p.Inference
	d.object(n, "inference", object{
		"routes":    d.routes,
		"sensitive": func(c *yaml.Node) { d.word(c, "inference.sensitive", &i.Sensitive, "deny", "strip") },
		"budget": func(c *yaml.Node) {
			d.object(c, "inference.budget", object{
				"requests": func(c *yaml.Node) { i.Budget.Requests = d.bound(c, "inference.budget.requests") },
				"tokens":   func(c *yaml.Node) { i.Budget.Tokens = d.bound(c, "inference.budget.tokens") },
			})
		},
	})
}

func (d *decoder) routes(n *yaml.Node) {
	d.p.Inference.Routes = []Route{}
	d.list(n, "inference.routes", func(c *yaml.Node) {
		r := Route{Line: c.Line}
		d.object(c, "inference.routes", object{
			"models":   func(m *yaml.Node) { r.Models = d.strs(m, "models", d.model) },
			"upstream": func(u *yaml.Node) { r.Upstream = d.label(u, "upstream") },
		})
		m := lookup(c, "models")
		if c.Kind == yaml.MappingNode && (m == nil || len(m.Content) == 0 && m.Kind == yaml.SequenceNode || lookup(c, "upstream") == nil) {
			d.fail(c, "a route without models or upstream", "both", `write {models: ["*"], upstream: local}`)
		}
		d.place(r.String(), c)
		d.p.Inference.Routes = append(d.p.Inference.Routes, r)
	})
}

// model checks a model's name: exact, or "*" alone.
func (d *decoder) model(n *yaml.Node, s string) bool {
	switch {
	case s != "*" && slices.Contains([]byte(s), '*'):
		d.fail(n, "the pattern "+quote(s), `an exact model name, or "*" alone`, "list the models")
	case !validModel(s):
		d.fail(n, quote(s), "a model name of at most 256 bytes", "write the name that agents ask for")
	default:
		return true
	}
	return false
}

func (d *decoder) budgets(n *yaml.Node) {
	b := &d.p.Budgets
	count := func(to *int, what string, hi int) func(*yaml.Node) {
		return func(c *yaml.Node) { *to, _ = d.integer(c, "budgets."+what, 1, hi) }
	}
	d.object(n, "budgets", object{
		"processes": count(&b.Processes, "processes", maxTasks),
		"openFiles": count(&b.OpenFiles, "openFiles", maxFiles),
		"memory":    func(c *yaml.Node) { b.Memory = d.size(c, "budgets.memory", 1<<20) },
		"scratch":   func(c *yaml.Node) { b.Scratch = d.size(c, "budgets.scratch", 1<<12) },
		"disk":      func(c *yaml.Node) { b.Disk = d.limit(c, "budgets.disk", 1<<20) },
		"diskRead":  func(c *yaml.Node) { b.DiskRead = d.limit(c, "budgets.diskRead", 1<<12) },
		"diskWrite": func(c *yaml.Node) { b.DiskWrite = d.limit(c, "budgets.diskWrite", 1<<12) },
		"inodes":    func(c *yaml.Node) { b.Inodes = d.inodes(c) },
		"cpu":       func(c *yaml.Node) { b.CPU = d.cores(c) },
		"wallTime":  func(c *yaml.Node) { b.WallTime = d.wall(c) },
	})
}

// inodes: a folder and a file in it take two, so that fewer than 16 is a mistake.
func (d *decoder) inodes(n *yaml.Node) int {
	if n.Kind == yaml.ScalarNode && n.Value == unlimited {
		return 0
	}
	v, _ := d.integer(n, `budgets.inodes (or the word "unlimited")`, 16, 1<<32)
	return v
}

func (d *decoder) size(n *yaml.Node, what string, least int64) int64 {
	v, ok := parseSize(n.Value)
	if n.Kind != yaml.ScalarNode || !ok || v < least {
		d.fail(n, describe(n), "a size from "+formatSize(least)+" to "+formatSize(maxSize)+" for "+what,
			"write a whole number and its unit, B, KiB, MiB, GiB or TiB, such as 512MiB")
	}
	return v
}

// coresForm allows thousandths, the precision of a CPU quota.
var coresForm = regexp.MustCompile(`^[0-9]{1,4}(\.[0-9]{1,3})?$`)

func (d *decoder) cores(n *yaml.Node) float64 {
	if n.Kind == yaml.ScalarNode && n.Value == unlimited {
		return 0
	}
	v, err := strconv.ParseFloat(n.Value, 64)
	number := n.Tag == "!!int" || n.Tag == "!!float"
	if !number || !coresForm.MatchString(n.Value) || err != nil || v <= 0 || v > maxCores {
		d.fail(n, describe(n), "a number of cores from 0.001 to 4096 for budgets.cpu", `write a number such as 1.5, or the word "unlimited"`)
	}
	return v
}

func (d *decoder) wall(n *yaml.Node) (v time.Duration) {
	v, ok := parseWall(n.Value)
	if n.Kind != yaml.ScalarNode || !ok {
		d.fail(n, describe(n), "a duration of whole seconds from 1s to 8760h for budgets.wallTime", "write a number and its unit, h, m or s, such as 2h or 90m")
	}
	return v
}

func (d *decoder) audit(n *yaml.Node) {
	d.object(n, "audit", object{
		"files":   func(c *yaml.Node) { d.word(c, "audit.files", &d.p.Audit.Files, "denied", "all") },
		"network": func(c *yaml.Node) { d.word(c, "audit.network", &d.p.Audit.Network, "decisions", "all") },
	})
}

func (d *decoder) require(n *yaml.Node) {
	r := &d.p.Require
	d.object(n, "require", object{
		// 1 is the first ABI that exists; 99 leaves room for kernels to come.
		"landlock": func(c *yaml.Node) { r.Landlock, _ = d.integer(c, "require.landlock", 1, 99) },
		"tier":     func(c *yaml.Node) { d.word(c, "require.tier", &r.Tier, "T1", "T2", "T3", "T4") },
		"kernel":   func(c *yaml.Node) { r.Kernel = d.kernel(c) },
		"features": func(c *yaml.Node) { r.Features = d.features(c) },
	})
}
