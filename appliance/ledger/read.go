package ledger

import (
	"cmp"
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Entry is one entry of a log.
type Entry struct {
	Index  int64
	Event  []byte // the OCSF event, as it was hashed
	Record Record
}

// Read yields the entries of the log in dir from index from on, up to the
// last commit at the time of the call; a daemon may go on writing. It believes
// the files: run Verify first where that matters. An entry that can't be
// decoded is yielded with an error, and the reader may go on; after an error
// without an entry it ends.
func Read(dir string, from int64) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		dir := filepath.Clean(dir)
		w, err := readWal(dir, unverified)
		if err != nil || from < 0 {
			if err == nil {
				err = fmt.Errorf("read ledger: index %d, want 0 or more", from)
			}
			yield(Entry{}, err)
			return
		}
		for n := from / width; n < w.start()/width; n++ {
			es, err := readBundle(dir, n)
			if err != nil {
				yield(Entry{}, fmt.Errorf("read ledger: %w", err))
				return
			}
			if !each(es, n*width, from, yield) {
				return
			}
		}
		each(w.entries, w.start(), from, yield)
	}
}

// each yields the entries es, whose first has index at, from from on.
func each(es [][]byte, at, from int64, yield func(Entry, error) bool) bool {
	for i, b := range es {
		e := Entry{Index: at + int64(i), Event: b}
		if e.Index < from {
			continue
		}
		var err error
		if e.Record, err = decode(b); err != nil {
			err = fmt.Errorf("read ledger: entry %d: %w", e.Index, err)
		}
		if !yield(e, err) {
			return false
		}
	}
	return true
}

// Filter selects records. A zero field selects all.
type Filter struct {
	Agent   string
	Kind    Kind
	Verdict Verdict
	Since   time.Time // inclusive
	Until   time.Time // exclusive
}

// Match says whether the filter selects r.
func (f Filter) Match(r Record) bool {
	return (f.Agent == "" || f.Agent == r.Agent) &&
		(f.Kind == "" || f.Kind == r.Kind) &&
		(f.Verdict == "" || f.Verdict == r.Verdict) &&
		(f.Since.IsZero() || !r.Time.Before(f.Since)) &&
		(f.Until.IsZero() || r.Time.Before(f.Until))
}

// Select passes on what f selects, and every error.
func (f Filter) Select(seq iter.Seq2[Entry, error]) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for e, err := range seq {
			if err == nil && !f.Match(e.Record) {
				continue
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// Replay writes one line an entry, in the order of the log: index, time,
// verdict, agent, kind, what, reason and detail. Names and texts may come
// from an attacker, so everything that could move a terminal's cursor, or
// pass for another column or line, is written as an escape. An entry that
// can't be decoded gets a line that says so, and its error is returned in the
// end: the rest of the timeline is worth more than a stop.
func Replay(w io.Writer, seq iter.Seq2[Entry, error]) error {
	var bad error
	for e, err := range seq {
		s := line(e)
		if err != nil {
			s = fmt.Sprintf("%6d  !! %s\n", e.Index, safe(err.Error()))
			bad = cmp.Or(bad, err)
		}
		if _, err := io.WriteString(w, s); err != nil {
			return err
		}
	}
	return bad
}

func line(e Entry) string {
	r := e.Record
	s := fmt.Sprintf("%6d  %s  %-7s  %-12s  %-9s  %s", e.Index, r.Time.UTC().Format("2006-01-02 15:04:05.000"),
		or(string(r.Verdict), "-"), safe(or(r.Agent, "-")), r.Kind, or(what(r), "-"))
	if r.Reason != "" {
		s += "  [" + safe(r.Reason) + "]"
	}
	if r.Detail != "" {
		s += "  " + safe(r.Detail)
	}
	return s + "\n"
}

// what names the object of the action.
func what(r Record) string {
	var p []string
	if r.Path != "" {
		p = append(p, safe(r.Path))
	}
	if h := safe(r.Host); h != "" && r.Port != 0 {
		p = append(p, h+":"+strconv.Itoa(r.Port))
	} else if h != "" {
		p = append(p, h)
	}
	if r.Model != "" {
		p = append(p, "model "+safe(r.Model))
	}
	if r.Process.Comm != "" || r.Process.PID != 0 {
		p = append(p, fmt.Sprintf("by %s(%d)", safe(r.Process.Comm), r.Process.PID))
	}
	return strings.Join(p, " ")
}

func or(s, empty string) string {
	if s == "" {
		return empty
	}
	return s
}

// safe escapes what isn't a printable character: control characters, line
// separators, and the invisible ones that reorder text (bidi). Two spaces
// would look like the next column.
func safe(s string) string {
	var b strings.Builder
	space := false
	for _, c := range s {
		switch {
		case c == ' ' && space:
			b.WriteString(`\x20`)
		case c == '\\':
			b.WriteString(`\\`)
		case unicode.IsPrint(c):
			b.WriteRune(c)
		default:
			q := strconv.QuoteRuneToASCII(c)
			b.WriteString(q[1 : len(q)-1])
		}
		space = c == ' '
	}
	return b.String()
}
