package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// The addresses of the other side. The public ones are nobody's here: both
// namespaces are closed.
const (
	vendorAddr   = "10.77.0.2"
	applAddr     = "10.77.0.1"
	publicAddr   = "93.184.215.14"
	metadataAddr = "169.254.169.254"
)

// zone is what the vendor's DNS answers; a name with two addresses gets them
// in turn, which is rebinding.
var zone = map[string][]string{
	"allowed.example.": {publicAddr},
	"denied.example.":  {publicAddr},
	"evil.example.":    {publicAddr},
	"api.example.":     {publicAddr},
	"tools.example.":   {publicAddr},
	"bound.example.":   {publicAddr},
	"slow.example.":    {publicAddr},
	"inner.example.":   {vendorAddr},
	"meta.example.":    {metadataAddr},
	"local.example.":   {"127.0.0.1"},
	"rebind.example.":  {publicAddr, "127.0.0.1"},
	"mapped.example.":  {"::ffff:127.0.0.1"},
	"zero.example.":    {"0.0.0.0"},
	"home.example.":    {applAddr},
}

// network starts the vendor and lays the cable.
func (h *host) network() error {
	if err := os.WriteFile(h.at("resolv.conf"), []byte("nameserver "+vendorAddr+"\n"), 0o644); err != nil {
		return err
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	// For the appliance, which resolves what is allowed.
	if err := unix.Mount(h.at("resolv.conf"), "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return err
	}
	h.vendor = again("vendor", h.at("vendor.log"))
	h.vendor.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	h.vendor.Stderr = os.Stderr
	in, err := h.vendor.StdinPipe()
	if err != nil {
		return err
	}
	out, err := h.vendor.StdoutPipe()
	if err != nil {
		return err
	}
	if err := h.vendor.Start(); err != nil {
		return err
	}
	lines := bufio.NewReader(out)
	if _, err := lines.ReadString('\n'); err != nil {
		return fmt.Errorf("vendor: %w", err)
	}
	if err := cable(h.vendor.Process.Pid); err != nil {
		return err
	}
	fmt.Fprintln(in, "go")
	if _, err := lines.ReadString('\n'); err != nil {
		return fmt.Errorf("vendor: %w", err)
	}
	return nil
}

// cable makes a veth pair into the namespace of pid; everything leads there.
func cable(pid int) error {
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "cable0"}, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid)}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	if err := up("lo"); err != nil {
		return err
	}
	if err := up("cable0", applAddr+"/30"); err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(vendorAddr)})
}

func up(link string, addrs ...string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	for _, s := range addrs {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}

// saw says whether the mark reached the vendor in any form. DNS names may come
// in other letter cases.
func (h *host) saw(mark string) bool {
	b, err := os.ReadFile(h.at("vendor.log"))
	return err == nil && bytes.Contains(bytes.ToLower(b), []byte(mark+"\n"))
}

// vendor is the server at the other end.
type vendor struct {
	mu   sync.Mutex
	log  *os.File
	turn atomic.Int64
}

// seen writes down each mark in what came.
func (v *vendor) seen(b []byte) {
	s := strings.ToLower(string(b))
	v.mu.Lock()
	defer v.mu.Unlock()
	for {
		i := strings.Index(s, "leak")
		if i < 0 {
			return
		}
		j := i + 4
		for j < len(s) && s[j] >= '0' && s[j] <= '9' {
			j++
		}
		fmt.Fprintln(v.log, s[i:j])
		s = s[j:]
	}
}

// serveVendor is the third process.
func serveVendor(ctx context.Context, log string) error {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	v := &vendor{log: f}
	fmt.Println("here")
	if _, err := os.Stdin.Read(make([]byte, 3)); err != nil {
		return err
	}
	if err := up("lo", publicAddr+"/32", metadataAddr+"/32"); err != nil {
		return err
	}
	if err := up("eth0", vendorAddr+"/30"); err != nil {
		return err
	}
	conf, err := tlsConfig()
	if err != nil {
		return err
	}
	for port, serve := range map[string]func(net.Conn){"80": v.web, "6443": v.web, "8080": v.web, "53": v.dnsTCP, "22": v.web} {
		if err := listen(port, serve); err != nil {
			return err
		}
	}
	if err := listen("443", func(c net.Conn) { v.secure(c, conf) }); err != nil {
		return err
	}
	for port, answer := range map[string]func([]byte) []byte{"53": v.dns, "443": echo, "9999": echo} {
		if err := v.packets(port, answer); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	<-ctx.Done()
	return nil
}

func echo(b []byte) []byte { return b }

func listen(port string, serve func(net.Conn)) error {
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(10 * time.Second))
				serve(c)
			}()
		}
	}()
	return nil
}

// lastWords is how long the vendor reads on after a request that says that it
// is the last.
const lastWords = 300 * time.Millisecond

