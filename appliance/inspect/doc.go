// Package inspect reads what an agent says inside an inspected connection and
// tells a policy what it asks for: HTTP requests, JSON-RPC and MCP calls,
// GraphQL operations, WebSocket messages.
//
// Each function takes bytes that an attacker chose and gives back two things
// that belong together: the one canonical form that goes upstream, and the
// policies.Messages that this form means. What has no single meaning, because
// two readers could take it for two things, is refused. So what was judged is
// what the server gets.
//
//	if err := inspect.Head(raw); err != nil { ... }   // what net/http reads leniently; HTTP/1 only
//	m, err := inspect.Route(r)                         // path and method, to find the rule by
//	q, msgs, err := inspect.Request(r, inspect.Options{Protocol: rule.Protocol})
//	if err != nil {
//		var no *inspect.Refusal
//		errors.As(err, &no)                            // status, reason, words
//	}
//	for _, m := range msgs {                           // every one must be allowed
//		if d := policy.Decide(policies.Request{Action: policies.Call, Message: &m, ...}); d.Verdict != policies.Allow {
//			status, header, body := inspect.Denial(rule.Protocol, inspect.Reason{Code: d.Reason, Rule: d.Rule}, inspect.IDs(q))
//			...
//		}
//	}
//	forward(q)                                         // q, never r
//
// After a WebSocket handshake was forwarded, Accepted checks the server's
// answer and Frames carries the messages, asking about each of the client's.
//
// The package opens nothing, keeps no state between calls and holds at most
// Options.MaxBody (Frames: MaxMessage) bytes for each. Everything that it
// returns as an error is a *Refusal, except a failure to read.
//
// Limits. Bodies of plain HTTP ("http") are not looked at, so a server that
// takes a method or a path from a form field does so out of sight. Answers of
// a server are not judged, only framed. Inside the arguments of an MCP tool
// keys keep their case; two keys that differ only in case are refused.
package inspect
