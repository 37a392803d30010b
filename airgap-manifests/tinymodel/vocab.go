package tinymodel

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Token kinds of GGUF's tokenizer.ggml.token_type.
const (
	kindNormal  int32 = 1
	kindControl int32 = 3
)

// vocab is the model in memory: the tokens and which one follows which.
type vocab struct {
	tokens []string // as GPT-2 byte-level BPE spells them
	kinds  []int32
	next   []int // the successor of each token
	eos    int
	starts map[string]int // script text → its start token
}

// compile gives every script a start token and a chain of tokens of its own. A
// token is a state of the automaton, so no two chains share one. Texts are
// taken from short to long: a text can then always be cut into new tokens,
// in the worst case a single one, because no earlier token can contain it.
func compile(scripts []Script) (*vocab, error) {
	v := &vocab{starts: map[string]int{}}
	for b := range 256 {
		v.add(spell(string([]byte{byte(b)})), kindNormal)
	}
	v.eos = v.add("<|end|>", kindControl)
	for i := range v.next {
		v.next[i] = v.eos
	}
	scripts = ordered(scripts)
	for _, s := range scripts {
		if _, ok := v.starts[s.Text]; !ok {
			v.starts[s.Text] = v.add(fmt.Sprintf("<|go_%d|>", len(v.starts)), kindControl)
		}
	}
	taken := map[string]bool{}
	for _, t := range v.tokens {
		taken[t] = true
	}
	for _, s := range scripts {
		if start := v.starts[s.Text]; v.next[start] == v.eos { // else its twin has been here
			if err := v.chain(start, s, taken); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}

// chain links start to the tokens of the script's text, and the last to the end.
func (v *vocab) chain(start int, s Script, taken map[string]bool) error {
	if len(s.Text) == 1 { // the byte's own token leads to the end already
		v.next[start] = int(s.Text[0])
		return nil
	}
	parts := cut(words(s.Text), taken)
	if parts == nil {
		return fmt.Errorf("tinymodel: script %q: text %.40q is one of the model's own tokens: change a word", s.Name, s.Text)
	}
	at := start
	for _, p := range parts {
		taken[p] = true
		id := v.add(p, kindNormal)
		v.next[at] = id
		at = id
	}
	return nil
}

// add appends a token whose successor is the end, and returns its number.
func (v *vocab) add(token string, kind int32) int {
	v.tokens = append(v.tokens, token)
	v.kinds = append(v.kinds, kind)
	v.next = append(v.next, v.eos)
	return len(v.tokens) - 1
}

// ordered returns the scripts from short text to long; ties keep a fixed order.
func ordered(scripts []Script) []Script {
	s := slices.Clone(scripts)
	slices.SortStableFunc(s, func(a, b Script) int {
		return cmp.Or(len(a.Text)-len(b.Text), strings.Compare(a.Text, b.Text))
	})
	return s
}

// words cuts text before each space that follows a non-space, so that a
// stream arrives word by word, and spells each piece for the tokenizer.
func words(text string) []string {
	var out []string
	from := 0
	for i := 1; i < len(text); i++ {
		if text[i] == ' ' && text[i-1] != ' ' {
			out = append(out, spell(text[from:i]))
			from = i
		}
	}
	return append(out, spell(text[from:]))
}

// cut joins neighbouring words until every piece is new. Nil: even the whole
// text is taken. Pieces are never empty.
func cut(words []string, taken map[string]bool) []string {
	var out []string
	mine := map[string]bool{}
	fresh := func(s string) bool { return !taken[s] && !mine[s] }
	tok := ""
	for _, w := range words {
		if tok += w; fresh(tok) {
			out, mine[tok], tok = append(out, tok), true, ""
		}
	}
	for tok != "" { // the rest isn't new by itself: take back what stands before it
		if len(out) == 0 {
			return nil
		}
		last := out[len(out)-1]
		out = out[:len(out)-1]
		delete(mine, last)
		if tok = last + tok; fresh(tok) {
			return append(out, tok)
		}
	}
	return out
}

// spell writes bytes in GPT-2's alphabet, where each byte is one printable rune
// (bytes_to_unicode in openai/gpt-2, src/encoder.py).
func spell(s string) string {
	var b strings.Builder
	for i := range len(s) {
		b.WriteRune(byteRunes[s[i]])
	}
	return b.String()
}

// byteRunes maps printable Latin-1 bytes to themselves and the others, in
// order, to the runes from U+0100.
var byteRunes = func() (t [256]rune) {
	n := rune(256)
	for b := range t {
		r := rune(b)
		if r >= '!' && r <= '~' || r >= '¡' && r <= '¬' || r >= '®' && r <= 'ÿ' {
			t[b] = r
			continue
		}
		t[b] = n
		n++
	}
	return t
}()
