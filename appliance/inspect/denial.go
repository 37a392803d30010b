package inspect

import (
	"encoding/json"
	"net/http"
)

// Reason is what a denied client is told, for people and programs.
type Reason struct {
	Status int    `json:"-"` // HTTP status; 0: 403
	Code   string `json:"code"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
	Rule   string `json:"rule,omitempty"`
}

// Why gives a refusal as a reason.
func (r *Refusal) Why() Reason {
	return Reason{Status: r.Status, Code: r.Code, Detail: r.Detail, Remedy: r.Next}
}

// rpcDenied is the JSON-RPC error code of a denial, from the range that the
// specification leaves to servers.
const rpcDenied = -32001

// Denial is the answer to a request that was not allowed, in the protocol's
// own form, so that its client library reports the reason instead of a broken
// connection: JSON-RPC answers each id and GraphQL gives errors, both with
// status 200; everything else gets {"error": …} with the reason's status.
func Denial(protocol string, why Reason, ids []json.RawMessage) (status int, header http.Header, body []byte) {
	if status = why.Status; status == 0 {
		status = http.StatusForbidden
	}
	var v any = map[string]any{"error": why}
	switch {
	case protocol == "graphql":
		status, v = http.StatusOK, map[string]any{"errors": []any{map[string]any{"message": why.Detail, "extensions": why}}}
	case len(ids) > 0 && (protocol == "mcp" || protocol == "json-rpc"):
		status, v = http.StatusOK, rpcErrors(why, ids)
	}
	body, err := json.Marshal(v)
	if err != nil { // only an id that is no JSON: not from here
		status, body = http.StatusForbidden, []byte(`{"error":{"code":"denied"}}`)
	}
	return status, http.Header{"Content-Type": {"application/json"}, "Cache-Control": {"no-store"}, "X-Content-Type-Options": {"nosniff"}}, body
}

func rpcErrors(why Reason, ids []json.RawMessage) any {
	var all []any
	for _, id := range ids {
		e := map[string]any{"code": rpcDenied, "message": why.Detail, "data": why}
		all = append(all, map[string]any{"jsonrpc": "2.0", "id": id, "error": e})
	}
	if len(all) == 1 {
		return all[0]
	}
	return all
}
