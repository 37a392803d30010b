package service

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Bounds of what a peer may send.
const (
	MaxBody   = 8 << 20 // bytes of a frame's body
	MaxFiles  = 16      // descriptors of a frame
	maxMethod = 64      // bytes of a method's name
)

// Kinds of frames.
const (
	kindCall   = 1
	kindAnswer = 2
	kindError  = 3
)

// head is the fixed part of a frame: kind, number of descriptors, length of
// the method, id, length of the body; little-endian. Method and body follow.
const head = 1 + 1 + 2 + 8 + 4

// frame is one message.
type frame struct {
	kind   uint8
	files  uint8
	id     uint64
	method string
	body   []byte
}

// errFrame is what every malformed frame is.
var errFrame = errors.New("malformed frame")

// append encodes f.
func (f *frame) append(b []byte) ([]byte, error) {
	if len(f.body) > MaxBody || len(f.method) > maxMethod || f.files > MaxFiles {
		return b, fmt.Errorf("%s: message of %d bytes and %d descriptors; at most %d and %d may be sent", f.method, len(f.body), f.files, MaxBody, MaxFiles)
	}
	b = append(b, f.kind, f.files)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(f.method)))
	b = binary.LittleEndian.AppendUint64(b, f.id)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.body)))
	return append(append(b, f.method...), f.body...), nil
}

// readFrame reads one frame and refuses what no honest peer sends. io.EOF
// means an end between two frames. Memory is taken as bytes arrive, not as a
// head announces them.
func readFrame(r io.Reader) (frame, error) {
	var h [head]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return frame{}, err
	}
	f := frame{kind: h[0], files: h[1], id: binary.LittleEndian.Uint64(h[4:])}
	nm, nb := int(binary.LittleEndian.Uint16(h[2:])), int64(binary.LittleEndian.Uint32(h[12:]))
	if f.kind < kindCall || f.kind > kindError || f.files > MaxFiles || nm > maxMethod || nb > MaxBody || (nm > 0) != (f.kind == kindCall) {
		return frame{}, fmt.Errorf("%w: kind %d, %d descriptors, method of %d bytes, body of %d", errFrame, f.kind, f.files, nm, nb)
	}
	m := make([]byte, nm)
	if _, err := io.ReadFull(r, m); err != nil {
		return frame{}, cut(err)
	}
	f.method = string(m)
	var err error
	if f.body, err = readBody(r, nb); err != nil {
		return frame{}, cut(err)
	}
	return f, nil
}

// readBody grows with what comes, beyond a first 64 KiB.
func readBody(r io.Reader, n int64) ([]byte, error) {
	const step = 64 << 10
	b := make([]byte, 0, min(n, step))
	for int64(len(b)) < n {
		at := len(b)
		more := int(min(n-int64(at), int64(max(at, step))))
		b = append(b, make([]byte, more)...)
		if _, err := io.ReadFull(r, b[at:]); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// cut makes an end in the middle of a frame an error of its own.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
