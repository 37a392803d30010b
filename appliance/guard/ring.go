package guard

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ring is the reading end of a BPF ring buffer (Linux, kernel/bpf/ringbuf.c: a
// page with the consumer's position, one with the producer's, then the data,
// which is mapped twice so that no record is cut in two). A record is a header of
// eight bytes, whose first four are its length and two flags, and its bytes, filled
// up to a multiple of eight.
//
// Other readers move the consumer's position as they read. Here reading and giving
// back are two things: a record stays in the ring, pinned with it, until somebody
// has put it where it lasts. For that one goroutine reads and waits; release and
// kick are safe beside it.
type ring struct {
	next uint64 // position of the first record not read
	seen uint64 // position up to which records were there when last asked

	cons, prod *uint64 // positions, shared with the kernel
	data       []byte
	maps       [][]byte
	woken      int // eventfd
	kicked     int // epoll of woken
	either     int // epoll of woken and of the ring
}

// Flags in a record's length, include/uapi/linux/bpf.h.
const (
	ringBusy    = 1 << 31
	ringDiscard = 1 << 30
	ringHeader  = 8
)

func newRing(m *ebpf.Map) (*ring, error) {
	r := &ring{woken: -1, kicked: -1, either: -1}
	if err := r.open(m); err != nil {
		r.close()
		return nil, fmt.Errorf("open event ring: %w", err)
	}
	return r, nil
}

func (r *ring) open(m *ebpf.Map) (err error) {
	page, size := unix.Getpagesize(), int(m.MaxEntries())
	cons, err := r.mmap(m, 0, page, unix.PROT_READ|unix.PROT_WRITE)
	if err != nil {
		return err
	}
	prod, err := r.mmap(m, page, page+2*size, unix.PROT_READ)
	if err != nil {
		return err
	}
	r.cons, r.prod, r.data = (*uint64)(unsafe.Pointer(&cons[0])), (*uint64)(unsafe.Pointer(&prod[0])), prod[page:]
	r.next = r.consumed()
	if r.woken, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return err
	}
	if r.kicked, err = epoll(r.woken); err != nil {
		return err
	}
	r.either, err = epoll(r.woken, m.FD())
	return err
}

func (r *ring) mmap(m *ebpf.Map, at, size, prot int) ([]byte, error) {
	b, err := unix.Mmap(m.FD(), int64(at), size, prot, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	r.maps = append(r.maps, b)
	return b, nil
}

// epoll waits for any of the descriptors.
func epoll(fds ...int) (int, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return -1, err
	}
	for _, fd := range fds {
		if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
			return -1, errors.Join(err, unix.Close(ep))
		}
	}
	return ep, nil
}

func (r *ring) close() {
	for _, b := range r.maps {
		unix.Munmap(b)
	}
	for _, fd := range []int{r.woken, r.kicked, r.either} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	*r = ring{woken: -1, kicked: -1, either: -1}
}

func (r *ring) produced() uint64 { return atomic.LoadUint64(r.prod) }
func (r *ring) consumed() uint64 { return atomic.LoadUint64(r.cons) }

// read gives the next complete record, which is good until it is released, and
// the position behind it.
func (r *ring) read() (b []byte, end uint64, ok bool) {
	for r.more() {
		at := r.next & uint64(len(r.data)/2-1)
		// The kernel clears the flag when the bytes are there, in this order.
		n := atomic.LoadUint32((*uint32)(unsafe.Pointer(&r.data[at])))
		if n&ringBusy != 0 {
			break
		}
		size := uint64(n &^ ringDiscard)
		r.next += ringHeader + (size+7)&^7
		if n&ringDiscard == 0 {
			return r.data[at+ringHeader:][:size:size], r.next, true
		}
	}
	return nil, 0, false
}

// more tells whether there is a record. To look where the kernel writes costs
// both sides, so it looks when all that it knows of is read.
func (r *ring) more() bool {
	if r.next >= r.seen {
		r.seen = r.produced()
	}
	return r.next < r.seen
}

// left is how many bytes are not read yet.
func (r *ring) left() uint64 { return r.produced() - r.next }

// release gives the room up to a position back, which only grows.
func (r *ring) release(end uint64) { atomic.StoreUint64(r.cons, end) }

// kick ends a wait, or the next one.
func (r *ring) kick() {
	// It fails where the count is at its end: then it is not zero either.
	unix.Write(r.woken, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

// wait pauses, so that events gather, and then waits for one. The kernel wakes
// the reader for a record only if all before it are released: while some are
// not, the pause is all.
func (r *ring) wait(pause time.Duration) {
	if r.poll(r.kicked, int(pause.Milliseconds())) || r.consumed() != r.next {
		return
	}
	r.poll(r.either, -1)
}

// poll waits for ms, or for ever, and tells whether something came.
func (r *ring) poll(ep, ms int) bool {
	var es [2]unix.EpollEvent
	n, err := unix.EpollWait(ep, es[:], ms)
	if n > 0 { // a kick that comes after the wait is for the next one
		var b [8]byte
		unix.Read(r.woken, b[:]) // EAGAIN where there was no kick
	}
	return n > 0 || err != nil
}
