package inspect

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"html"
	"io"
	"net/url"
	"slices"
	"strings"
)

// Masker overwrites secrets with as many asterisks: a server that shows what
// it was sent must not show it to the agent. It knows the secrets as they are
// and as JSON, URLs, HTML and base64 spell them.
type Masker struct{ forms [][]byte }

// NewMasker masks secrets; empty ones are nothing.
func NewMasker(secrets ...string) *Masker {
	var all []string
	for _, s := range secrets {
		if s != "" {
			all = append(all, spellings(s)...)
		}
	}
	// Longest first: a form may be part of another one.
	slices.SortFunc(all, func(a, b string) int { return len(b) - len(a) })
	m := &Masker{}
	for _, s := range slices.Compact(all) {
		m.forms = append(m.forms, []byte(s))
	}
	return m
}

// spellings are the forms that common encoders give s.
func spellings(s string) []string {
	out := []string{s, url.QueryEscape(s), url.PathEscape(s), html.EscapeString(s), strings.ReplaceAll(s, "/", `\/`)}
	if b, err := json.Marshal(s); err == nil {
		j := string(b[1 : len(b)-1])
		out = append(out, j, strings.ReplaceAll(j, "/", `\/`))
	}
	out = append(out, cores(s)...)
	slices.Sort(out)
	return slices.Compact(out)
}

// cores are the letters that s always gives as a part of something in base64, as
// the password in Basic: one row for each place where it may begin in a group of
// three bytes (RFC 4648). Letters that hold bits of what is beside s are not among
// them, nor is a row so short that other texts have it.
func cores(s string) (out []string) {
	for at := range 3 {
		b := append(make([]byte, at, at+len(s)), s...)
		enc := base64.StdEncoding.EncodeToString(b)[(8*at+5)/6 : 8*len(b)/6]
		if len(enc) >= leastCore {
			out = append(out, enc, strings.NewReplacer("+", "-", "/", "_").Replace(enc))
		}
	}
	return out
}

const leastCore = 8

// Bytes masks b in place.
func (m *Masker) Bytes(b []byte) {
	for _, s := range m.forms {
		for i := 0; ; i += len(s) {
			n := bytes.Index(b[i:], s)
			if n < 0 {
				break
			}
			i += n
			copy(b[i:], bytes.Repeat([]byte("*"), len(s)))
		}
	}
}

// Text masks s; a nil Masker knows no secret.
func (m *Masker) Text(s string) string {
	if m == nil {
		return s
	}
	for _, x := range m.forms {
		s = strings.ReplaceAll(s, string(x), strings.Repeat("*", len(x)))
	}
	return s
}

// Names says whether a name that is compared without regard to case, as a header's,
// has a secret in it; a nil Masker knows none.
func (m *Masker) Names(s string) bool {
	if m == nil {
		return false
	}
	s = strings.ToLower(s)
	return slices.ContainsFunc(m.forms, func(x []byte) bool { return strings.Contains(s, strings.ToLower(string(x))) })
}

// Reader masks a stream. It holds back only bytes that a secret may begin
// with. ended is called when everything was read.
func (m *Masker) Reader(r io.ReadCloser, ended func()) io.ReadCloser {
	return &maskReader{ReadCloser: r, m: m, ended: ended}
}

type maskReader struct {
	io.ReadCloser
	m     *Masker
	buf   []byte // read, not yet given out
	ready int    // bytes of buf that may be given out
	err   error
	ended func()
}

func (r *maskReader) Read(b []byte) (int, error) {
	for r.ready == 0 && r.err == nil {
		chunk := make([]byte, max(len(b), 512))
		var n int
		n, r.err = r.ReadCloser.Read(chunk)
		r.buf = append(r.buf, chunk[:n]...)
		r.m.Bytes(r.buf)
		r.ready = len(r.buf)
		if r.err == nil {
			r.ready -= r.m.held(r.buf)
		} else {
			r.ended()
		}
	}
	n := copy(b, r.buf[:r.ready])
	r.buf, r.ready = r.buf[n:], r.ready-n
	if n == 0 && r.ready == 0 {
		return 0, r.err
	}
	return n, nil
}

// held is the length of the longest end of b that a secret begins with.
func (m *Masker) held(b []byte) (most int) {
	for _, s := range m.forms {
		for n := min(len(s)-1, len(b)); n > most; n-- {
			if bytes.HasSuffix(b, s[:n]) {
				most = n
			}
		}
	}
	return most
}
