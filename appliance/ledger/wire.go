package ledger

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"
)

// MarshalRecords encodes records for another process, byte for byte: names
// that are not UTF-8 stay what they are. It is for pipes, not for disks: both
// ends are one program.
//
// Each record: time in nanoseconds since 1970, port, pid, ppid, uid (varints),
// ten strings, the number of attributes (uvarint), and of each its name, a byte
// for the kind of its value, and the value: a string, a varint, nothing, or the
// string of its JSON. Strings are a length (uvarint) and their bytes.
func MarshalRecords(rs []Record) ([]byte, error) {
	b := make([]byte, 0, 320*len(rs))
	var err error
	for i := range rs {
		r := &rs[i]
		var at int64 // 0: the ledger's clock
		if !r.Time.IsZero() {
			at = r.Time.UnixNano()
		}
		for _, n := range [...]int64{at, int64(r.Port), int64(r.Process.PID), int64(r.Process.PPID), int64(r.Process.UID)} {
			b = binary.AppendVarint(b, n)
		}
		for _, s := range texts(r) {
			b = appendBytes(b, *s)
		}
		b = binary.AppendUvarint(b, uint64(len(r.Attrs)+len(r.More)))
		for k, v := range r.Attrs {
			a, err := attrOf(k, v)
			if err != nil {
				return nil, fmt.Errorf("record attributes: %w: give values that JSON can hold", err)
			}
			b = a.marshal(b)
		}
		for _, a := range r.More {
			b = a.marshal(b)
		}
	}
	return b, err
}

func appendBytes(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// attrOf is a value of a map, as JSON where it is neither string nor integer.
func attrOf(key string, v any) (Attr, error) {
	switch v := v.(type) {
	case string:
		return Text(key, v), nil
	case int:
		return Number(key, int64(v)), nil
	case int64:
		return Number(key, v), nil
	case uint64:
		if v <= math.MaxInt64 {
			return Number(key, int64(v)), nil
		}
	}
	b, err := json.Marshal(v)
	return Attr{Key: key, Text: string(b), kind: attrJSON}, err
}

func (a Attr) marshal(b []byte) []byte {
	b = append(appendBytes(b, a.Key), byte(a.kind))
	switch a.kind {
	case attrText, attrJSON:
		return appendBytes(b, a.Text)
	case attrNumber, attrFlag:
		return binary.AppendVarint(b, a.n)
	}
	return b
}

// texts are a record's strings, in the order of the wire.
func texts(r *Record) [10]*string {
	return [...]*string{
		(*string)(&r.Kind), (*string)(&r.Verdict), &r.Agent, &r.Policy, &r.Reason, &r.Detail,
		&r.Process.Comm, &r.Path, &r.Host, &r.Model,
	}
}

// errWire is what bytes are that MarshalRecords did not make.
var errWire = errors.New("malformed records")

// spare is room for attributes that the receiver adds to a record.
const spare = 3

// UnmarshalRecords reads what MarshalRecords wrote, from a peer that may be
// hostile, and at most the given number (0: any). It checks the form only;
// Append checks what records say. Attributes are in More.
func UnmarshalRecords(b []byte, most int) ([]Record, error) { return new(Unmarshaler).Records(b, most) }

// keptAttrs is for how many attributes memory is kept.
const keptAttrs = 1 << 15

// Unmarshaler is UnmarshalRecords for who reads very many. It uses its memory
// again: what Records gives is good until the next call.
type Unmarshaler struct {
	rs []Record
	w  wire
}

// Records is UnmarshalRecords.
func (u *Unmarshaler) Records(b []byte, most int) ([]Record, error) {
	// One copy of b, of which all strings are parts.
	rs, w := u.rs[:0], &u.w
	if cap(w.attrs) > keptAttrs {
		w.attrs = nil
	}
	w.s, w.attrs, w.err = string(b), w.attrs[:0], nil
	for len(w.s) > 0 {
		if most > 0 && len(rs) == most {
			return nil, fmt.Errorf("%w: more than %d at once", errWire, most)
		}
		rs = append(rs, Record{})
		w.record(&rs[len(rs)-1])
		if w.err != nil {
			return nil, w.err
		}
	}
	u.rs = rs
	return rs, nil
}

// wire reads from s until something is wrong.
type wire struct {
	s     string
	attrs []Attr // of all records
	err   error
}

func (w *wire) record(r *Record) {
	if at := w.number(); at != 0 {
		r.Time = time.Unix(0, at)
	}
	for _, n := range [...]*int{&r.Port, &r.Process.PID, &r.Process.PPID, &r.Process.UID} {
		*n = int(w.number())
	}
	for _, s := range texts(r) {
		*s = w.text()
	}
	w.attributes(r)
}

// attributes takes memory for a bunch of records at once.
func (w *wire) attributes(r *Record) {
	n := w.length()
	if cap(w.attrs)-len(w.attrs) < n+spare {
		w.attrs = make([]Attr, 0, max(n+spare, 512, 2*cap(w.attrs))) // the others are in use
	}
	at := len(w.attrs)
	for range n {
		w.attrs = append(w.attrs, w.attr())
	}
	w.attrs = w.attrs[:at+n+spare]
	r.More = w.attrs[at : at+n : at+n+spare]
}

func (w *wire) attr() Attr {
	a := Attr{Key: w.text()}
	if len(w.s) == 0 {
		w.fail()
		return a
	}
	a.kind, w.s = attrKind(w.s[0]), w.s[1:]
	switch a.kind {
	case attrText, attrJSON:
		a.Text = w.text()
	case attrNumber, attrFlag:
		a.n = w.number()
	default:
		w.fail()
	}
	return a
}

func (w *wire) number() int64 {
	u := w.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

// uvarint is binary.Uvarint of a string.
func (w *wire) uvarint() (u uint64) {
	for i := range min(len(w.s), binary.MaxVarintLen64) {
		c := w.s[i]
		if i == binary.MaxVarintLen64-1 && c > 1 {
			break // more than 64 bits
		}
		u |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			w.s = w.s[i+1:]
			return u
		}
	}
	w.fail()
	return 0
}

// length is a number of things that each take a byte or more.
func (w *wire) length() int {
	n := w.uvarint()
	if n > uint64(len(w.s)) {
		w.fail()
		return 0
	}
	return int(n)
}

func (w *wire) text() (s string) {
	n := w.length()
	s, w.s = w.s[:n], w.s[n:]
	return s
}

func (w *wire) fail() {
	w.s = ""
	if w.err == nil {
		w.err = errWire
	}
}
