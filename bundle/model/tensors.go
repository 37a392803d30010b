package model

import (
	"bytes"
	"io"
)

// SniffLen is how many first bytes MayBeWeights looks at.
const SniffLen = 16

// MayBeWeights says whether a file that begins so may be safetensors or GGUF.
func MayBeWeights(head []byte) bool {
	return bytes.HasPrefix(head, []byte("GGUF")) || len(head) > 8 && bytes.Equal(head[4:9], []byte("\x00\x00\x00\x00{"))
}

// TensorsAt returns where in a safetensors or GGUF file of size bytes the values
// of tensors begin; ok is false for any other file, and for one whose header
// doesn't account for every byte that follows it.
func TensorsAt(r io.ReaderAt, size int64) (at int64, ok bool) {
	head := make([]byte, min(size, SniffLen))
	if _, err := r.ReadAt(head, 0); err != nil && err != io.EOF || !MayBeWeights(head) {
		return 0, false
	}
	parse := Safetensors
	if head[0] == 'G' {
		parse = GGUF
	}
	h, err := parse(r, size)
	if err != nil || len(h.Tensors) == 0 {
		return 0, false
	}
	return size - h.Bytes, true
}
