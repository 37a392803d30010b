package egress

import (
	"errors"
	"fmt"
	"time"

	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// Scope is how far an answer reaches.
type Scope string

// The scopes.
const (
	Once    Scope = "once"    // the connections that wait; if none does any more, the next one within a minute
	Session Scope = "session" // until the agent's sandbox ends
	Always  Scope = "always"  // from now on at every start, for this agent under this policy
)

// Answer is what an operator says to a pending request.
type Answer struct {
	Allow    bool
	Scope    Scope // a denial may be Once (a minute) or Session
	Operator string
}

// Pending is a destination that an agent wants and an operator has to decide.
// All connections of the agent to it share one Pending.
type Pending struct {
	ID      string // random
	Agent   string
	Host    string
	Port    int
	Process string // who asked first; a hint, chosen by the process
	Since   time.Time
	Waiting int    // connections that wait now
	Change  string // the policy change that says the same
}

// Errors of Answer and Revoke.
var (
	ErrNoPending = errors.New("no such held request")
	ErrAnswer    = errors.New("not an answer")
)

// question is a connection that the policy wants to hold.
type question struct {
	key
	policy string // name
	digest string
	proc   ledger.Process
}

// answered is what becomes of a question.
type answered struct {
	scope Scope
	why   *refusal // not admitted
	again bool     // the policy changed: decide anew
}

// hold is a Pending with what belongs to it.
type hold struct {
	Pending
	q     question
	busy  bool          // an answer is being written
	late  bool          // the time ended while busy
	done  chan struct{} // closed when result is set
	res   answered
	timer *time.Timer
}

// record says that q is held.
func (q question) record() ledger.Record {
	return ledger.Record{
		Kind: ledger.KindConnect, Verdict: ledger.Held, Agent: q.agent, Policy: q.digest, Reason: policies.ReasonUnlisted,
		Detail: "waits for an operator", Process: q.proc, Host: q.host, Port: q.port,
	}
}

// record says what the operator answered. It is written before that has effect.
func (x *hold) record(a Answer) ledger.Record {
	v, word := ledger.Allowed, "allowed"
	if !a.Allow {
		v, word = ledger.Denied, "denied"
	}
	return ledger.Record{
		Kind: ledger.KindApproval, Verdict: v, Agent: x.q.agent, Policy: x.q.digest, Reason: "approval." + string(a.Scope),
		Detail: fmt.Sprintf("%s %s %s port %d, scope %s", a.Operator, word, x.q.host, x.q.port, a.Scope),
		Host:   x.q.host, Port: x.q.port,
		Attrs: map[string]any{"operator": a.Operator, "scope": string(a.Scope), "pending": x.ID},
	}
}

// The refusals of held requests.
func deniedBy(k key) *refusal {
	return refuse("net.hold_denied", "ask the operator", "the operator denied %s port %d", k.host, k.port)
}

func timedOut(k key) answered {
	return answered{why: refuse("net.hold_timeout", "ask the operator, then try again", "nobody answered for %s port %d in time", k.host, k.port)}
}

func full(k key) answered {
	return answered{why: refuse("net.hold_full", "wait until the operator has answered", "too many destinations wait for an operator already; %s port %d is not asked for", k.host, k.port)}
}

// change writes the policy change that would allow a destination.
func change(host string, port int) string {
	return "network: {allow: [" + policies.HostRule{Host: host, Ports: []int{port}}.YAML() + "]}"
}
