package egress

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/clawbox/clawbox/policies"
)

// site is a server outside: HTTP, or HTTPS with a certificate of its own CA.
type site struct {
	roots         *x509.CertPool
	conns, secure *queue

	mu   sync.Mutex
	seen []*http.Request
	body []string
}

// newSite serves h to what is dialled, over TLS for the given names.
func newSite(t testing.TB, l *lab, h http.HandlerFunc, names ...string) *site {
	s := &site{conns: newQueue(), roots: x509.NewCertPool()}
	srv := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.seen, s.body = append(s.seen, r), append(s.body, string(b))
		s.mu.Unlock()
		r.Body = io.NopCloser(strings.NewReader(string(b)))
		h(w, r)
	})}
	if len(names) > 0 {
		cert, ca := issue(t, names...)
		s.roots.AddCert(ca)
		s.secure = newQueue()
		go srv.Serve(tls.NewListener(s.secure, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2", "http/1.1"}}))
	}
	go srv.Serve(s.conns)
	t.Cleanup(func() { srv.Close() })
	if l != nil {
		l.serve(s.put)
	}
	return s
}

// put serves a connection, with TLS if that is how it begins.
func (s *site) put(c net.Conn) {
	br := bufio.NewReader(c)
	first, err := br.Peek(1)
	switch {
	case err != nil:
	case first[0] == recordHandshake && s.secure != nil:
		s.secure.put(teed{c, br})
	default:
		s.conns.put(teed{c, br})
	}
}

// last is the newest request that reached the site.
func (s *site) last() (*http.Request, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) == 0 {
		return nil, ""
	}
	return s.seen[len(s.seen)-1], s.body[len(s.body)-1]
}

func (s *site) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen)
}

// issue makes a CA and a certificate of it.
func issue(t testing.TB, names ...string) (tls.Certificate, *x509.Certificate) {
	t.Helper()
	caKey, err1 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	key, err2 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "outside"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, DNSNames: names}
	if ip := net.ParseIP(names[0]); ip != nil {
		leaf.DNSNames, leaf.IPAddresses = nil, []net.IP{ip}
	}
	der, err = x509.CreateCertificate(rand.Reader, leaf, parsed, key.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, parsed
}

// inspectLab is a lab whose rule for a.example has its calls inspected.
func inspectLab(t testing.TB, h http.HandlerFunc, opts ...option) (*lab, *site) {
	var roots *x509.CertPool
	s := newSite(t, nil, h, "a.example")
	roots = s.roots
	l := newLab(t, append([]option{steered(steer(t)), func(c *Config, _ *holdsConfig) { c.Roots = roots }}, opts...)...)
	l.serve(s.put)
	l.network(allow(policies.HostRule{Host: "a.example", Ports: []int{443, 80}, Protocol: "http", Inspect: true}))
	return l, s
}

// client is an HTTP client in the sandbox that trusts what the sandbox does.
func (l *lab) client(h2 bool) *http.Client {
	l.t.Helper()
	pem, err := l.proxy.CA(l.agent.ID)
	if err != nil {
		l.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		l.t.Fatalf("no certificate in %q", pem)
	}
	tr := &http.Transport{
		DialContext: func(_ context.Context, network, addr string) (net.Conn, error) {
			host, port, _ := net.SplitHostPort(addr)
			if net.ParseIP(host) == nil {
				_, as, err := l.lookup(host, dnsmessage.TypeA) // the transport dials in goroutines of its own
				if err != nil || len(as) != 1 {
					return nil, fmt.Errorf("%s does not resolve: %v %v", host, as, err)
				}
				host = as[0].String()
			}
			return l.tryConnect(network, net.JoinHostPort(host, port))
		},
		TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: h2, DisableCompression: true,
	}
	if !h2 {
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	l.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second}
}

// do makes a request and returns status and body; status 0 is no answer.
func do(t testing.TB, c *http.Client, method, url, body string, head ...string) (int, string, *http.Response) {
	t.Helper()
	q, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(head); i += 2 {
		q.Header.Add(head[i], head[i+1])
	}
	res, err := c.Do(q)
	if err != nil {
		return 0, err.Error(), nil
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b), res
}

// tlsRaw ends TLS before f.
func tlsRaw(cert tls.Certificate, f func(net.Conn)) func(net.Conn) {
	return func(c net.Conn) {
		t := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}})
		defer t.Close()
		f(t)
	}
}
