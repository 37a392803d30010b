package egress

import (
	"net/http"
	"sync"

	"golang.org/x/sync/semaphore"
)

// What one sandbox's inspected connections may take of this process, which all
// sandboxes share. Further requests are refused: if they waited, what HTTP/2
// has received of them would fill the window of the connection, and with it
// stop those that go on.
const (
	maxBody     = 4 << 20 // bytes of a body that is read whole
	allBodies   = 128 << 20
	maxCalls    = 256  // requests at once, inspected ones and those of plain HTTP
	maxOutwards = 1024 // connections to servers
	maxWaiting  = 1000 // refused requests that wait for their turn

	// A JSON document of small objects takes some 45 times its bytes once it is
	// read, and inspect bounds how many values there are.
	readCost = 32
	maxRead  = 20 << 20

	// The head of an answer, in bytes. A server that sends nothing but short lines
	// makes net/http hold some 15 times as many, for as long as it pleases: with
	// maxCalls some 128 MiB.
	answerHead = 32 << 10

	// What HTTP/2 buffers: of answers that a client does not take, and of
	// bodies that a server does not take, in bytes.
	answerWindow, answersWindow = 1 << 20, 4 << 20
	bodyWindow, bodiesWindow    = 128 << 10, 256 << 10
)

// room is a sandbox's share of memory and descriptors.
type room struct {
	bytes *semaphore.Weighted
	calls *semaphore.Weighted
	outs  *semaphore.Weighted
}

func newRoom() *room {
	return &room{semaphore.NewWeighted(allBodies), semaphore.NewWeighted(maxCalls), semaphore.NewWeighted(maxOutwards)}
}

// messages is the room as WebSockets ask for it.
type messages struct{ *room }

func (m messages) TryAcquire(n int64) bool { return m.bytes.TryAcquire(n * readCost) }
func (m messages) Release(n int64)         { m.bytes.Release(n * readCost) }

func busy(format string, args ...any) *refusal {
	why := refuse("http.busy", "try again when other requests have ended", format, args...)
	why.status = http.StatusServiceUnavailable
	return why
}

// enter counts the request in until leave.
func (k *call) enter() *refusal {
	if !k.s.box.room.calls.TryAcquire(1) {
		return busy("%d requests of this sandbox are under way already", maxCalls)
	}
	k.entered = true
	return nil
}

func (k *call) leave() {
	k.s.box.room.bytes.Release(k.size)
	if k.entered {
		k.s.box.room.calls.Release(1)
	}
	k.size, k.entered = 0, false
}

// room takes memory for the body until the request is over.
func (k *call) room(r *http.Request) *refusal {
	n := int64(maxBody)
	if r.ContentLength >= 0 {
		n = min(n, r.ContentLength)
	}
	switch deep := k.rule.Inspected() && k.rule.Protocol != "http"; {
	case deep:
		n += min(n*readCost, maxRead)
	case n == maxBody:
		n = 0 // passes in small pieces
	}
	if !k.s.box.room.bytes.TryAcquire(n) {
		return busy("the bodies of this sandbox's requests take all of their %d MiB", allBodies>>20)
	}
	k.size = n
	return nil
}

// outwardRoom takes one connection to a server; free gives it back, once.
func (b *box) outwardRoom() (free func(), why *refusal) {
	if !b.room.outs.TryAcquire(1) {
		return nil, busy("%d connections of this sandbox to servers are open already", maxOutwards)
	}
	return sync.OnceFunc(func() { b.room.outs.Release(1) }), nil
}
