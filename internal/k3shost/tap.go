package k3shost

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// Tap counts what machines send on a LAN.
type Tap struct {
	fd   int
	done chan struct{}

	mu  sync.Mutex
	saw map[Sent]int
}

// Sent is one kind of frame.
type Sent struct {
	Proto string // "arp", "udp 53", "tcp 443", "icmp", "ip 47", "ipv6", or "0x…" of another Ethernet type
	To    netip.Addr
}

// Tap starts counting every frame that a machine sends, wherever it goes: the
// default gateway is there and takes what nobody else does.
func (l *LAN) Tap() (*Tap, error) {
	t := &Tap{done: make(chan struct{}), saw: map[Sent]int{}}
	err := l.inside(func() (err error) {
		all := int(htons(unix.ETH_P_ALL))
		if t.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		tv := unix.Timeval{Usec: 100_000} // how long Close waits
		return unix.SetsockoptTimeval(t.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	})
	if err != nil {
		return nil, fmt.Errorf("k3shost: tap: %w", err)
	}
	go t.read()
	return t, nil
}

func htons(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

func (t *Tap) read() {
	defer unix.Close(t.fd)
	buf := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(t.fd, buf, 0)
		select {
		case <-t.done:
			return
		default:
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		// A port takes a frame from a machine; what the bridge hands on was counted there.
		if err != nil || !ok || ll.Pkttype == unix.PACKET_OUTGOING || ll.Hatype != unix.ARPHRD_ETHER {
			continue
		}
		if s, ok := parse(buf[:n]); ok {
			t.mu.Lock()
			t.saw[s]++
			t.mu.Unlock()
		}
	}
}

// Saw is what was sent until now. A frame is counted once or, where the bridge's own
// address is meant, twice.
func (t *Tap) Saw() map[Sent]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.saw)
}

// Outside is what of it was meant for no machine of the LAN: every address
// but those of the LAN's machines and multicast on the link, and whoever asks
// for the gateway.
func (t *Tap) Outside() map[Sent]int {
	out := t.Saw()
	maps.DeleteFunc(out, func(s Sent, _ int) bool {
		mine := netip.PrefixFrom(Gateway, prefixLen).Contains(s.To) && s.To != Gateway
		return mine || s.To.IsLinkLocalMulticast()
	})
	return out
}

// Close ends counting.
func (t *Tap) Close() { close(t.done) }

// parse reads the heads of a frame. Source: RFC 826, 791, 8200.
func parse(f []byte) (Sent, bool) {
	if len(f) < 14 {
		return Sent{}, false
	}
	typ, b := binary.BigEndian.Uint16(f[12:]), f[14:]
	switch {
	case typ == unix.ETH_P_ARP && len(b) >= 28:
		return Sent{"arp", netip.AddrFrom4([4]byte(b[24:28]))}, true
	case typ == unix.ETH_P_IPV6 && len(b) >= 40:
		return Sent{"ipv6", netip.AddrFrom16([16]byte(b[24:40]))}, true
	case typ == unix.ETH_P_IP && len(b) >= 20:
		return Sent{ipProto(b), netip.AddrFrom4([4]byte(b[16:20]))}, true
	}
	return Sent{fmt.Sprintf("%#04x", typ), netip.Addr{}}, true
}

// ipProto names an IPv4 packet's protocol and, for TCP and UDP, its port.
func ipProto(b []byte) string {
	names := map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}
	head := int(b[0]&15) * 4
	if name := names[b[9]]; name != "" && len(b) >= head+4 {
		return fmt.Sprintf("%s %d", name, binary.BigEndian.Uint16(b[head+2:]))
	}
	if b[9] == unix.IPPROTO_ICMP {
		return "icmp"
	}
	return fmt.Sprintf("ip %d", b[9])
}
