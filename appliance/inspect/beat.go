package inspect

import (
	"bufio"
	"bytes"
	"sync"
)

// control reads a control frame's payload.
func control(f frame, r *bufio.Reader) ([]byte, error) {
	b, err := f.payload(r, nil)
	if err == nil && f.op == opClose {
		err = checkClose(b)
	}
	return b, err
}

// clientControl passes a control frame of the client's on, without what it
// carries, and says whether it was the last frame.
func (p *pipe) clientControl(f frame, r *bufio.Reader) (done bool, err error) {
	b, err := control(f, r)
	if err != nil {
		return false, err
	}
	send := true
	switch f.op {
	case opPing:
		p.beat.ask(b)
		b = nil
	case opPong:
		b, send = p.beat.answer(b)
	case opClose:
		b = b[:min(len(b), 2)] // the code
	}
	if send {
		err = p.server.send(frame{fin: true, op: f.op}, b)
	}
	return f.op == opClose, err
}

// serverControl passes a control frame of the server's on, masked.
func (p *pipe) serverControl(f frame, r *bufio.Reader) (done bool, err error) {
	b, err := control(f, r)
	if err != nil {
		return false, err
	}
	said := append([]byte{}, b...)
	if p.Mask != nil {
		p.Mask.Bytes(b[min(len(b), f.reason()):])
	}
	switch f.op {
	case opPing:
		p.beat.asked(said, b)
	case opPong:
		b = p.beat.answered(b)
	}
	return f.op == opClose, p.client.send(frame{fin: true, op: f.op}, b)
}

// beat is what pings and pongs are about: whether the other side is there. The
// 125 bytes of a ping could carry what no policy has judged, so the server gets
// empty ones, and its own back in a pong, nothing else; the client's pong has what
// its ping had (RFC 6455, 5.5.3: of several, the last).
type beat struct {
	mu      sync.Mutex
	client  []byte // payload of the client's ping that is not answered; nil: none
	server  []byte // of the server's; nil: none
	clients []byte // how the client was shown that
}

// ask takes the client's ping.
func (b *beat) ask(payload []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.client = append([]byte{}, payload...) // also when it is empty
}

// answered takes the server's pong and gives what the client gets.
func (b *beat) answered(payload []byte) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.client == nil {
		return payload
	}
	payload, b.client = b.client, nil
	return payload
}

// asked takes the server's ping, as it came, not nil, and as the client is shown it.
func (b *beat) asked(said, shown []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.server, b.clients = said, shown
}

// answer takes the client's pong and gives what the server gets, if anything.
func (b *beat) answer(payload []byte) ([]byte, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.server == nil || !bytes.Equal(payload, b.clients) {
		return nil, false
	}
	payload, b.server = b.server, nil
	return payload, true
}
