package guard

import (
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
)

// pause is how long a reader that has caught up lets events gather. The kernel
// wakes it for the first event after an idle time and, while it pauses, for
// none: a wake-up per event made an exec 20 µs dearer.
const pause = 5 * time.Millisecond

// Opened files are many and no news, so their reader pauses for longer where the
// scopes' shares have room: for up to longPause, and no longer than a scope that
// fills its share by openFlood bytes in a millisecond could go on before it is frozen.
const (
	longPause = 25 * time.Millisecond
	openFlood = 100 << 10
)

// backlog in bytes is what a reader leaves hints out for: to ask /proc takes six
// times as long as all the rest of an event.
const backlog = 128 << 10

// batch is after how many events the memory is touched that the programs write
// to, too: every time it costs both sides the way to the other's cache.
const batch = 32

// patience is how long a close waits for whoever should receive events and does
// not get on.
var patience = 2 * time.Second

// queue is one ring on its way to the stream.
type queue struct {
	*ring
	which int    // its number in memory.go
	clock clock  // for the goroutine that reads
	late  bool   // so many events wait that there is no time for hints
	slot  uint16 // of the last event

	ended atomic.Bool // nothing new comes into the ring

	// Guarded by stream.mu: what was read and not released, oldest first, and the
	// number of the first of it.
	out   []outgoing
	first uint64
}

// outgoing is an event between its ring and the record.
type outgoing struct {
	end  uint64 // position behind it
	n    uint64 // its place in the stream, or one of the two below
	size uint32
	slot uint16
}

const (
	unsent = math.MaxUint64 // not in the stream yet
	mine   = 0              // of the self-test: nobody waits for it
)

// stream is where all rings flow together.
type stream struct {
	sending sync.Mutex // held while an event goes into the channel
	mu      sync.Mutex // guards the outgoing events of all queues
	closed  bool       // the rings are gone
}

// follows begins to read the rings.
func (g *Guard) follows() error {
	for i, m := range g.rings() {
		r, err := newRing(m)
		if err != nil {
			return err
		}
		g.queues = append(g.queues, &queue{ring: r, which: i, first: 1})
	}
	for _, q := range g.queues {
		g.read.Go(func() { g.follow(q) })
	}
	return nil
}

func (g *Guard) rings() [ringCount]*ebpf.Map {
	return [ringCount]*ebpf.Map{g.objs.Execs, g.objs.Refusals, g.objs.Opens, g.objs.Connects}
}

// follow copies one ring to the stream until the Guard closes. It blocks
// while the stream is full; the kernel then kills what it can't report.
func (g *Guard) follow(q *queue) {
	for {
		// Whatever happened before the programs were detached is in the ring by now.
		last := q.ended.Load()
		for b, end, ok := q.read(); ok; b, end, ok = q.read() {
			g.deliver(q, b, end)
		}
		g.gone()
		if g.still.Load() > 0 { // whoever stands still waits for the record of what was delivered
			g.hasten()
		}
		if last && q.left() == 0 {
			return
		}
		q.wait(g.pauseOf(q.which))
	}
}

func (g *Guard) pauseOf(ring int) time.Duration {
	if ring != ringOpens {
		return pause
	}
	share := atomic.LoadUint64(&g.mem.common.Share[ring])
	return max(pause, min(longPause, time.Duration(share/4/openFlood)*time.Millisecond))
}

// record is an event as it lies in a ring.
type record struct {
	q     *queue
	b     []byte
	end   uint64 // position behind it
	place uint64 // its number in the queue
}

func (r record) head() *witnessHead { return (*witnessHead)(unsafe.Pointer(&r.b[0])) }

// deliver hands one event on. Its room is given back when it is acknowledged.
func (g *Guard) deliver(q *queue, b []byte, end uint64) {
	if len(b) < int(unsafe.Sizeof(witnessHead{})) {
		panic(fmt.Sprintf("guard: object and package do not match, run go generate: an event of %d bytes", len(b)))
	}
	r := record{q: q, b: b, end: end}
	h := r.head()
	r.place = g.hold(q, outgoing{end, unsent, uint32(len(b)), h.Slot})
	if r.place%batch == 0 || h.Slot != q.slot {
		q.late, q.slot = q.left() > backlog, h.Slot
		g.pace(h.Slot, q.which)
		runtime.Gosched() // whoever asks something waits for a batch, not for Go to step in
	}
	if g.divert(r) {
		return
	}
	g.send(g.event(r, q), h.Cgroup)
}

// event reads a record; q has the reader's clock.
func (g *Guard) event(r record, q *queue) Event {
	e, err := g.decode(r.b, q)
	if err != nil {
		panic("guard: object and package do not match, run go generate: " + err.Error())
	}
	e.Seq, e.ring, e.place = r.end, r.q.which, r.place
	return e
}

