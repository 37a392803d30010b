package appliance

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/clawbox/clawbox/policies"
)

// agentInfo is what a service knows of an agent. The policy travels as the
// operator wrote it, so that every process names the same lines.
type agentInfo struct {
	ID     string `json:"id"`
	UID    int    `json:"uid"`    // host user id; 0: it has none yet
	Policy string `json:"policy"` // name of Source
	Source []byte `json:"source"`
	// Netns is its sandbox's network namespace (egress.Netns); 0: it has none yet.
	Netns uint64 `json:"netns,omitempty"`
}

// ref names an agent in a call.
type ref struct {
	ID string `json:"id"`
}

// roster is a service's list of agents. It is safe for concurrent use.
type roster struct {
	mu  sync.Mutex
	all map[string]*listed
}

// listed is one agent on a roster. Its policy is replaced by a reload.
type listed struct {
	id  string
	uid int
	pol atomic.Pointer[governing]
	net atomic.Uint64 // egress.Netns
}

func (l *listed) policy() *policies.Policy { return l.pol.Load().policy }

// put adds an agent, or replaces its policy.
func (r *roster) put(a agentInfo) (*listed, error) {
	p, err := parse(a.Policy, a.Source)
	if err != nil {
		return nil, fmt.Errorf("agent %s: the policy that was sent does not parse: %w", a.ID, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = map[string]*listed{}
	}
	l := r.all[a.ID]
	if l == nil || l.uid != a.UID { // or of a start that came to nothing, under another user
		l = &listed{id: a.ID, uid: a.UID}
		r.all[a.ID] = l
	}
	l.pol.Store(p)
	if a.Netns != 0 { // who knows less of it may come later
		l.net.Store(a.Netns)
	}
	return l, nil
}

// get finds an agent.
func (r *roster) get(id string) (*listed, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.all[id]; l != nil {
		return l, nil
	}
	return nil, fmt.Errorf("no agent %q is known here", id)
}

// drop forgets an agent.
func (r *roster) drop(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.all, id)
}

// info is the agent as services are told of it.
func (ag *agent) info() agentInfo {
	ag.mu.Lock()
	defer ag.mu.Unlock()
	i := agentInfo{ID: ag.Name, UID: ag.uid, Policy: ag.Policy, Source: ag.Source}
	if ag.outlet != nil {
		i.Netns = ag.outlet.netns
	}
	return i
}

// maxParsed bounds what parse keeps; a host has few policies.
const maxParsed = 64

// parsed are policies by the text that they were parsed from. Many agents run
// under one, each is sent more than once in a start, and parsing takes longer
// than any other single step of it. Nothing ever changes a parsed policy.
var parsed struct {
	sync.Mutex
	by map[[sha256.Size]byte]*governing
}

// parse is policies.Parse, but for what it has parsed before.
func parse(name string, src []byte) (*governing, error) {
	key := sha256.Sum256(append([]byte(name+"\x00"), src...))
	parsed.Lock()
	g := parsed.by[key]
	parsed.Unlock()
	if g != nil {
		return g, nil
	}
	p, err := policies.Parse(name, src)
	if err != nil {
		return nil, err
	}
	g = &governing{p, p.Digest()}
	parsed.Lock()
	defer parsed.Unlock()
	if len(parsed.by) >= maxParsed || parsed.by == nil {
		parsed.by = map[[sha256.Size]byte]*governing{}
	}
	parsed.by[key] = g
	return g, nil
}
