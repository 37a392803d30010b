package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/clawbox/clawbox/policies"
)

// A fault in reading a message ends this connection, in its caller's
// goroutine, and closes both ends.
func TestFramesFault(t *testing.T) {
	client, near := net.Pipe()
	far, server := net.Pipe()
	fell := make(chan any, 1)
	go func() {
		defer func() { fell <- recover() }()
		_ = Frames(t.Context(), near, far, Socket{
			Handshake: policies.Message{Protocol: "websocket", Method: "GET", Path: "/"},
			Ask:       func(context.Context, policies.Message) error { panic("a fault") },
		})
	}()
	go func() { _, _ = client.Write(up(true, opText, "x")) }()
	go func() { _, _ = io.Copy(io.Discard, server) }()
	_ = client.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.Copy(io.Discard, client); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the client's end: %v", err)
	}
	if v := <-fell; fmt.Sprint(v) != "a fault" {
		t.Errorf("the caller got %v", v)
	}
}

// room has so many bytes.
type room struct{ n int64 }

func (r *room) TryAcquire(n int64) bool {
	if n > r.n {
		return false
	}
	r.n -= n
	return true
}

func (r *room) Release(n int64) { r.n += n }

// What a client's messages take of memory is bounded, and given back.
func TestFramesRoom(t *testing.T) {
	r := &room{n: 1000}
	w := open(t, Socket{Room: r})
	for range 3 {
		write(t, w.client, slicesJoin(up(false, opText, string(make([]byte, 600))), up(true, opContinue, string(make([]byte, 400)))))
		if _, s := read(t, w.fromClient); len(s) != 1000 {
			t.Fatalf("got %d bytes", len(s))
		}
	}
	write(t, w.client, slicesJoin(up(false, opText, string(make([]byte, 600))), up(true, opContinue, string(make([]byte, 401)))))
	go func() { _, _ = io.Copy(io.Discard, w.fromClient) }()
	if f, s := read(t, w.fromServer); f.op != opClose || s[:2] != "\x03\xf5" {
		t.Errorf("got %+v %q, want close 1013", f, s)
	}
	var no *Refusal
	if err := <-w.end; !errors.As(err, &no) || r.n != 1000 {
		t.Errorf("ended with %v, %d bytes of room", err, r.n)
	}
}
