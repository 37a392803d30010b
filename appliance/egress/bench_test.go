package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/clawbox/clawbox/policies"
)

// Connect, one byte there and back, close: decision, two records and a second
// connection to a loopback server included.
func BenchmarkConnect(b *testing.B) {
	l := benchLab(b)
	defer processor(b)()
	err := within(l.ns, func() error {
		for b.Loop() {
			c, err := net.Dial("tcp", "192.0.2.1:7000")
			if err != nil {
				return err
			}
			if !ping(c) {
				b.Fatal("no echo")
			}
			c.Close()
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

// processor reports what a round takes of the processors, both ends included:
// that says more than its time where others work, too.
func processor(b *testing.B) func() {
	used := func() time.Duration {
		var u syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	start := used()
	return func() { b.ReportMetric(float64((used()-start).Nanoseconds())/float64(b.N), "cpu-ns/op") }
}

// The same without a sandbox, to compare with: the machine's own share.
func BenchmarkDirect(b *testing.B) {
	l := benchLab(b)
	defer processor(b)()
	for b.Loop() {
		c, err := l.proxy.c.Dial(b.Context(), "tcp", "")
		if err != nil {
			b.Fatal(err)
		}
		if !ping(c) {
			b.Fatal("no echo")
		}
		c.Close()
	}
}

// One byte there and back on an open connection.
func BenchmarkRoundTrip(b *testing.B) {
	l := benchLab(b)
	c, err := l.tryConnect("tcp", "192.0.2.1:7000")
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for b.Loop() {
		if !ping(c) {
			b.Fatal("no echo")
		}
	}
}

func BenchmarkAttach(b *testing.B) {
	l := benchLab(b)
	for b.Loop() {
		if err := l.at.Close(); err != nil {
			b.Fatal(err)
		}
		l.attach()
	}
}

// benchLab dials one echo server outside, as cheap as a server can be.
func benchLab(b *testing.B) *lab {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); echo(c) }()
		}
	}()
	var d net.Dialer
	l := newLab(b, steered(steer(b)), func(c *Config, _ *holdsConfig) {
		c.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return d.DialContext(ctx, network, ln.Addr().String())
		}
	})
	l.network(allow(policies.HostRule{CIDR: "192.0.2.0/24", Ports: []int{7000}}))
	return l
}

func ping(c net.Conn) bool {
	buf := []byte{1}
	if _, err := c.Write(buf); err != nil {
		return false
	}
	_, err := io.ReadFull(c, buf)
	return err == nil
}

// One request on a kept connection that is inspected, TLS on both sides.
func BenchmarkInspectedRequest(b *testing.B) {
	for _, h2 := range []bool{false, true} {
		b.Run(map[bool]string{false: "HTTP1", true: "HTTP2"}[h2], func(b *testing.B) {
			l, _ := inspectLab(b, hello200)
			c := l.client(h2)
			for b.Loop() {
				if st, body, _ := do(b, c, "GET", "https://a.example/", ""); st != 200 {
					b.Fatal(body)
				}
			}
		})
	}
}

// A new inspected connection and its first request, TLS on both sides.
func BenchmarkInspectedConnect(b *testing.B) {
	l, _ := inspectLab(b, hello200)
	pem, err := l.proxy.CA("a1")
	if err != nil {
		b.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	_, as := l.query("a.example", dnsmessage.TypeA)
	err = within(l.ns, func() error {
		for b.Loop() {
			c, err := tls.Dial("tcp", as[0].String()+":443", &tls.Config{ServerName: "a.example", RootCAs: pool})
			if err != nil {
				return err
			}
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
			if st := answer(bufio.NewReader(c)); st != 200 {
				b.Fatal(st)
			}
			c.Close()
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

// A reload with a hundred connections open, every one of which stays.
func BenchmarkRecheck(b *testing.B) {
	l := benchLab(b)
	for range 100 {
		c, err := l.tryConnect("tcp", "192.0.2.1:7000")
		if err != nil || !ping(c) {
			b.Fatal("no echo")
		}
		defer c.Close()
	}
	for b.Loop() {
		l.network(allow(policies.HostRule{CIDR: "192.0.2.0/24", Ports: []int{7000}}))
		l.proxy.Recheck("a1")
	}
}

// A reload that closes all of fifty connections.
func BenchmarkCut(b *testing.B) {
	l := benchLab(b)
	for b.Loop() {
		b.StopTimer()
		l.network(allow(policies.HostRule{CIDR: "192.0.2.0/24", Ports: []int{7000}}))
		for range 50 {
			c, err := l.tryConnect("tcp", "192.0.2.1:7000")
			if err != nil || !ping(c) {
				b.Fatal("no echo")
			}
			defer c.Close()
		}
		l.network(policies.Network{Default: policies.Deny})
		b.StartTimer()
		l.proxy.Recheck("a1")
	}
}
