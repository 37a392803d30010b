package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/clawbox/clawbox/appliance/control"
)

// operators are attacks on approvals, and on what an operator is told. Each is
// driven from outside and returns an error if it succeeded.
var operators = []attack{
	{name: "approval-timeout", tries: "outwait the operator", drive: outwait, records: []record{{Kind: "connect", Verdict: "held", Host: "allowed.example"}, way("allowed.example")}},
	{name: "approval-replay", tries: "use an answer twice", drive: replay, records: []record{{Kind: "approval", Verdict: "allowed", Host: "allowed.example"}}},
	{name: "approval-swap", tries: "have an answer taken for another question", drive: swapDigest, records: []record{{Kind: "connect", Verdict: "held", Host: "allowed.example"}}},
	{name: "approval-over-deny", tries: "have a denied host held and approved", drive: overDeny, records: []record{{Host: "evil.example"}}},
	{name: "pinned-content", tries: "run a program with other content than the policy pins", agent: other, drive: pinned, records: []record{}, silent: "the start is refused to the operator who asks for it"},
	{name: "log-flood", tries: "fill the host's disk by output", agent: other, drive: logFlood, silent: "the log is bounded, nothing is refused"},
	{name: "approval-flood", tries: "bury the operator in questions", drive: questions, records: []record{{Kind: "connect", Verdict: "held"}}},
}

// services are attacks while a part of the appliance is dead.
var services = []attack{
	{name: "guard-killed", tries: "run something while the guard is dead", drive: serviceKilled("guard", "exec", "/bin/other"), records: []record{{Kind: "service", Verdict: "", Detail: "guard"}}},
	{name: "egress-killed", tries: "connect while the way out is dead", drive: serviceKilled("egress", "tcp", publicAddr+":80"), records: []record{{Kind: "service", Detail: "egress"}}},
}

// hold starts a connection in the waiter and gives the question.
func (h *host) hold(host, mark string) (control.Pending, <-chan outcome, error) {
	done := make(chan outcome, 1)
	go func() { done <- h.inside(waiter, mark, []string{"tcp", host + ":80"}) }()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		ps, err := h.client.Approvals(h.ctx)
		if err != nil {
			return control.Pending{}, done, err
		}
		for _, p := range ps {
			if p.Agent == waiter && p.Host == host {
				return p, done, nil
			}
		}
		if time.Now().After(end) {
			return control.Pending{}, done, fmt.Errorf("no question about %s came", host)
		}
	}
}

// outwait asks and nobody answers.
func outwait(h *host) error {
	mark := h.mark()
	_, done, err := h.hold("allowed.example", mark)
	if err != nil {
		return err
	}
	if o := <-done; o.OK || h.saw(mark) {
		return fmt.Errorf("the connection went out without an answer: %s", o)
	}
	return nil
}

// answer sends an answer as the operator's screen does.
func (h *host) answer(p control.Pending, scope string) error {
	return h.client.Answer(h.ctx, p.ID, control.AnswerRequest{Digest: p.Digest, Allow: true, Scope: scope, Operator: "attack"})
}

// replay answers once, then sends the same answer for the next question.
func replay(h *host) error {
	first := h.mark()
	p, done, err := h.hold("allowed.example", first)
	if err != nil {
		return err
	}
	if err := h.answer(p, "once"); err != nil {
		return err
	}
	if o := <-done; !h.saw(first) {
		return fmt.Errorf("the approved connection did not go out, so the attack proves nothing: %s", o)
	}
	if err := h.answer(p, "once"); err == nil {
		return errors.New("the same answer was taken twice")
	}
	again := h.mark()
	q, done, err := h.hold("allowed.example", again)
	if err != nil {
		return fmt.Errorf("the second connection was not held: %w", err)
	}
	if q.ID == p.ID {
		return errors.New("two questions have one id")
	}
	if err := h.answer(p, "session"); err == nil {
		return errors.New("an old answer was taken for a new question")
	}
	if o := <-done; o.OK || h.saw(again) {
		return fmt.Errorf("the second connection went out: %s", o)
	}
	return nil
}

// swapDigest answers a question with what another one showed.
func swapDigest(h *host) error {
	mark := h.mark()
	p, done, err := h.hold("allowed.example", mark)
	if err != nil {
		return err
	}
	p.Digest = "sha256:" + strings.Repeat("0", 64)
	if err := h.answer(p, "always"); err == nil {
		return errors.New("an answer to something else than what was asked was taken")
	}
	if o := <-done; o.OK || h.saw(mark) {
		return fmt.Errorf("the connection went out: %s", o)
	}
	return nil
}

