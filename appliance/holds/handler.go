package holds

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/clawbox/clawbox/appliance/control"
)

const (
	maxWatch  = 25 * time.Second // how long a look at what is held lasts
	maxAnswer = 64 << 10         // bytes of an answer
)

// Handler is the operator's side of a book, as control.Client talks to it:
//
//	GET    /v1/approvals            what is held; ?wait=VERSION once that changes
//	POST   /v1/approvals/{id}       answers one request
//	GET    /v1/approvals/standing   the answers that stand
//	DELETE /v1/approvals/standing/{id}?operator=NAME
//
// recheck is called with the agent whose answer was taken back, to close what
// it let in. Who may reach the handler may answer: it is for a socket that
// only operators can open.
func Handler(b *Book, recheck func(agent string)) http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /v1/approvals", reply(b.serveHeld))
	m.HandleFunc("POST /v1/approvals/{id}", reply(b.serveAnswer))
	m.HandleFunc("GET /v1/approvals/standing", reply(b.serveStanding))
	m.HandleFunc("DELETE /v1/approvals/standing/{id}", reply(func(r *http.Request) (any, error) {
		g, err := b.Revoke(r.Context(), r.PathValue("id"), r.URL.Query().Get("operator"))
		if err == nil {
			recheck(g.Agent)
		}
		return g.shown(), err
	}))
	return m
}

func (b *Book) serveHeld(r *http.Request) (any, error) {
	ctx, cancel := context.WithTimeout(r.Context(), maxWatch)
	defer cancel()
	ps, version := b.Watch(ctx, r.URL.Query().Get("wait"))
	out := control.Held{Version: version, Now: time.Now(), Pending: []control.Pending{}}
	for _, p := range ps {
		out.Pending = append(out.Pending, p.shown())
	}
	return out, nil
}

func (b *Book) serveAnswer(r *http.Request) (any, error) {
	var q control.AnswerRequest
	body, err := io.ReadAll(io.LimitReader(r.Body, maxAnswer))
	if err == nil {
		err = strict(body, &q)
	}
	if err != nil {
		return nil, control.Errorf("invalid", "request body: %v", err)
	}
	a := Answer{Digest: q.Digest, Allow: q.Allow, Scope: Scope(q.Scope), Operator: q.Operator, Reason: q.Reason}
	return struct{}{}, b.Answer(r.Context(), r.PathValue("id"), a)
}

func (b *Book) serveStanding(*http.Request) (any, error) {
	out := []control.Standing{}
	for _, g := range b.Standing() {
		out = append(out, g.shown())
	}
	return out, nil
}

func (p Pending) shown() control.Pending {
	return control.Pending{
		ID: p.ID, Digest: p.Digest, Agent: p.Agent, Host: p.Host, Port: p.Port, Call: p.Call, Binary: p.Binary, Ancestors: p.Ancestors,
		Process: p.Process, UID: p.UID, Policy: p.Policy, PolicyDigest: p.PolicyDigest, Reason: p.Reason, Why: p.Why, Rule: p.Rule,
		Since: p.Since, Until: p.Until, Waiting: p.Waiting, Ended: p.Ended, Change: p.Change, Words: p.Words,
	}
}

func (g Grant) shown() control.Standing {
	return control.Standing{
		ID: g.ID, Agent: g.Agent, Host: g.Host, Port: g.Port, Call: g.Call, Binary: g.Binary, Ancestors: g.Ancestors, Allow: g.Allow,
		Scope: string(g.Scope), Policy: g.Policy, Operator: g.Operator, Reason: g.Reason, Time: g.Time, Until: g.Until,
	}
}

// refusals are the socket's codes and statuses for the errors of this package.
var refusals = []struct {
	err    error
	code   string
	status int
}{
	{ErrNoPending, "not_found", http.StatusNotFound},
	{ErrChanged, "conflict", http.StatusConflict},
	{ErrAnswer, "invalid", http.StatusBadRequest},
}

// reply answers with f's value, or its refusal.
func reply(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			var status int
			v, status = refusal(err)
			w.WriteHeader(status)
		}
		_ = json.NewEncoder(w).Encode(v) // a client that went away
	}
}

func refusal(err error) (*control.Error, int) {
	var e *control.Error
	if errors.As(err, &e) {
		return e, http.StatusBadRequest
	}
	for _, x := range refusals {
		if errors.Is(err, x.err) {
			return control.Errorf(x.code, "%v", err), x.status
		}
	}
	return control.Errorf("internal", "%v", err), http.StatusInternalServerError
}
