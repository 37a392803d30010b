package inspect

import (
	"crypto/sha1"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
)

// upgrade checks a WebSocket handshake (RFC 6455, 4.2.1). Extensions are not
// passed on: permessage-deflate would hide what a message says.
func (q *request) upgrade() *Refusal {
	h := q.in.Header
	key, err := base64.StdEncoding.DecodeString(h.Get("Sec-Websocket-Key"))
	switch {
	case q.base.Protocol == "http" || q.base.Protocol == "graphql":
		return refuse(BadHandshake, "a rule with protocol websocket would take it, and judges GraphQL operations in its messages too", "got a WebSocket handshake where the rule's protocol is %s", q.base.Protocol)
	case len(h["Upgrade"]) != 1 || !strings.EqualFold(h.Get("Upgrade"), "websocket"):
		return refuse(BadHandshake, "upgrade to websocket only", "got Upgrade: %.40q", h["Upgrade"])
	case !slices.ContainsFunc(list(h["Connection"]), func(o string) bool { return strings.EqualFold(o, "upgrade") }):
		return refuse(BadHandshake, "send Connection: Upgrade", "got Upgrade without Connection: Upgrade")
	case q.in.Method != http.MethodGet || !q.in.ProtoAtLeast(1, 1) || q.in.ProtoMajor != 1:
		return refuse(BadHandshake, "GET it with HTTP/1.1", "got a WebSocket handshake by %s %s", q.in.Method, q.in.Proto)
	case h.Get("Sec-Websocket-Version") != "13":
		return refuse(BadHandshake, "use version 13", "got Sec-WebSocket-Version %.20q", h.Get("Sec-Websocket-Version")).as(http.StatusUpgradeRequired)
	case err != nil || len(key) != 16:
		return refuse(BadHandshake, "send 16 bytes in base64", "got Sec-WebSocket-Key %.40q", h.Get("Sec-Websocket-Key"))
	}
	q.out.Header.Del("Sec-Websocket-Extensions")
	q.out.Header.Set("Connection", "Upgrade")
	q.out.Header.Set("Upgrade", "websocket")
	if bad := q.offered(); bad != nil {
		return bad
	}
	q.msgs = append(q.msgs, q.base)
	return q.empty()
}

// offered checks the subprotocols, which pass.
func (q *request) offered() *Refusal {
	asked := list(q.in.Header["Sec-Websocket-Protocol"])
	if slices.ContainsFunc(asked, func(p string) bool { return !token(p) }) {
		return refuse(BadHandshake, "send tokens", "got Sec-WebSocket-Protocol %.80q", asked)
	}
	return nil
}

// notUpgraded refuses an ordinary request where the rule says websocket.
func (q *request) notUpgraded() *Refusal {
	return refuse(BadHandshake, "open a WebSocket, or use a rule with protocol http", "got %s without Upgrade where the rule's protocol is websocket", q.in.Method).as(http.StatusUpgradeRequired)
}

// Accepted checks a server's answer of 101 to the handshake q that Request
// returned: the key's proof, no extension, a subprotocol that was offered.
// Any other status is an ordinary answer and none of its business.
func Accepted(q *http.Request, res *http.Response) error {
	h := res.Header
	sum := sha1.Sum([]byte(q.Header.Get("Sec-Websocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	picked := h["Sec-Websocket-Protocol"]
	switch {
	case res.StatusCode != http.StatusSwitchingProtocols:
		return refuse(BadHandshake, "", "got status %d, want 101", res.StatusCode).as(http.StatusBadGateway)
	case q.Header.Get("Upgrade") == "" || len(h["Upgrade"]) != 1 || !strings.EqualFold(h.Get("Upgrade"), "websocket"):
		return refuse(BadHandshake, "", "the server switches to %.40q", h["Upgrade"]).as(http.StatusBadGateway)
	case len(h["Sec-Websocket-Accept"]) != 1 || h.Get("Sec-Websocket-Accept") != base64.StdEncoding.EncodeToString(sum[:]):
		return refuse(BadHandshake, "", "the server's Sec-WebSocket-Accept does not fit the key").as(http.StatusBadGateway)
	case len(h["Sec-Websocket-Extensions"]) > 0:
		return refuse(BadHandshake, "", "the server uses extension %.40q, which was not offered", h["Sec-Websocket-Extensions"]).as(http.StatusBadGateway)
	case len(picked) > 1 || len(picked) == 1 && !slices.Contains(list(q.Header["Sec-Websocket-Protocol"]), picked[0]):
		return refuse(BadHandshake, "", "the server chose subprotocol %.40q, which was not offered", picked).as(http.StatusBadGateway)
	}
	return nil
}
