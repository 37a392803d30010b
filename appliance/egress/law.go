package egress

import (
	"slices"

	"github.com/clawbox/clawbox/policies"
)

// law is the policy of this moment, with the rule that an operator's answer
// stands for: what was let in is treated as that rule says, and inspected where
// it says so.
func (c *conn) law() *policies.Policy {
	p := c.box.agent.Policy()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.let || p == nil || p.Decide(c.request(policies.Connect)).Verdict != policies.Hold {
		return p
	}
	if c.lawOf != p {
		c.lawOf, c.lawful = p, p.WithAllow(c.wanted(p))
	}
	return c.lawful
}

// change is the policy change that would allow the connection.
func (c *conn) change() string {
	return "network: {allow: [" + c.wanted(c.box.agent.Policy()).YAML() + "]}"
}

// wanted is the rule that would allow the connection under p. Where rules name the
// destination for other programs it is theirs for this one: a bare host and
// port would let it past what they have inspected.
func (c *conn) wanted(p *policies.Policy) policies.HostRule {
	bare := policies.HostRule{Host: c.host, Ports: []int{c.port}}
	if p == nil {
		return bare
	}
	all := *p
	all.Network.Allow = slices.Clone(p.Network.Allow)
	for i := range all.Network.Allow {
		all.Network.Allow[i].Binaries = nil
	}
	r, ok := all.Endpoint(c.request(policies.Connect))
	if !ok {
		return bare
	}
	if c.caller.Binary != "" {
		r.Binaries = []string{c.caller.Binary}
	}
	return r
}
