package inspect

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/clawbox/clawbox/policies"
)

// Socket says how Frames treats a WebSocket.
type Socket struct {
	Handshake  policies.Message // the message that Request gave for the handshake
	MaxMessage int              // bytes of a client's message; 0: 1 MiB
	// Ask is called for every message that the client completes, in order and
	// never twice at once. It may block while an operator decides, but not
	// longer than ctx: that ends when a side is gone. Its error ends the
	// connection with close code 1008, and its text is the reason.
	Ask func(ctx context.Context, m policies.Message) error
	// Room is asked for the bytes of each of the client's frames before they
	// are read, and gets them back after the message; nil: there is enough.
	Room Room
	// Mask hides what the server's frames must not show, also where it is spread
	// over the frames of a message, and in control frames; nil: nothing.
	Mask *Masker
}

// Room is memory that several connections share.
type Room interface {
	TryAcquire(n int64) bool
	Release(n int64)
}

const (
	defaultMessage = 1 << 20
	chunk          = 32 << 10        // of a server's frame carried at once
	linger         = 5 * time.Second // for the other side's close frame
	parting        = time.Second     // for writing ours to a peer that does not read
)

// Frames carries a WebSocket between a client and a server (RFC 6455) until
// one of them closes it, and closes both. Messages of the client are read
// whole, judged, and sent on in one frame; what the server sends is checked for
// form and passes as it comes. Control frames pass between, but carry nothing of
// the client's to the server: see beat. Both ends are read after their handshakes.
//
// A panic, of Ask too, is the caller's, after both ends were closed.
//
// The error is nil after an orderly end and when a side hangs up between
// frames; a *Refusal says what a side did wrong; what Ask returned is wrapped.
// The end of ctx ends the connection.
func Frames(ctx context.Context, client, server io.ReadWriteCloser, s Socket) error {
	if s.MaxMessage <= 0 {
		s.MaxMessage = defaultMessage
	}
	p := &pipe{Socket: s, client: side{w: client}, server: side{w: server, masked: true}}
	ends := make(chan error, 2)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { ends <- caught(func() error { return p.up(ctx, bufio.NewReader(client)) }) }()
	go func() { ends <- caught(func() error { return p.down(bufio.NewReader(server)) }) }()
	shut := func() { _, _ = client.Close(), server.Close() }
	defer context.AfterFunc(ctx, shut)()
	err := <-ends
	wait := linger
	if err != nil {
		wait = 0
		last := time.AfterFunc(parting, shut)
		p.part(err)
		last.Stop()
		cancel()
	}
	t := time.AfterFunc(wait, cancel)
	late := <-ends
	t.Stop()
	shut()
	for _, e := range []error{err, late} {
		if f := (*fault)(nil); errors.As(e, &f) {
			panic(f.v)
		}
	}
	if err == nil && told(late) {
		err = late
	}
	if err == io.EOF || errors.Is(err, errEnded) {
		return nil
	}
	return err
}

// fault is a panic on its way to another goroutine.
type fault struct{ v any }

func (f *fault) Error() string { return fmt.Sprint("internal fault: ", f.v) }

// caught gives a panic of f as an error: in a goroutine of its own it would
// end the process, and with it the connections of all.
func caught(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &fault{v}
		}
	}()
	return f()
}

// told says whether an error is about what was sent, not about a connection
// that this package closed meanwhile.
func told(err error) bool {
	var c *closing
	var d *denied
	return errors.As(err, &c) || errors.As(err, &d)
}

var errEnded = errors.New("a close frame was sent")

// pipe is one WebSocket.
type pipe struct {
	Socket
	client, server side
	beat           beat
}

// side is where one of them is written to. A frame is written in one piece.
type side struct {
	mu     sync.Mutex
	w      io.Writer
	masked bool
	closed bool // a close frame was sent: nothing may follow
}

func (s *side) send(f frame, payload []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errEnded
	}
	s.closed = f.op == opClose
	_, err := s.w.Write(appendFrame(nil, f, payload, s.masked))
	return err
}

// part tells both sides why it ends.
func (p *pipe) part(err error) {
	code, why := uint16(closeAway), "the other side is gone"
	var c *closing
	if errors.As(err, &c) {
		code, why = c.code, c.Detail
	} else if d := (*denied)(nil); errors.As(err, &d) {
		code, why = closePolicy, d.Error()
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.client.send(frame{fin: true, op: opClose}, closeBody(code, why)) })
	wg.Go(func() { _ = p.server.send(frame{fin: true, op: opClose}, closeBody(closeAway, "")) })
	wg.Wait()
}

// denied is what Ask said.
type denied struct{ error }

func (d *denied) Unwrap() error { return d.error }

