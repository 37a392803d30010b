package egress

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// fakes is the range that DNS answers come from. Its first /24 is kept for the
// sandbox's own addresses.
var (
	fakes = netip.MustParsePrefix("198.18.0.0/15")
	self  = netip.MustParsePrefix("198.18.0.1/32")
)

// never lists what no connection may reach, with the reason. The IANA special
// purpose registries and the providers' documents are the sources.
var never = []struct {
	net netip.Prefix
	why string
}{
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("0.0.0.0/8"), "unspecified"},
	{netip.MustParsePrefix("::/128"), "unspecified"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local, where clouds keep their metadata"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("fec0::/10"), "site-local, withdrawn"},
	{netip.MustParsePrefix("fd00:ec2::/32"), "metadata of AWS"},
	{netip.MustParsePrefix("fd20:ce::/64"), "metadata of Google Cloud"},
	{netip.MustParsePrefix("fd00:c1::/32"), "metadata of Oracle Cloud"},
	{netip.MustParsePrefix("fd00:42::42/128"), "metadata of Scaleway"},
	{netip.MustParsePrefix("fd00:a9fe:a9fe::1/128"), "metadata of Akamai Cloud"},
	{netip.MustParsePrefix("fd00:100::100:200/128"), "metadata of Alibaba Cloud"},
	{netip.MustParsePrefix("100.100.100.200/32"), "metadata of Alibaba Cloud"},
	{netip.MustParsePrefix("100.96.0.96/32"), "metadata of Volcano Engine"},
	{netip.MustParsePrefix("100.80.80.80/32"), "metadata of UCloud"},
	{netip.MustParsePrefix("168.63.129.16/32"), "metadata of Azure"},
	{netip.MustParsePrefix("192.0.0.0/24"), "protocol assignments, and metadata of Oracle Cloud"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved and broadcast"},
	{fakes, "the range of this appliance's own DNS answers; resolve the name again"},
	// Forms of IPv6 that carry an IPv4 address past the lines above.
	{netip.MustParsePrefix("::/96"), "an IPv4-compatible address"},
	{netip.MustParsePrefix("::ffff:0:0:0/96"), "an address translated from IPv4"},
	{netip.MustParsePrefix("64:ff9b::/96"), "a NAT64 address"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "a NAT64 address"},
	{netip.MustParsePrefix("2002::/16"), "a 6to4 address"},
	{netip.MustParsePrefix("2001::/32"), "a Teredo address"},
	{netip.MustParsePrefix("100::/64"), "the discard prefix"},
}

// inside lists the private ranges: allowed only where somebody named the address.
var inside = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fc00::/7"),
}

// controlPorts are refused at private addresses whatever a policy says: etcd,
// the Kubernetes API (also as K3s and kind have it), kubelet, Docker, and
// containerd's and Podman's remote ends.
var controlPorts = map[int]bool{2379: true, 2380: true, 2375: true, 2376: true, 6443: true, 6444: true, 8001: true, 10250: true, 10255: true, 10257: true, 10259: true}

// forbidden says why a may never be reached, or "".
func forbidden(a netip.Addr) string {
	a = a.Unmap().WithZone("")
	for _, x := range never {
		if x.net.Contains(a) {
			return x.why
		}
	}
	return ""
}

// private says whether a is in a range that sites use inside.
func private(a netip.Addr) bool {
	for _, n := range inside {
		if n.Contains(a.Unmap()) {
			return true
		}
	}
	return false
}

// ownAddrs knows this host's addresses, a few seconds late.
type ownAddrs struct {
	mu   sync.Mutex
	at   time.Time
	set  map[netip.Addr]bool
	fail bool
}

const ownAge = 5 * time.Second

// has says whether a is the host's own. When the host can't tell, every
// address counts as its own: closed.
func (o *ownAddrs) has(a netip.Addr) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if time.Since(o.at) > ownAge {
		o.read()
	}
	return o.fail || o.set[a.Unmap().WithZone("")]
}

func (o *ownAddrs) read() {
	as, err := net.InterfaceAddrs()
	o.at, o.fail, o.set = time.Now(), err != nil, map[netip.Addr]bool{}
	for _, a := range as {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				o.set[ip.Unmap()] = true
			}
		}
	}
}
