package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/clawbox/clawbox/appliance/egress"
	"github.com/clawbox/clawbox/appliance/holds"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/service"
	"github.com/clawbox/clawbox/policies"
)

// Egress answers sockets that the supervisor made in each sandbox's namespace.
// The supervisor keeps duplicates: when egress dies, what it had open ends with
// it, new connections wait in the kernel, and the next egress takes over the
// same sockets.

// What egress answers, besides callAgent, callForget and callLink.
const (
	callServe   = "serve"   // serving, the sandbox's sockets
	callPapers  = "papers"  // ref → papers
	callPending = "pending" // → number of held requests
	callHTTP    = "http"    // one socket: the operator's side of what is held
	callRemove  = "remove"  // ref: nothing of the agent's answers stays
	callAlways  = "always"  // always; asked of the supervisor
)

// egressConfig is what egress is started with.
type egressConfig struct {
	Hosts   map[string]string `json:"hosts"`
	Cluster []netip.Prefix    `json:"cluster,omitempty"` // see egress.Config
	Hold    time.Duration     `json:"hold"`
	File    string            `json:"file"` // its book of held requests
	Seed    []byte            `json:"seed"` // secret: the sandboxes' CA keys follow from it
	Boot    string            `json:"boot"` // see egress.Config
	// Records is what an agent's records may take, in bytes: see allowance.
	Records int64 `json:"records"`
}

// serving is a sandbox to serve.
type serving struct {
	agentInfo
	Steered     bool              `json:"steered"`
	Credentials map[string]string `json:"credentials,omitempty"` // values by name
}

// always is a policy change that an operator asked for.
type always struct {
	Agent    string            `json:"agent"`
	Rule     policies.HostRule `json:"rule"`
	Operator string            `json:"operator"`
}

// egressService is the way out of every sandbox.
type egressService struct {
	proxy  *egress.Proxy
	book   *holds.Book
	agents roster
	desk   *desk // the control socket's connections

	// life is held while a sandbox's sockets are taken or given up: one that
	// is given up while it is still being taken must not stay.
	life sync.Mutex

	mu     sync.Mutex // guards the rest
	router *service.Conn
	guard  *service.Conn
	boxes  map[string]io.Closer
	creds  map[string]map[string]string // agent → name → value
}

func egressRole(s *service.Self, r *service.Request) (service.Handler, error) {
	var c egressConfig
	if err := r.Decode(&c); err != nil {
		return nil, err
	}
	f, err := r.File(0)
	if err != nil {
		return nil, err
	}
	log, err := dialLedger(f)
	if err != nil {
		return nil, err
	}
	es := &egressService{boxes: map[string]io.Closer{}, creds: map[string]map[string]string{}}
	es.book, err = holds.Open(holds.Config{
		File: c.File, Recorder: log, Timeout: c.Hold,
		Always: func(ctx context.Context, agent string, r policies.HostRule, operator string) error {
			return s.Conn.Call(ctx, callAlways, always{agent, r, operator}, nil)
		},
	})
	if err != nil {
		return nil, err
	}
	es.proxy, err = egress.New(egress.Config{
		Recorder: &pacedLog{log, newAllowance("egress", c.Records), tellPacedBy(s)}, Holds: es.book, Hosts: c.Hosts, Cluster: c.Cluster, Seed: c.Seed, Boot: c.Boot,
		Handoff: es.toRouter, Who: es.who, Credential: es.credential,
	})
	if err != nil {
		return nil, err
	}
	es.desk = newDesk(holds.Handler(es.book, es.proxy.Recheck))
	go func() { // no event, no action
		<-log.c.Done()
		s.Conn.Close()
	}()
	return es.supervisor, nil
}

// supervisor answers the supervisor.
func (es *egressService) supervisor(ctx context.Context, r *service.Request) (any, error) {
	switch r.Method {
	case callLink:
		return nil, es.link(r)
	case callPending:
		return len(es.book.List()), nil
	case callHTTP:
		return nil, es.operators(r)
	case callServe:
		return nil, es.serve(ctx, r)
	case callAgent:
		var a agentInfo
		if err := r.Decode(&a); err != nil {
			return nil, err
		}
		_, err := es.agents.put(a)
		es.proxy.Recheck(a.ID)
		return nil, err
	}
	var a ref
	if err := r.Decode(&a); err != nil {
		return nil, err
	}
	switch r.Method {
	case callForget:
		return nil, es.forget(a.ID)
	case callRemove:
		return nil, es.book.Remove(a.ID)
	case callPapers:
		return es.papers(a.ID)
	}
	return nil, fmt.Errorf("egress knows no %q", r.Method)
}

