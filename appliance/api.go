package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"

	"github.com/clawbox/clawbox/appliance/control"
)

// maxRequest bounds a control request's body, in bytes.
const maxRequest = 4 << 20

// controlHandler serves the control socket.
func (a *Appliance) controlHandler() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /v1/status", answer(func(*http.Request) (any, error) { return a.Status(), nil }))
	m.HandleFunc("GET /v1/agents", answer(func(*http.Request) (any, error) { return a.agentStatuses(), nil }))
	m.HandleFunc("POST /v1/agents", answer(a.handleLaunch))
	m.HandleFunc("GET /v1/agents/{name}", answer(a.handleAgent))
	m.HandleFunc("POST /v1/agents/{name}/stop", answer(a.handleStop))
	m.HandleFunc("DELETE /v1/agents/{name}", answer(a.handleRemove))
	m.HandleFunc("PUT /v1/agents/{name}/policy", answer(a.handlePolicy))
	m.HandleFunc("GET /v1/agents/{name}/logs", a.handleLogs)
	m.HandleFunc("POST /v1/agents/{name}/exec", a.handleExec)
	m.Handle("/v1/approvals", a.approvals())
	m.Handle("/v1/approvals/", a.approvals())
	a.snapshotRoutes(m)
	m.HandleFunc("POST /v1/receipts", answer(func(r *http.Request) (any, error) {
		return struct{}{}, a.recordInstaller(context.WithoutCancel(r.Context()))
	}))
	m.HandleFunc("GET /v1/ledger/checkpoint", answer(a.handleCheckpoint))
	return m
}

// healthHandler serves the health socket: 200 once the appliance does its
// work, 503 with the reason when it refuses to.
func (a *Appliance) healthHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h := a.health()
		if h.Error != "" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		json.NewEncoder(w).Encode(h)
	})
}

// answer adapts a function to HTTP: its value as JSON, or its refusal.
func answer(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			refuse(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(v)
	}
}

var httpStatus = map[string]int{
	"not_found": http.StatusNotFound,
	"conflict":  http.StatusConflict,
	"invalid":   http.StatusBadRequest,
	"refused":   http.StatusForbidden,
}

func refuse(w http.ResponseWriter, err error) {
	var e *control.Error
	if !errors.As(err, &e) {
		e = &control.Error{Code: "internal", Detail: err.Error()}
	}
	code, ok := httpStatus[e.Code]
	if !ok {
		code = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(e)
}

// decode reads a request's body strictly.
func decode(r *http.Request, into any) error {
	d := json.NewDecoder(io.LimitReader(r.Body, maxRequest))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return control.Errorf("invalid", "request body: %v", err)
	}
	if d.More() {
		return control.Errorf("invalid", "request body: more than one value")
	}
	return nil
}

func (a *Appliance) handleLaunch(r *http.Request) (any, error) {
	var q control.LaunchRequest
	if err := decode(r, &q); err != nil {
		return nil, err
	}
	// The agent outlives the request, so only its values are kept.
	return a.Launch(context.WithoutCancel(r.Context()), q)
}

func (a *Appliance) handleAgent(r *http.Request) (any, error) {
	ag, err := a.agent(r.PathValue("name"))
	if err != nil {
		return nil, err
	}
	return ag.status(), nil
}

func (a *Appliance) handleStop(r *http.Request) (any, error) {
	var q control.StopRequest
	if err := decode(r, &q); err != nil {
		return nil, err
	}
	return struct{}{}, a.Stop(r.Context(), r.PathValue("name"), q.Grace)
}

func (a *Appliance) handleRemove(r *http.Request) (any, error) {
	return struct{}{}, a.Remove(r.Context(), r.PathValue("name"))
}

func (a *Appliance) handlePolicy(r *http.Request) (any, error) {
	var q control.PolicyRequest
	if err := decode(r, &q); err != nil {
		return nil, err
	}
	return a.Reload(r.Context(), r.PathValue("name"), q)
}

func (a *Appliance) handleCheckpoint(*http.Request) (any, error) {
	return a.log.Head().Checkpoint, nil
}

// handleLogs streams an agent's output; with ?follow=1 until it stops.
func (a *Appliance) handleLogs(w http.ResponseWriter, r *http.Request) {
	ag, err := a.agent(r.PathValue("name"))
	if err != nil {
		refuse(w, err)
		return
	}
	f, err := os.Open(ag.logPath())
	if err != nil {
		refuse(w, control.Errorf("not_found", "agent %s has no output yet: %v", ag.Name, err))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if old, err := os.Open(ag.logPath() + ".1"); err == nil {
		io.Copy(w, old)
		old.Close()
	}
	t := &tail{path: ag.logPath(), f: f}
	defer t.close()
	if r.URL.Query().Get("follow") == "" {
		t.copy(w)
		return
	}
	t.follow(r.Context(), w, ag.gone())
}