// overDeny must not even be asked.
func overDeny(h *host) error {
	mark := h.mark()
	done := make(chan outcome, 1)
	go func() { done <- h.inside(waiter, mark, []string{"tcp", "evil.example:80"}) }()
	for {
		select {
		case o := <-done:
			if o.OK || h.saw(mark) {
				return fmt.Errorf("a denied host was reached: %s", o)
			}
			return nil
		case <-time.After(20 * time.Millisecond):
			ps, err := h.client.Approvals(h.ctx)
			if err != nil {
				return err
			}
			for _, p := range ps {
				if p.Host == "evil.example" {
					return errors.New("an operator was asked about a host that a deny rule names")
				}
			}
		}
	}
}

// questions opens many connections to many names; the operator's list and the
// appliance must stay usable.
func questions(h *host) error {
	ctx, stop := context.WithCancel(h.ctx)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			var hosts []string
			for j := range 10 {
				hosts = append(hosts, fmt.Sprintf("n%d-%d.example:80", i, j))
			}
			h.insideFor(ctx, waiter, "", append([]string{"tcp"}, hosts...))
		})
	}
	defer wg.Wait()
	defer stop()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		t0 := time.Now()
		ps, err := h.client.Approvals(h.ctx)
		if err != nil {
			return err
		}
		if d := time.Since(t0); d > 10*time.Second || len(ps) > 1000 {
			return fmt.Errorf("%d questions wait, and listing them took %v", len(ps), d)
		}
		if len(ps) >= 4 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d questions are held, so the attack proves nothing", len(ps))
		}
	}
}

// pinned launches an agent whose policy pins a program to a content that it has
// not.
func pinned(h *host) error {
	src := strings.Replace(otherPolicy, "exec: [/bin/busybox,", `exec: [{path: /bin/busybox, sha256: "`+strings.Repeat("0", 64)+`"},`, 1)
	_, err := h.client.Launch(h.ctx, control.LaunchRequest{
		Name: "pinned", Image: "attack:0.1.0", Policy: "pinned.yaml", Source: []byte(src), Command: []string{"/bin/busybox", "sleep", "100"},
	})
	if err == nil {
		return errors.New("it was launched")
	}
	if !strings.Contains(err.Error(), strings.Repeat("0", 64)) {
		return fmt.Errorf("it was refused for another reason: %w", err)
	}
	return nil
}

// logFlood lets an agent write more to its output than its log may take, which
// is 32 MiB. It is slowed down to 4 MiB a second.
func logFlood(h *host) error {
	const name = "shouter"
	_, err := h.client.Launch(h.ctx, control.LaunchRequest{
		Name: name, Image: "attack:0.1.0", Policy: "other.yaml", Source: []byte(otherPolicy), Command: []string{"/bin/attack", "shout", "44"},
	})
	if err != nil {
		return err
	}
	defer h.client.Remove(h.ctx, name)
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		st, err := h.client.Agent(h.ctx, name)
		if err != nil {
			return err
		}
		if st.State != "running" {
			break
		}
		if time.Now().After(end) {
			return errors.Join(errors.New("it still writes after two minutes"), h.client.Stop(h.ctx, name, control.StopRequest{}))
		}
	}
	n, err := h.usage(name)
	if err != nil || n > 40<<20 {
		return fmt.Errorf("its log takes %d MiB of the host's disk (%v)", n>>20, err)
	}
	if n < 8<<20 {
		return fmt.Errorf("its log takes %d bytes only, so the attack proves nothing", n)
	}
	return nil
}

// serviceKilled kills a service from outside, as a bug in it would, and tries
// the attack until the appliance is whole again.
func serviceKilled(service string, args ...string) func(*host) error {
	return func(h *host) error {
		before, err := h.service(service)
		if err != nil {
			return err
		}
		if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
			return err
		}
		mark := h.mark()
		for end := time.Now().Add(2 * patience); ; {
			if o := h.inside(prey, mark, args); o.OK || h.saw(mark) {
				return fmt.Errorf("the attack succeeded: %s", o)
			}
			if now, err := h.service(service); err == nil && now.PID > 0 && now.PID != before.PID {
				return h.whole()
			}
			if time.Now().After(end) {
				return errors.New("the service did not come back in a minute")
			}
		}
	}
}

// service asks how one of the appliance's own processes is.
func (h *host) service(name string) (control.ServiceStatus, error) {
	st, err := h.client.Status(h.ctx)
	if err != nil {
		return control.ServiceStatus{}, err
	}
	for _, s := range st.Services {
		if s.Name == name {
			return s, nil
		}
	}
	return control.ServiceStatus{}, fmt.Errorf("there is no service %s", name)
}

// whole waits until the appliance takes work again, and starts what it stopped.
func (h *host) whole() error {
	for end := time.Now().Add(2 * patience); ; time.Sleep(100 * time.Millisecond) {
		st, err := h.client.Status(h.ctx)
		if err == nil && st.Error == "" {
			for _, name := range []string{prey, other, waiter, lone} {
				if _, rerr := h.ready(name); rerr != nil {
					err = rerr
				}
			}
			if err == nil {
				return nil
			}
		}
		if time.Now().After(end) {
			return fmt.Errorf("the appliance takes no work: %q, %w", st.Error, err)
		}
	}
}
