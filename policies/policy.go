package policies

import "time"

// Policy is a parsed, complete policy: every field that a source left out has
// been given its closed value. Values are immutable after Parse; modifiers
// return copies.
type Policy struct {
	Name       string // metadata.name
	Source     string // file name that it was read from, for messages
	Dialect    string // "canonical", "network" or "agent_policy": what it was written in
	Filesystem Filesystem
	Process    Process
	Network    Network
	Inference  Inference
	Budgets    Budgets
	Audit      Audit
	Require    Require

	at map[string]string // rule text → "file:line", for Decision.Rule; never changed after Parse
}

// Filesystem lists absolute paths inside the sandbox. A path covers itself and
// everything below it. What is listed nowhere cannot be opened.
type Filesystem struct {
	Read    []string // may be read (and listed)
	Write   []string // may be read, written, created, removed
	Workdir string   // where the agent starts; must be below a Write or Read path
}

// Process governs what may run. Locked when the sandbox is created.
type Process struct {
	// Exec lists executables by absolute path; a path that ends in "/" covers
	// everything below it. Empty: only the agent's own entry point, which is
	// always executable (and readable) and which Decide does not know.
	Exec []string
	// Spawn says whether the agent may start processes beside its first. It
	// does not widen Exec: without Spawn a program may still replace itself
	// with a listed one, as a wrapper script does.
	Spawn bool
	// Seccomp names the system call profile: "strict" without Spawn,
	// "default" with it.
	Seccomp string
}

// Network governs connections by destination name. Hot-reloadable.
type Network struct {
	// Default decides for a destination that no rule names: Deny or Hold.
	Default Verdict
	Allow   []HostRule
	Deny    []HostRule // wins over Allow
}

// HostRule matches destinations. Exactly one of Host, Domain and CIDR is set.
type HostRule struct {
	Host   string // exact name or IP literal; "*": in allow rules any name, in deny rules any name or literal; in allow rules also "*.example.com": one label below
	Domain string // this name and every name below it
	CIDR   string // addresses written as literals
	Ports  []int  // ascending; empty: 443 and 80 in allow rules, every port in deny rules
	Line   int    // where it stands in its file; 0: added by WithAllow
}

// Inference governs model calls. Hot-reloadable.
type Inference struct {
	Routes []Route // first match wins; no match is a denial
	// Sensitive says what happens to a request whose content looks sensitive
	// and whose route leaves the host: "deny" or "strip". Local routes see it whole.
	Sensitive string
	Budget    ModelBudget
}

// Route sends calls for matching models to a named upstream.
type Route struct {
	Models   []string // exact names, or "*"
	Upstream string   // "local", or a cloud upstream that the appliance's configuration defines
	Line     int
}

// ModelBudget bounds model use over the agent's life; 0 means no bound.
type ModelBudget struct {
	Requests int
	Tokens   int
}

// Budgets bound a sandbox. A parsed policy has no zero here except CPU
// (0: not limited).
type Budgets struct {
	Processes int           // tasks, threads included
	Memory    int64         // bytes
	CPU       float64       // cores
	Scratch   int64         // bytes of /tmp
	OpenFiles int           // per process
	WallTime  time.Duration // then the sandbox is stopped
}

// Audit says what is recorded beyond decisions, which always are.
type Audit struct {
	Files string // "denied" or "all"
}

// Require lists what the host must provide; less is a refusal to start.
type Require struct {
	Landlock int    // ABI version
	Tier     string // lowest guard tier accepted: "T1".."T4"
}

// Verdict is the outcome of a decision.
type Verdict string

// The verdicts.
const (
	Allow Verdict = "allow"
	Deny  Verdict = "deny"
	Hold  Verdict = "hold"
)

// Action is what a Request asks for.
type Action string

// The actions that Decide knows; any other is denied.
const (
	Read    Action = "read"
	Write   Action = "write"
	Exec    Action = "exec"
	Connect Action = "connect"
	Infer   Action = "infer"
)

// Request is one question to a policy. Path serves read, write and exec; Host
// and Port serve connect; Model and Sensitive serve infer.
//
// Only the upstream "local" counts as inside the site here. A router whose
// configuration says that another upstream is inside too asks first without
// Sensitive, and again with it when the Upstream it got is outside.
type Request struct {
	Action    Action
	Path      string
	Host      string
	Port      int
	Model     string
	Sensitive bool
}

// Decision answers a Request. Reason is one of the Reason codes, Rule quotes
// the rule that decided with its place ("openclaw.yaml:14: allow
// api.example.com:443"), or is empty when nothing matched. Upstream and Strip
// are set for infer; a denial for sensitive content names the Upstream that
// it was kept from.
type Decision struct {
	Verdict  Verdict
	Reason   string
	Rule     string
	Upstream string
	Strip    bool // sensitive content must be removed before it is sent
}
