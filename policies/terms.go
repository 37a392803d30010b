package policies

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// terms adds the fields of an allow rule that say for whom and how.
func (d *decoder) terms(n *yaml.Node, r *HostRule, fields object) {
	// The protocol is read first, because calls depend on it.
	protocol := ""
	if c := lookup(n, "protocol"); c != nil {
		protocol = c.Value
	}
	r.Inspect = slices.Contains(inspected, protocol)
	fields["binaries"] = func(c *yaml.Node) { r.Binaries = d.some(c, "binaries", d.binary) }
	fields["protocol"] = func(c *yaml.Node) { d.word(c, "protocol", &r.Protocol, append([]string{"tcp"}, inspected...)...) }
	fields["inspect"] = func(c *yaml.Node) { d.boolean(c, "inspect", &r.Inspect) }
	fields["path"] = func(c *yaml.Node) { r.Path = d.pathGlob(c) }
	fields["access"] = func(c *yaml.Node) { d.word(c, "access", &r.Access, "read-only", "read-write", "full") }
	fields["calls"] = func(c *yaml.Node) { r.Calls = d.calls(c, protocol) }
	fields["denyCalls"] = func(c *yaml.Node) { r.DenyCalls = d.calls(c, protocol) }
	fields["allowedIPs"] = func(c *yaml.Node) { r.AllowedIPs = d.networks(c) }
	fields["credentials"] = func(c *yaml.Node) {
		r.Credentials = d.some(c, "credentials", func(n *yaml.Node, s string) bool { return d.label(n, "credentials") != "" })
	}
	fields["budget"] = func(c *yaml.Node) { r.Budget = d.linkBudget(c) }
}

// some reads a list that says nothing when it is empty.
func (d *decoder) some(n *yaml.Node, what string, check func(*yaml.Node, string) bool) []string {
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		d.fail(n, "an empty list", "at least one entry for "+what, "leave the field out, or write what it shall hold")
	}
	return d.strs(n, what, check)
}

