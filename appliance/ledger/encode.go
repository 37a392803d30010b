package ledger

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

const product = "clawbox"

// An encoder turns records into events. It is for one goroutine.
type encoder struct {
	host  string // the device; valid UTF-8, 255 bytes at most
	entry entry  // memory for the next record
}

// entry is a record on its way into an event.
type entry struct {
	*Record
	c     *shape
	o     outcome
	host  string
	items []item
	addr  bool   // the host is an IP address
	act   int    // the class's number for what happened
	word  string // what happened, in the producer's words

	truncated int // encoded size before something was cut, or 0
}

func newEncoder(host string) *encoder { return &encoder{host: limit(legible(host), 255)} }

// encode turns r into the JSON of an OCSF event of at most maxEntry bytes.
func encode(r Record, host string) ([]byte, error) { return newEncoder(host).append(nil, &r) }

// append appends the JSON of an OCSF event, of at most maxEntry bytes, to b.
// The same record always gives the same bytes. Strings are made valid UTF-8
// (a wrong byte becomes \xNN); what is too long is cut and marked.
func (n *encoder) append(b []byte, r *Record) ([]byte, error) {
	if err := check(r); err != nil {
		return b, err
	}
	at := len(b)
	if err := n.take(r, 0); err != nil {
		return b, err
	}
	b = n.entry.append(b)
	if len(b)-at <= maxEntry {
		return b, nil
	}
	e, err := n.cut(r, len(b)-at)
	return append(b[:at], e...), err
}

// take makes r the encoder's entry.
func (n *encoder) take(r *Record, truncated int) (err error) {
	e := &n.entry
	e.Record, e.host, e.truncated = r, n.host, truncated
	e.c, e.o = shapes[r.Kind], outcomes[r.Verdict]
	if e.items, err = r.items(e.items); err != nil {
		return err
	}
	e.addr = isAddr(r.Host)
	e.act, e.word = e.activity()
	return nil
}

// cut encodes a record that is too long, which took size bytes.
func (n *encoder) cut(long *Record, size int) ([]byte, error) {
	attrs, r := map[string]any{}, *long
	for i := range n.entry.items {
		attrs[n.entry.items[i].Key] = n.entry.items[i].value()
	}
	r.Attrs, r.More = attrs, nil
	mapStrings(&r, legible)
	for _, most := range []int{8192, 1024, 128} {
		shrink(&r, most)
		if err := n.take(&r, size); err != nil {
			return nil, err
		}
		if b := n.entry.append(nil); len(b) <= maxEntry {
			return b, nil
		}
	}
	return nil, fmt.Errorf("event of %d bytes could not be cut to %d", size, maxEntry)
}

func check(r *Record) error {
	if _, ok := shapes[r.Kind]; !ok {
		return fmt.Errorf("record kind is %q, want one of exec, file, connect, dns, model, approval, lifecycle, policy, install, weakening, service", r.Kind)
	}
	if _, ok := outcomes[r.Verdict]; !ok {
		return fmt.Errorf("record verdict is %q, want allowed, denied, held or none", r.Verdict)
	}
	if y := r.Time.UTC().Year(); y < 1970 || y > 9999 {
		return fmt.Errorf("record time is in year %d, want 1970 to 9999", y)
	}
	return nil
}

func (e *entry) append(b []byte) []byte {
	return append(appendMembers(append(b, '{'), e.c.members, e), '}')
}

// leaves are all values of an event of the class.
func (c class) leaves(k Kind) []leaf {
	ls := append(frame(k, c), c.derive...)
	for _, f := range fields {
		ls = append(ls, leaf{path: c.path(f.name), put: f.put})
	}
	return ls
}

