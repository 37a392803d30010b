package policies

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// endpoint is one of OpenShell's, half read.
type endpoint struct {
	*shell
	node  *yaml.Node
	rule  HostRule
	rules *yaml.Node // its allow rules, read when the protocol is known
	deny  *yaml.Node
	all   bool // mcp.allow_all_known_mcp_methods
	gone  bool // it cannot be said here, so it is left out
}

func (e *endpoint) read() {
	r := &e.rule
	ports := []int(nil)
	e.object(e.node, "endpoints", object{
		"host":        func(c *yaml.Node) { r.Host = e.hostField(c, Allow) },
		"port":        func(c *yaml.Node) { ports = append(ports, e.portOf(c)...) },
		"ports":       func(c *yaml.Node) { ports = append(ports, e.ports(c)...) },
		"path":        func(c *yaml.Node) { e.scope(c) },
		"protocol":    e.protocol,
		"tls":         e.tls,
		"enforcement": func(c *yaml.Node) { e.enforcement(c) },
		"access":      func(c *yaml.Node) { e.word(c, "access", &r.Access, "read-only", "read-write", "full") },
		"rules":       func(c *yaml.Node) { e.rules = c },
		"deny_rules":  func(c *yaml.Node) { e.deny = c },
		"allowed_ips": func(c *yaml.Node) { r.AllowedIPs = e.ips(c) },

		"allow_encoded_slash":             e.flag("encoded slashes in paths are refused"),
		"websocket_credential_rewrite":    e.flag("credentials are put into headers only"),
		"request_body_credential_rewrite": e.flag("credentials are put into headers only"),
		"allow_uninspected_credentials":   e.flag("credentials are put in on inspected connections only"),
		"credential_signing":              e.lost("requests are not signed: the service will refuse them"),
		"signing_service":                 e.lost("requests are not signed"),
		"signing_region":                  e.lost("requests are not signed"),
		"credential_binding":              e.binding,
		"persisted_queries":               e.lost("a query that is not in the request is refused"),
		"graphql_persisted_queries":       e.lost("a query that is not in the request is refused"),
		"graphql_max_body_bytes":          e.lost("the appliance bounds what is inspected"),
		"json_rpc":                        e.options,
		"mcp":                             e.options,
	})
	slices.Sort(ports)
	r.Ports = slices.Compact(ports)
}

func (e *endpoint) flag(now string) func(*yaml.Node) {
	return func(c *yaml.Node) {
		on := false
		if e.boolean(c, "endpoints", &on); on {
			e.note(Narrower, c, fieldAt(e.node, c)+": true", now)
		}
	}
}

func (e *endpoint) lost(now string) func(*yaml.Node) {
	return func(c *yaml.Node) { e.note(Lost, c, fieldAt(e.node, c), now) }
}

// fieldAt finds the name under which a value stands.
func fieldAt(n, v *yaml.Node) string {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i+1] == v {
			return n.Content[i].Value
		}
	}
	return ""
}

func (e *endpoint) scope(c *yaml.Node) {
	s, ok := e.str(c, "path")
	if ok && strings.ContainsAny(s, `?[]{}`) {
		e.leave(c, "path "+quote(s), "only * and ** are patterns here")
		return
	}
	if ok && s != "/**" && s != "**" {
		e.rule.Path = e.pathGlob(c)
	}
}

// leave marks the endpoint as one that is not taken over.
func (e *endpoint) leave(c *yaml.Node, what, why string) {
	e.gone = true
	e.note(Narrower, c, what, "the endpoint is left out: "+why)
}

// protocols names OpenShell's in our words.
var protocols = map[string]string{
	"tcp": "tcp", "rest": "http", "graphql": "graphql", "websocket": "websocket", "mcp": "mcp", "json-rpc": "json-rpc",
}

func (e *endpoint) protocol(c *yaml.Node) {
	p, ok := protocols[lower(c)]
	switch {
	case ok:
		e.rule.Protocol, e.rule.Inspect = p, slices.Contains(inspected, p)
	case lower(c) == "sql":
		e.leave(c, "protocol: sql", "SQL is not inspected")
	default:
		e.fail(c, describe(c), "tcp, rest, graphql, websocket, mcp, json-rpc or sql for protocol", "correct the word, or leave the field out")
	}
}

func (e *endpoint) tls(c *yaml.Node) {
	mode := ""
	if e.word(c, "tls", &mode, "skip", "terminate", "passthrough"); mode != "skip" {
		e.note(Same, c, "tls: "+mode, "means nothing there either: TLS is ended where the protocol is inspected")
		return
	}
	if p := lookup(e.node, "protocol"); p != nil && lower(p) != "tcp" {
		e.leave(c, "tls: skip beside protocol: "+p.Value, "what is not decrypted cannot be inspected")
	}
}

