package egress

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// A connection that a looser rule let in does not live on under a stricter one.
func TestReloadStricter(t *testing.T) {
	l := newLab(t, steered(steer(t)))
	opaque, named := rule("a.example", 7000), rule("a.example", 7000)
	opaque.Protocol = "tcp"
	budget := named
	budget.Budget.Up = 1 << 20
	larger := budget
	larger.Budget.Up = 2 << 20
	for name, x := range map[string]struct {
		was, is policies.HostRule
		ends    bool
	}{
		"opaque to named":     {opaque, named, true},
		"a budget":            {named, budget, true},
		"another budget":      {budget, larger, false},
		"the same":            {named, named, false},
		"a budget less":       {budget, named, false},
		"a budget for opaque": {opaque, budget, true},
	} {
		t.Run(name, func(t *testing.T) {
			l.network(allow(x.was))
			c := l.connect("tcp", "a.example:7000")
			if !echoes(c, "\x00x") {
				t.Fatal("no echo")
			}
			l.network(allow(x.is))
			l.proxy.Recheck("a1")
			if x.ends {
				if cut(t, c) == nil {
					t.Error("still open")
				}
			} else if !echoes(c, "\x00y") {
				t.Error("closed")
			}
		})
	}
}

// An address that a reload denies while a request's connection is being made
// carries nothing.
func TestReloadWhileReaching(t *testing.T) {
	var l *lab
	var n atomic.Int64
	l, site := inspectLab(t, hello200, func(c *Config, _ *holdsConfig) {
		dial := c.Dial
		c.Dial = func(ctx context.Context, network, a string) (net.Conn, error) {
			if n.Add(1) == 1 {
				r := ruleFor("http")
				l.network(policies.Network{Default: policies.Deny, Allow: []policies.HostRule{r}, Deny: []policies.HostRule{{CIDR: "203.0.113.0/24"}}})
				l.proxy.Recheck("a1")
			}
			return dial(ctx, network, a)
		}
		c.Lookup = func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("203.0.113.7")}, nil
		}
	})
	l.serve(site.put)
	if st, body, _ := do(t, l.client(true), "GET", "https://a.example/", ""); st == 200 || site.count() != 0 {
		t.Errorf("got %d %s, %d requests", st, body, site.count())
	}
	if !contains(l.book.reasons(ledger.KindConnect), "denied net.denied") {
		t.Errorf("records %v", l.book.reasons(ledger.KindConnect))
	}
}
