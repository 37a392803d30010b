package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"charm.land/bubbles/v2/textinput"
	tea "charm.land/bubbletea/v2"

	"github.com/clawbox/clawbox/appliance/control"
)

// office is the appliance, for the screen.
type office interface {
	// Watch returns when what is held differs from the version, or after a while.
	Watch(ctx context.Context, version string) (control.Held, error)
	Answer(ctx context.Context, id string, r control.AnswerRequest) error
}

// settle is how long answers are not taken after another request came up by
// itself: the key was meant for what was there before.
const settle = 700 * time.Millisecond

// The smallest window that shows what an answer is for.
const minWidth, minHeight = 36, 12

// calm is the least time between two looks: an agent decides how often what is
// held changes.
const calm = 100 * time.Millisecond

// retry is how long a lost appliance is left alone.
const retry = 2 * time.Second

// page is what the screen shows.
type page int

const (
	pageList page = iota
	pageAlways
	pageDeny
	pageHelp
)

// screen follows what is held and takes answers. Everything that an answer is
// sent with is taken from what was drawn.
type screen struct {
	ctx context.Context
	cl  office
	who string           // operator
	now func() time.Time //

	held   control.Held
	skew   time.Duration // the appliance's clock before ours
	sel    string        // id of the request that is shown
	fresh  time.Time     // since when it is, if nobody chose it
	page   page
	asked  control.Pending // what pageAlways and pageDeny are about
	deny   string          // scope of pageDeny
	reason textinput.Model
	down   int    // lines that the details are scrolled
	note   string // the last line
	lost   error  // the appliance does not answer
	busy   bool   // an answer is under way
	gave   string // id of the request that it is for, or was
	w, h   int
}

type (
	heldMsg struct {
		held control.Held
		err  error
	}
	answeredMsg struct {
		p   control.Pending
		q   control.AnswerRequest
		err error
	}
	againMsg struct{}
	tickMsg  struct{}
)

// approveScreen runs until the operator leaves.
func approveScreen(ctx context.Context, cl office, who string) error {
	held, err := cl.Watch(ctx, "")
	if err != nil {
		return err // not worth a screen
	}
	m := newScreen(ctx, cl, who)
	m.take(held)
	_, err = tea.NewProgram(m, tea.WithContext(ctx), tea.WithoutSignalHandler()).Run()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func newScreen(ctx context.Context, cl office, who string) *screen {
	in := textinput.New()
	in.Prompt, in.CharLimit = "reason: ", 200
	return &screen{ctx: ctx, cl: cl, who: who, now: time.Now, reason: in, w: 80, h: 24}
}

// Init begins to follow what is held.
func (m *screen) Init() tea.Cmd { return tea.Batch(m.watch(), tick()) }

func tick() tea.Cmd { return tea.Tick(time.Second, func(time.Time) tea.Msg { return tickMsg{} }) }

func (m *screen) watch() tea.Cmd {
	ctx, cl, v := m.ctx, m.cl, m.held.Version
	return func() tea.Msg {
		h, err := cl.Watch(ctx, v)
		return heldMsg{h, err}
	}
}

// Update takes one event.
func (m *screen) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.w, m.h = msg.Width, msg.Height
	case tickMsg:
		return m, tick()
	case againMsg:
		return m, m.watch()
	case heldMsg:
		if m.lost = msg.err; msg.err != nil {
			return m, tea.Tick(retry, func(time.Time) tea.Msg { return againMsg{} })
		}
		m.take(msg.held)
		return m, tea.Tick(calm, func(time.Time) tea.Msg { return againMsg{} })
	case answeredMsg:
		m.busy = false
		m.note = done(msg.p, msg.q)
		if msg.err != nil {
			m.note = "no effect: " + printable(msg.err.Error())
		}
	case tea.KeyPressMsg:
		return m, m.press(msg)
	default:
		if m.page == pageDeny { // pasted text, the cursor
			var cmd tea.Cmd
			m.reason, cmd = m.reason.Update(msg)
			return m, cmd
		}
	}
	return m, nil
}

// take shows what is held now. The request that is shown stays; when it is
// gone the screen tells so, and the one that takes its place has to settle.
func (m *screen) take(h control.Held) {
	m.held, m.skew = h, h.Now.Sub(m.now())
	if m.index() >= 0 {
		return
	}
	if m.sel != "" && m.page != pageHelp {
		m.page = pageList
		if m.sel != m.gave {
			m.note = "the request that was shown here is gone"
		}
	}
	m.sel, m.down, m.fresh = "", 0, m.now()
	if len(h.Pending) > 0 {
		m.sel = h.Pending[0].ID
	}
}

