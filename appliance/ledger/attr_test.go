package ledger

import (
	"bytes"
	"encoding/json"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"
)

// odd are strings that a JSON encoder can get wrong, and words that events know.
var odd = []string{
	"", "ada", "a\"b\\c", "\x00\x01\b\f\n\r\t\x1f\x7f", "\xff", "a\xc3", "\xe2\x80\xa8\xe2\x80\xa9\xe2\x80\xaa", "häß\U0001f980", "<&>", "\xed\xa0\x80", "\ufffd",
	"/etc/passwd", "10.0.0.1", "fe80::1", "net.unlisted", "a.b.read", "read", "op", "allowed", "x.\xff", "/a/\xfe\"",
}

func oddRecord(rng *rand.Rand) Record {
	pick := func() string { return odd[rng.IntN(len(odd))] }
	kinds := []Kind{}
	for k := range classes {
		kinds = append(kinds, k)
	}
	slices.Sort(kinds)
	r := Record{
		Time: time.Unix(rng.Int64N(1<<33), rng.Int64N(3)*rng.Int64N(1e9)).UTC(), Kind: kinds[rng.IntN(len(kinds))],
		Verdict: []Verdict{"", Allowed, Denied, Held}[rng.IntN(4)], Agent: pick(), Policy: pick(), Reason: pick(), Detail: pick(),
		Path: pick(), Host: pick(), Port: rng.IntN(3), Model: pick(),
		Process: Process{rng.IntN(3), rng.IntN(3), rng.IntN(3), pick()},
	}
	values := []any{
		nil, true, false, 0, -1, int64(math.MinInt64), uint64(math.MaxUint64), uint64(7), int8(3), 0.5, 1e21, math.Copysign(0, -1), 3.0, json.Number("12"), json.Number("1.50"),
		Kind("named"),
		[]any{"a", 1, nil},
		map[string]any{"z": 1, "a": "\xff"},
		[]string{"<"},
		json.RawMessage(`{"b":1,"a":[1.0]}`), pick(),
	}
	for range rng.IntN(5) {
		if r.Attrs == nil {
			r.Attrs = map[string]any{}
		}
		k := pick()
		for bytes.ContainsRune([]byte(wellFormed(k)), '\ufffd') { // two of these may be one
			k = pick()
		}
		r.Attrs[k] = values[rng.IntN(len(values))]
	}
	for range rng.IntN(4) {
		r.More = append(r.More, []Attr{Text(pick(), pick()), Number("n", rng.Int64()), Flag("cut"), Text("op", pick()), Text("syscall", pick())}[rng.IntN(5)])
	}
	return r
}

// TestEncoder: the encoder gives the bytes of the obvious way, and what it
// gives can be read.
func TestEncoder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		r := oddRecord(rng)
		host := odd[rng.IntN(len(odd))]
		want, err1 := refEncode(r, host)
		got, err2 := encode(r, host)
		if !bytes.Equal(got, want) || err1 != nil || err2 != nil {
			t.Fatalf("%+v\ngot  %s %v\nwant %s %v", r, got, err2, want, err1)
		}
		if _, err := decode(got); err != nil {
			t.Fatalf("%s: %v", got, err)
		}
	}
}

func TestAttrs(t *testing.T) {
	r := Record{Time: time.Unix(1, 0).UTC(), Kind: KindFile, Attrs: map[string]any{"a": 1, "b": "x", "came": "then"}, More: []Attr{Text("b", "y"), Number("seq", 7), Text("gone", "")}}
	r.Put(Flag("cut"))
	r.Put(Text("a", "2"))
	r.Drop("came")
	r.Drop("gone")
	r.Drop("never")
	b, err := encode(r, "")
	must(t, err)
	got, err := decode(b)
	must(t, err)
	if want := map[string]any{"a": "2", "b": "y", "cut": true, "seq": int64(7)}; !reflect.DeepEqual(got.Attrs, want) {
		t.Errorf("attributes are %v, want %v", got.Attrs, want)
	}
	// Names that are one in UTF-8 are written once.
	b, err = encode(Record{Time: time.Unix(1, 0), Kind: KindFile, More: []Attr{Text("\xff", "1"), Text("\xfe", "2")}}, "")
	must(t, err)
	if got, err := decode(b); err != nil || len(got.Attrs) != 1 || got.Attrs["\ufffd"] != "2" {
		t.Errorf("%v: attributes are %v", err, got.Attrs)
	}
}
