package k3shost

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Gateway is the LAN's default route: an address that is there, so that a
// packet for elsewhere is sent and can be counted, and forwards nothing.
var Gateway = netip.MustParseAddr("10.77.0.1")

const prefixLen = 24

// LAN is a bridge in a network namespace of its own. No interface leads out.
type LAN struct {
	ns *os.File

	mu   sync.Mutex
	next netip.Addr
	n    int
}

// NewLAN makes one. It is gone after Close, or when this program ends.
func NewLAN() (*LAN, error) {
	l := &LAN{next: Gateway.Next()}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			var err error
			if l.ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
				return err
			}
			return bridge()
		}()
	}()
	if err := <-done; err != nil {
		l.Close()
		return nil, fmt.Errorf("k3shost: lan: %w", err)
	}
	return l, nil
}

// bridge makes and raises the bridge in the current namespace.
func bridge() error {
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "lan"}}
	if err := netlink.LinkAdd(br); err != nil {
		return err
	}
	if err := netlink.AddrAdd(br, &netlink.Addr{IPNet: ipNet(Gateway)}); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, link := range []netlink.Link{lo, br} {
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
	}
	return nil
}

// Close lets the network go. Machines on it keep an interface without a peer.
func (l *LAN) Close() error {
	if l.ns == nil {
		return nil
	}
	return l.ns.Close()
}

func ipNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(prefixLen, 32)}
}

// inside runs f in the LAN's namespace.
func (l *LAN) inside(f func() error) error {
	return inNetNS(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), l.ns.Fd()), f)
}

// attach gives the namespace of pid an interface eth0 with an address and the
// default route.
func (l *LAN) attach(pid int, want netip.Addr) (netip.Addr, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	addr := want
	if !addr.IsValid() {
		addr = l.next
		l.next = addr.Next()
	}
	l.n++
	err := l.inside(func() error {
		br, err := netlink.LinkByName("lan")
		if err != nil {
			return err
		}
		port := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("port%d", l.n), MasterIndex: br.Attrs().Index},
			PeerName:  "eth0", PeerNamespace: netlink.NsPid(pid),
		}
		if err := netlink.LinkAdd(port); err != nil {
			return err
		}
		return netlink.LinkSetUp(port)
	})
	if err != nil {
		return addr, err
	}
	return addr, inNetNS(fmt.Sprintf("/proc/%d/ns/net", pid), func() error { return configure(addr) })
}

// configure raises lo and eth0 in the current namespace.
func configure(addr netip.Addr) error {
	for _, name := range []string{"lo", "eth0"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		if name == "lo" {
			continue
		}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: Gateway.AsSlice()}); err != nil {
			return err
		}
	}
	return nil
}
