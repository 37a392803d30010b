package policies

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// call is one allow or deny rule of OpenShell's, half read.
type call struct {
	*endpoint
	node *yaml.Node
	CallRule
	deny   bool
	method string
	dead   string // why it matches nothing there, or cannot be said here
}

func (e *endpoint) allowRule(n *yaml.Node) {
	e.object(n, "rules", object{"allow": func(c *yaml.Node) {
		x := &call{endpoint: e, node: c, CallRule: CallRule{Line: n.Line}}
		e.rule.Calls = append(e.rule.Calls, x.entries()...)
	}})
}

func (e *endpoint) denyRule(n *yaml.Node) {
	x := &call{endpoint: e, node: n, CallRule: CallRule{Line: n.Line}, deny: true}
	e.rule.DenyCalls = append(e.rule.DenyCalls, x.entries()...)
}

// entries gives our rules for it: none when it grants nothing, two when it
// speaks of a WebSocket's handshake and messages at once.
func (x *call) entries() []CallRule {
	x.object(x.node, "rules", object{
		"method":         func(c *yaml.Node) { x.method, _ = x.str(c, "method") },
		"path":           func(c *yaml.Node) { x.Path = x.one(c, "path") },
		"command":        func(*yaml.Node) { x.dead = "SQL is not inspected" },
		"query":          func(c *yaml.Node) { x.Query = x.named(c, "query") },
		"operation_type": func(c *yaml.Node) { x.Operation = lower(c) },
		"operation_name": func(c *yaml.Node) { x.OperationName = x.one(c, "operation_name") },
		"fields":         func(c *yaml.Node) { x.Fields = x.many(c, "fields") },
		"tool":           func(c *yaml.Node) { x.Tool = x.matcher(c, "tool") },
		"params":         x.params,
	})
	out := shapes[x.rule.Protocol](x)
	if x.dead != "" {
		x.note(deadKind[x.deny], x.node, x.CallRule.String(), "left out: "+x.dead)
		return nil
	}
	return out
}

// A rule that falls out narrows an allow-list; a deny rule only falls out
// where OpenShell's matches nothing either.
var deadKind = map[bool]string{false: Narrower, true: Same}

// shapes turns the fields into those of each protocol.
var shapes = map[string]func(*call) []CallRule{
	"http":      (*call).http,
	"graphql":   (*call).graphql,
	"websocket": (*call).websocket,
	"mcp":       (*call).mcp,
	"json-rpc":  (*call).jsonRPC,
}

// kill says why the rule matches nothing in OpenShell.
func (x *call) kill(why string, when bool) {
	if when && x.dead == "" {
		x.dead = why
	}
}

func (x *call) http() []CallRule {
	x.kill("only HTTP fields mean anything for rest", !x.deny && (x.graph() || x.tools()))
	x.kill("WEBSOCKET_TEXT is for protocol: websocket", x.method == "WEBSOCKET_TEXT")
	return []CallRule{x.request()}
}

// request gives the part that HTTP sees. OpenShell requires method and path.
func (x *call) request() CallRule {
	c := CallRule{Method: strings.ToUpper(x.method), Path: x.Path, Query: x.Query, Line: x.Line}
	x.kill("a rule without method matches nothing", c.Method == "")
	x.kill("a rule without path matches nothing", c.Path == "" && !x.deny)
	if c.Method != "*" && !methodForm.MatchString(c.Method) {
		x.kill("its method is none", !x.deny)
		c.Method = "*"
	}
	if c.Path == "/**" || c.Path == "**" {
		c.Path = ""
	}
	return c
}

// operations gives the part that GraphQL sees.
func (x *call) operations() CallRule {
	x.kill("a GraphQL rule without operation_type matches nothing", x.Operation == "")
	x.kill("its operation_type is none", !slices.Contains([]string{"", "*", "query", "mutation", "subscription"}, x.Operation))
	return CallRule{Operation: x.Operation, OperationName: x.OperationName, Fields: x.Fields, Line: x.Line}
}

func (x *call) graphql() []CallRule {
	if x.deny && x.method != "" {
		return x.also(x.request())
	}
	x.kill("method, path and tool mean nothing for graphql", !x.deny && (x.method != "" || x.Path != "" || len(x.Query) > 0 || x.tools()))
	return []CallRule{x.operations()}
}

// also adds the operations that a deny rule names beside requests: OpenShell
// matches the two apart from each other.
func (x *call) also(cs ...CallRule) []CallRule {
	if x.Operation == "" {
		return cs
	}
	return append(cs, x.operations())
}

func (x *call) websocket() []CallRule {
	if x.method == "" && x.Operation != "" {
		return []CallRule{x.operations()}
	}
	x.kill("an operation is no handshake", !x.deny && x.graph())
	shake := x.request()
	frames := shake
	frames.Method, frames.Frame = "", "text"
	both := shake.Method
	shake.Method = "GET"
	switch both {
	case "GET":
		return x.also(shake)
	case "WEBSOCKET_TEXT":
		return x.also(frames)
	}
	x.kill("its method is none of a WebSocket's", both != "*")
	return x.also(shake, frames)
}

