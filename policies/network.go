package policies

import (
	"net/netip"
	"net/url"
	"slices"
)

// HostRule matches destinations. Exactly one of Host, Domain and CIDR is set.
// In deny rules only these, Ports and Line mean anything.
type HostRule struct {
	// Host is an exact name or IP literal; "*": in allow rules any name, in
	// deny rules any name or literal. Patterns in allow rules: "*.example.com"
	// is one label below, "**.example.com" one or more, "a-*.example.com" one
	// label that begins so. In deny rules a star stands for anything, dots
	// included, and "*.example.com" is also example.com itself.
	Host   string
	Domain string // this name and every name below it
	CIDR   string // addresses written as literals
	Ports  []int  // ascending; empty: 443 and 80 in allow rules, every port in deny rules

	// Binaries are the programs that may use it, the connecting one or any of
	// its ancestors: absolute paths; "/dir/" is everything below it; "*" is
	// any run without a slash, "**" any run. Empty: any program.
	Binaries []string
	// Protocol says how the connection is treated: "" by name only (TLS by
	// SNI, HTTP by Host), "tcp" opaque, or one of the inspected ones: "http",
	// "graphql", "websocket", "mcp", "json-rpc".
	Protocol string
	// Inspect says that TLS is terminated with the sandbox's own CA. Without
	// it an inspected protocol is spoken in clear, and TLS there is refused.
	Inspect bool
	// Path bounds the rule to requests whose path it matches, a glob as in
	// CallRule; "": all. The rule with the longest one that matches governs.
	Path string
	// Access is "read-only", "read-write", "full" or "". It adds to Calls;
	// without both, everything of the protocol is allowed.
	Access    string
	Calls     []CallRule
	DenyCalls []CallRule // win over Access and Calls
	// AllowedIPs are the networks that the name may lead to. Empty: public
	// addresses, and private ones that a rule with CIDR or a literal allows.
	AllowedIPs  []string
	Credentials []string // names of Policy.Credentials that egress puts in here
	Budget      LinkBudget

	Line int    // where it stands in its file; 0: added by WithAllow
	file string // the name of that file
}

// CallRule matches messages of an inspected protocol; an empty field matches
// anything. Patterns: "*" is a run of characters, "?" one; in paths of allow
// rules a run ends at a slash, and "**" does not. In deny rules patterns match
// whatever some reader could take them for: any case, runs across slashes,
// "/x/**" also /x, "/**/x" also /x.
type CallRule struct {
	Method string              // http, websocket (the handshake), graphql: "GET" also allows HEAD
	Path   string              // http, websocket, graphql
	Query  map[string][]string // parameter: patterns; in allow rules every value must match one, in deny rules any

	Operation     string   // graphql, websocket: "query", "mutation" or "subscription"
	OperationName string   // pattern
	Fields        []string // patterns of top-level fields: in allow rules all must match, in deny rules any

	RPC  string              // mcp, json-rpc: method, a pattern
	Tool []string            // mcp: patterns of the tool's name; they imply RPC "tools/call"
	Args map[string][]string // mcp: argument, dotted for nested ones: patterns; as Query

	Frame string // websocket: "text", "binary" or "*" for both; "": the handshake where Method is set, else anything
	Line  int
}

// LinkBudget bounds what goes over one rule during one run of an agent; 0
// means no bound.
type LinkBudget struct {
	Up, Down    int64 // bytes
	PerMinute   int   // requests where inspected, else connections
	Connections int   // at once
}

// Message is one message on an inspected connection, parsed and canonical.
// Every message of a request must be allowed by itself.
type Message struct {
	Protocol string // "http", "graphql", "websocket", "mcp" or "json-rpc"

	// The HTTP request that carries it, or that opened the WebSocket.
	Method string
	Path   string // canonical: absolute, decoded once, no dot segments, no doubled slashes
	Query  url.Values

	Operation     string   // GraphQL: "query", "mutation" or "subscription"; on a WebSocket also Control
	OperationName string   // "" when anonymous
	Fields        []string // its top-level fields

	RPC  string         // JSON-RPC method; "" in MCP: a stream (GET), the end of a session (DELETE) or an answer to the server (POST)
	Tool string         // MCP tools/call: params.name
	Args map[string]any // MCP tools/call: params.arguments, as encoding/json decodes them

	Frame string // WebSocket: "text" or "binary"; "": the handshake
}

// LeadsTo says whether AllowedIPs, where there are any, have a.
func (h HostRule) LeadsTo(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return len(h.AllowedIPs) == 0 || slices.ContainsFunc(h.AllowedIPs, func(net string) bool { return within(a, net) })
}
