package appliance

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/holds"
)

// maxWatch bounds how long a client's look at what is held lasts.
const maxWatch = 25 * time.Second

// handlePending lists what is held; with ?wait=VERSION once that is not the
// version any more, or after a while.
func (a *Appliance) handlePending(r *http.Request) (any, error) {
	ctx, cancel := context.WithTimeout(r.Context(), maxWatch)
	defer cancel()
	out := control.Held{Pending: []control.Pending{}}
	ps, version := a.holds.Watch(ctx, r.URL.Query().Get("wait"))
	for _, p := range ps {
		out.Pending = append(out.Pending, control.Pending{
			ID: p.ID, Digest: p.Digest, Agent: p.Agent, Host: p.Host, Port: p.Port, Call: p.Call, Binary: p.Binary, Ancestors: p.Ancestors,
			Process: p.Process, UID: p.UID, Policy: p.Policy, PolicyDigest: p.PolicyDigest, Reason: p.Reason, Why: p.Why, Rule: p.Rule,
			Since: p.Since, Until: p.Until, Waiting: p.Waiting, Ended: p.Ended, Change: p.Change, Words: p.Words,
		})
	}
	out.Version, out.Now = version, time.Now()
	return out, nil
}

func (a *Appliance) handleAnswer(r *http.Request) (any, error) {
	var q control.AnswerRequest
	if err := decode(r, &q); err != nil {
		return nil, err
	}
	ans := holds.Answer{Digest: q.Digest, Allow: q.Allow, Scope: holds.Scope(q.Scope), Operator: q.Operator, Reason: q.Reason}
	return struct{}{}, holdError(r, a.holds.Answer(r.Context(), r.PathValue("id"), ans))
}

func (a *Appliance) handleStanding(*http.Request) (any, error) {
	out := []control.Standing{}
	for _, g := range a.holds.Standing() {
		out = append(out, standing(g))
	}
	return out, nil
}

func standing(g holds.Grant) control.Standing {
	return control.Standing{
		ID: g.ID, Agent: g.Agent, Host: g.Host, Port: g.Port, Call: g.Call, Binary: g.Binary, Ancestors: g.Ancestors, Allow: g.Allow,
		Scope: string(g.Scope), Policy: g.Policy, Operator: g.Operator, Reason: g.Reason, Time: g.Time, Until: g.Until,
	}
}

// handleRevoke takes an answer back, and closes what it let in.
func (a *Appliance) handleRevoke(r *http.Request) (any, error) {
	g, err := a.holds.Revoke(r.Context(), r.PathValue("id"), r.URL.Query().Get("operator"))
	if err != nil {
		return nil, holdError(r, err)
	}
	a.proxy.Recheck(g.Agent)
	return standing(g), nil
}

// holdError puts the errors of package holds into the socket's codes.
func holdError(r *http.Request, err error) error {
	id := r.PathValue("id")
	switch {
	case errors.Is(err, holds.ErrNoPending):
		return control.Errorf("not_found", "nothing is held under %q, or stands under it; it may have timed out, and 'clawbox approve list' shows what there is (%v)", id, err)
	case errors.Is(err, holds.ErrChanged):
		return control.Errorf("conflict", "%v", err)
	case errors.Is(err, holds.ErrAnswer):
		return control.Errorf("invalid", "%v", err)
	}
	return err
}
