package policies

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v4"
)

// Error is one mistake in a source: where it stands, what was got, what was
// wanted, and what to do next.
type Error struct {
	File         string
	Line, Column int
	Got          string
	Want         string
	Next         string
}

// Error puts it in one line, in the form that editors jump to.
func (e *Error) Error() string {
	return fmt.Sprintf("%s:%d:%d: got %s; want %s; %s", e.File, e.Line, e.Column, e.Got, e.Want, e.Next)
}

// maxErrors bounds a report: after so many the file is not what it was meant to be.
const maxErrors = 20

// decoder turns one YAML tree into p. It goes on after a mistake, so that one
// reading reports all of them; p is used only when errs stayed empty.
type decoder struct {
	file string
	p    *Policy
	set  map[string]*yaml.Node // what the source wrote, by "section.field"
	errs []error

	changes []Change // what Import reports
}

func (d *decoder) fail(n *yaml.Node, got, want, next string) {
	d.errs = append(d.errs, &Error{d.file, max(n.Line, 1), max(n.Column, 1), got, want, next})
}

func (d *decoder) err() error {
	slices.SortStableFunc(d.errs, func(a, b error) int {
		x, y := a.(*Error), b.(*Error)
		return (x.Line-y.Line)*1e6 + x.Column - y.Column
	})
	return errors.Join(d.errs[:min(len(d.errs), maxErrors)]...)
}

// hygiene refuses the parts of YAML that make a policy read differently from
// how it acts: aliases, anchors, tags, merge keys and empty values.
func (d *decoder) hygiene(n *yaml.Node) {
	const plainly = "write the value out where it is used"
	switch {
	case n.Kind == yaml.AliasNode:
		d.fail(n, "the alias *"+n.Value, "a value", plainly)
	case n.Anchor != "":
		d.fail(n, "the anchor &"+n.Anchor, "a value", plainly)
	case n.Style&yaml.TaggedStyle != 0:
		d.fail(n, "the tag "+n.Tag, "an untagged value", "remove the tag, and quote what shall be a string")
	case n.Tag == "!!merge":
		d.fail(n, "the merge key <<", "a field", plainly)
	case n.Tag == "!!null":
		d.fail(n, "nothing (null)", "a value", "write one, or leave the field out to get its closed value")
	}
	for _, c := range n.Content {
		d.hygiene(c)
	}
}

// object maps the fields of one mapping to their readers.
type object map[string]func(*yaml.Node)

// object reads a mapping strictly; section is its dotted path, "" for the top.
func (d *decoder) object(n *yaml.Node, section string, fields object) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, describe(n), "a mapping for "+orTop(section), "its fields are "+names(fields))
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		read, known := fields[k.Value]
		switch {
		case k.Kind != yaml.ScalarNode || k.Tag != "!!str":
			d.fail(k, describe(k)+" as a field name", "a word", "the fields of "+orTop(section)+" are "+names(fields))
		case seen[k.Value] > 0:
			d.fail(k, "field "+quote(k.Value)+" a second time", "each field once",
				fmt.Sprintf("merge it with line %d", seen[k.Value]))
		case !known:
			d.fail(k, "unknown field "+quote(k.Value)+" in "+orTop(section), "one of "+names(fields),
				advice(k.Value, slices.Sorted(maps.Keys(fields))))
		default:
			d.set[strings.TrimPrefix(section+"."+k.Value, ".")] = v
			read(v)
		}
		seen[k.Value] = k.Line
	}
}

func orTop(section string) string {
	if section == "" {
		return "the policy"
	}
	return section
}

func names(fields object) string { return strings.Join(slices.Sorted(maps.Keys(fields)), ", ") }

// list reads a sequence, element by element.
func (d *decoder) list(n *yaml.Node, what string, read func(*yaml.Node)) {
	if n.Kind != yaml.SequenceNode {
		d.fail(n, describe(n), "a list for "+what, "write it between brackets: ["+n.Value+"]")
		return
	}
	for _, c := range n.Content {
		read(c)
	}
}

// strs reads a list of distinct strings, each through check.
func (d *decoder) strs(n *yaml.Node, what string, check func(*yaml.Node, string) bool) []string {
	out := []string{}
	d.list(n, what, func(c *yaml.Node) {
		s, ok := d.str(c, what)
		switch {
		case !ok || !check(c, s):
		case slices.Contains(out, s):
			d.fail(c, quote(s)+" twice", "each entry once", "remove one of them")
		default:
			out = append(out, s)
		}
	})
	return out
}