// frame is what an event of every class holds besides the record's own fields.
func frame(k Kind, c class) []leaf {
	return []leaf{
		{path: "activity_id", put: func(b []byte, e *entry) []byte { return strconv.AppendInt(b, int64(e.act), 10) }},
		{path: "activity_name", put: putActivity},
		{path: "category_uid", text: strconv.Itoa(c.category)},
		{path: "class_uid", text: strconv.Itoa(c.uid)},
		{path: "type_uid", put: func(b []byte, e *entry) []byte { return strconv.AppendInt(b, int64(e.c.uid*100+e.act), 10) }},
		{path: "severity_id", put: putSeverity},
		{path: "status_id", put: func(b []byte, e *entry) []byte { return strconv.AppendInt(b, int64(e.o.status), 10) }},
		{path: "action_id", put: func(b []byte, e *entry) []byte { return appendNumber(b, e.o.action) }},
		{path: "disposition_id", put: func(b []byte, e *entry) []byte { return appendNumber(b, e.o.disposition) }},
		{path: "time", put: func(b []byte, e *entry) []byte { return strconv.AppendInt(b, e.Time.UnixMilli(), 10) }},
		{path: "unmapped.time_ns", put: func(b []byte, e *entry) []byte { return appendNumber(b, e.Time.Nanosecond()%1e6) }},
		{path: "unmapped.attrs", put: putAttrs},
		{path: "actor.invoked_by", put: putInvoked},
		{path: "device.type_id", text: "1"}, // server
		{path: "device.hostname", put: func(b []byte, e *entry) []byte { return appendWord(b, e.host) }},
		{path: "metadata.event_code", text: string(appendString(nil, string(k)))},
		{path: "metadata.log_name", text: `"clawbox"`},
		{path: "metadata.log_version", text: `"` + logVersion + `"`},
		{path: "metadata.version", text: `"` + ocsfVersion + `"`},
		{path: "metadata.product.name", text: `"` + product + `"`},
		{path: "metadata.product.vendor_name", text: `"` + product + `"`},
		{path: "metadata.profiles", text: `["host","security_control"]`},
		{path: "metadata.is_truncated", put: putTruncated},
		{path: "metadata.untruncated_size", put: func(b []byte, e *entry) []byte { return appendNumber(b, e.truncated) }},
	}
}

func putActivity(b []byte, e *entry) []byte {
	if e.act != activityOther {
		return b
	}
	return appendWord(b, e.word)
}

func putSeverity(b []byte, e *entry) []byte {
	n := e.o.severity
	if e.c.severity != 0 {
		n = e.c.severity
	}
	return strconv.AppendInt(b, int64(n), 10)
}

// putInvoked fills in for the agent: the class wants some actor.
func putInvoked(b []byte, e *entry) []byte {
	if e.Agent != "" {
		return b
	}
	return appendString(b, product)
}

func putTruncated(b []byte, e *entry) []byte {
	if e.truncated == 0 {
		return b
	}
	return append(b, "true"...)
}

func putAttrs(b []byte, e *entry) []byte {
	if len(e.items) == 0 {
		return b
	}
	b = append(b, '{')
	for i := range e.items {
		it := &e.items[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, it.Key), ':')
		b = it.append(b)
	}
	return append(b, '}')
}

func (it *item) append(b []byte) []byte {
	switch it.kind {
	case attrText:
		return appendString(b, it.Text)
	case attrNumber:
		return strconv.AppendInt(b, it.n, 10)
	case attrFlag:
		return strconv.AppendBool(b, it.n != 0)
	case attrNull:
		return append(b, "null"...)
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(it.any); err != nil { // it came from a decoder
		return append(b, "null"...)
	}
	return append(b, bytes.TrimSuffix(buf.Bytes(), []byte("\n"))...)
}

// text is the attribute of a name if it is a string.
func (e *entry) text(key string) string {
	for i := range e.items {
		if it := &e.items[i]; it.Key == key && it.kind == attrText {
			return it.Text
		}
	}
	return ""
}

func (c class) path(f field) string {
	if p, ok := c.paths[f]; ok {
		return p
	}
	return paths[f]
}

// activity finds the class's number for what happened, and its name in the
// producer's words.
func (e *entry) activity() (int, string) {
	op := e.text("op")
	word := e.Reason[strings.LastIndexByte(e.Reason, '.')+1:]
	for _, k := range [...]string{op, word, string(e.Verdict)} {
		if n, ok := e.c.activities[k]; ok {
			return n, k
		}
	}
	if op != "" {
		return e.c.activity, op
	}
	return e.c.activity, word
}
