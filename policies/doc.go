// Package policies is the policy language: what one agent may do, written by
// an operator, read by machines, explained to both.
//
// A policy is a YAML document. Parse reads it, strictly, in any of four
// dialects (the canonical one, the two published ones, OpenShell's version 1)
// and gives back a complete Policy: whatever the document leaves out
// has its closed value, that of the preset "sandbox".
//
//	p, err := policies.Parse("openclaw.yaml", src)
//	if err != nil {
//		return err // every mistake, each as file:line:column, got, want, next step
//	}
//	d := p.Decide(policies.Request{Action: policies.Connect, Host: "api.example.com", Port: 443})
//	switch d.Verdict {
//	case policies.Allow: // go on
//	case policies.Hold: // ask an operator, keep the connection waiting
//	default: // refuse, and record d.Reason and d.Rule
//	}
//
// A connection is asked for with Connect, before and after its name is
// resolved (Request.Addr); Endpoint then says how to treat it, and where that
// is to inspect it, each message is asked for with Call.
//
// Decide is total: every Request has an answer, and what no rule names is
// denied (or held, where the policy says so). It does no input or output,
// keeps no state and never panics, so each enforcer asks it directly and the
// auditor can ask it again. Explain answers the same question in words.
//
// Import is Parse with a report of what changed meaning, Diff compares two
// policies in words, and a Suite is a table of questions with their answers.
//
// YAML gives the canonical form, one spelling per meaning, and Digest its
// sha256: two policies with one digest decide alike. A Policy is immutable;
// WithAllow returns a changed copy.
//
// Limits. Paths are compared as text, after cleaning: symbolic links are the
// business of the kernel-side enforcers. Names are compared as names: which
// address a name leads to is unknown here, so whoever dials asks again with
// it before using it. Budgets, Require, Spawn and Seccomp are
// not decided per request; the sandbox applies them when it starts.
//
// The language reference for operators is docs/policy.md; a test parses every
// example in it.
package policies
