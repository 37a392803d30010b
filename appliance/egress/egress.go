// Package egress is a sandbox's only way out.
//
// The sandbox's network namespace holds nothing but lo. Attach makes every
// address local to it (AnyIP routes), steers every TCP port to one listener
// that this process holds, and answers DNS on 127.0.0.53 with addresses from
// 198.18.0.0/15 (RFC 2544) that stand for the names asked for. So a plain
// connect() in the sandbox arrives here with its name, no packet leaves the
// namespace, and no proxy variable is needed:
//
//	book, err := holds.Open(holds.Config{File: state + "/approvals.json", Recorder: ledger, Timeout: 2 * time.Minute})
//	p, err := egress.New(egress.Config{Recorder: ledger, Holds: book, Models: models, Steer: guard.Steer})
//	c, err := p.Attach(ctx, agent, netns) // before the agent runs
//	defer c.Close()                       // closes its connections, forgets its session approvals
//
// # Two halves
//
// Attach is both halves in one process. The one that needs privilege is
// OpenSockets; the other, Proxy.Serve, needs none, only descriptors:
//
//	s, land, err := egress.OpenSockets(netns, egress.SocketOptions{Steer: guard.Steer}) // the supervisor
//	at, err := p.Serve(ctx, agent, s)                                                   // egress, given s
//	at.Close(), land.Close(), s.Close()                                                 // in this order
//
// Who keeps s can give it to the next egress when one dies.
//
// # One connection
//
// Address guard → policy → (hold until an operator answers) → the first bytes
// must name the same host → budget → ledger → dial → bytes both ways → ledger.
// A record that can't be written stops the connection. A refusal is an HTTP
// 403 with a JSON body where the client speaks HTTP, else a TCP reset. The
// program that connected and its ancestors (Config.Who) are part of each
// question to the policy.
//
// What is refused whatever a policy or an operator says: loopback, link-local,
// metadata services, multicast, unspecified addresses and this host's own,
// also when a name resolves to them, and at private addresses the ports of
// control planes. Private addresses need an entry in Config.Hosts, the rule's
// allowedIPs, or an allow rule that names the address; those of the cluster that
// the host is a node of, one that names them alone (Config.Cluster). The address
// that was checked is the one dialled, so a name can't be rebound in between.
//
// A name is sent to the outside only after a connection to it was allowed:
// DNS questions end here, whatever they carry. An agent may ask for 300 new
// names a minute, and 2000 questions a second. Only questions for an IPv4
// address have data in their answer.
//
// # The same host
//
// A connection made to a name must say the same name: TLS by its server name
// (SNI), HTTP/1 by Host. Port 443 takes only TLS and port 80 only HTTP; on
// other ports anything else passes, and a client that is silent for 300 ms is
// taken for one that waits for the server (SSH, SMTP): the server's bytes flow,
// and the client's first ones are still checked when they come. An encrypted
// client hello is refused, even if it is only for show (GREASE): it may hold
// another name. An allow rule for an address has no name to compare, and one
// with protocol tcp lets anything through.
//
// Any first line with " HTTP/" in it is HTTP, and one that is not exactly
// right is refused. Plain HTTP to a name carries one request a connection,
// which is read and written anew: keep-alive and pipelining end here, what
// came after the request is recorded, and WebSockets, no other upgrade, pass
// once the server agrees.
//
// # Inspected connections
//
// A rule with inspect, or with a protocol above HTTP, has requests judged one
// by one (session.go, call.go). TLS ends here: the client gets a certificate
// of its sandbox's own CA (Proxy.CA), and the server has to prove the same
// name to this process. HTTP/1.1 and HTTP/2 are read by net/http, before it
// every head of HTTP/1 by inspect.Head; package inspect makes the canonical
// form, which is what is judged and what the server gets. A reload counts for
// the next request, and ends those under way that it no longer allows.
//
// Credentials are placeholders to the agent (Proxy.Placeholder). In a header,
// on TLS, to an endpoint whose rule lists the credential, the placeholder is
// replaced by the value; anywhere else it is refused. What the server repeats
// of the value is masked on its way back, also in WebSocket frames. Answers
// that come before the answer (1xx) stay here, and what is wrong with a server
// is told in this package's words.
//
// Who is let in by an operator is inspected as the rule says that was shown:
// for once and for the session as for ever. Each sandbox has its share of this
// process (room.go), and a fault in reading what somebody sent ends that
// connection, recorded, and no other.
//
// Limits: what is inside TLS that no rule has inspected is not seen, so a host
// that serves several names can be asked for another one there. HTTP/2 without
// TLS and CONNECT are refused to names; request trailers are dropped, which
// some gRPC servers miss. A value that a server repeats in pieces (an answer to
// a Range), or in other spellings than those of JSON, URLs and HTML, is not
// masked. Placeholders inside WebSocket messages
// are not looked for; they stand for nothing there. A client whose first bytes
// are text has to end the line within 10 s, or it is refused. UDP other than
// DNS, and DNS over TCP, are refused by the empty namespace. Budgets count
// from zero when this process starts.
//
// # Hold
//
// A connection that the policy wants to hold waits, open and silent, until
// the book gets an answer or the time is over. See package holds.
package egress

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/clawbox/clawbox/appliance/holds"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/appliance/router"
	"github.com/clawbox/clawbox/policies"
)

