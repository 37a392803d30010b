package inspect

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
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
}

const (
	defaultMessage = 1 << 20
	chunk          = 32 << 10        // of a server's frame carried at once
	linger         = 5 * time.Second // for the other side's close frame
	parting        = time.Second     // for writing ours to a peer that does not read
)

// Frames carries a WebSocket between a client and a server (RFC 6455) until
// one of them closes it, and closes both. Messages of the client are read
// whole, judged, and sent on in one frame; control frames pass between; what
// the server sends is checked for form and passes as it comes. Both ends are
// read after their handshakes.
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
	go func() { ends <- p.up(ctx, bufio.NewReader(client)) }()
	go func() { ends <- p.down(bufio.NewReader(server)) }()
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
	if err == nil && told(late) {
		err = late
	}
	if err == io.EOF || errors.Is(err, errEnded) {
		return nil
	}
	return err
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
	for {
		f, err := readFrame(r)
		if err == nil {
			err = l.next(f)
		}
		if err != nil {
			return err
		}
		if f.control() {
			if done, err := p.server.control(f, r); done || err != nil {
				return err
			}
			continue
		}
		if int64(len(msg))+f.n > int64(p.MaxMessage) {
			return &closing{refuse(BadFrame, "send smaller ones", "got a message of more than %d bytes", p.MaxMessage), closeTooBig}
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
	}
}

// control passes a control frame on and says whether it was the last frame.
func (s *side) control(f frame, r *bufio.Reader) (done bool, err error) {
	b, err := f.payload(r, nil)
	if err == nil && f.op == opClose {
		err = checkClose(b)
	}
	if err == nil {
		err = s.send(frame{fin: true, op: f.op}, b)
	}
	return f.op == opClose, err
}

// down carries what the server sends, long frames in parts.
func (p *pipe) down(r *bufio.Reader) error {
	l := flow{}
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
			if done, err := p.client.control(f, r); done || err != nil {
				return err
			}
			continue
		}
		if err := p.client.parts(f, r, buf); err != nil {
			return err
		}
		if f.fin {
			l.open = 0
		}
	}
}

// parts passes a data frame on in pieces of at most len(buf), so that no
// frame of a slow server keeps control frames waiting.
func (s *side) parts(f frame, r *bufio.Reader, buf []byte) error {
	for op, left := f.op, f.n; ; op = opContinue {
		b := buf[:min(left, int64(len(buf)))]
		if _, err := io.ReadFull(r, b); err != nil {
			return wholly(err)
		}
		left -= int64(len(b))
		if err := s.send(frame{fin: f.fin && left == 0, op: op}, b); err != nil || left == 0 {
			return err
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

// readMessage gives the meanings of one message, by the rule's protocol.
func readMessage(base policies.Message, text bool, b []byte) (msgs []policies.Message, bad *Refusal) {
	switch base.Protocol {
	case "websocket":
		return readText(base, text, b)
	case "mcp", "json-rpc":
		q := request{base: base}
		if !text {
			return nil, refuse(BadRPC, "send text", "got a binary message for %s", base.Protocol)
		}
		bad = q.calls(b)
		return q.msgs, bad
	}
	return nil, refuse(BadFrame, "", "got a WebSocket for protocol %q", base.Protocol)
}

// readText looks into text for GraphQL over WebSocket (graphql-transport-ws,
// and the older graphql-ws), whichever subprotocol was agreed on: the client
// chooses that. Text that begins as JSON has to have one reading. Servers may
// read binary messages as text, so they are looked into as well.
func readText(base policies.Message, text bool, b []byte) ([]policies.Message, *Refusal) {
	m := base
	if m.Frame = "text"; !text {
		m.Frame = "binary"
	}
	if !looksJSON(b, text) {
		return []policies.Message{m}, nil
	}
	v, err := readJSON(b)
	if err != nil {
		return nil, refuse(BadFrame, "send JSON with one reading", "the message holds %v", err)
	}
	payload, ok := subscription(v)
	if !ok {
		if text && lifecycle(v) {
			m.Operation = policies.Control
		}
		return []policies.Message{m}, nil
	}
	c, err := readGraphQLCall(payload)
	var g policies.Message
	if err == nil {
		g, err = c.message()
	}
	if err != nil {
		return nil, badGraphQL(err)
	}
	m.Operation, m.OperationName, m.Fields = g.Operation, g.OperationName, g.Fields
	return []policies.Message{m}, nil
}

// lifecycle says whether a message only opens, keeps alive or ends what
// subscriptions need, in graphql-transport-ws or graphql-ws. Nothing that could
// be a request may stand beside its type, spelled as the protocols do.
func lifecycle(v any) bool {
	o, _ := v.(object)
	if known(o, true, "type", "id", "payload") != nil {
		return false
	}
	switch o["type"] {
	case "connection_init", "ping", "pong", "complete", "stop", "connection_terminate":
	default:
		return false
	}
	payload, ok := o["payload"].(object)
	for k := range payload {
		ok = ok && fold(k) != "query"
	}
	return ok || o["payload"] == nil
}

// looksJSON says whether some reader could take a message for a JSON object.
// Lenient ones take more than encoding/json does, so what begins like one has
// to be one; of binary messages only what is text and also ends like one.
func looksJSON(b []byte, text bool) bool {
	b = bytes.Trim(b, " \t\r\n\v\f\x00\ufeff")
	if len(b) == 0 || b[0] != '{' && b[0] != '[' {
		return false
	}
	return text || utf8.Valid(b) && (b[len(b)-1] == '}' || b[len(b)-1] == ']')
}

// subscription finds the request in a message that starts an operation. Keys
// and type count in any case: too much found is refused, too little passes.
func subscription(v any) (object, bool) {
	o, _ := v.(object)
	var kind string
	var payload object
	for k, v := range o {
		switch fold(k) {
		case "type":
			s, _ := v.(string)
			kind = fold(s)
		case "payload":
			payload, _ = v.(object)
		}
	}
	return payload, payload != nil && (kind == "subscribe" || kind == "start")
}
