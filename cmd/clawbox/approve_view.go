package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/clawbox/clawbox/appliance/control"
)

// The styles say nothing that the words don't: without colours all is there.
var (
	strong = lipgloss.NewStyle().Bold(true)
	weak   = lipgloss.NewStyle().Faint(true)
	warn   = lipgloss.NewStyle().Foreground(lipgloss.Yellow)
	marked = lipgloss.NewStyle().Reverse(true)
)

// View draws the screen: a title, what is held, what is shown of it, keys.
func (m *screen) View() tea.View {
	v := tea.NewView(strings.Join(m.lines(), "\n"))
	v.AltScreen = true
	v.WindowTitle = "clawbox approve"
	return v
}

// lines is at most as high and wide as the window.
func (m *screen) lines() []string {
	top := []string{m.title()}
	bottom := append([]string{weak.Render(strings.Repeat("─", m.w))}, m.foot()...)
	room := max(0, m.h-len(top)-len(bottom))
	var mid []string
	switch m.page {
	case pageHelp:
		mid = m.scrolled(m.wrap(helpText), room)
	case pageAlways:
		mid = m.scrolled(m.always(), room)
	default:
		list := m.list(max(1, min(len(m.held.Pending), room/3)))
		mid = append(list, weak.Render(strings.Repeat("─", m.w)))
		mid = append(mid, m.scrolled(m.details(), room-len(mid))...)
	}
	for len(mid) < room {
		mid = append(mid, "")
	}
	out := append(append(top, mid[:room]...), bottom...)
	for i, l := range out {
		out[i] = ansi.Truncate(l, m.w, "…")
	}
	return out[:min(len(out), m.h)]
}

func (m *screen) title() string {
	n := fmt.Sprintf("%d held", len(m.held.Pending))
	if len(m.held.Pending) == 0 {
		n = "nothing is held"
	}
	return strong.Render("clawbox approve") + " · " + n + " · answers as " + printable(m.who)
}

// foot is the last words and the keys of the page.
func (m *screen) foot() []string {
	note := m.note
	if m.lost != nil {
		note = printable(m.lost.Error()) + "; trying again"
	}
	switch m.page {
	case pageHelp:
		return []string{"", "page down: read on   any other key: back"}
	case pageAlways:
		return []string{warn.Render("Change the policy for ever?"), "y: yes, change it   any other key: no"}
	case pageDeny:
		return []string{m.reason.View(), "enter: deny " + denyWords[m.deny] + "   esc: not now   (the client sees the reason)"}
	}
	keys := "a once  s session  A always  d deny  D deny session  ↑↓ choose  ? help  q quit"
	if m.w < 78 {
		keys = "a s A allow  d D deny  ↑↓  ? help  q"
	}
	return []string{warn.Render(note), keys}
}

var denyWords = map[string]string{"deny": "for now", "deny-session": "until the sandbox stops"}

// list shows n requests around the one that is chosen.
func (m *screen) list(n int) (out []string) {
	ps := m.held.Pending
	if len(ps) == 0 {
		return []string{weak.Render("Agents that ask for what their policy does not list appear here.")}
	}
	from := min(max(m.index()-n/2, 0), len(ps)-n)
	for i, p := range ps[from : from+n] {
		out = append(out, m.row(p))
		if i == n-1 && from+n < len(ps) {
			out[i] = ansi.Truncate(out[i], m.w-9, "…") + weak.Render(fmt.Sprintf(" +%d more", len(ps)-from-n))
		}
	}
	return out
}

// row is one request in the list.
func (m *screen) row(p control.Pending) string {
	left := m.left(p).Round(time.Second).String()
	who := fit(printable(p.Agent), 10)
	prog := "?" + program(p)
	if p.Binary != "" {
		prog = program(p)[strings.LastIndexByte(program(p), '/')+1:]
	}
	prog = fit(prog, 10)
	room := max(8, m.w-2-10-1-10-1-1-len(left)-1)
	s := fmt.Sprintf("%s %s %s %s", who, prog, fit(destination(p), room), left)
	if p.ID == m.sel {
		return marked.Render("▸ " + s)
	}
	return "  " + s
}

// fit makes s n cells wide.
func fit(s string, n int) string {
	s = ansi.Truncate(s, n, "…")
	return s + strings.Repeat(" ", max(0, n-ansi.StringWidth(s)))
}

