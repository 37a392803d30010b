package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// decode reads an event that encode wrote. It accepts exactly encode's bytes:
// an unknown member, a second one of the same name, another order or
// something after the end is an error.
func decode(b []byte) (Record, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var raw map[string]any
	if err := d.Decode(&raw); err != nil {
		return Record{}, fmt.Errorf("decode event: %w", err)
	}
	e, ok := plain(raw).(map[string]any)
	if !ok || e == nil {
		return Record{}, errors.New("decode event: not an object")
	}
	if v, _ := lookup(e, "metadata.log_version"); v != logVersion {
		return Record{}, fmt.Errorf("decode event: version %v, want %s: read it with the clawbox that wrote it", v, logVersion)
	}
	r, n, size, err := extract(e)
	if err != nil {
		return Record{}, fmt.Errorf("decode event: %w", err)
	}
	if err := n.take(&r, size); err != nil || !bytes.Equal(n.entry.append(nil), b) {
		return Record{}, errors.New("decode event: not in the form that clawbox writes")
	}
	return r, nil
}

// extract finds the record in an event, an encoder for its device, and the size
// before something was cut.
func extract(e map[string]any) (r Record, n *encoder, size int, err error) {
	kind, _ := lookup(e, "metadata.event_code")
	code, _ := kind.(string)
	r.Kind = Kind(code)
	c, ok := classes[r.Kind]
	if !ok {
		return r, nil, 0, fmt.Errorf("unknown kind %v", kind)
	}
	for _, f := range fields {
		v, ok := lookup(e, c.path(f.name))
		if !ok {
			continue
		}
		if err := f.read(&r, v); err != nil {
			return r, nil, 0, fmt.Errorf("%s: %w", c.path(f.name), err)
		}
	}
	d, _ := lookup(e, "disposition_id")
	for v, o := range outcomes {
		if d == int64(o.disposition) {
			r.Verdict = v
		}
	}
	ms, _ := e["time"].(int64)
	r.Time = time.UnixMilli(ms).UTC()
	if ns, ok := lookup(e, "unmapped.time_ns"); ok {
		rest, _ := ns.(int64)
		r.Time = r.Time.Add(time.Duration(rest))
	}
	if a, ok := lookup(e, "unmapped.attrs"); ok {
		r.Attrs, _ = a.(map[string]any)
	}
	host, _ := lookup(e, "device.hostname")
	name, _ := host.(string)
	cut, _ := lookup(e, "metadata.untruncated_size")
	was, _ := cut.(int64)
	return r, &encoder{host: name}, int(was), nil
}

func lookup(m map[string]any, path string) (any, bool) {
	for {
		k, rest, more := strings.Cut(path, ".")
		v, ok := m[k]
		if !more || !ok {
			return v, ok
		}
		if m, ok = v.(map[string]any); !ok {
			return nil, false
		}
		path = rest
	}
}
