package policies

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// The reader of OpenShell's "version: 1" (github.com/NVIDIA/OpenShell,
// docs/reference/policy-schema.mdx and crates/openshell-policy, as of August
// 2026). It turns each field into ours. Where the two cannot mean the same it
// takes the narrower meaning and notes it; what grants nothing there grants
// nothing here. Where OpenShell's page and its code disagree (whether a star
// crosses slashes) the narrower of the two counts in allow rules, the wider
// in deny rules.

// imported is the working folder of OpenShell's images.
const imported = "/sandbox"

// shell holds what an OpenShell policy says in one place and means in another.
type shell struct {
	*decoder
	covered []string // hosts that a middleware would have seen
	spared  []string
	dropped []*endpoint // left out, though they hold other endpoints in check
}

func (d *decoder) openShell(n *yaml.Node) {
	s := &shell{decoder: d}
	net := &d.p.Network
	net.Default, net.Allow, net.Deny = Deny, []HostRule{}, []HostRule{}
	if m := lookup(n, "network_middlewares"); m != nil {
		s.middlewares(m)
	}
	d.object(n, "", object{
		"version":             s.version,
		"filesystem_policy":   s.filesystem,
		"landlock":            s.landlock,
		"process":             s.process,
		"network_policies":    s.policies,
		"network_middlewares": func(*yaml.Node) {}, // read above: rules depend on it
	})
	if lookup(n, "filesystem_policy") == nil {
		s.workdir()
		d.note(Same, nil, "filesystem_policy", "left out: the image's own folders are readable, /tmp and "+imported+" writable")
	}
	if lookup(n, "landlock") == nil {
		s.bestEffort(nil)
	}
	s.checked()
	s.programs()
	d.note(Narrower, nil, "system calls and starting processes", "the profile default; processes count against the budget")
	d.closedNotes()
}

func (s *shell) version(n *yaml.Node) {
	if n.Kind != yaml.ScalarNode || n.Value != "1" {
		s.fail(n, "version "+n.Value, "version: 1", "later versions are not read: rewrite it in canonical form, docs/policy.md shows each field")
	}
}

func (s *shell) filesystem(n *yaml.Node) {
	f := &s.p.Filesystem
	f.Read, f.Write = []string{}, []string{}
	include := false
	s.object(n, "filesystem_policy", object{
		"include_workdir": func(c *yaml.Node) { s.boolean(c, "include_workdir", &include) },
		"read_only":       func(c *yaml.Node) { f.Read = s.paths(c, "filesystem.read") },
		"read_write":      func(c *yaml.Node) { f.Write = s.paths(s.devices(c), "filesystem.write") },
	})
	for _, w := range f.Write {
		f.Read = slices.DeleteFunc(f.Read, func(r string) bool { return under(r, w) })
	}
	if include {
		s.workdir()
	}
	if _, ok := below(imported, f.Write); ok {
		f.Workdir = imported
	}
	delete(s.set, "filesystem.read")
}

// workdir adds the working folder, which OpenShell's driver takes from the image.
func (s *shell) workdir() {
	f := &s.p.Filesystem
	if _, ok := below(imported, f.Write); !ok {
		f.Write = append(f.Write, imported)
	}
	f.Workdir = imported
	s.note(Same, nil, "include_workdir", imported+" is the working folder and writable; OpenShell takes it from the image")
}

// devices takes out what the sandbox provides by itself.
func (s *shell) devices(n *yaml.Node) *yaml.Node {
	out := *n
	out.Content = nil
	for _, c := range n.Content {
		switch {
		case slices.Contains([]string{"/dev/null", "/dev/zero", "/dev/full", "/dev/tty"}, c.Value):
			s.note(Same, c, "read_write "+c.Value, "the sandbox provides it")
		case slices.ContainsFunc(kernelPaths, func(k string) bool { return under(c.Value, k) }):
			s.note(Narrower, c, "read_write "+c.Value, "left out: the kernel's file systems are never writable")
		default:
			out.Content = append(out.Content, c)
		}
	}
	return &out
}

