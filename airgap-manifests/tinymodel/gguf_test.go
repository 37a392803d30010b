package tinymodel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"testing"
)

// model is a GGUF file as this test's own reader sees it: written from the
// format's description, sharing nothing with the writer.
type model struct {
	meta    map[string]any
	tensors map[string]matrix
}

type matrix struct {
	dims []uint64
	vals []float32
}

type reader struct {
	t *testing.T
	b *bytes.Reader
}

func get[T any](r reader) (v T) {
	r.t.Helper()
	if err := binary.Read(r.b, binary.LittleEndian, &v); err != nil {
		r.t.Fatal(err)
	}
	return v
}

func (r reader) str() string {
	b := make([]byte, get[uint64](r))
	if _, err := r.b.Read(b); err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

func (r reader) value(kind uint32) any {
	switch kind {
	case 4:
		return get[uint32](r)
	case 5:
		return get[int32](r)
	case 6:
		return get[float32](r)
	case 7:
		return get[uint8](r) != 0
	case 8:
		return r.str()
	case 9:
		elem, n := get[uint32](r), get[uint64](r)
		out := make([]any, n)
		for i := range out {
			out[i] = r.value(elem)
		}
		return out
	}
	r.t.Fatalf("value type %d isn't one this model needs", kind)
	return nil
}

func parse(t *testing.T, file []byte) model {
	r := reader{t, bytes.NewReader(file)}
	if m := get[[4]byte](r); string(m[:]) != "GGUF" {
		t.Fatalf("magic %q", m)
	}
	if v := get[uint32](r); v != 3 {
		t.Fatalf("version %d", v)
	}
	nt, nkv := get[uint64](r), get[uint64](r)
	m := model{map[string]any{}, map[string]matrix{}}
	for range nkv {
		k := r.str()
		if _, dup := m.meta[k]; dup {
			t.Fatalf("key %s twice", k)
		}
		m.meta[k] = r.value(get[uint32](r))
	}
	type head struct {
		name string
		dims []uint64
		off  uint64
	}
	var heads []head
	for range nt {
		h := head{name: r.str(), dims: make([]uint64, get[uint32](r))}
		for i := range h.dims {
			h.dims[i] = get[uint64](r)
		}
		if kind := get[uint32](r); kind != 0 {
			t.Fatalf("tensor %s has type %d, want 0 (F32)", h.name, kind)
		}
		h.off = get[uint64](r)
		heads = append(heads, h)
	}
	base := (len(file) - r.b.Len() + 31) / 32 * 32
	end := 0
	for _, h := range heads {
		n := 1
		for _, d := range h.dims {
			n *= int(d)
		}
		at := base + int(h.off)
		if at%32 != 0 || at < end {
			t.Fatalf("tensor %s at %d: not aligned, or inside its neighbour that ends at %d", h.name, at, end)
		}
		end = at + 4*n
		vals := make([]float32, n)
		for i := range vals {
			vals[i] = math.Float32frombits(binary.LittleEndian.Uint32(file[at+4*i:]))
		}
		m.tensors[h.name] = matrix{h.dims, vals}
	}
	if len(file)-end >= 32 {
		t.Fatalf("%d bytes after the last tensor", len(file)-end)
	}
	return m
}

// say runs the network by hand, as far as it is not zero: embedding, RMS norm,
// output matrix, best logit; from a start token to the end token.
func (m model) say(t *testing.T, start string) string {
	t.Helper()
	toks := m.meta["tokenizer.ggml.tokens"].([]any)
	eos := int(m.meta["tokenizer.ggml.eos_token_id"].(uint32))
	at := -1
	for i, s := range toks {
		if s == start {
			at = i
		}
	}
	if at < 0 {
		t.Fatalf("no token %q", start)
	}
	var text strings.Builder
	for range len(toks) + 1 {
		next, best := m.step(t, at)
		if best < 50 {
			t.Fatalf("token %d → %d with logit %v: not certain enough", at, next, best)
		}
		if next == eos {
			return unspell(t, text.String())
		}
		text.WriteString(toks[next].(string))
		at = next
	}
	t.Fatalf("script at %q never ends", start)
	return ""
}

func (m model) step(t *testing.T, at int) (next int, best float32) {
	emb, out := m.tensors["token_embd.weight"], m.tensors["output.weight"]
	n := int(emb.dims[0])
	x := emb.vals[at*n : (at+1)*n]
	sum := float32(0)
	for _, f := range x {
		sum += f * f
	}
	scale := 1 / float32(math.Sqrt(float64(sum/float32(n)+1e-6)))
	next = -1
	for v := range len(out.vals) / n {
		dot := float32(0)
		for i, f := range x {
			dot += f * scale * out.vals[v*n+i]
		}
		switch {
		case dot > best:
			next, best = v, dot
		case dot == best && dot > 0:
			t.Fatalf("token %d has two successors, %d and %d", at, next, v)
		}
	}
	return next, best
}

// unspell is GPT-2's bytes_to_unicode backwards, from its definition.
func unspell(t *testing.T, s string) string {
	back := map[rune]byte{}
	next := rune(256)
	for b := range 256 {
		printable := b >= 33 && b <= 126 || b >= 161 && b <= 172 || b >= 174
		if printable {
			back[rune(b)] = byte(b)
		} else {
			back[next] = byte(b)
			next++
		}
	}
	var out []byte
	for _, r := range s {
		b, ok := back[r]
		if !ok {
			t.Fatalf("rune %q isn't in GPT-2's alphabet", r)
		}
		out = append(out, b)
	}
	return string(out)
}

func TestWriteSaysEveryScript(t *testing.T) {
	cases := map[string][]string{
		"words repeat":           {"the cat and the dog and the cat and the dog"},
		"shared phrases":         {"one two three", "two three", "three", "one two three four"},
		"same text twice":        {"done", "done"},
		"prefixes of each other": {"a", "ab", "abc", "a b", "a b c"},
		"one byte":               {"y", "n"},
		"bytes and spaces":       {"  x  \n\t y\u00a0z\x00 é 漢字 🦞 ", " ", "  ", "   "},
		"json":                   {`<|=>|>{"exec":{"command":"id -u; ls / | head -1"}}`},
		"all bytes":              {allBytes()},
		"ends in a taken word":   {"x the", "the", "a the the"},
		"spells a control token": {"<|end|> and <|go_0|> more"},
	}
	for name, texts := range cases {
		t.Run(name, func(t *testing.T) {
			var scripts []Script
			for i, text := range texts {
				scripts = append(scripts, Script{Name: fmt.Sprint(i), When: Tool, Step: i + 1, Text: text})
			}
			var buf bytes.Buffer
			if err := Write(&buf, scripts); err != nil {
				t.Fatal(err)
			}
			m := parse(t, buf.Bytes())
			v, _ := compile(scripts)
			for _, text := range texts {
				if got := m.say(t, v.tokens[v.starts[text]]); got != text {
					t.Errorf("said %q, want %q", got, text)
				}
			}
			unique(t, m)
		})
	}
}

func allBytes() string {
	b := make([]byte, 256)
	for i := range b {
		b[i] = byte(i)
	}
	return string(b)
}

// unique holds what llama.cpp asserts when it loads a vocabulary.
func unique(t *testing.T, m model) {
	seen := map[any]bool{}
	for _, s := range m.meta["tokenizer.ggml.tokens"].([]any) {
		if seen[s] || s == "" {
			t.Errorf("token %q is empty or there twice", s)
		}
		seen[s] = true
	}
	if n := len(m.meta["tokenizer.ggml.token_type"].([]any)); n != len(seen) {
		t.Errorf("%d token types for %d tokens", n, len(seen))
	}
}

func TestWriteIsDeterministic(t *testing.T) {
	s := []Script{{"a", User, 0, "one two"}, {"b", Plain, 0, "two one"}, {"c", Tool, 0, "one two three"}}
	var x, y bytes.Buffer
	if err := Write(&x, s); err != nil {
		t.Fatal(err)
	}
	if err := Write(&y, s); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x.Bytes(), y.Bytes()) {
		t.Error("two runs, two files")
	}
	t.Logf("size %d bytes", x.Len())
}

