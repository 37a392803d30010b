package sandbox

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"path"
)

// Where an inspected connection ends at the appliance, the agent must take the
// appliance's certificate for the real one. Programs look for the certificates
// that they trust in one of a few files, or where one of a few variables
// points.

// trustFile holds the image's trusted certificates and the sandbox's own.
const trustFile = "/etc/clawbox-trust.pem"

// trustEnv are the variables that name it: OpenSSL (and Go, Ruby, PHP),
// Node.js, Python's requests, curl, git.
var trustEnv = []string{"SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"}

// trustStores are the files of Debian and Alpine, Fedora, SUSE, and others
// that crypto/x509 (root_linux.go) knows of.
var trustStores = []string{
	"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
	"/etc/pki/tls/cacert.pem", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem",
}

// checkTrust refuses anything but certificates: a key in there would be shown
// to the agent.
func checkTrust(b []byte) error {
	n := 0
	for rest := b; len(bytes.TrimSpace(rest)) > 0; n++ {
		var p *pem.Block
		if p, rest = pem.Decode(rest); p == nil {
			return errors.New("trusted certificate: what follows the last block is no PEM")
		}
		if p.Type != "CERTIFICATE" {
			return fmt.Errorf("trusted certificate: a PEM block is of type %q; want CERTIFICATE", p.Type)
		}
		if _, err := x509.ParseCertificate(p.Bytes); err != nil {
			return fmt.Errorf("trusted certificate: %w", err)
		}
	}
	if n == 0 && len(b) > 0 {
		return errors.New("trusted certificate: there is none in it")
	}
	return nil
}

// trusted returns the files that make own trusted: trustFile, and the image's
// stores with own behind. A store behind a symbolic link is left alone; then
// the variables have to do.
func trusted(img Image, own []byte) map[string]string {
	if len(own) == 0 {
		return nil
	}
	out := map[string]string{trustFile: string(own)}
	for _, s := range trustStores {
		b, err := readIn(img.Layers, s[1:])
		if err != nil {
			continue
		}
		both := string(bytes.TrimRight(b, "\n")) + "\n" + string(own)
		if len(out) == 1 {
			out[trustFile] = both
		}
		if noLinks(img, s) == nil && noLinks(img, path.Dir(s)) == nil {
			out[s] = both
		}
	}
	return out
}

// trustVars are the agent's variables.
func trustVars(s *Spec) []string {
	if len(s.TrustPEM) == 0 {
		return nil
	}
	var out []string
	for _, v := range trustEnv {
		out = append(out, v+"="+trustFile)
	}
	return out
}
