package main

import (
	"regexp"
	"slices"
	"strings"

	"github.com/clawbox/clawbox/appliance/ledger"
)

// attack is one attempt, described as data.
type attack struct {
	theme, name string
	tries       string   // what it tries, in words
	args        []string // of the program inside; $WORDS are the host's, see host.words
	agent       string   // which sandbox; "": the theme's own
	fresh       bool     // the sandbox is made for this attack, and removed after it
	alone       bool     // nothing else runs meanwhile
	want        want
	records     []record // that it must leave, all of them
	silent      string   // why there is none
	control     elsewhere
	// drive is for attacks that need a hand outside, such as an operator's. It
	// returns an error when the attack succeeded or went wrong.
	drive func(*host) error
	// measure is one that also has something to tell.
	measure func(*host) (string, error)
}

// outside says whether the attack is driven by a hand outside.
func (a attack) outside() bool { return a.drive != nil || a.measure != nil }

// want is how the attack must fail.
type want struct {
	errnos []string // each way that it tried ends with one of these
	say    string   // regular expression that what it said matches
	killed bool     // it is ended by SIGKILL or SIGSYS
}

// errno is the most common want.
func errno(names ...string) want { return want{errnos: names} }

// says wants an answer that refuses.
func says(re string) want { return want{say: re} }

// killed wants the attacker's end; or, on hosts where the guard refuses
// instead, one of the errnos.
func killed(orErrno ...string) want { return want{killed: true, errnos: orErrno} }

// holds says whether an outcome is what was wanted, or how it differs.
func (w want) holds(o outcome) string {
	if o.OK {
		return "THE ATTACK SUCCEEDED"
	}
	if w.killed && o.killed() {
		return ""
	}
	if o.none() {
		return "it said nothing: " + o.raw
	}
	if len(w.errnos) > 0 && (len(o.Errnos) == 0 || slices.ContainsFunc(o.Errnos, func(e string) bool { return !slices.Contains(w.errnos, e) })) {
		return "got " + strings.Join(o.Errnos, ",") + " (" + o.Say + "), want " + strings.Join(w.errnos, " or ")
	}
	if w.say != "" && !regexp.MustCompile("(?s)"+w.say).MatchString(o.Say) {
		return "said " + strings.TrimSpace(o.Say) + ", want " + w.say
	}
	if w.say == "" && len(w.errnos) == 0 {
		return "it ended with " + o.Say + ", and was to be killed"
	}
	return ""
}

// outcome is what an attack reported.
type outcome struct {
	OK     bool     `json:"ok"`
	Errnos []string `json:"errnos,omitempty"`
	Say    string   `json:"say,omitempty"`
	Code   int      `json:"code"` // exit status
	spoke  bool
	raw    string // everything that it printed
}

func (o outcome) none() bool   { return !o.spoke }
func (o outcome) killed() bool { return o.Code == 128+9 || o.Code == 128+31 }

// record is a ledger entry that an attack must leave. Empty fields match
// anything; Reason, Path, Host and Detail match a part.
type record struct {
	Kind, Verdict, Reason, Path, Host, Detail string
}

func (r record) matches(e ledger.Record) bool {
	verdict := r.Verdict
	if verdict == "" {
		verdict = string(ledger.Denied)
	}
	return (r.Kind == "" || slices.Contains(strings.Split(r.Kind, "|"), string(e.Kind))) && string(e.Verdict) == verdict &&
		strings.Contains(e.Reason, r.Reason) && strings.Contains(e.Path, r.Path) &&
		strings.Contains(e.Host, r.Host) && strings.Contains(e.Detail, r.Detail)
}

// refused is the record of a system call that the kernel refused.
func refused(call string) record { return record{Detail: call + " refused"} }

// file is the record of a refused path.
func file(path string) record { return record{Kind: "file", Path: path} }

// ran is the record of a program that was kept from running.
func ran(path string) record { return record{Kind: "exec", Path: path} }

// way is the record of a refused connection.
func way(host string) record { return record{Kind: "connect", Reason: "net.", Host: host} }

// elsewhere says how the suite knows that the attack would work elsewhere.
type elsewhere struct {
	none  string   // why there is no control run
	lacks []string // errnos by which this host's kernel shows that it has no such thing
}

// uncontrolled marks an attack that cannot run where nothing confines it.
func uncontrolled(why string) elsewhere { return elsewhere{none: why} }

// unless marks a control run that a kernel may lack the feature for.
func unless(errnos ...string) elsewhere { return elsewhere{lacks: errnos} }

// themes are the suite. Each has a sandbox of its own, so that themes run beside
// each other; in a theme one attack follows the other, because records are told
// apart by agent and time. Floods and what harms the appliance run alone, each
// flood in a fresh sandbox: a budget that is hit again tells of it once a minute.
var themes = []struct {
	name, agent  string
	fresh, alone bool
	attacks      []attack
}{
	{name: "paths", agent: prey, attacks: paths},
	{name: "exec", agent: "prey-exec", attacks: execs},
	{name: "kernel", agent: "prey-kernel", attacks: kernelCalls},
	{name: "network", agent: "prey-network", attacks: network},
	{name: "messages", agent: "prey-messages", attacks: messages},
	{name: "operator", agent: waiter, attacks: operators},
	{name: "load", fresh: true, alone: true, attacks: loads},
	{name: "neighbour", fresh: true, alone: true, attacks: neighbours},
	{name: "service", agent: prey, alone: true, attacks: services},
}

// all is the suite in its order.
func all() (out []attack) {
	for _, t := range themes {
		for _, a := range t.attacks {
			a.theme, a.alone, a.fresh = t.name, t.alone, t.fresh
			switch {
			case a.fresh:
				a.agent = a.name
			case a.agent == "":
				a.agent = t.agent
			}
			out = append(out, a)
		}
	}
	return out
}
