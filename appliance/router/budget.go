package router

import (
	"net/http"
	"time"
)

// meter counts an agent's use. Router.mu guards it.
type meter struct {
	requests int   // begun, refused ones too
	tokens   int   // settled
	reserved int   // of calls on their way
	open     int   // calls on their way
	bytes    int64 // of their bodies
	denials  *Pace
}

// maxOpen bounds an agent's calls at one time, maxBytes the bodies of them
// together; masking and parsing can take some three times that.
const (
	maxOpen  = 16
	maxBytes = 2 * MaxBody
)

// enter charges a call before anything of its body is read, so that one which
// is refused later costs the agent a request too; leave has to follow.
func (h *handler) enter(c *call) *refusal {
	h.mu.Lock()
	defer h.mu.Unlock()
	b, m := c.pol.Inference.Budget, h.meter()
	if b.Requests > 0 && m.requests >= b.Requests {
		return refuse(http.StatusTooManyRequests, "budget.requests", "%d of %d requests are used", m.requests, b.Requests)
	}
	if m.open >= maxOpen {
		return refuse(http.StatusTooManyRequests, "infer.busy", "%d calls of this agent are on their way, which is the most at one time; wait for one to end", m.open)
	}
	m.open++
	m.requests++
	c.entered = true
	return nil
}

// leave counts c out, if it ever came in, with what it holds.
func (h *handler) leave(c *call) {
	if !c.entered {
		return
	}
	h.hold(c, 0)
	h.mu.Lock()
	defer h.mu.Unlock()
	if m := h.meter(); m.open > 0 { // Forget may have come between
		m.open--
	}
}

// hold changes what c's body counts for to n bytes.
func (h *handler) hold(c *call, n int64) *refusal {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.meter()
	if n > c.held && m.bytes+n-c.held > max(maxBytes, h.max) {
		return refuse(http.StatusTooManyRequests, "infer.busy", "calls of this agent with %d bytes are on their way, and this one may have %d; wait for one to end", m.bytes, n)
	}
	m.bytes = max(m.bytes+n-c.held, 0) // Forget may have come between
	c.held = n
	return nil
}

// defaultOutput is reserved for the answer of a call that sets no bound itself.
const defaultOutput = 1024

// promptTokens is an estimate: a token for every four bytes, the usual ratio of
// English text.
func promptTokens(c *call) int { return len(c.out)/4 + 1 }

// outputTokens estimates what n bytes of generated text cost: a token for every
// three bytes, the ratio of code. Each piece of a stream is at least one, since
// most upstreams send a piece for each token. So prose is counted some third
// too high; it is never counted where usage is reported.
func outputTokens(n int) int { return (n + 2) / 3 }

// estimate is what a call reserves: its prompt, and the answers as long as they
// may become.
func estimate(c *call) int {
	n := promptTokens(c)
	if c.ep.output {
		out := c.req.output
		if out == 0 {
			out = defaultOutput
		}
		n += min(out, 1<<30) * c.req.choice * c.req.prompt
	}
	return n
}

// reserve takes the call's tokens from the agent's budget.
func (h *handler) reserve(c *call) *refusal {
	b, want := c.pol.Inference.Budget, estimate(c)
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.meter()
	if left := b.Tokens - m.tokens - m.reserved; b.Tokens > 0 && want > left {
		return refuse(http.StatusTooManyRequests, "budget.tokens", "this call may use %d tokens, %d of %d are left; send less context or a smaller max_tokens", want, max(left, 0), b.Tokens)
	}
	m.reserved += want
	c.reserved = want
	return nil
}

// grow makes c's reservation at least n tokens, if the budget has them.
func (h *handler) grow(c *call, n int) *refusal {
	if n <= c.reserved {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	b, m, more := c.pol.Inference.Budget, h.meter(), n-c.reserved
	if left := b.Tokens - m.tokens - m.reserved; b.Tokens > 0 && more > left {
		return refuse(http.StatusTooManyRequests, "budget.tokens", "this answer has taken some %d tokens, and no more of %d are left; it is cut here", c.reserved, b.Tokens)
	}
	m.reserved += more
	c.reserved = n
	return nil
}

// settle replaces c's reservation by what was used.
func (h *handler) settle(c *call, used int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.meter()
	m.reserved -= min(c.reserved, m.reserved) // Forget may have come between
	m.tokens += used
	c.reserved = 0
}

// meter is the agent's, made at first use. The caller holds mu.
func (h *handler) meter() *meter {
	m := h.meters[h.agent.ID]
	if m == nil {
		m = &meter{denials: &Pace{}}
		h.meters[h.agent.ID] = m
	}
	return m
}

// pace lets n refusals wait for their turn. A client that hangs up does not
// shorten it, and keeps its connection until then.
func (h *handler) pace(n int) {
	h.mu.Lock()
	p := h.meter().denials
	h.mu.Unlock()
	time.Sleep(p.Turn(time.Now(), n))
}

// Spent returns the requests begun, refused ones too, and the tokens settled for an agent.
func (r *Router) Spent(agentID string) (requests, tokens int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.meters[agentID]; m != nil {
		return m.requests, m.tokens
	}
	return 0, 0
}

// Forget drops an agent's counters: its life is over.
func (r *Router) Forget(agentID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.meters, agentID)
}
