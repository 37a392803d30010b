package model

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

// Safetensors format: huggingface/safetensors, README "Format" and the checks
// of its Rust reader: 8 bytes of header length, little-endian; a JSON object of
// at most 100 MB; the tensors' bytes without holes up to the end of the file.
const (
	maxHeader  = 100_000_000
	maxTensors = 1 << 20
)

// dtypes maps safetensors' types to bits per element.
var dtypes = map[string]int64{
	"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8,
	"F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
	"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
	"C64": 64, "I64": 64, "U64": 64, "F64": 64,
}

// Tensor is one tensor of a file.
type Tensor struct {
	Name       string
	Type       string // the format's own name: BF16, Q4_K …
	Elements   int64
	begin, end int64 // bytes, from the start of the data
}

// Header is what a weight file says of itself.
type Header struct {
	Format       string // "safetensors" or "gguf"
	Version      int    // GGUF only
	Architecture string // GGUF's general.architecture
	Name         string // GGUF's general.name
	Split        int64  // GGUF's split.count; 0 when the file stands alone
	Tensors      []Tensor
	Bytes        int64 // of tensor data, padding included
}

// Safetensors reads the header of a file of size bytes. The error says what is
// wrong with it. Memory stays within a few times the header.
func Safetensors(r io.ReaderAt, size int64) (*Header, error) {
	h, err := safetensors(r, size)
	if err != nil {
		return nil, fmt.Errorf("safetensors: %w", err)
	}
	return h, nil
}

func safetensors(r io.ReaderAt, size int64) (*Header, error) {
	var lead [9]byte
	if _, err := r.ReadAt(lead[:], 0); err != nil {
		return nil, fmt.Errorf("a file of %d bytes has no header: %w", size, err)
	}
	n := binary.LittleEndian.Uint64(lead[:8])
	if n < 2 || n > maxHeader || int64(n) > size-8 {
		return nil, fmt.Errorf("a header of %d bytes in a file of %d, want 2 to %d within the file", n, size, maxHeader)
	}
	if lead[8] != '{' {
		return nil, fmt.Errorf("the header begins with %q, want '{'", lead[8])
	}
	h := &Header{Format: "safetensors", Bytes: size - 8 - int64(n)}
	jr := newReader(io.NewSectionReader(r, 8, int64(n)))
	if err := h.parse(jr); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	return h, h.contiguous()
}

func (h *Header) parse(jr reader) error {
	err := jr.object(func(key string) error {
		if key == "__metadata__" {
			return jr.object(func(string) error { _, err := jr.str(); return err })
		}
		if len(h.Tensors) >= maxTensors {
			return fmt.Errorf("more than %d tensors", maxTensors)
		}
		t, err := tensor(jr)
		if err != nil {
			return fmt.Errorf("tensor %.80q: %w", key, err)
		}
		t.Name = key
		h.Tensors = append(h.Tensors, t)
		return nil
	})
	if err != nil {
		return err
	}
	return jr.end()
}

// tensor reads {"dtype":…,"shape":[…],"data_offsets":[begin,end]}.
func tensor(jr reader) (t Tensor, err error) {
	var shape, offsets []int64
	var has int
	err = jr.object(func(key string) (err error) {
		has++
		switch key {
		case "dtype":
			t.Type, err = jr.str()
		case "shape":
			shape, err = jr.numbers()
		case "data_offsets":
			offsets, err = jr.numbers()
		default:
			err = fmt.Errorf("unknown field %.80q, want dtype, shape and data_offsets", key)
		}
		return err
	})
	if err != nil {
		return t, err
	}
	bits, ok := dtypes[t.Type]
	if has != 3 || !ok || len(offsets) != 2 {
		return t, fmt.Errorf("dtype %.40q and %d offsets, want a known type, a shape and two offsets", t.Type, len(offsets))
	}
	if t.Elements, ok = product(shape); !ok || t.Elements > math.MaxInt64/64 {
		return t, fmt.Errorf("shape %v is too large", shape)
	}
	t.begin, t.end = offsets[0], offsets[1]
	if b := t.Elements * bits; t.end < t.begin || b%8 != 0 || t.end-t.begin != b/8 {
		return t, fmt.Errorf("offsets %d to %d for %d elements of %d bits", t.begin, t.end, t.Elements, bits)
	}
	return t, nil
}

// product multiplies without overflow.
func product(dims []int64) (int64, bool) {
	n := int64(1)
	for _, d := range dims {
		if d != 0 && n > math.MaxInt64/d {
			return 0, false
		}
		n *= d
	}
	return n, true
}

// contiguous: the tensors fill the data, without holes and overlaps.
func (h *Header) contiguous() error {
	slices.SortStableFunc(h.Tensors, func(a, b Tensor) int {
		if a.begin != b.begin {
			return cmp64(a.begin, b.begin)
		}
		return cmp64(a.end, b.end)
	})
	at := int64(0)
	for _, t := range h.Tensors {
		if t.begin != at {
			return fmt.Errorf("tensor %.80q begins at byte %d of the data, want %d: a hole or an overlap", t.Name, t.begin, at)
		}
		at = t.end
	}
	if at != h.Bytes {
		return fmt.Errorf("the tensors end at byte %d of the data, the file at %d: it is cut off, or has something appended", at, h.Bytes)
	}
	return nil
}

func cmp64(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Index is model.safetensors.index.json: which shard holds which tensor.
type Index struct {
	Total  int64 // metadata.total_size in bytes; 0 when it is not said
	Shards map[string]string
}

// maxIndex bounds a shard index, in bytes.
const maxIndex = 64 << 20

// ParseIndex reads a shard index. Shards may not lie in other folders.
func ParseIndex(b []byte) (Index, error) {
	x := Index{Shards: map[string]string{}}
	if len(b) > maxIndex {
		return x, fmt.Errorf("shard index of %d bytes, want at most %d", len(b), maxIndex)
	}
	jr := newReader(bytes.NewReader(b))
	err := jr.object(func(key string) error {
		switch key {
		case "metadata":
			var m map[string]any
			if err := jr.dec.Decode(&m); err != nil {
				return cutOff(err)
			}
			x.Total = whole(m["total_size"])
			return nil
		case "weight_map":
			return jr.object(func(t string) error { return x.add(jr, t) })
		}
		return fmt.Errorf("unknown field %.80q, want metadata and weight_map", key)
	})
	if err == nil {
		err = jr.end()
	}
	if err == nil && len(x.Shards) == 0 {
		err = errors.New("it names no tensors")
	}
	if err != nil {
		return x, fmt.Errorf("shard index: %w", err)
	}
	return x, nil
}

func (x Index) add(jr reader, tensor string) error {
	shard, err := jr.str()
	if err != nil {
		return err
	}
	if shard == "" || shard == "." || shard == ".." || bytes.ContainsAny([]byte(shard), "/\\\x00") {
		return fmt.Errorf("tensor %.80q lies in %.80q, want a file beside the index", tensor, shard)
	}
	if x.Shards[tensor] = shard; len(x.Shards) > maxTensors {
		return fmt.Errorf("more than %d tensors", maxTensors)
	}
	return nil
}

// whole reads a JSON number as bytes; publishers also write 1.6e10.
func whole(v any) int64 {
	n, ok := v.(interface{ Float64() (float64, error) })
	if !ok {
		return 0
	}
	f, err := n.Float64()
	if err != nil || f < 0 || f > 1<<53 {
		return 0
	}
	return int64(f)
}