// index is where the request that is shown stands, or -1.
func (m *screen) index() int {
	return slices.IndexFunc(m.held.Pending, func(p control.Pending) bool { return p.ID == m.sel })
}

// shown is the request that is shown.
func (m *screen) shown() (control.Pending, bool) {
	if i := m.index(); i >= 0 {
		return m.held.Pending[i], true
	}
	return control.Pending{}, false
}

// press takes a key.
func (m *screen) press(k tea.KeyPressMsg) tea.Cmd {
	if k.String() == "ctrl+c" {
		return tea.Quit
	}
	if m.page != pageDeny && m.scroll(k.String()) {
		return nil
	}
	switch m.page {
	case pageHelp:
		m.page, m.down = pageList, 0
		return nil
	case pageAlways:
		return m.pressAlways(k)
	case pageDeny:
		return m.pressDeny(k)
	}
	if cmd, ok := m.pressAnswer(k.String()); ok {
		return cmd
	}
	switch k.String() {
	case "q", "esc":
		return tea.Quit
	case "?", "h":
		m.page, m.down = pageHelp, 0
	case "up", "k":
		m.move(-1)
	case "down", "j", "tab":
		m.move(1)
	}
	return nil
}

// scroll reads on or back.
func (m *screen) scroll(k string) bool {
	by, ok := map[string]int{"pgdown": 3, "space": 3, "pgup": -3}[k]
	m.down = max(0, m.down+by)
	return ok
}

// pressAnswer takes the keys that answer.
func (m *screen) pressAnswer(k string) (tea.Cmd, bool) {
	if !slices.Contains([]string{"a", "s", "A", "d", "D"}, k) {
		return nil, false
	}
	p, ok := m.shown()
	switch {
	case !ok:
		m.note = "nothing is held"
	case m.busy:
		m.note = "an answer is under way"
	case m.w < minWidth || m.h < minHeight:
		m.note = fmt.Sprintf("make the window %d by %d or larger: an answer is for what is shown", minWidth, minHeight)
	case m.now().Sub(m.fresh) < settle:
		m.note = "this request came up just now; look at it, then press " + k + " again"
	case (k == "s" || k == "D") && p.Ended:
		m.note = "the sandbox that asked is gone, and its session with it: answer once (a), always (A) or deny (d)"
	case k == "a":
		return m.send(p, scopes["once"]), true
	case k == "s":
		return m.send(p, scopes["session"]), true
	case k == "A":
		m.page, m.asked, m.down = pageAlways, p, 0
	default:
		m.page, m.asked, m.deny = pageDeny, p, map[string]string{"d": "deny", "D": "deny-session"}[k]
		m.reason.Reset()
		return m.reason.Focus(), true
	}
	return nil, true
}

// pressAlways wants a clear yes.
func (m *screen) pressAlways(k tea.KeyPressMsg) tea.Cmd {
	m.page, m.down = pageList, 0
	if k.String() == "y" {
		return m.send(m.asked, scopes["always"])
	}
	m.note = "the policy stays as it is"
	return nil
}

// pressDeny takes the reason.
func (m *screen) pressDeny(k tea.KeyPressMsg) (cmd tea.Cmd) {
	switch k.String() {
	case "esc":
		m.page, m.note = pageList, "not answered"
	case "enter":
		m.page = pageList
		q := scopes[m.deny]
		q.Reason = m.reason.Value()
		return m.send(m.asked, q)
	default:
		m.reason, cmd = m.reason.Update(k)
	}
	return cmd
}

// send answers what was shown as p.
func (m *screen) send(p control.Pending, q control.AnswerRequest) tea.Cmd {
	q.Operator, q.Digest = m.who, p.Digest
	m.busy, m.gave, m.note = true, p.ID, "answering …"
	ctx, cl := m.ctx, m.cl
	return func() tea.Msg {
		err := cl.Answer(ctx, p.ID, q)
		if errors.Is(err, control.ErrUnreachable) {
			err = fmt.Errorf("%w; ask the ledger whether the answer arrived", err)
		}
		return answeredMsg{p, q, err}
	}
}

// move chooses another request.
func (m *screen) move(by int) {
	n := len(m.held.Pending)
	if n == 0 {
		return
	}
	i := min(max(m.index()+by, 0), n-1)
	if id := m.held.Pending[i].ID; id != m.sel {
		m.sel, m.down, m.note, m.fresh = id, 0, "", time.Time{}
	}
}
