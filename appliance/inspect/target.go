package inspect

import (
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/clawbox/clawbox/policies"
)

const (
	maxTarget = 16 << 10 // bytes of path and query
	maxPairs  = 1000     // of a query
)

// methods are those that pass: RFC 9110 without CONNECT (it is for proxies)
// and TRACE (it shows a client the credentials that egress put in), PATCH,
// QUERY and those of WebDAV, its versioning and CalDAV. Method names are case
// sensitive, and some servers forget it.
var methods = map[string]bool{}

func init() {
	for m := range strings.FieldsSeq("GET HEAD POST PUT PATCH DELETE OPTIONS QUERY PROPFIND PROPPATCH MKCOL COPY MOVE LOCK UNLOCK REPORT SEARCH MKCALENDAR ACL") {
		methods[m] = true
	}
}

func checkMethod(m string) *Refusal {
	if methods[m] {
		return nil
	}
	return refuse(BadTarget, "use a standard method in capital letters", "got method %.40q", m).as(http.StatusNotImplemented)
}

// target is what a request asks for, in both forms.
type target struct {
	path    string // decoded; a kept encoded slash stays "%2F"
	escaped string // what goes upstream
	query   string // canonical, without "?"
	values  url.Values
}

// readTarget reads the request target as it came.
func readTarget(r *http.Request, slash bool) (target, *Refusal) {
	raw := r.RequestURI
	if raw == "" {
		raw = r.URL.RequestURI()
	}
	if len(raw) > maxTarget {
		return target{}, refuse(BadTarget, "send a shorter one", "got a request target of %d bytes, want at most %d", len(raw), maxTarget).as(http.StatusRequestURITooLong)
	}
	if raw == "*" && r.Method == http.MethodOptions {
		return target{path: "*", escaped: "*", values: url.Values{}}, nil
	}
	raw, bad := originForm(raw, r.Host)
	if bad != nil {
		return target{}, bad
	}
	p, q, asked := strings.Cut(raw, "?")
	t := target{}
	if t.path, t.escaped, bad = canonicalPath(p, slash); bad != nil {
		return t, bad
	}
	t.query, t.values, bad = canonicalQuery(q)
	if asked && q == "" {
		t.query = ""
	}
	return t, bad
}

// originForm gives path and query of a target in absolute form (RFC 9112,
// 3.2.2), which has to name the same host as the Host header.
func originForm(raw, host string) (string, *Refusal) {
	if strings.HasPrefix(raw, "/") {
		return raw, nil
	}
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		return "", refuse(BadTarget, "send /path", "got request target %.80q, want a path", raw)
	}
	i := strings.IndexAny(rest, "/?")
	if i < 0 {
		i = len(rest)
	}
	if !strings.EqualFold(rest[:i], host) {
		return "", refuse(BadTarget, "name one host", "the request target names %.80q, the Host header %.80q", rest[:i], host)
	}
	if !strings.HasPrefix(rest[i:], "/") {
		return "/" + rest[i:], nil
	}
	return rest[i:], nil
}

// canonicalPath decodes a path once and resolves its dot segments and doubled
// slashes (RFC 3986, 5.2.4 and 6.2.2). It refuses what a second reader might
// decode further or split elsewhere: encoded slashes unless slash says to
// keep them, back slashes, control bytes, bytes that are not UTF-8 (so every
// overlong form), doubled encoding, "..;" as some servers read it, and dot
// segments that lead above the root.
func canonicalPath(raw string, slash bool) (path, escaped string, bad *Refusal) {
	if !strings.HasPrefix(raw, "/") {
		return "", "", refuse(BadTarget, "send /path", "got path %.80q, want one that begins with a slash", raw)
	}
	var plain, coded []string
	segs := strings.Split(raw[1:], "/")
	folder := false // the path ends in a slash
	for _, s := range segs {
		d, bad := segment(s, slash)
		if bad != nil {
			return "", "", bad
		}
		folder = d == "" || d == "." || d == ".."
		switch {
		case d == "" || d == ".":
		case d == ".." && len(plain) == 0:
			return "", "", badPath(raw, "it leads above the root")
		case d == "..":
			plain, coded = plain[:len(plain)-1], coded[:len(coded)-1]
		default:
			plain, coded = append(plain, d), append(coded, escape(d, pathLiteral, slash))
		}
	}
	end := ""
	if folder && len(plain) > 0 {
		end = "/"
	}
	return "/" + strings.Join(plain, "/") + end, "/" + strings.Join(coded, "/") + end, nil
}

func badPath(raw, why string) *Refusal {
	return refuse(BadTarget, "send a path without tricks of encoding", "got path %.80q: %s", raw, why)
}

