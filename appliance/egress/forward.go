package egress

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// dialTimeout bounds resolving and connecting together.
const dialTimeout = 15 * time.Second

// forward connects an allowed connection and carries its bytes, none before
// record has written what allows it.
func (c *conn) forward(record func() bool) *refusal {
	start := time.Now()
	nc, to, recorded, why := c.connect(record)
	if !recorded {
		return noLedger()
	}
	if why != nil {
		v := ledger.Denied
		if why.reason == "net.unreachable" {
			v = ledger.Allowed // and yet it came to nothing
		}
		c.write(v, why.reason, why.detail, nil)
		c.tell(502, why)
		return nil
	}
	defer nc.Close()
	out, count := c.outward(nc)
	c.mu.Lock()
	c.out = out
	if c.name {
		c.to = to.Addr()
	}
	c.mu.Unlock()
	if !c.begin(nil) {
		return nil
	}
	c.settle()
	up, down := c.splice(out)
	if count != nil {
		up, down = count.sum()
	}
	nc.Close()
	c.in.Close()
	c.closing(start, map[string]any{"address": to.String(), "bytes_sent": up, "bytes_received": down})
	return nil
}

// connect dials while the record is being written, and keeps the connection if
// that succeeds: a handshake with an allowed address is all that can come
// before the record. A name that has to be looked up waits for it, because the
// question carries what the agent wrote.
func (c *conn) connect(record func() bool) (nc net.Conn, to netip.AddrPort, recorded bool, why *refusal) {
	if _, fixed := c.box.proxy.hosts[c.host]; c.name && !fixed {
		if recorded = record(); recorded {
			nc, to, why = c.dial(c.box.ctx)
		}
		return nc, to, recorded, why
	}
	ctx, cancel := context.WithCancel(c.box.ctx)
	defer cancel()
	done := make(chan bool, 1)
	go func() {
		ok := record()
		if !ok {
			cancel()
		}
		done <- ok
	}()
	nc, to, why = c.dial(ctx)
	if recorded = <-done; !recorded && nc != nil {
		reset(nc)
		nc = nil
	}
	return nc, to, recorded, why
}

// outward counts what a budget bounds. Without one the connection stays as it
// is: the kernel can then carry its bytes without showing them to this process.
func (c *conn) outward(nc net.Conn) (net.Conn, *tally) {
	if m, _ := c.metered(); m == nil {
		return nc, nil
	}
	t := new(tally)
	return &outward{Conn: nc, c: c, count: t}, t
}

// dial resolves, checks every address, also by further rules, and connects to one
// that was checked.
func (c *conn) dial(ctx context.Context, rules ...policies.HostRule) (net.Conn, netip.AddrPort, *refusal) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	as, why := c.addresses(ctx)
	if why != nil {
		return nil, netip.AddrPort{}, why
	}
	for _, a := range as {
		for _, r := range rules {
			if c.name && !r.LeadsTo(a) {
				return nil, netip.AddrPort{}, c.elsewhere(a)
			}
		}
	}
	var errs []error
	for _, a := range as[:min(len(as), 4)] {
		to := netip.AddrPortFrom(a, uint16(c.port))
		out, err := c.box.proxy.c.Dial(ctx, "tcp", to.String())
		if err == nil {
			return out, to, nil
		}
		errs = append(errs, err)
	}
	return nil, netip.AddrPort{}, refuse("net.unreachable", "try again later", "%s port %d does not answer: %v", c.host, c.port, errors.Join(errs...))
}

// addresses are where c may be connected to. One bad address refuses them all:
// a resolver that mixes them is not to be trusted.
func (c *conn) addresses(ctx context.Context) ([]netip.Addr, *refusal) {
	p := c.box.proxy
	if !c.name {
		return []netip.Addr{c.addr}, nil // guarded, and allowed by a rule that names it
	}
	if a, ok := p.hosts[c.host]; ok {
		if why := p.guard(a); why != nil {
			return nil, why
		}
		return []netip.Addr{a}, c.leads(a)
	}
	as, err := p.c.Lookup(ctx, c.host)
	if err != nil || len(as) == 0 {
		return nil, refuse("net.unreachable", "check the name; a site without DNS lists it in hosts of appliance.yaml", "%s does not resolve", c.host)
	}
	for i, a := range as {
		as[i] = a.Unmap().WithZone("")
		if why := p.guard(as[i]); why != nil {
			return nil, why
		}
		if why := c.leads(as[i]); why != nil {
			return nil, why
		}
	}
	return as, nil
}