func TestBadScripts(t *testing.T) {
	cases := map[string]struct {
		scripts []Script
		want    string
	}{
		"none":          {nil, "no scripts"},
		"empty text":    {[]Script{{"a", Plain, 0, ""}}, "empty text"},
		"unknown role":  {[]Script{{"a", "system", 0, "x y"}}, `role "system": want`},
		"step of user":  {[]Script{{"a", User, 1, "x y"}}, "step 1"},
		"negative step": {[]Script{{"a", Tool, -1, "x y"}}, "step -1"},
		"same moment":   {[]Script{{"a", User, 0, "x y"}, {"b", User, 0, "z"}}, `"a" and "b"`},
		"own token":     {[]Script{{"a", User, 0, "<|end|>"}}, "own tokens"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			err := Write(&bytes.Buffer{}, c.scripts)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Write: %v, want an error with %q", err, c.want)
			}
			if _, terr := Template(c.scripts); terr == nil || terr.Error() != err.Error() {
				t.Errorf("Template: %v, want %v", terr, err)
			}
		})
	}
}

// errWriter fails after n bytes.
type errWriter struct{ n int }

func (w *errWriter) Write(b []byte) (int, error) {
	if w.n -= len(b); w.n < 0 {
		return 0, fmt.Errorf("disk full")
	}
	return len(b), nil
}

func TestWriteReportsFullDisk(t *testing.T) {
	for _, n := range []int{0, 70000, 600000} {
		if err := Write(&errWriter{n}, []Script{{"a", Plain, 0, "hello there"}}); err == nil {
			t.Errorf("no error after %d bytes", n)
		}
	}
}