// words11 are the words that YAML 1.1 readers take for booleans.
var words11 = regexp.MustCompile(`^(?i:y|n|yes|no|on|off)$`)

// str reads a string that no YAML reader takes for anything else.
func (d *decoder) str(n *yaml.Node, what string) (string, bool) {
	const requote = "put it between quotes if that is what is meant"
	plain := n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) == 0
	switch {
	case n.Kind != yaml.ScalarNode:
		d.fail(n, describe(n), "a string for "+what, "write one value")
	case n.Tag != "!!str":
		d.fail(n, describe(n), "a string for "+what, requote)
	case plain && words11.MatchString(n.Value):
		d.fail(n, "the bare word "+n.Value+", which some YAML readers take for true or false", "a string for "+what, requote)
	case n.Value == "" || len(n.Value) > 4095:
		d.fail(n, fmt.Sprintf("a string of %d bytes", len(n.Value)), "1 to 4095 bytes for "+what, "write a value, or leave the field out")
	case strings.ContainsFunc(n.Value, invisible):
		d.fail(n, quote(n.Value), "visible characters only in "+what, "remove control and formatting characters; write international names in their xn-- form")
	default:
		return n.Value, true
	}
	return "", false
}

// invisible finds characters that a reader cannot see, or that turn text round.
func invisible(r rune) bool {
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) || r == unicode.ReplacementChar
}

var decimal = regexp.MustCompile(`^(0|-?[1-9][0-9]{0,17})$`)

// integer reads a plain decimal number from lo to hi. Octal, hexadecimal and
// underscores are refused: YAML versions disagree on what they mean.
func (d *decoder) integer(n *yaml.Node, what string, lo, hi int) (int, bool) {
	want := fmt.Sprintf("a whole decimal number from %d to %d for %s", lo, hi, what)
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" || !decimal.MatchString(n.Value) {
		d.fail(n, describe(n), want, "write digits only, without quotes, leading zero or sign")
		return 0, false
	}
	v, err := strconv.Atoi(n.Value)
	if err != nil || v < lo || v > hi {
		d.fail(n, n.Value, want, "choose a number in that range")
		return 0, false
	}
	return v, true
}

// bound reads a number, or the word that lifts the bound (0).
func (d *decoder) bound(n *yaml.Node, what string) int {
	if n.Kind == yaml.ScalarNode && n.Value == unlimited {
		return 0
	}
	if n.Kind == yaml.ScalarNode && n.Value == "0" {
		d.fail(n, "0", "1 or more for "+what, `write "unlimited" for no bound; to refuse all model calls write inference.routes: []`)
		return 0
	}
	v, _ := d.integer(n, what+` (or the word "unlimited")`, 1, 1e15)
	return v
}

func (d *decoder) boolean(n *yaml.Node, what string, to *bool) {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" || n.Value != "true" && n.Value != "false" {
		d.fail(n, describe(n), "true or false for "+what, "write one of the two, in lower case and without quotes")
		return
	}
	*to = n.Value == "true"
}

// word reads one of a fixed set of words.
func (d *decoder) word(n *yaml.Node, what string, to *string, choice ...string) {
	s, ok := d.str(n, what+" ("+strings.Join(choice, " or ")+")")
	if ok && !slices.Contains(choice, s) {
		d.fail(n, quote(s), "one of "+strings.Join(choice, ", ")+" for "+what, advice(s, choice))
		return
	}
	*to = s
}

// describe names what stands at n, for the "got" of a message.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	kind := map[string]string{"!!str": "the string", "!!int": "the number", "!!float": "the number", "!!bool": "the boolean", "!!timestamp": "the date"}[n.Tag]
	if kind == "" {
		kind = n.Tag
	}
	return kind + " " + quote(n.Value)
}

// quote keeps a message to one readable line.
func quote(s string) string {
	if r := []rune(s); len(r) > 80 {
		s = string(r[:77]) + "..."
	}
	return strconv.Quote(s)
}

// advice suggests the nearest of the known words.
func advice(got string, known []string) string {
	best, dist := "", len(got)/3+2
	for _, k := range known {
		if n := distance(strings.ToLower(got), strings.ToLower(k)); n < dist {
			best, dist = k, n
		}
	}
	if best == "" {
		return "remove it or use one of those"
	}
	return "did you mean " + quote(best) + "?"
}

// distance is Levenshtein's, over bytes, of at most the first 64.
func distance(a, b string) int {
	a, b = a[:min(len(a), 64)], b[:min(len(b), 64)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost++
			}
			diag = row[j+1]
			row[j+1] = min(cost, diag+1, row[j]+1)
		}
	}
	return row[len(b)]
}
