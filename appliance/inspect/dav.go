package inspect

import "strings"

// destination reads the header that names the second path of COPY and MOVE
// (RFC 4918, 10.3): a path, or a URL on the request's own host. It goes on in
// canonical form, and that path is a message of its own.
func (q *request) destination() *Refusal {
	vals, has := q.out.Header["Destination"]
	moves := q.in.Method == "COPY" || q.in.Method == "MOVE"
	switch {
	case !moves && !has:
		return nil
	case !moves:
		return refuse(BadHeader, "use it with COPY and MOVE", "got a Destination header with %s", q.in.Method)
	case len(vals) != 1:
		return refuse(BadHeader, "send one", "got %d Destination headers with %s", len(vals), q.in.Method)
	}
	base, at, bad := q.sameHost(vals[0])
	if bad != nil {
		return bad
	}
	path, escaped, bad := canonicalPath(at, q.EncodedSlash)
	if bad != nil {
		bad.Code = BadHeader
		return bad
	}
	q.out.Header.Set("Destination", base+escaped)
	m := q.base
	m.Path, m.Query = path, nil
	q.msgs = append(q.msgs, m)
	return nil
}

// sameHost splits a URL on the request's host, or a path, at the path.
func (q *request) sameHost(s string) (base, path string, bad *Refusal) {
	no := refuse(BadHeader, "name a path, or a URL on the request's host without query", "got Destination %.80q for host %.80q", s, q.out.Host)
	if strings.ContainsAny(s, "?#") {
		return "", "", no
	}
	if strings.HasPrefix(s, "/") {
		if strings.HasPrefix(s, "//") {
			return "", "", no
		}
		return "", s, nil
	}
	scheme, rest, _ := strings.Cut(s, "://")
	i := strings.IndexByte(rest, '/')
	if scheme = strings.ToLower(scheme); i < 0 || scheme != "http" && scheme != "https" {
		return "", "", no
	}
	if host, bad := authority(rest[:i]); bad != nil || host != q.out.Host {
		return "", "", no
	}
	return scheme + "://" + q.out.Host, rest[i:], nil
}
