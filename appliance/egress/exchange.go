package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"

	"github.com/clawbox/clawbox/appliance/inspect"
	"github.com/clawbox/clawbox/appliance/ledger"
)

// deny records a refusal and tells the client in its own protocol.
func (k *call) deny(w http.ResponseWriter, why *refusal) {
	k.leave() // who waits for a refusal keeps nobody else waiting
	if n := k.s.box.waiting.Add(1); n > maxWaiting {
		k.s.box.waiting.Add(-1)
		k.s.end(refuse("http.flood", "wait for answers", "more than %d refused requests of this sandbox wait for their turn; the connection is closed", maxWaiting))
		panic(http.ErrAbortHandler)
	}
	k.s.box.pace(&k.s.box.denials)
	k.s.box.waiting.Add(-1)
	if !k.s.record(why, describeAll(map[string]any{"op": "traffic", "rule": why.rule}, k.msgs)) {
		why = noLedger()
	}
	k.answer(w, why)
}

func (k *call) answer(w http.ResponseWriter, why *refusal) {
	protocol, q := "", k.q
	if q == nil {
		q = &http.Request{}
	} else if protocol = k.rule.Protocol; q.Header.Get("Upgrade") != "" {
		protocol = ""
	}
	why0 := inspect.Reason{Status: why.status, Code: why.reason, Detail: why.detail, Remedy: why.remedy, Rule: why.rule}
	status, head, body := inspect.Denial(protocol, why0, inspect.IDs(q))
	for name, vs := range head {
		w.Header()[name] = vs
	}
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// forward sends the request on and its answer back, as it comes.
func (k *call) forward(w http.ResponseWriter) {
	p := &httputil.ReverseProxy{
		Transport: quiet{k.s.way(k, true)}, FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0),
		Rewrite:        func(r *httputil.ProxyRequest) { k.address(r.Out) },
		ModifyResponse: k.answered,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			k.answer(w, k.unreached(err))
		},
	}
	k.q.Body = k.count(k.q.Body, true)
	p.ServeHTTP(w, k.q)
}

// address points q at the session's destination.
func (k *call) address(q *http.Request) {
	scheme := "http"
	if k.s.kind == tlsHello {
		scheme = "https"
	}
	q.URL = &url.URL{
		Scheme: scheme, Host: net.JoinHostPort(k.s.host, strconv.Itoa(k.s.port)),
		Path: k.q.URL.Path, RawPath: k.q.URL.RawPath, RawQuery: k.q.URL.RawQuery,
	}
	q.Host = k.q.Host
}

// answered takes out of an answer what the agent must not have: credentials
// that the server repeats, and other ways to reach it.
func (k *call) answered(res *http.Response) error {
	res.Header.Del("Alt-Svc") // would lead past here, to QUIC or another port
	if res.StatusCode == http.StatusSwitchingProtocols && k.q.Header.Get("Upgrade") == "" {
		return refuse("net.protocol", "ask the server's owner", "the server switches protocols, and nobody asked for it")
	}
	if k.mask != nil {
		if err := maskAnswer(res, k.mask); err != nil {
			return err
		}
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		res.Body = k.count(res.Body, false)
	}
	return nil
}

// quiet sends requests and keeps to itself what comes before their answers:
// informational responses would pass unmasked, and without end.
type quiet struct{ *http.Transport }

func (t quiet) RoundTrip(q *http.Request) (*http.Response, error) {
	return t.Transport.RoundTrip(q.WithContext(mute{q.Context()}))
}

// mute is a context without values: httptrace's hooks among them.
type mute struct{ context.Context }

func (mute) Value(any) any { return nil }

// trouble says what went wrong upstream. Errors of net/http quote the server,
// which may repeat a credential, or fill the ledger: only what this side says
// itself is passed on.
func (k *call) trouble(err error) string {
	var op *net.OpError
	var cert *tls.CertificateVerificationError
	var alert tls.AlertError
	switch {
	case errors.As(err, &cert), errors.As(err, &alert), errors.As(err, &op):
		return fmt.Sprintf("%.300s", k.mask.Text(err.Error()))
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "the request was ended"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection ended early"
	}
	return "what it sends is not well formed"
}

// unreached turns what went wrong upstream into an answer, which is recorded
// where it is this appliance that refuses.
func (k *call) unreached(err error) *refusal {
	if why := k.stopped(); why != nil {
		return why // recorded by stop
	}
	attrs := describeAll(map[string]any{"op": "traffic"}, k.msgs)
	var why *refusal
	if errors.Is(err, errFault) {
		err = refuse("internal.panic", "tell the operator", "%.300v", err)
	}
	if errors.As(err, &why) && why.reason != "net.unreachable" {
		k.s.record(why, attrs)
	} else {
		why = refuse("net.unreachable", "try again later", "%s port %d gave no answer: %v", k.s.host, k.s.port, k.trouble(err))
		k.s.write(ledger.Allowed, why.reason, why.detail, attrs) // and yet it came to nothing
	}
	out := *why
	out.status = http.StatusBadGateway
	return &out
}
