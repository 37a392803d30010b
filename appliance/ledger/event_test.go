package ledger

import (
	"bytes"
	"encoding/json"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// full is a record with every field set.
func full(k Kind, v Verdict) Record {
	return Record{
		Time: time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC), Kind: k, Verdict: v,
		Agent: "ada", Policy: "sha256:00ff", Reason: "net.unlisted", Detail: "host isn't on the list",
		Process: Process{PID: 4711, PPID: 1, UID: 1000, Comm: "curl"}, Path: "/usr/bin/curl", Host: "pypi.org", Port: 443, Model: "tiny",
		Attrs: map[string]any{"op": "read", "n": int64(-3), "f": 0.25, "ok": true, "none": nil, "list": []any{"a", int64(1)}, "deep": map[string]any{"x": "y"}},
	}
}

func TestEventRoundTrip(t *testing.T) {
	for k := range classes {
		for v := range outcomes {
			for _, r := range []Record{
				full(k, v),
				{Kind: k, Verdict: v, Time: time.UnixMilli(5).UTC()},
				{Kind: k, Verdict: v, Time: time.Unix(1, 7).UTC(), Host: "192.0.2.1", Process: Process{PID: 1}},
				{Kind: k, Verdict: v, Time: time.Unix(1, 7).UTC(), Host: "2001:db8::1", Port: 80, Reason: "killed"},
			} {
				b, err := encode(r, "box")
				must(t, err)
				got, err := decode(b)
				if err != nil {
					t.Fatalf("%s: %v", b, err)
				}
				if !reflect.DeepEqual(got, r) {
					t.Fatalf("got  %+v\nwant %+v\n%s", got, r, b)
				}
			}
		}
	}
}

// TestEventIsOCSF checks what the base event and the classes require (schema
// 1.6.0), and a few enumerations by hand.
func TestEventIsOCSF(t *testing.T) {
	required := map[Kind][]string{
		KindExec: {"actor", "device", "process"}, KindFile: {"actor", "device", "file"},
		KindConnect: {"dst_endpoint"}, KindDNS: {"query"}, KindModel: {"actor", "api", "src_endpoint"}, KindApproval: {"actor", "api", "src_endpoint"},
		KindLifecycle: {"app"}, KindInstall: {"app"}, KindService: {"app"}, KindPolicy: {"entity"}, KindWeakening: {"device"}, KindKernel: {"actor", "device", "kernel"},
	}
	for k, c := range classes {
		b, err := encode(full(k, Denied), "box")
		must(t, err)
		var e map[string]any
		must(t, json.Unmarshal(b, &e))
		for _, a := range append(required[k], "activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time", "type_uid") {
			if _, ok := e[a]; !ok {
				t.Errorf("%s has no %s: %s", k, a, b)
			}
		}
		if e["type_uid"] != e["class_uid"].(float64)*100+e["activity_id"].(float64) || int(e["class_uid"].(float64))/1000 != c.category {
			t.Errorf("%s: numbers don't fit: %s", k, b)
		}
		if e["action_id"] != 2.0 || e["disposition_id"] != 2.0 || e["status_id"] != 2.0 {
			t.Errorf("%s: denied is %s", k, b)
		}
	}
	for _, c := range []struct {
		r    Record
		want string
	}{
		{Record{Kind: KindConnect, Verdict: Allowed}, `"type_uid":400101`},
		{Record{Kind: KindConnect, Verdict: Denied}, `"type_uid":400105`},
		{Record{Kind: KindConnect, Verdict: Held}, `"type_uid":400199`},
		{Record{Kind: KindFile, Verdict: Denied, Path: "/a", Attrs: map[string]any{"op": "write"}}, `"type_uid":100103`},
		{Record{Kind: KindLifecycle, Reason: "agent.launched"}, `"type_uid":600203`},
		{Record{Kind: KindInstall}, `"type_uid":600201`},
	} {
		c.r.Time = time.Unix(1, 0)
		b, err := encode(c.r, "")
		must(t, err)
		if !strings.Contains(string(b), c.want) {
			t.Errorf("want %s in %s", c.want, b)
		}
	}
}

