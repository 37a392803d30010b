package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// maxFile bounds a configuration or answers file, in bytes.
const maxFile = 1 << 20

// decimal is the one spelling of a number that no two readers disagree about:
// YAML 1.1 takes 010 for eight and 1.0 for one.
var decimal = regexp.MustCompile(`^(0|-?[1-9][0-9]*)$`)

// Strict decodes one YAML document into the struct that into points to. It
// refuses what a lax reader passes over: unknown fields, duplicate keys,
// further documents, anchors, aliases, merge keys, explicit tags, nulls and
// numbers that are not plain decimals. name is the file's name for messages,
// which read "name:line:column: got …; wanted …; next step".
func Strict(name string, src []byte, into any) error {
	if len(src) > maxFile {
		return fmt.Errorf("%s: got %d bytes; wanted at most %d; is this the right file?", name, len(src), maxFile)
	}
	if !utf8.Valid(src) {
		return fmt.Errorf("%s: got bytes that are not UTF-8; wanted text; save the file as UTF-8", name)
	}
	doc, err := oneDocument(name, src)
	if err != nil {
		return err
	}
	w := walker{name: name}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return fmt.Errorf("%s: got no document; wanted one mapping of fields", name)
	}
	if err := w.walk(doc.Content[0], reflect.TypeOf(into).Elem()); err != nil {
		return err
	}
	// The walk has refused everything known to be ambiguous; the library's
	// own strict mode stays on as a second reader.
	err = yaml.Load(src, into, yaml.WithV4Defaults(), yaml.WithKnownFields(), yaml.WithUniqueKeys())
	if err != nil {
		return syntaxError(name, src, err)
	}
	return nil
}

// oneDocument reads src into nodes, which know their lines.
func oneDocument(name string, src []byte) (*yaml.Node, error) {
	l, err := yaml.NewLoader(bytes.NewReader(src), yaml.WithV4Defaults())
	if err != nil {
		return nil, err
	}
	var doc, more yaml.Node
	if err := l.Load(&doc); err != nil {
		return nil, syntaxError(name, src, err)
	}
	// Whatever follows the document is too much, readable or not.
	if err := l.Load(&more); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s:%d: got more after the end of the document; wanted one document; remove the rest", name, more.Line)
	}
	return &doc, nil
}

// syntaxError puts the file's name before the library's own words.
func syntaxError(name string, src []byte, err error) error {
	if len(bytes.TrimSpace(src)) == 0 {
		return fmt.Errorf("%s: got an empty file; wanted one YAML document; start from a generated one", name)
	}
	line := 0
	var many *yaml.LoadErrors
	var one *yaml.LoadError
	msg := err.Error()
	switch {
	case errors.As(err, &many) && len(many.Errors) > 0:
		line, msg = many.Errors[0].Mark.Line, many.Errors[0].Message
	case errors.As(err, &one):
		line, msg = one.Mark.Line, one.Message
	}
	return fmt.Errorf("%s:%d: got text that cannot be read: %s; wanted YAML of this file's kind; correct the line", name, line, strings.TrimPrefix(msg, "yaml: "))
}

type walker struct{ name string }

func (w walker) errorf(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("%s:%d:%d: %s", w.name, n.Line, n.Column, fmt.Sprintf(format, args...))
}

// walk holds node n against the Go type t that it will be decoded into.
func (w walker) walk(n *yaml.Node, t reflect.Type) error {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return w.errorf(n, "got an anchor or alias; wanted the value itself; write it out")
	}
	if n.Style&yaml.TaggedStyle != 0 {
		return w.errorf(n, "got an explicit tag %s; wanted a plain value; remove the tag", n.Tag)
	}
	switch t.Kind() {
	case reflect.Pointer:
		return w.walk(n, t.Elem())
	case reflect.Struct, reflect.Map:
		return w.mapping(n, t)
	case reflect.Slice:
		return w.sequence(n, t)
	default:
		return w.scalar(n, t)
	}
}

func (w walker) mapping(n *yaml.Node, t reflect.Type) error {
	if n.Kind != yaml.MappingNode {
		return w.errorf(n, "got %s; wanted a mapping (name: value)", describe(n))
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode || k.Tag == "!!merge" || k.Anchor != "" {
			return w.errorf(k, "got %s as a key; wanted a plain name; write it out", describe(k))
		}
		if l, ok := seen[k.Value]; ok {
			return w.errorf(k, "got %q a second time (first on line %d); wanted it once; remove one", k.Value, l)
		}
		seen[k.Value] = k.Line
		vt, err := w.field(k, t)
		if err != nil {
			return err
		}
		if err := w.walk(v, vt); err != nil {
			return err
		}
	}
	return nil
}

// field finds the type of the value that belongs to key k of t.
func (w walker) field(k *yaml.Node, t reflect.Type) (reflect.Type, error) {
	if t.Kind() == reflect.Map {
		return t.Elem(), nil
	}
	var known []string
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name == k.Value {
			return f.Type, nil
		}
		known = append(known, name)
	}
	slices.Sort(known)
	return nil, w.errorf(k, "got the unknown field %q; wanted one of %s; correct or remove it", k.Value, strings.Join(known, ", "))
}

func (w walker) sequence(n *yaml.Node, t reflect.Type) error {
	if n.Kind != yaml.SequenceNode {
		return w.errorf(n, "got %s; wanted a list (- value)", describe(n))
	}
	for _, c := range n.Content {
		if err := w.walk(c, t.Elem()); err != nil {
			return err
		}
	}
	return nil
}

func (w walker) scalar(n *yaml.Node, t reflect.Type) error {
	if n.Kind != yaml.ScalarNode {
		return w.errorf(n, "got %s; wanted one value", describe(n))
	}
	quoted := n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0
	switch t.Kind() {
	case reflect.String:
		// Unquoted numbers, booleans and nulls are what two readers disagree
		// about; a string that looks like one must be quoted.
		if n.Tag != "!!str" {
			return w.errorf(n, "got %s; wanted a string; put it in quotes", describe(n))
		}
	case reflect.Bool:
		if quoted || (n.Value != "true" && n.Value != "false") {
			return w.errorf(n, "got %s; wanted true or false", describe(n))
		}
	case reflect.Int, reflect.Int64:
		if quoted || !decimal.MatchString(n.Value) {
			return w.errorf(n, "got %s; wanted a whole decimal number without leading zeros", describe(n))
		}
	default:
		return w.errorf(n, "%s cannot be set from a file; this is a fault of the program", t)
	}
	return nil
}

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return "nothing (null)"
		}
		return fmt.Sprintf("%s %q", strings.TrimPrefix(n.Tag, "!!"), n.Value)
	}
	return "something else"
}
