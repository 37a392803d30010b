// Package control is how a client talks to a running appliance: the requests
// and answers of the control socket, and a client for them.
//
// The socket is `<run>/control.sock`: HTTP with JSON bodies over a Unix socket
// that only root may open, so reaching it is the authorization. Running a
// program in a sandbox (Client.Exec) upgrades its connection to the frames of
// frames.go.
//
//	c := control.Dial("/run/clawbox/control.sock")
//	st, err := c.Status(ctx)
package control

import (
	"errors"
	"fmt"
	"time"
)

// Status is the appliance's own account of itself.
type Status struct {
	Version    string          `json:"version"`
	Release    string          `json:"release"`
	Sequence   int64           `json:"sequence"`
	Started    time.Time       `json:"started"`
	Tier       string          `json:"tier"`            // guard tier reached, "T1".."T4"
	TierWhy    string          `json:"tierWhy"`         // why not a higher one
	Lost       uint64          `json:"lostEvents"`      // guard events that found no room
	Landlock   int             `json:"landlock"`        // ABI version
	Registry   string          `json:"registry"`        // address
	Engine     string          `json:"engine"`          // address, or why there is none
	Models     []string        `json:"models"`          // served by the engine
	Agents     []AgentStatus   `json:"agents"`          //
	Services   []ServiceStatus `json:"services"`        // the appliance's own processes
	Pending    int             `json:"pending"`         // requests that wait for an operator
	LedgerSize uint64          `json:"ledgerSize"`      // entries
	LedgerRoot string          `json:"ledgerRoot"`      // base64 of the Merkle root
	Weakenings []string        `json:"weakenings"`      // every protection that is lower than the default
	Full       string          `json:"full,omitempty"`  // why no agent is launched though work goes on: the ledger's disk is nearly full
	Error      string          `json:"error,omitempty"` // why the appliance refuses work, if it does
}

