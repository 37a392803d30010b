package holds

import (
	"fmt"
	"time"

	"github.com/clawbox/clawbox/appliance/ledger"
)

// What nobody may cut short has bounds of its own.
const (
	recordTimeout = 10 * time.Second // a record
	answerTimeout = 30 * time.Second // a record and its effect, which may be another policy
)

// attrs says who asked for what, for a record.
func (s Subject) attrs(more map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range map[string]any{"call": s.Call, "binary": s.Binary} {
		if v != "" {
			out[k] = v
		}
	}
	for k, v := range more {
		if v != "" {
			out[k] = v
		}
	}
	return out
}

// record says that q is held.
func (q Question) record() ledger.Record {
	return ledger.Record{
		Kind: ledger.KindConnect, Verdict: ledger.Held, Agent: q.Agent, Policy: q.Digest, Reason: q.Reason,
		Detail: "waits for an operator", Process: q.Process, Host: q.Host, Port: q.Port, Attrs: q.attrs(nil),
	}
}

// approval is a record about x.
func (p Pending) approval(v ledger.Verdict, reason, detail string, more map[string]any) ledger.Record {
	r := ledger.Record{
		Kind: ledger.KindApproval, Verdict: v, Agent: p.Agent, Policy: p.PolicyDigest, Reason: reason, Detail: detail,
		Host: p.Host, Port: p.Port, Attrs: p.attrs(more),
	}
	r.Attrs["pending"], r.Attrs["shown"] = p.ID, p.Digest
	return r
}

// answered says what the operator answered. It is written before that has effect.
func (p Pending) answered(a Answer) ledger.Record {
	v, word := ledger.Allowed, "allowed"
	if !a.Allow {
		v, word = ledger.Denied, "denied"
	}
	more := map[string]any{"operator": a.Operator, "scope": string(a.Scope), "why": a.Reason}
	if a.Scope == Always {
		more["change"] = p.Change
	}
	return p.approval(v, "approval."+string(a.Scope), fmt.Sprintf("%s %s %s, scope %s", a.Operator, word, p.target(), a.Scope), more)
}

// failed says that a recorded answer had no effect.
func (p Pending) failed(a Answer, err error) ledger.Record {
	return p.approval(ledger.Denied, "approval.failed", fmt.Sprintf("the answer of %s had no effect: %v", a.Operator, err),
		map[string]any{"operator": a.Operator, "scope": string(a.Scope)})
}

// timeout says that nobody answered.
func timeout(p Pending) ledger.Record {
	return p.approval(ledger.Denied, "approval.timeout", "nobody answered for "+p.target()+" in time", nil)
}

// revoked says that an answer is taken back.
func (g Grant) revoked(operator string) ledger.Record {
	return ledger.Record{
		Kind: ledger.KindApproval, Verdict: ledger.Denied, Agent: g.Agent, Reason: "approval.revoked", Host: g.Host, Port: g.Port,
		Detail: fmt.Sprintf("%s took back the answer of %s for %s, scope %s", operator, g.Operator, g.target(), g.Scope),
		Attrs:  g.attrs(map[string]any{"operator": operator, "scope": string(g.Scope), "grant": g.ID}),
	}
}

func denied(code, remedy, format string, args ...any) Outcome {
	return Outcome{Denial: Denial{Code: code, Remedy: remedy, Detail: fmt.Sprintf(format, args...)}}
}

// deniedBy carries the operator's reason to the client.
func deniedBy(s Subject, reason string) Outcome {
	out := denied("net.hold_denied", "ask the operator", "the operator denied %s", s.target())
	if reason != "" {
		out.Denial.Detail += ": " + reason
	}
	return out
}

func unfit(err error) Outcome {
	return denied("net.hold_unfit", "ask the operator to allow it in the policy", "an operator can't be asked for it: %v", err)
}

func timedOut(s Subject) Outcome {
	return denied("net.hold_timeout", "ask the operator, then try again", "nobody answered for %s in time", s.target())
}
