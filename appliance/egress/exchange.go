package egress

import (
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"

	"github.com/clawbox/clawbox/appliance/inspect"
	"github.com/clawbox/clawbox/appliance/ledger"
)

// deny records a refusal and tells the client in its own protocol.
func (k *call) deny(w http.ResponseWriter, why *refusal) {
	k.s.box.pace(&k.s.box.denials)
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
		Transport: k.s.out, FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0),
		Rewrite:        func(r *httputil.ProxyRequest) { k.address(r.Out) },
		ModifyResponse: k.answered,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			k.answer(w, k.unreached(err))
		},
	}
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
	if len(k.values) > 0 {
		maskAnswer(res, k.values)
	}
	return nil
}

// unreached turns what went wrong upstream into an answer, which is recorded
// where it is this appliance that refuses.
func (k *call) unreached(err error) *refusal {
	if why := k.stopped(); why != nil {
		return why // recorded by stop
	}
	attrs := describeAll(map[string]any{"op": "traffic"}, k.msgs)
	var why *refusal
	if errors.As(err, &why) && why.reason != "net.unreachable" {
		k.s.record(why, attrs)
	} else {
		why = refuse("net.unreachable", "try again later", "%s port %d gave no answer: %v", k.s.host, k.s.port, err)
		k.s.write(ledger.Allowed, why.reason, why.detail, attrs) // and yet it came to nothing
	}
	out := *why
	out.status = http.StatusBadGateway
	return &out
}
