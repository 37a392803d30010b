package policies

import (
	"net/netip"
	"time"
)

// Policy is a parsed, complete policy: every field that a source left out has
// been given its closed value. Values are immutable after Parse; modifiers
// return copies.
type Policy struct {
	Name       string // metadata.name
	Source     string // file name that it was read from, for messages
	Dialect    string // "canonical", "network", "agent_policy" or "openshell": what it was written in
	Filesystem Filesystem
	Process    Process
	Network    Network
	// Credentials that rules of Network.Allow may name. Fixed when the sandbox
	// starts.
	Credentials []Credential
	Inference   Inference
	Budgets     Budgets
	Audit       Audit
	Require     Require

	at map[string]string // rule text → "file:line", for Decision.Rule; never changed after Parse
}

// Filesystem lists absolute paths inside the sandbox. A path covers itself and
// everything below it. What is listed nowhere cannot be opened.
type Filesystem struct {
	Read    []string // may be read (and listed)
	Write   []string // may be read, written, created, removed
	Workdir string   // where the agent starts; must be below a Write or Read path
}

// Process governs what may run, and as whom. Locked when the sandbox is created.
type Process struct {
	// Exec lists executables by absolute path; a path that ends in "/" covers
	// everything below it. Empty: only the agent's own entry point, which is
	// always executable (and readable) and which Decide does not know.
	Exec []string
	// ExecHashes pins entries of Exec, by their path, to one content:
	// "sha256:" and 64 lower-case hexadecimal digits. Nil: none is pinned.
	ExecHashes map[string]string
	// Spawn says whether the agent may start processes beside its first. It
	// does not widen Exec: without Spawn a program may still replace itself
	// with a listed one, as a wrapper script does.
	Spawn bool
	// Seccomp names the system call profile: "strict" without Spawn,
	// "default" with it.
	Seccomp string
	// Violation says what happens to a program that runs what Exec does not
	// list: "kill", or "deny": EPERM where the guard's tier can, else kill.
	Violation string
	// User and Group are decimal ids, or "own": ids that the appliance gives
	// to this agent only.
	User, Group string
	// Capabilities of the agent's processes, without "CAP_", ascending. Only
	// harmless ones parse (see docs/policy.md).
	Capabilities []string
}

// Network governs connections by destination name. Hot-reloadable.
type Network struct {
	// Default decides for a destination that no rule names: Deny or Hold.
	Default Verdict
	Allow   []HostRule
	Deny    []HostRule // wins over Allow
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

// Budgets bound a sandbox. In a parsed policy 0 stands for "unlimited", which
// only CPU, Disk, Inodes, DiskRead and DiskWrite can be.
type Budgets struct {
	Processes int           // tasks, threads included
	Memory    int64         // bytes
	CPU       float64       // cores
	Scratch   int64         // bytes of /tmp
	Disk      int64         // bytes of the writable folders on disk, all together
	Inodes    int           // files and folders there
	DiskRead  int64         // bytes per second
	DiskWrite int64         // bytes per second
	OpenFiles int           // per process
	WallTime  time.Duration // then the sandbox is stopped
}

// Audit says what is recorded beyond decisions, which always are.
type Audit struct {
	Files   string // "denied" or "all"
	Network string // "decisions", or "all": every connect and send system call too
}

// Require lists what the host must provide; less is a refusal to start.
type Require struct {
	Landlock int      // ABI version
	Tier     string   // lowest guard tier accepted: "T1".."T4"
	Kernel   string   // lowest kernel release, "6.1"; "": any
	Features []string // names of Features, ascending
}

// Credential names a secret that the agent never sees: its environment holds
// a placeholder, and egress puts the secret in its place on the endpoints
// whose rules list Name.
type Credential struct {
	Name   string
	Env    string // the variable that holds the placeholder
	Header string // the only request header where it is put in; "": any header
	Line   int
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
	Call    Action = "call" // one request, frame or tool call on an inspected connection
	Infer   Action = "infer"
)

// Request is one question to a policy. Path serves read, write and exec,
// Digest exec; Host to Addr serve connect and call, Message call; Model and
// Sensitive serve infer.
//
// Only the upstream "local" counts as inside the site here. A router whose
// configuration says that another upstream is inside too asks first without
// Sensitive, and again with it when the Upstream it got is outside.
type Request struct {
	Action Action
	Path   string
	Digest string // of the program at Path, "sha256:<hex>"; "": unknown

	Host string
	Port int
	// Binary is the connecting program and Ancestors the programs that
	// started it, nearest first, as paths in the sandbox. "": unknown; then no
	// rule with Binaries allows it.
	Binary    string
	Ancestors []string
	// Addr is the address that Host leads to. Zero: not asked; whoever dials
	// asks with it.
	Addr netip.Addr
	// Closed are networks that only rules inside them open: one that names an
	// address there, a cidr or allowedIPs that lie wholly in one of them.
	Closed  []netip.Prefix
	Message *Message

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
