package router

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// model is one entry of a model list.
type model struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	OwnedBy string `json:"owned_by"` // the upstream's name here
}

// models lists what the policy routes, nothing more: names that it spells out,
// and for "*" what the upstream says it has.
func (h *handler) models(w http.ResponseWriter, q *http.Request) {
	c := &call{ep: endpoint{path: "/models"}}
	if h.agent.Policy != nil {
		c.pol = h.agent.Policy()
	}
	var why *refusal
	switch {
	case c.pol == nil:
		why = refuse(http.StatusForbidden, "infer.no_policy", "agent %s has no policy", h.agent.ID)
	case q.Method != http.MethodGet:
		why = refuse(http.StatusMethodNotAllowed, "infer.method", "got %.20q, want GET", q.Method)
	}
	if why != nil {
		h.deny(q.Context(), c, why)
		fail(w, openAI, why)
		return
	}
	ms, why := h.list(q.Context(), c)
	if why == nil {
		why = answer(w, ms, q.PathValue("id"))
	}
	if why != nil {
		fail(w, openAI, why)
	}
}

// answer writes the list, or the one model asked for.
func answer(w http.ResponseWriter, ms []model, id string) *refusal {
	var out any = map[string]any{"object": "list", "data": ms}
	if id != "" {
		i := slices.IndexFunc(ms, func(m model) bool { return m.ID == id })
		if i < 0 {
			return refuse(http.StatusNotFound, "infer.unknown", "model %.64q is not routed", id)
		}
		out = ms[i]
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out)
	return nil
}

// list collects the routed models in the policy's order. Asking an upstream is
// an action, so it is recorded first, and paced as a refusal is: no budget
// bounds it.
func (h *handler) list(ctx context.Context, c *call) ([]model, *refusal) {
	out := []model{}
	add := func(id string, up string) {
		d := c.pol.Decide(policies.Request{Action: policies.Infer, Model: id})
		known := slices.ContainsFunc(out, func(m model) bool { return m.ID == id })
		if d.Verdict == policies.Allow && d.Upstream == up && modelName(id) && !known {
			out = append(out, model{id, "model", up})
		}
	}
	asked := map[string]bool{}
	for _, rt := range c.pol.Inference.Routes {
		for _, id := range rt.Models {
			if up, ok := h.ups[rt.Upstream]; ok && id == "*" && !asked[up.name] {
				asked[up.name] = true
				ids, why := h.ask(ctx, c, up)
				if why != nil {
					return nil, why
				}
				for _, id := range ids {
					add(id, up.name)
				}
			} else if ok && id != "*" {
				add(id, up.name)
			}
		}
	}
	return out, nil
}

// ask fetches an upstream's model names. One that does not answer has none.
func (h *handler) ask(ctx context.Context, c *call, up upstream) ([]string, *refusal) {
	h.pace(1)
	r := h.record(c, ledger.Allowed)
	r.Reason, r.Host = "infer.list", up.base.Hostname()
	r.Attrs = map[string]any{"endpoint": "/models", "upstream": up.name}
	if h.rec.Record(ctx, r) != nil {
		return nil, refuse(http.StatusServiceUnavailable, "ledger.unavailable", "the ledger did not take the record, so no upstream was asked")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, up.url("/models").String(), nil)
	if err != nil {
		return nil, nil
	}
	key, err := up.authorize(q.Header)
	if err != nil {
		return nil, nil
	}
	q.Header.Set("User-Agent", "clawbox")
	resp, err := h.exchange(q, key)
	if err != nil {
		return nil, nil
	}
	defer resp.Body.Close()
	var v struct{ Data []struct{ ID string } }
	if resp.StatusCode != http.StatusOK || json.NewDecoder(io.LimitReader(resp.Body, 4<<20)).Decode(&v) != nil {
		return nil, nil
	}
	var ids []string
	for _, m := range v.Data {
		ids = append(ids, m.ID)
	}
	return ids, nil
}
