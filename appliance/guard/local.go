package guard

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// locals is the list of what listens in the namespaces that this process
// steers: one program for all of them, which stays once it is there, because it
// takes 35 ms to load. Each namespace may have 512 sockets on the list; what an
// agent lets listen beyond them is not reached.
var locals tracker

type tracker struct {
	mu    sync.Mutex // guards the rest
	parts trackerParts
	link  link.Link // nil: not loaded yet
}

// trackerParts are the objects of bpf/steer.c that exist once.
type trackerParts struct {
	OnState *ebpf.Program `ebpf:"on_state"`
	Spaces  *ebpf.Map     `ebpf:"spaces"`
	Listed  *ebpf.Map     `ebpf:"listed"`
}

func (p *trackerParts) Close() error {
	return errors.Join(p.Spaces.Close(), p.Listed.Close(), p.OnState.Close()) // nil is fine
}

// begin has the sockets of a namespace listed from now on, and gives the list,
// which is the caller's to close.
func (t *tracker) begin(space uint32) (*ebpf.Map, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.link == nil {
		if err := t.load(); err != nil {
			return nil, fmt.Errorf("list what listens: %w", err)
		}
	}
	m, err := ebpf.NewMap(portList())
	var is ebpf.MapID
	if err == nil {
		is, err = idOf(m)
	}
	if err == nil {
		err = t.until(func() error { return t.parts.Spaces.Put(space, m) }, space, is)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("list what listens in net:[%d]: %w", space, err), m.Close())
	}
	return m, nil
}

func idOf(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, err
	}
	id, ok := info.ID()
	if !ok {
		return 0, errors.New("the kernel does not say which number the map has")
	}
	return id, nil
}

// until changes the list of a namespace and returns when programs see is there; 0:
// none. The kernel's own call returns much later, some 10 ms: when no program that
// might have seen the list before is running any more (maybe_wait_bpf_programs),
// which nobody here waits for.
func (t *tracker) until(change func() error, space uint32, is ebpf.MapID) error {
	done := make(chan error, 1)
	go func() { done <- change() }()
	for {
		select {
		case err := <-done:
			return err
		default:
		}
		var now ebpf.MapID
		if err := t.parts.Spaces.Lookup(space, &now); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return errors.Join(err, <-done)
		}
		if now == is {
			return nil
		}
		time.Sleep(20 * time.Microsecond)
	}
}

// portList is listening in bpf/steer.c: how many sockets listen on each port.
func portList() *ebpf.MapSpec {
	return &ebpf.MapSpec{Name: "listening", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1 << 16}
}

// end forgets a namespace that had the list m. The number of one that is gone may
// be another's already, with a list of its own, which stays.
func (t *tracker) end(space uint32, m *ebpf.Map) error {
	is, err := idOf(m)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var now ebpf.MapID
	if err := t.parts.Spaces.Lookup(space, &now); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	if now != is {
		return nil
	}
	return t.until(func() error { return t.parts.Spaces.Delete(space) }, space, 0)
}

func (t *tracker) load() error {
	spec, err := loadSteer()
	if err != nil {
		return err
	}
	spec.Maps["spaces"].InnerMap = portList()
	if err := spec.LoadAndAssign(&t.parts, nil); err != nil {
		return err
	}
	l, err := link.AttachTracing(link.TracingOptions{Program: t.parts.OnState, AttachType: ebpf.AttachTraceRawTp})
	if err != nil {
		return errors.Join(err, t.parts.Close())
	}
	t.link = l
	return nil
}

// inum is the number of a network namespace, as the kernel names it.
func inum(fd int) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	return uint32(st.Ino), nil
}
