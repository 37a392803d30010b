package egress

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/clawbox/clawbox/appliance/inspect"
	"github.com/clawbox/clawbox/policies"
)

// A placeholder is no secret: it stands for a credential only on the agent's
// own connections to the endpoints whose rules list it. It is one run of
// letters, digits and hyphens, so that no header or URL encodes it.
const (
	placeholderMark = "clawbox-credential-"
	placeholderSize = len(placeholderMark) + 2*placeholderHash
	placeholderHash = 16 // bytes
)

// Placeholder is what the agent gets in place of a credential's value. It is
// the same each time, so it survives restarts of agent and egress.
func (p *Proxy) Placeholder(agentID, name string) string { return placeholder(agentID, name) }

func placeholder(agent, name string) string {
	sum := sha256.Sum256([]byte("clawbox placeholder\x00" + agent + "\x00" + name))
	return placeholderMark + hex.EncodeToString(sum[:placeholderHash])
}

// credential gives the values of an agent's credentials.
func (p *Proxy) credential(agent string) func(name string) (string, bool) {
	return func(name string) (string, bool) {
		if p.c.Credential == nil {
			return "", false
		}
		return p.c.Credential(agent, name)
	}
}

// mentions says whether s holds anything that looks like a placeholder,
// whoever's it is.
func mentions(s string) bool { return strings.Contains(strings.ToLower(s), placeholderMark) }

// resolving puts credentials into one request's headers.
type resolving struct {
	agent  string
	policy *policies.Policy
	rules  []policies.HostRule // that the request's messages pass by
	value  func(name string) (string, bool)
	used   []string // values put in
}

var (
	errElsewhere = errors.New("it holds a placeholder that stands for nothing at this destination")
	errHeader    = errors.New("a credential belongs into another header")
	errNoValue   = errors.New("the appliance has no value for this credential")
)

