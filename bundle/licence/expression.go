package licence

import (
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// The SPDX licence list's identifiers, version 3 (spdx.org/licenses).
var (
	//go:embed ids.txt
	idText string
	//go:embed exceptions.txt
	exceptionText string

	ids        = lower(idText)
	exceptions = lower(exceptionText)
)

// lower indexes a list; SPDX compares identifiers without regard to case.
func lower(text string) map[string]string {
	out := map[string]string{}
	for id := range strings.Lines(text) {
		id = strings.TrimSpace(id)
		out[strings.ToLower(id)] = id
	}
	return out
}

var (
	refForm   = regexp.MustCompile(`^(DocumentRef-[A-Za-z0-9.-]+:)?LicenseRef-[A-Za-z0-9.-]+$`)
	tokenForm = regexp.MustCompile(`^(?:\s*([()]|[A-Za-z0-9.:+-]+))`)
)

// maxExpression bounds an expression, in bytes, and with it the nesting.
const maxExpression = 256

// Check refuses what is not an SPDX licence expression of known licences.
func Check(s string) error {
	_, err := Parse(s)
	return err
}

// Parse returns the licences that an expression names, sorted, each once, in
// the list's own spelling.
func Parse(s string) ([]string, error) {
	p := &parser{text: s}
	if len(s) > maxExpression {
		return nil, fmt.Errorf("licence of %d bytes, want an SPDX expression of at most %d", len(s), maxExpression)
	}
	p.next()
	p.or()
	if p.err == nil && p.tok != "" {
		p.fail("%q after the end", p.tok)
	}
	if p.err != nil {
		return nil, fmt.Errorf("licence %.80q: %w; want an SPDX expression such as MIT, Apache-2.0 OR MIT, or LicenseRef-NAME for one that is not on SPDX's list", s, p.err)
	}
	slices.Sort(p.ids)
	return slices.Compact(p.ids), nil
}

// parser is recursive descent over: or = and {OR and}; and = with {AND with};
// with = simple [WITH exception]; simple = id[+] | ref | ( or ).
type parser struct {
	text, tok string
	ids       []string
	err       error
}

func (p *parser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
	p.tok, p.text = "", ""
}

func (p *parser) next() {
	p.tok = ""
	if strings.TrimSpace(p.text) == "" {
		return
	}
	m := tokenForm.FindStringSubmatch(p.text)
	if m == nil {
		p.fail("%.10q is no part of one", strings.TrimSpace(p.text))
		return
	}
	p.tok, p.text = m[1], p.text[len(m[0]):]
}

// is says whether the operator comes; SPDX wants them all upper or all lower.
func (p *parser) is(op string) bool { return p.tok == op || p.tok == strings.ToLower(op) }

func (p *parser) or() {
	for p.and(); p.err == nil && p.is("OR"); p.and() {
		p.next()
	}
}

func (p *parser) and() {
	for p.with(); p.err == nil && p.is("AND"); p.with() {
		p.next()
	}
}

func (p *parser) with() {
	p.simple()
	if p.err != nil || !p.is("WITH") {
		return
	}
	p.next()
	if exceptions[strings.ToLower(p.tok)] == "" {
		p.fail("%.40q is no exception on SPDX's list", p.tok)
		return
	}
	p.next()
}

func (p *parser) simple() {
	switch {
	case p.err != nil:
	case p.tok == "(":
		p.next()
		p.or()
		if p.err == nil && p.tok != ")" {
			p.fail("a bracket is not closed")
			return
		}
		p.next()
	case p.tok == "":
		p.fail("a licence is missing")
	case refForm.MatchString(p.tok):
		p.ids = append(p.ids, p.tok)
		p.next()
	default:
		p.listed()
	}
}

// listed takes an identifier of the list; GPL-2.0+ is one, Apache-2.0+ is
// "or later".
func (p *parser) listed() {
	id := ids[strings.ToLower(p.tok)]
	if id == "" {
		id = ids[strings.ToLower(strings.TrimSuffix(p.tok, "+"))]
	}
	if id == "" {
		p.fail("%.40q is not on SPDX's list", p.tok)
		return
	}
	p.ids = append(p.ids, id)
	p.next()
}
