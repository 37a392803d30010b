package policies

import (
	"cmp"
	"slices"
	"strings"
)

// inspected are the protocols whose messages are judged one by one.
var inspected = []string{"http", "graphql", "websocket", "mcp", "json-rpc"}

// Inspected says whether messages on the rule's connections are judged by
// Decide, one Call each.
func (h HostRule) Inspected() bool { return slices.Contains(inspected, h.Protocol) }

// GraphQL says whether the rule's WebSocket carries GraphQL, so that its text
// frames must be parsed as operations.
func (h *HostRule) GraphQL() bool {
	return h.Protocol == "websocket" && (slices.ContainsFunc(h.Calls, CallRule.graph) || slices.ContainsFunc(h.DenyCalls, CallRule.graph))
}

// Control is the Operation of a message that keeps a GraphQL WebSocket alive
// and asks for nothing: connection_init, ping, pong, complete, and stop and
// connection_terminate of the older protocol.
const Control = "control"

// Endpoint gives the allow rule that governs a connection or, where r has a
// Message, the request with its path: which protocol is spoken there, whether
// TLS is terminated, which credentials and budget there are. Among several
// the strictest treatment governs: inspected before opaque, terminated before
// clear, the longest path that matches; and among equals one that allows the
// message. It does not say that r is allowed.
func (p *Policy) Endpoint(r Request) (HostRule, bool) {
	if p == nil {
		return HostRule{}, false
	}
	d, wrong := p.look(r)
	if wrong != "" || p.denial(d) != nil {
		return HostRule{}, false
	}
	rules := p.governing(d, r.Message)
	if len(rules) == 0 {
		return HostRule{}, false
	}
	// Credentials and budget are those of the rule that lets the message pass.
	rank := func(h *HostRule) (n int) {
		if n = 2 * treatment(h); r.Message != nil && h.Protocol == r.Message.Protocol {
			if _, ok := h.lets(r.Message); !ok {
				n++
			}
		}
		return n
	}
	return *slices.MinFunc(rules, func(a, b *HostRule) int { return cmp.Compare(rank(a), rank(b)) }), true
}

// treatment ranks rules, strictest first.
func treatment(h *HostRule) int {
	switch {
	case h.Inspected() && h.Inspect:
		return 0
	case h.Inspected():
		return 1
	case h.Protocol == "":
		return 2
	}
	return 3
}

// governing gives the rules that speak for a connection (m nil) or a message
// on it: those that admit the connection, without the opaque ones where any
// is inspected, and of these the ones with the most specific path.
func (p *Policy) governing(d destination, m *Message) []*HostRule {
	rules := p.speaking(d)
	if m == nil {
		return rules
	}
	rules = slices.DeleteFunc(rules, func(h *HostRule) bool { return !h.scoped(m.Path) })
	best := 0
	for _, h := range rules {
		best = max(best, len(h.Path))
	}
	return slices.DeleteFunc(rules, func(h *HostRule) bool { return len(h.Path) < best })
}

// speaking gives the rules that admit the connection, without the opaque ones
// where any is inspected.
func (p *Policy) speaking(d destination) (rules []*HostRule) {
	for _, h := range d.rules {
		if p.admits(h, d) == "" {
			rules = append(rules, h)
		}
	}
	if slices.ContainsFunc(rules, func(h *HostRule) bool { return h.Inspected() }) {
		rules = slices.DeleteFunc(rules, func(h *HostRule) bool { return !h.Inspected() })
	}
	return rules
}

// objection gives a rule with a more specific path than best, of which m's is
// another spelling, and which does not allow m: servers could take the request
// for one that this rule governs.
func (p *Policy) objection(d destination, m *Message, best int) *HostRule {
	for _, h := range p.speaking(d) {
		if len(h.Path) <= best || h.scoped(m.Path) || !h.resembles(m.Path) {
			continue
		}
		if _, ok := h.lets(m); !ok || h.Protocol != m.Protocol {
			return h
		}
	}
	return nil
}

func (h *HostRule) scoped(path string) bool { return h.Path == "" || narrow(h.Path, path, '/') }

func (p *Policy) decideCall(r Request) Decision {
	d, wrong := p.look(r)
	if wrong != "" {
		return deny(wrong)
	}
	if reach := p.decideReach(d); reach.Verdict != Allow {
		return reach
	}
	m := r.Message
	if !m.valid() {
		return deny(ReasonMessage)
	}
	if h, c := d.callDenial(m); h != nil {
		return h.becauseCall(Deny, ReasonCallDenied, "deny", c)
	}
	rules := p.governing(d, m)
	if len(rules) == 0 {
		return deny(ReasonCallUnlisted)
	}
	for _, h := range rules {
		if h.Inspected() && h.Protocol != m.Protocol {
			return h.because(Deny, ReasonProtocol, "allow "+h.String())
		}
	}
	if h := p.objection(d, m, len(rules[0].Path)); h != nil {
		return h.because(Deny, ReasonCallUnlisted, "allow "+h.String())
	}
	return callAllowance(rules, m)
}