func TestEventRefuses(t *testing.T) {
	now := time.Unix(1, 0)
	for name, r := range map[string]Record{
		"no kind":       {Time: now},
		"wrong kind":    {Time: now, Kind: "exce"},
		"wrong verdict": {Time: now, Kind: KindExec, Verdict: "ok"},
		"no JSON":       {Time: now, Kind: KindExec, Attrs: map[string]any{"x": math.NaN()}},
		"no time":       {Kind: KindExec},
	} {
		if b, err := encode(r, ""); err == nil {
			t.Errorf("%s: %s", name, b)
		}
	}
	good, err := encode(full(KindExec, Denied), "box")
	must(t, err)
	g := string(good)
	for name, b := range map[string]string{
		"empty":       "",
		"null":        "null",
		"trailing":    g + " ",
		"second":      g + g,
		"unknown":     `{"aaa":1,` + g[1:],
		"duplicate":   `{"activity_id":1,` + g[1:],
		"other order": strings.Replace(g, `"event_code":"exec","log_name":"clawbox"`, `"log_name":"clawbox","event_code":"exec"`, 1),
		"derived":     strings.Replace(g, `"category_uid":1`, `"category_uid":2`, 1),
		"wrong type":  strings.Replace(g, `"pid":4711`, `"pid":"4711"`, 1),
		"version":     strings.Replace(g, `"log_version":"1"`, `"log_version":"2"`, 1),
		"kind":        strings.Replace(g, `"event_code":"exec"`, `"event_code":"sleep"`, 1),
	} {
		if b == g {
			t.Fatalf("%s changes nothing", name)
		}
		if _, err := decode([]byte(b)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestEventIsCutNotRefused(t *testing.T) {
	long := strings.Repeat("\x01é\xff", 200_000)
	many := map[string]any{}
	for i := range 20_000 {
		many[strings.Repeat("k", i%50)+string(rune('0'+i%10))+time.Duration(i).String()] = i
	}
	for name, r := range map[string]Record{
		"detail":  {Detail: long},
		"all":     {Detail: long, Agent: long, Policy: long, Reason: long, Path: long, Host: long, Model: long, Process: Process{Comm: long}},
		"attrs":   {Detail: "short", Attrs: map[string]any{"a": long, "b": []string{long, long}, "c": 1, long: "x"}},
		"many":    {Attrs: many},
		"just so": {Detail: strings.Repeat("x", 60_000)},
	} {
		r.Kind, r.Time = KindLifecycle, time.Unix(1, 0)
		b, err := encode(r, long)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(b) > maxEntry || !utf8.Valid(b) {
			t.Fatalf("%s: %d bytes, valid %v", name, len(b), utf8.Valid(b))
		}
		if bytes.Contains(b, []byte(`"is_truncated":true`)) != (name != "just so") {
			t.Errorf("%s: %.300s", name, b)
		}
		got, err := decode(b)
		if err != nil {
			t.Fatalf("%s: %v\n%.600s", name, err, b)
		}
		if name == "many" && got.Attrs["attributes_cut"] == nil || name == "detail" && !strings.Contains(got.Detail, "bytes cut]") {
			t.Errorf("%s: nothing says that it was cut", name)
		}
	}
}

// TestReplayIsSafe: nothing an agent can choose reaches the terminal raw, or
// makes a second line.
func TestReplayIsSafe(t *testing.T) {
	evil := "a\x1b[2J\r\n\u202eb\u2028\x7f\u0085\xff  9  allowed\t\\n"
	r := full(KindExec, Denied)
	r.Agent, r.Path, r.Host, r.Detail, r.Reason, r.Model, r.Process.Comm = evil, evil, evil, evil, evil, evil, evil
	b, err := encode(r, evil)
	must(t, err)
	rec, err := decode(b)
	must(t, err)
	var out bytes.Buffer
	must(t, Replay(&out, func(yield func(Entry, error) bool) { yield(Entry{Index: 3, Event: b, Record: rec}, nil) }))
	s := strings.TrimSuffix(out.String(), "\n")
	for i, c := range s {
		if c < ' ' || c > 0x7e {
			t.Fatalf("rune %U at %d of %q", c, i, s)
		}
	}
	if strings.Contains(s, "  9  allowed") || !strings.Contains(s, `a\x1b[2J\r\n\u202eb\u2028\x7f\u0085\\xff`) {
		t.Errorf("line is %s", s)
	}
}

func TestReplayAndFilter(t *testing.T) {
	k := newKeys(t, "ledger.example")
	dir := newLog(t, k, 0, 1)
	l, err := Open(dir, k.s, k.v)
	must(t, err)
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	must(t, l.Record(t.Context(),
		Record{Time: at, Kind: KindExec, Verdict: Denied, Agent: "ada", Path: "/bin/sh", Process: Process{PID: 7, Comm: "node"}, Reason: "exec.unlisted"},
		Record{Time: at.Add(time.Second), Kind: KindConnect, Verdict: Held, Agent: "bob", Host: "pypi.org", Port: 443},
		Record{Time: at.Add(2 * time.Second), Kind: KindService, Detail: "stopped"}))
	must(t, l.Close())
	for _, c := range []struct {
		f    Filter
		want []int64
	}{
		{Filter{}, []int64{0, 1, 2}},
		{Filter{Agent: "ada"}, []int64{0}},
		{Filter{Kind: KindConnect}, []int64{1}},
		{Filter{Verdict: Held}, []int64{1}},
		{Filter{Since: at.Add(time.Second)}, []int64{1, 2}},
		{Filter{Until: at.Add(time.Second)}, []int64{0}},
		{Filter{Agent: "ada", Verdict: Held}, nil},
	} {
		var got []int64
		for e, err := range c.f.Select(Read(dir, 0)) {
			must(t, err)
			got = append(got, e.Index)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v selects %v, want %v", c.f, got, c.want)
		}
	}
	var out strings.Builder
	must(t, Replay(&out, Read(dir, 0)))
	want := "     0  2026-03-01 12:00:00.000  denied   ada           exec       /bin/sh by node(7)  [exec.unlisted]\n" +
		"     1  2026-03-01 12:00:01.000  held     bob           connect    pypi.org:443\n" +
		"     2  2026-03-01 12:00:02.000  -        -             service    -  stopped\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

// TestReplayGoesOn: an entry that isn't an event doesn't hide the others.
func TestReplayGoesOn(t *testing.T) {
	dir := smallLog(t, newKeys(t, "ledger.example"), 3, 1)
	var out strings.Builder
	err := Replay(&out, Read(dir, 1))
	if err == nil || strings.Count(out.String(), "\n") != 2 || !strings.HasPrefix(out.String(), "     1  !! read ledger: entry 1: decode event") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

func FuzzEvent(f *testing.F) {
	f.Add("ada", "x", "h", "k", 3)
	f.Add("", "\x1b", "1.2.3.4", "op", 0)
	f.Fuzz(func(t *testing.T, agent, text, host, key string, n int) {
		r := Record{Time: time.Unix(9, 9), Kind: KindModel, Verdict: Held, Agent: agent, Detail: text, Reason: text, Host: host, Path: text, Port: n, Process: Process{PID: n, Comm: agent}, Attrs: map[string]any{key: text, "n": n, "m": map[string]any{text: []string{key}}}}
		b, err := encode(r, host)
		must(t, err)
		got, err := decode(b)
		must(t, err)
		again, err := encode(got, host)
		must(t, err)
		if len(b) > maxEntry || !utf8.Valid(b) || !bytes.Equal(again, b) && !bytes.Contains(b, []byte("is_truncated")) {
			t.Errorf("%s\n%s", b, again)
		}
		if s := line(Entry{Record: got}); strings.Count(s, "\n") != 1 {
			t.Errorf("line %q", s)
		}
	})
}

// FuzzScanWal: no input may crash the parser, and what it calls good must be
// whole: scanning it again gives the same, with nothing left over.
func FuzzScanWal(f *testing.F) {
	k := newKeys(f, "ledger.example")
	dir := smallLog(f, k, 9, 4)
	b, err := readAll(dir)
	must(f, err)
	f.Add(b)
	f.Add(b[:len(b)-3])
	f.Add([]byte(walMagic))
	open := func(b []byte) (Head, error) { // a signature can't be guessed: leave it out
		return unverified(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		w, err := scanWal(b, open)
		if err != nil {
			return
		}
		if len(w.good)+len(w.rest) != len(b) || (len(w.rest) > 0) != (w.why != nil) {
			t.Fatalf("%d good, %d rest of %d, %v", len(w.good), len(w.rest), len(b), w.why)
		}
		again, err := scanWal(w.good, open)
		must(t, err)
		if len(again.rest) != 0 || len(again.entries) != len(w.entries) || again.head().Size != w.head().Size {
			t.Fatal("the good part isn't whole")
		}
		if _, err := torn(w, open); err != nil && len(w.rest) == 0 {
			t.Fatal(err)
		}
	})
}