// segment decodes what stands between two slashes. A kept encoded slash stays
// the three bytes %2F: no other decoded text can look like it.
func segment(s string, slash bool) (string, *Refusal) {
	d, bad := unescape(s, false)
	if bad != "" {
		return "", badPath(s, bad)
	}
	if doubled(d) {
		return "", badPath(s, "it is encoded twice")
	}
	for part := range strings.SplitSeq(d, "/") {
		base, _, params := strings.Cut(part, ";")
		dots := base == "." || base == ".."
		switch {
		case dots && (params || strings.Contains(d, "/")):
			return "", badPath(s, "dot segments beside parameters or encoded slashes")
		case part == "" && d != "":
			return "", badPath(s, "an encoded slash beside a slash")
		}
	}
	if strings.Contains(d, "/") && !slash {
		return "", badPath(s, "an encoded slash")
	}
	return strings.ReplaceAll(d, "/", "%2F"), nil
}

// unescape decodes percent-encoding once, strictly, and checks the result.
// Queries also have plus for a blank, and may carry line ends and tabs.
func unescape(s string, query bool) (string, string) {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '%':
			if i+2 >= len(s) || unhex(s[i+1]) < 0 || unhex(s[i+2]) < 0 {
				return "", "a percent sign without two hexadecimal digits"
			}
			c = byte(unhex(s[i+1])<<4 | unhex(s[i+2]))
			i += 2
		case c <= ' ' || c >= 0x7f || c == '#':
			return "", "a byte that has to be encoded"
		case c == '+' && query:
			c = ' '
		}
		if c == '\\' && !query || c == 0x7f || c < ' ' && (!query || c != '\t' && c != '\n' && c != '\r') {
			return "", "a control character or a back slash"
		}
		b = append(b, c)
	}
	if !utf8.Valid(b) {
		return "", "bytes that are not UTF-8"
	}
	return string(b), ""
}

// doubled says whether decoding again would change d.
func doubled(d string) bool {
	for i := 0; i+2 < len(d); i++ {
		if d[i] == '%' && unhex(d[i+1]) >= 0 && unhex(d[i+2]) >= 0 {
			return true
		}
	}
	return false
}

// unhex gives a hexadecimal digit's value, or -1.
func unhex(c byte) int {
	i := strings.IndexByte("0123456789abcdefABCDEF", c)
	if i > 15 {
		i -= 6
	}
	return i
}

// What needs no encoding: unreserved of RFC 3986, and for paths the rest of
// pchar, for queries what no reader splits at.
const (
	unreserved   = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"
	pathLiteral  = unreserved + "!$&'()*+,;=:@"
	queryLiteral = unreserved + "!$'()*,:@/?"
)

func escape(s, literal string, slash bool) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case slash && strings.HasPrefix(s[i:], "%2F"): // kept by segment; nothing else decodes to it
			b.WriteString("%2F")
			i += 2
		case strings.IndexByte(literal, c) >= 0:
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte("0123456789ABCDEF"[c>>4])
			b.WriteByte("0123456789ABCDEF"[c&15])
		}
	}
	return b.String()
}

// canonicalQuery reads a query as forms do, "a=b&c=d", keeps its order and
// writes it anew, so that a semicolon is a character and never a separator.
func canonicalQuery(raw string) (string, url.Values, *Refusal) {
	vals := url.Values{}
	if raw == "" {
		return "", vals, nil
	}
	var out []string
	for pair := range strings.SplitSeq(raw, "&") {
		if pair == "" {
			continue
		}
		k, v, has := strings.Cut(pair, "=")
		key, bad := unescape(k, true)
		val, bad2 := unescape(v, true)
		if bad+bad2 != "" || strings.ContainsAny(key, "\r\n\t") {
			return "", nil, refuse(BadTarget, "encode it as UTF-8", "got query %.80q: %s", pair, bad+bad2)
		}
		if overriding[strings.ToLower(key)] {
			return "", nil, refuse(BadTarget, "send the method itself", "query key %q lets a server take another method than the request's", key)
		}
		vals.Add(key, val)
		key = escape(key, queryLiteral, false)
		if has {
			key += "=" + escape(val, queryLiteral, false)
		}
		if out = append(out, key); len(out) > maxPairs {
			return "", nil, refuse(BadTarget, "send fewer", "got more than %d query values", maxPairs)
		}
	}
	return strings.Join(out, "&"), vals, nil
}

// overriding are query keys that frameworks read as a method.
var overriding = map[string]bool{"_method": true, "x-http-method-override": true, "x-method-override": true, "$method": true}

// authority gives the one spelling of a Host header.
func authority(s string) (string, *Refusal) {
	host, port := s, ""
	if h, p, err := net.SplitHostPort(s); err == nil {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 || strconv.FormatUint(n, 10) != p {
			return "", refuse(BadTarget, "send host or host:port", "got Host %.80q, want a port from 1 to 65535", s)
		}
		host, port = h, p
		if strings.Contains(h, ":") {
			host = "[" + h + "]"
		}
	}
	name, err := policies.NormalizeHost(host)
	if err != nil {
		return "", refuse(BadTarget, "send one host name", "Host header: %v", err)
	}
	if strings.Contains(name, ":") {
		name = "[" + name + "]"
	}
	if port != "" {
		name += ":" + port
	}
	return name, nil
}
