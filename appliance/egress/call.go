package egress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/clawbox/clawbox/appliance/inspect"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// call is one request on an inspected connection.
type call struct {
	s       *session
	rule    policies.HostRule   // that governs it, by its path
	rules   []policies.HostRule // that its messages pass by
	charges []charge            // the budgets of these
	q       *http.Request       // canonical: what goes upstream
	msgs    []policies.Message
	by      policies.Decision
	size    int64           // bytes taken of the box's memory for bodies
	entered bool            // counted in
	creds   []string        // names of the credentials that were put in
	mask    *inspect.Masker // of the agent's credentials; nil: it has none

	mu     sync.Mutex // guards the rest
	cancel context.CancelFunc
	why    *refusal // why it was stopped from here
}

// serve takes one request through: canonical form → budget → policy, for each
// of its messages → credentials → ledger → server.
func (s *session) serve(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	k := &call{s: s, cancel: cancel}
	defer k.leave()
	defer s.fault()
	if len(r.TransferEncoding) > 0 && r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close") // see heads
	}
	why := k.enter()
	if why == nil {
		why = k.read(r.WithContext(ctx))
	}
	if why == nil {
		why = k.admit()
	}
	if why != nil {
		if k.q == nil && r.ProtoMajor == 1 {
			w.Header().Set("Connection", "close") // who sends such a thing may mean more by it
		}
		k.deny(w, why)
		return
	}
	defer k.begin()()
	if k.q.Header.Get("Upgrade") != "" {
		k.socket(w)
		return
	}
	k.forward(w)
}

// fault ends this request, recorded, if what the agent sent finds a fault in
// this code.
func (s *session) fault() {
	p := recover()
	if p == nil {
		return
	}
	if p != http.ErrAbortHandler { // net/http's own way to cut an answer short
		s.write(ledger.Denied, "internal.panic", fmt.Sprint(p), map[string]any{"op": "traffic"})
	}
	panic(http.ErrAbortHandler)
}

// errFault stands for a panic in a goroutine that is not this package's, where
// it would end the process and with it every sandbox's connections.
var errFault = errors.New("a fault in the appliance")

// caught makes a panic errFault; to be deferred.
func caught(err *error) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("%w: %v", errFault, v)
	}
}

// read finds what the request means under the rule for its path.
func (k *call) read(r *http.Request) *refusal {
	if why := k.s.authority(r); why != nil {
		return why
	}
	m, err := inspect.Route(r)
	if err != nil {
		return refusedBy(err)
	}
	k.msgs = []policies.Message{m} // for the record, until there is more to say
	rule, ok := k.s.endpoint(&m)
	if !ok {
		return k.s.denied(k.s.ask(&m))
	}
	k.rule = rule
	if why := k.room(r); why != nil {
		return why
	}
	q, msgs, err := inspect.Request(r, inspect.Options{Protocol: rule.Protocol, MaxBody: maxBody})
	if err != nil {
		return refusedBy(err)
	}
	k.q, k.msgs = q, msgs
	k.bound()
	return nil
}

// authority wants the request to be for the connection's host and port.
func (s *session) authority(r *http.Request) *refusal {
	host := r.Host
	if h, port, err := net.SplitHostPort(host); err == nil {
		if port != strconv.Itoa(s.port) {
			return refuse("net.host_mismatch", "connect to the port that the request is for", "made to port %d, but the request is for port %.10q", s.port, port)
		}
		host = h
	}
	return s.match("net.host_mismatch", "the request's host", host, nil)
}

// admit asks budget and policy, puts credentials in and records.
func (k *call) admit() *refusal {
	for _, c := range k.charges {
		if why := c.m.turn(c.rule.Budget, time.Now()); why != nil {
			return why
		}
	}
	if why := k.judge(); why != nil {
		return why
	}
	if why := k.credentials(); why != nil {
		return why
	}
	if !k.s.write(ledger.Allowed, k.by.Reason, "", k.attrs()) {
		return noLedger()
	}
	return nil
}

// judge asks the present policy about every message of the request.
func (k *call) judge() *refusal {
	for i := range k.msgs {
		d := k.s.ask(&k.msgs[i])
		if d.Verdict != policies.Allow {
			return k.s.deniedCall(d, &k.msgs[i])
		}
		k.by = d
	}
	return nil
}

// ask asks the policy of this moment about one message.
func (s *session) ask(m *policies.Message) policies.Decision {
	r := s.request(policies.Call)
	r.Message = m
	return s.law().Decide(r)
}

// endpoint is the rule for a request's path.
func (s *session) endpoint(m *policies.Message) (policies.HostRule, bool) {
	r := s.request(policies.Call)
	r.Message = m
	return s.law().Endpoint(r)
}

func (s *session) deniedCall(d policies.Decision, m *policies.Message) *refusal {
	r := refuse(d.Reason, "ask the operator to add it to the rule's calls", "the policy does not allow %s on %s", describeCall(m), s.host)
	r.rule = d.Rule
	if d.Reason == policies.ReasonCallDenied || d.Reason == policies.ReasonDenied {
		r.remedy = "a deny rule names it; only a changed policy can allow it"
	}
	return r
}

