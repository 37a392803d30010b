package router

import (
	"encoding/json"
	"fmt"
	"net/http"
)

// refusal is an answer that the router gives itself.
type refusal struct {
	status int
	code   string // stable, such as "budget.tokens"
	msg    string
	cause  error // for the ledger alone: it may name files and addresses
}

func (r *refusal) Error() string { return r.msg }

func refuse(status int, code, format string, args ...any) *refusal {
	return &refusal{status: status, code: code, msg: fmt.Sprintf(format, args...)}
}

// because adds the cause.
func (r *refusal) because(err error) *refusal {
	r.cause = err
	return r
}

// shape is the form of error bodies that a client library expects.
type shape int

const (
	openAI shape = iota
	anthropic
)

// types maps a status to the error type names of the two shapes.
var types = map[int][2]string{
	http.StatusBadRequest:            {"invalid_request_error", "invalid_request_error"},
	http.StatusForbidden:             {"policy_denied", "permission_error"},
	http.StatusNotFound:              {"not_found_error", "not_found_error"},
	http.StatusRequestEntityTooLarge: {"invalid_request_error", "request_too_large"},
	http.StatusTooManyRequests:       {"budget_exceeded", "rate_limit_error"},
	http.StatusBadGateway:            {"upstream_error", "api_error"},
	http.StatusServiceUnavailable:    {"unavailable", "api_error"},
}

// fail writes r. Client libraries repeat a 429 and a 5xx by themselves unless
// x-should-retry says otherwise; a spent budget or a refusal does not change
// by asking again.
func fail(w http.ResponseWriter, s shape, r *refusal) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Should-Retry", "false")
	w.WriteHeader(r.status)
	_ = json.NewEncoder(w).Encode(r.body(s))
}

// failStream writes r as the last event of a stream.
func failStream(w http.ResponseWriter, s shape, r *refusal) {
	b, _ := json.Marshal(r.body(s)) // strings always encode
	_, _ = fmt.Fprintf(w, "event: error\ndata: %s\n\n", b)
}

// body is what a client library reads r from.
func (r *refusal) body(s shape) map[string]any {
	t, ok := types[r.status]
	if !ok {
		t = types[http.StatusBadRequest]
	}
	b := map[string]any{"error": map[string]any{"message": "clawbox: " + r.msg, "type": t[s], "code": r.code}}
	if s == anthropic {
		b["type"] = "error"
	}
	return b
}
