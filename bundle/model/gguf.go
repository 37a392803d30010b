package model

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"unicode/utf8"
)

// GGUF: ggml/docs/gguf.md, versions 2 and 3, little-endian. Bounds of ours:
// strings of 1 MiB (a chat template is some 10 KB), 2^24 elements in an array
// (a vocabulary is some 10^5), and all metadata within 256 MiB.
const (
	maxText    = 1 << 20
	maxArray   = 1 << 24
	maxKeys    = 1 << 16
	maxDepth   = 4
	maxMeta    = 256 << 20
	maxDims    = 4
	defaultPad = 32
)

// ggufSizes are the bytes of GGUF's scalar value types, by number; strings (8)
// and arrays (9) are read otherwise.
var ggufSizes = [...]int64{1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8}

const (
	ggufUint32 = 4
	ggufString = 8
	ggufArray  = 9
)

// ggmlTypes are the tensor types of ggml.h and the sizes that ggml-common.h
// asserts: elements per block, bytes per block.
var ggmlTypes = map[uint32]struct {
	name         string
	elems, bytes int64
}{
	0: {"F32", 1, 4}, 1: {"F16", 1, 2}, 2: {"Q4_0", 32, 18}, 3: {"Q4_1", 32, 20}, 6: {"Q5_0", 32, 22},
	7: {"Q5_1", 32, 24}, 8: {"Q8_0", 32, 34}, 9: {"Q8_1", 32, 36}, 10: {"Q2_K", 256, 84}, 11: {"Q3_K", 256, 110},
	12: {"Q4_K", 256, 144}, 13: {"Q5_K", 256, 176}, 14: {"Q6_K", 256, 210}, 15: {"Q8_K", 256, 292},
	16: {"IQ2_XXS", 256, 66}, 17: {"IQ2_XS", 256, 74}, 18: {"IQ3_XXS", 256, 98}, 19: {"IQ1_S", 256, 50},
	20: {"IQ4_NL", 32, 18}, 21: {"IQ3_S", 256, 110}, 22: {"IQ2_S", 256, 82}, 23: {"IQ4_XS", 256, 136},
	24: {"I8", 1, 1}, 25: {"I16", 1, 2}, 26: {"I32", 1, 4}, 27: {"I64", 1, 8}, 28: {"F64", 1, 8},
	29: {"IQ1_M", 256, 56}, 30: {"BF16", 1, 2}, 34: {"TQ1_0", 256, 54}, 35: {"TQ2_0", 256, 66}, 39: {"MXFP4", 32, 17},
}

// GGUF reads the header of a file of size bytes, in memory bounded by the names
// of its tensors: metadata is read past, but for a few keys.
func GGUF(r io.ReaderAt, size int64) (*Header, error) {
	s := io.NewSectionReader(r, 0, min(size, maxMeta))
	p := &ggufParser{in: bufio.NewReaderSize(s, 1<<16), size: size, pad: defaultPad, h: &Header{Format: "gguf"}}
	p.run()
	if p.err != nil {
		return nil, fmt.Errorf("gguf: at byte %d: %w", p.at, p.err)
	}
	return p.h, nil
}

// ggufParser keeps the first error, so that the layout reads as a list.
type ggufParser struct {
	in   *bufio.Reader
	at   int64
	size int64
	pad  int64
	h    *Header
	err  error
}

func (p *ggufParser) run() {
	if magic := p.bytes(4); p.err == nil && string(magic) != "GGUF" {
		p.fail("the file begins with %q, want GGUF", magic)
	}
	v := p.u32()
	if p.err == nil && v != 2 && v != 3 {
		p.fail("version %d, want 2 or 3, little-endian", v)
	}
	p.h.Version = int(v)
	tensors, keys := p.u64(), p.u64()
	if tensors > maxTensors || keys > maxKeys {
		p.fail("%d tensors and %d keys, want at most %d and %d", tensors, keys, maxTensors, maxKeys)
	}
	seen := map[string]bool{}
	for i := uint64(0); i < keys && p.err == nil; i++ {
		p.pair(seen)
	}
	clear(seen)
	for i := uint64(0); i < tensors && p.err == nil; i++ {
		p.tensor(seen)
	}
	p.data()
}

func (p *ggufParser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
}

// bytes reads n bytes, which the caller has bounded.
func (p *ggufParser) bytes(n int64) []byte {
	if p.err != nil {
		return nil
	}
	if n > p.size-p.at {
		p.fail("%d bytes are wanted, the file has %d left", n, p.size-p.at)
		return nil
	}
	b := make([]byte, n)
	k, err := io.ReadFull(p.in, b)
	p.at += int64(k)
	p.read(err)
	return b
}

// skip passes over n bytes.
func (p *ggufParser) skip(n int64) {
	for p.err == nil && n > 0 {
		k, err := p.in.Discard(int(min(n, 1<<20)))
		p.at += int64(k)
		n -= int64(k)
		p.read(err)
	}
}

func (p *ggufParser) read(err error) {
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("the header is cut off, or longer than %d bytes", maxMeta)
		}
		p.fail("%w", err)
	}
}