func (e *endpoint) enforcement(c *yaml.Node) {
	mode := ""
	if e.word(c, "enforcement", &mode, "enforce", "audit"); mode == "audit" {
		e.note(Narrower, c, "enforcement: audit", "enforced: what the rules do not allow is denied, not only logged")
	}
}

func (e *endpoint) binding(c *yaml.Node) {
	e.object(c, "credential_binding", object{"provider": func(*yaml.Node) {}})
	e.note(Lost, c, "credential_binding", "providers have no counterpart: add the secret to credentials and its name to this rule")
}

func (e *endpoint) options(c *yaml.Node) {
	e.object(c, fieldAt(e.node, c), object{
		"max_body_bytes": func(m *yaml.Node) { e.note(Lost, m, "max_body_bytes", "the appliance bounds what is inspected") },
		"strict_tool_names": func(m *yaml.Node) {
			if !yes(m) {
				e.note(Narrower, m, "strict_tool_names: false", "tool names are letters, digits and _ . / - always")
			}
		},
		"allow_all_known_mcp_methods": func(m *yaml.Node) { e.boolean(m, "allow_all_known_mcp_methods", &e.all) },
	})
}

// settle completes the rule; false when it grants nothing.
func (e *endpoint) settle() bool {
	r := &e.rule
	switch {
	case e.gone:
		return false
	case r.Host == "" && len(r.AllowedIPs) == 0:
		e.fail(e.node, "an endpoint without host or allowed_ips", "one of them", "add host: NAME")
	case len(r.Ports) == 0:
		e.fail(e.node, "an endpoint without port", "one at least", "add port: 443")
	case r.Protocol == "tcp" && (r.Host == "" || !r.named()):
		e.fail(e.node, "protocol: tcp for an address", "a name", "leave protocol out")
	case e.rules != nil && r.Access != "":
		e.fail(e.node, "an endpoint with access and rules", "one of them", "remove access, or the rules")
	case !r.Inspected() && (e.rules != nil || e.deny != nil || r.Access != ""):
		e.fail(e.node, "an endpoint with access, rules or deny_rules and without an inspected protocol", "protocol: rest, or the like", "add protocol, or remove them")
	case e.filtered(r.Host):
		e.leave(e.node, orAny(r.Host), "a middleware covers it, and there is none here")
		return false
	default:
		return e.settleCalls()
	}
	return false
}

func orAny(host string) string {
	if host == "" {
		return "any host"
	}
	return host
}

func (e *endpoint) settleCalls() bool {
	r := &e.rule
	e.settleAddress()
	if !r.Inspected() {
		r.Access = ""
		return true
	}
	if lookup(e.node, "enforcement") == nil {
		e.note(Narrower, e.node, "enforcement, left out", "enforced: OpenShell only logs unless enforcement: enforce is written")
	}
	if e.rules != nil {
		e.list(e.rules, "rules", e.allowRule)
	}
	if e.deny != nil {
		e.list(e.deny, "deny_rules", e.denyRule)
	}
	e.settleMCP()
	if r.Protocol == "websocket" && r.Access != "full" {
		e.note(Narrower, e.node, "binary frames", "refused; OpenShell relays them. Allow them with {frame: binary}")
	}
	if r.Access == "" && len(r.Calls) == 0 {
		e.note(Same, e.node, r.String(), "left out: its rules allow nothing that can be said here")
		return false
	}
	return true
}

// settleAddress: OpenShell lets names that are written out lead to private
// addresses.
func (e *endpoint) settleAddress() {
	r := &e.rule
	if !r.named() {
		if r.AllowedIPs = nil; lookup(e.node, "allowed_ips") != nil {
			e.note(Same, e.node, "allowed_ips of an address", "left out: an address leads to itself")
		}
		return
	}
	if r.Host != "" && len(r.AllowedIPs) == 0 && !strings.Contains(r.Host, "*") {
		e.note(Narrower, nil, "hosts without allowed_ips", "none may lead to a private address; OpenShell lets exact names do so")
	}
}

// known are the methods of MCP (revision 2025-11-25) that clients send,
// without tools/call.
var known = []string{"initialize", "ping", "notifications/*", "tools/list", "resources/*", "prompts/*", "completion/complete", "logging/setLevel", "tasks/*"}

func (e *endpoint) settleMCP() {
	r := &e.rule
	if r.Protocol != "mcp" || !e.all {
		return
	}
	all := known
	if !slices.ContainsFunc(r.Calls, CallRule.tools) {
		all = append(slices.Clone(known), toolCall)
	}
	for _, k := range all {
		if !slices.ContainsFunc(r.Calls, func(c CallRule) bool { return c.RPC == k }) {
			r.Calls = append(r.Calls, CallRule{RPC: k, Line: e.node.Line})
		}
	}
	e.note(Same, e.node, "allow_all_known_mcp_methods", "the methods of the MCP specification; further ones must be listed")
}
