package egress

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/clawbox/clawbox/appliance/holds"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// conn is one connection out of a sandbox.
type conn struct {
	box    *box
	id     string // links its records
	in     *net.TCPConn
	host   string // name or address
	addr   netip.Addr
	port   int
	name   bool              // host is a name
	kind   kind              // what its first bytes are
	by     policies.Decision // what allowed it
	asked  <-chan struct{}   // the changes of the box, when it was decided
	proc   ledger.Process
	caller Caller

	mu      sync.Mutex // guards the rest
	live    bool       // admitted, and what was admitted is under way
	out     net.Conn
	to      netip.Addr // where out leads, for a name that was looked up
	session *session
	rule    policies.HostRule // that governs it; zero: an operator let it in
	meter   *meter            // the rule's
	once    bool              // admitted by an answer for this connection alone
	let     bool              // admitted by an operator's answer
	lawOf   *policies.Policy  // what lawful was made of
	lawful  *policies.Policy
	ended   *refusal // why it was closed from here
	closed  bool
}

// serve takes a connection through all of its life.
func (b *box) serve(in *net.TCPConn) {
	c := &conn{box: b, id: rand.Text(), in: in, proc: ledger.Process{UID: b.agent.UID}}
	defer in.Close()
	defer c.survive()
	if !b.add(c) {
		return
	}
	defer b.remove(c)
	why := c.target()
	c.who()
	if why == nil && c.host == InferenceHost {
		if why = c.infer(); why == nil {
			return
		}
	}
	if why == nil {
		why = c.admit()
	}
	if why == nil {
		why = c.carry()
	}
	if why != nil {
		c.deny(why)
	}
}

// carry serves an admitted connection within its budget.
func (c *conn) carry() *refusal {
	m, rule := c.metered()
	if why := m.enter(rule.Budget); why != nil {
		return why
	}
	defer m.leave()
	if !inspected(rule) { // else it is the requests that are counted
		if why := m.turn(rule.Budget, time.Now()); why != nil {
			return why
		}
	}
	start := func() bool { return c.write(ledger.Allowed, c.by.Reason, "", map[string]any{"rule": c.by.Rule}) }
	if !inspected(rule) {
		return c.forward(start)
	}
	if !start() {
		return noLedger()
	}
	c.inspect()
	return nil
}

// govern finds the rule that says how the connection is treated; not ok when
// there is none.
func (c *conn) govern() bool {
	r, ok := c.law().Endpoint(c.request(policies.Connect))
	m := c.box.meter(r)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rule, c.meter = r, m
	return ok
}

// metered is the rule of this moment and what counts for it.
func (c *conn) metered() (*meter, policies.HostRule) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.meter, c.rule
}

// begin makes the connection one that recheck judges; not ok when it was
// closed meanwhile.
func (c *conn) begin(s *session) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.live, c.session = true, s
	return !c.closed
}

// survive ends this connection, not the daemon and with it every sandbox, if
// what the agent sent finds a fault in this code.
func (c *conn) survive() {
	if p := recover(); p != nil {
		c.abort()
		c.write(ledger.Denied, "internal.panic", fmt.Sprint(p), nil)
	}
}

// target finds where the client wants to go.
func (c *conn) target() *refusal {
	to, ok := c.in.LocalAddr().(*net.TCPAddr)
	if !ok {
		return refuse("net.address", "connect to a name or an address", "no destination address")
	}
	dst := to.AddrPort()
	c.addr, c.port = dst.Addr().Unmap().WithZone(""), int(dst.Port())
	c.host = c.addr.String()
	if fakes.Contains(c.addr) {
		c.host, c.name = c.box.names.name(c.addr)
		if !c.name {
			c.host = c.addr.String()
			return refuse("net.ssrf", "resolve the name again and connect to the answer", "%s stands for no name", c.addr)
		}
		return nil
	}
	if why := c.box.proxy.guard(c.addr); why != nil {
		return why
	}
	return control(c.addr, c.port)
}

// control refuses the ports of control planes inside.
func control(a netip.Addr, port int) *refusal {
	if !private(a) || !controlPorts[port] {
		return nil
	}
	return refuse("net.ssrf", "no policy opens it", "port %d of the private address %s is where the control planes of clusters and containers listen", port, a)
}

// guard refuses addresses that no policy can open.
func (p *Proxy) guard(a netip.Addr) *refusal {
	why := forbidden(a)
	switch {
	case why != "":
	case p.own.has(a):
		why = "an address of this host"
	case slices.ContainsFunc(p.c.Cluster, func(n netip.Prefix) bool { return n.Masked().Addr().Next() == a.Unmap() }):
		why = "the cluster's API server, or one of its nodes"
	}
	if why == "" {
		return nil
	}
	return refuse("net.ssrf", "use a destination outside this host", "%s is %s: refused whatever the policy says", a, why)
}

// infer hands the connection to the router.
func (c *conn) infer() *refusal {
	if c.box.models == nil && c.box.proxy.c.Handoff == nil {
		return refuse("infer.none", "ask the operator for a model engine", "this appliance answers no model calls")
	}
	if c.port != 80 {
		return refuse("infer.port", "use http://"+InferenceHost+"/v1", "%s answers on port 80, got port %d", InferenceHost, c.port)
	}
	if hand := c.box.proxy.c.Handoff; hand != nil {
		if err := hand(c.in, c.box.agent, c.proc); err != nil {
			return refuse("infer.unavailable", "try again later", "the model router does not take the connection: %.200v", err)
		}
		return nil
	}
	c.box.models.put(c.in)
	return nil
}

