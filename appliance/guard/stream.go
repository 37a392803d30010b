package guard

import (
	"errors"
	"math"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// pause is how long a reader that has caught up lets events gather. The kernel
// wakes it for the first event after an idle time and, while it pauses, for
// none: a wake-up per event made an exec 20 µs dearer.
const pause = 5 * time.Millisecond

// backlog in bytes is what a reader leaves hints out for: to ask /proc takes six
// times as long as all the rest of an event.
const backlog = 128 << 10

// patience is how long a close waits for whoever should receive events.
var patience = 2 * time.Second

// queue is one ring on its way to the stream.
type queue struct {
	r        *ringbuf.Reader
	ring     int           // its number in memory.go
	clock    clock         // for the goroutine that reads
	late     bool          // so many events wait that there is no time for hints
	asked    atomic.Uint64 // requests to hand over what is in the ring
	answered atomic.Uint64 // the last of them that is done
}

func newQueue(m *ebpf.Map, ring int) (*queue, error) {
	r, err := ringbuf.NewReader(m)
	return &queue{r: r, ring: ring}, err
}

// ask has the queue's reader hand over what is in the ring now.
func (q *queue) ask() (n uint64) {
	n = q.asked.Add(1)
	q.r.Flush() // fails only where the reader is gone, which answers everything
	return n
}

// follow copies one ring to the stream until the Guard closes. It blocks
// while the stream is full; the kernel then kills what it can't report.
func (g *Guard) follow(q *queue) {
	defer q.answered.Store(math.MaxUint64)
	var rec ringbuf.Record
	for {
		switch err := q.r.ReadInto(&rec); {
		case err == nil:
			g.deliver(q, &rec)
			if rec.Remaining == 0 {
				time.Sleep(pause)
			}
		case errors.Is(err, ringbuf.ErrFlushed):
			// Whatever happened before the request was made, or the
			// programs were detached, is in the ring by now.
			n, last := q.asked.Load(), g.detached.Load()
			g.empty(q)
			q.answered.Store(n)
			if last {
				return
			}
		default:
			return // os.ErrClosed
		}
	}
}

// empty delivers what is in the ring and does not wait for more.
func (g *Guard) empty(q *queue) {
	q.r.SetDeadline(time.Unix(1, 0))
	defer q.r.SetDeadline(time.Time{})
	var rec ringbuf.Record
	for {
		switch err := q.r.ReadInto(&rec); {
		case err == nil:
			g.deliver(q, &rec)
		case !errors.Is(err, ringbuf.ErrFlushed): // os.ErrDeadlineExceeded
			return
		}
	}
}

// deliver hands one event on and gives its room back.
func (g *Guard) deliver(q *queue, rec *ringbuf.Record) {
	q.late = rec.Remaining > backlog
	e, err := g.decode(rec.RawSample, q)
	if err != nil {
		panic("guard: object and package do not match, run go generate: " + err.Error())
	}
	h := (*witnessHead)(unsafe.Pointer(&rec.RawSample[0]))
	g.mem.consumed(h.Slot, q.ring, len(rec.RawSample))
	g.pace(h.Slot, q.ring)
	if g.divert(e) {
		return
	}
	g.send(e, h.Cgroup)
}

// send puts one event into the stream, or counts it once nobody takes any.
func (g *Guard) send(e Event, cgroup uint64) {
	select {
	case g.events <- e:
		g.sent.Add(1)
		return
	default:
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case g.events <- e:
			g.sent.Add(1)
			return
		case <-g.done:
			g.abandon(cgroup)
			return
		case <-tick.C: // the rings fill while the receiver is busy
			g.paceAll()
		}
	}
}

// taken counts the events that were received from the stream. A little less
// than the truth while a reader is at work, never more.
func (g *Guard) taken() int64 { return g.sent.Load() - int64(len(g.events)) }

// settle waits until all that is in the rings now was received, for patience
// at most.
func (g *Guard) settle() {
	late := time.Now().Add(patience)
	wait := func(ready func() bool) {
		for !ready() && time.Now().Before(late) {
			time.Sleep(time.Millisecond)
		}
	}
	for _, q := range g.queues {
		n := q.ask()
		wait(func() bool { return q.answered.Load() >= n })
	}
	n := g.sent.Load()
	wait(func() bool { return g.taken() >= n })
}

// drain ends the readers, after the programs were detached: each leaves with
// its ring empty, or all when nothing was received for patience.
func (g *Guard) drain() {
	g.detached.Store(true)
	for _, q := range g.queues {
		q.ask()
	}
	left := make(chan struct{})
	go func() { g.read.Wait(); close(left) }()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for n, since := g.taken(), time.Now(); time.Since(since) < patience; {
		select {
		case <-left:
			return
		case <-tick.C:
		}
		if m := g.taken(); m != n {
			n, since = m, time.Now()
		}
	}
	close(g.done)
	<-left
}
