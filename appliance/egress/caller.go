package egress

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/clawbox/clawbox/appliance/ledger"
)

// who asks which process opened the connection, once.
func (c *conn) who() {
	ask := c.box.proxy.c.Who
	if ask == nil {
		return
	}
	client, err1 := netip.ParseAddrPort(c.in.RemoteAddr().String())
	server, err2 := netip.ParseAddrPort(c.in.LocalAddr().String())
	if err1 != nil || err2 != nil {
		return
	}
	if w, ok := ask(c.box.agent.ID, unmap(client), unmap(server)); ok && opened(c.in, w.At) {
		c.caller = w
		c.proc = ledger.Process{PID: w.PID, PPID: w.PPID, UID: w.UID, Comm: w.Comm}
	}
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// slack is by how much a connection may seem older than the connect that opened
// it: its age is counted in the kernel's ticks, and a busy machine's come late.
// An agent needs longer to have an end of a connection vanish without a word.
const slack = 100 * time.Millisecond

// opened says whether in is what was connected at, since the host's boot. A
// connection is known by its two ends only, and one that waits to be accepted
// keeps what was written into it: an agent can close its end and have another
// program connect from the same port, which then is told to be the opener. So,
// after the answer, the client must not have ended its side; a FIN by close and
// one by shutdown look the same. And the connection must not be older than that
// connect: a client that gives up on a full window, or one bound to lo beside one
// that is not, shares its ends with the next one while this side looks sound.
func opened(in *net.TCPConn, at time.Duration) bool {
	raw, err := in.SyscallConn()
	if err != nil || at <= 0 {
		return false
	}
	var now unix.Timespec
	var info *unix.TCPInfo
	cerr := raw.Control(func(fd uintptr) {
		if err = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err == nil {
			info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		}
	})
	if errors.Join(cerr, err) != nil || info.State != unix.BPF_TCP_ESTABLISHED {
		return false
	}
	// Nothing was sent to the client yet, and until then the kernel counts from
	// when the connection was made.
	age := time.Duration(info.Last_data_sent) * time.Millisecond
	return time.Duration(now.Nano())-age >= at-slack
}