func (p *ggufParser) u32() uint32 {
	if b := p.bytes(4); p.err == nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (p *ggufParser) u64() uint64 {
	if b := p.bytes(8); p.err == nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// text reads a string; unless keep, its bytes are passed over.
func (p *ggufParser) text(keep bool) string {
	n := p.u64()
	if n > maxText {
		p.fail("a string of %d bytes, want at most %d", n, maxText)
	}
	if p.err != nil {
		return ""
	}
	if !keep {
		p.skip(int64(n))
		return ""
	}
	s := string(p.bytes(int64(n)))
	if p.err == nil && !utf8.ValidString(s) {
		p.fail("the string %.80q is not UTF-8", s)
	}
	return s
}

// pair reads one key and its value.
func (p *ggufParser) pair(seen map[string]bool) {
	key := p.text(true)
	if p.err == nil && (key == "" || len(key) > maxString || seen[key]) {
		p.fail("key %.80q is empty, too long, or there twice", key)
	}
	seen[key] = true
	kind := p.u32()
	switch {
	case p.err != nil:
	case kind == ggufString && (key == "general.architecture" || key == "general.name"):
		p.named(key, p.text(true))
	case kind == ggufUint32 && key == "general.alignment":
		p.pad = int64(p.u32())
		if p.pad < 8 || p.pad > 1<<20 || p.pad&(p.pad-1) != 0 {
			p.fail("general.alignment is %d, want a power of two from 8 to 1 MiB", p.pad)
		}
	case key == "general.architecture" || key == "general.alignment":
		p.fail("%s is of value type %d, want a string and a uint32", key, kind)
	case kind == 2 && key == "split.count":
		if b := p.bytes(2); p.err == nil {
			p.h.Split = int64(binary.LittleEndian.Uint16(b))
		}
	default:
		p.value(kind, 0)
	}
}

func (p *ggufParser) named(key, s string) {
	if key == "general.name" {
		p.h.Name = s
		return
	}
	p.h.Architecture = s
}

// value passes over a value.
func (p *ggufParser) value(kind uint32, depth int) {
	switch {
	case kind == ggufString:
		p.text(false)
	case kind == ggufArray:
		p.array(depth)
	case int(kind) < len(ggufSizes):
		p.skip(ggufSizes[kind])
	default:
		p.fail("value type %d, want 0 to %d", kind, len(ggufSizes)-1)
	}
}

func (p *ggufParser) array(depth int) {
	kind, n := p.u32(), p.u64()
	switch {
	case p.err != nil:
	case n > maxArray || depth >= maxDepth:
		p.fail("an array of %d elements, %d deep, want at most %d and %d", n, depth, maxArray, maxDepth)
	case int(kind) < len(ggufSizes) && ggufSizes[kind] > 0:
		p.skip(int64(n) * ggufSizes[kind])
	default:
		for i := uint64(0); i < n && p.err == nil; i++ {
			p.value(kind, depth+1)
		}
	}
}

// tensor reads one tensor's description.
func (p *ggufParser) tensor(seen map[string]bool) {
	t := Tensor{Name: p.text(true)}
	if p.err == nil && (t.Name == "" || len(t.Name) > maxString || seen[t.Name]) {
		p.fail("tensor %.80q: the name is empty, too long, or there twice", t.Name)
	}
	seen[t.Name] = true
	n := p.u32()
	if n > maxDims {
		p.fail("tensor %.80q has %d dimensions, want at most %d", t.Name, n, maxDims)
	}
	var dims []int64
	for i := uint32(0); i < n && p.err == nil; i++ {
		d := p.u64()
		if d > math.MaxInt64 {
			p.fail("tensor %.80q has a dimension of %d", t.Name, d)
			return
		}
		dims = append(dims, int64(d))
	}
	kind, off := p.u32(), p.u64()
	if p.err == nil {
		p.place(t, dims, kind, off)
	}
}

// place works out where the tensor's bytes lie.
func (p *ggufParser) place(t Tensor, dims []int64, kind uint32, off uint64) {
	g, known := ggmlTypes[kind]
	var ok bool
	t.Elements, ok = product(dims)
	switch {
	case !known:
		p.fail("tensor %.80q is of type %d, which this version doesn't know", t.Name, kind)
	case !ok || t.Elements > math.MaxInt64/512 || len(dims) > 0 && dims[0]%g.elems != 0:
		p.fail("tensor %.80q: dimensions %v of %s: too large, or rows that are no whole blocks of %d", t.Name, dims, g.name, g.elems)
	case off > uint64(p.size) || int64(off)%p.pad != 0:
		p.fail("tensor %.80q begins at byte %d of the data, want a multiple of %d within the file", t.Name, off, p.pad)
	default:
		t.Type, t.begin = g.name, int64(off)
		t.end = t.begin + t.Elements/g.elems*g.bytes
		p.h.Tensors = append(p.h.Tensors, t)
	}
}

// data holds the tensors against the rest of the file: one after the other,
// each padded, and no more than padding after the last.
func (p *ggufParser) data() {
	if p.err != nil {
		return
	}
	start := roundUp(p.at, p.pad)
	p.h.Bytes = p.size - start
	if len(p.h.Tensors) == 0 {
		if p.size > start {
			p.fail("%d bytes follow a header without tensors", p.size-start)
		}
		p.h.Bytes = 0
		return
	}
	at := int64(0)
	for _, t := range p.h.Tensors {
		if t.begin != at {
			p.fail("tensor %.80q begins at byte %d of the data, want %d: a hole or an overlap", t.Name, t.begin, at)
			return
		}
		at = roundUp(t.end, p.pad)
	}
	last := p.h.Tensors[len(p.h.Tensors)-1]
	if end := start + last.end; p.size < end || p.size > roundUp(end, p.pad) {
		p.fail("the tensors end at byte %d, the file at %d: it is cut off, or has something appended", end, p.size)
	}
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }
