package ledger

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

const product = "clawbox"

// event is a JSON object under construction; encoding/json sorts its keys.
type event map[string]any

// set puts v at a dotted path.
func (e event) set(path string, v any) {
	for {
		k, rest, more := strings.Cut(path, ".")
		if !more {
			e[k] = v
			return
		}
		sub, ok := e[k].(event)
		if !ok {
			sub = event{}
			e[k] = sub
		}
		e, path = sub, rest
	}
}

// envelope is what an event holds besides the record.
type envelope struct {
	host      string // the device
	truncated int    // encoded size before something was cut, or 0
}

// encode turns r into the JSON of an OCSF event of at most maxEntry bytes.
// The same record always gives the same bytes. Strings are made valid UTF-8
// (a wrong byte becomes \xNN); what is too long is cut and marked.
func encode(r Record, host string) ([]byte, error) {
	if err := check(&r); err != nil {
		return nil, err
	}
	attrs, err := plainAttrs(r.Attrs)
	if err != nil {
		return nil, err
	}
	r.Attrs = attrs
	mapStrings(&r, legible)
	env := envelope{host: limit(legible(host), 255)}
	b, err := env.marshal(&r)
	if err != nil || len(b) <= maxEntry {
		return b, err
	}
	env.truncated = len(b)
	for _, most := range []int{8192, 1024, 128} {
		shrink(&r, most)
		if b, err = env.marshal(&r); err != nil || len(b) <= maxEntry {
			return b, err
		}
	}
	return nil, fmt.Errorf("event of %d bytes could not be cut to %d", env.truncated, maxEntry)
}

func check(r *Record) error {
	if _, ok := classes[r.Kind]; !ok {
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

// plainAttrs reduces attributes to what JSON has: nil, bool, int64, float64,
// json.Number (beyond those two), string, []any and map[string]any.
func plainAttrs(m map[string]any) (map[string]any, error) {
	if len(m) == 0 {
		return nil, nil
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("record attributes: %w: give values that JSON can hold", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var out map[string]any
	if err := d.Decode(&out); err != nil {
		return nil, fmt.Errorf("record attributes: %w", err)
	}
	return plain(out).(map[string]any), nil
}

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

func (env envelope) marshal(r *Record) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(env.event(r)); err != nil {
		return nil, fmt.Errorf("encode event: %w", err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

func (env envelope) event(r *Record) event {
	c, o := classes[r.Kind], outcomes[r.Verdict]
	act, name := c.activityOf(r)
	e := event{
		"activity_id": act, "category_uid": c.category, "class_uid": c.uid, "type_uid": c.uid*100 + act,
		"severity_id": o.severity, "status_id": o.status, "time": r.Time.UnixMilli(),
	}
	if act == activityOther && name != "" {
		e["activity_name"] = name
	}
	if c.severity != 0 {
		e["severity_id"] = c.severity
	}
	if r.Verdict != "" {
		e["action_id"], e["disposition_id"] = o.action, o.disposition
	}
	if c.derive != nil {
		c.derive(r, e)
	}
	for _, f := range fields {
		if v, ok := f.get(r); ok {
			e.set(c.path(f.name), v)
		}
	}
	if r.Agent == "" {
		e.set("actor.invoked_by", product) // the class wants some actor
	}
	if ns := r.Time.Nanosecond() % 1e6; ns != 0 {
		e.set("unmapped.time_ns", ns)
	}
	if len(r.Attrs) > 0 {
		e.set("unmapped.attrs", r.Attrs)
	}
	env.stamp(r, e)
	return e
}

func (env envelope) stamp(r *Record, e event) {
	e.set("device.type_id", 1) // server
	if env.host != "" {
		e.set("device.hostname", env.host)
	}
	e["metadata"] = event{
		"event_code": string(r.Kind), "log_name": "clawbox", "log_version": logVersion, "version": ocsfVersion,
		"product":  event{"name": product, "vendor_name": product},
		"profiles": []string{"host", "security_control"},
	}
	if env.truncated > 0 {
		e.set("metadata.is_truncated", true)
		e.set("metadata.untruncated_size", env.truncated)
	}
}

func (c class) path(f field) string {
	if p, ok := c.paths[f]; ok {
		return p
	}
	return paths[f]
}

// activityOf finds the class's number for what happened, and its name in the
// producer's words.
func (c class) activityOf(r *Record) (int, string) {
	op, _ := r.Attrs["op"].(string)
	word := r.Reason[strings.LastIndexByte(r.Reason, '.')+1:]
	for _, k := range []string{op, word, string(r.Verdict)} {
		if n, ok := c.activities[k]; ok {
			return n, k
		}
	}
	if op != "" {
		return c.activity, op
	}
	return c.activity, word
}