// admit asks policy, operator and the connection's own first bytes.
func (c *conn) admit() *refusal {
	if why := c.decide(); why != nil {
		return why
	}
	if !c.govern() {
		return refuse("net.ungoverned", "connect again", "no rule says how to treat connections to %s port %d", c.host, c.port)
	}
	_, rule := c.metered()
	if !inspected(rule) && (rule.Protocol == "tcp" || !c.name) {
		return nil
	}
	s, err := c.sniff(c.patience())
	if err != nil {
		return refuse("net.sniff", "send a complete TLS or HTTP greeting", "%v", err)
	}
	c.kind = s.kind
	return c.same(s)
}

// decide runs until the policy, or an operator, has said yes or no.
func (c *conn) decide() *refusal {
	for {
		changed := c.box.changes()
		c.asked = changed
		d := c.policy()
		switch d.Verdict {
		case policies.Allow:
			c.by = d
			return nil
		case policies.Hold:
		default:
			return c.denied(d)
		}
		c.hint()
		a := c.hold(d, changed)
		switch {
		case a.Again:
			continue
		case !a.Allow:
			return refuse(a.Denial.Code, a.Denial.Remedy, "%s", a.Denial.Detail)
		}
		c.by.Reason = "approval." + string(a.Scope)
		c.mu.Lock()
		c.let, c.once = true, a.Scope == holds.Once
		c.mu.Unlock()
		return nil
	}
}

// policy asks the policy of this moment.
func (c *conn) policy() policies.Decision {
	return c.box.agent.Policy().Decide(c.request(policies.Connect))
}

// request is a question to the policy about this connection.
func (c *conn) request(a policies.Action) policies.Request {
	return policies.Request{
		Action: a, Host: c.host, Port: c.port, Binary: c.caller.Binary, Ancestors: c.caller.Ancestors, Closed: c.box.proxy.c.Cluster,
	}
}

// denied puts the policy's answer in words for the client.
func (c *conn) denied(d policies.Decision) *refusal {
	r := refuse(d.Reason, "ask the operator to allow it: "+c.change(), "the policy does not allow %s port %d", c.host, c.port)
	switch d.Reason {
	case policies.ReasonBinary:
		r.detail += " for this program"
	case policies.ReasonDenied:
		r.remedy = "a deny rule names it; only a changed policy can allow it"
	case policies.ReasonAddress:
		r.detail += ", an address of the cluster that this host is a node of"
		r.remedy = "ask the operator for a rule that names the address, or a cidr inside the cluster's networks"
	}
	r.rule = d.Rule
	return r
}

// hold waits for the operator. The client hanging up ends the wait.
func (c *conn) hold(d policies.Decision, changed <-chan struct{}) holds.Outcome {
	ctx, cancel := context.WithCancel(c.box.ctx)
	stop := onHangUp(c.in, cancel)
	defer func() { stop(); cancel() }()
	q := c.question()
	q.Reason, q.Rule = d.Reason, d.Rule
	return c.box.proxy.c.Holds.Ask(ctx, q, changed)
}

// question is what an operator would have to decide about the connection.
func (c *conn) question() holds.Question {
	p := c.box.agent.Policy()
	q := holds.Question{
		Subject:   holds.Subject{Agent: c.box.agent.ID, Host: c.host, Port: c.port, Binary: c.caller.Binary},
		Ancestors: c.caller.Ancestors, Digest: c.box.digest(), Life: c.box.life, Process: c.proc, Change: c.wanted(p),
	}
	if p != nil {
		q.Policy = p.Name
	}
	return q
}

// deny records the refusal and tells the client, in its own protocol where
// that is HTTP.
func (c *conn) deny(why *refusal) {
	c.box.pace(&c.box.denials)
	c.hint()
	if !c.write(ledger.Denied, why.reason, why.detail, map[string]any{"rule": why.rule}) {
		why = noLedger()
	}
	c.tell(cmp.Or(why.status, http.StatusForbidden), why)
}

// tell answers an HTTP client, and resets any other.
func (c *conn) tell(status int, why *refusal) {
	if c.kind == silent && c.port != 443 {
		s, _ := c.sniff(300 * time.Millisecond)
		c.kind = s.kind
	}
	if c.kind != http1 {
		c.abort()
		return
	}
	body := c.body(why)
	text := http.StatusText(status)
	_ = c.in.SetDeadline(time.Now().Add(2 * time.Second))
	fmt.Fprintf(c.in, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", status, text, len(body), body)
	_ = c.in.CloseWrite()
	_, _ = io.CopyN(io.Discard, c.in, 1<<20) // unread bytes would turn the close into a reset
}

// body is why for an HTTP client.
func (c *conn) body(why *refusal) []byte {
	e := map[string]any{"code": why.reason, "host": c.host, "port": c.port, "detail": why.detail, "remedy": why.remedy}
	b, _ := json.Marshal(map[string]any{"error": e}) // strings and numbers always encode
	return b
}