// Agent is whom a sandbox belongs to.
type Agent = router.Agent

// InferenceHost is the name of the model router, on port 80.
const InferenceHost = "inference.local"

// Caller is the process that opened a connection. What is unknown is empty.
type Caller struct {
	// At is when it connected, since the host's boot (CLOCK_BOOTTIME). Without
	// it the caller is nobody.
	At             time.Duration
	PID, PPID, UID int
	Comm           string
	Binary         string   // path in the sandbox
	Ancestors      []string // paths in the sandbox, parent first
}

// Config is what a Proxy needs.
type Config struct {
	Recorder ledger.Recorder
	Holds    *holds.Book
	// Models answers an agent's model calls; nil: there are none.
	Models func(Agent) http.Handler
	// Hosts maps names to addresses that are used instead of DNS, and that
	// may be private.
	Hosts map[string]string
	// Cluster are the networks of pods and services of the cluster that this
	// host is a node of. Only a policy's rules inside them, and Hosts, lead there,
	// and nothing to the first address of each.
	Cluster []netip.Prefix
	// Steer is for Attach: see SocketOptions.
	Steer func(netns *os.File, tcp syscall.RawConn) (io.Closer, error)
	// Who says which process opened a connection, by its two addresses as the
	// sandbox sees them (guard.Guard.Who, paths instead of inodes). Nil, or not
	// found: the connection is nobody's, and a rule for some programs only does
	// not match it. So is one whose client has ended its side, and one older than
	// Caller.At: see conn.opened. Without Who, Attach looks into /proc for hints.
	Who func(agent string, client, server netip.AddrPort) (Caller, bool)
	// Handoff passes a connection to InferenceHost on to another process, which
	// has the connection from then on; the caller closes its own descriptor.
	// Nil: Models.
	Handoff func(c *net.TCPConn, a Agent, who ledger.Process) error
	// Roots verify the servers behind inspected TLS; nil: the host's.
	Roots *x509.CertPool
	// Credential gives the value behind a placeholder, for the agent and the
	// name in its policy. It is put into requests and nowhere else.
	Credential func(agent, name string) (value string, ok bool)
	// Seed is 32 secret bytes that the sandboxes' CA keys follow from. With the
	// same seed a restarted egress is still trusted by the sandboxes that run;
	// nil: a new one each time.
	Seed []byte
	// Boot names this boot of the host; "": BootID. A process that is confined
	// should be given it: the kernel drops its files below /proc/sys when it is
	// short of memory, and makes others, which Landlock's rule does not name.
	Boot string
	// Dial connects to a checked "address:port"; nil: from this process.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Lookup resolves an allowed name; nil: the host's resolver.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
}

// Proxy serves the sandboxes of one host. It is safe for concurrent use.
type Proxy struct {
	c     Config
	hosts map[string]netip.Addr
	own   ownAddrs
	seed  []byte

	mu    sync.Mutex // guards the rest
	boxes map[*box]bool
	cas   map[string]*authority // by agent
}

// New checks c and returns a Proxy.
func New(c Config) (*Proxy, error) {
	if c.Recorder == nil || c.Holds == nil {
		return nil, errors.New("egress: want a ledger recorder and a book of holds, got none: no event, no action")
	}
	p := &Proxy{c: c, hosts: map[string]netip.Addr{}, boxes: map[*box]bool{}, cas: map[string]*authority{}, seed: c.Seed}
	switch len(c.Seed) {
	case seedBytes:
	case 0:
		p.seed = make([]byte, seedBytes)
		_, _ = rand.Read(p.seed) // never fails: see crypto/rand
	default:
		return nil, fmt.Errorf("egress: got a seed of %d bytes, want %d", len(c.Seed), seedBytes)
	}
	if c.Boot == "" {
		var err error
		if p.c.Boot, err = BootID(); err != nil {
			return nil, fmt.Errorf("egress: %w", err)
		}
	}
	for name, addr := range c.Hosts {
		if err := p.addHost(name, addr); err != nil {
			return nil, err
		}
	}
	if c.Dial == nil {
		p.c.Dial = (&net.Dialer{}).DialContext
	}
	if c.Lookup == nil {
		p.c.Lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host+".") // the dot: no search domains
		}
	}
	return p, nil
}