// web reads requests and repeats them. What an allowed request carries in its
// body is the agent's own business; every other mark counts: in requests to
// another host, in what no parser reads, and behind a request whose length two
// parsers may read differently.
func (v *vendor) web(c net.Conn) {
	var raw bytes.Buffer
	in := bufio.NewReader(io.TeeReader(c, &raw))
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			v.seen(raw.Bytes())
			if raw.Len() == 0 {
				return
			}
			fmt.Fprintf(c, "HTTP/1.0 200 OK\r\n\r\nVENDOR %s", raw.Bytes())
			return
		}
		body, _ := io.ReadAll(r.Body)
		whole := append([]byte(r.Host+" "+r.RequestURI+" "+r.Header.Get("X-Original-URL")+" "), body...)
		if !harmless(r, body) || ambiguous(r) {
			v.seen(whole)
		} else {
			whole = []byte("allowed")
		}
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nVENDOR %s", len(whole)+7, whole)
		rest, _ := in.Peek(in.Buffered())
		raw.Reset()
		raw.Write(rest)
		if r.Close { // what comes behind in spite of that still counts
			c.SetReadDeadline(time.Now().Add(lastWords))
		}
	}
}

// harmless says whether the policy lets the agent send this request.
func harmless(r *http.Request, body []byte) bool {
	switch r.Host {
	case "allowed.example":
		return !strings.Contains(r.RequestURI, "leak")
	case "api.example":
		plain, err := url.PathUnescape(r.RequestURI)
		return err == nil && r.Method == http.MethodGet && strings.HasPrefix(plain, "/public/") && !strings.Contains(plain, "..") &&
			r.Header.Get("X-Original-URL") == ""
	case "tools.example":
		return !bytes.Contains(body, []byte("elete_all"))
	}
	return false
}

// ambiguous says whether another parser could see more than one request.
func ambiguous(r *http.Request) bool {
	return r.ContentLength >= 0 && len(r.TransferEncoding) > 0 || len(r.Header["Content-Length"]) > 1 || len(r.Header["Transfer-Encoding"]) > 0
}

func (v *vendor) secure(c net.Conn, conf *tls.Config) {
	t := tls.Server(c, conf)
	if t.Handshake() != nil {
		return
	}
	v.seen([]byte(t.ConnectionState().ServerName))
	v.web(t)
}

func (v *vendor) packets(port string, answer func([]byte) []byte) error {
	c, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		return err
	}
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			v.seen(b[:n])
			if out := answer(bytes.Clone(b[:n])); out != nil {
				c.WriteTo(out, from)
			}
		}
	}()
	return nil
}

func (v *vendor) dnsTCP(c net.Conn) {
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return
	}
	b := make([]byte, int(size[0])<<8|int(size[1]))
	if _, err := io.ReadFull(c, b); err != nil {
		return
	}
	v.seen(b)
	out := v.dns(b)
	c.Write(append([]byte{byte(len(out) >> 8), byte(len(out))}, out...))
}

// dns answers from the zone; every text question gets a text, which is the
// tunnel's other direction.
func (v *vendor) dns(b []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(b) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	name := strings.ToLower(q.Name.String())
	v.seen([]byte(name))
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	h := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}
	addrs := zone[name]
	if len(addrs) > 1 && q.Type == dnsmessage.TypeA {
		addrs = []string{addrs[int(v.turn.Add(1))%len(addrs)]}
	}
	switch q.Type {
	case dnsmessage.TypeTXT:
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.TXTResource{TXT: []string{"from the vendor"}}})
	case dnsmessage.TypeA, dnsmessage.TypeAAAA:
		for _, s := range addrs {
			a := net.ParseIP(s)
			if four := a.To4(); q.Type == dnsmessage.TypeA && four != nil && !strings.Contains(s, ":") {
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: [4]byte(four)}})
			}
			if q.Type == dnsmessage.TypeAAAA && strings.Contains(s, ":") {
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: [16]byte(a.To16())}})
			}
		}
		if addrs == nil {
			m.RCode = dnsmessage.RCodeNameError
		}
	}
	out, err := m.Pack()
	if err != nil {
		return nil
	}
	return out
}

// echSeed makes the vendor's key for encrypted hellos; the suite's attacks get
// its public half. It protects nothing.
var echSeed = bytes.Repeat([]byte{7}, 32)

// echConfig is an ECHConfig with one suite, as RFC 9849 writes it.
func echConfig() []byte {
	key, err := ecdh.X25519().NewPrivateKey(echSeed)
	if err != nil {
		panic(err) // 32 bytes are always a key
	}
	const public = "allowed.example"
	c := []byte{1, 0, 0x20, 0, 32} // config 1, X25519, its length
	c = append(c, key.PublicKey().Bytes()...)
	c = append(c, 0, 4, 0, 1, 0, 1, 32, byte(len(public))) // HKDF-SHA256 with AES-128-GCM
	c = append(append(c, public...), 0, 0)
	return append([]byte{0xfe, 0x0d, byte(len(c) >> 8), byte(len(c))}, c...)
}

var echList = func() string {
	c := echConfig()
	return hex.EncodeToString(append([]byte{byte(len(c) >> 8), byte(len(c))}, c...))
}()

func tlsConfig() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"allowed.example", "denied.example"},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates:             []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		EncryptedClientHelloKeys: []tls.EncryptedClientHelloKey{{Config: echConfig(), PrivateKey: echSeed, SendAsRetry: true}},
	}, nil
}
