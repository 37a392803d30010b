package inspect

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/clawbox/clawbox/policies"
)

const handshake = `GET /chat?room=1 HTTP/1.1
Host: a
Connection: keep-alive, Upgrade
Upgrade: websocket
Sec-WebSocket-Version: 13
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==
Sec-WebSocket-Extensions: permessage-deflate
Sec-WebSocket-Protocol: chat, superchat`

func TestHandshake(t *testing.T) {
	q, msgs, err := Request(parse(t, handshake, ""), Options{Protocol: "websocket"})
	if err != nil {
		t.Fatal(err)
	}
	if m := msgs[0]; len(msgs) != 1 || m.Protocol != "websocket" || m.Frame != "" || m.Method != "GET" || m.Path != "/chat" || m.Query.Get("room") != "1" {
		t.Errorf("got %+v", msgs)
	}
	if h := q.Header; h.Get("Upgrade") != "websocket" || h.Get("Connection") != "Upgrade" || h["Sec-Websocket-Extensions"] != nil || h.Get("Sec-Websocket-Protocol") != "chat, superchat" {
		t.Errorf("got %v", h)
	}
	// The proof is the example of RFC 6455, 1.3.
	good := http.Header{"Upgrade": {"websocket"}, "Connection": {"Upgrade"}, "Sec-Websocket-Accept": {"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="}, "Sec-Websocket-Protocol": {"chat"}}
	if err := Accepted(q, &http.Response{StatusCode: 101, Header: good}); err != nil {
		t.Error(err)
	}
	for name, edit := range map[string]func(*http.Response){
		"status":      func(r *http.Response) { r.StatusCode = 200 },
		"proof":       func(r *http.Response) { r.Header.Set("Sec-Websocket-Accept", "x") },
		"no proof":    func(r *http.Response) { r.Header.Del("Sec-Websocket-Accept") },
		"extension":   func(r *http.Response) { r.Header.Set("Sec-Websocket-Extensions", "permessage-deflate") },
		"subprotocol": func(r *http.Response) { r.Header.Set("Sec-Websocket-Protocol", "other") },
		"upgrade":     func(r *http.Response) { r.Header.Set("Upgrade", "h2c") },
	} {
		res := &http.Response{StatusCode: 101, Header: good.Clone()}
		edit(res)
		refused(t, name, BadHandshake, Accepted(q, res))
	}
}

func TestHandshakeRefuses(t *testing.T) {
	for name, c := range map[string][2]string{
		"no key":         {"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n", ""},
		"short key":      {"dGhlIHNhbXBsZSBub25jZQ==", "dGhl"},
		"key no base64":  {"dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZ!=="},
		"version":        {"Version: 13", "Version: 8"},
		"no connection":  {"keep-alive, Upgrade", "keep-alive"},
		"two upgrades":   {"Upgrade: websocket", "Upgrade: websocket\nUpgrade: websocket"},
		"list":           {"Upgrade: websocket", "Upgrade: websocket, h2c"},
		"POST":           {"GET", "POST"},
		"HTTP/1.0":       {"HTTP/1.1", "HTTP/1.0"},
		"bad subprotcol": {"superchat", "super chat"},
		"no upgrade":     {"Upgrade: websocket", "Upgrade: other"},
	} {
		_, _, err := Request(parse(t, strings.Replace(handshake, c[0], c[1], 1), ""), Options{Protocol: "websocket"})
		refused(t, name, BadHandshake, err)
	}
	_, _, err := Request(parse(t, handshake, "body"), Options{Protocol: "websocket"})
	refused(t, "body", BadBody, err)
}

// wire is one Frames under test with both far ends.
type wire struct {
	client, server net.Conn
	fromServer     *bufio.Reader // what the client gets
	fromClient     *bufio.Reader // what the server gets
	end            chan error
	asked          chan policies.Message
}

func open(t *testing.T, s Socket) *wire {
	t.Helper()
	w := &wire{end: make(chan error, 1), asked: make(chan policies.Message, 100)}
	var near, far net.Conn
	w.client, near = net.Pipe()
	far, w.server = net.Pipe()
	ask := s.Ask
	s.Ask = func(ctx context.Context, m policies.Message) error {
		w.asked <- m
		if ask == nil {
			return nil
		}
		return ask(ctx, m)
	}
	if s.Handshake.Protocol == "" {
		s.Handshake = policies.Message{Protocol: "websocket", Method: "GET", Path: "/"}
	}
	go func() { w.end <- Frames(t.Context(), near, far, s) }()
	w.fromServer, w.fromClient = bufio.NewReader(w.client), bufio.NewReader(w.server)
	for _, c := range []net.Conn{w.client, w.server} {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	t.Cleanup(func() { w.client.Close(); w.server.Close() })
	return w
}

func write(t *testing.T, c net.Conn, b []byte) {
	t.Helper()
	go func() { _, _ = c.Write(b) }()
}

// read gives the next frame.
func read(t *testing.T, r *bufio.Reader) (frame, string) {
	t.Helper()
	f, err := readFrame(r)
	if err != nil {
		t.Fatal(err)
	}
	b, err := f.payload(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return f, string(b)
}

func up(fin bool, op byte, s string) []byte {
	return appendFrame(nil, frame{fin: fin, op: op}, []byte(s), true)
}

func down(fin bool, op byte, s string) []byte {
	return appendFrame(nil, frame{fin: fin, op: op}, []byte(s), false)
}

func TestFrames(t *testing.T) {
	w := open(t, Socket{})
	write(t, w.client, bytes.Join([][]byte{up(false, opText, "hel"), up(true, opPing, "p"), up(false, opContinue, "l"), up(true, opContinue, "o"), up(true, opBinary, "\x00")}, nil))
	if f, s := read(t, w.fromClient); f.op != opPing || s != "" || f.mask == nil {
		t.Errorf("got %+v %q", f, s)
	}
	if f, s := read(t, w.fromClient); f.op != opText || s != "hello" || !f.fin || f.mask == nil {
		t.Errorf("got %+v %q", f, s)
	}
	if f, s := read(t, w.fromClient); f.op != opBinary || s != "\x00" {
		t.Errorf("got %+v %q", f, s)
	}
	if a, b := <-w.asked, <-w.asked; a.Frame != "text" || b.Frame != "binary" || a.Path != "/" {
		t.Errorf("asked %+v, %+v", a, b)
	}
	long := strings.Repeat("x", 100_000)
	write(t, w.server, slicesJoin(down(false, opText, "a"), down(true, opPong, ""), down(true, opContinue, long)))
	got := ""
	for {
		f, s := read(t, w.fromServer)
		if f.mask != nil || len(s) > chunk {
			t.Errorf("got %+v", f)
		}
		if f.op == opPong {
			if s != "p" {
				t.Errorf("the pong has %q, want what the ping had", s)
			}
			continue
		}
		if got += s; f.fin {
			break
		}
	}
	if got != "a"+long {
		t.Errorf("got %d bytes", len(got))
	}
	write(t, w.client, up(true, opClose, string(closeBody(1000, "bye"))))
	if f, s := read(t, w.fromClient); f.op != opClose || s != "\x03\xe8" {
		t.Errorf("got %+v %q", f, s)
	}
	write(t, w.server, down(true, opClose, ""))
	if f, _ := read(t, w.fromServer); f.op != opClose {
		t.Errorf("got %+v", f)
	}
	if err := <-w.end; err != nil {
		t.Error(err)
	}
}

// Control frames keep a connection alive, and bring nothing of the client's to the
// server: no policy judges them.
func TestFramesControl(t *testing.T) {
	w := open(t, Socket{Mask: NewMasker(secret)})
	write(t, w.server, down(true, opPing, "are you "+secret+" there"))
	shown := "are you " + strings.Repeat("*", len(secret)) + " there"
	if f, s := read(t, w.fromServer); f.op != opPing || s != shown {
		t.Fatalf("got %+v %q", f, s)
	}
	write(t, w.client, bytes.Join([][]byte{up(true, opPong, "secretly"), up(true, opPong, shown), up(true, opPong, shown), up(true, opPing, "secretly"), up(true, opText, "end")}, nil))
	for _, want := range []struct {
		op byte
		s  string
	}{{opPong, "are you " + secret + " there"}, {opPing, ""}, {opText, "end"}} {
		if f, s := read(t, w.fromClient); f.op != want.op || s != want.s {
			t.Errorf("the server got %+v %q, want %d %q", f, s, want.op, want.s)
		}
	}
	write(t, w.server, bytes.Join([][]byte{down(true, opPong, secret), down(true, opPong, secret), down(true, opClose, "\x0f\xa1bad token "+secret)}, nil))
	for _, want := range []string{"secretly", strings.Repeat("*", len(secret)), "\x0f\xa1bad token " + strings.Repeat("*", len(secret))} {
		if f, s := read(t, w.fromServer); s != want {
			t.Errorf("the client got %+v %q, want %q", f, s, want)
		}
	}
}

// A secret is masked wherever frames, and the pieces that they are sent on in, cut it.
func TestFramesMasked(t *testing.T) {
	for at := range len(secret) + 1 {
		w := open(t, Socket{Mask: NewMasker(secret)})
		long := strings.Repeat("x", chunk-at)
		write(t, w.server, bytes.Join([][]byte{
			down(false, opText, long+secret+"y"), down(false, opContinue, secret[:at]), down(true, opPing, ""), down(false, opContinue, ""), down(true, opContinue, secret[at:]+secret[:at]),
			down(true, opBinary, secret[:at]), down(true, opText, secret[at:]),
		}, nil))
		stars := strings.Repeat("*", len(secret))
		for _, want := range []struct {
			op   byte
			text string
		}{{opText, long + stars + "y" + stars + secret[:at]}, {opBinary, secret[:at]}, {opText, secret[at:]}} {
			if at == 0 || at == len(secret) {
				want.text = strings.ReplaceAll(want.text, secret, stars)
			}
			got, first := "", true
			for {
				f, s := read(t, w.fromServer)
				if f.op == opPing {
					continue
				}
				if first && f.op != want.op || !first && f.op != opContinue {
					t.Fatalf("cut at %d: got %+v for a message of kind %d", at, f, want.op)
				}
				if got, first = got+s, false; f.fin {
					break
				}
			}
			if got != want.text {
				t.Fatalf("cut at %d: got …%q", at, got[max(0, len(got)-60):])
			}
		}
	}
}

func slicesJoin(b ...[]byte) []byte { return bytes.Join(b, nil) }

// raw makes a frame of the given bytes.
func raw(b ...byte) []byte { return b }

func TestFramesRefuse(t *testing.T) {
	for name, c := range map[string]struct {
		up, down []byte
		code     uint16
	}{
		"not masked":            {up: down(true, opText, "x"), code: closeProtocol},
		"masked by the server":  {down: up(true, opText, "x"), code: closeProtocol},
		"reserved bit":          {up: raw(0xC1, 0x80, 0, 0, 0, 0), code: closeProtocol},
		"reserved bit, server":  {down: raw(0xC1, 0x00), code: closeProtocol},
		"opcode 3":              {up: raw(0x83, 0x80, 0, 0, 0, 0), code: closeProtocol},
		"opcode 11":             {up: raw(0x8B, 0x80, 0, 0, 0, 0), code: closeProtocol},
		"ping in parts":         {up: raw(0x09, 0x80, 0, 0, 0, 0), code: closeProtocol},
		"long ping":             {up: up(true, opPing, strings.Repeat("x", 126)), code: closeProtocol},
		"length in 2 bytes":     {up: raw(0x81, 0xFE, 0, 5), code: closeProtocol},
		"length in 8 bytes":     {up: raw(0x81, 0xFF, 0, 0, 0, 0, 0, 0, 0, 5), code: closeProtocol},
		"negative length":       {up: raw(0x81, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 5), code: closeProtocol},
		"announced too big":     {up: raw(0x82, 0xFF, 0, 0, 0, 0x7F, 0, 0, 0, 0, 1, 2, 3, 4), code: closeTooBig},
		"too big in parts":      {up: slicesJoin(up(false, opBinary, strings.Repeat("x", 600)), up(true, opContinue, strings.Repeat("x", 600))), code: closeTooBig},
		"continues nothing":     {up: up(true, opContinue, "x"), code: closeProtocol},
		"text inside a message": {up: slicesJoin(up(false, opText, "x"), up(true, opText, "y")), code: closeProtocol},
		"server continues":      {down: down(true, opContinue, "x"), code: closeProtocol},
		"text not UTF-8":        {up: up(true, opText, "\xff"), code: closeUTF8},
		"half a rune":           {up: up(true, opText, "\xc3"), code: closeUTF8},
		"close of one byte":     {up: up(true, opClose, "x"), code: closeProtocol},
		"close 1005":            {up: up(true, opClose, "\x03\xed"), code: closeProtocol},
		"close 999":             {up: up(true, opClose, "\x03\xe7"), code: closeProtocol},
		"close reason":          {up: up(true, opClose, "\x03\xe8\xff"), code: closeProtocol},
		"JSON of two readings":  {up: up(true, opText, `{"type":"ping","type":"subscribe","payload":{"query":"{a}"}}`), code: closePolicy},
		"JSON with NaN":         {up: up(true, opText, `{"type":"subscribe","x":NaN,"payload":{"query":"{a}"}}`), code: closePolicy},
		"JSON after a mark":     {up: up(true, opText, "\ufeff"+`{"type":"subscribe","payload":{"query":"{a}"}}`), code: closePolicy},
		"stored query":          {up: up(true, opText, `{"type":"subscribe","id":"1","payload":{"id":"x"}}`), code: closePolicy},
		"as binary":             {up: up(true, opBinary, `{"type":"subscribe","id":"1","payload":{"id":"x"}}`), code: closePolicy},
	} {
		w := open(t, Socket{MaxMessage: 1000})
		if c.up != nil {
			write(t, w.client, c.up)
		} else {
			write(t, w.server, c.down)
		}
		go func() { _, _ = io.Copy(io.Discard, w.fromClient) }()
		f, s := read(t, w.fromServer)
		if f.op != opClose || len(s) < 2 || binary.BigEndian.Uint16([]byte(s)) != c.code {
			t.Errorf("%s: got %+v %q, want close %d", name, f, s, c.code)
		}
		var no *Refusal
		if err := <-w.end; !errors.As(err, &no) || no.Detail == "" {
			t.Errorf("%s: ended with %v", name, err)
		}
		select {
		case m := <-w.asked:
			t.Errorf("%s: asked about %+v", name, m)
		default:
		}
	}
}

var errNo = errors.New("not this one")

func TestFramesDeny(t *testing.T) {
	w := open(t, Socket{Ask: func(_ context.Context, m policies.Message) error {
		if m.Operation == "mutation" {
			return errNo
		}
		return nil
	}})
	ok := `{"type":"subscribe","id":"1","payload":{"query":"query Q {a}"}}`
	write(t, w.client, slicesJoin(up(true, opText, `{"type":"connection_init"}`), up(true, opText, ok), up(true, opText, `{"id":"2","type":"start","payload":{"query":"mutation {b}"}}`)))
	if _, s := read(t, w.fromClient); s != `{"type":"connection_init"}` {
		t.Errorf("got %q", s)
	}
	if _, s := read(t, w.fromClient); s != ok {
		t.Errorf("got %q", s)
	}
	go func() { _, _ = io.Copy(io.Discard, w.fromServer) }()
	if f, s := read(t, w.fromClient); f.op != opClose || s != "\x03\xe9" {
		t.Errorf("the server got %+v %q, want close 1001", f, s)
	}
	if err := <-w.end; !errors.Is(err, errNo) {
		t.Errorf("ended with %v", err)
	}
	<-w.asked
	if m := <-w.asked; m.Operation != "query" || m.OperationName != "Q" || m.Fields[0] != "a" || m.Frame != "text" {
		t.Errorf("asked %+v", m)
	}
}

func TestFramesRPC(t *testing.T) {
	w := open(t, Socket{Handshake: policies.Message{Protocol: "mcp", Method: "GET", Path: "/mcp"}})
	call := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":{"a":"b"}}}`
	write(t, w.client, slicesJoin(up(true, opText, call), up(true, opBinary, call)))
	if _, s := read(t, w.fromClient); s != call {
		t.Errorf("got %q", s)
	}
	if m := <-w.asked; m.Tool != "x" || m.Args["a"] != "b" || m.Path != "/mcp" || m.Protocol != "mcp" {
		t.Errorf("asked %+v", m)
	}
	go func() { _, _ = io.Copy(io.Discard, w.fromServer) }()
	go func() { _, _ = io.Copy(io.Discard, w.fromClient) }()
	var no *Refusal
	if err := <-w.end; !errors.As(err, &no) || no.Code != BadRPC {
		t.Errorf("ended with %v", err)
	}
}

// A side that goes ends the other, also while an operator decides.
func TestFramesGone(t *testing.T) {
	w := open(t, Socket{Ask: func(ctx context.Context, _ policies.Message) error { <-ctx.Done(); return ctx.Err() }})
	write(t, w.client, up(true, opText, "x"))
	<-w.asked
	go func() { _, _ = io.Copy(io.Discard, w.fromServer) }()
	w.server.Close()
	select {
	case err := <-w.end:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(15 * time.Second):
		t.Fatal("still there")
	}
	w = open(t, Socket{})
	write(t, w.client, up(false, opText, "x")[:3])
	time.Sleep(10 * time.Millisecond)
	go func() { _, _ = io.Copy(io.Discard, w.fromClient) }()
	w.client.Close()
	if err := <-w.end; !errors.Is(err, io.ErrUnexpectedEOF) && err != nil {
		t.Error(err)
	}
}

// closers is a stream of given bytes, and what was written to it.
type closers struct {
	io.Reader
	bytes.Buffer
}

func (c *closers) Read(b []byte) (int, error) { return c.Reader.Read(b) }
func (c *closers) Close() error               { return nil }

// What arrives at the server is well formed, masked, whole messages, each of
// which was asked about; nothing follows a close frame.
func FuzzFrames(f *testing.F) {
	f.Add(slicesJoin(up(false, opText, "a"), up(true, opPing, "x"), up(true, opContinue, "b"), up(true, opClose, "")), down(true, opText, "y"))
	f.Add(up(true, opText, `{"type":"subscribe","payload":{"query":"mutation {b}"}}`), raw(0x81, 0x7E, 0, 5))
	f.Add(raw(0x82, 0xFF, 0, 0, 0, 0x7F, 0, 0, 0, 0, 1, 2, 3, 4), down(true, opClose, "\x03\xe8"))
	f.Fuzz(func(t *testing.T, fromClient, fromServer []byte) {
		client, server := &closers{Reader: bytes.NewReader(fromClient)}, &closers{Reader: bytes.NewReader(fromServer)}
		asked := 0
		_ = Frames(t.Context(), client, server, Socket{
			MaxMessage: 1 << 12, Handshake: policies.Message{Protocol: "websocket"},
			Ask: func(context.Context, policies.Message) error { asked++; return nil },
		})
		if n := check(t, server.Bytes(), true); n > asked {
			t.Fatalf("%d messages, asked about %d", n, asked)
		}
		check(t, client.Bytes(), false)
	})
}

// check reads a stream as a peer would and counts its messages.
func check(t *testing.T, b []byte, masked bool) (n int) {
	t.Helper()
	r, l := bufio.NewReader(bytes.NewReader(b)), flow{masked: masked}
	for closed := false; ; {
		f, err := readFrame(r)
		if err == io.EOF {
			return n
		}
		if err == nil {
			err = l.next(f)
		}
		var body []byte
		if err == nil {
			body, err = f.payload(r, nil)
		}
		if err == nil && f.op == opClose {
			err = checkClose(body)
		}
		if err != nil || closed {
			t.Fatalf("%x: %v, after a close: %v", b, err, closed)
		}
		closed = f.op == opClose
		if !f.control() && f.fin {
			n, l.open = n+1, 0
		}
	}
}