// binary checks a program's path: exact, "folder/", or with stars.
func (d *decoder) binary(n *yaml.Node, s string) bool {
	switch {
	case !strings.HasPrefix(s, "/"):
		d.fail(n, quote(s), "an absolute path for binaries", "begin with /; ~ and variables are not expanded")
	case strings.ContainsAny(s, `?[]{}\`):
		d.fail(n, quote(s), `a path, with "*" (within one folder) and "**" as its only patterns, for binaries`, "list the programs, or end a folder with a slash")
	case strings.HasSuffix(s, "/") && strings.Contains(s, "*"):
		d.fail(n, quote(s), "a pattern or a folder for binaries", "write "+quote(s+"**"))
	case dotted(s):
		d.fail(n, quote(s), `a path without "..", "." or doubled slashes for binaries`, "write the path that the kernel would show")
	default:
		return true
	}
	return false
}

// dotted finds segments that canonical paths lack.
func dotted(s string) bool {
	return strings.Contains(s, "//") || slices.ContainsFunc(strings.Split(s, "/"), func(x string) bool { return x == "." || x == ".." })
}

// pathGlob checks a pattern of URL paths.
func (d *decoder) pathGlob(n *yaml.Node) string {
	s, ok := d.str(n, "path")
	if !ok {
		return ""
	}
	switch {
	case !strings.HasPrefix(s, "/") && s != "**":
		d.fail(n, quote(s), "a path pattern", `begin with /, or write "**" for every path`)
	case strings.ContainsAny(s, `?#`):
		d.fail(n, quote(s), "a path without query or fragment", "write parameters in query: {name: [pattern]}")
	case strings.ContainsAny(s, `%[]{}\`):
		d.fail(n, quote(s), `a path pattern of plain characters, "*" and "**"`, "paths are compared decoded: write the character itself, and a star for a choice")
	case dotted(s):
		d.fail(n, quote(s), `a path without "..", "." or doubled slashes`, "paths are compared in canonical form")
	case strings.Count(s, "/**/") > maxClosed:
		d.fail(n, quote(s), fmt.Sprintf("at most %d times /**/ in one path", maxClosed), "shorten the pattern")
	default:
		return s
	}
	return ""
}

// never are networks that no name may lead to, whatever a policy says: this
// host, its links, and groups.
var never = prefixes("127.0.0.0/8", "169.254.0.0/16", "0.0.0.0/32", "224.0.0.0/4", "::1/128", "::/128", "fe80::/10", "ff00::/8")

// networks reads allowedIPs: networks, or single addresses.
func (d *decoder) networks(n *yaml.Node) []string {
	var out []string
	d.some(n, "allowedIPs", func(c *yaml.Node, s string) bool {
		if a, ok := isAddr(s); ok && a.Zone() == "" && !a.Is4In6() {
			c = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: netip.PrefixFrom(a, a.BitLen()).String(), Line: c.Line, Column: c.Column, Style: yaml.DoubleQuotedStyle}
		}
		net := d.cidr(c)
		if net == "" {
			return false
		}
		for _, x := range never {
			if x.Overlaps(netip.MustParsePrefix(net)) {
				d.fail(c, quote(s)+", which holds "+x.String(), "networks of other hosts in allowedIPs", "this host, link-local addresses and groups are never reached by name: list smaller networks")
				return false
			}
		}
		out = append(out, net)
		return true
	})
	return out
}

func (d *decoder) linkBudget(n *yaml.Node) (b LinkBudget) {
	count := func(to *int, what string) func(*yaml.Node) {
		return func(c *yaml.Node) { *to, _ = d.integer(c, "budget."+what, 1, 1e9) }
	}
	d.object(n, "budget", object{
		"up":          func(c *yaml.Node) { b.Up = d.size(c, "budget.up", 1) },
		"down":        func(c *yaml.Node) { b.Down = d.size(c, "budget.down", 1) },
		"perMinute":   count(&b.PerMinute, "perMinute"),
		"connections": count(&b.Connections, "connections"),
	})
	if n.Kind == yaml.MappingNode && len(n.Content) == 0 {
		d.fail(n, "an empty budget", "at least one bound", "leave the field out for none")
	}
	return b
}

// agreement refuses fields of one rule that contradict each other.
func (d *decoder) agreement(n *yaml.Node, r *HostRule) {
	l7 := r.Inspected()
	has := func(k string) bool { return lookup(n, k) != nil }
	refuse := func(got, want, next string) { d.fail(n, "a rule with "+got, want, next) }
	for _, k := range []string{"inspect", "path", "access", "calls", "denyCalls", "credentials"} {
		if !l7 && has(k) {
			refuse(k+" but without an inspected protocol", "protocol: "+strings.Join(inspected, ", ")+" beside it", "add protocol: http, or remove "+k)
			return
		}
	}
	switch {
	case l7 && r.Access == "" && len(r.Calls) == 0:
		refuse("protocol "+r.Protocol+" and neither access nor calls", "one of them", "list the calls, or write access: full for all of them")
	case (r.Protocol == "mcp" || r.Protocol == "json-rpc") && r.Access != "" && r.Access != "full":
		refuse("access "+r.Access+" for "+r.Protocol, "calls, or access: full", "only its server knows which methods change something: list them")
	case len(r.Credentials) > 0 && !r.Inspect:
		refuse("credentials and inspect: false", "an inspected TLS connection", "remove inspect: false: a credential must not cross a network in clear")
	case len(r.Credentials) > 0 && (r.Host == "*" || r.CIDR != ""):
		refuse("credentials for "+r.String(), "the names that the credential is for", "write host or domain")
	case len(r.AllowedIPs) > 0 && !r.named():
		refuse("allowedIPs for "+r.String(), "a name", "an address leads to itself: remove allowedIPs")
	}
}

// named says whether the rule names hosts, not addresses.
func (r *HostRule) named() bool {
	_, addr := isAddr(r.Host)
	return r.CIDR == "" && !addr
}

// methodForm is a token of RFC 9110 in the upper case that methods have.
var methodForm = regexp.MustCompile(`^[A-Z][A-Z0-9_-]{0,31}$`)

// callFields are those that each protocol's messages have.
var callFields = map[string][]string{
	"http":      {"method", "path", "query"},
	"graphql":   {"operation", "operationName", "fields", "method", "path", "query"},
	"websocket": {"method", "path", "query", "frame", "operation", "operationName", "fields"},
	"mcp":       {"rpc", "tool", "args"},
	"json-rpc":  {"rpc"},
}

// calls reads calls or denyCalls.
func (d *decoder) calls(n *yaml.Node, protocol string) []CallRule {
	var out []CallRule
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		d.fail(n, "an empty list", "at least one entry", "leave the field out, or remove the rule to forbid everything")
	}
	d.list(n, "calls", func(c *yaml.Node) {
		r := CallRule{Line: c.Line}
		all := d.callFields(&r, protocol)
		fields := object{}
		for _, k := range callFields[protocol] {
			fields[k] = all[k]
		}
		if len(fields) == 0 {
			return // the rule's own protocol is wrong, and agreement says so
		}
		d.object(c, "calls of "+protocol, fields)
		d.callAgreement(c, &r)
		out = append(out, r)
	})
	return out
}

func (d *decoder) callFields(r *CallRule, protocol string) object {
	return object{
		"method":        func(c *yaml.Node) { r.Method = d.method(c, protocol) },
		"path":          func(c *yaml.Node) { r.Path = d.pathGlob(c) },
		"query":         func(c *yaml.Node) { r.Query = d.patternTable(c, "query") },
		"operation":     func(c *yaml.Node) { d.word(c, "operation", &r.Operation, "query", "mutation", "subscription", "*") },
		"operationName": func(c *yaml.Node) { r.OperationName = d.pattern(c, "operationName") },
		"fields":        func(c *yaml.Node) { r.Fields = d.patterns(c, "fields") },
		"rpc":           func(c *yaml.Node) { r.RPC = d.pattern(c, "rpc") },
		"tool":          func(c *yaml.Node) { r.Tool = d.patterns(c, "tool") },
		"args":          func(c *yaml.Node) { r.Args = d.patternTable(c, "args") },
		"frame":         func(c *yaml.Node) { d.word(c, "frame", &r.Frame, "text", "binary", "*") },
	}
}

func (d *decoder) callAgreement(n *yaml.Node, r *CallRule) {
	request := r.Method != "" || r.Path != "" || len(r.Query) > 0
	switch {
	case n.Kind == yaml.MappingNode && len(n.Content) == 0:
		d.fail(n, "an empty entry", "at least one field", "write access: full for everything")
	case r.graph() && (request || r.Frame != ""):
		d.fail(n, "an entry with operation and with a field of the request or frame", "one or the other", "write two entries: one for the handshake, one for the operations")
	case r.Frame != "" && r.Method != "":
		d.fail(n, "an entry with method and frame", "one or the other", "write two entries: method for the handshake, frame for what follows it")
	case r.tools() && r.RPC != "" && r.RPC != toolCall:
		d.fail(n, "an entry with rpc "+quote(r.RPC)+" and with tool or args", "rpc: "+toolCall, "remove rpc, or write another entry for it")
	}
}

func (d *decoder) method(n *yaml.Node, protocol string) string {
	s, ok := d.str(n, "method")
	switch {
	case !ok:
	case protocol == "websocket" && s != "GET":
		d.fail(n, quote(s), "GET, the method of a WebSocket handshake", "write frame: text for messages")
	case s != "*" && !methodForm.MatchString(s):
		d.fail(n, quote(s), `an HTTP method in upper case, or "*"`, "write GET, POST or the like")
	default:
		return s
	}
	return ""
}

// patternTable reads patterns by name; one string stands for a list of one.
func (d *decoder) patternTable(n *yaml.Node, what string) map[string][]string {
	out := map[string][]string{}
	if n.Kind != yaml.MappingNode {
		d.fail(n, describe(n), "a mapping for "+what, "write {name: [pattern]}")
		return out
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		name, ok := d.str(k, "a name in "+what)
		if _, twice := out[name]; ok && twice {
			d.fail(k, "field "+quote(name)+" a second time", "each field once", "merge the two")
		}
		out[name] = d.patterns(n.Content[i+1], what)
	}
	return out
}

func (d *decoder) patterns(n *yaml.Node, what string) []string {
	return d.some(listed(n), what, func(c *yaml.Node, s string) bool { return d.plain(c, s, what) })
}

func (d *decoder) pattern(n *yaml.Node, what string) string {
	if s, ok := d.str(n, what); ok && d.plain(n, s, what) {
		return s
	}
	return ""
}

// plain refuses characters that other pattern languages act on, and that this
// one would take as they are.
func (d *decoder) plain(n *yaml.Node, s, what string) bool {
	if strings.ContainsAny(s, `[]{}\`) {
		d.fail(n, quote(s), `a pattern of plain characters, "*" and "?" for `+what, "write one pattern for each choice")
		return false
	}
	return true
}
