package control

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// FrameType says what a frame of an exec stream carries.
type FrameType byte

// The frames of an exec stream. A frame is its type (1 byte), the length of
// its payload (4 bytes, big endian, at most MaxFrame) and the payload.
const (
	FrameStdin    FrameType = iota // client to appliance: bytes for the program
	FrameStdinEOF                  // client to appliance: no more input
	FrameResize                    // client to appliance: rows and columns, 2 bytes each
	FrameStdout                    // appliance to client
	FrameStderr                    // appliance to client
	FrameExit                      // appliance to client, last: exit status, 4 bytes
	FrameError                     // appliance to client, last: why nothing ran
)

// MaxFrame bounds a payload, in bytes.
const MaxFrame = 64 << 10

// FrameWriter writes frames; it is safe for concurrent use.
type FrameWriter struct {
	mu sync.Mutex
	w  io.Writer
}

// NewFrameWriter returns a FrameWriter on w.
func NewFrameWriter(w io.Writer) *FrameWriter { return &FrameWriter{w: w} }

// Send writes one frame of at most MaxFrame bytes.
func (f *FrameWriter) Send(t FrameType, p []byte) error {
	if len(p) > MaxFrame {
		return fmt.Errorf("frame of %d bytes, at most %d fit", len(p), MaxFrame)
	}
	b := make([]byte, 5+len(p))
	b[0] = byte(t)
	binary.BigEndian.PutUint32(b[1:], uint32(len(p)))
	copy(b[5:], p)
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.w.Write(b)
	return err
}

// Stream returns a writer that sends all it is given as frames of type t.
func (f *FrameWriter) Stream(t FrameType) io.Writer { return frameStream{f, t} }

type frameStream struct {
	f *FrameWriter
	t FrameType
}

func (s frameStream) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		end := min(n+MaxFrame, len(p))
		if err := s.f.Send(s.t, p[n:end]); err != nil {
			return n, err
		}
		n = end
	}
	return n, nil
}

// ReadFrame reads one frame.
func ReadFrame(r io.Reader) (FrameType, []byte, error) {
	var h [5]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("frame announces %d bytes, at most %d are taken", n, MaxFrame)
	}
	p := make([]byte, n)
	_, err := io.ReadFull(r, p)
	return FrameType(h[0]), p, err
}
