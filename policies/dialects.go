package policies

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// MaxSource is the largest policy that is read, in bytes.
const MaxSource = 1 << 20

// Parse reads a policy in any dialect. name is the file's name, for messages
// and, in the dialects that carry no name, for the policy's. The error joins
// one *Error per mistake; the policy is nil then.
func Parse(name string, src []byte) (*Policy, error) {
	return parse(name, src, nil)
}

// parse reads src over base; nil takes the preset that src extends, or sandbox.
func parse(name string, src []byte, base *Policy) (*Policy, error) {
	d := &decoder{file: name, set: map[string]*yaml.Node{}}
	return d.parse(src, base)
}

func (d *decoder) parse(src []byte, base *Policy) (*Policy, error) {
	doc := d.tree(src)
	if len(d.errs) == 0 {
		d.document(doc, base)
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	return d.p, nil
}

// document makes a policy of one tree that passed hygiene.
func (d *decoder) document(doc *yaml.Node, base *Policy) {
	if base == nil {
		base = closedBase(doc)
	}
	d.p = base
	d.p.Source = d.file
	d.p.Name = nameOf(d.file)
	if d.dialect(doc); len(d.errs) == 0 {
		d.finish()
	}
}

// closedBase is what stands where a source is silent.
func closedBase(doc *yaml.Node) *Policy {
	name := "sandbox"
	if n := lookup(doc, "extends"); n != nil && slices.Contains(Presets(), n.Value) {
		name = n.Value
	}
	p, err := Preset(name)
	if err != nil {
		panic(err) // embedded, and held by a test
	}
	return p
}

func lookup(n *yaml.Node, key string) *yaml.Node {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// place remembers where the rule with this text stands.
func (d *decoder) place(rule string, n *yaml.Node) {
	if d.p.at == nil {
		d.p.at = map[string]string{}
	}
	d.p.at[rule] = fmt.Sprintf("%s:%d", d.file, n.Line)
}

// tree makes the one document of src a tree of plain values.
func (d *decoder) tree(src []byte) *yaml.Node {
	if d.text(src); len(d.errs) > 0 {
		return nil
	}
	l, err := yaml.NewLoader(bytes.NewReader(src))
	if err != nil {
		d.fail(&yaml.Node{}, err.Error(), "YAML", "correct the syntax")
		return nil
	}
	var doc, more yaml.Node
	switch err := l.Load(&doc); {
	case errors.Is(err, io.EOF):
		d.fail(&yaml.Node{}, "an empty document", "a policy", "begin with apiVersion: "+apiVersion)
		return nil
	case err != nil:
		d.syntax(err)
		return nil
	}
	switch err := l.Load(&more); {
	case err == nil:
		d.fail(&more, "a second document", "one policy per file", "move it to a file of its own")
	case !errors.Is(err, io.EOF):
		d.syntax(err)
	}
	if d.hygiene(&doc); len(d.errs) > 0 || len(doc.Content) != 1 {
		return nil
	}
	return doc.Content[0]
}

// text refuses bytes that an editor would not show as they act.
func (d *decoder) text(src []byte) {
	at := func(off int) *yaml.Node {
		line := bytes.Count(src[:off], []byte("\n")) + 1
		return &yaml.Node{Line: line, Column: off - bytes.LastIndexByte(src[:off], '\n')}
	}
	if len(src) > MaxSource {
		d.fail(at(0), fmt.Sprintf("a file of %d bytes", len(src)), fmt.Sprintf("at most %d", MaxSource), "a policy is a page of text: check the path")
		return
	}
	for off, r := range string(src) {
		switch {
		case r == utf8.RuneError && !bytes.HasPrefix(src[off:], []byte("\uFFFD")):
			d.fail(at(off), fmt.Sprintf("the byte 0x%02x", src[off]), "UTF-8 text", "save the file as UTF-8")
		case r == '\n' || r == '\t' || r == '\r' && bytes.HasPrefix(src[off+1:], []byte("\n")):
			continue
		case invisible(r) || r == 0x85:
			d.fail(at(off), fmt.Sprintf("the invisible character U+%04X", r), "visible text", "remove it; write international names in their xn-- form")
		default:
			continue
		}
		return
	}
	if loc := directive.FindIndex(src); loc != nil {
		d.fail(at(loc[1]-1), "a YAML directive (%)", "a policy", "remove the line: directives change how YAML is read")
	}
}

// directive finds a % at the start of a line before any content.
var directive = regexp.MustCompile(`^(?:[ \t]*(?:#[^\n]*)?\r?\n)*%`)

// syntax reports what the YAML library could not read.
func (d *decoder) syntax(err error) {
	at, got, next := &yaml.Node{}, err.Error(), "correct the syntax there"
	var le *yaml.LoadError
	if errors.As(err, &le) {
		at.Line, at.Column = le.Mark.Line, le.Mark.Column
		got = le.Message
		if le.ContextMsg != "" {
			got += " " + le.ContextMsg
		}
	}
	if strings.Contains(got, "alias") {
		next = `put a star between quotes: "*"`
	}
	d.fail(at, "unreadable YAML ("+got+")", "a YAML mapping", next)
}

// dialect picks the reader by the keys at the top.
func (d *decoder) dialect(n *yaml.Node) {
	has := func(k string) bool { return lookup(n, k) != nil }
	switch {
	case n.Kind != yaml.MappingNode:
		d.fail(n, describe(n), "a mapping with apiVersion, kind and metadata", "begin with apiVersion: "+apiVersion)
	case has("apiVersion"):
		d.p.Dialect = "canonical"
		d.canonical(n)
	case has("agent_policy"):
		d.p.Dialect = "agent_policy"
		d.object(n, "", object{"agent_policy": d.agentPolicy})
	case has("network") && len(n.Content) == 2:
		d.p.Dialect = "network"
		d.object(n, "", object{"network": d.networkDialect})
	case has("version"):
		d.p.Dialect = "openshell"
		d.openShell(n)
	default:
		d.fail(n, "a policy of an unknown dialect", "apiVersion: "+apiVersion+", version: 1 (OpenShell), or the single top-level field network or agent_policy",
			"add apiVersion: "+apiVersion+" and kind: "+kind)
	}
}

// networkDialect reads {allow, deny} lists, or one entry in place of a list.
func (d *decoder) networkDialect(n *yaml.Node) {
	net := &d.p.Network
	net.Default, net.Allow, net.Deny = Deny, []HostRule{}, []HostRule{}
	d.object(n, "network", object{
		"allow": func(c *yaml.Node) { net.Allow = d.hostRules(listed(c), Allow) },
		"deny":  func(c *yaml.Node) { net.Deny = d.hostRules(listed(c), Deny) },
	})
	d.destinationNotes()
	d.note(Narrower, nil, "files and programs", "the source cannot speak of them; the closed values hold: the image read-only, /tmp writable, no program but the agent's own")
	d.closedNotes()
}

// destinationNotes says what the lists of both dialects leave to the reader.
func (d *decoder) destinationNotes() {
	net := d.p.Network
	for _, r := range net.Deny {
		at := &yaml.Node{Line: r.Line}
		switch {
		case r.Host == "*" && len(r.Ports) == 0:
			d.note(Same, at, `deny "*"`, "network.default: deny, beside which the allow-list stands")
		case strings.Contains(r.Host, "*") && r.Host != "*":
			d.note(Narrower, at, "deny "+quote(r.Host), "denied in every reading: at any depth, and the name below the star itself")
		}
	}
	for _, r := range net.Allow {
		if len(r.Ports) == 0 {
			d.note(Narrower, &yaml.Node{Line: r.Line}, r.String()+" without a port", "ports 80 and 443")
		}
	}
}

// listed makes one scalar a list of one.
func listed(n *yaml.Node) *yaml.Node {
	if n.Kind != yaml.ScalarNode {
		return n
	}
	return &yaml.Node{Kind: yaml.SequenceNode, Line: n.Line, Column: n.Column, Content: []*yaml.Node{n}}
}

func (d *decoder) agentPolicy(n *yaml.Node) {
	net := &d.p.Network
	net.Default, net.Allow, net.Deny = Deny, []HostRule{}, []HostRule{}
	d.object(n, "agent_policy", object{
		"network": func(c *yaml.Node) {
			d.object(c, "network", object{
				"allow_egress": func(c *yaml.Node) { net.Allow = d.hostRules(listed(c), Allow) },
				"deny_egress":  func(c *yaml.Node) { net.Deny = d.hostRules(listed(c), Deny) },
			})
		},
		"filesystem": d.dataPaths,
		"execution":  d.execution,
	})
	d.destinationNotes()
	d.note(Narrower, nil, "programs", "the source cannot speak of them; only the agent's own program runs")
	d.closedNotes()
}

// dataPaths reads the agent_policy dialect's paths, which name data only: the
// image's own programs and libraries, the preset's list, stay readable, or
// nothing could run.
func (d *decoder) dataPaths(n *yaml.Node) {
	f := &d.p.Filesystem
	d.object(n, "filesystem", object{
		"read": func(c *yaml.Node) {
			for _, s := range d.paths(c, "filesystem.read") {
				if !slices.Contains(f.Read, s) {
					f.Read = append(f.Read, s)
				}
			}
			delete(d.set, "filesystem.read") // part of it is inherited
			d.note(Wider, c, "filesystem.read", "added to the image's own folders, which stay readable, or no program could start")
		},
		"write": func(c *yaml.Node) { f.Write = d.paths(c, "filesystem.write") },
	})
}

func (d *decoder) execution(n *yaml.Node) {
	p := d.p
	d.object(n, "execution", object{
		"max_processes": func(c *yaml.Node) {
			d.note(Narrower, c, "max_processes "+c.Value, "tasks, threads included: a Node.js process has 11")
			p.Budgets.Processes, _ = d.integer(c, "max_processes", 1, maxTasks)
			p.Process.Spawn = p.Budgets.Processes > 1
		},
		"max_memory_mb": func(c *yaml.Node) {
			mib, _ := d.integer(c, "max_memory_mb", 1, maxSize>>20)
			p.Budgets.Memory = int64(mib) << 20
		},
		"timeout_minutes": func(c *yaml.Node) {
			m, _ := d.integer(c, "timeout_minutes", 1, int(maxWall/time.Minute))
			p.Budgets.WallTime = time.Duration(m) * time.Minute
		},
	})
}

// nameOf makes a policy's name of a file's, for dialects that carry none.
func nameOf(file string) string {
	s := strings.ToLower(path.Base(file))
	s = strings.TrimSuffix(strings.TrimSuffix(s, ".yaml"), ".yml")
	s = notName.ReplaceAllString(s, "-")
	s = strings.Trim(s[:min(len(s), 63)], "._-")
	if s == "" {
		return "policy"
	}
	return s
}

var notName = regexp.MustCompile(`[^a-z0-9._-]`)
