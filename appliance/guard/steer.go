package guard

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Steer makes one listener answer every TCP connection of a network namespace,
// to any local address and port, from now until Close, but for those to loopback
// addresses at a port on which something inside listens: they reach it, if it
// began to after Steer, and bound the port itself. UDP is not touched.
//
// tcp is a listening socket that was made inside netns: the kernel answers from
// the listener's namespace, so one from outside would never get a handshake
// done. It is no multipath socket as net.Listen makes since Go 1.24: use
// net.ListenConfig.SetMultipathTCP(false). To answer IPv6 as well it must be
// an IPv6 socket without IPV6_V6ONLY, as the address ":0" gives. To a listener
// of the wrong family, or one closed since, connections are refused. LocalAddr
// of an accepted connection is the destination that the client asked for.
func (g *Guard) Steer(netns *os.File, tcp syscall.RawConn) (io.Closer, error) {
	raw, err := netns.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := new(steering)
	if err = control(raw, func(fd int) error { s.space, err = inum(fd); return err }); err == nil {
		err = s.load()
	}
	if err == nil {
		err = s.begin(netns, tcp)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("guard: steer: %w", err), s.free())
	}
	keep(s)
	return s, nil
}

// steering is one attached sk_lookup program with its own map.
type steering struct {
	objs  steeringParts
	space uint32
	lists *ebpf.Map // what locals list of the namespace; nil: nothing yet
	link  link.Link
	once  sync.Once
}

// steeringParts are the objects of bpf/steer.c that each namespace has.
type steeringParts struct {
	Steer    *ebpf.Program `ebpf:"steer"`
	Listener *ebpf.Map     `ebpf:"listener"`
}

// load loads the program for one namespace.
func (s *steering) load() error {
	spec, err := loadSteer()
	if err != nil {
		return err
	}
	// The kernel takes no BTF for a sockmap; asking it costs 20 ms.
	m := spec.Maps["listener"]
	m.Key, m.Value = nil, nil
	list, err := locals.begin(s.space)
	if err != nil {
		return err
	}
	s.lists = list
	if err := spec.LoadAndAssign(&s.objs, &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{"listening": list}}); err != nil {
		return fmt.Errorf("load BPF program: %w", err)
	}
	return nil
}

// free closes what load has made.
func (s *steering) free() (err error) {
	if s.lists != nil {
		err = errors.Join(locals.end(s.space, s.lists), s.lists.Close())
	}
	return errors.Join(err, s.objs.Steer.Close(), s.objs.Listener.Close())
}

func (s *steering) begin(netns *os.File, tcp syscall.RawConn) error {
	raw, err := netns.SyscallConn()
	if err != nil {
		return err
	}
	err = control(tcp, func(fd int) error {
		if err := plainListener(fd); err != nil {
			return err
		}
		if err := sameNamespace(fd, raw); err != nil {
			return err
		}
		return s.objs.Listener.Put(uint32(0), uint64(fd))
	})
	if err != nil {
		return fmt.Errorf("take the listener: %w", err)
	}
	err = control(raw, func(fd int) error {
		s.link, err = link.AttachNetNs(fd, s.objs.Steer)
		return err
	})
	if err != nil {
		return fmt.Errorf("attach to network namespace %s: %w", netns.Name(), err)
	}
	return nil
}

// plainListener refuses sockets that the map would take and the kernel then
// not assign.
func plainListener(fd int) error {
	proto, err1 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	listens, err2 := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	switch {
	case proto == unix.IPPROTO_MPTCP:
		return errors.New("got a multipath TCP socket, want plain TCP: net.ListenConfig.SetMultipathTCP(false)")
	case proto != unix.IPPROTO_TCP || listens == 0:
		return fmt.Errorf("got a socket of protocol %d (listening: %t), want a listening TCP socket", proto, listens != 0)
	}
	return nil
}

// sameNamespace tells whether socket fd belongs to netns.
func sameNamespace(fd int, netns syscall.RawConn) error {
	own, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS) // a descriptor, since Linux 4.9
	if err != nil {
		return fmt.Errorf("ask for the listener's network namespace: %w", err)
	}
	defer unix.Close(own)
	var a, b unix.Stat_t
	var fs unix.Statfs_t
	err = control(netns, func(ns int) error {
		return errors.Join(unix.Fstat(own, &a), unix.Fstat(ns, &b), unix.Fstatfs(ns, &fs))
	})
	if err != nil {
		return err
	}
	if fs.Type != unix.NSFS_MAGIC {
		return errors.New("want an open /proc/PID/ns/net for the namespace, got another file")
	}
	if a.Dev != b.Dev || a.Ino != b.Ino {
		return fmt.Errorf("the listener is of another network namespace (net:[%d], want net:[%d]): make it inside", a.Ino, b.Ino)
	}
	return nil
}

// control joins the two errors of RawConn.Control.
func control(c syscall.RawConn, f func(fd int) error) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}

// Close gives the namespace's ports back. It may be called twice.
func (s *steering) Close() (err error) {
	s.once.Do(func() {
		err = errors.Join(s.link.Close(), s.free())
		drop(s)
	})
	return err
}
