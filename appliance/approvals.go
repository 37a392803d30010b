package appliance

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path"

	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/holds"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/service"
)

// The operator's side of what is held is served by egress, which has the book;
// the control socket hands its requests on.

// maxAnswer bounds an operator's answer, in bytes.
const maxAnswer = 64 << 10

// approvals hands requests on to egress.
func (a *Appliance) approvals() http.Handler {
	to := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: "egress"}) },
		// One connection a request: egress may have been started again.
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: a.dialEgress},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			refuse(w, noEgress(err))
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			to.ServeHTTP(w, r)
			return
		}
		b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAnswer))
		if err != nil {
			refuse(w, control.Errorf("invalid", "request body: %v", err))
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(b))
		c, ok, err := a.answered(r, b)
		if err != nil {
			refuse(w, err)
			return
		}
		if ok {
			a.asked.add(c, 1)
			defer a.asked.add(c, -1) // if it was not made
		}
		to.ServeHTTP(w, r)
	})
}

// answered puts on the ledger that an operator answers, or takes an answer
// back, before egress hears of it: what egress records of approvals is worth
// nothing once it has been taken over, and this can be held against it. It
// returns the policy change that the answer asks for, if it asks for one.
// While the answer is under way egress may ask for this change and no other.
func (a *Appliance) answered(r *http.Request, body []byte) (c change, always bool, err error) {
	id, who := path.Base(r.URL.Path), callerOf(r.Context())
	rec := ledger.Record{
		Kind: ledger.KindApproval, Verdict: ledger.Denied, Reason: "approval.taken_back", Process: ledger.Process{PID: int(who.Pid), UID: int(who.Uid)},
		Attrs: map[string]any{"id": id, "operator": r.URL.Query().Get("operator")}, Detail: "an answer that stands is taken back",
	}
	if r.Method != http.MethodPost {
		return c, false, a.log.Record(r.Context(), rec)
	}
	var q control.AnswerRequest
	if err := json.Unmarshal(body, &q); err != nil {
		return c, false, control.Errorf("invalid", "request body: %v", err)
	}
	p, err := a.shown(r.Context(), id, q.Digest)
	if err != nil {
		return c, false, err
	}
	rec.Reason, rec.Agent, rec.Host, rec.Port = "approval.answered", p.Agent, p.Host, p.Port
	rec.Attrs["operator"], rec.Attrs["scope"], rec.Attrs["digest"] = q.Operator, q.Scope, q.Digest
	rec.Detail = fmt.Sprintf("%s denies it, scope %s", q.Operator, q.Scope)
	if q.Allow {
		rec.Verdict, rec.Detail = ledger.Allowed, fmt.Sprintf("%s allows it, scope %s", q.Operator, q.Scope)
	}
	c = change{p.Agent, p.Change, q.Operator}
	return c, q.Allow && q.Scope == "always", a.log.Record(r.Context(), rec)
}

func (a *Appliance) dialEgress(ctx context.Context, _, _ string) (net.Conn, error) {
	c, err := a.part("egress").conn()
	if err != nil {
		return nil, err
	}
	return dialThrough(ctx, c, callHTTP)
}

// shown is the request that an operator answers, as it was seen: its digest is
// of all that was shown, and egress can't show one thing and mean another.
func (a *Appliance) shown(ctx context.Context, id, digest string) (control.Pending, error) {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: a.dialEgress}, Timeout: callTime}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://egress/v1/approvals", nil)
	if err != nil {
		return control.Pending{}, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return control.Pending{}, noEgress(err)
	}
	defer resp.Body.Close()
	var held control.Held
	if err := json.NewDecoder(io.LimitReader(resp.Body, service.MaxBody)).Decode(&held); err != nil {
		return control.Pending{}, noEgress(err)
	}
	for _, p := range held.Pending {
		if p.ID != id {
			continue
		}
		if err := holds.Check(p); err != nil {
			return p, control.Errorf("refused", "egress shows a request that does not hold together: %v; nothing was answered", err)
		}
		if p.Digest != digest {
			return p, control.Errorf("conflict", "request %s has changed since it was shown; look at it again with 'clawbox approve list'", id)
		}
		return p, nil
	}
	return control.Pending{}, control.Errorf("not_found", "nothing is held under %q; 'clawbox approve list' lists what is", id)
}

func noEgress(err error) error {
	return control.Errorf("refused", "egress does not answer: %v; what is held stays held, try again in a moment", err)
}

// held counts what waits for an operator.
func (a *Appliance) held() (n int) {
	a.part("egress").look(callPending, &n)
	return n
}
