package appliance

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path"

	"github.com/clawbox/clawbox/appliance/control"
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
			refuse(w, control.Errorf("refused", "egress does not answer: %v; what is held stays held, try again in a moment", err))
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			to.ServeHTTP(w, r)
			return
		}
		b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAnswer))
		if err != nil {
			refuse(w, control.Errorf("invalid", "request body: %v", err))
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(b))
		if c, ok := a.wish(r.Context(), path.Base(r.URL.Path), b); ok {
			a.asked.add(c, 1)
			defer a.asked.add(c, -1) // if it was not made
		}
		to.ServeHTTP(w, r)
	})
}

func (a *Appliance) dialEgress(ctx context.Context, _, _ string) (net.Conn, error) {
	c, err := a.part("egress").conn()
	if err != nil {
		return nil, err
	}
	return dialThrough(ctx, c, callHTTP)
}

// wish is the policy change that an answer asks for, if it does: what the
// request that it answers shows. While the answer is under way egress may ask
// for this change, and for no other.
func (a *Appliance) wish(ctx context.Context, id string, answer []byte) (change, bool) {
	var q control.AnswerRequest
	if json.Unmarshal(answer, &q) != nil || !q.Allow || q.Scope != "always" {
		return change{}, false
	}
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: a.dialEgress}, Timeout: callTime}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://egress/v1/approvals", nil)
	if err != nil {
		return change{}, false
	}
	resp, err := c.Do(req)
	if err != nil {
		return change{}, false
	}
	defer resp.Body.Close()
	var held control.Held
	if json.NewDecoder(io.LimitReader(resp.Body, service.MaxBody)).Decode(&held) != nil {
		return change{}, false
	}
	for _, p := range held.Pending {
		if p.ID == id && p.Digest == q.Digest {
			return change{p.Agent, p.Change, q.Operator}, true
		}
	}
	return change{}, false
}

// held counts what waits for an operator.
func (a *Appliance) held() (n int) {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	_ = a.part("egress").call(ctx, callPending, nil, &n) // none to be seen while it starts again
	return n
}
