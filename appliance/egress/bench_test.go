package egress

import (
	"io"
	"net"
	"testing"

	"github.com/clawbox/clawbox/policies"
)

// Connect, one byte there and back, close: decision, two records and a second
// connection to a loopback server included.
func BenchmarkConnect(b *testing.B) {
	l := benchLab(b)
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

func benchLab(b *testing.B) *lab {
	l := newLab(b, steered(steer(b)))
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
