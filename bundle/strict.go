package bundle

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// SyntaxError is one mistake in a recipe or a lock: where it stands, what was
// got, what was wanted, and what to do next.
type SyntaxError struct {
	File            string
	Line            int
	Got, Want, Next string
}

func (e *SyntaxError) Error() string {
	s := fmt.Sprintf("%s:%d: got %s; want %s", e.File, e.Line, e.Got, e.Want)
	if e.Next != "" {
		s += "; " + e.Next
	}
	return s
}

// strict fills Go values from a YAML tree, by the yaml tags of their fields,
// and takes nothing for anything else: no conversion between scalars, no
// unknown or repeated field, no alias, tag or null.
type strict struct{ file string }

func (s strict) fail(n *yaml.Node, got, want, next string) error {
	return &SyntaxError{File: s.file, Line: max(1, n.Line), Got: got, Want: want, Next: next}
}

// parse reads one document into out, a pointer to a struct.
func (s strict) parse(src []byte, out any) error {
	if !utf8.Valid(src) {
		return s.fail(&yaml.Node{}, "bytes that are not UTF-8", "UTF-8 text", "save the file as UTF-8")
	}
	l, err := yaml.NewLoader(bytes.NewReader(src), yaml.WithV4Defaults())
	if err != nil {
		return fmt.Errorf("%s: %w", s.file, err)
	}
	var doc, second yaml.Node
	if err := l.Load(&doc); errors.Is(err, io.EOF) || err == nil && len(doc.Content) == 0 {
		return s.fail(&doc, "an empty file", "one YAML document", "")
	} else if err != nil {
		return s.syntax(err)
	}
	switch err := l.Load(&second); {
	case err == nil:
		return s.fail(&second, "a second document", "one document in the file", "remove the line --- and what follows, or make two files")
	case !errors.Is(err, io.EOF):
		return s.syntax(err)
	}
	return s.value(doc.Content[0], reflect.ValueOf(out).Elem(), "the document")
}

// syntax gives the parser's own errors the usual form.
func (s strict) syntax(err error) error {
	var le *yaml.LoadError
	if errors.As(err, &le) && le.Mark.Line > 0 {
		return &SyntaxError{File: s.file, Line: le.Mark.Line, Got: strconv.Quote(le.Message), Want: "valid YAML"}
	}
	return fmt.Errorf("%s: %w", s.file, err)
}

// scalars says which YAML type each Go kind takes, and what to call it.
var scalars = map[reflect.Kind]struct{ tag, name, next string }{
	reflect.String: {"!!str", "a string", "put the value between quotes"},
	reflect.Bool:   {"!!bool", "true or false", ""},
	reflect.Int64:  {"!!int", "a whole number", ""},
}

func (s strict) value(n *yaml.Node, v reflect.Value, name string) error {
	if err := s.plain(n, name); err != nil {
		return err
	}
	switch v.Kind() {
	case reflect.Struct:
		return s.object(n, v, name)
	case reflect.Slice:
		return s.list(n, v, name)
	}
	sc, ok := scalars[v.Kind()]
	if !ok {
		panic("bundle: no YAML reader for " + v.Type().String())
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() != sc.tag {
		return s.fail(n, fmt.Sprintf("%s for %s", describe(n), name), sc.name, sc.next)
	}
	if err := n.Decode(v.Addr().Interface()); err != nil {
		return s.fail(n, fmt.Sprintf("%s for %s", describe(n), name), sc.name, err.Error())
	}
	return nil
}

// plain refuses what makes a file read differently from how it acts.
func (s strict) plain(n *yaml.Node, name string) error {
	const out = "write the value out where it is used"
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return s.fail(n, "an anchor or alias for "+name, "a value", out)
	case n.Style&yaml.TaggedStyle != 0:
		return s.fail(n, "the tag "+n.Tag+" for "+name, "a plain value", "remove the tag")
	case n.ShortTag() == "!!null":
		return s.fail(n, "nothing for "+name, "a value", "write one, or remove the field")
	}
	return nil
}

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	return fmt.Sprintf("%.80q", n.Value)
}

func (s strict) list(n *yaml.Node, v reflect.Value, name string) error {
	if n.Kind != yaml.SequenceNode {
		return s.fail(n, fmt.Sprintf("%s for %s", describe(n), name), "a list", "write it between brackets")
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, c := range n.Content {
		if err := s.value(c, out.Index(i), fmt.Sprintf("%s[%d]", name, i)); err != nil {
			return err
		}
	}
	v.Set(out)
	return nil
}

func (s strict) object(n *yaml.Node, v reflect.Value, name string) error {
	if n.Kind != yaml.MappingNode {
		return s.fail(n, fmt.Sprintf("%s for %s", describe(n), name), "a mapping", "its fields are "+strings.Join(fields(v.Type()), ", "))
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, c := n.Content[i], n.Content[i+1]
		j := index(v.Type(), k.Value)
		switch {
		case k.Kind != yaml.ScalarNode || j < 0:
			return s.fail(k, fmt.Sprintf("unknown field %s in %s", describe(k), name), "one of "+strings.Join(fields(v.Type()), ", "), "correct the spelling or remove it")
		case seen[k.Value] > 0:
			return s.fail(k, fmt.Sprintf("field %s a second time", k.Value), "each field once", fmt.Sprintf("the first is in line %d", seen[k.Value]))
		}
		seen[k.Value] = k.Line
		if err := s.value(c, v.Field(j), k.Value); err != nil {
			return err
		}
	}
	if f := v.FieldByName("Line"); f.IsValid() {
		f.SetInt(int64(n.Line))
	}
	return nil
}

// key returns a field's name in YAML, "" for one that is not read.
func key(f reflect.StructField) string {
	k, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	if k == "-" {
		return ""
	}
	return k
}

func fields(t reflect.Type) (out []string) {
	for i := range t.NumField() {
		if k := key(t.Field(i)); k != "" {
			out = append(out, k)
		}
	}
	return out
}

func index(t reflect.Type, name string) int {
	for i := range t.NumField() {
		if k := key(t.Field(i)); k != "" && k == name {
			return i
		}
	}
	return -1
}