// describeCall names a message for people, without what may be secret in it.
func describeCall(m *policies.Message) string {
	switch {
	case m.Tool != "":
		return fmt.Sprintf("the tool %.80q", m.Tool)
	case m.RPC != "":
		return fmt.Sprintf("the method %.80q", m.RPC)
	case m.Operation != "":
		return fmt.Sprintf("the %s of %.80q", m.Operation, m.Fields[:min(len(m.Fields), 10)])
	case m.Frame != "":
		return "a " + m.Frame + " frame"
	}
	return fmt.Sprintf("%s %.200q", m.Method, m.Path)
}

// credentials replaces placeholders where they may stand, and refuses the
// request where they may not.
func (k *call) credentials() *refusal {
	const remedy = "use the placeholder in a header of a request to the endpoint whose rule lists the credential"
	if mentions(k.q.URL.Path) || mentions(k.q.URL.RawQuery) {
		return refuse("net.credential", remedy, "a placeholder for a credential stands in the request's path or query")
	}
	x := resolving{agent: k.s.box.agent.ID, policy: k.s.law(), rules: k.rules, value: k.s.box.proxy.credential(k.s.box.agent.ID)}
	names, err := x.headers(k.q.Header)
	switch {
	case err != nil:
		return refuse("net.credential", remedy, "a header can't be sent: %v", err)
	case len(names) > 0 && k.s.kind != tlsHello:
		return refuse("net.credential", "use https, and inspect: true in the rule", "a credential would travel in clear")
	}
	k.creds = names
	// Also where none was put in: a server may keep what another request brought.
	if k.mask = k.s.box.masker(k.s.law(), x.used); k.mask != nil {
		k.q.Header.Set("Accept-Encoding", packing(k.q.Header))
	}
	return k.body(refuse("net.credential", remedy, "a placeholder for a credential stands in the request's body"))
}

// smallBody is read whole before anything is sent, in bytes.
const smallBody = 64 << 10

// body looks for placeholders in the request's body: in a small one first, in
// a large one as it passes.
func (k *call) body(found *refusal) *refusal {
	q := k.q
	switch {
	case q.Body == nil || q.Body == http.NoBody:
		return nil
	case q.ContentLength < 0 || q.ContentLength > smallBody:
		q.Body = &spotter{ReadCloser: q.Body, found: func() { k.stop(found) }}
		return nil
	}
	b, err := io.ReadAll(q.Body)
	if err != nil {
		return refuse("http.body", "send it whole", "the body ended early")
	}
	if mentions(string(b)) {
		return found
	}
	q.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	q.Body, _ = q.GetBody()
	return nil
}

// attrs are what the ledger keeps of a request. Queries, headers and
// arguments may hold secrets and stay out.
func (k *call) attrs() map[string]any {
	a := map[string]any{"op": "traffic", "rule": k.by.Rule}
	if len(k.creds) > 0 {
		a["credentials"] = slices.Clone(k.creds)
	}
	return describeAll(a, k.msgs)
}

// describeAll adds the first messages to a: a batch of a hundred is one record.
func describeAll(a map[string]any, ms []policies.Message) map[string]any {
	if len(ms) == 0 {
		return a
	}
	m := ms[0]
	for key, v := range map[string]string{"protocol": m.Protocol, "method": m.Method, "path": m.Path, "operation": m.Operation, "frame": m.Frame} {
		if v != "" {
			a[key] = v
		}
	}
	var calls []string
	for _, m := range ms[:min(len(ms), 20)] {
		if m.RPC != "" {
			calls = append(calls, strings.TrimSpace(fmt.Sprintf("%.100s %.100s", m.RPC, m.Tool)))
		}
	}
	if len(calls) > 0 {
		a["calls"] = strings.Join(calls, ", ")
	}
	if len(ms) > 1 {
		a["messages"] = len(ms)
	}
	return a
}

// begin makes the call known to recheck until the returned function is called.
func (k *call) begin() func() {
	k.s.mu.Lock()
	k.s.live[k] = true
	k.s.mu.Unlock()
	if why := k.judge(); why != nil { // the policy may have changed meanwhile
		k.stop(why)
	}
	return func() {
		k.s.mu.Lock()
		delete(k.s.live, k)
		k.s.mu.Unlock()
	}
}

// stop ends a request that is under way, for a reason, which is recorded.
func (k *call) stop(why *refusal) {
	if k.cut(why) {
		k.s.record(why, describeAll(map[string]any{"op": "traffic"}, k.msgs))
	}
}

// cut is stop without the record; not ok when it has been stopped before.
func (k *call) cut(why *refusal) bool {
	k.mu.Lock()
	first := k.why == nil
	if first {
		k.why = why
	}
	cancel := k.cancel
	k.mu.Unlock()
	if first {
		cancel()
	}
	return first
}

func (k *call) stopped() *refusal {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.why
}

// refusedBy gives inspect's refusal as one of ours.
func refusedBy(err error) *refusal {
	var no *inspect.Refusal
	if !errors.As(err, &no) {
		return refuse("http.body", "send it whole", "the request could not be read: %v", err)
	}
	r := refuse(no.Code, no.Next, "%s", no.Detail)
	r.status = no.Status
	return r
}
