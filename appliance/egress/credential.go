package egress

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"

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
	rule   policies.HostRule
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
		if slices.Contains(x.rule.Credentials, c.Name) && placeholder(x.agent, c.Name) == ph {
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

func (s *spotter) Read(b []byte) (int, error) {
	n, err := s.ReadCloser.Read(b)
	seen := bytes.ToLower(append(s.tail, b[:n]...))
	if bytes.Contains(seen, []byte(placeholderMark)) {
		s.found()
		return 0, errSpotted
	}
	s.tail = append(s.tail[:0], seen[max(0, len(seen)-len(placeholderMark)+1):]...)
	return n, err
}

// masker overwrites secrets in a stream with as many asterisks: a server that
// shows what it was sent must not show it to the agent. It holds back only
// bytes that a secret may begin with.
type masker struct {
	io.ReadCloser
	secrets [][]byte
	buf     []byte // read, not yet given out
	ready   int    // bytes of buf that may be given out
	err     error
	ended   func() // called when everything was read
}

func newMasker(r io.ReadCloser, secrets []string) *masker {
	m := &masker{ReadCloser: r, ended: func() {}}
	for _, s := range secrets {
		m.secrets = append(m.secrets, []byte(s))
	}
	return m
}

// maskAnswer masks head, body and trailer.
func maskAnswer(res *http.Response, secrets []string) {
	head := func(h http.Header) {
		for _, vs := range h {
			for i := range vs {
				vs[i] = maskText(vs[i], secrets)
			}
		}
	}
	head(res.Header)
	if res.StatusCode == http.StatusSwitchingProtocols {
		return // a connection, not a body
	}
	m := newMasker(res.Body, secrets)
	m.ended = func() { head(res.Trailer) }
	res.Body = m
}

func (m *masker) Read(b []byte) (int, error) {
	for m.ready == 0 && m.err == nil {
		chunk := make([]byte, max(len(b), 512))
		var n int
		n, m.err = m.ReadCloser.Read(chunk)
		m.buf = append(m.buf, chunk[:n]...)
		mask(m.buf, m.secrets)
		m.ready = len(m.buf)
		if m.err == nil {
			m.ready -= m.held()
		} else {
			m.ended()
		}
	}
	n := copy(b, m.buf[:m.ready])
	m.buf, m.ready = m.buf[n:], m.ready-n
	if n == 0 && m.ready == 0 {
		return 0, m.err
	}
	return n, nil
}

// held is the length of the longest end of buf that a secret begins with.
func (m *masker) held() (most int) {
	for _, s := range m.secrets {
		for n := min(len(s)-1, len(m.buf)); n > most; n-- {
			if bytes.HasSuffix(m.buf, s[:n]) {
				most = n
			}
		}
	}
	return most
}

func mask(b []byte, secrets [][]byte) {
	for _, s := range secrets {
		for i := 0; ; {
			n := bytes.Index(b[i:], s)
			if n < 0 {
				break
			}
			i += n
			copy(b[i:], bytes.Repeat([]byte("*"), len(s)))
			i += len(s)
		}
	}
}

// maskText is mask for a header's value.
func maskText(s string, secrets []string) string {
	for _, x := range secrets {
		s = strings.ReplaceAll(s, x, strings.Repeat("*", len(x)))
	}
	return s
}
