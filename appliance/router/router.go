// Package router answers the model calls of governed agents.
//
// An agent knows one address, http://inference.local/v1, and no credential.
// What it sends there is read whole, decided by its policy, inspected for
// sensitive content, written to the ledger, and only then forwarded:
//
//	r, err := router.New(router.Config{
//		Upstreams: cfg.Upstreams, // "local" is the embedded engine
//		Recorder:  ledger,
//	})
//	http.Serve(l, r.Handler(agent))
//
// The OpenAI-compatible calls (/v1/chat/completions, /v1/completions,
// /v1/responses, /v1/embeddings, /v1/models) and Anthropic's /v1/messages are
// served; they are passed on as they are, so an upstream has to speak the one
// that the agent speaks. No call is translated into another.
//
// # Order of events
//
// Charge a request → read (at most Config.MaxBody bytes) → parse → policy →
// inspect → reserve tokens → ledger → forward → settle the tokens → ledger. A record that can't
// be written stops the call. Records hold the model, the upstream, sizes, the
// body's sha256 and the classes of sensitive content found: never content.
//
// # Sensitive content
//
// Detectors with checksums look at every string and every long number of the
// JSON body, after decoding, and once more at what a string hides behind
// escapes of JSON of its own (up to four times, as in tool arguments). A local
// upstream sees the request whole. For any other the policy says "deny" or
// "strip"; stripping replaces each find by a mask such as [EMAIL_1], the same
// for the same value in one request, and the answer keeps the masks. Limits,
// which an operator should know: names, street addresses and free prose are not
// recognised, neither is content split over several strings, encoded (base64,
// images, audio, prompts as token numbers) or a number with an exponent.
//
// # What a call can't ask for
//
// No call makes an upstream act for the agent, be it inside the site or not: it
// would do so past the network policy. Only fields that are on the list of the
// call (fields.go) pass; tools are those that the agent runs itself; what is not
// text for the model may hold no address but a data: URL; what is kept at the
// upstream, and models that the policy has not decided on, can't be named.
//
// # Budgets
//
// A call costs a request as soon as it begins, also when it is refused after
// that. Tokens are reserved before a call and settled by the usage that the
// upstream reports. Where it reports none, or nothing, or the agent hangs up
// before, the call costs what it reserved, or more if more was passed on: see
// outputTokens. A stream takes from the budget while it passes on, and ends
// with an error where nothing is left. What a model thinks unseen counts by the
// report alone. Refusals are paced, see Pace, and the bodies on their way are
// bounded for each agent. Counters live in memory as long as the agent: they
// end with Forget or the daemon.
package router

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"mime"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// MaxBody is the default bound of a request body, in bytes.
const MaxBody = 8 << 20

// Agent is whom a call comes from. Policy is read for every decision, so a
// reloaded policy holds from the next call on; nil or a nil policy denies.
type Agent struct {
	ID     string
	UID    int // host user id
	Policy func() *policies.Policy
}

// Config is what a Router needs.
type Config struct {
	// Upstreams by name. "local" is the embedded engine and always counts as
	// inside the host.
	Upstreams map[string]config.Upstream
	Recorder  ledger.Recorder
	// Transport carries the calls to upstreams; nil takes one without a proxy,
	// which connects by Dial (nil: from this process).
	Transport http.RoundTripper
	Dial      func(ctx context.Context, network, address string) (net.Conn, error)
	// Key gives the credential of a Upstream.KeyFile; nil: ReadKey.
	Key func(file string) (string, error)
	// MaxBody bounds request bodies, in bytes; 0 means the constant MaxBody.
	MaxBody int64
}

// Router routes model calls. It is safe for concurrent use.
type Router struct {
	ups map[string]upstream
	rec ledger.Recorder
	rt  http.RoundTripper
	max int64

	mu     sync.Mutex // guards meters and what they point to
	meters map[string]*meter
}

// New checks c and returns a Router.
func New(c Config) (*Router, error) {
	if c.Recorder == nil {
		return nil, errors.New("router: got no ledger recorder, want one: no event, no action")
	}
	ups, err := upstreams(c.Upstreams, c.Key)
	if err != nil {
		return nil, err
	}
	r := &Router{ups: ups, rec: c.Recorder, rt: c.Transport, max: c.MaxBody, meters: map[string]*meter{}}
	if r.rt == nil {
		r.rt = transport(c.Dial)
	}
	if r.max <= 0 {
		r.max = MaxBody
	}
	return r, nil
}