// left is how long a request still waits, by the appliance's clock.
func (m *screen) left(p control.Pending) time.Duration {
	return max(0, p.Until.Sub(m.now().Add(m.skew)))
}

// details tells all about the request that is shown.
func (m *screen) details() []string {
	p, ok := m.shown()
	if !ok {
		return nil
	}
	by := "not known"
	if len(p.Ancestors) > 0 {
		by = strings.Join(each(p.Ancestors, printable), " ← ")
	}
	prog := program(p)
	if p.Binary != "" && p.Process != "" {
		prog += "  (calls itself " + printable(p.Process) + ")"
	} else if p.Binary == "" {
		prog += "  (its own word; the guard does not know the program)"
	}
	since := m.now().Add(m.skew).Sub(p.Since).Round(time.Second)
	wait := fmt.Sprintf("%s; refused in %s; %s", since, m.left(p).Round(time.Second), count(p.Waiting, "connection waits", "connections wait"))
	if p.Ended {
		wait += "; the sandbox that asked is gone"
	}
	return m.table([][2]string{
		{"wants", destination(p)},
		{"agent", fmt.Sprintf("%s (uid %d)", printable(p.Agent), p.UID)},
		{"program", prog},
		{"started by", by},
		{"why", printable(p.Why) + " (" + printable(p.Reason) + ")"},
		{"held for", wait},
		{"always adds", printable(p.Change)},
		{"that is", printable(p.Words)},
		{"policy", printable(p.Policy) + " " + short(printable(p.PolicyDigest))},
	})
}

// always is the question before a policy changes.
func (m *screen) always() []string {
	p := m.asked
	out := m.wrap("The policy " + printable(p.Policy) + " of agent " + printable(p.Agent) + " would be changed. This is added:")
	out = append(out, "")
	for _, l := range m.wrap(printable(p.Change)) {
		out = append(out, "    "+strong.Render(l))
	}
	out = append(append(out, ""), m.wrap("In words: "+printable(p.Words)+".")...)
	more := "It lasts over restarts, until the policy is changed again. To allow it only now press another key, then a (once) or s (until the sandbox stops)."
	return append(append(out, ""), m.wrap(more)...)
}

// table sets names before texts that wrap; on a narrow screen above them.
func (m *screen) table(rows [][2]string) (out []string) {
	const col = 13
	for _, r := range rows {
		if m.w < 50 {
			out = append(out, weak.Render(r[0]))
			for _, l := range wrapTo(r[1], m.w-2) {
				out = append(out, "  "+l)
			}
			continue
		}
		for i, l := range wrapTo(r[1], m.w-col) {
			name := strings.Repeat(" ", col)
			if i == 0 {
				name = weak.Render(fit(r[0], col))
			}
			out = append(out, name+l)
		}
	}
	return out
}

// scrolled is what fits of ls, and says when there is more.
func (m *screen) scrolled(ls []string, room int) []string {
	if room <= 0 {
		return nil
	}
	m.down = min(m.down, max(0, len(ls)-room))
	ls = slices.Clone(ls[m.down:])
	if len(ls) > room {
		ls = append(ls[:room-1], warn.Render(fmt.Sprintf("… %d more lines: page down", len(ls)-room+1)))
	}
	return ls
}

func (m *screen) wrap(s string) []string { return wrapTo(s, m.w-4) }

func wrapTo(s string, w int) []string { return strings.Split(ansi.Wrap(s, max(8, w), ""), "\n") }

func each(list []string, f func(string) string) (out []string) {
	for _, s := range list {
		out = append(out, f(s))
	}
	return out
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

const helpText = `An agent asked for something that its policy neither lists nor denies. It waits until you answer, or until its time is over; then it is refused.

a  once      lets in the connections that wait; if none does any more, the same program's next one within a minute
s  session   the same program may use it until the agent's sandbox stops
A  always    changes the agent's policy; the change is shown, and you are asked again
d  deny      refuses it, and what asks the same within a minute
D  deny      refuses it until the agent's sandbox stops

An answer is for what is shown and nothing else: another program, another way to be started, or another policy is another request. A deny rule of the policy can't be overridden here.

The program is what the guard saw being run. What a process calls itself is its own word.

↑ ↓ choose   page up, page down read on   q quit`
