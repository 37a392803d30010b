package inspect

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"unicode"

	"github.com/clawbox/clawbox/policies"
)

const (
	maxBatch = 100
	// Answered is the RPC of a JSON-RPC message that answers a call of the
	// server's; in MCP (sampling, elicitation, roots) it is empty. JSON-RPC
	// reserves names that begin with "rpc.": no call can have it.
	Answered = "rpc.response"
	toolCall = "tools/call"
)

// rpc reads JSON-RPC 2.0 over HTTP: a POST of one call or a batch.
func (q *request) rpc() *Refusal {
	if q.in.Method != http.MethodPost {
		return refuse(BadRPC, "POST it", "got JSON-RPC by %s", q.in.Method).as(http.StatusMethodNotAllowed)
	}
	b, bad := q.body("application/json", "application/json-rpc", "application/jsonrequest")
	if bad != nil {
		return bad
	}
	return q.calls(b)
}

// calls adds the messages of a JSON-RPC document.
func (q *request) calls(b []byte) *Refusal {
	msgs, ids, err := readCalls(b, q.base.Protocol == "mcp")
	if err != nil {
		return refuse(BadRPC, "send JSON-RPC 2.0, each key once", "the message holds %v", err)
	}
	for _, m := range msgs {
		q.add(m)
	}
	q.ids = ids
	return nil
}

// readCalls reads a document: one message, or a batch, with the ids of those
// that want an answer.
func readCalls(b []byte, mcp bool) (msgs []policies.Message, ids []json.RawMessage, err error) {
	v, err := readJSON(b)
	if err != nil {
		return nil, nil, err
	}
	batch, ok := v.([]any)
	if !ok {
		batch = []any{v}
	}
	if len(batch) == 0 || len(batch) > maxBatch {
		return nil, nil, fmt.Errorf("a batch of %d, want 1 to %d", len(batch), maxBatch)
	}
	for _, v := range batch {
		o, ok := v.(object)
		if !ok {
			return nil, nil, fmt.Errorf("%.40v where an object belongs", v)
		}
		m, id, err := readCall(o, mcp)
		if err != nil {
			return nil, nil, err
		}
		msgs = append(msgs, m)
		if id != nil {
			ids = append(ids, id)
		}
	}
	return msgs, ids, nil
}

// readCall reads one call, notification or answer.
func readCall(o object, mcp bool) (m policies.Message, id json.RawMessage, err error) {
	if err := known(o, false, "jsonrpc", "method", "params", "id", "result", "error"); err != nil {
		return m, nil, err
	}
	if o["jsonrpc"] != "2.0" {
		return m, nil, fmt.Errorf(`"jsonrpc": %.20v, want "2.0"`, o["jsonrpc"])
	}
	if id, err = readID(o); err != nil {
		return m, nil, err
	}
	_, res := o["result"]
	_, bad := o["error"]
	v, call := o["method"]
	if res || bad {
		if call || res == bad || id == nil {
			return m, nil, fmt.Errorf("a mixture of call and answer")
		}
		if mcp {
			return m, nil, nil
		}
		return policies.Message{RPC: Answered}, nil, nil
	}
	if m.RPC, call = v.(string); !call || m.RPC == "" || strings.HasPrefix(m.RPC, "rpc.") {
		return m, nil, fmt.Errorf(`"method": %.40v, want a name that does not begin with "rpc."`, v)
	}
	if strings.ContainsFunc(m.RPC, func(r rune) bool { return r == ' ' || !unicode.IsPrint(r) }) {
		return m, nil, fmt.Errorf("method %.40q, with characters that no method has", m.RPC)
	}
	switch p := o["params"].(type) {
	case nil, object, []any:
		if mcp {
			err = readTool(&m, p)
		}
	default:
		err = fmt.Errorf(`"params" that are neither an object nor an array`)
	}
	return m, id, err
}

// readID gives an id as it stands, nil for none. A null id could not be told
// from the answer to something unreadable; MCP forbids it.
func readID(o object) (json.RawMessage, error) {
	v, has := o["id"]
	switch v := v.(type) {
	case string, json.Number:
		return json.Marshal(v)
	case nil:
		if !has {
			return nil, nil
		}
	}
	return nil, fmt.Errorf(`"id" that is neither a string nor a number`)
}

// readTool reads the parameters of an MCP call; those of tools/call name the
// tool and its arguments.
func readTool(m *policies.Message, params any) error {
	p, ok := params.(object)
	if params != nil && !ok {
		return fmt.Errorf(`"params" that are no object`)
	}
	if m.RPC != toolCall {
		if fold(m.RPC) == toolCall {
			return fmt.Errorf("method %q, which some servers read as %q", m.RPC, toolCall)
		}
		return nil
	}
	if err := known(p, false, "name", "arguments"); err != nil {
		return err
	}
	if m.Tool, ok = p["name"].(string); !ok || m.Tool == "" {
		return fmt.Errorf(`no tool's "name" in "params"`)
	}
	args, has := p["arguments"]
	if m.Args, ok = args.(object); has && args != nil && !ok {
		return fmt.Errorf(`"arguments" that are no object`)
	}
	if m.Args == nil {
		m.Args = object{}
	}
	return nil
}

// mcp reads MCP's Streamable HTTP (revisions 2025-03-26 and later) and the
// older HTTP with SSE: POST carries JSON-RPC, GET opens the server's stream,
// DELETE ends the session. The last two are messages without RPC: method and
// path are all there is to judge.
func (q *request) mcp() *Refusal {
	if bad := q.mcpHeaders(); bad != nil {
		return bad
	}
	switch q.in.Method {
	case http.MethodPost:
		b, bad := q.body("application/json")
		if bad == nil {
			bad = q.calls(b)
		}
		if bad == nil {
			bad = q.mirrored()
		}
		return bad
	case http.MethodGet:
		if !strings.Contains(strings.ToLower(q.in.Header.Get("Accept")), "text/event-stream") {
			return refuse(BadRPC, "accept text/event-stream", "got an MCP GET that accepts %.80q", q.in.Header.Get("Accept")).as(http.StatusNotAcceptable)
		}
	case http.MethodDelete:
		if q.in.Header.Get("Mcp-Session-Id") == "" {
			return refuse(BadRPC, "name the session", "got an MCP DELETE without Mcp-Session-Id")
		}
	default:
		return refuse(BadRPC, "use POST, GET or DELETE", "got MCP by %s", q.in.Method).as(http.StatusMethodNotAllowed)
	}
	q.add(policies.Message{})
	return q.empty()
}

// mcpHeaders wants a session id of visible ASCII and a version that is a date
// or DRAFT-…: other characters have no place in either.
func (q *request) mcpHeaders() *Refusal {
	for _, h := range []string{"Mcp-Session-Id", "Mcp-Protocol-Version"} {
		if v := q.in.Header.Get(h); strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r >= 0x7f }) || len(v) > 1024 {
			return refuse(BadHeader, "send visible ASCII", "got %s: %.40q", h, v)
		}
	}
	return nil
}

// mirrored compares the headers in which newer clients repeat method and tool
// with the body: a server may route by either.
func (q *request) mirrored() *Refusal {
	m := q.msgs[0]
	for h, want := range map[string]string{"Mcp-Method": m.RPC, "Mcp-Name": m.Tool} {
		v := q.in.Header.Get(h)
		if v == "" || v == want && len(q.msgs) == 1 || h == "Mcp-Name" && m.RPC != toolCall {
			continue
		}
		return refuse(BadRPC, "let header and body agree", "got %s: %.80q for %q", h, v, want)
	}
	return nil
}
