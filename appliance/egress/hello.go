package egress

import (
	"encoding/binary"
	"errors"
)

// TLS numbers of RFC 8446, RFC 6066 and RFC 9849.
const (
	recordHandshake   = 22
	messageHello      = 1
	extensionName     = 0
	extensionECH      = 0xfe0d // encrypted_client_hello, RFC 9849
	nameTypeHost      = 0
	maxHello          = 16 << 10 // bytes
	recordHeaderBytes = 5
)

var errHello = errors.New("the TLS ClientHello is not well formed")

// greet is what a ClientHello says in clear.
type greet struct {
	name string // server name, "" if it has none
	ech  bool   // it may hide another hello with another name
}

// clientHello reads the ClientHello at the beginning of b; not done while
// bytes are missing.
func clientHello(b []byte) (g greet, done bool, err error) {
	msg, done, err := handshake(b)
	if !done || err != nil {
		return greet{}, done, err
	}
	g, ok := readHello(msg)
	if !ok {
		return greet{}, true, errHello
	}
	return g, true, nil
}

// handshake joins the first handshake message out of as many records as it takes.
func handshake(b []byte) (msg []byte, done bool, err error) {
	for len(b) >= recordHeaderBytes {
		n := int(b[3])<<8 | int(b[4])
		if b[0] != recordHandshake || b[1] != 3 || n == 0 || n > 1<<14 {
			return nil, true, errHello
		}
		part := b[recordHeaderBytes:min(len(b), recordHeaderBytes+n)]
		msg = append(msg, part...)
		if len(msg) >= 4 {
			want := 4 + int(msg[1])<<16 + int(msg[2])<<8 + int(msg[3])
			if msg[0] != messageHello || want > maxHello {
				return nil, true, errHello
			}
			if len(msg) >= want {
				return msg[4:want], true, nil
			}
		}
		if len(part) < n {
			return nil, false, nil
		}
		b = b[recordHeaderBytes+n:]
	}
	return nil, false, nil
}

// vec reads TLS vectors: a length of size bytes, then as many.
type vec []byte

func (c *vec) bytes(n int) ([]byte, bool) {
	if n > len(*c) {
		return nil, false
	}
	b := (*c)[:n]
	*c = (*c)[n:]
	return b, true
}

func (c *vec) vector(size int) (vec, bool) {
	l, ok := c.bytes(size)
	if !ok {
		return nil, false
	}
	n := 0
	for _, x := range l {
		n = n<<8 | int(x)
	}
	return c.bytes(n)
}

// readHello reads a ClientHello strictly: every length must fit exactly, and
// the server_name extension may stand there once, with one name.
func readHello(hello []byte) (g greet, ok bool) {
	c := vec(hello)
	if _, ok := c.bytes(2 + 32); !ok { // version, random
		return g, false
	}
	for _, size := range []int{1, 2, 1} { // session id, cipher suites, compression methods
		if _, ok := c.vector(size); !ok {
			return g, false
		}
	}
	if len(c) == 0 {
		return g, true // TLS without extensions
	}
	exts, ok := c.vector(2)
	if !ok || len(c) > 0 {
		return g, false
	}
	for seen := false; len(exts) > 0; {
		typ, ok1 := exts.bytes(2)
		body, ok2 := exts.vector(2)
		if !ok1 || !ok2 {
			return g, false
		}
		switch binary.BigEndian.Uint16(typ) {
		case extensionECH:
			g.ech = true
		case extensionName:
			if seen {
				return g, false
			}
			if g.name, seen = oneName(body); !seen {
				return g, false
			}
		}
	}
	return g, true
}

// oneName reads the body of the server_name extension.
func oneName(body vec) (string, bool) {
	list, ok := body.vector(2)
	if !ok || len(body) > 0 {
		return "", false
	}
	typ, ok1 := list.bytes(1)
	name, ok2 := list.vector(2)
	if !ok1 || !ok2 || len(list) > 0 || typ[0] != nameTypeHost || len(name) == 0 {
		return "", false
	}
	return string(name), true
}
