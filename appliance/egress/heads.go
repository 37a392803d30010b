package egress

import (
	"bytes"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/clawbox/clawbox/appliance/inspect"
)

// maxHead bounds a request's head, in bytes.
const maxHead = 64 << 10

// heads is a client's HTTP/1 connection on which net/http sees a request's
// head only after inspect.Head has. In between pass as many bytes as the head
// announced. After a head that announces chunks everything passes: such a
// request is its connection's last.
type heads struct {
	net.Conn
	session *session
	refuse  func(error) // told once what was wrong

	buf  []byte // read, not yet passed on
	seen int    // bytes of buf in which no head ends
	pass int64  // bytes that may pass before the next head
	open bool   // everything may
	bad  error
}

func (h *heads) Read(b []byte) (n int, err error) {
	defer caught(&err) // net/http reads ahead in goroutines of its own
	for !h.open && h.pass == 0 {
		if err := h.next(); err != nil {
			return 0, err
		}
	}
	if !h.open && int64(len(b)) > h.pass {
		b = b[:h.pass]
	}
	if len(h.buf) > 0 {
		n = copy(b, h.buf)
		h.buf = h.buf[n:]
	} else {
		n, err = h.Conn.Read(b)
	}
	if !h.open {
		h.pass -= int64(n)
	}
	return n, err
}

// next reads until a head is there, and judges it. It may be called again
// after a time-out.
func (h *heads) next() error {
	if h.bad != nil {
		return h.bad
	}
	n := h.end()
	if n < 0 && len(h.buf) <= maxHead {
		h.buf = slices.Grow(h.buf, 4<<10)
		n, err := h.Conn.Read(h.buf[len(h.buf):cap(h.buf)])
		h.buf = h.buf[:len(h.buf)+n]
		if err == io.EOF && len(h.buf) > 0 && h.end() < 0 {
			return io.ErrUnexpectedEOF
		}
		if n > 0 {
			return nil
		}
		return err
	}
	if n < 0 {
		n = len(h.buf)
	}
	if err := inspect.Head(h.buf[:n]); err != nil {
		h.bad = err
		h.refuse(err)
		return err
	}
	body, chunked := announced(h.buf[:n])
	h.pass, h.open, h.seen = int64(n)+body, chunked, 0
	return nil
}

// end is headEnd of buf. What was looked at is not looked at again: a client
// may send its head in single bytes.
func (h *heads) end() int {
	from := max(0, h.seen-len("\n\r\n"))
	n := headEnd(h.buf[from:])
	if n < 0 {
		h.seen = len(h.buf)
		return n
	}
	return from + n
}

// headEnd is where a head ends in anybody's reading, -1 if it does not yet.
func headEnd(b []byte) int {
	for i := 0; ; {
		n := bytes.IndexByte(b[i:], '\n')
		if n < 0 {
			return -1
		}
		i += n + 1
		if rest := b[i:]; len(rest) > 0 && rest[0] == '\n' {
			return i + 1
		} else if bytes.HasPrefix(rest, []byte("\r\n")) {
			return i + 2
		}
	}
}

// announced is what a head that inspect.Head has passed says about its body.
func announced(head []byte) (length int64, chunked bool) {
	for l := range strings.SplitSeq(string(head), "\r\n") {
		name, v, _ := strings.Cut(l, ":")
		switch {
		case strings.EqualFold(name, "Content-Length"):
			length, _ = strconv.ParseInt(strings.Trim(v, " \t"), 10, 64)
		case strings.EqualFold(name, "Transfer-Encoding"):
			chunked = true
		}
	}
	return length, chunked
}

// CloseWrite ends the sending half, so that an answer arrives whole.
func (w *waited) CloseWrite() error {
	if c, ok := w.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}