// hold notes an event that was read, and gives its number in the queue.
func (g *Guard) hold(q *queue, o outgoing) uint64 {
	g.stream.mu.Lock()
	defer g.stream.mu.Unlock()
	q.out = append(q.out, o)
	return q.first + uint64(len(q.out)) - 1
}

// number says which place in the stream an event has.
func (g *Guard) number(ring int, place, n uint64) {
	g.stream.mu.Lock()
	defer g.stream.mu.Unlock()
	q := g.queues[ring]
	q.out[place-q.first].n = n
}

// send puts one event into the stream, or counts it once nobody takes any.
func (g *Guard) send(e Event, cgroup uint64) {
	g.stream.sending.Lock()
	defer g.stream.sending.Unlock()
	e.n = uint64(g.sent.Load()) + 1
	g.number(e.ring, e.place, e.n)
	if !g.push(e) {
		g.abandon(cgroup)
		return
	}
	g.sent.Add(1)
	if e.n%batch == 0 {
		g.gone()
	}
}

// gone gives back what was delivered, where nobody acknowledges it.
func (g *Guard) gone() {
	if !g.opt.Acknowledge {
		g.free(uint64(g.sent.Load()))
	}
}

// push waits for room in the stream, unless nobody receives any more.
func (g *Guard) push(e Event) bool {
	select {
	case g.events <- e:
		return true
	default:
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case g.events <- e:
			return true
		case <-g.done:
			return false
		case <-tick.C: // the rings fill while the receiver is busy
			g.paceAll()
		}
	}
}

// Acknowledge says that e, and every event received before it, is where it
// lasts: see Options.Acknowledge. Without that option it does nothing.
func (g *Guard) Acknowledge(e Event) {
	if g.opt.Acknowledge && e.n != mine {
		g.free(e.n)
	}
}

// free gives the room of all events up to the n-th of the stream back.
func (g *Guard) free(n uint64) {
	g.stream.mu.Lock()
	defer g.stream.mu.Unlock()
	if g.stream.closed {
		return
	}
	for _, q := range g.queues {
		k := 0
		for k < len(q.out) && q.out[k].n <= n {
			g.mem.consumed(q.out[k].slot, q.which, int(q.out[k].size))
			k++
		}
		if k == 0 {
			continue
		}
		q.release(q.out[k-1].end)
		for i := range k { // whoever was frozen for want of room may go on
			if i == 0 || q.out[i].slot != q.out[i-1].slot {
				g.pace(q.out[i].slot, q.which)
			}
		}
		q.out, q.first = q.out[k:], q.first+uint64(k)
	}
}

// taken counts the events that were received from the stream. A little less
// than the truth while a reader is at work, never more.
func (g *Guard) taken() int64 { return g.sent.Load() - int64(len(g.events)) }

// settle waits until all that is in the rings now was received, and acknowledged
// where that is asked for, and tells whether it was. It gives up when nothing was
// for patience.
func (g *Guard) settle() bool {
	want := make([]uint64, len(g.queues))
	for i, q := range g.queues {
		want[i] = q.produced()
		q.kick()
	}
	all := g.wait(func() bool {
		for i, q := range g.queues {
			if q.consumed() < want[i] {
				g.hasten()
				return false
			}
		}
		return true
	})
	n := g.sent.Load()
	return g.wait(func() bool { return g.taken() >= n }) && all
}

// wait waits until something is ready, and tells whether it is. It gives up
// when the receiver did not get on for patience.
func (g *Guard) wait(ready func() bool) bool {
	n, since := g.progress(), time.Now()
	for !ready() {
		if m := g.progress(); m != n {
			n, since = m, time.Now()
		}
		if time.Since(since) >= patience {
			return false
		}
		time.Sleep(time.Millisecond)
	}
	return true
}

// progress is a number that grows with what is received or acknowledged.
func (g *Guard) progress() uint64 {
	n := uint64(g.taken())
	for _, q := range g.queues {
		n += q.consumed()
	}
	return n
}

// drain ends the readers, after the programs were detached: each leaves with
// its ring empty, or all when nothing was received for patience.
func (g *Guard) drain() {
	for _, q := range g.queues {
		q.ended.Store(true)
		q.kick()
	}
	left := make(chan struct{})
	go func() { g.read.Wait(); close(left) }()
	gone := func() bool {
		select {
		case <-left:
			return true
		default:
			return false
		}
	}
	if !g.wait(gone) {
		close(g.done)
		<-left
	}
}

// hangUp lets the rings go; what is acknowledged later does no harm.
func (g *Guard) hangUp() {
	g.stream.mu.Lock()
	defer g.stream.mu.Unlock()
	g.stream.closed = true
	for _, q := range g.queues {
		q.close()
	}
}
