package egress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// within runs f in a network namespace, on a thread that is thrown away. The
// main thread is not used: /proc/self shows its namespaces as the process's.
func within(netns *os.File, f func() error) error {
	done := make(chan error, 1)
	go enter(netns, f, done)
	return <-done
}

func enter(netns *os.File, f func() error, done chan<- error) {
	runtime.LockOSThread() // not unlocked below: the thread ends with this goroutine
	if unix.Gettid() == unix.Getpid() {
		again := make(chan error, 1)
		go enter(netns, f, again) // on another thread, since this one is locked
		done <- <-again
		runtime.UnlockOSThread()
		return
	}
	if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
		done <- fmt.Errorf("enter network namespace %s: %w", netns.Name(), err)
		return
	}
	done <- f()
}

// resolver is where the sandbox's resolv.conf points.
const resolver = "127.0.0.53:53"

// Isolate deletes every interface of a namespace but lo: what a container
// network has put there. Its other ends go with them. It wants CAP_SYS_ADMIN
// and CAP_NET_ADMIN over the namespace, which must not be this process's own.
func Isolate(netns *os.File) error {
	var st, own unix.Stat_t
	if err := errors.Join(unix.Fstat(int(netns.Fd()), &st), unix.Stat("/proc/self/ns/net", &own)); err != nil {
		return fmt.Errorf("egress: isolate: %w", err)
	}
	if st.Dev == own.Dev && st.Ino == own.Ino {
		return errors.New("egress: isolate: this is the host's network namespace; want a container's")
	}
	if err := within(netns, onlyLo); err != nil {
		return fmt.Errorf("egress: isolate: %w", err)
	}
	return nil
}

// onlyLo deletes the interfaces of the present namespace, and sees that they
// are gone. Some can't be deleted, only taken down: those that the kernel gives
// every namespace (sit0), and those that are the host's hardware.
func onlyLo() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		if a := l.Attrs(); a.Name != "lo" {
			if err := remove(h, l); err != nil {
				return fmt.Errorf("interface %s: %w", a.Name, err)
			}
		}
	}
	if links, err = h.LinkList(); err != nil {
		return err
	}
	for _, l := range links {
		if a := l.Attrs(); a.Name != "lo" && a.Flags&net.FlagUp != 0 {
			return fmt.Errorf("interface %s is there still, and up", a.Name)
		}
	}
	return nil
}

// remove takes a link down and deletes it, unless the kernel keeps it for the
// namespace, or it went with its other end.
func remove(h *netlink.Handle, l netlink.Link) error {
	err := h.LinkSetDown(l)
	if err == nil {
		err = h.LinkDel(l)
	}
	for _, fine := range []error{unix.ENODEV, unix.EOPNOTSUPP, unix.EINVAL} {
		if errors.Is(err, fine) {
			return nil // onlyLo looks again
		}
	}
	return err
}

// routes brings lo up and makes every address local (AnyIP), or undoes it.
func routes(up bool) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	all := []string{"0.0.0.0/0"}
	if hasIPv6() {
		all = append(all, "::/0")
	}
	// Resolvers that ask only for families the machine has (AI_ADDRCONFIG)
	// want an address besides 127.0.0.1.
	addr := &netlink.Addr{IPNet: ipNet(self)}
	if !up {
		return unroute(h, lo, addr, all)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	if err := h.AddrReplace(lo, addr); err != nil {
		return fmt.Errorf("give lo the address %s: %w", self, err)
	}
	for _, dst := range all {
		if err := h.RouteReplace(anyIP(lo, dst)); err != nil {
			return fmt.Errorf("route %s to lo: %w", dst, err)
		}
	}
	return nil
}

// unroute takes back what routes did; what is gone already is fine.
func unroute(h *netlink.Handle, lo netlink.Link, addr *netlink.Addr, all []string) error {
	errs := []error{h.AddrDel(lo, addr)}
	for _, dst := range all {
		errs = append(errs, h.RouteDel(anyIP(lo, dst)))
	}
	gone := func(err error) bool { return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EADDRNOTAVAIL) }
	return errors.Join(slices.DeleteFunc(errs, gone)...)
}

// anyIP makes every address of dst local. What is sent there from no address in
// particular comes from self: the kernel would take the destination itself, and a
// socket that is given the port that it connects to would then talk to itself.
func anyIP(lo netlink.Link, dst string) *netlink.Route {
	r := &netlink.Route{
		LinkIndex: lo.Attrs().Index, Dst: ipNet(netip.MustParsePrefix(dst)),
		Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_HOST,
	}
	if r.Dst.IP.To4() != nil {
		r.Src = self.Addr().AsSlice()
	}
	return r
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// hasIPv6 says whether a program in this namespace can use IPv6 at all: the
// kernel may lack it, or have it switched off.
func hasIPv6() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	// /proc/sys/net shows the namespace of the thread that reads it.
	off, err := os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
	return err != nil || string(off) != "1\n"
}