func (p *Proxy) addHost(name, addr string) error {
	n, err := policies.NormalizeHost(name)
	if err != nil {
		return fmt.Errorf("egress: hosts: %w", err)
	}
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return fmt.Errorf("egress: hosts: got %q for %s, want an IP address", addr, name)
	}
	if why := forbidden(a); why != "" {
		return fmt.Errorf("egress: hosts: %s for %s is refused always: %s; use an address of another machine", addr, name, why)
	}
	if _, twice := p.hosts[n]; twice || n == InferenceHost {
		return fmt.Errorf("egress: hosts: %s is set twice, or is the appliance's own name", n)
	}
	p.hosts[n] = a.Unmap()
	return nil
}

// Attach is OpenSockets and Serve in one process. It is to be called before
// the agent's first program runs. ctx bounds the set-up only.
func (p *Proxy) Attach(ctx context.Context, a Agent, netns *os.File) (io.Closer, error) {
	b, err := p.box(a)
	if err != nil {
		return nil, fmt.Errorf("egress: attach: %w", err)
	}
	s, land, err := OpenSockets(netns, SocketOptions{Steer: p.c.Steer, Ports: PolicyPorts(a.Policy())})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("egress: attach %s: %w", a.ID, err), b.Close())
	}
	if p.c.Who == nil {
		b.diagnose(netns)
	}
	err = p.serve(ctx, b, s)
	if err := errors.Join(err, s.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("egress: attach %s: %w", a.ID, err), land.Close(), b.Close())
	}
	return closers{b, land}, nil // without routes no reset would reach the agent
}

// closers are closed in order.
type closers []io.Closer

func (cs closers) Close() error {
	var errs []error
	for _, c := range cs {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Serve answers the sockets of an agent's sandbox until Close, which says that
// the sandbox has ended: its session is forgotten. It needs no privilege. The
// sockets are duplicated; the caller keeps s, and may close it. ctx bounds the
// set-up only.
func (p *Proxy) Serve(ctx context.Context, a Agent, s *Sockets) (io.Closer, error) {
	b, err := p.box(a)
	if err == nil {
		if err = p.serve(ctx, b, s); err != nil {
			err = errors.Join(err, b.Close())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("egress: serve %s: %w", a.ID, err)
	}
	return b, nil
}

func (p *Proxy) box(a Agent) (*box, error) {
	if a.ID == "" || a.Policy == nil || a.Policy() == nil {
		return nil, errors.New("want an agent with an id and a policy")
	}
	return newBox(p, a), nil
}

func (p *Proxy) serve(ctx context.Context, b *box, s *Sockets) error {
	if err := b.take(s); err != nil {
		return err
	}
	if !b.steered {
		if err := p.c.Recorder.Record(ctx, b.unsteered()); err != nil {
			return fmt.Errorf("ledger: %w", err)
		}
	}
	if err := p.c.Holds.Begin(b.agent.ID, b.life); err != nil {
		return err
	}
	p.mu.Lock()
	p.boxes[b] = true
	p.mu.Unlock()
	b.start()
	return nil
}

// Recheck applies the agent's present policy to what is open: connections that
// it no longer allows are closed when Recheck returns, and recorded at once;
// held ones are decided anew, the rest stays.
// To be called after a policy was reloaded or an approval revoked.
func (p *Proxy) Recheck(agentID string) {
	p.mu.Lock()
	var bs []*box
	for b := range p.boxes {
		if b.agent.ID == agentID {
			bs = append(bs, b)
		}
	}
	p.mu.Unlock()
	for _, b := range bs {
		b.recheck()
	}
}

// refusal is why a connection does not go on.
type refusal struct {
	reason string // stable code
	detail string // for a person
	remedy string // what would change it
	rule   string
	status int // of an HTTP answer; 0: 403
}

func (r *refusal) Error() string { return r.reason + ": " + r.detail }

func refuse(reason, remedy, format string, args ...any) *refusal {
	return &refusal{reason: reason, remedy: remedy, detail: fmt.Sprintf(format, args...)}
}

// noLedger is the refusal when a record could not be written.
func noLedger() *refusal {
	return refuse("ledger.unavailable", "ask the operator to look at the appliance's disk", "the ledger did not take the record")
}

// recordTimeout bounds records of what is already over.
const recordTimeout = 10 * time.Second
