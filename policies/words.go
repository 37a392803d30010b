package policies

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Explain answers r in one or two sentences for a person: what was asked,
// what is decided, by which rule, why, and what would change it.
func (p *Policy) Explain(r Request) string {
	d := p.Decide(r)
	s := r.String() + ": " + verdictWords[d.Verdict]
	if d.Rule != "" {
		s += " by " + d.Rule
	}
	return s + " (" + d.Reason + "): " + meanings[d.Reason] + "."
}

var verdictWords = map[Verdict]string{
	Allow: "allowed",
	Deny:  "denied",
	Hold:  "held until an operator answers",
}

// String says what is asked: "connect to api.example.com port 443".
func (r Request) String() string {
	switch r.Action {
	case Read, Write, Exec:
		return string(r.Action) + " " + quote(r.Path)
	case Connect:
		return fmt.Sprintf("connect to %s port %d", strings.Trim(quote(r.Host), `"`), r.Port)
	case Call:
		return fmt.Sprintf("%s at %s port %d", r.Message, strings.Trim(quote(r.Host), `"`), r.Port)
	case Infer:
		if r.Sensitive {
			return "send sensitive content to model " + quote(r.Model)
		}
		return "call model " + quote(r.Model)
	}
	return "action " + quote(string(r.Action))
}

// Describe says in words what the policy permits, one sentence per line.
func (p *Policy) Describe() string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	say("Policy %s (%s, from %s)", p.Name, p.Dialect, p.Source)
	say("  may read %s", orNothing(p.Filesystem.Read))
	say("  may write %s; starts in %s", orNothing(p.Filesystem.Write), p.Filesystem.Workdir)
	c := p.Process
	say("  may run its own entry point%s; %s; system calls: %s", also(c.Exec), spawnWords[c.Spawn], c.Seccomp)
	if len(c.ExecHashes) > 0 {
		say("  of these, with one content only: %s", strings.Join(slices.Sorted(maps.Keys(c.ExecHashes)), ", "))
	}
	say("  runs as user %s, group %s; capabilities: %s; a program that is not listed: %s", c.User, c.Group, orNothing(c.Capabilities), c.Violation)
	p.describeNetwork(say)
	for _, c := range p.Credentials {
		say("  may use the credential %s without having it: placeholder in %s, put into %s", c.Name, c.Env, orAnyHeader(c.Header))
	}
	p.describeInference(say)
	g := p.Budgets
	say("  has at most %d tasks (threads count), %s of memory, %s, %s of /tmp, %d open files per process, and stops after %s",
		g.Processes, formatSize(g.Memory), coresWords(g.CPU), formatSize(g.Scratch), g.OpenFiles, formatWall(g.WallTime))
	say("  its writable folders hold %s and %s files; reads %s, writes %s a second", formatLimit(g.Disk), formatBound(g.Inodes), formatLimit(g.DiskRead), formatLimit(g.DiskWrite))
	say("  every decision is recorded; file accesses recorded: %s; network calls recorded: %s", p.Audit.Files, p.Audit.Network)
	q := p.Require
	say("  refuses to start on a host with less than Landlock ABI %d, guard tier %s, kernel release %s%s", q.Landlock, q.Tier, formatKernel(q.Kernel), lacking(q.Features))
	return b.String()
}

var spawnWords = map[bool]string{true: "may start processes", false: "may not start processes"}

func lacking(features []string) string {
	if len(features) == 0 {
		return ""
	}
	return ", or without " + strings.Join(features, ", ")
}

func orNothing(ss []string) string {
	if len(ss) == 0 {
		return "nothing"
	}
	return strings.Join(ss, ", ")
}

func also(ss []string) string {
	if len(ss) == 0 {
		return " only"
	}
	return " and " + strings.Join(ss, ", ")
}

func coresWords(c float64) string {
	if c == 0 {
		return "any number of cores"
	}
	return "the time of " + formatCPU(c) + " CPU cores"
}

func (p *Policy) describeNetwork(say func(string, ...any)) {
	for _, r := range p.Network.Deny {
		say("  must not connect to %s", portWords(r, "any port"))
	}
	for _, r := range p.Network.Allow {
		say("  may connect to %s", r.words())
	}
	if p.Network.Default == Hold {
		say("  any other connection is held until an operator answers")
		return
	}
	say("  any other connection is denied")
}

func portWords(r HostRule, none string) string {
	if len(r.Ports) == 0 {
		return r.String() + ", " + none
	}
	return r.String()
}

func (p *Policy) describeInference(say func(string, ...any)) {
	if len(p.Inference.Routes) == 0 {
		say("  may not call models")
		return
	}
	for _, r := range p.Inference.Routes {
		say("  may call models %s at upstream %s", strings.Join(r.Models, ", "), r.Upstream)
	}
	i := p.Inference
	say("  sensitive content on its way out of the host: %s; at most %s requests and %s tokens",
		i.Sensitive, formatBound(i.Budget.Requests), formatBound(i.Budget.Tokens))
}

// String says what the message is: "http GET /repos/a".
func (m *Message) String() string {
	if m == nil {
		return "no message"
	}
	s := m.Protocol + " " + m.Method + " " + quote(m.Path)
	switch {
	case m.Operation != "":
		s += " " + strings.TrimSpace(m.Operation+" "+m.OperationName) + " {" + strings.Join(m.Fields, " ") + "}"
	case m.RPC != "":
		s += " " + quote(m.RPC)
	}
	if m.Tool != "" {
		s += " " + quote(m.Tool)
	}
	if m.Frame != "" {
		s += " " + m.Frame + " frame"
	}
	return s
}
