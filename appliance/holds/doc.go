// Package holds keeps what an agent asked for, its policy does not list, and
// an operator has to decide: held requests, the answers to them, and what of
// those still stands.
//
//	b, err := holds.Open(holds.Config{File: state + "/approvals.json", Recorder: ledger})
//	out := b.Ask(ctx, holds.Question{Subject: holds.Subject{Agent: "claw", Host: "api.example", Port: 443}, …}, changed)
//	switch {
//	case out.Again: // the policy changed: decide anew
//	case out.Allow: // let it through
//	default:        // refuse with out.Denial, which is written for the client
//	}
//
// Ask blocks until there is an answer, the time is over, the client goes away
// or the policy changes. All that ask the same, through the same programs,
// share one Pending. An operator answers it by its id and digest:
//
//	p := b.List()[0]
//	err := b.Answer(ctx, p.ID, holds.Answer{Digest: p.Digest, Allow: true, Scope: holds.Once, Operator: "ada"})
//
// # What an answer is for
//
// Exactly what was shown. A Pending never changes: another program, another
// chain of ancestors, another policy or another sandbox is another Pending
// with an id of its own, and one that it replaces can't be answered any more.
// The id is random and works once; the digest covers every fact shown. So an
// approval can be neither replayed nor turned towards something else.
//
// Once lets in who waits, or else the same programs' next connection within a
// minute, under the same policy. Session lasts until the sandbox ends. Always
// is a change of the policy, made by Config.Always; without one it is kept in
// the file, for this agent under the policy of this name. A denial lasts a
// minute or for the session; a denial for ever is a deny rule.
//
// No answer overrides a deny rule: only what the policy would hold is asked.
//
// # What survives
//
// Every held request and every answer is on the ledger, and then on disk,
// before it has effect. After a restart what was pending is still listed and
// can be answered, and the client's next connection finds the answer. Answers
// for the session are bound to the sandbox (Question.Life), so they outlive a
// restart of this process and never reach the agent's next sandbox. What was
// pending when a sandbox ends stays until its time is over, and is answered
// once or always.
//
// # Floods
//
// An agent has at most Config.PerAgent requests pending; further ones are
// refused at once and never push out older ones, its own or another agent's.
// Requests are at most maxQuestion bytes, so the file is bounded too.
package holds
