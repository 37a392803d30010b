package ledger

import (
	"context"
	"time"
)

// Kind says what a record is about. The table in ocsf.go maps each kind to an
// OCSF class.
type Kind string

// The vocabulary. Attribute names beside each kind are the ones producers set.
const (
	KindExec      Kind = "exec"      // a program was started, or kept from starting
	KindFile      Kind = "file"      // a file access was refused (or allowed, at audit level all)
	KindKernel    Kind = "kernel"    // a system call was refused that names no file, program or address
	KindConnect   Kind = "connect"   // a connection out of a sandbox: allowed, denied or held
	KindDNS       Kind = "dns"       // a name was asked for and refused
	KindModel     Kind = "model"     // an inference call: request decision, later its usage
	KindApproval  Kind = "approval"  // an operator answered a held request
	KindLifecycle Kind = "lifecycle" // an agent was launched, stopped, killed by a budget
	KindPolicy    Kind = "policy"    // a policy was loaded, changed or refused
	KindInstall   Kind = "install"   // an installation receipt
	KindWeakening Kind = "weakening" // protection is lower than the default, and why
	KindService   Kind = "service"   // the appliance itself: start, stop, recovery
)

// Verdict is what was decided.
type Verdict string

// The three verdicts. Held means: no answer yet, an operator was asked.
const (
	Allowed Verdict = "allowed"
	Denied  Verdict = "denied"
	Held    Verdict = "held"
)

// Record is one fact in the producer's own terms. Zero fields are left out of
// the log.
type Record struct {
	Time    time.Time // when it happened; Append fills it when zero
	Kind    Kind
	Verdict Verdict
	Agent   string // the agent's name; empty for the appliance itself
	Policy  string // digest of the policy that decided, "sha256:…"
	Reason  string // stable machine-readable code, such as "net.unlisted"
	Detail  string // one sentence for a person

	Process Process // who did it
	Path    string  // file or executable
	Host    string  // destination name (or address where there was no name)
	Port    int     // destination port
	Model   string  // model asked for

	// Attrs holds what has no field of its own; keys are lower_snake_case.
	// Values are what JSON has; Read gives integers back as int64. "op" names
	// the operation (read, write, start …) where the reason's last word
	// doesn't: ocsf.go looks for both.
	Attrs map[string]any

	// More is Attrs for who writes very many. Of a name in both, More's counts.
	// Read gives all in Attrs.
	More []Attr
}

// Process is the process that acted, as the host sees it.
type Process struct {
	PID  int    // host process id
	PPID int    // host id of its parent
	UID  int    // host user id
	Comm string // the kernel's 15-byte name of it; chosen by the process, so a hint only
}

// Recorder takes records. Record returns only when all of rs are durable; on
// an error none of the actions that they describe may happen. It is safe for
// concurrent use.
type Recorder interface {
	Record(ctx context.Context, rs ...Record) error
}
