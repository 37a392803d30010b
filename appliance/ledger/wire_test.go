package ledger

import (
	"bytes"
	"errors"
	"testing"
	"time"
)

// TestWire: what passes between processes is recorded as if it had not.
func TestWire(t *testing.T) {
	rs := []Record{
		{Kind: KindService, Verdict: Allowed},
		{
			Time: time.Unix(1700000000, 123456789), Kind: KindFile, Verdict: Denied, Agent: "ada", Policy: "sha256:00", Reason: "kernel.eacces", Detail: "x",
			Process: Process{PID: 7, PPID: 6, UID: 400001, Comm: "sh"}, Path: "/tmp/\xff\xfe", Host: "h", Port: 443, Model: "m",
			Attrs: map[string]any{"n": int64(1)<<62 + 1, "f": 1.5, "list": []string{"a"}, "deep": map[string]any{"u": uint64(1)<<63 + 1}},
		},
	}
	b, err := MarshalRecords(rs)
	if err != nil {
		t.Fatal(err)
	}
	var u Unmarshaler // whose memory has held others
	other, err := MarshalRecords([]Record{rs[1], {Kind: KindDNS, Verdict: Denied, More: []Attr{Text("left", "over"), Flag("cut")}}, rs[1]})
	if err == nil {
		_, err = u.Records(other, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	got, err := u.Records(b, 0)
	if err != nil || len(got) != 2 {
		t.Fatalf("%v, %v", got, err)
	}
	for i := range rs {
		want, err1 := encode(rs[i].at(), "host")
		have, err2 := encode(got[i].at(), "host")
		if err1 != nil || err2 != nil || !bytes.Equal(want, have) {
			t.Errorf("recorded as %s (%v), want %s (%v)", have, err2, want, err1)
		}
	}
}

// at gives a record without a time one.
func (r Record) at() Record {
	if r.Time.IsZero() {
		r.Time = time.Unix(1, 0)
	}
	return r
}

func FuzzUnmarshalRecords(f *testing.F) {
	b, err := MarshalRecords([]Record{{Kind: KindExec, Verdict: Allowed, Attrs: map[string]any{"a": 1}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		rs, err := UnmarshalRecords(b, 0)
		if err != nil {
			return
		}
		again, err := MarshalRecords(rs)
		if err != nil {
			t.Fatal(err)
		}
		if rs2, err := UnmarshalRecords(again, 0); err != nil || len(rs2) != len(rs) {
			t.Errorf("%d records became %d: %v", len(rs), len(rs2), err)
		}
	})
}

func BenchmarkWire(b *testing.B) {
	r := Record{
		Time: time.Now(), Kind: KindFile, Verdict: Allowed, Agent: "claw", Policy: "sha256:" + string(bytes.Repeat([]byte("0"), 64)), Reason: "fs.read",
		Process: Process{PID: 7, PPID: 6, UID: 400001, Comm: "node"}, Path: "/usr/lib/node_modules/openclaw/dist/index.js",
		Attrs: map[string]any{"parent": "sh", "access": "read", "file": "index.js", "inode": "12345"},
	}
	for b.Loop() {
		w, err := MarshalRecords([]Record{r})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := UnmarshalRecords(w, 0); err != nil {
			b.Fatal(err)
		}
	}
}

// TestUnmarshalBound: a few bytes each make a record of hundreds, so there are
// only so many in one message.
func TestUnmarshalBound(t *testing.T) {
	b, err := MarshalRecords(make([]Record, 5))
	if err != nil {
		t.Fatal(err)
	}
	var u Unmarshaler // one that has read others before
	for range 3 {
		if _, err := u.Records(b, 0); err != nil {
			t.Fatal(err)
		}
	}
	if rs, err := u.Records(b, 5); err != nil || len(rs) != 5 {
		t.Errorf("with memory of others: %d records, %v", len(rs), err)
	}
	if rs, err := UnmarshalRecords(b, 5); err != nil || len(rs) != 5 {
		t.Errorf("five of five: %d, %v", len(rs), err)
	}
	if _, err := UnmarshalRecords(b, 4); !errors.Is(err, errWire) {
		t.Errorf("five of four: %v", err)
	}
}