func callAllowance(rules []*HostRule, m *Message) Decision {
	for _, h := range rules {
		if rule, ok := h.lets(m); ok {
			return h.because(Allow, ReasonCall, "allow "+h.String()+rule)
		}
	}
	d := deny(ReasonCallUnlisted)
	d.Rule = place(rules[0].file, rules[0].Line) + "allow " + rules[0].String()
	return d
}

// valid: only what a parser of ours gives is judged, and all else is denied.
func (m *Message) valid() bool {
	if m == nil || !slices.Contains(inspected, m.Protocol) || !strings.HasPrefix(m.Path, "/") || m.Method == "" {
		return false
	}
	segments := strings.Split(m.Path[1:], "/")
	for i, s := range segments {
		if s == "." || s == ".." || s == "" && i < len(segments)-1 {
			return false
		}
	}
	return !strings.ContainsFunc(m.Path, invisible) && m.whole()
}

// whole says that m has what its protocol's messages have.
func (m *Message) whole() bool {
	switch m.Protocol {
	case "graphql":
		return m.Operation != ""
	case "websocket":
		return m.Frame == "" || m.Frame == "text" || m.Frame == "binary"
	case "json-rpc":
		return m.RPC != ""
	case "mcp":
		return m.bare() || m.RPC != "" && (m.RPC == toolCall) == (m.Tool != "") && !strings.ContainsFunc(m.Tool, notTool)
	}
	return true
}

// notTool finds what MCP's specification does not want in a tool's name, so
// that no two names look alike.
func notTool(r rune) bool {
	return (r|0x20 < 'a' || r|0x20 > 'z') && (r < '0' || r > '9') && !strings.ContainsRune("_-./", r)
}

// bare messages are MCP's transport, not its methods: the stream of answers,
// the end of a session, and an answer to what the server asked.
func (m *Message) bare() bool {
	return m.Protocol == "mcp" && m.RPC == "" && (m.Method == "GET" || m.Method == "DELETE" || m.Method == "POST")
}

// callDenial finds the deny rule that names m. A rule whose binaries could
// include an unknown program counts, and so does one with a shorter path than
// that which governs.
func (d destination) callDenial(m *Message) (*HostRule, *CallRule) {
	for _, h := range d.rules {
		if len(h.DenyCalls) == 0 || d.program != "" && !h.runs(d) || h.Path != "" && !deniesPath(h.Path, m.Path) {
			continue
		}
		for j := range h.DenyCalls {
			if c := &h.DenyCalls[j]; c.denies(m) {
				return h, c
			}
		}
	}
	return nil, nil
}

// becauseCall quotes an entry of calls or denyCalls, with its place.
func (h *HostRule) becauseCall(v Verdict, reason, word string, c *CallRule) Decision {
	return Decision{Verdict: v, Reason: reason, Rule: place(h.file, max(c.Line, h.Line)) + word + " " + h.String() + " " + c.String()}
}

// lets says which part of an allow rule covers m.
func (h *HostRule) lets(m *Message) (string, bool) {
	if !h.Inspected() || h.Access == "" && len(h.Calls) == 0 {
		return "", true
	}
	if h.Access != "" && accessOf(m) <= levels[h.Access] {
		return " " + h.Access, true
	}
	if m.bare() {
		return "", true
	}
	// Many servers read operations out of binary messages too.
	graph := h.GraphQL() && (m.Frame == "text" || m.Frame != "" && m.Operation != "")
	if m.Operation == Control && m.Frame == "text" && slices.ContainsFunc(h.Calls, CallRule.graph) {
		return "", true // it belongs to the operations that are allowed
	}
	for i := range h.Calls {
		if graph && m.Operation != Control && !h.Calls[i].graph() {
			continue // a rule for any text would let every operation through
		}
		if h.Calls[i].allows(m) {
			return " " + h.Calls[i].String(), true
		}
	}
	return "", false
}

// The access presets, each with all that the one before it allows.
var levels = map[string]int{"read-only": 1, "read-write": 2, "full": 3}

// The least preset that covers each method, operation and frame; what is not
// named here needs "full".
var (
	methodLevels    = map[string]int{"GET": 1, "HEAD": 1, "OPTIONS": 1, "POST": 2, "PUT": 2, "PATCH": 2}
	operationLevels = map[string]int{"query": 1, "mutation": 2}
	frameLevels     = map[string]int{"": 1, "text": 2}
)

// accessOf gives the level that m needs. MCP and JSON-RPC know no levels: what
// a method does there, only its server knows.
func accessOf(m *Message) int {
	level, key := methodLevels, m.Method
	switch m.Protocol {
	case "graphql":
		level, key = operationLevels, m.Operation
	case "websocket":
		level, key = frameLevels, m.Frame
	case "mcp", "json-rpc":
		return levels["full"]
	}
	if n, ok := level[key]; ok {
		return n
	}
	return levels["full"]
}