// flow checks that frames form messages, in one direction.
type flow struct {
	masked bool
	open   byte // opcode of the message that is not complete; 0: none
}

func (l *flow) next(f frame) error {
	switch {
	case l.masked != (f.mask != nil):
		return breach("got a frame with masking %v, want %v", f.mask != nil, l.masked)
	case f.control():
		return nil
	case (f.op == opContinue) != (l.open != 0):
		return breach("got opcode %d inside or outside a message in parts", f.op)
	}
	if f.op != opContinue {
		l.open = f.op
	}
	return nil
}

// up carries what the client sends.
func (p *pipe) up(ctx context.Context, r *bufio.Reader) error {
	l, msg := flow{masked: true}, []byte(nil)
	held := holding{room: p.Room}
	defer held.free()
	for {
		f, err := readFrame(r)
		if err == nil {
			err = l.next(f)
		}
		if err != nil {
			return err
		}
		if f.control() {
			if done, err := p.clientControl(f, r); done || err != nil {
				return err
			}
			continue
		}
		if int64(len(msg))+f.n > int64(p.MaxMessage) {
			return &closing{refuse(BadFrame, "send smaller ones", "got a message of more than %d bytes", p.MaxMessage), closeTooBig}
		}
		if err := held.take(f.n); err != nil {
			return err
		}
		if msg, err = f.payload(r, msg); err != nil {
			return err
		}
		if !f.fin {
			continue
		}
		if err := p.judge(ctx, l.open, msg); err != nil {
			return err
		}
		if err := p.server.send(frame{fin: true, op: l.open}, msg); err != nil {
			return err
		}
		l.open, msg = 0, nil
		held.free()
	}
}

// holding is what one message takes of a Room.
type holding struct {
	room Room
	n    int64
}

func (h *holding) take(n int64) error {
	if h.room == nil || n == 0 {
		return nil
	}
	if !h.room.TryAcquire(n) {
		return &closing{refuse(BadFrame, "try again when others have ended", "the messages on their way take all the room there is"), closeLater}
	}
	h.n += n
	return nil
}

func (h *holding) free() {
	if h.n > 0 {
		h.room.Release(h.n)
	}
	h.n = 0
}

// down carries what the server sends, long frames in parts.
func (p *pipe) down(r *bufio.Reader) error {
	l, m := flow{}, masking{mask: p.Mask}
	buf := make([]byte, chunk)
	for {
		f, err := readFrame(r)
		if err == nil {
			err = l.next(f)
		}
		if err != nil {
			return err
		}
		if f.control() {
			if done, err := p.serverControl(f, r); done || err != nil {
				return err
			}
			continue
		}
		if err := p.client.parts(f, r, buf, &m); err != nil {
			return err
		}
		if f.fin {
			l.open = 0
		}
	}
}

// masking is how far a message of the server's has been masked.
type masking struct {
	mask *Masker // nil: nothing is
	held []byte  // of the message, not sent yet: a secret may begin in it
	op   byte    // of the message, while nothing of it was sent; else opContinue
}

// next takes a piece of the message and gives what can be sent of it; last says
// that the message ends with it.
func (m *masking) next(b []byte, last bool) []byte {
	if m.mask == nil {
		return b
	}
	b = append(m.held, b...)
	m.mask.Bytes(b)
	n := len(b)
	if !last {
		n -= m.mask.held(b)
	}
	m.held = slices.Clone(b[n:])
	return b[:n]
}

// parts passes a data frame on in pieces of some len(buf), so that no frame of a
// slow server keeps control frames waiting.
func (s *side) parts(f frame, r *bufio.Reader, buf []byte, m *masking) error {
	if f.op != opContinue {
		m.op = f.op
	}
	for left := f.n; ; {
		b := buf[:min(left, int64(len(buf)))]
		if _, err := io.ReadFull(r, b); err != nil {
			return wholly(err)
		}
		left -= int64(len(b))
		last := f.fin && left == 0
		if b = m.next(b, last); len(b) > 0 || last || m.mask == nil {
			if err := s.send(frame{fin: last, op: m.op}, b); err != nil {
				return err
			}
			m.op = opContinue
		}
		if left == 0 {
			return nil
		}
	}
}

// judge asks about each meaning of a complete message.
func (p *pipe) judge(ctx context.Context, op byte, b []byte) error {
	if op == opText && !utf8.Valid(b) {
		return &closing{refuse(BadFrame, "send UTF-8", "got a text message that is not UTF-8"), closeUTF8}
	}
	msgs, bad := readMessage(p.Handshake, op == opText, b)
	if bad != nil {
		return &closing{bad, closePolicy}
	}
	for _, m := range msgs {
		if err := p.Ask(ctx, m); err != nil {
			return &denied{err}
		}
	}
	return nil
}