// leads says why the connection's name may not lead to a, nil if it may: by the
// policy, and by the rule that governs the connection, also where another rule, or
// an operator, would let it lead further.
func (c *conn) leads(a netip.Addr) *refusal {
	r := c.request(policies.Connect)
	r.Addr = a
	d := c.law().Decide(r)
	if why := control(a, c.port); why != nil {
		return why
	}
	_, rule := c.metered()
	out := d.Reason == policies.ReasonAddress || !rule.LeadsTo(a)
	switch {
	case d.Reason == policies.ReasonDenied:
		w := refuse(d.Reason, "only a changed policy can allow it", "%s resolves to %s, which a deny rule names", c.host, a)
		w.rule = d.Rule
		return w
	case c.box.proxy.hosts[c.host] == a && out && len(rule.AllowedIPs) == 0:
		return nil // the operator said where it leads
	case private(a) && (out || d.Verdict == policies.Hold && c.box.proxy.hosts[c.host] != a && !c.names(a)):
		return refuse("net.ssrf", "add the name to hosts in appliance.yaml, or the network to allowedIPs of the rule", "%s resolves to the private address %s", c.host, a)
	case out:
		return c.elsewhere(a)
	}
	return nil
}

func (c *conn) elsewhere(a netip.Addr) *refusal {
	return refuse(policies.ReasonAddress, "ask the operator to add it to allowedIPs of the rule", "%s resolves to %s, where the policy does not let it lead", c.host, a)
}

// names says whether an allow rule names the address itself; "*" never does.
func (c *conn) names(a netip.Addr) bool {
	r := c.request(policies.Connect)
	r.Host = a.String()
	return c.box.agent.Policy().Decide(r).Verdict == policies.Allow
}

// splice carries bytes both ways until both ends are done or one breaks, and
// returns how many. A client that was silent so far is checked when it speaks.
func (c *conn) splice(out net.Conn) (up, down int64) {
	_, rule := c.metered()
	named := c.name && rule.Protocol != "tcp"
	if named && c.kind == http1 {
		return c.relay(out)
	}
	var wg sync.WaitGroup
	wg.Go(func() { down = copyHalf(c.in, out) })
	if named && c.kind == silent {
		if why := c.late(); why != nil {
			c.end(why)
			wg.Wait()
			return 0, down
		}
		if c.kind == http1 {
			_ = out.SetReadDeadline(time.Unix(1, 0)) // ends the copying, for now
			wg.Wait()
			_ = out.SetReadDeadline(time.Time{})
			return c.lateHTTP(out, down)
		}
	}
	up = copyHalf(out, c.in)
	wg.Wait()
	return up, down
}

// lateHTTP is for a request that came after a silence.
func (c *conn) lateHTTP(out net.Conn, down int64) (int64, int64) {
	if down > 0 {
		c.end(refuse("net.protocol", "send the request first", "an HTTP request after the server's first bytes"))
		return 0, down
	}
	return c.relay(out)
}

// late checks the first bytes of a client that let the server speak first.
func (c *conn) late() *refusal {
	s, err := c.sniff(0)
	if errors.Is(err, errGreeting) {
		return refuse("net.sniff", "send a complete TLS or HTTP greeting", "%v", err)
	}
	if c.kind = s.kind; c.kind == silent {
		return nil // the client ended without a word
	}
	return c.same(s)
}

// copyHalf copies until the source ends, then ends the destination's input;
// an error on the way closes both, but for a deadline, which only splice sets.
func copyHalf(dst, src net.Conn) int64 {
	n, err := io.Copy(dst, src)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return n
	}
	if w, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
		_ = w.CloseWrite()
		return n
	}
	reset(dst)
	reset(src)
	return n
}