// headers replaces placeholders in h. It returns the names of the credentials
// that it put in; on an error h must not be sent.
func (x *resolving) headers(h http.Header) (names []string, err error) {
	for key, vs := range h {
		if mentions(key) {
			return nil, errElsewhere
		}
		for i, v := range vs {
			nv, name, err := x.headerValue(key, v)
			if err != nil {
				return nil, err
			}
			if name != "" {
				vs[i] = nv
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

// headerValue resolves the one placeholder in a value, also inside Basic's base64.
func (x *resolving) headerValue(key, v string) (out, name string, err error) {
	if out, name, err = x.text(key, v); name != "" || err != nil {
		return out, name, err
	}
	scheme, rest, ok := strings.Cut(v, " ")
	if !ok || !strings.EqualFold(scheme, "basic") {
		return v, "", nil
	}
	rest = strings.Trim(rest, " ")
	b, err := base64.StdEncoding.DecodeString(rest)
	if err != nil {
		if b, err = base64.RawStdEncoding.DecodeString(rest); err != nil {
			return v, "", nil // not for us to judge
		}
	}
	in, name, err := x.text(key, string(b))
	if err != nil || name == "" {
		return v, "", err
	}
	enc := base64.StdEncoding.EncodeToString([]byte(in))
	x.used = append(x.used, enc)
	return scheme + " " + enc, name, nil
}

// text resolves a placeholder in s; name is "" if there is none.
func (x *resolving) text(key, s string) (out, name string, err error) {
	if !mentions(s) {
		return s, "", nil
	}
	i := strings.Index(s, placeholderMark)
	if i < 0 || len(s) < i+placeholderSize || mentions(s[i+len(placeholderMark):]) {
		return "", "", errElsewhere // in capitals, cut off, or two of them
	}
	c, ok := x.credential(s[i : i+placeholderSize])
	if !ok {
		return "", "", errElsewhere
	}
	if c.Header != "" && !strings.EqualFold(c.Header, key) {
		return "", "", errHeader
	}
	v, ok := x.value(c.Name)
	if !ok || v == "" || strings.ContainsAny(v, "\r\n\x00") {
		return "", "", errNoValue
	}
	x.used = append(x.used, v)
	return s[:i] + v + s[i+placeholderSize:], c.Name, nil
}

// credential finds what a placeholder stands for at this rule's endpoint.
func (x *resolving) credential(ph string) (policies.Credential, bool) {
	for _, c := range x.policy.Credentials {
		lists := func(r policies.HostRule) bool { return slices.Contains(r.Credentials, c.Name) }
		if placeholder(x.agent, c.Name) == ph && len(x.rules) > 0 && !slices.ContainsFunc(x.rules, func(r policies.HostRule) bool { return !lists(r) }) {
			return c, true
		}
	}
	return policies.Credential{}, false
}

// spotter fails when a stream holds a placeholder. What it has let through by
// then is no secret.
type spotter struct {
	io.ReadCloser
	tail  []byte // the last bytes, which a mark may begin in
	found func()
}

var errSpotted = errors.New("a placeholder in the body")

func (s *spotter) Read(b []byte) (n int, err error) {
	defer caught(&err) // net/http reads bodies in goroutines of its own
	n, err = s.ReadCloser.Read(b)
	seen := bytes.ToLower(append(s.tail, b[:n]...))
	if bytes.Contains(seen, []byte(placeholderMark)) {
		s.found()
		return 0, errSpotted
	}
	s.tail = append(s.tail[:0], seen[max(0, len(seen)-len(placeholderMark)+1):]...)
	return n, err
}

// masks keeps the Masker of a sandbox while its credentials stay the same.
type masks struct {
	mu sync.Mutex
	of []string
	m  *inspect.Masker
}

// masker hides all credentials that the policy gives the agent, and what was put
// in besides, such as one as a part of Basic's text; nil: there is nothing to hide.
func (b *box) masker(p *policies.Policy, used []string) *inspect.Masker {
	var all []string
	value := b.proxy.credential(b.agent.ID)
	for _, c := range p.Credentials {
		if v, ok := value(c.Name); ok && v != "" {
			all = append(all, v)
		}
	}
	more := slices.DeleteFunc(slices.Clone(used), func(s string) bool { return slices.Contains(all, s) })
	if len(more) > 0 {
		return inspect.NewMasker(append(all, more...)...)
	}
	if len(all) == 0 {
		return nil
	}
	b.masks.mu.Lock()
	defer b.masks.mu.Unlock()
	if !slices.Equal(b.masks.of, all) {
		b.masks.of, b.masks.m = all, inspect.NewMasker(all...)
	}
	return b.masks.m
}

// packing is what an answer that has to be masked may be packed with: nothing, or
// gzip, which is unpacked here, where the client asked for that and for the whole.
func packing(h http.Header) string {
	if h.Get("Range") == "" && strings.Contains(strings.ToLower(strings.Join(h["Accept-Encoding"], ",")), "gzip") {
		return "gzip"
	}
	return "identity"
}

// maskAnswer masks head, body and trailer. A server that packs its body otherwise
// than it was asked to is refused.
func maskAnswer(res *http.Response, m *inspect.Masker) error {
	head := func(h http.Header) {
		for name, vs := range h {
			if m.Names(name) {
				delete(h, name)
				continue
			}
			for i := range vs {
				vs[i] = m.Text(vs[i])
			}
		}
	}
	head(res.Header)
	if res.StatusCode == http.StatusSwitchingProtocols {
		return nil // its frames are masked one by one
	}
	if err := unpack(res); err != nil {
		return err
	}
	res.Body = m.Reader(res.Body, func() { head(res.Trailer) })
	return nil
}

// unpack takes off an answer's content coding.
func unpack(res *http.Response) error {
	codes := codings(res.Header)
	switch {
	case len(codes) == 0 || res.Request != nil && res.Request.Method == http.MethodHead:
		return nil
	case res.StatusCode == http.StatusPartialContent || len(codes) > 1 || codes[0] != "gzip":
		return refuse("net.credential", "ask for it in a form that is not packed, or without the credential", "the answer is packed (Content-Encoding %.40q), and what it repeats of the agent's credentials can't be hidden", codes)
	}
	res.Header.Del("Content-Encoding")
	res.Header.Del("Content-Length")
	res.ContentLength, res.Uncompressed = -1, true
	res.Body = &unzipped{ReadCloser: res.Body}
	return nil
}

// codings lists an answer's content codings but for identity, which is none.
func codings(h http.Header) (out []string) {
	for c := range strings.SplitSeq(strings.ToLower(strings.Join(h["Content-Encoding"], ",")), ",") {
		switch c = strings.TrimSpace(c); c {
		case "", "identity":
		case "x-gzip":
			out = append(out, "gzip")
		default:
			out = append(out, c)
		}
	}
	return out
}

// unzipped reads gzip.
type unzipped struct {
	io.ReadCloser
	z *gzip.Reader
}

func (u *unzipped) Read(b []byte) (n int, err error) {
	if u.z == nil {
		if u.z, err = gzip.NewReader(u.ReadCloser); err != nil {
			return 0, err // io.EOF: there is nothing
		}
	}
	return u.z.Read(b)
}
