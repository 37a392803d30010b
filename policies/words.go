package policies

import (
	"fmt"
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
	say("  may run its own entry point%s; %s; system calls: %s", also(p.Process.Exec), spawnWords[p.Process.Spawn], p.Process.Seccomp)
	p.describeNetwork(say)
	p.describeInference(say)
	g := p.Budgets
	say("  has at most %d tasks (threads count), %s of memory, %s, %s of /tmp, %d open files per process, and stops after %s",
		g.Processes, formatSize(g.Memory), coresWords(g.CPU), formatSize(g.Scratch), g.OpenFiles, formatWall(g.WallTime))
	say("  every decision is recorded; file accesses recorded: %s", p.Audit.Files)
	say("  refuses to start on a host with less than Landlock ABI %d or guard tier %s", p.Require.Landlock, p.Require.Tier)
	return b.String()
}

var spawnWords = map[bool]string{true: "may start processes", false: "may not start processes"}

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
		say("  may connect to %s", portWords(r, "ports 80 and 443"))
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
