package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/ledger"
)

// result is what became of an attack.
type result struct {
	Theme   string   `json:"theme"`
	Name    string   `json:"name"`
	Tries   string   `json:"tries"`
	Passed  bool     `json:"passed"`    // the suite's word: the attack failed as it should
	Won     bool     `json:"attackWon"` // the attack achieved something
	Outcome string   `json:"outcome"`
	Said    string   `json:"said,omitempty"`
	Records []string `json:"records"`
	Control string   `json:"control"`
	Wrong   []string `json:"wrong,omitempty"`
	Seconds float64  `json:"seconds"`
}

// try runs an attack in the sandbox and in the control, and judges.
func (h *host) try(a attack) (r result) {
	r = result{Theme: a.theme, Name: a.name, Tries: a.tries}
	wrong := func(format string, args ...any) { r.Wrong = append(r.Wrong, fmt.Sprintf(format, args...)) }
	t0 := time.Now()
	defer func() { r.Seconds, r.Passed = time.Since(t0).Seconds(), len(r.Wrong) == 0 }()
	from, err := h.ready(a.agent)
	if err != nil {
		wrong("%v", err)
		return r
	}
	if a.fresh {
		defer func() {
			if err := h.remove(a.agent); err != nil {
				wrong("%v", err)
			}
		}()
	}
	h.strike(a, &r, wrong)
	for _, want := range h.expandRecords(a.records) {
		e, ok := h.await(want, a.agent, from)
		if !ok {
			wrong("no record %+v among %q", want, h.others(a.agent, from))
			continue
		}
		r.Records = append(r.Records, e)
	}
	if (len(a.records) == 0) != (a.silent != "") {
		wrong("the suite names %d records, and says that there is none because %q", len(a.records), a.silent)
	}
	r.Control = h.controlled(a, wrong)
	return r
}

// strike lets the attack happen.
func (h *host) strike(a attack, r *result, wrong func(string, ...any)) {
	if a.outside() {
		var err error
		if a.drive != nil {
			err = a.drive(h)
		} else {
			r.Said, err = a.measure(h)
		}
		if r.Outcome = "as it should"; err != nil {
			r.Outcome = "wrong"
			wrong("%v", err)
		}
		return
	}
	mark := h.mark()
	o := h.inside(a.agent, mark, h.expand(a.args))
	r.Outcome, r.Said = o.String(), o.Say
	if h.saw(mark) {
		o.OK = true
		wrong("the vendor saw the mark")
	}
	r.Won = o.OK
	if w := a.want.holds(o); w != "" {
		wrong("%s", w)
	}
}

// controlled runs the attack where nothing confines it.
func (h *host) controlled(a attack, wrong func(string, ...any)) string {
	switch {
	case a.control.none != "":
		return "none: " + a.control.none
	case a.outside():
		return "none: it is driven from outside"
	case h.opts.noControl:
		return "left out"
	}
	mark := h.mark()
	o := h.bare(mark, h.expand(a.args))
	if o.OK || h.saw(mark) {
		return "succeeds"
	}
	if len(o.Errnos) > 0 && !slices.ContainsFunc(o.Errnos, func(e string) bool { return !slices.Contains(a.control.lacks, e) }) {
		return "this kernel lacks it: " + strings.Join(o.Errnos, ",")
	}
	wrong("the control did not succeed: %s", o)
	return "FAILED"
}

func (o outcome) String() string {
	switch {
	case o.OK:
		return "succeeded"
	case o.killed():
		return "killed"
	case len(o.Errnos) > 0:
		return strings.Join(slices.Compact(slices.Clone(o.Errnos)), ",")
	case o.spoke:
		return fmt.Sprintf("%.60q", strings.TrimSpace(o.Say))
	}
	return fmt.Sprintf("status %d: %.200q", o.Code, o.raw)
}

// parse finds the line that an attack prints.
func parse(out []byte, code int) outcome {
	o := outcome{Code: code, raw: string(out[:min(len(out), 500)])}
	for line := range bytes.Lines(out) {
		if b, ok := bytes.CutPrefix(line, []byte("ATTACK ")); ok && json.Unmarshal(b, &o) == nil {
			o.spoke, o.Code = true, code
		}
	}
	if !o.spoke && bytes.Contains(out, []byte("CANARY\n")) { // the attacker became the program
		o.OK, o.spoke = true, true
	}
	return o
}

// limited keeps the beginning and the end of what is written to it.
type limited struct{ bytes.Buffer }

func (l *limited) Write(b []byte) (int, error) {
	n := len(b)
	if l.Len() > 1<<20 {
		l.Truncate(64 << 10)
	}
	l.Buffer.Write(b)
	return n, nil
}

// attackTime bounds one attack.
const attackTime = 4 * time.Minute

// inside runs an attack in an agent's sandbox.
func (h *host) inside(agent, mark string, args []string) outcome {
	return h.insideFor(h.ctx, agent, mark, args)
}

func (h *host) insideFor(ctx context.Context, agent, mark string, args []string) outcome {
	ctx, cancel := context.WithTimeout(ctx, attackTime)
	defer cancel()
	var out limited
	r := control.ExecRequest{Args: append([]string{"/bin/attack"}, args...), Env: []string{"MARK=" + mark}}
	code, err := h.client.Exec(ctx, agent, r, control.Stdio{In: strings.NewReader(""), Out: &out, Err: &out})
	if err != nil {
		return outcome{raw: "exec: " + err.Error() + ": " + out.String()}
	}
	return parse(out.Bytes(), code)
}

// bare runs it in the container that confines nothing.
func (h *host) bare(mark string, args []string) outcome {
	ctx, cancel := context.WithTimeout(h.ctx, attackTime)
	defer cancel()
	c := exec.CommandContext(ctx, filepath.Join(h.opts.dist, "attack-inside"), append([]string{"bare", h.at("root"), h.at("host")}, args...)...)
	c.Env = append(os.Environ(), "MARK="+mark, "CONTROL=1")
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS, Pdeathsig: syscall.SIGKILL,
	}
	var out limited
	c.Stdout, c.Stderr = &out, &out
	if err := c.Run(); c.ProcessState == nil {
		return outcome{raw: err.Error()}
	}
	code := c.ProcessState.ExitCode()
	if w, ok := c.ProcessState.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		code = 128 + int(w.Signal())
	}
	return parse(out.Bytes(), code)
}

// others are the last records of the agent that are there instead.
func (h *host) others(agent string, from int64) (out []string) {
	for e, err := range ledger.Read(h.ledger(), from) {
		if err == nil && e.Record.Agent == agent && e.Record.Verdict != ledger.Allowed {
			out = append(out, short(e))
		}
	}
	return out[max(0, len(out)-6):]
}

func short(e ledger.Entry) string {
	return fmt.Sprintf("%d %s %s %s %s%s %s", e.Index, e.Record.Kind, e.Record.Verdict, e.Record.Reason, e.Record.Path, e.Record.Host, e.Record.Detail)
}

// patience is how long a record may take: it is there at once on an idle
// machine, and this run shares one.
const patience = 30 * time.Second

// await looks for a record of the agent from entry from on, for a while. A
// record of the appliance itself, such as a weakening, counts too.
func (h *host) await(want record, agent string, from int64) (string, bool) {
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		for e, err := range ledger.Read(h.ledger(), from) {
			if err != nil {
				break
			}
			if (e.Record.Agent == agent || e.Record.Agent == "") && want.matches(e.Record) {
				return short(e), true
			}
		}
		if time.Now().After(end) || h.ctx.Err() != nil {
			return "", false
		}
	}
}
