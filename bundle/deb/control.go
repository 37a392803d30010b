package deb

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Stanza is one paragraph of a control file: its fields, by name in lower case.
// Continuation lines are joined with newlines, their leading space taken off.
type Stanza map[string]string

// Bounds of a control file: a line, and a paragraph, in bytes. Debian's Release
// files have paragraphs of some 200 KB, all packages' lists of files included.
const (
	maxLine   = 1 << 20
	maxStanza = 16 << 20
)

// Stanzas reads control data (Debian Policy, chapter 5) and calls f for each
// paragraph, in memory bounded by the largest one.
func Stanzas(r io.Reader, f func(Stanza) error) error {
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 64<<10), maxLine)
	p := parser{f: f}
	for in.Scan() {
		p.line++
		if err := p.take(in.Text()); err != nil {
			return fmt.Errorf("control data, line %d: %w", p.line, err)
		}
	}
	if err := in.Err(); err != nil {
		return fmt.Errorf("control data, line %d: %w", p.line+1, err)
	}
	return p.flush()
}

type parser struct {
	f     func(Stanza) error
	now   Stanza
	field string
	value strings.Builder
	size  int
	line  int
}

func (p *parser) take(s string) error {
	if p.size += len(s); p.size > maxStanza {
		return fmt.Errorf("a paragraph of more than %d bytes", maxStanza)
	}
	switch {
	case strings.TrimSpace(s) == "":
		return p.flush()
	case s[0] == '#':
		return nil
	case s[0] == ' ' || s[0] == '\t':
		if p.field == "" {
			return errors.New("it continues no field")
		}
		p.value.WriteString("\n" + strings.TrimSpace(s))
		return nil
	}
	name, value, ok := strings.Cut(s, ":")
	if !ok || name == "" || strings.ContainsAny(name, " \t") {
		return fmt.Errorf("got %.60q, want FIELD: VALUE", s)
	}
	p.end()
	if p.now == nil {
		p.now = Stanza{}
	}
	p.field = strings.ToLower(name)
	if _, twice := p.now[p.field]; twice {
		return fmt.Errorf("field %.60q a second time", name)
	}
	p.now[p.field] = ""
	p.value.WriteString(strings.TrimSpace(value))
	return nil
}

// end gives the field that is being read its value.
func (p *parser) end() {
	if p.field != "" {
		p.now[p.field] = p.value.String()
	}
	p.field = ""
	p.value.Reset()
}

func (p *parser) flush() error {
	p.end()
	s := p.now
	p.now, p.size = nil, 0
	if s == nil {
		return nil
	}
	return p.f(s)
}
