package router

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	inspects "github.com/clawbox/clawbox/appliance/inspect"
	"github.com/clawbox/clawbox/appliance/ledger"
)

// outcome is what became of a forwarded call.
type outcome struct {
	status int
	bytes  int64 // of the answer, as passed on
	use    usage
	cut    bool   // the agent hung up before an answer came
	reason string // stable code for the record
	detail string
}

// forward sends the call, relays the answer and settles.
func (h *handler) forward(c *call, w http.ResponseWriter, q *http.Request) {
	resp, err := h.send(q, c)
	if err != nil {
		fail(w, c.ep.shape, err)
		h.finish(q.Context(), c, outcome{cut: q.Context().Err() != nil, reason: err.code, detail: fmt.Sprint(err.cause)})
		return
	}
	h.finish(q.Context(), c, h.relay(w, resp, c))
}

// send makes the upstream request. Errors name the upstream, not its address.
func (h *handler) send(q *http.Request, c *call) (*http.Response, *refusal) {
	down := refuse(http.StatusBadGateway, "infer.upstream_down", "upstream %q does not answer", c.up.name)
	out, err := http.NewRequestWithContext(q.Context(), http.MethodPost, c.up.url(c.ep.path).String(), bytes.NewReader(c.out))
	if err != nil {
		return nil, down.because(err)
	}
	pass(out.Header, q.Header, requestHeaders)
	out.Header.Set("User-Agent", "clawbox")
	if c.ep.shape == anthropic && out.Header.Get("Anthropic-Version") == "" {
		out.Header.Set("Anthropic-Version", "2023-06-01")
	}
	key, err := c.up.authorize(out.Header)
	if err != nil {
		return nil, refuse(http.StatusBadGateway, "infer.credential", "the credential of upstream %q can't be used; the ledger says why", c.up.name).because(err)
	}
	resp, err := h.exchange(out, key)
	if err != nil {
		return nil, down.because(err)
	}
	if resp.StatusCode >= 300 && resp.StatusCode < 400 { // a redirect would leave the decided route
		resp.Body.Close()
		return nil, refuse(http.StatusBadGateway, "infer.redirect", "upstream %q answered with a redirect, which is not followed", c.up.name).because(errors.New(resp.Status))
	}
	return resp, nil
}

// maxCause bounds what an upstream's failure puts on the ledger, in bytes.
const maxCause = 300

// exchange sends a request that carries a key. What the upstream repeats of
// the key, also in a line so wrong that net/http quotes it in an error, is
// masked; a packed answer can't be, and was not asked for.
func (r *Router) exchange(q *http.Request, key string) (*http.Response, error) {
	m := inspects.NewMasker(key)
	resp, err := r.rt.RoundTrip(q)
	if err != nil {
		return nil, errors.New(strings.ToValidUTF8(fmt.Sprintf("%.*s", maxCause, m.Text(err.Error())), "\uFFFD"))
	}
	if ce := resp.Header.Get("Content-Encoding"); ce != "" && ce != "identity" {
		resp.Body.Close()
		return nil, fmt.Errorf("got an answer in Content-Encoding %.40q, and asked for none", ce)
	}
	for _, vs := range resp.Header {
		for i := range vs {
			vs[i] = m.Text(vs[i])
		}
	}
	resp.Body = m.Reader(resp.Body, func() {})
	return resp, nil
}

// relay copies the answer to the agent and reads the usage on the way.
func (h *handler) relay(w http.ResponseWriter, resp *http.Response, c *call) outcome {
	defer resp.Body.Close()
	o := outcome{status: resp.StatusCode, reason: "infer.usage"}
	pass(w.Header(), resp.Header, responseHeaders)
	w.WriteHeader(resp.StatusCode)
	var err error
	if ct, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); ct == "text/event-stream" {
		s := &stream{w: w, hide: c.req.added, output: c.ep.output, use: &o.use}
		s.spend = func() *refusal { return h.grow(c, o.use.tokens(c)) }
		err = s.copy(resp.Body)
		o.bytes = s.n
	} else {
		t := &tail{max: MaxBody}
		o.bytes, err = io.Copy(w, io.TeeReader(resp.Body, t))
		if o.use.read(t.b); c.ep.output {
			o.use.passed = outputTokens(t.n)
		}
	}
	if spent := (*refusal)(nil); errors.As(err, &spent) {
		failStream(w, c.ep.shape, spent)
		o.reason, o.detail = spent.code, spent.msg
	} else if err != nil {
		o.reason = "infer.cut"
	}
	return o
}

// charge is what a call costs: its reported usage; without a report the
// reservation or, if it is more, what was passed on, except where the upstream
// did no work.
func (o outcome) charge(c *call) int {
	switch {
	case o.use.seen:
		return o.use.tokens(c)
	case o.status == 0 && !o.cut || o.status >= 400:
		return 0
	}
	return max(c.reserved, o.use.tokens(c))
}

// finish settles the budget and writes the call's second record. The agent
// may be gone by now: that does not cancel the record.
func (h *handler) finish(ctx context.Context, c *call, o outcome) {
	cost := o.charge(c)
	h.settle(c, cost)
	r := h.record(c, ledger.Allowed)
	r.Reason, r.Detail = o.reason, o.detail
	r.Attrs = map[string]any{
		"call": c.id, "upstream": c.up.name, "status": o.status, "response_bytes": o.bytes,
		"duration_ms": time.Since(c.start).Milliseconds(), "charged_tokens": cost,
	}
	if o.use.seen {
		r.Attrs["input_tokens"], r.Attrs["output_tokens"] = o.use.in, o.use.out
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_ = h.rec.Record(ctx, r) // the call is over; a failed ledger stops the next one
}

// tail keeps what passes through, up to max bytes; beyond, nothing.
type tail struct {
	b    []byte
	n    int // bytes seen
	max  int
	over bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.n += len(p)
	if t.over = t.over || len(t.b)+len(p) > t.max; t.over {
		t.b = nil
	} else {
		t.b = append(t.b, p...)
	}
	return len(p), nil
}
