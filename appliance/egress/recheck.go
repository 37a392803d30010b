package egress

import (
	"net"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// settle is for when the connection has become live: a reload before that has
// passed it by.
func (c *conn) settle() {
	if c.asked != c.box.changes() {
		_ = c.box.recordNow(c.recheck()...)
	}
}

// recheck closes the connection if it is not allowed any more, and gives the
// records of what it closed: of all connections together they take one flush.
func (c *conn) recheck() []ledger.Record {
	c.mu.Lock()
	live, once, was, s := c.live, c.once, c.rule, c.session
	_, counts := c.out.(*outward)
	c.mu.Unlock()
	if !live {
		return nil // still being decided
	}
	c.govern()
	why := c.standing(once)
	m, is := c.metered()
	switch again := "connect again"; {
	case why != nil:
	case inspected(is) && !inspected(was):
		why = refuse("net.policy_changed", again, "connections to %s port %d are inspected from now on", c.host, c.port)
	case was.Protocol == "tcp" && is.Protocol != "tcp" && c.name:
		why = refuse("net.policy_changed", again, "connections to %s port %d have to name their host from now on", c.host, c.port)
	case s == nil && m != nil && !counts:
		why = refuse("net.policy_changed", again, "connections to %s port %d have a budget from now on", c.host, c.port)
	}
	switch {
	case why != nil && c.cut(why):
		return []ledger.Record{c.entry(ledger.Denied, why.reason, why.detail, nil)}
	case why == nil && s != nil:
		return s.recheck()
	}
	return nil
}

// standing says whether an open connection may stay open.
func (c *conn) standing(once bool) *refusal {
	c.mu.Lock()
	to := c.to
	c.mu.Unlock()
	if to.IsValid() {
		if why := c.leads(to); why != nil {
			return why
		}
	}
	d := c.policy()
	switch {
	case d.Verdict == policies.Allow:
		return nil
	case d.Verdict == policies.Hold && once:
		return nil
	case d.Verdict == policies.Hold && c.box.proxy.c.Holds.Covers(c.question()):
		return nil
	}
	r := c.denied(d)
	r.reason, r.detail = "net.policy_changed", r.detail+" any more"
	return r
}

// end closes an open connection for a reason, which is recorded.
func (c *conn) end(why *refusal) {
	if c.cut(why) {
		c.record(why, nil)
	}
}

// cut is end without the record; not ok when it has been closed before.
func (c *conn) cut(why *refusal) bool {
	c.mu.Lock()
	first := c.ended == nil
	if first {
		c.ended = why
	}
	c.mu.Unlock()
	if first {
		c.abort()
	}
	return first
}

// abort resets both sides. It holds no lock while it does: closing TLS writes,
// and what is written counts.
func (c *conn) abort() {
	c.mu.Lock()
	c.closed = true
	out, s := c.out, c.session
	c.mu.Unlock()
	reset(c.in)
	if out != nil {
		reset(out)
	}
	if s != nil {
		s.close()
	}
}

// reset closes c so that the other end sees a reset, not an orderly end: what
// was refused must not look complete.
func reset(c net.Conn) {
	if o, ok := c.(*outward); ok {
		c = o.Conn
	}
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	c.Close()
}
