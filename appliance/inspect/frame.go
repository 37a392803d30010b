package inspect

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"io"
	"unicode/utf8"
)

// Opcodes of RFC 6455, 5.2.
const (
	opContinue = 0x0
	opText     = 0x1
	opBinary   = 0x2
	opClose    = 0x8
	opPing     = 0x9
	opPong     = 0xA
)

// Close codes of RFC 6455, 7.4.1.
const (
	closeAway     = 1001
	closeProtocol = 1002
	closeUTF8     = 1007
	closePolicy   = 1008
	closeTooBig   = 1009
	closeLater    = 1013 // IANA's registry of close codes
)

// closing is an error that ends a WebSocket with a code.
type closing struct {
	*Refusal
	code uint16
}

func (c *closing) Unwrap() error { return c.Refusal }

func breach(format string, args ...any) error {
	return &closing{refuse(BadFrame, "", format, args...), closeProtocol}
}

// frame is a frame's header.
type frame struct {
	fin  bool
	op   byte
	mask *[4]byte // nil: not masked
	n    int64    // bytes of payload to come
}

func (f frame) control() bool { return f.op >= opClose }

// reason is where in a payload text may begin: behind a close frame's code.
func (f frame) reason() int {
	if f.op == opClose {
		return 2
	}
	return 0
}

// readFrame reads a header: no reserved bits (no extension was agreed on),
// known opcodes, the shortest form of the length.
func readFrame(r *bufio.Reader) (f frame, err error) {
	var h [8]byte
	if _, err = io.ReadFull(r, h[:2]); err != nil {
		return f, err
	}
	masked, size := h[1]&0x80 != 0, 0
	f.fin, f.op, f.n = h[0]&0x80 != 0, h[0]&0xf, int64(h[1]&0x7f)
	switch {
	case h[0]&0x70 != 0:
		return f, breach("got a frame with reserved bits %#x, and no extension was agreed on", h[0]&0x70)
	case f.op > opBinary && f.op < opClose || f.op > opPong:
		return f, breach("got a frame with opcode %d", f.op)
	case f.control() && (!f.fin || f.n > 125):
		return f, breach("got a control frame in parts or of more than 125 bytes")
	case f.n == 126:
		size = 2
	case f.n == 127:
		size = 8
	}
	if size > 0 {
		if f.n, err = readLength(r, h[:size]); err != nil {
			return f, err
		}
	}
	if masked {
		f.mask = new([4]byte)
		_, err = io.ReadFull(r, f.mask[:])
	}
	return f, wholly(err)
}

func readLength(r *bufio.Reader, b []byte) (int64, error) {
	if _, err := io.ReadFull(r, b); err != nil {
		return 0, wholly(err)
	}
	if len(b) == 2 {
		n := int64(binary.BigEndian.Uint16(b))
		if n < 126 {
			return 0, breach("got a length of %d in a form for longer ones", n)
		}
		return n, nil
	}
	n := binary.BigEndian.Uint64(b)
	if n < 1<<16 || n > 1<<62 {
		return 0, breach("got a length of %d in 8 bytes", n)
	}
	return int64(n), nil
}

// wholly: an end inside a frame is not an end.
func wholly(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// payload appends what is left of a frame to b, unmasked. Memory grows with
// what arrives, not with what a header announces.
func (f frame) payload(r *bufio.Reader, b []byte) ([]byte, error) {
	from := len(b)
	for left := f.n; left > 0; {
		n := min(left, 32<<10)
		at := len(b)
		b = append(b, make([]byte, n)...)
		if _, err := io.ReadFull(r, b[at:]); err != nil {
			return b, wholly(err)
		}
		left -= n
	}
	if f.mask != nil {
		apply(*f.mask, b[from:])
	}
	return b, nil
}

func apply(mask [4]byte, b []byte) {
	for i := range b {
		b[i] ^= mask[i&3]
	}
}

// appendFrame writes a frame; masked, as clients have to, with a fresh mask.
func appendFrame(out []byte, f frame, payload []byte, masked bool) []byte {
	first, bit := f.op, byte(0)
	if f.fin {
		first |= 0x80
	}
	if masked {
		bit = 0x80
	}
	switch n := len(payload); {
	case n < 126:
		out = append(out, first, bit|byte(n))
	case n < 1<<16:
		out = binary.BigEndian.AppendUint16(append(out, first, bit|126), uint16(n))
	default:
		out = binary.BigEndian.AppendUint64(append(out, first, bit|127), uint64(n))
	}
	if !masked {
		return append(out, payload...)
	}
	var mask [4]byte
	_, _ = rand.Read(mask[:]) // never fails
	out = append(out, mask[:]...)
	at := len(out)
	out = append(out, payload...)
	apply(mask, out[at:])
	return out
}

// closeBody is a close frame's payload: code and reason, cut to fit.
func closeBody(code uint16, why string) []byte {
	for len(why) > 123 || !utf8.ValidString(why) {
		why = why[:len(why)-1]
	}
	return append(binary.BigEndian.AppendUint16(nil, code), why...)
}

// checkClose wants an empty payload, or a code that may be sent (RFC 6455,
// 7.4) and a reason in UTF-8.
func checkClose(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if len(b) == 1 || !utf8.Valid(b[2:]) {
		return breach("got a close frame without code or with a reason that is not UTF-8")
	}
	switch c := binary.BigEndian.Uint16(b); {
	case c >= 3000 && c < 5000, c >= 1000 && c <= 1003, c >= 1007 && c <= 1014:
		return nil
	default:
		return breach("got close code %d", c)
	}
}
