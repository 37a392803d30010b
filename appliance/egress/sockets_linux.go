package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/policies"
)

// Sockets are a sandbox's ends that egress answers. They were made inside its
// namespace and are plain descriptors from then on: whoever serves them needs
// no privilege, and whoever keeps duplicates can hand the same sockets to the
// next process when that one dies. Connections that come in between wait in
// the kernel's queue.
type Sockets struct {
	TCP     []*os.File // listeners: one for every port when Steered, else one for each
	DNS     *os.File   // UDP
	Steered bool
}

// Close closes these descriptors. Duplicates stay open.
func (s *Sockets) Close() error {
	var errs []error
	for _, f := range s.TCP {
		errs = append(errs, f.Close())
	}
	if s.DNS != nil {
		errs = append(errs, s.DNS.Close())
	}
	return errors.Join(errs...)
}

// SocketOptions say what OpenSockets makes.
type SocketOptions struct {
	// Steer sends every TCP port of a namespace to one listener
	// (guard.Guard.Steer). Nil: only Ports are heard, which Serve records as
	// a weakening.
	Steer func(netns *os.File, tcp syscall.RawConn) (io.Closer, error)
	// Ports are heard besides 80 and 443 where there is no steering: PolicyPorts.
	Ports []int
}

// OpenSockets makes a namespace ready: lo, AnyIP routes, the sockets and the
// steering. It wants CAP_SYS_ADMIN and CAP_NET_ADMIN over the namespace, and
// what Steer wants. The Closer takes routes and steering back, and comes
// after Serve's: without routes no reset reaches the agent. It does not close
// the Sockets.
func OpenSockets(netns *os.File, o SocketOptions) (*Sockets, io.Closer, error) {
	fd, err := unix.FcntlInt(netns.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("egress: keep network namespace %s: %w", netns.Name(), err)
	}
	l := &land{netns: os.NewFile(uintptr(fd), netns.Name())}
	s := &Sockets{Steered: o.Steer != nil}
	err = within(l.netns, func() error {
		if err := routes(true); err != nil {
			return err
		}
		return s.open(o)
	})
	if err == nil && o.Steer != nil {
		l.steer, err = steerTo(l.netns, s.TCP[0], o)
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("egress: sockets: %w", err), s.Close(), l.Close())
	}
	return s, l, nil
}

// open makes the sockets. It runs in the namespace.
func (s *Sockets) open(o SocketOptions) error {
	ports := []int{0}
	if o.Steer == nil {
		ports = append(slices.Clone(o.Ports), 80, 443)
		slices.Sort(ports)
		ports = slices.Compact(ports)
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // sk_lookup can't steer to an MPTCP socket
	host := "[::]:"
	if !hasIPv6() {
		host = "0.0.0.0:"
	}
	for _, port := range ports {
		l, err := lc.Listen(context.Background(), "tcp", host+strconv.Itoa(port))
		if err != nil {
			return fmt.Errorf("listen in the sandbox: %w", err)
		}
		f, err := l.(*net.TCPListener).File()
		if err := errors.Join(err, l.Close()); err != nil {
			return fmt.Errorf("take the sandbox's listener: %w", err)
		}
		s.TCP = append(s.TCP, f)
	}
	dns, err := lc.ListenPacket(context.Background(), "udp4", resolver)
	if err != nil {
		return fmt.Errorf("answer DNS in the sandbox: %w", err)
	}
	f, err := dns.(*net.UDPConn).File()
	if err := errors.Join(err, dns.Close()); err != nil {
		return fmt.Errorf("take the sandbox's DNS socket: %w", err)
	}
	s.DNS = f
	return nil
}

func steerTo(netns, tcp *os.File, o SocketOptions) (io.Closer, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	return o.Steer(netns, raw)
}

// land is what OpenSockets changed in a namespace.
type land struct {
	netns *os.File
	steer io.Closer
	shut  sync.Once
}

// Close undoes it.
func (l *land) Close() (err error) {
	l.shut.Do(func() {
		if l.steer != nil {
			err = l.steer.Close()
		}
		err = errors.Join(err, within(l.netns, func() error { return routes(false) }), l.netns.Close())
	})
	return err
}

// PolicyPorts are the ports that a policy's rules name: SocketOptions.Ports.
func PolicyPorts(p *policies.Policy) (ports []int) {
	for _, r := range p.Network.Allow {
		ports = append(ports, r.Ports...)
	}
	return ports
}
