package inspect

import (
	"fmt"
	"net/http"
)

// Refusal says why a message is not passed on. Nobody has to decide about it:
// it has no single meaning, or it is not what the rule's protocol says.
type Refusal struct {
	Status int    // HTTP status of the answer
	Code   string // one of the codes below
	Detail string // what was got and what was wanted
	Next   string // what the client can do
}

// The codes of refusals.
const (
	BadTarget    = "http.target"     // method, path, query or host
	BadHeader    = "http.header"     // framing, hop-by-hop and overriding headers
	BadBody      = "http.body"       // size, type, encoding
	BadRPC       = "rpc.malformed"   // JSON-RPC, MCP
	BadGraphQL   = "graphql.request" // GraphQL
	BadHandshake = "ws.handshake"    // WebSocket's opening
	BadFrame     = "ws.frame"        // WebSocket's frames and messages
)

func (r *Refusal) Error() string {
	if r.Next == "" {
		return r.Detail
	}
	return r.Detail + "; " + r.Next
}

func refuse(code, next, format string, args ...any) *Refusal {
	return &Refusal{http.StatusBadRequest, code, fmt.Sprintf(format, args...), next}
}

// as gives a refusal another status.
func (r *Refusal) as(status int) *Refusal {
	r.Status = status
	return r
}