// Handler serves one agent.
func (r *Router) Handler(a Agent) http.Handler {
	h := &handler{r, a}
	mux := http.NewServeMux()
	for path := range endpoints {
		mux.HandleFunc(path, h.infer)
	}
	mux.HandleFunc("/v1/models", h.models)
	mux.HandleFunc("/v1/models/{id...}", h.models)
	mux.HandleFunc("/", func(w http.ResponseWriter, q *http.Request) {
		fail(w, openAI, refuse(http.StatusNotFound, "infer.endpoint", "got %s %.100q, want POST /v1/chat/completions, /v1/completions, /v1/responses, /v1/embeddings or /v1/messages, or GET /v1/models", q.Method, q.URL.Path))
	})
	return mux
}

// handler is a Router serving one agent.
type handler struct {
	*Router
	agent Agent
}

// call is one model call on its way through.
type call struct {
	id    string // links the call's records
	ep    endpoint
	start time.Time
	pol   *policies.Policy

	size int    // bytes of the body as received
	sum  string // sha256 of the same
	req  request
	out  []byte // what is sent on

	found    finds
	decision policies.Decision
	up       upstream
	reserved int   // tokens
	entered  bool  // counted in
	held     int64 // bytes counted for the body
}

// infer is the whole path of one model call.
func (h *handler) infer(w http.ResponseWriter, q *http.Request) {
	c := &call{id: rand.Text(), ep: endpoints[q.URL.Path], start: time.Now()}
	defer h.leave(c)
	if err := h.admit(c, w, q); err != nil {
		h.deny(q.Context(), c, err)
		fail(w, c.ep.shape, err)
		return
	}
	if err := h.rec.Record(q.Context(), h.record(c, ledger.Allowed)); err != nil {
		h.settle(c, 0)
		fail(w, c.ep.shape, refuse(http.StatusServiceUnavailable, "ledger.unavailable", "the ledger did not take the record, so the call was not made"))
		return
	}
	h.forward(c, w, q)
}

// admit takes the call through every step that may refuse it. On success the
// budget holds a reservation that settle has to end.
func (h *handler) admit(c *call, w http.ResponseWriter, q *http.Request) *refusal {
	if h.agent.Policy != nil {
		c.pol = h.agent.Policy()
	}
	if c.pol == nil {
		return refuse(http.StatusForbidden, "infer.no_policy", "agent %s has no policy", h.agent.ID)
	}
	if err := h.enter(c); err != nil {
		return err
	}
	body, err := h.read(c, w, q)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	c.size, c.sum, c.out = len(body), hex.EncodeToString(sum[:]), body
	if c.req, err = parse(body); err != nil {
		return err
	}
	if err := h.route(c, body); err != nil {
		return err
	}
	if c.out, err = c.req.wantUsage(c.ep, c.out); err != nil {
		return err
	}
	return h.reserve(c)
}

// read returns the whole body. Policy needs it, and forwarding a body that is
// still arriving breaks when the upstream answers early (golang/go#40747).
func (h *handler) read(c *call, w http.ResponseWriter, q *http.Request) ([]byte, *refusal) {
	if q.Method != http.MethodPost {
		w.Header().Set("Allow", "POST")
		return nil, refuse(http.StatusMethodNotAllowed, "infer.method", "got %.20q, want POST", q.Method)
	}
	if ct, _, err := mime.ParseMediaType(q.Header.Get("Content-Type")); err != nil || ct != "application/json" {
		return nil, refuse(http.StatusUnsupportedMediaType, "infer.content_type", "got Content-Type %.80q, want application/json", q.Header.Get("Content-Type"))
	}
	if ce := q.Header.Get("Content-Encoding"); ce != "" && ce != "identity" {
		return nil, refuse(http.StatusUnsupportedMediaType, "infer.encoding", "got Content-Encoding %.80q, want an uncompressed body: policy has to read it", ce)
	}
	return h.body(c, w, q)
}

