package router

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/clawbox/clawbox/appliance/config"
)

// upstream is a checked config.Upstream.
type upstream struct {
	name  string
	base  *url.URL
	local bool
	key   string // file of the credential, or empty
	read  func(file string) (string, error)
}

// localName is the upstream that always counts as inside the host.
const localName = "local"

// upstreams checks the configuration. Plain http is for inside the site only:
// prompts and the credential would travel readable.
func upstreams(in map[string]config.Upstream, read func(string) (string, error)) (map[string]upstream, error) {
	if read == nil {
		read = ReadKey
	}
	out := map[string]upstream{}
	for name, u := range in {
		base, err := url.Parse(u.URL)
		if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" || base.User != nil || base.RawQuery != "" {
			return nil, fmt.Errorf("router: upstream %q: got URL %q, want http(s)://host/v1 without user or query", name, u.URL)
		}
		local := u.Local || name == localName
		if base.Scheme == "http" && !local {
			return nil, fmt.Errorf("router: upstream %q leaves the site by plain http; use https, or set local: true if it is inside", name)
		}
		base.Path = strings.TrimRight(base.Path, "/")
		out[name] = upstream{name, base, local, u.KeyFile, read}
	}
	return out, nil
}

// keyHeader says how a host wants its credential; all others take a bearer token.
var keyHeader = map[string]string{"api.anthropic.com": "X-Api-Key"}

// authorize adds the credential and returns it. It is read for every call, so
// that it can be rotated.
func (u upstream) authorize(h http.Header) (string, error) {
	if u.key == "" {
		return "", nil
	}
	k, err := u.read(u.key)
	if err != nil {
		return "", err
	}
	if name := keyHeader[u.base.Hostname()]; name != "" {
		h.Set(name, k)
	} else {
		h.Set("Authorization", "Bearer "+k)
	}
	return k, nil
}

// ReadKey reads a credential from a file that others can't read.
func ReadKey(file string) (string, error) {
	fi, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	if !fi.Mode().IsRegular() || fi.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("got mode %v on %s, want a regular file of mode 0600; run chmod 600", fi.Mode(), file)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	k := strings.TrimSpace(string(b))
	if k == "" || strings.ContainsFunc(k, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", errors.New("the credential in " + file + " is empty or not printable ASCII")
	}
	return k, nil
}

// url is the address of an endpoint. The query of the agent is not sent.
func (u upstream) url(path string) *url.URL {
	t := *u.base
	t.Path += path
	return &t
}

// transport reaches upstreams without a proxy from the environment and leaves
// compression alone, so that usage can be read from the answer.
func transport(dial func(ctx context.Context, network, address string) (net.Conn, error)) http.RoundTripper {
	if dial == nil {
		dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	return &http.Transport{
		DialContext:           dial,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 10 * time.Minute, // a CPU needs minutes for a long prompt
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   16,
		DisableCompression:    true,
		ForceAttemptHTTP2:     true,
	}
}

// Headers that pass. Everything else, above all Authorization, cookies, names
// of the client library and forwarding chains, stays behind.
var (
	requestHeaders  = []string{"Content-Type", "Accept", "Anthropic-Version", "Anthropic-Beta", "Openai-Beta"}
	responseHeaders = []string{"Content-Type", "Cache-Control", "Retry-After", "X-Request-Id", "Request-Id"}
)

// pass copies the named headers.
func pass(to, from http.Header, names []string) {
	for _, n := range names {
		if v := from.Values(n); len(v) > 0 {
			to[n] = v
		}
	}
}
