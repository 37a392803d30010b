package guard

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/cilium/ebpf/link"
)

// Steer makes one listener answer every TCP connection of a network namespace,
// to any local address and port, from now until Close. Loopback is no
// exception: a server inside the namespace is no longer reached. UDP is not
// touched.
//
// tcp is a listening socket, of whatever namespace. To answer IPv6 as well it
// must be an IPv6 socket without IPV6_V6ONLY, as net.Listen("tcp", ":0") makes;
// to a listener of the wrong family, and after the listener was closed,
// connections are refused. LocalAddr of an accepted connection is the
// destination that the client asked for.
func (g *Guard) Steer(netns *os.File, tcp syscall.RawConn) (io.Closer, error) {
	s := new(steering)
	if err := loadSteerObjects(&s.objs, nil); err != nil {
		return nil, fmt.Errorf("guard: steer: load BPF program: %w", err)
	}
	if err := s.begin(netns, tcp); err != nil {
		return nil, errors.Join(fmt.Errorf("guard: steer: %w", err), s.objs.Close())
	}
	keep(s)
	return s, nil
}

// steering is one attached sk_lookup program with its own map.
type steering struct {
	objs steerObjects
	link link.Link
	once sync.Once
}

func (s *steering) begin(netns *os.File, tcp syscall.RawConn) error {
	err := control(tcp, func(fd int) error { return s.objs.Listener.Put(uint32(0), uint64(fd)) })
	if err != nil {
		return fmt.Errorf("take the listener (want a listening TCP socket): %w", err)
	}
	raw, err := netns.SyscallConn()
	if err != nil {
		return err
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
		err = errors.Join(s.link.Close(), s.objs.Close())
		drop(s)
	})
	return err
}
