package appliance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/engine"
	"github.com/clawbox/clawbox/appliance/router"
	"github.com/clawbox/clawbox/appliance/service"
)

// startRouter starts the router's service.
func (a *Appliance) startRouter(ctx context.Context) error {
	ups := maps.Clone(a.cfg.Upstreams)
	if ups == nil {
		ups = map[string]config.Upstream{}
	}
	c := routerConfig{Upstreams: ups, Records: a.cfg.RecordBytes()}
	if a.cfg.Engine.Binary != "" {
		c.Engine = a.cfg.Engine.Listen
		ups["local"] = config.Upstream{URL: "http://" + c.Engine + "/v1", Local: true}
	}
	t := &part{role: "router"}
	t.spec = func(ctx context.Context) (order, error) {
		w, err := a.openWriter(ctx, "router")
		if err != nil {
			return order{}, err
		}
		cage := a.cage("router")
		cage.Calls, cage.Files, cage.Read = []string{"connect"}, 8192, outside()
		cage.Ports = upstreamPorts(c.Upstreams)
		return order{service.Spec{Role: "router", Cage: cage, Config: c, Files: []*os.File{w}, Handler: a.answerRouter}, []*os.File{w}}, nil
	}
	t.up = func(ctx context.Context, p *service.Process) error {
		for _, ag := range a.everyone() {
			if ag.connected() == nil {
				continue
			}
			if err := p.Conn.Call(ctx, callAgent, ag.info(), nil); err != nil {
				return err
			}
		}
		return errors.Join(a.join(ctx, p, "relay"), a.join(ctx, p, "egress"))
	}
	return a.employ(ctx, t)
}

// upstreamPorts are the TCP ports that the router has to reach: DNS and what
// the upstreams listen on.
func upstreamPorts(ups map[string]config.Upstream) []uint16 {
	ports := []uint16{53}
	for _, up := range ups {
		u, err := url.Parse(up.URL) // router.New refuses one that is no URL
		if err != nil {
			continue
		}
		p := u.Port()
		if p == "" {
			p = map[string]string{"http": "80", "https": "443"}[u.Scheme]
		}
		if n, err := strconv.ParseUint(p, 10, 16); err == nil {
			ports = append(ports, uint16(n))
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// answerRouter gives the router a credential, of an upstream that the
// configuration names and no other file.
func (a *Appliance) answerRouter(_ context.Context, r *service.Request) (any, error) {
	if r.Method == callPaced {
		return nil, a.paced(r)
	}
	var file string
	if err := r.Decode(&file); err != nil || r.Method != callKey {
		return nil, fmt.Errorf("the router may not ask for %q", r.Method)
	}
	for _, u := range a.cfg.Upstreams {
		if u.KeyFile != "" && u.KeyFile == file {
			return router.ReadKey(file)
		}
	}
	return nil, errors.New("no upstream has this credential")
}

// join connects p with another service, if that runs.
func (a *Appliance) join(ctx context.Context, p *service.Process, peer string) error {
	t := a.part(peer)
	if t == nil || t.process() == nil {
		return nil // it joins when it starts
	}
	x, y, err := service.Pair()
	if err != nil {
		return err
	}
	defer x.Close()
	defer y.Close()
	if err := p.Conn.Call(ctx, callLink, link{peer}, nil, x); err != nil {
		return fmt.Errorf("join %s and %s: %w", p.Role, peer, err)
	}
	if err := t.call(ctx, callLink, link{p.Role}, nil, y); err != nil {
		return fmt.Errorf("join %s and %s: %w", peer, p.Role, err)
	}
	return nil
}

// outside is what a service reads that talks to other machines: how names are
// resolved, and whose certificates are believed.
func outside() (have []string) {
	for _, p := range []string{
		"/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ssl", "/etc/pki", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates",
	} {
		if _, err := os.Stat(p); err == nil {
			have = append(have, p)
		}
	}
	return have
}

// startRelay makes the engine's network namespace, and the relay in it.
func (a *Appliance) startRelay(ctx context.Context) (err error) {
	if a.engineNet, err = engine.NewNetNS(); err != nil {
		return err
	}
	port := netip.MustParseAddrPort(a.cfg.Engine.Listen).Port() // config.Loopback has checked it
	t := &part{role: "relay"}
	t.spec = func(context.Context) (order, error) {
		cage := a.cage("relay")
		cage.Calls, cage.Ports, cage.Files = []string{"connect"}, []uint16{port}, 8192
		return order{Spec: service.Spec{Role: "relay", Cage: cage, Config: relayConfig{a.cfg.Engine.Listen}, NetNS: a.engineNet}}, nil
	}
	t.up = func(ctx context.Context, p *service.Process) error { return a.join(ctx, p, "router") }
	return a.employ(ctx, t)
}
