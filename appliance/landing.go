package appliance

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"syscall"

	"github.com/clawbox/clawbox/appliance/egress"
	"github.com/clawbox/clawbox/appliance/guard"
	"github.com/clawbox/clawbox/appliance/sandbox"
	"github.com/clawbox/clawbox/appliance/service"
)

// A landing is a namespace's network that nobody serves yet: lo, routes,
// sockets and steering. None of it depends on a policy where the guard steers
// every port, so waiting launchers have theirs ready. It leads nowhere before
// egress serves it, which comes after the guard watches.
type landing struct {
	sockets *egress.Sockets
	land    io.Closer
	steered func() *service.Process // the guard that runs now; nil: none steers
	by      *service.Process        // the guard that steers it
}

// landing opens one. name is what the guard knows its steering by.
func (a *Appliance) landing(netns *os.File, name string, ports []int) (l *landing, err error) {
	l = &landing{}
	if steer := a.steer(name); steer != nil {
		l.steered = a.part("guard").process
		l.by = l.steered()
	}
	l.sockets, l.land, err = egress.OpenSockets(netns, egress.SocketOptions{Ports: ports, Steer: a.steer(name)})
	return l, err
}

// landAhead makes one for a launcher that waits.
func (a *Appliance) landAhead(netns *os.File) (sandbox.Ahead, error) {
	if a.tierNow() == guard.TierNone {
		return nil, errors.New("without steering its ports follow from the policy")
	}
	st, err := netns.Stat()
	if err != nil {
		return nil, err
	}
	return a.landing(netns, "ahead-"+nsName(st), nil)
}

// Fresh says whether the guard that steers it still lives.
func (l *landing) Fresh() bool { return l.by == nil || l.steered() == l.by }

// Close is for one that nobody serves.
func (l *landing) Close() error { return errors.Join(l.sockets.Close(), l.land.Close()) }

// attach gives a sandbox its way out, before anything runs in it.
func (a *Appliance) attach(ctx context.Context, ag *agent, netns *os.File) (io.Closer, error) {
	l, err := a.landing(netns, ag.Name, egress.PolicyPorts(ag.policy()))
	if err != nil {
		return nil, err
	}
	return a.open(ctx, ag, l)
}

// open has egress serve a landing for an agent.
func (a *Appliance) open(ctx context.Context, ag *agent, l *landing) (_ io.Closer, err error) {
	o := &outlet{sockets: l.sockets, land: l.land}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.detach(ag, o))
		}
	}()
	if o.credentials, err = a.credentials(ag.policy()); err != nil {
		return nil, err
	}
	if o.netns, err = egress.Netns(l.sockets.TCP[0]); err != nil {
		return nil, err
	}
	v := o.serving(ag)
	err = atOnce(
		func() error { return a.part("router").call(ctx, callAgent, v.agentInfo, nil) }, // whose connections it may take
		func() error { return a.part("egress").call(ctx, callServe, v, nil, o.files()...) },
	)
	if err != nil {
		return nil, err
	}
	ag.mu.Lock()
	ag.outlet = o
	ag.mu.Unlock()
	return closer(func() error { return a.detach(ag, o) }), nil
}

// nsName is a namespace's number.
func nsName(st os.FileInfo) string {
	return strconv.FormatUint(st.Sys().(*syscall.Stat_t).Ino, 10)
}