// ServiceStatus describes one of the appliance's own processes and the cage
// that it has proved.
type ServiceStatus struct {
	Name     string    `json:"name"`
	PID      int       `json:"pid,omitempty"` // 0: it does not run now
	UID      int       `json:"uid,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Restarts int       `json:"restarts"`
	LastEnd  string    `json:"lastEnd,omitempty"` // when and why it ended last
	Keeps    []string  `json:"keeps,omitempty"`   // capabilities
	Landlock int       `json:"landlock"`          // ABI
	Refused  []string  `json:"refused"`           // what it tried at its start, and how that was refused
}

// AgentStatus describes one agent.
type AgentStatus struct {
	Name     string    `json:"name"`
	State    string    `json:"state"` // "running", "stopped"
	Image    string    `json:"image"`
	Driver   string    `json:"driver,omitempty"` // "pod"; else local
	Policy   string    `json:"policy"`           // its name
	Digest   string    `json:"policyDigest"`     // "sha256:…"
	Started  time.Time `json:"started,omitzero"`
	Stopped  time.Time `json:"stopped,omitzero"`
	PID      int       `json:"pid,omitempty"` // of the launcher, on the host
	UID      int       `json:"uid"`
	ExitCode int       `json:"exitCode"`
	Why      string    `json:"why,omitempty"`    // why it stopped
	Tasks    int64     `json:"tasks,omitempty"`  // processes and threads now
	Memory   int64     `json:"memory,omitempty"` // bytes now
	Pauses   int       `json:"pauses,omitempty"` // how often it was slowed down because it caused too many records
	Paused   time.Time `json:"paused,omitzero"`  // until then it is
}

// LaunchRequest starts an agent. Fields left empty come from the appliance's
// configuration of Agent.
type LaunchRequest struct {
	Name   string `json:"name"`
	Agent  string `json:"agent,omitempty"`  // an entry of the configuration's agents
	Image  string `json:"image,omitempty"`  // ref in the store
	Policy string `json:"policy,omitempty"` // name, for messages
	Source []byte `json:"source,omitempty"` // policy text; overrides the configured one
	// Command replaces the image's entry point and command, Args its command only.
	Command []string `json:"command,omitempty"`
	Args    []string `json:"args,omitempty"`
	Env     []string `json:"env,omitempty"`
	// Driver is "local" or "pod"; empty: as before, or as the configuration has it.
	Driver string `json:"driver,omitempty"`
}

// PolicyRequest replaces the hot-reloadable layers of an agent's policy.
type PolicyRequest struct {
	Name   string `json:"name"`
	Source []byte `json:"source"`
}

// StopRequest stops an agent: SIGTERM, then after Grace everything is killed.
type StopRequest struct {
	Grace time.Duration `json:"grace"` // nanoseconds
}

// ExecRequest runs a program inside a running sandbox, under its policy.
type ExecRequest struct {
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
	TTY  bool     `json:"tty,omitempty"`
	Rows uint16   `json:"rows,omitempty"`
	Cols uint16   `json:"cols,omitempty"`
}

// Held is what waits for an operator at one moment.
type Held struct {
	Version string    `json:"version"` // for Client.Watch; other words for other contents
	Now     time.Time `json:"now"`     // the appliance's clock
	Pending []Pending `json:"pending"` // oldest first
}

// Pending is one held request. Apart from Waiting and Ended it never changes.
type Pending struct {
	ID           string    `json:"id"`     // random; works for one answer
	Digest       string    `json:"digest"` // of what is shown: "sha256:…"
	Agent        string    `json:"agent"`
	Host         string    `json:"host"`
	Port         int       `json:"port"`
	Call         string    `json:"call,omitempty"`      // one call on an inspected connection; "": the connection
	Binary       string    `json:"binary,omitempty"`    // program in the sandbox; "": not known
	Ancestors    []string  `json:"ancestors,omitempty"` // of Binary, nearest first
	Process      string    `json:"process,omitempty"`   // a hint, chosen by the process
	UID          int       `json:"uid"`
	Policy       string    `json:"policy"`
	PolicyDigest string    `json:"policyDigest"`
	Reason       string    `json:"reason"`         // stable code
	Why          string    `json:"why"`            // the same in words
	Rule         string    `json:"rule,omitempty"` // what the policy said
	Since        time.Time `json:"since"`
	Until        time.Time `json:"until"`           // then it is refused
	Waiting      int       `json:"waiting"`         // connections that wait
	Ended        bool      `json:"ended,omitempty"` // the sandbox that asked is gone
	Change       string    `json:"change"`          // what "always" changes, as policy
	Words        string    `json:"words"`           // the same in words
}

// AnswerRequest answers a held request.
type AnswerRequest struct {
	Digest   string `json:"digest"` // of the Pending that was shown
	Allow    bool   `json:"allow"`
	Scope    string `json:"scope"` // "once", "session", "always"
	Operator string `json:"operator"`
	Reason   string `json:"reason,omitempty"` // the client sees it; at most 200 bytes
}

// Standing is an answer that still stands.
type Standing struct {
	ID        string    `json:"id"`
	Agent     string    `json:"agent"`
	Host      string    `json:"host"`
	Port      int       `json:"port"`
	Call      string    `json:"call,omitempty"`
	Binary    string    `json:"binary,omitempty"`
	Ancestors []string  `json:"ancestors,omitempty"`
	Allow     bool      `json:"allow"`
	Scope     string    `json:"scope"`
	Policy    string    `json:"policy"`
	Operator  string    `json:"operator"`
	Reason    string    `json:"reason,omitempty"`
	Time      time.Time `json:"time"`
	Until     time.Time `json:"until,omitzero"` // scope once: then it is void
}

// Error is what the appliance answers when it refuses. Code is stable.
type Error struct {
	Code   string `json:"code"` // "not_found", "conflict", "invalid", "refused", "internal"
	Detail string `json:"detail"`
}

// Error renders the refusal for a person.
func (e *Error) Error() string { return e.Detail }

// Errorf makes an Error.
func Errorf(code, format string, a ...any) *Error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, a...)}
}

// ErrUnreachable says that no appliance answers on the socket.
var ErrUnreachable = errors.New("the appliance does not answer")