func (es *egressService) link(r *service.Request) error {
	var l link
	if err := r.Decode(&l); err != nil {
		return err
	}
	f, err := r.File(0)
	if err != nil {
		return err
	}
	c, err := service.NewConn(f, nil)
	if err != nil {
		return err
	}
	es.mu.Lock()
	defer es.mu.Unlock()
	switch l.Peer {
	case "router":
		es.router, c = c, es.router
	case "guard":
		es.guard, c = c, es.guard
	}
	if c != nil {
		go c.Close() // the one before, or a stranger's
	}
	return nil
}

// papers are what an agent has to hold for its way out: the CA of inspected
// connections, if its policy has any, and placeholders in place of credentials.
type papers struct {
	CA  []byte   `json:"ca,omitempty"`
	Env []string `json:"env,omitempty"`
}

func (es *egressService) papers(id string) (pp papers, err error) {
	ag, err := es.agents.get(id)
	if err != nil {
		return pp, err
	}
	p := ag.policy()
	if inspects(p) {
		if pp.CA, err = es.proxy.CA(id); err != nil {
			return pp, err
		}
	}
	for _, c := range p.Credentials {
		pp.Env = append(pp.Env, c.Env+"="+es.proxy.Placeholder(id, c.Name))
	}
	return pp, nil
}

// papers asks egress for them.
func (a *Appliance) papers(ctx context.Context, ag *agent) (pp papers, err error) {
	to := a.part("egress")
	if err := to.call(ctx, callAgent, ag.info(), nil); err != nil {
		return pp, err
	}
	return pp, to.call(ctx, callPapers, ref{ag.Name}, &pp)
}

// serve begins to answer a sandbox's sockets.
func (es *egressService) serve(ctx context.Context, r *service.Request) error {
	var v serving
	if err := r.Decode(&v); err != nil {
		return err
	}
	n := len(r.Files) - 1
	if n < 1 {
		return fmt.Errorf("serve %s: got %d sockets, want at least one listener and DNS", v.ID, len(r.Files))
	}
	es.life.Lock()
	defer es.life.Unlock()
	ag, err := es.agents.put(v.agentInfo)
	if err != nil {
		return err
	}
	es.mu.Lock()
	old := es.boxes[v.ID]
	es.creds[v.ID] = v.Credentials
	es.mu.Unlock()
	if old != nil {
		return fmt.Errorf("serve %s: it is served already", v.ID)
	}
	// Serve duplicates the sockets, these are closed with the request.
	b, err := es.proxy.Serve(ctx, egress.Agent{ID: ag.id, UID: ag.uid, Policy: ag.policy},
		&egress.Sockets{TCP: r.Files[:n], DNS: r.Files[n], Steered: v.Steered})
	if err != nil {
		return err
	}
	es.mu.Lock()
	defer es.mu.Unlock()
	es.boxes[v.ID] = b
	return nil
}

func (es *egressService) forget(id string) error {
	es.life.Lock()
	defer es.life.Unlock()
	es.mu.Lock()
	b := es.boxes[id]
	delete(es.boxes, id)
	delete(es.creds, id)
	es.mu.Unlock()
	es.agents.drop(id)
	if b == nil {
		return nil
	}
	return b.Close()
}

// operators serves one connection of the control socket.
func (es *egressService) operators(r *service.Request) error {
	f, err := r.File(0)
	if err != nil {
		return err
	}
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return err
	}
	return es.desk.put(c)
}

// toRouter hands a model call's connection over.
func (es *egressService) toRouter(c *net.TCPConn, a egress.Agent, _ ledger.Process) error {
	es.mu.Lock()
	to := es.router
	es.mu.Unlock()
	if to == nil {
		return errors.New("the router does not run; try again in a moment")
	}
	f, err := c.File()
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	return to.Call(ctx, callConn, handed{a.ID}, nil, f)
}

func (es *egressService) credential(agent, name string) (string, bool) {
	es.mu.Lock()
	defer es.mu.Unlock()
	v, ok := es.creds[agent][name]
	return v, ok
}

// who asks the guard which program opened a connection.
func (es *egressService) who(agent string, client, server netip.AddrPort) (egress.Caller, bool) {
	es.mu.Lock()
	to := es.guard
	es.mu.Unlock()
	if to == nil {
		return egress.Caller{}, false
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	var c egress.Caller
	if err := to.Call(ctx, callWho, whoAsked{agent, client, server}, &c); err != nil {
		return egress.Caller{}, false
	}
	return c, true
}
