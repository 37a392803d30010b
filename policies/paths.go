package policies

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// kernelPaths hold no files of the agent's: nothing below them can be given
// to write. The sandbox itself provides the harmless devices.
var kernelPaths = []string{"/proc", "/sys", "/dev"}

// paths reads a list of absolute, clean paths.
func (d *decoder) paths(n *yaml.Node, field string) []string {
	return d.strs(n, field, func(c *yaml.Node, s string) bool {
		if !d.path(c, s, field) {
			return false
		}
		d.place(strings.TrimPrefix(strings.TrimPrefix(field, "filesystem."), "process.")+" "+s, c)
		return true
	})
}

// path checks one path; only exec entries may end in "/".
func (d *decoder) path(n *yaml.Node, s, field string) bool {
	clean := path.Clean(s)
	if field == "process.exec" && strings.HasSuffix(s, "/") && clean != "/" {
		clean += "/"
	}
	switch {
	case !path.IsAbs(s):
		d.fail(n, quote(s), "an absolute path for "+field, "begin with /; ~ and variables are not expanded")
	case strings.ContainsAny(s, `*?[]{}\`):
		d.fail(n, quote(s), "a path without pattern characters for "+field, "name the folder: it covers everything below it")
	case clean != s:
		d.fail(n, quote(s), "a path without \"..\", \".\", doubled or final slashes for "+field, "write "+quote(clean))
	case field == "filesystem.write" && (s == "/" || slices.ContainsFunc(kernelPaths, func(k string) bool { return under(s, k) })):
		d.fail(n, quote(s), "a folder of the agent's own for "+field, "list a folder such as /workspace; the root and the kernel's file systems are never writable")
	default:
		return true
	}
	return false
}

// under says whether the clean path p is root or lies below it.
func under(p, root string) bool {
	return p == root || strings.HasPrefix(p, strings.TrimSuffix(root, "/")+"/")
}

func below(p string, roots []string) (string, bool) {
	i := slices.IndexFunc(roots, func(r string) bool { return under(p, r) })
	if i < 0 {
		return "", false
	}
	return roots[i], true
}

// execCovers says whether an exec entry, a file or a "folder/", covers p.
func execCovers(entry, p string) bool {
	return p == entry || strings.HasSuffix(entry, "/") && p != "/" && strings.HasPrefix(p, entry)
}

// finish settles what depends on several fields. A field that the source
// wrote is never changed: contradictions are refused, naming both sides.
func (d *decoder) finish() {
	d.finishSeccomp()
	d.finishRead()
	d.finishExec()
	d.finishWorkdir()
	d.finishDefault()
	d.finishRules()
}

// finishSeccomp: "strict" is the profile that forbids new processes, so it
// goes with spawn: false and only with that.
func (d *decoder) finishSeccomp() {
	p := &d.p.Process
	fitting := "strict"
	if p.Spawn {
		fitting = "default"
	}
	n := d.set["process.seccomp"]
	if n != nil && p.Seccomp != fitting {
		d.fail(n, fmt.Sprintf("seccomp %q with spawn: %v", p.Seccomp, p.Spawn), fitting+" beside spawn: "+fmt.Sprint(p.Spawn),
			`write spawn: true with "default", spawn: false with "strict", or leave seccomp out`)
	}
	p.Seccomp = fitting
}

// finishRead keeps read-only entries out of writable folders, where they
// would read as protected and be writable. Inherited ones just go.
func (d *decoder) finishRead() {
	f := &d.p.Filesystem
	n := d.set["filesystem.read"]
	f.Read = slices.DeleteFunc(f.Read, func(r string) bool {
		w, covered := below(r, f.Write)
		if covered && n != nil {
			d.fail(n, "read "+r+" inside write "+w, "read-only paths outside writable ones", "remove "+r+" from read: write includes it; or narrow the write entry")
		}
		return covered
	})
}

// finishExec: what an agent can write, it must not be able to run.
func (d *decoder) finishExec() {
	p := d.p
	for _, e := range p.Process.Exec {
		for _, w := range p.Filesystem.Write {
			if !under(strings.TrimSuffix(e, "/"), w) && !execCovers(e, w) {
				continue
			}
			n := d.set["process.exec"]
			if n == nil {
				n = d.set["filesystem.write"]
			}
			if n != nil {
				d.fail(n, "exec "+e+" and write "+w, "executables outside writable paths", "separate the two: what an agent can write it must not run")
			}
		}
	}
}

// finishWorkdir: an inherited one that is no longer covered moves to the
// first path that is.
func (d *decoder) finishWorkdir() {
	f := &d.p.Filesystem
	roots := slices.Concat(f.Write, f.Read)
	if _, ok := below(f.Workdir, roots); ok {
		return
	}
	switch n := d.set["filesystem.workdir"]; {
	case n != nil:
		d.fail(n, quote(f.Workdir), "a workdir at or below a read or write path", "add it to filesystem.write, or choose another")
	case len(roots) == 0:
		n = d.set["filesystem.read"]
		if n == nil {
			n = d.set["filesystem.write"]
		}
		if n == nil {
			n = d.set["filesystem_policy"]
		}
		if n != nil {
			d.fail(n, "no path to read or write", "at least one", "list the folders that hold the program's files")
		}
	default:
		f.Workdir = roots[0]
	}
}

// finishDefault gives deny "*" its meaning in every dialect: it is the
// default, so the allow list stands beside it.
func (d *decoder) finishDefault() {
	net := &d.p.Network
	all := func(r HostRule) bool { return r.Host == "*" && len(r.Ports) == 0 }
	if !slices.ContainsFunc(net.Deny, all) {
		return
	}
	if n := d.set["network.default"]; n != nil && net.Default == Hold {
		d.fail(n, `default: hold beside deny "*"`, "one of the two", `write default: hold to ask an operator, or deny "*" (the same as default: deny)`)
	}
	if slices.ContainsFunc(net.Allow, func(r HostRule) bool { return r.Host == "*" }) {
		n := d.set["network.deny"]
		if n == nil {
			n = d.set["network.deny_egress"]
		}
		d.fail(n, `allow "*" beside deny "*"`, "one of the two", "list the hosts to allow, or remove the deny entry")
	}
	net.Default = Deny
	net.Deny = slices.DeleteFunc(net.Deny, all)
}

// finishRules holds the allow rules against the credentials and each other.
func (d *decoder) finishRules() {
	at := func(r *HostRule) *yaml.Node { return &yaml.Node{Line: r.Line, Column: 1} }
	first := map[string]*HostRule{}
	for i := range d.p.Network.Allow {
		r := &d.p.Network.Allow[i]
		for _, c := range r.Credentials {
			if !slices.ContainsFunc(d.p.Credentials, func(x Credential) bool { return x.Name == c }) {
				d.fail(at(r), "credential "+quote(c)+" in the rule "+r.String(), "a name that credentials lists", "add {name: "+c+", env: VARIABLE} to credentials")
			}
		}
		for _, key := range r.places() {
			o := first[key]
			if o == nil {
				first[key] = r
			} else if o.Protocol != r.Protocol {
				d.fail(at(r), fmt.Sprintf("%s beside %s (line %d)", r, o, o.Line), "one protocol for each destination and path", "remove one of them, or give each a path of its own")
			}
		}
	}
}

// places names what an inspected rule speaks for: two rules with one place
// must agree on the protocol.
func (r *HostRule) places() (out []string) {
	if !r.Inspected() {
		return nil
	}
	ports, bins := r.Ports, r.Binaries
	if len(ports) == 0 {
		ports = defaultPorts
	}
	if len(bins) == 0 {
		bins = []string{""}
	}
	for _, p := range ports {
		for _, b := range bins {
			out = append(out, fmt.Sprintf("%s|%s|%s|%d|%s|%s", r.Host, r.Domain, r.CIDR, p, r.Path, b))
		}
	}
	return out
}
