package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/clawbox/clawbox/appliance/config"
	"github.com/clawbox/clawbox/appliance/control"
	"github.com/clawbox/clawbox/appliance/holds"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// TestApproveScripts drives the verb against a real book of holds behind a
// real control socket.
func TestApproveScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:  "testdata/approve",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": wantStatus, "appliance": fakeAppliance, "outcome": outcome, "held": held},
	})
}

// ledgerOf keeps what a script's book recorded.
type ledgerOf struct {
	mu sync.Mutex
	rs []string
}

func (l *ledgerOf) Record(_ context.Context, rs ...ledger.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range rs {
		l.rs = append(l.rs, string(r.Verdict)+" "+r.Reason+" "+r.Detail)
	}
	return nil
}

// scripted is what the commands of one script share.
type scripted struct {
	book *holds.Book
	log  *ledgerOf
	mu   sync.Mutex
	outs map[string]holds.Outcome
}

var running sync.Map // work directory → *scripted

// appliance ROOT serves an empty book on the control socket of an installed
// appliance at ROOT.
func fakeAppliance(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: appliance ROOT")
	}
	root := ts.MkAbs(args[0])
	c := config.Default(root)
	c.Release = config.Release{Name: "demo", Version: "0.1.0", Sequence: 1, Digest: "sha256:" + strings.Repeat("ab", 32)}
	c.Paths.Slot = filepath.Join(root, "slot")
	b, err := c.Encode()
	ts.Check(err)
	for _, dir := range []string{filepath.Dir(config.File(root)), c.Paths.Run} {
		ts.Check(os.MkdirAll(dir, 0o755))
	}
	ts.Check(os.WriteFile(config.File(root), b, 0o644))
	s := &scripted{log: &ledgerOf{}, outs: map[string]holds.Outcome{}}
	s.book, err = holds.Open(holds.Config{File: filepath.Join(root, "approvals.json"), Recorder: s.log})
	ts.Check(err)
	l, err := net.Listen("unix", filepath.Join(c.Paths.Run, "control.sock"))
	ts.Check(err)
	srv := &http.Server{Handler: holds.Handler(s.book, func(string) {})}
	go srv.Serve(l)
	ts.Defer(func() { srv.Close() })
	running.Store(ts.Getenv("WORK"), s)
}

