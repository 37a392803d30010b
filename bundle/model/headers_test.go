package model

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/airgap-manifests/tinymodel"
)

// st makes a safetensors file of a header and n bytes of data.
func st(header string, n int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, n)...)
}

func TestSafetensors(t *testing.T) {
	good := st(`{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},"a":{"shape":[],"dtype":"F32","data_offsets":[0,4]}}   `, 16)
	h, err := Safetensors(bytes.NewReader(good), int64(len(good)))
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Tensors) != 2 || h.Tensors[1].Elements != 6 || h.Tensors[1].Type != "BF16" || h.Bytes != 16 {
		t.Errorf("got %+v", h)
	}
	one := func(s string) string { return `{"a":` + s + `}` }
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"empty":          {nil, "no header"},
		"length beyond":  {append(binary.LittleEndian.AppendUint64(nil, 50), '{', '}'), "within the file"},
		"length huge":    {append(binary.LittleEndian.AppendUint64(nil, 1<<63), '{', '}'), "within the file"},
		"not json":       {st(`pickle`, 0), "begins with"},
		"cut off":        {st(`{"a":{`, 0), "cut off"},
		"list":           {st(`{"a":[]}`, 0), `got "["`},
		"twice":          {st(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 2), "second time"},
		"field twice":    {st(one(`{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}`), 1), "second time"},
		"unknown field":  {st(one(`{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}`), 1), "unknown field"},
		"no shape":       {st(one(`{"dtype":"U8","data_offsets":[0,1]}`), 1), "two offsets"},
		"unknown type":   {st(one(`{"dtype":"X8","shape":[1],"data_offsets":[0,1]}`), 1), "known type"},
		"size":           {st(one(`{"dtype":"F32","shape":[1],"data_offsets":[0,1]}`), 1), "1 elements"},
		"backwards":      {st(one(`{"dtype":"U8","shape":[0],"data_offsets":[1,0]}`), 0), "offsets 1 to 0"},
		"negative":       {st(one(`{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}`), 1), "whole number"},
		"fraction":       {st(one(`{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}`), 1), "whole number"},
		"overflow":       {st(one(`{"dtype":"U8","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,1]}`), 1), "too large"},
		"hole":           {st(one(`{"dtype":"U8","shape":[1],"data_offsets":[1,2]}`), 2), "a hole or an overlap"},
		"overlap":        {st(`{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}`, 3), "a hole or an overlap"},
		"appended":       {st(one(`{"dtype":"U8","shape":[1],"data_offsets":[0,1]}`), 2), "appended"},
		"missing data":   {st(one(`{"dtype":"U8","shape":[2],"data_offsets":[0,2]}`), 1), "cut off"},
		"trailing json":  {st(`{} {}`, 0), "after the end"},
		"metadata types": {st(`{"__metadata__":{"a":1}}`, 0), "want a string"},
		"half bytes":     {st(one(`{"dtype":"F4","shape":[3],"data_offsets":[0,1]}`), 1), "of 4 bits"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Safetensors(bytes.NewReader(c.file), int64(len(c.file)))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

// tiny writes the demo's model, which the real engine loads.
func tiny(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tinymodel.Write(&b, []tinymodel.Script{{Name: "hi", When: tinymodel.Plain, Text: "hello to you"}}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestGGUF(t *testing.T) {
	b := tiny(t)
	h, err := GGUF(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if h.Architecture != "llama" || h.Version != 3 || len(h.Tensors) != 12 || h.Tensors[0].Type != "F32" {
		t.Errorf("got %s %d, %d tensors", h.Architecture, h.Version, len(h.Tensors))
	}
	set := func(at int, v ...byte) []byte { c := bytes.Clone(b); copy(c[at:], v); return c }
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"empty":        {nil, "0 left"},
		"magic":        {set(0, 'X'), "want GGUF"},
		"big-endian":   {set(4, 0, 0, 0, 3), "little-endian"},
		"version 1":    {set(4, 1), "want 2 or 3"},
		"many tensors": {set(12, 1), "tensors and"},
		"many keys":    {set(20, 1), "keys, want at most"},
		"long key":     {set(30, 1), "a string of"},
		"cut off":      {b[:len(b)-64], "cut off"},
		"cut header":   {b[:100], "left"},
		"appended":     {append(bytes.Clone(b), make([]byte, 33)...), "appended"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := GGUF(bytes.NewReader(c.file), int64(len(c.file)))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

// raw builds GGUF files that no tool would write.
type raw struct{ bytes.Buffer }

func (r *raw) num(vals ...any) *raw {
	for _, v := range vals {
		binary.Write(r, binary.LittleEndian, v)
	}
	return r
}

func (r *raw) str(s string) *raw { r.num(uint64(len(s))); r.WriteString(s); return r }

func head(tensors, keys uint64) *raw {
	r := &raw{}
	r.WriteString("GGUF")
	return r.num(uint32(3), tensors, keys)
}

func TestHostileGGUF(t *testing.T) {
	deep := head(0, 1).str("k").num(uint32(9))
	for range 20 {
		deep.num(uint32(9), uint64(1))
	}
	info := func(kind uint32, off uint64, dims ...uint64) *raw {
		r := head(1, 0).str("t").num(uint32(len(dims)))
		for _, d := range dims {
			r.num(d)
		}
		return r.num(kind, off)
	}
	for name, c := range map[string]struct {
		r    *raw
		want string
	}{
		"deep arrays":     {deep, "deep"},
		"huge array":      {head(0, 1).str("k").num(uint32(9), uint32(4), uint64(1<<40)), "elements"},
		"array of huge":   {head(0, 1).str("k").num(uint32(9), uint32(8), uint64(1<<20)), "left"},
		"bad value type":  {head(0, 1).str("k").num(uint32(13)), "value type 13"},
		"key twice":       {head(0, 2).str("k").num(uint32(4), uint32(1)).str("k").num(uint32(4), uint32(1)), "twice"},
		"alignment 3":     {head(0, 1).str("general.alignment").num(uint32(4), uint32(3)), "power of two"},
		"alignment text":  {head(0, 1).str("general.alignment").num(uint32(8)).str("x"), "value type 8"},
		"five dims":       {info(0, 0, 1, 1, 1, 1, 1), "dimensions"},
		"overflow":        {info(0, 0, 1<<40, 1<<40), "too large"},
		"dimension 2^63":  {info(0, 0, 1<<63), "a dimension"},
		"removed type":    {info(4, 0, 32), "doesn't know"},
		"half a block":    {info(12, 0, 128), "whole blocks"},
		"offset":          {info(0, 1<<40, 1), "within the file"},
		"unaligned":       {info(0, 8, 1), "within the file"},
		"hole":            {info(0, 32, 1), "a hole"},
		"data missing":    {info(0, 0, 64), "cut off"},
		"no tensors":      {head(0, 0).num([64]byte{}), "without tensors"},
		"name not utf-8":  {head(1, 0).str("\xff").num(uint32(0)), "UTF-8"},
		"name twice":      {head(2, 0).str("t").num(uint32(0), uint32(0), uint64(0)).str("t").num(uint32(0)), "twice"},
		"string too long": {head(0, 1).num(uint64(1<<62), [64]byte{}), "a string of"},
	} {
		t.Run(name, func(t *testing.T) {
			b := append(c.r.Bytes(), make([]byte, 64)...)
			if name == "array of huge" {
				b = c.r.Bytes()
			}
			_, err := GGUF(bytes.NewReader(b), int64(len(b)))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

// TestHeaderMemory: what a header makes a parser allocate is in proportion to
// the file, whatever counts the header claims.
func TestHeaderMemory(t *testing.T) {
	var hdr strings.Builder
	hdr.WriteString("{")
	for i := range 20000 {
		fmt.Fprintf(&hdr, `"t%d":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]},`, i, i, i+1)
	}
	file := st(strings.TrimSuffix(hdr.String(), ",")+"}", 20000)
	claims := head(maxTensors, maxKeys).Bytes()
	for name, f := range map[string]func() error{
		"safetensors": func() error { _, err := Safetensors(bytes.NewReader(file), int64(len(file))); return err },
		"gguf claims": func() error {
			if _, err := GGUF(bytes.NewReader(claims), 1<<40); err == nil {
				t.Error("no error")
			}
			return nil
		},
	} {
		var a, b runtime.MemStats
		runtime.ReadMemStats(&a)
		if err := f(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		runtime.ReadMemStats(&b)
		if n := b.TotalAlloc - a.TotalAlloc; n > uint64(40*len(file)) {
			t.Errorf("%s: allocated %d bytes for a file of %d", name, n, len(file))
		}
	}
}

func TestParseIndex(t *testing.T) {
	x, err := ParseIndex([]byte(`{"metadata":{"total_size":1.6e3,"x":[1]},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}`))
	if err != nil || x.Total != 1600 || x.Shards["b"] != "m-2.safetensors" {
		t.Errorf("got %+v, %v", x, err)
	}
	for in, want := range map[string]string{
		`{"weight_map":{"a":"../x"}}`:             "beside the index",
		`{"weight_map":{"a":"x","a":"y"}}`:        "second time",
		`{"weight_map":{}}`:                       "no tensors",
		`{"weight_map":{"a":1}}`:                  "want a string",
		`{"weight_map":{"a":"x"},"other":1}`:      "unknown field",
		`{"weight_map":{"a":"x"}} 1`:              "after the end",
		`{"weight_map":{"a":"x"}`:                 "cut off",
		`{"metadata":1,"weight_map":{"a":"x"}}`:   "cannot unmarshal",
		`[]`:                                      "want",
		`{"weight_map":{"a":"x\u0000"}}`:          "beside the index",
		`{"weight_map":{"a":"sub\\x"}}`:           "beside the index",
		`{"weight_map":{"a":"x"},"weight_map":1}`: "second time",
	} {
		if _, err := ParseIndex([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", in, err, want)
		}
	}
}

func FuzzSafetensors(f *testing.F) {
	f.Add(st(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 4))
	f.Add(st(`{"__metadata__":{"format":"pt"}}`, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Safetensors(bytes.NewReader(b), int64(len(b)))
		if err == nil {
			checkSum(t, h)
		}
	})
}

func FuzzGGUF(f *testing.F) {
	f.Add(head(0, 0).Bytes())
	f.Add(append(head(1, 1).str("k").num(uint32(9), uint32(8), uint64(1)).str("v").str("t").num(uint32(1), uint64(4), uint32(0), uint64(0)).Bytes(), make([]byte, 64)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := GGUF(bytes.NewReader(b), int64(len(b)))
		if err == nil {
			checkSum(t, h)
		}
	})
}

// checkSum: no tensor lies outside the data.
func checkSum(t *testing.T, h *Header) {
	for _, x := range h.Tensors {
		if x.begin < 0 || x.end < x.begin || x.end > h.Bytes {
			t.Fatalf("tensor %q at %d to %d of %d", x.Name, x.begin, x.end, h.Bytes)
		}
	}
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"metadata":{"total_size":1},"weight_map":{"a":"x"}}`))
	f.Fuzz(func(t *testing.T, b []byte) { ParseIndex(b) })
}

// TestRandomDamage: flipping bits of a real header never makes a parser panic.
func TestRandomDamage(t *testing.T) {
	b := tiny(t)
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		at := r.IntN(60000)
		was := b[at]
		b[at] ^= byte(1 + r.IntN(255))
		GGUF(bytes.NewReader(b), int64(len(b)))
		b[at] = was
	}
}
