package kube

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// kubeconfig is as much as is used of the file that kubectl reads.
// Source: https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/.
type kubeconfig struct {
	Current  string `yaml:"current-context"`
	Contexts []struct {
		Name    string `yaml:"name"`
		Context struct {
			Cluster string `yaml:"cluster"`
			User    string `yaml:"user"`
		} `yaml:"context"`
	} `yaml:"contexts"`
	Clusters []struct {
		Name    string  `yaml:"name"`
		Cluster cluster `yaml:"cluster"`
	} `yaml:"clusters"`
	Users []struct {
		Name string `yaml:"name"`
		User user   `yaml:"user"`
	} `yaml:"users"`
}

type cluster struct {
	Server   string `yaml:"server"`
	CAData   string `yaml:"certificate-authority-data"`
	CAFile   string `yaml:"certificate-authority"`
	Insecure bool   `yaml:"insecure-skip-tls-verify"`
}

type user struct {
	CertData  string `yaml:"client-certificate-data"`
	CertFile  string `yaml:"client-certificate"`
	KeyData   string `yaml:"client-key-data"`
	KeyFile   string `yaml:"client-key"`
	Token     string `yaml:"token"`
	TokenFile string `yaml:"tokenFile"`
}

// access is a way to the server, made from one reading of the file.
type access struct {
	server string // https://host:port, no path behind it
	token  string
	http   *http.Client
}

// readAccess reads the file's current context.
func readAccess(file string) (*access, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var k kubeconfig
	if err := yaml.Load(b, &k); err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", file, err)
	}
	c, u, err := k.chosen()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", file, err)
	}
	a, err := dial(c, u, filepath.Dir(file))
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", file, err)
	}
	return a, nil
}

// chosen finds what the current context names.
func (k *kubeconfig) chosen() (c cluster, u user, err error) {
	var cn, un string
	for _, x := range k.Contexts {
		if x.Name == k.Current {
			cn, un = x.Context.Cluster, x.Context.User
		}
	}
	found := 0
	for _, x := range k.Clusters {
		if x.Name == cn && cn != "" {
			c = x.Cluster
			found++
		}
	}
	for _, x := range k.Users {
		if x.Name == un && un != "" {
			u = x.User
			found++
		}
	}
	if found != 2 {
		return c, u, fmt.Errorf("its current context is %q, which leads to cluster %q and user %q; want one of each", k.Current, cn, un)
	}
	return c, u, nil
}

// dial makes the client. Relative paths are relative to dir.
func dial(c cluster, u user, dir string) (*access, error) {
	s, err := url.Parse(c.Server)
	if err != nil || s.Scheme != "https" || s.Host == "" || s.User != nil || strings.Trim(s.Path, "/") != "" {
		return nil, fmt.Errorf("the server is %q; want https://host:port", c.Server)
	}
	if c.Insecure {
		return nil, errors.New("it asks not to verify the server (insecure-skip-tls-verify); name its authority instead")
	}
	ca, err1 := either(c.CAData, c.CAFile, dir)
	cert, err2 := either(u.CertData, u.CertFile, dir)
	key, err3 := either(u.KeyData, u.KeyFile, dir)
	token, err4 := either("", u.TokenFile, dir)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}
	if u.Token != "" {
		token = []byte(u.Token)
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}
	if !t.RootCAs.AppendCertsFromPEM(ca) {
		return nil, errors.New("it names no certificate authority; want certificate-authority-data or certificate-authority")
	}
	if len(cert) > 0 {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	if len(cert) == 0 && len(token) == 0 {
		return nil, errors.New("the user has neither client certificate nor token")
	}
	// No proxy, and no redirect: the server is where the file says it is.
	return &access{"https://" + s.Host, strings.TrimSpace(string(token)), &http.Client{
		Timeout:       30 * time.Second,
		Transport:     &http.Transport{TLSClientConfig: t, ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// either returns data, which is base64, or else what file holds; neither is no
// error.
func either(data, file, dir string) ([]byte, error) {
	if data != "" || file == "" {
		return base64.StdEncoding.DecodeString(data)
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(dir, file)
	}
	return os.ReadFile(file)
}
