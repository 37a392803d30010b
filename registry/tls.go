package registry

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync"
	"time"
)

// TLS makes a server's configuration from PEM files. With clientCAs, clients
// that have a certificate from one of those prove who they are (rules for
// "cert:NAME"); others are clients without one. The certificate is read again
// when its file has changed, so that it can be renewed without a restart.
func TLS(cert, key, clientCAs string) (*tls.Config, error) {
	k := &keys{cert: cert, key: key}
	if _, err := k.get(nil); err != nil {
		return nil, err
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: k.get}
	if clientCAs == "" {
		return c, nil
	}
	b, err := os.ReadFile(clientCAs)
	if err != nil {
		return nil, err
	}
	c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.VerifyClientCertIfGiven
	if !c.ClientCAs.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s: no certificate in it: want PEM", clientCAs)
	}
	return c, nil
}

// keys is a certificate that may be renewed.
type keys struct {
	cert, key string

	mu  sync.Mutex // guards what follows
	at  time.Time
	cur *tls.Certificate
}

// get returns the newest pair of files. While they don't fit together, as one
// of them is being replaced, it returns the one before.
func (k *keys) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	fi, err := os.Stat(k.cert)
	if err == nil && k.cur != nil && fi.ModTime().Equal(k.at) {
		return k.cur, nil
	}
	c, lerr := tls.LoadX509KeyPair(k.cert, k.key)
	switch {
	case lerr == nil && err == nil:
		k.at, k.cur = fi.ModTime(), &c
	case k.cur == nil:
		return nil, fmt.Errorf("certificate %s with key %s: %w", k.cert, k.key, lerr)
	}
	return k.cur, nil
}
