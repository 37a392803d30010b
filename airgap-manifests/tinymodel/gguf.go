package tinymodel

import (
	"bufio"
	"encoding/binary"
	"io"
	"math"
)

// The shape of the network around the table. One block of one head; only
// the embedding is wide. rope.dimension_count must equal the head's width.
const (
	headDim   = 64
	ffnDim    = 64
	align     = 32 // of tensor data, GGUF's default
	logit     = 4
	maxTokens = 8192 // of context; params.json asks for fewer
)

// GGUF value types (ggml/docs/gguf.md, "gguf_metadata_value_type").
const (
	typeUint32  uint32 = 4
	typeInt32   uint32 = 5
	typeFloat32 uint32 = 6
	typeBool    uint32 = 7
	typeString  uint32 = 8
	typeArray   uint32 = 9
)

// tensor is a matrix of rows × cols float32 whose rows are made when written. A
// vector has rows 0 (one dimension in the header).
type tensor struct {
	name       string
	cols, rows int
	fill       func(row int, into []float32) // into is zeroed; nil leaves it so
}

func (t tensor) size() int { return max(t.rows, 1) * t.cols * 4 }

// writeGGUF writes v as a llama-architecture model, GGUF version 3, float32.
func writeGGUF(out io.Writer, v *vocab) error {
	w := &writer{w: bufio.NewWriterSize(out, 1<<16)}
	n := roundUp(len(v.tokens), 64)
	ts, kv := tensors(v, n), metadata(v, n)
	w.raw([]byte("GGUF"))
	w.num(uint32(3), uint64(len(ts)), uint64(len(kv)))
	for _, e := range kv {
		w.str(e.key)
		w.value(e.val)
	}
	off := 0
	for _, t := range ts {
		w.info(t, off)
		off += roundUp(t.size(), align)
	}
	w.pad()
	for _, t := range ts {
		w.data(t)
	}
	if w.err != nil {
		return w.err
	}
	return w.w.Flush()
}

// tensors lists the network for n = len(tokens) rounded up. Weights left nil are zero: the
// block adds nothing to the residual stream.
func tensors(v *vocab, n int) []tensor {
	ones := func(_ int, into []float32) {
		for i := range into {
			into[i] = 1
		}
	}
	before := make(map[int][]int) // successor → the tokens it follows
	for i, s := range v.next {
		before[s] = append(before[s], i)
	}
	tokens := len(v.tokens)
	return []tensor{
		{"token_embd.weight", n, tokens, func(row int, into []float32) { into[row] = 1 }},
		{"output_norm.weight", n, 0, ones},
		{"output.weight", n, tokens, func(row int, into []float32) {
			for _, i := range before[row] {
				into[i] = logit
			}
		}},
		{"blk.0.attn_norm.weight", n, 0, ones},
		{"blk.0.attn_q.weight", n, headDim, nil},
		{"blk.0.attn_k.weight", n, headDim, nil},
		{"blk.0.attn_v.weight", n, headDim, nil},
		{"blk.0.attn_output.weight", headDim, n, nil},
		{"blk.0.ffn_norm.weight", n, 0, ones},
		{"blk.0.ffn_gate.weight", n, ffnDim, nil},
		{"blk.0.ffn_up.weight", n, ffnDim, nil},
		{"blk.0.ffn_down.weight", ffnDim, n, nil},
	}
}

// entry is one metadata key and its value, in the order written.
type entry struct {
	key string
	val any
}

func metadata(v *vocab, n int) []entry {
	return []entry{
		{"general.architecture", "llama"},
		{"general.name", "clawbox tiny scripted model"},
		{"general.file_type", uint32(0)}, // all F32
		{"llama.block_count", uint32(1)},
		{"llama.context_length", uint32(maxTokens)},
		{"llama.embedding_length", uint32(n)},
		{"llama.feed_forward_length", uint32(ffnDim)},
		{"llama.attention.head_count", uint32(1)},
		{"llama.attention.head_count_kv", uint32(1)},
		{"llama.attention.key_length", uint32(headDim)},
		{"llama.attention.value_length", uint32(headDim)},
		{"llama.attention.layer_norm_rms_epsilon", float32(1e-6)},
		{"llama.rope.dimension_count", uint32(headDim)},
		{"llama.vocab_size", uint32(len(v.tokens))},
		{"tokenizer.ggml.model", "gpt2"},
		{"tokenizer.ggml.pre", "default"},
		{"tokenizer.ggml.tokens", v.tokens},
		{"tokenizer.ggml.token_type", v.kinds},
		// No merge ever applies, but llama.cpp refuses a BPE vocabulary without the key.
		{"tokenizer.ggml.merges", []string{}},
		{"tokenizer.ggml.bos_token_id", uint32(v.eos)},
		{"tokenizer.ggml.eos_token_id", uint32(v.eos)},
		{"tokenizer.ggml.add_bos_token", false},
	}
}

// writer keeps the first error and the offset, so that the layout above reads as a list.
type writer struct {
	w   *bufio.Writer
	n   int
	err error
}

func (w *writer) raw(b []byte) {
	if w.err == nil {
		_, w.err = w.w.Write(b)
		w.n += len(b)
	}
}

// num writes fixed-size numbers little-endian.
func (w *writer) num(vals ...any) {
	for _, v := range vals {
		b, err := binary.Append(nil, binary.LittleEndian, v)
		if err != nil {
			panic(err) // a type that this file doesn't write
		}
		w.raw(b)
	}
}

func (w *writer) str(s string) {
	w.num(uint64(len(s)))
	w.raw([]byte(s))
}

func (w *writer) value(v any) {
	switch v := v.(type) {
	case uint32:
		w.num(typeUint32, v)
	case float32:
		w.num(typeFloat32, v)
	case bool:
		w.num(typeBool, v)
	case string:
		w.num(typeString)
		w.str(v)
	case []int32:
		w.num(typeArray, typeInt32, uint64(len(v)), v)
	case []string:
		w.num(typeArray, typeString, uint64(len(v)))
		for _, s := range v {
			w.str(s)
		}
	default:
		panic("tinymodel: no GGUF type for this value")
	}
}

// info writes the tensor's header; dimensions go from the innermost outwards.
func (w *writer) info(t tensor, off int) {
	w.str(t.name)
	if t.rows == 0 {
		w.num(uint32(1), uint64(t.cols))
	} else {
		w.num(uint32(2), uint64(t.cols), uint64(t.rows))
	}
	w.num(uint32(0), uint64(off)) // type F32
}

func (w *writer) data(t tensor) {
	row, buf := make([]float32, t.cols), make([]byte, 0, t.cols*4)
	for r := range max(t.rows, 1) {
		clear(row)
		if t.fill != nil {
			t.fill(r, row)
		}
		buf = buf[:0]
		for _, f := range row {
			buf = binary.LittleEndian.AppendUint32(buf, math.Float32bits(f))
		}
		w.raw(buf)
	}
	w.pad()
}

func (w *writer) pad() { w.raw(make([]byte, roundUp(w.n, align)-w.n)) }

func roundUp(n, to int) int { return (n + to - 1) / to * to }