// held HOST PORT BINARY begins a connection that is held, and puts its ID into
// the environment.
func held(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: held HOST PORT BINARY")
	}
	v, _ := running.Load(ts.Getenv("WORK"))
	s := v.(*scripted)
	port, err := strconv.Atoi(args[1])
	ts.Check(err)
	q := holds.Question{
		Subject:   holds.Subject{Agent: "a1", Host: args[0], Port: port, Binary: args[2]},
		Ancestors: []string{"/bin/sh"}, Policy: "p", Digest: "sha256:1", Life: "boot/1", Process: ledger.Process{PID: 7, Comm: "x\x1b[2J"},
	}
	go func() {
		out := s.book.Ask(context.Background(), q, nil)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.outs[args[0]] = out
	}()
	for range 1000 {
		for _, p := range s.book.List() {
			if p.Host == args[0] && p.Waiting > 0 {
				ts.Setenv("ID", p.ID)
				ts.Setenv("DIGEST", p.Digest)
				return
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	ts.Fatalf("%s is not held", args[0])
}

// outcome HOST WANT says what became of a held connection: "allowed once", or
// the denial's text.
func outcome(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: outcome HOST WANT")
	}
	v, _ := running.Load(ts.Getenv("WORK"))
	s := v.(*scripted)
	got := ""
	for range 1000 {
		s.mu.Lock()
		out, ok := s.outs[args[0]]
		s.mu.Unlock()
		if got = out.Denial.Detail; out.Allow {
			got = "allowed " + string(out.Scope)
		}
		if ok {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if got != args[1] {
		ts.Fatalf("got %q, want %q", got, args[1])
	}
}

// counter is an office whose answers are counted.
type counter struct {
	mu  sync.Mutex
	ids []string
	qs  []control.AnswerRequest
	err error
}

func (c *counter) Watch(ctx context.Context, _ string) (control.Held, error) {
	<-ctx.Done()
	return control.Held{}, ctx.Err()
}

func (c *counter) Answer(_ context.Context, id string, q control.AnswerRequest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ids, c.qs = append(c.ids, id), append(c.qs, q)
	return c.err
}

// terminal is a screen with an operator's fingers.
type terminal struct {
	*screen
	t    *testing.T
	c    *counter
	time time.Time
}

func newTerminal(t *testing.T, ps ...control.Pending) *terminal {
	c := &counter{}
	x := &terminal{t: t, c: c, time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	x.screen = newScreen(t.Context(), c, "ada")
	x.now = func() time.Time { return x.time }
	x.holds(ps...)
	x.time = x.time.Add(2 * settle)
	return x
}

// holds is news from the appliance.
func (x *terminal) holds(ps ...control.Pending) {
	x.Update(heldMsg{held: control.Held{Version: fmt.Sprint(len(ps)), Now: x.time, Pending: ps}})
}

// press types keys, one a word; it runs what an answer needs.
func (x *terminal) press(keys string) {
	x.t.Helper()
	for _, k := range strings.Fields(keys) {
		var msg tea.KeyPressMsg
		switch k {
		case "enter":
			msg = tea.KeyPressMsg{Code: tea.KeyEnter}
		case "esc":
			msg = tea.KeyPressMsg{Code: tea.KeyEscape}
		case "down":
			msg = tea.KeyPressMsg{Code: tea.KeyDown}
		case "up":
			msg = tea.KeyPressMsg{Code: tea.KeyUp}
		case "pgdown":
			msg = tea.KeyPressMsg{Code: tea.KeyPgDown}
		default:
			msg = tea.KeyPressMsg{Code: rune(k[0]), Text: k}
		}
		_, cmd := x.Update(msg)
		if x.busy && cmd != nil {
			x.Update(cmd())
		}
	}
}

func (x *terminal) text() string { return ansi.Strip(strings.Join(x.lines(), "\n")) }

func (x *terminal) shows(what ...string) {
	x.t.Helper()
	s := strings.Join(strings.Fields(x.text()), " ")
	for _, w := range what {
		if !strings.Contains(s, w) {
			x.t.Errorf("%q is not on the screen:\n%s", w, x.text())
		}
	}
}

func request(id, host string) control.Pending {
	at := time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)
	return control.Pending{
		ID: id, Digest: "sha256:" + id, Agent: "claw", Host: host, Port: 443, Binary: "/usr/bin/curl", Ancestors: []string{"/bin/bash", "/usr/bin/node"},
		Process: "evil\x1b[2J\u202e (pid 7)", UID: 1234, Policy: "strict", Reason: policies.ReasonUnlisted, Why: "no rule lists it",
		Since: at, Until: at.Add(2 * time.Minute), Waiting: 2, Change: "network: {allow: [{host: " + host + "}]}", Words: "claw may use " + host,
	}
}

func TestScreenShows(t *testing.T) {
	x := newTerminal(t, request("one", "a.example"), request("two", "b.example"))
	x.shows("2 held", "answers as ada", "▸ claw", "a.example:443", "/usr/bin/curl", "/bin/bash ← /usr/bin/node", "no rule lists it", policies.ReasonUnlisted,
		"2 connections wait", "refused in 1m5", "network: {allow: [{host: a.example}]}", "claw may use a.example", "uid 1234", "strict")
	if strings.ContainsAny(x.text(), "\x1b\u202e") {
		t.Error("what the agent chose reaches the terminal")
	}
	x.press("down")
	x.shows("wants b.example:443")
	x.holds()
	x.shows("nothing is held", "is gone")
	p := request("call", "c.example")
	p.Call, p.Binary, p.Ancestors, p.Ended = "tools/call rm\x1b[A", "", nil, true
	x.holds(p)
	x.shows("tools/call rm\ufffd[A on c.example:443", "its own word", "the sandbox that asked is gone", "started by not known")
	x.Update(heldMsg{err: control.ErrUnreachable})
	x.shows("does not answer; trying again")
}

// TestScreenSizes: nothing is wider or higher than the window, at any size.
func TestScreenSizes(t *testing.T) {
	long := request("one", strings.Repeat("long.", 40)+"example")
	long.Ancestors = slices.Repeat([]string{"/opt/世界/" + strings.Repeat("deep/", 30) + "sh"}, 6)
	x := newTerminal(t, slices.Repeat([]control.Pending{long}, 20)...)
	for _, size := range [][2]int{{80, 24}, {200, 60}, {40, 12}, {36, 12}, {20, 6}, {8, 3}, {1, 1}, {0, 0}} {
		x.Update(tea.WindowSizeMsg{Width: size[0], Height: size[1]})
		for p := pageList; p <= pageHelp; p++ {
			x.page, x.asked = p, long
			ls := x.lines()
			if len(ls) > size[1] {
				t.Errorf("page %d at %v has %d lines", p, size, len(ls))
			}
			for _, l := range ls {
				if w := ansi.StringWidth(l); w > size[0] {
					t.Errorf("page %d at %v has a line of %d: %q", p, size, w, l)
				}
			}
		}
	}
}

// TestScreenAnswers: which keys send which answer, with the digest of what was
// shown.
func TestScreenAnswers(t *testing.T) {
	for keys, want := range map[string]control.AnswerRequest{
		"a":                 {Allow: true, Scope: "once"},
		"s":                 {Allow: true, Scope: "session"},
		"A y":               {Allow: true, Scope: "always"},
		"A pgdown y":        {Allow: true, Scope: "always"},
		"d enter":           {Scope: "once"},
		"D n o t enter":     {Scope: "session", Reason: "not"},
		"d a s A y q enter": {Scope: "once", Reason: "asAyq"},
	} {
		x := newTerminal(t, request("one", "a.example"), request("two", "b.example"))
		x.press("down " + keys)
		want.Digest, want.Operator = "sha256:two", "ada"
		if len(x.c.qs) != 1 || x.c.ids[0] != "two" || x.c.qs[0] != want {
			t.Errorf("%s: got %v %+v, want %+v", keys, x.c.ids, x.c.qs, want)
		}
	}
	for _, keys := range []string{"A n", "A enter", "A esc y", "A a", "A Y", "d esc", "D x y esc", "x", "? a", "j k"} {
		x := newTerminal(t, request("one", "a.example"))
		x.press(keys)
		if len(x.c.qs) != 0 {
			t.Errorf("%s: answered %+v", keys, x.c.qs)
		}
	}
	x := newTerminal(t, request("one", "a.example"))
	x.c.err = errors.New("not what was shown\x1b[2J")
	x.press("a")
	x.shows("no effect: not what was shown\ufffd")
}

// TestScreenMoves: a key that was meant for one request never answers another
// one that took its place.
func TestScreenMoves(t *testing.T) {
	one, two := request("one", "a.example"), request("two", "b.example")
	x := newTerminal(t, one, two)
	x.holds(two) // one timed out under the operator's finger
	x.press("a")
	x.press("s")
	if len(x.c.qs) != 0 {
		t.Errorf("answered %v at once", x.c.ids)
	}
	x.shows("came up just now")
	x.time = x.time.Add(settle)
	x.press("a")
	if len(x.c.ids) != 1 || x.c.ids[0] != "two" {
		t.Errorf("answered %v", x.c.ids)
	}

	// The questions before an answer go with what they are about.
	for _, keys := range []string{"A", "d", "D"} {
		x = newTerminal(t, one, two)
		x.press(keys)
		x.holds(two)
		x.press("y enter")
		if len(x.c.qs) != 0 || x.page != pageList {
			t.Errorf("%s: answered %v", keys, x.c.ids)
		}
	}

	// New ones do not move the choice.
	x = newTerminal(t, two)
	x.holds(one, two)
	x.press("a")
	if len(x.c.ids) != 1 || x.c.ids[0] != "two" {
		t.Errorf("answered %v", x.c.ids)
	}

	// A window that shows nothing takes nothing.
	x = newTerminal(t, one)
	x.Update(tea.WindowSizeMsg{Width: 30, Height: 5})
	x.press("a")
	if len(x.c.qs) != 0 {
		t.Error("answered in a window too small to read")
	}

	// A session that is over can't be chosen.
	one.Ended = true
	x = newTerminal(t, one)
	x.press("s D a")
	if len(x.c.qs) != 1 || x.c.qs[0].Scope != "once" || !x.c.qs[0].Allow {
		t.Errorf("answered %+v", x.c.qs)
	}
}
