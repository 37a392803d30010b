package inspect

import (
	"bytes"
	"net/http"
	"strings"
)

const (
	maxHead  = 64 << 10
	maxLines = 200
)

// Head checks the head of an HTTP/1 request as it came, from its first byte
// through the empty line, for what net/http reads leniently or no longer
// shows once it has parsed: bare line feeds, folded and malformed header
// lines, blanks before the colon, and every doubt about where the body ends
// (RFC 9112, sections 2.2, 5 and 6.1).
func Head(raw []byte) error { return head(raw, checkMethod) }

// Framing is Head for requests whose method nobody judges.
func Framing(raw []byte) error { return head(raw, func(string) *Refusal { return nil }) }

func head(raw []byte, method func(string) *Refusal) error {
	if len(raw) > maxHead {
		return refuse(BadHeader, "send less", "got a head of %d bytes, want at most %d", len(raw), maxHead).as(http.StatusRequestHeaderFieldsTooLarge)
	}
	text, ok := bytes.CutSuffix(raw, []byte("\r\n\r\n"))
	if !ok {
		return refuse(BadHeader, "end lines in CR LF", "the head does not end in an empty line")
	}
	lines := strings.Split(string(text), "\r\n")
	if len(lines) > maxLines {
		return refuse(BadHeader, "send fewer", "got %d header lines, want at most %d", len(lines), maxLines).as(http.StatusRequestHeaderFieldsTooLarge)
	}
	to, old, bad := checkLine(lines[0], method)
	if bad != nil {
		return bad
	}
	var f framing
	for _, l := range lines[1:] {
		if bad := f.line(l); bad != nil {
			return bad
		}
	}
	if bad := f.check(old); bad != nil {
		return bad
	}
	if to == "*" {
		return nil
	}
	// net/http takes the host of an absolute target and forgets the header.
	if _, bad := originForm(to, f.hosts[0]); bad != nil {
		return bad
	}
	return nil
}

// checkLine wants METHOD SP target SP HTTP/1.x and says whether x is 0.
func checkLine(l string, method func(string) *Refusal) (to string, old bool, bad *Refusal) {
	f := strings.Split(l, " ")
	if len(f) != 3 || f[2] != "HTTP/1.1" && f[2] != "HTTP/1.0" {
		return "", false, refuse(BadTarget, "send METHOD /path HTTP/1.1", "got request line %.80q", l)
	}
	if strings.ContainsFunc(f[1], func(r rune) bool { return r <= ' ' || r >= 0x7f }) || f[1] == "" {
		return "", false, refuse(BadTarget, "encode the path", "got request target %.80q", f[1])
	}
	return f[1], f[2] == "HTTP/1.0", method(f[0])
}

// framing gathers the headers that say whom a request is for and where it ends.
type framing struct{ hosts, lengths, codings []string }

// line checks one header line.
func (f *framing) line(l string) *Refusal {
	name, v, ok := strings.Cut(l, ":")
	if !ok || !token(name) {
		return refuse(BadHeader, "send name: value", "header line %.80q is not well formed", l)
	}
	if !fieldValue(v) {
		return refuse(BadHeader, "send text", "header %s holds control characters", name)
	}
	v = strings.Trim(v, " \t")
	switch strings.ToLower(name) {
	case "host":
		f.hosts = append(f.hosts, v)
	case "content-length":
		f.lengths = append(f.lengths, v)
	case "transfer-encoding":
		f.codings = append(f.codings, v)
	}
	return nil
}

// check refuses a body with two ends.
func (f *framing) check(old bool) *Refusal {
	const next = "send one Content-Length, or Transfer-Encoding: chunked"
	switch {
	case len(f.hosts) != 1:
		return refuse(BadHeader, "send one", "got %d Host headers", len(f.hosts))
	case len(f.lengths) > 1 || len(f.codings) > 1:
		return refuse(BadHeader, next, "got %d Content-Length and %d Transfer-Encoding headers", len(f.lengths), len(f.codings))
	case len(f.lengths) == 1 && len(f.codings) == 1:
		return refuse(BadHeader, next, "got both Content-Length and Transfer-Encoding")
	case len(f.lengths) == 1 && !decimal(f.lengths[0]):
		return refuse(BadHeader, next, "got Content-Length %.40q", f.lengths[0])
	case len(f.codings) == 1 && (old || !strings.EqualFold(f.codings[0], "chunked")):
		return refuse(BadHeader, next, "got Transfer-Encoding %.40q (HTTP/1.0: %v)", f.codings[0], old).as(http.StatusNotImplemented)
	}
	return nil
}

// decimal wants digits only: no sign, no list, no blanks, at most 18 of them.
func decimal(s string) bool {
	return s != "" && len(s) <= 18 && strings.Trim(s, "0123456789") == ""
}

// token is RFC 9110, 5.6.2.
func token(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~") == ""
}

// fieldValue admits what RFC 9110, 5.5 does: text, tabs, and bytes above ASCII.
func fieldValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
