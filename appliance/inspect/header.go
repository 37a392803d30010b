package inspect

import (
	"net/http"
	"slices"
	"strings"
)

// treatment says what becomes of a header that is about the connection, or
// that lets a server take a request for another.
type treatment int

const (
	pass   treatment = iota
	drop             // not for the server: this proxy's own matter, or a claim about the path taken
	reject           // changes what the request means
	single           // passes, but once only
)

// treatments is keyed by canonical names with hyphens; whatever is no letter
// and no digit counts as a hyphen, as it does for servers that make variables
// of headers.
var treatments = map[string]treatment{
	// Hop by hop: RFC 9110, 7.6.1, and its forerunners.
	"Connection": drop, "Keep-Alive": drop, "Proxy-Connection": drop, "Te": drop, "Trailer": drop, "Transfer-Encoding": drop, "Upgrade": drop,
	"Proxy-Authenticate": drop, "Proxy-Authorization": drop, "Content-Length": drop, "Expect": drop, "Host": drop, "Http2-Settings": drop, "Alt-Used": drop,
	// Claims about where a request came from; only a proxy that the server trusts may make them.
	"Forwarded": drop, "X-Forwarded-For": drop, "X-Forwarded-Host": drop, "X-Forwarded-Proto": drop, "X-Forwarded-Port": drop, "X-Forwarded-Server": drop,
	"X-Forwarded-Scheme": drop, "X-Forwarded-Ssl": drop, "X-Real-Ip": drop, "X-Client-Ip": drop, "True-Client-Ip": drop, "Cf-Connecting-Ip": drop,
	"X-Host": drop, "X-Originating-Ip": drop, "X-Remote-Ip": drop, "X-Remote-Addr": drop, "X-Cluster-Client-Ip": drop, "Via": drop, "X-Scheme": drop,
	// Another method, path or host than the request line's.
	"X-Http-Method-Override": reject, "X-Http-Method": reject, "X-Method-Override": reject, "X-Forwarded-Method": reject, "X-Original-Method": reject,
	"X-Original-Url": reject, "X-Original-Uri": reject, "X-Rewrite-Url": reject, "X-Rewrite-Uri": reject, "X-Override-Url": reject, "X-Request-Uri": reject,
	"X-Forwarded-Uri": reject, "X-Forwarded-Path": reject, "X-Forwarded-Prefix": reject, "X-Http-Host-Override": reject, "X-Envoy-Original-Path": reject,
	"X-Http-Path-Override": reject, "X-Accel-Redirect": reject, "X-Sendfile": reject, "Proxy": reject,
	// Two of them, and two readers may take one each.
	"Authorization": single, "Content-Type": single, "Content-Encoding": single, "Content-Range": single, "Range": single, "Origin": single,
	"Sec-Websocket-Key": single, "Sec-Websocket-Version": single, "Mcp-Session-Id": single, "Mcp-Protocol-Version": single, "Mcp-Method": single, "Mcp-Name": single,
}

// options are the names that a Connection header may list; any other would
// take an end-to-end header out on the way.
var options = []string{"close", "keep-alive", "upgrade", "te", "trailer", "proxy-connection", "transfer-encoding", "http2-settings"}

// cleanHeader gives the headers that go upstream.
func cleanHeader(in http.Header) (http.Header, *Refusal) {
	out := make(http.Header, len(in))
	for name, vals := range in {
		key := http.CanonicalHeaderKey(strings.Map(hyphen, name))
		t := treatments[key]
		switch {
		case !token(name) || slices.ContainsFunc(vals, func(v string) bool { return !fieldValue(v) }):
			return nil, refuse(BadHeader, "send name: value", "header %.40q is not well formed", name)
		case t != pass && key != http.CanonicalHeaderKey(name):
			return nil, refuse(BadHeader, "write "+key, "some servers read header %q as %s", name, key)
		case t == reject:
			return nil, refuse(BadHeader, "send the method and the path themselves", "header %s lets a server take this request for another", name)
		case t == single && len(vals) > 1:
			return nil, refuse(BadHeader, "send one", "got %d headers %s", len(vals), name)
		case t != drop:
			out[http.CanonicalHeaderKey(name)] = slices.Clone(vals)
		}
	}
	return out, nil
}

func hyphen(r rune) rune {
	if r|0x20 >= 'a' && r|0x20 <= 'z' || r >= '0' && r <= '9' {
		return r
	}
	return '-'
}

// checkHop checks the headers that cleanHeader drops, in what they say about
// this connection.
func checkHop(r *http.Request) *Refusal {
	for _, o := range list(r.Header["Connection"]) {
		if !slices.Contains(options, strings.ToLower(o)) {
			return refuse(BadHeader, "name close, keep-alive or upgrade", "got Connection: %.40s, which would take that header away", o)
		}
	}
	if e := r.Header.Values("Expect"); len(e) > 1 || len(e) == 1 && !strings.EqualFold(e[0], "100-continue") {
		return refuse(BadHeader, "send 100-continue or nothing", "got Expect: %.40q", e).as(http.StatusExpectationFailed)
	}
	f := framing{hosts: []string{r.Host}, lengths: r.Header["Content-Length"], codings: r.TransferEncoding}
	return f.check(!r.ProtoAtLeast(1, 1))
}

// list splits header values at commas (RFC 9110, 5.6.1).
func list(vals []string) (out []string) {
	for _, v := range vals {
		for o := range strings.SplitSeq(v, ",") {
			if o = strings.Trim(o, " \t"); o != "" {
				out = append(out, o)
			}
		}
	}
	return out
}