// body reads the body within the agent's share of memory.
func (h *handler) body(c *call, w http.ResponseWriter, q *http.Request) ([]byte, *refusal) {
	size := q.ContentLength
	if size < 0 {
		size = h.max // not said: counted as the most until it is known
	}
	large := refuse(http.StatusRequestEntityTooLarge, "infer.too_large", "got a body above %d bytes; send less context", h.max)
	if size > h.max {
		return nil, large
	}
	if err := h.hold(c, size); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.Grow(int(max(q.ContentLength, 0)) + bytes.MinRead) // else it doubles on the way
	_, err := b.ReadFrom(http.MaxBytesReader(w, q.Body, h.max))
	c.size = b.Len() // what was read for nothing paces the refusal
	if big := (*http.MaxBytesError)(nil); errors.As(err, &big) {
		return nil, large
	}
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "infer.body", "the body ended early")
	}
	return b.Bytes(), h.hold(c, int64(b.Len())) // never more than before
}

// route asks the policy where the call goes, inspects the content, and masks
// it where the answer says so.
func (h *handler) route(c *call, body []byte) *refusal {
	ask := policies.Request{Action: policies.Infer, Model: c.req.model}
	c.decision = c.pol.Decide(ask)
	if c.decision.Verdict != policies.Allow {
		return denied(c)
	}
	up, ok := h.ups[c.decision.Upstream]
	if !ok {
		return refuse(http.StatusBadGateway, "infer.no_upstream", "the policy routes %q to upstream %q, which this appliance does not define; add it to upstreams in appliance.yaml", c.req.model, c.decision.Upstream)
	}
	c.up, c.found = up, inspect(body)
	if err := c.req.remote(c.ep); err != nil {
		return err
	}
	if up.local {
		return nil // whole, by design: recorded as sensitive, never stripped
	}
	ask.Sensitive = len(c.found) > 0
	c.decision = c.pol.Decide(ask)
	if c.decision.Verdict != policies.Allow {
		return denied(c)
	}
	if c.decision.Strip {
		return c.strip(body)
	}
	if ask.Sensitive {
		return refuse(http.StatusForbidden, "infer.sensitive", "sensitive content (%s) may not leave the host", c.found)
	}
	return nil
}

// strip masks the body. The result is inspected again: what still looks
// sensitive is not sent.
func (c *call) strip(body []byte) *refusal {
	c.out = mask(body)
	if left := inspect(c.out); len(left) > 0 {
		return refuse(http.StatusForbidden, "infer.sensitive", "sensitive content (%s) could not be removed", left)
	}
	req, err := parse(c.out)
	c.req = req
	return err
}

// denied turns the policy's answer into a refusal.
func denied(c *call) *refusal {
	d := c.decision
	msg := fmt.Sprintf("model %q is not allowed by policy %s", c.req.model, c.pol.Name)
	if len(c.found) > 0 {
		msg = fmt.Sprintf("sensitive content (%s) may not leave the host by policy %s", c.found, c.pol.Name)
	}
	return refuse(http.StatusForbidden, d.Reason, "%s", msg)
}

// turnBytes is how much of a refused body costs one more turn: reading and
// inspecting 8 MiB for nothing is dearer than a record.
const turnBytes = 64 << 10

// deny records a refusal, at a pace. The record's error changes nothing: the
// call is refused anyway.
func (h *handler) deny(ctx context.Context, c *call, why *refusal) {
	c.out, c.req.body, c.req.fields = nil, nil, nil // not kept while waiting
	h.hold(c, 0)
	h.pace(1 + c.size/turnBytes)
	r := h.record(c, ledger.Denied)
	r.Reason, r.Detail = why.code, why.Error()
	_ = h.rec.Record(context.WithoutCancel(ctx), r)
}

// record describes c as it stands.
func (h *handler) record(c *call, v ledger.Verdict) ledger.Record {
	r := ledger.Record{
		Kind: ledger.KindModel, Verdict: v, Agent: h.agent.ID, Model: c.req.model,
		Reason: c.decision.Reason, Detail: c.decision.Rule,
		Process: ledger.Process{UID: h.agent.UID},
		Attrs: map[string]any{
			"call": c.id, "endpoint": c.ep.path, "request_bytes": c.size, "body_sha256": c.sum, "stream": c.req.stream,
		},
	}
	if c.pol != nil {
		r.Policy = c.pol.Digest()
	}
	if c.up.name != "" {
		r.Host, r.Attrs["upstream"], r.Attrs["upstream_local"] = c.up.base.Hostname(), c.up.name, c.up.local
	}
	if !modelName(r.Model) { // refused for it or for what came before: the detail quotes its beginning, if anything does
		r.Model = ""
	}
	if len(c.found) > 0 {
		r.Attrs["sensitive"], r.Attrs["stripped"] = c.found.String(), c.decision.Strip
	}
	return r
}
