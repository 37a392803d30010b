package guard

import (
	"errors"
	"fmt"
	"sync"

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
	if err == nil {
		err = t.parts.Spaces.Put(space, m)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("list what listens in net:[%d]: %w", space, err), m.Close())
	}
	return m, nil
}

// portList is listening in bpf/steer.c: how many sockets listen on each port.
func portList() *ebpf.MapSpec {
	return &ebpf.MapSpec{Name: "listening", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1 << 16}
}

// end forgets a namespace.
func (t *tracker) end(space uint32) error { return t.parts.Spaces.Delete(space) }

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