func (s *shell) landlock(n *yaml.Node) {
	mode := ""
	s.object(n, "landlock", object{
		"compatibility": func(c *yaml.Node) { s.word(c, "landlock.compatibility", &mode, "best_effort", "hard_requirement") },
	})
	if mode != "hard_requirement" {
		s.bestEffort(n)
	}
}

func (s *shell) bestEffort(n *yaml.Node) {
	s.note(Narrower, n, "compatibility: best_effort", fmt.Sprintf("require.landlock: %d: a host without it does not start the agent", s.p.Require.Landlock))
}

func (s *shell) process(n *yaml.Node) {
	id := func(what string, to *string) func(*yaml.Node) {
		return func(c *yaml.Node) {
			if c.Kind == yaml.ScalarNode && c.Value == "sandbox" {
				*to = own
				s.note(Same, c, what+": sandbox", "an id that no other agent has")
				return
			}
			s.id(c, "process."+what, to)
		}
	}
	s.object(n, "process", object{
		"run_as_user":  id("run_as_user", &s.p.Process.User),
		"run_as_group": id("run_as_group", &s.p.Process.Group),
	})
}

// dataFolders hold no programs in any image that follows the file system
// hierarchy.
var dataFolders = []string{"/etc", "/proc", "/sys", "/dev", "/var/log"}

// programs: OpenShell runs whatever is readable. Here a program must be
// listed, and must not be where the agent can write.
func (s *shell) programs() {
	f, p := s.p.Filesystem, &s.p.Process
	p.Exec, p.Spawn = []string{}, true
	for _, r := range f.Read {
		data := slices.ContainsFunc(dataFolders, func(d string) bool { return under(r, d) })
		inside := slices.ContainsFunc(f.Write, func(w string) bool { return under(w, r) })
		if !data && !inside && r != "/" {
			p.Exec = append(p.Exec, r+"/")
		}
	}
	s.note(Narrower, nil, "programs", "OpenShell runs whatever is readable; process.exec lists the read-only folders that can hold programs, and nothing writable runs")
}

// policies reads network_policies: named entries of endpoints and binaries.
func (s *shell) policies(n *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		s.fail(n, describe(n), "a mapping for network_policies", "write name: {endpoints: [...], binaries: [...]}")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		if name, ok := s.str(k, "a name in network_policies"); ok && seen[name] {
			s.fail(k, "field "+quote(name)+" a second time", "each name once", "rename one of them")
		}
		seen[k.Value] = true
		s.entry(k, n.Content[i+1])
	}
}

func (s *shell) entry(name, n *yaml.Node) {
	var ends *yaml.Node
	bins, display := []string{}, ""
	s.object(n, "network_policies."+name.Value, object{
		"name":      func(c *yaml.Node) { display, _ = s.str(c, "name") },
		"endpoints": func(c *yaml.Node) { ends = c },
		"binaries":  func(c *yaml.Node) { bins = s.binaries(c) },
	})
	if ends == nil {
		return
	}
	s.list(ends, "endpoints", func(c *yaml.Node) {
		rs := s.endpoint(c)
		if len(bins) == 0 {
			s.note(Same, c, "network_policies."+name.Value+" "+display, "left out: without binaries it lets no program through")
			return
		}
		for _, r := range rs {
			r.Binaries = bins
			s.p.Network.Allow = append(s.p.Network.Allow, r)
		}
	})
}

// checked refuses a policy where an endpoint with deny_rules or a path of its
// own is left out and another one for the same host stays: what the first
// kept from the second would be allowed.
func (s *shell) checked() {
	for _, e := range s.dropped {
		for _, r := range s.p.Network.Allow {
			if e.rule.Host == "" || e.rule.touches(&r) {
				s.fail(e.node, "an endpoint that can't be said here, beside "+r.String(), "an endpoint that the other one can do without",
					"write its path and rules with * and ** only, or remove the other endpoint")
				break
			}
		}
	}
}

