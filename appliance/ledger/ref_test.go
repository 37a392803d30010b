package ledger

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// The slow, obvious way to make an event: a map of maps, which encoding/json
// writes with its keys sorted. The encoder must give the same bytes.

type refEvent map[string]any

func (e refEvent) set(path string, v any) {
	for {
		k, rest, more := strings.Cut(path, ".")
		if !more {
			e[k] = v
			return
		}
		sub, ok := e[k].(refEvent)
		if !ok {
			sub = refEvent{}
			e[k] = sub
		}
		e, path = sub, rest
	}
}

func refEncode(r Record, host string) ([]byte, error) {
	if err := check(&r); err != nil {
		return nil, err
	}
	attrs := map[string]any{}
	for k, v := range r.Attrs {
		attrs[k] = v
	}
	for _, a := range r.More {
		it, err := a.item()
		if err != nil {
			return nil, err
		}
		attrs[it.Key] = it.value()
	}
	b, err := json.Marshal(attrs)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	r.Attrs, r.More = nil, nil
	if err := d.Decode(&r.Attrs); err != nil {
		return nil, err
	}
	plain(r.Attrs)
	mapStrings(&r, legible)
	host = limit(legible(host), 255)
	b, err = refMarshal(&r, host, 0)
	size := len(b)
	for _, most := range []int{8192, 1024, 128} {
		if err != nil || len(b) <= maxEntry {
			return b, err
		}
		shrink(&r, most)
		b, err = refMarshal(&r, host, size)
	}
	if len(b) > maxEntry {
		err = fmt.Errorf("%d bytes", len(b))
	}
	return b, err
}

func refMarshal(r *Record, host string, truncated int) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(refOf(r, host, truncated)); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

func refOf(r *Record, host string, truncated int) refEvent {
	c, o := classes[r.Kind], outcomes[r.Verdict]
	op, _ := r.Attrs["op"].(string)
	act, name := c.activity, r.Reason[strings.LastIndexByte(r.Reason, '.')+1:]
	if op != "" {
		name = op
	}
	for _, k := range []string{op, r.Reason[strings.LastIndexByte(r.Reason, '.')+1:], string(r.Verdict)} {
		if n, ok := c.activities[k]; ok {
			act, name = n, k
			break
		}
	}
	e := refEvent{
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
	refDerived(r, e)
	refFields(r, c, e)
	if r.Agent == "" {
		e.set("actor.invoked_by", product)
	}
	if ns := r.Time.Nanosecond() % 1e6; ns != 0 {
		e.set("unmapped.time_ns", ns)
	}
	if len(r.Attrs) > 0 {
		e.set("unmapped.attrs", r.Attrs)
	}
	e.set("device.type_id", 1)
	if host != "" {
		e.set("device.hostname", host)
	}
	e["metadata"] = refEvent{
		"event_code": string(r.Kind), "log_name": "clawbox", "log_version": logVersion, "version": ocsfVersion,
		"product":  refEvent{"name": product, "vendor_name": product},
		"profiles": []string{"host", "security_control"},
	}
	if truncated > 0 {
		e.set("metadata.is_truncated", true)
		e.set("metadata.untruncated_size", truncated)
	}
	return e
}

func refFields(r *Record, c class, e refEvent) {
	host := fHost
	if isAddr(r.Host) {
		host = fAddr
	}
	for f, s := range map[field]string{
		fAgent: r.Agent, fPolicy: r.Policy, fReason: r.Reason, fDetail: r.Detail, fComm: r.Process.Comm, fPath: r.Path, fModel: r.Model, host: r.Host,
	} {
		if s != "" {
			e.set(c.path(f), s)
		}
	}
	for f, n := range map[field]int{fPID: r.Process.PID, fPPID: r.Process.PPID, fPort: r.Port} {
		if n != 0 {
			e.set(c.path(f), n)
		}
	}
	if r.Process.UID != 0 || r.Process.PID != 0 {
		e.set(c.path(fUID), fmt.Sprint(r.Process.UID))
	}
}

// refDerived sets what follows from the class.
func refDerived(r *Record, e refEvent) {
	name := r.Agent
	if name == "" {
		name = product
	}
	switch r.Kind {
	case KindExec:
		e.set("process.pid", r.Process.PID)
		if r.Path != "" {
			e.set("process.file.name", base(r.Path))
			e.set("process.file.type_id", 8)
		}
	case KindFile:
		e.set("file.name", base(r.Path))
		e.set("file.type_id", 0)
	case KindKernel:
		call, _ := r.Attrs["syscall"].(string)
		e.set("kernel.name", call)
		e.set("kernel.type_id", 2)
	case KindModel, KindApproval:
		e.set("api.operation", map[Kind]string{KindModel: "inference", KindApproval: "approval"}[r.Kind])
		e.set("src_endpoint.name", name)
	case KindLifecycle, KindInstall, KindService:
		e.set("app.name", name)
		e.set("app.vendor_name", product)
	case KindPolicy:
		e.set("entity.name", "policy")
		e.set("entity.type_id", 5)
	case KindWeakening:
		e.set("security_level_id", 2)
	}
}
