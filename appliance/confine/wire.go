package confine

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

// A message is its length in 8 bytes and a document's fields, one after the
// other: numbers in 8 bytes, texts and lists behind their length, all
// little-endian. It says nothing about itself but its version, so that daemon
// and launcher have to come from one release, which Version sees to. JSON took
// the launcher 0.4 ms a start: a tenth, most of it reflection in a process
// that has just begun.

// maxMessage bounds one message, in bytes. A spec that lists every file of a
// large /usr/bin takes some 100 KiB.
const maxMessage = 4 << 20

// document is a Root or a Spec.
type document interface{ walk(*codec) }

// head is the length of a message's length, in bytes.
const head = 8

// Send writes a *Spec.
func Send(w io.Writer, d document) error {
	b, err := encode(d)
	if err == nil {
		_, err = w.Write(b)
	}
	return err
}

func encode(d document) ([]byte, error) {
	c := &codec{b: make([]byte, head, 8<<10)}
	d.walk(c)
	binary.LittleEndian.PutUint64(c.b, uint64(len(c.b)-head))
	return c.b, c.err
}

// receive reads one message and nothing behind it.
func receive(r io.Reader, d document) error {
	var b [head]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return fmt.Errorf("no message: %w", err)
	}
	return receiveBody(r, binary.LittleEndian.Uint64(b[:]), d)
}

// receiveBody reads what comes behind a message's length.
func receiveBody(r io.Reader, n uint64, d document) error {
	if n > maxMessage {
		return fmt.Errorf("message of %d bytes; want at most %d: do daemon and launcher come from one release?", n, maxMessage)
	}
	b := make([]byte, n)
	if got, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("message ends after %d of %d bytes: %w", got, n, err)
	}
	return decode(b, d)
}

// decode is strict: what is too short, too long or out of range is an error.
func decode(b []byte, d document) error {
	c := &codec{b: b, reads: true}
	d.walk(c)
	if c.err == nil && len(c.b) > 0 {
		c.fail("%d bytes behind the end of the document", len(c.b))
	}
	return c.err
}

// codec carries a document's fields out of it or into it: one walk for both,
// so that they cannot differ.
type codec struct {
	b     []byte // written so far, or left to read
	reads bool
	err   error // the first; nothing happens after it
}

func (c *codec) fail(format string, a ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, a...)
	}
}

// take returns the next n bytes, or zeros behind an error.
func (c *codec) take(n int) []byte {
	if n < 0 || n > len(c.b) {
		c.fail("document ends %d bytes early", n-len(c.b))
	}
	if c.err != nil {
		return make([]byte, min(max(n, 0), 8))
	}
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}

func (c *codec) uint64(p *uint64) {
	if c.reads {
		*p = binary.LittleEndian.Uint64(c.take(8))
		return
	}
	c.b = binary.LittleEndian.AppendUint64(c.b, *p)
}

func (c *codec) int64(p *int64) {
	u := uint64(*p)
	c.uint64(&u)
	*p = int64(u)
}

func (c *codec) int(p *int) {
	n := int64(*p)
	c.int64(&n)
	if *p = int(n); int64(*p) != n || n > math.MaxInt32 || n < math.MinInt32 {
		c.fail("number %d; want one of 32 bits", n)
	}
}

func (c *codec) bool(p *bool) {
	n := uint64(0)
	if *p {
		n = 1
	}
	c.uint64(&n)
	if *p = n == 1; n > 1 {
		c.fail("truth value %d; want 0 or 1", n)
	}
}

// length carries the length of a list of things of at least size bytes each.
func (c *codec) length(have, size int) int {
	n := uint64(have)
	c.uint64(&n)
	if c.reads && (c.err != nil || n > uint64(len(c.b)/size)) {
		c.fail("length %d where %d bytes are left", n, len(c.b))
		return 0
	}
	return int(n)
}

func (c *codec) string(p *string) {
	n := c.length(len(*p), 1)
	if c.reads {
		*p = string(c.take(n))
		return
	}
	c.b = append(c.b, *p...)
}

// list carries every element by do. No elements are nil.
func list[T any](c *codec, p *[]T, size int, do func(*T)) {
	n := c.length(len(*p), size)
	if c.reads {
		*p = nil
		if n > 0 {
			*p = make([]T, n)
		}
	}
	for i := range *p {
		do(&(*p)[i])
	}
}

func (c *codec) strings(p *[]string) { list(c, p, 8, c.string) }

func (c *codec) version(p *int, what string) {
	c.int(p)
	if c.err == nil && *p != Version {
		c.fail("%s has version %d, want %d: launcher and daemon must come from one release", what, *p, Version)
	}
}

func (r *Root) walk(c *codec) {
	c.version(&r.Version, "root")
	c.string(&r.Hostname)
	c.strings(&r.Layers)
	list(c, &r.Binds, 32, func(b *Bind) {
		c.string(&b.Source)
		c.string(&b.Target)
		c.bool(&b.Writable)
		c.bool(&b.Exec)
	})
	c.int64(&r.Scratch)
	c.int64(&r.Shm)
	r.Supervisor.walk(c)
}

func (s *Spec) walk(c *codec) {
	c.version(&s.Version, "spec")
	c.strings(&s.Args)
	c.strings(&s.Env)
	c.string(&s.Dir)
	c.int(&s.UID)
	c.int(&s.GID)
	list(c, &s.Limits, 16, func(l *Limit) {
		c.string(&l.Name)
		c.uint64(&l.Value)
	})
	c.int(&s.Landlock.ABI)
	for _, ps := range []*[]string{&s.Landlock.Read, &s.Landlock.Write, &s.Landlock.Exec, &s.Landlock.Device} {
		c.strings(ps)
	}
	s.Seccomp.walk(c)
	c.strings(&s.Capabilities)
	c.bool(&s.TTY)
}
