package egress

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/clawbox/clawbox/policies"
)

// meter counts what goes over one rule during one run of an agent: its bounds
// are LinkBudget's. It goes on counting over a reload that keeps the rule.
type meter struct {
	mu       sync.Mutex // guards the rest
	up, down int64      // bytes
	open     int        // connections
	recent   window
}

// meterKey tells rules apart: budgets of a pattern are shared by all names
// that match it, or an agent would have as many budgets as it knows names.
func meterKey(r policies.HostRule) string {
	return strings.Join([]string{r.String(), r.Protocol, r.Path, strings.Join(r.Binaries, ",")}, "\x00")
}

// meter returns the rule's meter, nil for a rule without bounds.
func (b *box) meter(r policies.HostRule) *meter {
	if r.Budget == (policies.LinkBudget{}) {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	k := meterKey(r)
	if b.meters[k] == nil {
		b.meters[k] = new(meter)
	}
	return b.meters[k]
}

func overBudget(format string, args ...any) *refusal {
	return refuse("net.budget", "wait, or ask the operator for a larger budget", format, args...)
}

// enter admits one more connection.
func (m *meter) enter(b policies.LinkBudget) *refusal {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if why := m.spent(b); why != nil {
		return why
	}
	if b.Connections > 0 && m.open >= b.Connections {
		return overBudget("%d connections are open, the budget is %d", m.open, b.Connections)
	}
	m.open++
	return nil
}

func (m *meter) leave() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open--
}

// turn admits one more request, or connection where requests are not seen.
func (m *meter) turn(b policies.LinkBudget, now time.Time) *refusal {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if why := m.spent(b); why != nil {
		return why
	}
	if b.PerMinute > 0 && !m.recent.add(now, b.PerMinute) {
		return overBudget("the budget is %d a minute", b.PerMinute)
	}
	return nil
}

// add counts bytes and says whether the budget still holds.
func (m *meter) add(b policies.LinkBudget, up, down int) *refusal {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.up, m.down = m.up+int64(up), m.down+int64(down)
	return m.spent(b)
}

// spent says which budget of bytes is used up. The caller holds mu.
func (m *meter) spent(b policies.LinkBudget) *refusal {
	switch {
	case b.Up > 0 && m.up >= b.Up:
		return overBudget("%d bytes were sent, the budget is %d", m.up, b.Up)
	case b.Down > 0 && m.down >= b.Down:
		return overBudget("%d bytes were received, the budget is %d", m.down, b.Down)
	}
	return nil
}

// window counts events by the second. Any minute spans at most 61 seconds of
// the clock, and no 61 of them hold more than the limit.
type window struct {
	n    [61]int
	last int64 // Unix second
}

func (w *window) add(now time.Time, limit int) bool {
	s := now.Unix()
	if s-w.last >= int64(len(w.n)) || w.last == 0 {
		w.n, w.last = [61]int{}, s
	}
	for ; w.last < s; w.last++ {
		w.n[(w.last+1)%int64(len(w.n))] = 0
	}
	sum := 0
	for _, n := range w.n {
		sum += n
	}
	if sum >= limit {
		return false
	}
	w.n[w.last%int64(len(w.n))]++
	return true
}

// outward is a connection to the outside. It counts, and breaks when its
// budget is used up.
type outward struct {
	net.Conn
	c      *conn
	count  *tally
	to     netip.Addr // what the name was looked up to
	closed func()     // nil: nobody wants to know
}

// tally is what went over all outward connections of one inward one.
type tally struct {
	mu       sync.Mutex
	up, down int64
}

func (t *tally) add(up, down int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.up, t.down = t.up+int64(up), t.down+int64(down)
}

func (t *tally) sum() (up, down int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.up, t.down
}

func (o *outward) Read(b []byte) (int, error) {
	n, err := o.Conn.Read(b)
	return n, o.spend(0, n, err)
}

func (o *outward) Write(b []byte) (int, error) {
	n, err := o.Conn.Write(b)
	return n, o.spend(n, 0, err)
}

func (o *outward) spend(up, down int, err error) error {
	if up+down == 0 {
		return err
	}
	o.count.add(up, down)
	m, rule := o.c.metered()
	if m == nil {
		return err
	}
	if why := m.add(rule.Budget, up, down); why != nil {
		o.c.end(why)
		return fmt.Errorf("over budget: %s", why.detail)
	}
	return err
}

func (o *outward) Close() error {
	if o.closed != nil {
		o.closed()
	}
	return o.Conn.Close()
}

// CloseWrite ends the sending half.
func (o *outward) CloseWrite() error {
	if w, ok := o.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return o.Conn.Close()
}
