package egress

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/clawbox/clawbox/appliance/inspect"
	"github.com/clawbox/clawbox/appliance/ledger"
	"github.com/clawbox/clawbox/policies"
)

// socket opens a WebSocket to the server and carries its messages, each
// judged by itself.
func (k *call) socket(w http.ResponseWriter) {
	q := k.q.Clone(k.q.Context())
	k.address(q)
	res, err := k.s.way(k, false).RoundTrip(q)
	if err != nil {
		k.answer(w, k.unreached(err))
		return
	}
	defer res.Body.Close()
	if err := k.answered(res); err != nil {
		k.answer(w, k.unreached(err))
		return
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		copyAnswer(w, res)
		return
	}
	server, ok := res.Body.(io.ReadWriteCloser)
	if err := inspect.Accepted(k.q, res); err != nil || !ok {
		why := refusedBy(err)
		k.s.record(why, describeAll(map[string]any{"op": "traffic"}, k.msgs))
		k.answer(w, why)
		return
	}
	k.frames(w, res, server)
}

// copyAnswer passes on an answer other than 101.
func copyAnswer(w http.ResponseWriter, res *http.Response) {
	for name, vs := range res.Header {
		if name != "Connection" && name != "Upgrade" {
			w.Header()[name] = vs
		}
	}
	w.WriteHeader(res.StatusCode)
	_, _ = io.Copy(w, res.Body)
}

// frames takes the client's connection over.
func (k *call) frames(w http.ResponseWriter, res *http.Response, server io.ReadWriteCloser) {
	client, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		k.answer(w, refuse("ws.handshake", "use HTTP/1.1", "the connection can't be taken over: %v", err))
		return
	}
	defer client.Close()
	if h, ok := client.(*heads); ok {
		h.open = true // frames from here on
	}
	head := &http.Response{StatusCode: res.StatusCode, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: res.Header}
	if head.Write(rw) != nil || rw.Flush() != nil {
		return
	}
	near := struct {
		io.Reader
		io.WriteCloser
	}{rw, client}
	ctx, cancel := context.WithCancel(k.s.box.ctx) // the request's own ended with Hijack
	defer cancel()
	k.mu.Lock()
	k.cancel = cancel
	gone := k.why != nil
	k.mu.Unlock()
	if gone {
		return
	}
	sock := inspect.Socket{Handshake: k.msgs[0], Ask: k.frame, Room: messages{k.s.box.room}, Mask: k.mask}
	err = inspect.Frames(ctx, near, k.countSocket(server), sock)
	var no *inspect.Refusal
	if errors.As(err, &no) {
		k.s.record(refusedBy(err), describeAll(map[string]any{"op": "traffic"}, k.msgs))
	}
}

// frame judges one message of the client.
func (k *call) frame(_ context.Context, m policies.Message) error {
	attrs := describeAll(map[string]any{"op": "traffic"}, []policies.Message{m})
	var why *refusal
	if r, ok := k.s.endpoint(&m); ok {
		why = k.s.box.meter(r).turn(r.Budget, time.Now())
	}
	if why == nil {
		d := k.s.ask(&m)
		if d.Verdict == policies.Allow {
			attrs["rule"] = d.Rule
			if k.s.write(ledger.Allowed, d.Reason, "", attrs) {
				return nil
			}
			return noLedger()
		}
		why = k.s.deniedCall(d, &m)
	}
	k.s.box.pace(&k.s.box.denials)
	if !k.s.record(why, attrs) {
		why = noLedger()
	}
	return why
}
