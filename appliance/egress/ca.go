package egress

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"sync"
	"time"
)

const (
	caLife    = 10 * 365 * 24 * time.Hour
	leafLife  = 90 * 24 * time.Hour
	clockSlip = 24 * time.Hour // a sandbox's clock is the host's, but images compare oddly
	maxLeaves = 512            // certificates kept per sandbox
	seedBytes = 32
)

// authority is one sandbox's own CA. Its key exists in this process only.
type authority struct {
	pem  []byte
	cert *x509.Certificate
	key  *ecdsa.PrivateKey

	mu     sync.Mutex // guards leaves
	leaves map[string]*tls.Certificate
}

// newAuthority makes the CA of an agent. Its key follows from the seed, so
// that an egress that is started again with the same seed is still trusted by
// the sandboxes that run.
func newAuthority(seed []byte, agent string) (*authority, error) {
	key, err := deriveKey(seed, "clawbox egress CA of "+agent)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "clawbox egress of " + agent},
		NotBefore: now.Add(-clockSlip), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return &authority{pem: text, cert: cert, key: key, leaves: map[string]*tls.Certificate{}}, nil
}

// deriveKey makes an ECDSA P-256 key of a seed (HKDF-SHA256, RFC 5869). About
// one in 2^32 outputs is no scalar of the curve; then the next one is taken.
func deriveKey(seed []byte, info string) (*ecdsa.PrivateKey, error) {
	for i := range 8 {
		b, err := hkdf.Key(sha256.New, seed, nil, fmt.Sprintf("%s %d", info, i), 32)
		if err != nil {
			return nil, fmt.Errorf("derive CA key: %w", err)
		}
		if key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), b); err == nil {
			return key, nil
		}
	}
	return nil, errors.New("derive CA key: eight outputs were no key")
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:])  // never fails: see crypto/rand
	b[0] = b[0]&0x7f | 0x40 // positive, and always as long
	return new(big.Int).SetBytes(b[:])
}

// leaf is a certificate for one name or address, made when it is first asked for.
func (a *authority) leaf(host string) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.leaves[host]; c != nil && time.Until(c.Leaf.NotAfter) > leafLife/2 {
		return c, nil
	}
	c, err := a.sign(host)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate for %s: %w", host, err)
	}
	if len(a.leaves) >= maxLeaves {
		clear(a.leaves) // an agent asks for so many on purpose
	}
	a.leaves[host] = c
	return c, nil
}

func (a *authority) sign(host string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: serial(), NotBefore: now.Add(-clockSlip), NotAfter: now.Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		t.IPAddresses = append(t.IPAddresses, ip.AsSlice())
	} else {
		t.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// authority returns an agent's CA, made on first use.
func (p *Proxy) authority(agent string) (*authority, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a := p.cas[agent]; a != nil {
		return a, nil
	}
	a, err := newAuthority(p.seed, agent)
	if err != nil {
		return nil, fmt.Errorf("egress: CA of %s: %w", agent, err)
	}
	p.cas[agent] = a
	return a, nil
}

// CA returns the certificate (PEM) that a sandbox has to trust, for the hosts
// that its policy has inspected. The key stays in this process.
func (p *Proxy) CA(agentID string) ([]byte, error) {
	if agentID == "" {
		return nil, errors.New("egress: CA: got no agent")
	}
	a, err := p.authority(agentID)
	if err != nil {
		return nil, err
	}
	return a.pem, nil
}
