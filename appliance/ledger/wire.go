package ledger

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// MarshalRecords encodes records for another process, byte for byte: names
// that are not UTF-8 stay what they are. It is for pipes, not for disks: both
// ends are one program.
//
// Each record: time in nanoseconds since 1970, port, pid, ppid, uid (varints),
// ten strings, the attributes as JSON. Strings are a length (uvarint) and
// their bytes.
func MarshalRecords(rs []Record) ([]byte, error) {
	var b []byte
	for i := range rs {
		r := &rs[i]
		attrs := []byte{}
		if len(r.Attrs) > 0 {
			var err error
			if attrs, err = json.Marshal(r.Attrs); err != nil {
				return nil, fmt.Errorf("record attributes: %w: give values that JSON can hold", err)
			}
		}
		var at int64 // 0: the ledger's clock
		if !r.Time.IsZero() {
			at = r.Time.UnixNano()
		}
		for _, n := range []int64{at, int64(r.Port), int64(r.Process.PID), int64(r.Process.PPID), int64(r.Process.UID)} {
			b = binary.AppendVarint(b, n)
		}
		for _, s := range texts(r) {
			b = append(binary.AppendUvarint(b, uint64(len(*s))), *s...)
		}
		b = append(binary.AppendUvarint(b, uint64(len(attrs))), attrs...)
	}
	return b, nil
}

// texts are a record's strings, in the order of the wire.
func texts(r *Record) []*string {
	return []*string{
		(*string)(&r.Kind), (*string)(&r.Verdict), &r.Agent, &r.Policy, &r.Reason, &r.Detail,
		&r.Process.Comm, &r.Path, &r.Host, &r.Model,
	}
}

// errWire is what bytes are that MarshalRecords did not make.
var errWire = errors.New("malformed records")

// UnmarshalRecords reads what MarshalRecords wrote, from a peer that may be
// hostile, and at most the given number (0: any). It checks the form only;
// Append checks what records say.
func UnmarshalRecords(b []byte, most int) ([]Record, error) {
	var rs []Record
	w := &wire{b: b}
	for len(w.b) > 0 {
		if most > 0 && len(rs) == most {
			return nil, fmt.Errorf("%w: more than %d at once", errWire, most)
		}
		rs = append(rs, w.record())
		if w.err != nil {
			return nil, w.err
		}
	}
	return rs, nil
}

// wire reads from b until something is wrong.
type wire struct {
	b   []byte
	err error
}

func (w *wire) record() (r Record) {
	if at := w.number(); at != 0 {
		r.Time = time.Unix(0, at)
	}
	for _, n := range []*int{&r.Port, &r.Process.PID, &r.Process.PPID, &r.Process.UID} {
		*n = int(w.number())
	}
	for _, s := range texts(&r) {
		*s = string(w.bytes())
	}
	if attrs := w.bytes(); len(attrs) > 0 && w.err == nil {
		if err := json.Unmarshal(attrs, &raws{&r.Attrs}); err != nil {
			w.err = fmt.Errorf("%w: attributes: %w", errWire, err)
		}
	}
	return r
}

func (w *wire) number() int64 {
	n, k := binary.Varint(w.b)
	if k <= 0 {
		w.fail()
		return 0
	}
	w.b = w.b[k:]
	return n
}

func (w *wire) bytes() []byte {
	n, k := binary.Uvarint(w.b)
	if k <= 0 || n > uint64(len(w.b)-k) {
		w.fail()
		return nil
	}
	out := w.b[k:][:n]
	w.b = w.b[k:][n:]
	return out
}

func (w *wire) fail() {
	w.b = nil
	if w.err == nil {
		w.err = errWire
	}
}

// raws keeps attribute values as the JSON that came: encode reads them anyway,
// with exact integers.
type raws struct{ into *map[string]any }

func (r *raws) UnmarshalJSON(b []byte) error {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	*r.into = make(map[string]any, len(m))
	for k, v := range m {
		(*r.into)[k] = v
	}
	return nil
}
