package egress

import (
	"io"
	"slices"

	"github.com/clawbox/clawbox/policies"
)

// charge is one budget that a request's bytes count for.
type charge struct {
	m    *meter
	rule policies.HostRule
}

// bound finds the rules that the messages of a request pass by. A budget of
// each of them counts, whichever rule governs the connection or was found by
// the path alone: else the order of rules would be a way round a budget.
func (k *call) bound() {
	k.rules, k.charges = nil, nil
	for i := range k.msgs {
		r, ok := k.s.endpoint(&k.msgs[i])
		if !ok || slices.ContainsFunc(k.rules, func(x policies.HostRule) bool { return x.YAML() == r.YAML() }) {
			continue
		}
		k.rules = append(k.rules, r)
		if m := k.s.box.meter(r); m != nil {
			k.charges = append(k.charges, charge{m, r})
		}
	}
}

// beside are the charges that the connection does not count itself.
func (k *call) beside() []charge {
	own, _ := k.s.metered()
	return slices.DeleteFunc(slices.Clone(k.charges), func(c charge) bool { return c.m == own })
}

// charged counts a body, or a WebSocket's server, for budgets.
type charged struct {
	io.ReadCloser
	k  *call
	up bool // what is read is on its way out
	cs []charge
}

// count gives a body that counts, b itself where there is nothing to count.
func (k *call) count(b io.ReadCloser, up bool) io.ReadCloser {
	cs := k.beside()
	if b == nil || len(cs) == 0 {
		return b
	}
	return &charged{ReadCloser: b, k: k, up: up, cs: cs}
}

func (c *charged) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	return n, c.spend(n, c.up, err)
}

func (c *charged) spend(n int, up bool, err error) error {
	sent, got := 0, n
	if up {
		sent, got = n, 0
	}
	for _, x := range c.cs {
		if why := x.m.add(x.rule.Budget, sent, got); why != nil && n > 0 {
			c.k.stop(why)
			return why
		}
	}
	return err
}

// chargedSocket is a WebSocket's server.
type chargedSocket struct {
	*charged
	w io.Writer
}

func (c chargedSocket) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	return n, c.spend(n, true, err)
}

func (k *call) countSocket(s io.ReadWriteCloser) io.ReadWriteCloser {
	if c, ok := k.count(s, false).(*charged); ok {
		return chargedSocket{c, s}
	}
	return s
}
