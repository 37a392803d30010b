package policies

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// toolCall is the MCP method whose calls name a tool.
const toolCall = "tools/call"

// allows reads the rule narrowly. A message that lacks what a field asks for
// is not covered.
func (c *CallRule) allows(m *Message) bool {
	return c.allowsHTTP(m) && c.allowsGraph(m) && c.allowsRPC(m) && c.allowsFrame(m)
}

func (c *CallRule) allowsHTTP(m *Message) bool {
	method := c.Method == "" || c.Method == "*" || c.Method == m.Method || c.Method == "GET" && m.Method == "HEAD"
	if !method || c.Path != "" && !narrow(c.Path, m.Path, '/') {
		return false
	}
	for k, patterns := range c.Query {
		if len(m.Query[k]) == 0 || !everyValue(patterns, spelled(m.Query, k, false)) {
			return false
		}
	}
	return true
}

func (c *CallRule) allowsGraph(m *Message) bool {
	switch {
	case c.graph() && (m.Operation == "" || m.Operation == Control):
		return false
	case c.Operation != "" && c.Operation != "*" && c.Operation != m.Operation:
		return false
	case c.OperationName != "" && !narrow(c.OperationName, m.OperationName, 0):
		return false
	}
	return len(c.Fields) == 0 || every(c.Fields, m.Fields)
}

func (c CallRule) graph() bool {
	return c.Operation != "" || c.OperationName != "" || len(c.Fields) > 0
}

func (c *CallRule) allowsRPC(m *Message) bool {
	if c.RPC != "" && (m.RPC == "" || !narrow(c.RPC, m.RPC, 0)) {
		return false
	}
	if !c.tools() {
		return true
	}
	if m.RPC != toolCall || len(c.Tool) > 0 && !every(c.Tool, []string{m.Tool}) {
		return false
	}
	for k, patterns := range c.Args {
		if !single(m.Args, k) || !everyValue(patterns, leavesOf(m.Args, k)) {
			return false
		}
	}
	return true
}

func (c CallRule) tools() bool { return len(c.Tool) > 0 || len(c.Args) > 0 }

// allowsFrame: a rule that names a method speaks of the handshake, one that
// names a frame of frames. GraphQL operations on a WebSocket come in text.
func (c *CallRule) allowsFrame(m *Message) bool {
	switch {
	case m.Protocol != "websocket":
		return c.Frame == ""
	case c.Frame == "*":
		return m.Frame != ""
	case c.Frame != "":
		return c.Frame == m.Frame
	case c.graph():
		return m.Frame == "text"
	case c.Method == "" || c.Method == "*":
		return true
	}
	return m.Frame == ""
}

// every says that there are values, and that each matches one of the patterns.
func every(patterns, values []string) bool {
	return len(values) > 0 && !slices.ContainsFunc(values, func(v string) bool {
		return !slices.ContainsFunc(patterns, func(p string) bool { return narrow(p, v, 0) })
	})
}

// denies reads the rule widely: one value that matches is enough.
func (c *CallRule) denies(m *Message) bool {
	return c.deniesHTTP(m) && c.deniesGraph(m) && c.deniesRPC(m) && c.deniesFrame(m)
}

func (c *CallRule) deniesHTTP(m *Message) bool {
	method := c.Method == "" || wide(c.Method, m.Method) || c.Method == "GET" && m.Method == "HEAD"
	if !method || c.Path != "" && !deniesPath(c.Path, m.Path) {
		return false
	}
	for k, patterns := range c.Query {
		if !any1(patterns, readings(spelled(m.Query, k, true))) {
			return false
		}
	}
	return true
}

func (c *CallRule) deniesGraph(m *Message) bool {
	switch {
	case c.graph() && (m.Operation == "" || m.Operation == Control):
		return false
	case c.Operation != "" && !wide(c.Operation, m.Operation):
		return false
	case c.OperationName != "" && !wide(c.OperationName, m.OperationName):
		return false
	}
	return len(c.Fields) == 0 || any1(c.Fields, m.Fields)
}

func (c *CallRule) deniesRPC(m *Message) bool {
	if c.RPC != "" && (m.RPC == "" || !wide(c.RPC, m.RPC)) {
		return false
	}
	if !c.tools() {
		return true
	}
	if m.RPC != toolCall || len(c.Tool) > 0 && !any1(c.Tool, []string{m.Tool}) {
		return false
	}
	for k, patterns := range c.Args {
		if !any1(patterns, readings(leavesOf(m.Args, k))) {
			return false
		}
	}
	return true
}

func (c *CallRule) deniesFrame(m *Message) bool {
	switch {
	case c.Frame == "*":
		return m.Frame != ""
	case c.Frame != "":
		return c.Frame == m.Frame
	}
	return true
}

func any1(patterns, values []string) bool {
	return slices.ContainsFunc(values, func(v string) bool {
		return slices.ContainsFunc(patterns, func(p string) bool { return wide(p, v) })
	})
}

// single says whether there is a single value at a dotted path: an allow rule
// speaks of texts, numbers and booleans only.
func single(args map[string]any, path string) bool {
	at, ok := args[path]
	if !ok {
		head, rest, dotted := strings.Cut(path, ".")
		inner, nested := args[head].(map[string]any)
		return dotted && nested && single(inner, rest)
	}
	_, ok = text(at)
	return ok
}

// leavesOf gives every single value at or below any reading of a dotted path,
// keys in any case.
func leavesOf(args map[string]any, path string) (out []string) {
	for k, v := range args {
		if wide(path, k) {
			out = append(out, leaves(v)...)
		}
		for i := range len(path) {
			if path[i] != '.' || !wide(path[:i], k) {
				continue
			}
			if inner, ok := v.(map[string]any); ok {
				out = append(out, leavesOf(inner, path[i+1:])...)
			}
		}
	}
	return out
}

func leaves(v any) (out []string) {
	switch v := v.(type) {
	case map[string]any:
		for _, x := range v {
			out = append(out, leaves(x)...)
		}
	case []any:
		for _, x := range v {
			out = append(out, leaves(x)...)
		}
	default:
		if s, ok := text(v); ok {
			out = append(out, s)
		} else if v != nil {
			out = append(out, fmt.Sprint(v)) // no type that a JSON reader of ours gives: still looked at
		}
	}
	return out
}

// text writes a JSON scalar as it was compared; ok is false for null and for
// what is not a scalar.
func text(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case bool:
		return strconv.FormatBool(v), true
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), true
	case json.Number, int, int64, uint64:
		return fmt.Sprint(v), true
	}
	return "", false
}
