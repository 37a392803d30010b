package ledger

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// An Attr is one attribute of a record, for who writes so many records that a
// map for each is too dear. [Text], [Number] and [Flag] make them.
type Attr struct {
	Key  string
	Text string // the value of Text; of one that came over a wire also JSON
	kind attrKind
	n    int64
}

type attrKind byte

const (
	attrText attrKind = iota
	attrNumber
	attrFlag // n is 0 or 1
	attrJSON // Text, which is not checked yet
	attrNull
	attrAny // only within encode
)

// Text is an attribute whose value is a string.
func Text(key, value string) Attr { return Attr{Key: key, Text: value} }

// Number is an attribute whose value is an integer.
func Number(key string, value int64) Attr { return Attr{Key: key, kind: attrNumber, n: value} }

// Flag is an attribute that is true.
func Flag(key string) Attr { return Attr{Key: key, kind: attrFlag, n: 1} }

// Put sets an attribute, whatever the record had under its name.
func (r *Record) Put(a Attr) {
	r.Drop(a.Key)
	r.More = append(r.More, a)
}

// Drop takes the attribute of a name away.
func (r *Record) Drop(key string) {
	delete(r.Attrs, key)
	r.More = slices.DeleteFunc(r.More, func(a Attr) bool { return a.Key == key })
}

// item is an attribute as it will be written: keys and strings are valid UTF-8,
// numbers are what JSON has.
type item struct {
	Attr
	any any // with attrAny: float64, json.Number, []any or map[string]any
}

// items lists the attributes of r in the order of their names, in the memory of
// into. Of several of one name the last counts, and More before Attrs.
func (r *Record) items(into []item) ([]item, error) {
	out := into[:0]
	for k, v := range r.Attrs {
		it, err := itemOf(k, v)
		if err != nil {
			return nil, fmt.Errorf("record attributes: %w: give values that JSON can hold", err)
		}
		out = append(out, it)
	}
	for _, a := range r.More {
		it, err := a.item()
		if err != nil {
			return nil, fmt.Errorf("record attributes: %w: give values that JSON can hold", err)
		}
		out = append(out, it)
	}
	slices.SortStableFunc(out, func(a, b item) int { return strings.Compare(a.Key, b.Key) })
	return distinct(out), nil
}

// distinct keeps the last of each name.
func distinct(in []item) []item {
	out := in[:0]
	for _, it := range in {
		if n := len(out); n > 0 && out[n-1].Key == it.Key {
			out[n-1] = it
			continue
		}
		out = append(out, it)
	}
	return out
}

// itemOf is a value of a map. Those below are all but a few; the others go the
// long way, through JSON.
func itemOf(key string, v any) (item, error) {
	it := item{Attr: Attr{Key: wellFormed(key)}}
	switch v := v.(type) {
	case nil:
		it.kind = attrNull
	case string:
		it.Text = wellFormed(v)
	case bool:
		it.kind, it.n = attrFlag, number1(v)
	case int:
		it.kind, it.n = attrNumber, int64(v)
	case int64:
		it.kind, it.n = attrNumber, v
	case uint64:
		if v <= math.MaxInt64 {
			it.kind, it.n = attrNumber, int64(v)
			return it, nil
		}
		return it.through(json.Marshal(v))
	default:
		return it.through(json.Marshal(v))
	}
	return it, nil
}

func number1(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func (a Attr) item() (item, error) {
	it := item{Attr: a}
	it.Key = wellFormed(a.Key)
	switch a.kind {
	case attrText:
		it.Text = wellFormed(a.Text)
	case attrJSON:
		return it.through([]byte(a.Text), nil)
	}
	return it, nil
}

// through sets the value to what the JSON b says.
func (it item) through(b []byte, err error) (item, error) {
	if err != nil {
		return it, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return it, err
	}
	switch v := plain(v).(type) {
	case nil, string, bool, int64:
		return itemOf(it.Key, v)
	default:
		it.kind, it.any = attrAny, v
		return it, nil
	}
}

// value is an item as a map has it.
func (it *item) value() any {
	switch it.kind {
	case attrText:
		return it.Text
	case attrNumber:
		return it.n
	case attrFlag:
		return it.n != 0
	case attrAny:
		return it.any
	}
	return nil
}

// plain reduces what a decoder gave to nil, bool, int64, float64, json.Number
// (beyond those two), string, []any and map[string]any.
func plain(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			v[k] = plain(x)
		}
	case []any:
		for i, x := range v {
			v[i] = plain(x)
		}
	case json.Number:
		if n, err := strconv.ParseInt(v.String(), 10, 64); err == nil {
			return n
		}
		f, err := v.Float64()
		if err == nil && !exactOnly(v.String()) {
			return f
		}
	}
	return v
}

// exactOnly tells an integer that doesn't fit int64: as float64 it would lose
// digits.
func exactOnly(s string) bool { return !strings.ContainsAny(s, ".eE") }

// wellFormed puts U+FFFD for each wrong byte, as encoding/json does.
func wellFormed(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return string([]rune(s))
}
