package inspect

import (
	"bytes"
	"unicode/utf8"

	"github.com/clawbox/clawbox/policies"
)

// readMessage gives the meanings of one message, by the rule's protocol.
func readMessage(base policies.Message, text bool, b []byte) (msgs []policies.Message, bad *Refusal) {
	switch base.Protocol {
	case "websocket":
		return readText(base, text, b)
	case "mcp", "json-rpc":
		q := request{base: base}
		if !text {
			return nil, refuse(BadRPC, "send text", "got a binary message for %s", base.Protocol)
		}
		bad = q.calls(b)
		return q.msgs, bad
	}
	return nil, refuse(BadFrame, "", "got a WebSocket for protocol %q", base.Protocol)
}

// readText looks into text for GraphQL over WebSocket (graphql-transport-ws,
// and the older graphql-ws), whichever subprotocol was agreed on: the client
// chooses that. Text that begins as JSON has to have one reading. Servers may
// read binary messages as text, so they are looked into as well.
func readText(base policies.Message, text bool, b []byte) ([]policies.Message, *Refusal) {
	m := base
	if m.Frame = "text"; !text {
		m.Frame = "binary"
	}
	if !looksJSON(b, text) {
		return []policies.Message{m}, nil
	}
	v, err := readJSON(b)
	if err != nil {
		return nil, refuse(BadFrame, "send JSON with one reading", "the message holds %v", err)
	}
	payload, ok := subscription(v)
	if !ok {
		if text && lifecycle(v) {
			m.Operation = policies.Control
		}
		return []policies.Message{m}, nil
	}
	c, err := readGraphQLCall(payload)
	var g policies.Message
	if err == nil {
		g, err = c.message()
	}
	if err != nil {
		return nil, badGraphQL(err)
	}
	m.Operation, m.OperationName, m.Fields = g.Operation, g.OperationName, g.Fields
	return []policies.Message{m}, nil
}

// lifecycle says whether a message only opens, keeps alive or ends what
// subscriptions need, in graphql-transport-ws or graphql-ws. Nothing that could
// be a request may stand beside its type, spelled as the protocols do.
func lifecycle(v any) bool {
	o, _ := v.(object)
	if known(o, true, "type", "id", "payload") != nil {
		return false
	}
	switch o["type"] {
	case "connection_init", "ping", "pong", "complete", "stop", "connection_terminate":
	default:
		return false
	}
	payload, ok := o["payload"].(object)
	for k := range payload {
		ok = ok && fold(k) != "query"
	}
	return ok || o["payload"] == nil
}

// looksJSON says whether some reader could take a message for a JSON object.
// Lenient ones take more than encoding/json does, so what begins like one has
// to be one; of binary messages only what is text and also ends like one.
func looksJSON(b []byte, text bool) bool {
	b = bytes.Trim(b, " \t\r\n\v\f\x00\ufeff")
	if len(b) == 0 || b[0] != '{' && b[0] != '[' {
		return false
	}
	return text || utf8.Valid(b) && (b[len(b)-1] == '}' || b[len(b)-1] == ']')
}

// subscription finds the request in a message that starts an operation. Keys
// and type count in any case: too much found is refused, too little passes.
func subscription(v any) (object, bool) {
	o, _ := v.(object)
	var kind string
	var payload object
	for k, v := range o {
		switch fold(k) {
		case "type":
			s, _ := v.(string)
			kind = fold(s)
		case "payload":
			payload, _ = v.(object)
		}
	}
	return payload, payload != nil && (kind == "subscribe" || kind == "start")
}