func (s *shell) binaries(n *yaml.Node) (out []string) {
	s.list(n, "binaries", func(c *yaml.Node) {
		path := ""
		s.object(c, "binaries", object{
			"path":    func(m *yaml.Node) { path, _ = s.str(m, "path") },
			"harness": func(m *yaml.Node) { s.note(Same, m, "harness", "means nothing there either") },
		})
		switch {
		case path == "" || slices.Contains(out, path):
		case strings.ContainsAny(path, `?[]{}\`):
			s.note(Narrower, c, "binaries "+quote(path), "left out: only * and ** are patterns here")
		case s.binary(c, path):
			out = append(out, path)
		}
	})
	return out
}

// endpoint gives the rules of one endpoint: none when it grants nothing.
func (s *shell) endpoint(n *yaml.Node) []HostRule {
	e := &endpoint{shell: s, node: n, rule: HostRule{Line: n.Line, file: s.file}}
	e.read()
	if len(s.errs) > 0 {
		return nil
	}
	if !e.settle() {
		if p := lookup(n, "path"); e.deny != nil || p != nil && p.Value != "**" && p.Value != "/**" {
			s.dropped = append(s.dropped, e)
		}
		return nil
	}
	if e.rule.Host != "" {
		return []HostRule{e.rule}
	}
	// Hostless: any name that leads there, and the addresses themselves.
	rules := []HostRule{e.rule}
	rules[0].Host = "*"
	for _, net := range e.rule.AllowedIPs {
		r := e.rule
		r.CIDR, r.AllowedIPs = net, nil
		rules = append(rules, r)
	}
	return rules
}

// middlewares notes the hosts whose traffic would have been changed or
// stopped on its way. We have nothing that would do it, so what depends on it
// is not let through.
func (s *shell) middlewares(n *yaml.Node) {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		name, c := n.Content[i], n.Content[i+1]
		var in, out []string
		mode, skip := "fail_closed", func(*yaml.Node) {}
		hosts := func(to *[]string) func(*yaml.Node) {
			return func(m *yaml.Node) { *to = s.strs(m, "endpoints", func(*yaml.Node, string) bool { return true }) }
		}
		s.object(c, "network_middlewares."+name.Value, object{
			"name": skip, "middleware": skip, "order": skip, "config": skip,
			"on_error": func(m *yaml.Node) { s.word(m, "on_error", &mode, "fail_closed", "fail_open") },
			"endpoints": func(m *yaml.Node) {
				s.object(m, "endpoints", object{"include": hosts(&in), "exclude": hosts(&out)})
			},
		})
		if mode == "fail_open" {
			s.note(Wider, name, "network_middlewares."+name.Value, "not applied: there is no middleware here, and on_error: fail_open lets traffic pass without it")
			continue
		}
		s.note(Lost, name, "network_middlewares."+name.Value, "there is no middleware here; endpoints that it covers are left out")
		s.covered, s.spared = append(s.covered, in...), append(s.spared, out...)
	}
}

// filtered says whether a middleware covers host. A pattern on either side may
// cover anything.
func (s *shell) filtered(host string) bool {
	if host == "" || strings.Contains(host, "*") {
		return len(s.covered) > 0
	}
	match := func(p string) bool { return wide(p, host) }
	return slices.ContainsFunc(s.covered, match) && !slices.Contains(s.spared, host)
}

// ips reads allowed_ips: networks, whose further bits count for nothing, and addresses.
func (s *shell) ips(n *yaml.Node) []string {
	masked := *n
	masked.Content = nil
	for _, c := range n.Content {
		m := *c
		if p, err := netip.ParsePrefix(c.Value); err == nil {
			m.Value = p.Masked().String()
		}
		if !slices.ContainsFunc(masked.Content, func(o *yaml.Node) bool { return o.Value == m.Value }) {
			masked.Content = append(masked.Content, &m)
		}
	}
	return s.networks(&masked)
}

// portOf reads the old single port.
func (s *shell) portOf(n *yaml.Node) []int {
	p, ok := s.integer(n, "port", 0, 65535)
	if !ok || p == 0 {
		return nil
	}
	return []int{p}
}

// lower gives a word in the one case that we know.
func lower(n *yaml.Node) string { return strings.ToLower(n.Value) }

func yes(n *yaml.Node) bool { v, _ := strconv.ParseBool(n.Value); return v }