// rpc reads the method as a pattern of ours.
func (x *call) rpc() string {
	if n := lookup(x.node, "method"); n != nil && strings.ContainsAny(x.method, `[]{}\`) {
		return x.foreign(n, x.method, "method")
	}
	return x.method
}

func (x *call) mcp() []CallRule {
	x.kill("only method, tool and params.name mean anything for mcp", !x.deny && (x.graph() || x.Path != "" || len(x.Query) > 0))
	c := CallRule{RPC: x.rpc(), Tool: x.Tool, Line: x.Line}
	x.kill("a rule without method needs allow_all_known_mcp_methods", c.RPC == "" && !x.all && !(x.deny && c.tools()))
	if c.tools() {
		x.kill("a tool belongs to tools/call", c.RPC != "" && !wide(c.RPC, toolCall))
		c.RPC = ""
	} else if c.RPC == "" {
		c.RPC = "*"
	}
	if !x.deny && c.RPC == "*" && x.all {
		return nil // the endpoint's own profile
	}
	return []CallRule{c}
}

func (x *call) jsonRPC() []CallRule {
	x.kill("a rule without method matches nothing", x.method == "")
	x.kill("only method means anything for json-rpc", !x.deny && (x.graph() || x.tools() || x.Path != "" || len(x.Query) > 0))
	return []CallRule{{RPC: x.rpc(), Line: x.Line}}
}

// one reads one pattern, in our language.
func (x *call) one(n *yaml.Node, what string) string {
	s, ok := x.str(n, what)
	if !ok {
		return ""
	}
	special := `[]{}\`
	if what == "path" {
		special += "?"
	}
	if strings.ContainsAny(s, special) {
		s = x.foreign(n, s, what)
	}
	if what == "path" && s != "" && x.dead == "" {
		return x.foreignPath(n, s)
	}
	return s
}

// foreign settles a pattern of characters that ours are not: a denial gets
// stars in their place, which match more; an allowance falls out.
func (x *call) foreign(n *yaml.Node, s, what string) string {
	if !x.deny {
		x.dead = "only * and ? are patterns here, and only * in paths"
		return s
	}
	wider := starred(s)
	x.note(Narrower, n, what+" "+quote(s), "denied as "+quote(wider)+", which is more")
	return wider
}

// starred puts a star in the place of each class, choice and escape.
func starred(s string) string {
	var b strings.Builder
	depth := 0
	for _, r := range s {
		switch {
		case r == '[' || r == '{':
			if depth++; depth == 1 {
				b.WriteByte('*')
			}
		case depth > 0 && (r == ']' || r == '}'):
			depth--
		case depth > 0:
		case r == ']' || r == '}':
			b.WriteByte('*')
		case r == '?' || r == '\\':
			b.WriteByte('*')
		default:
			b.WriteRune(r)
		}
	}
	if depth > 0 {
		return "**" // an unclosed class: anything
	}
	return b.String()
}

func (x *call) foreignPath(n *yaml.Node, s string) string {
	c := *n
	c.Value = s
	switch {
	case x.deny && (!strings.HasPrefix(s, "/") || dotted(s) || strings.ContainsAny(s, "%#")):
		x.note(Narrower, n, "path "+quote(s), "denied for every path: it is no canonical one")
		return "**"
	case !x.deny && (!strings.HasPrefix(s, "/") && s != "**" || dotted(s) || strings.ContainsAny(s, "%#")):
		x.dead = "no canonical path matches " + quote(s)
		return s
	case !x.deny && strings.Contains(strings.ReplaceAll(s, "**", ""), "*"):
		x.note(Narrower, n, "path "+quote(s), "a star ends at a slash; OpenShell's page says that it does not, its code that it does")
	}
	return x.pathGlob(&c)
}

func (x *call) many(n *yaml.Node, what string) []string {
	var out []string
	x.list(n, what, func(c *yaml.Node) { out = append(out, x.one(c, what)) })
	return out
}

// matcher reads a glob, or {any: [globs]}.
func (x *call) matcher(n *yaml.Node, what string) (out []string) {
	if n.Kind == yaml.ScalarNode {
		return []string{x.one(n, what)}
	}
	x.object(n, what, object{
		"any":  func(c *yaml.Node) { out = x.many(c, what) },
		"glob": func(c *yaml.Node) { out = append(out, x.one(c, what)) },
	})
	x.kill("a choice of nothing matches nothing", len(out) == 0)
	return out
}

func (x *call) named(n *yaml.Node, what string) map[string][]string {
	out := map[string][]string{}
	if n.Kind != yaml.MappingNode {
		x.fail(n, describe(n), "a mapping for "+what, "write {name: pattern}")
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if k, ok := x.str(n.Content[i], "a name in "+what); ok {
			out[k] = x.matcher(n.Content[i+1], what)
		}
	}
	return out
}

// params: OpenShell matches a tool's name there, and nothing else.
func (x *call) params(n *yaml.Node) {
	x.object(n, "params", object{"name": func(c *yaml.Node) { x.Tool = x.matcher(c, "params.name") }})
}
