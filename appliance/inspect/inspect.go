package inspect

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/clawbox/clawbox/policies"
)

// Options say how to read a request. The zero value is plain HTTP.
type Options struct {
	Protocol     string // HostRule.Protocol: "" or "http", "json-rpc", "mcp", "graphql", "websocket"
	MaxBody      int64  // bytes of a body that the protocol makes us read; 0: 4 MiB
	EncodedSlash bool   // keep %2F inside a path segment (npm's @scope%2fname) instead of refusing it
}

const defaultBody = 4 << 20

// request is one HTTP request on its way through.
type request struct {
	Options
	in, out *http.Request
	base    policies.Message // what every message of this request has: protocol, method, path, query
	msgs    []policies.Message
	ids     []json.RawMessage
}

// readers give each protocol's meaning to a request in canonical form.
var readers = map[string]func(*request) *Refusal{
	"":          (*request).plain,
	"http":      (*request).plain,
	"json-rpc":  (*request).rpc,
	"mcp":       (*request).mcp,
	"graphql":   (*request).graphql,
	"websocket": (*request).notUpgraded,
}

// Request gives the canonical form of an HTTP request, which is what may go
// upstream, and the messages that all must be allowed before it does. There
// is always at least one. The body is left alone for "http", else read whole
// and put back. r itself must not be forwarded.
//
// The error is a *Refusal, or what reading the body failed with.
func Request(r *http.Request, o Options) (*http.Request, []policies.Message, error) {
	read, ok := readers[o.Protocol]
	if !ok {
		return nil, nil, fmt.Errorf("got protocol %q, want one that runs over HTTP", o.Protocol)
	}
	if o.MaxBody <= 0 {
		o.MaxBody = defaultBody
	}
	q := &request{Options: o, in: r}
	if err := q.canonical(); err != nil {
		return nil, nil, err
	}
	// Any other upgrade is ignored, as RFC 9110, 7.8 lets a server do: a client
	// that offers h2c gets HTTP/1.1, and what it offered goes no further.
	if slices.ContainsFunc(list(r.Header["Upgrade"]), func(u string) bool { return strings.EqualFold(u, "websocket") }) {
		read = (*request).upgrade
	}
	if bad := read(q); bad != nil {
		return nil, nil, bad
	}
	return q.out.WithContext(context.WithValue(q.out.Context(), idsKey{}, q.ids)), q.msgs, nil
}

// Route gives method, path and query of a request in canonical form, from its
// head alone and whatever its protocol: enough to find the rule that says
// what the protocol is.
func Route(r *http.Request) (policies.Message, error) {
	q := &request{in: r}
	if err := q.canonical(); err != nil {
		return policies.Message{}, err
	}
	return q.base, nil
}

type idsKey struct{}

// IDs gives the JSON-RPC ids of a request that Request returned, for Denial.
func IDs(r *http.Request) []json.RawMessage {
	ids, _ := r.Context().Value(idsKey{}).([]json.RawMessage)
	return ids
}

// canonical makes q.out and q.base.
func (q *request) canonical() error {
	if bad := checkMethod(q.in.Method); bad != nil {
		return bad
	}
	if bad := checkHop(q.in); bad != nil {
		return bad
	}
	host, bad := authority(q.in.Host)
	if bad != nil {
		return bad
	}
	t, bad := readTarget(q.in, q.EncodedSlash)
	if bad != nil {
		return bad
	}
	head, bad := cleanHeader(q.in.Header)
	if bad != nil {
		return bad
	}
	if q.in.ProtoMajor == 2 && q.in.Header.Get("Te") == "trailers" {
		head.Set("Te", "trailers") // end to end in HTTP/2 (RFC 9113, 8.2.2); gRPC servers ask for it
	}
	u, err := t.url()
	if err != nil {
		return err
	}
	q.out = q.in.WithContext(q.in.Context())
	q.out.URL, q.out.Host, q.out.Header = u, host, head
	q.out.RequestURI, q.out.Trailer, q.out.Close = "", nil, false
	protocol := q.Protocol
	if protocol == "" {
		protocol = "http"
	}
	q.base = policies.Message{Protocol: protocol, Method: q.in.Method, Path: t.path, Query: t.values}
	return nil
}

// url makes the URL whose spelling is exactly the canonical one.
func (t target) url() (*url.URL, error) {
	if t.path == "*" {
		return &url.URL{Path: "*", RawQuery: t.query}, nil
	}
	p, err := url.PathUnescape(t.escaped)
	u := &url.URL{Path: p, RawPath: t.escaped, RawQuery: t.query}
	if err != nil || u.EscapedPath() != t.escaped {
		return nil, refuse(BadTarget, "report this", "path %.80q has no single spelling", t.escaped)
	}
	return u, nil
}

// plain is HTTP alone: one message, two for COPY and MOVE, the body untouched.
func (q *request) plain() *Refusal {
	q.msgs = []policies.Message{q.base}
	return q.destination()
}

// add appends a message with what all of the request's messages share.
func (q *request) add(m policies.Message) {
	m.Protocol, m.Method, m.Path, m.Query = q.base.Protocol, q.base.Method, q.base.Path, q.base.Query
	q.msgs = append(q.msgs, m)
}

// body reads the body whole and puts it back with its length.
func (q *request) body(types ...string) ([]byte, *Refusal) {
	if bad := checkType(q.out.Header, types); bad != nil {
		return nil, bad
	}
	if q.in.Body == nil {
		q.in.Body = http.NoBody
	}
	b, err := io.ReadAll(io.LimitReader(q.in.Body, q.MaxBody+1))
	if err != nil {
		return nil, refuse(BadBody, "send it whole", "the body ended early: %v", err)
	}
	if int64(len(b)) > q.MaxBody {
		return nil, refuse(BadBody, "send less", "got a body of more than %d bytes", q.MaxBody).as(http.StatusRequestEntityTooLarge)
	}
	q.out.Body, q.out.ContentLength, q.out.TransferEncoding = io.NopCloser(bytes.NewReader(b)), int64(len(b)), nil
	q.out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	return b, nil
}

// checkType wants one of the media types, in UTF-8 and not compressed.
func checkType(h http.Header, types []string) *Refusal {
	t, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	ok := false
	for _, want := range types {
		ok = ok || t == want
	}
	if err != nil || !ok {
		return refuse(BadBody, "send "+types[0], "got Content-Type %.80q", h.Get("Content-Type")).as(http.StatusUnsupportedMediaType)
	}
	if c, has := params["charset"]; has && !strings.EqualFold(c, "utf-8") {
		return refuse(BadBody, "send UTF-8", "got charset %.40q", c).as(http.StatusUnsupportedMediaType)
	}
	if e := h.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return refuse(BadBody, "send it as it is", "got a body in Content-Encoding %.40q", e).as(http.StatusUnsupportedMediaType)
	}
	return nil
}

// empty wants no body at all.
func (q *request) empty() *Refusal {
	if q.in.ContentLength == 0 && len(q.in.TransferEncoding) == 0 {
		q.out.Body = http.NoBody
		return nil
	}
	return refuse(BadBody, "send none", "got a body on %s", q.in.Method)
}
