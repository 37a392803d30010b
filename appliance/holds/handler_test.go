package holds

import (
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/appliance/control"
)

// served is a desk behind a control socket.
func served(t *testing.T) (*desk, *control.Client, *[]string) {
	t.Helper()
	d := newDesk(t)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var rechecked []string
	s := &http.Server{Handler: Handler(d.Book, func(agent string) { rechecked = append(rechecked, agent) })}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return d, control.Dial(path), &rechecked
}

// TestHandler drives a book by the client that operators have.
func TestHandler(t *testing.T) {
	d, cl, rechecked := served(t)
	seen := make(chan control.Held, 1)
	h, err := cl.Watch(t.Context(), "")
	if err != nil || len(h.Pending) != 0 || h.Now.IsZero() {
		t.Fatalf("got %+v, %v", h, err)
	}
	go func() { h, _ := cl.Watch(t.Context(), h.Version); seen <- h }()
	c := d.ask(base())
	if h = <-seen; len(h.Pending) != 1 {
		t.Fatalf("got %+v", h)
	}
	p, want := h.Pending[0], d.one()
	if p.ID != want.ID || p.Digest != want.Digest || p.Binary != want.Binary || len(p.Ancestors) != 2 || p.Change != want.Change ||
		p.Words != want.Words || p.Why != want.Why || !p.Until.Equal(want.Until) || p.Waiting != 1 {
		t.Errorf("got %+v, want %+v", p, want)
	}
	for name, x := range map[string]struct {
		id   string
		q    control.AnswerRequest
		code string
	}{
		"other":    {"guess", control.AnswerRequest{Digest: p.Digest, Allow: true, Scope: "once", Operator: "ada"}, "not_found"},
		"digest":   {p.ID, control.AnswerRequest{Allow: true, Scope: "once", Operator: "ada"}, "conflict"},
		"scope":    {p.ID, control.AnswerRequest{Digest: p.Digest, Allow: true, Scope: "ever", Operator: "ada"}, "invalid"},
		"nobody":   {p.ID, control.AnswerRequest{Digest: p.Digest, Allow: true, Scope: "once"}, "invalid"},
		"too long": {p.ID, control.AnswerRequest{Digest: strings.Repeat("x", maxAnswer)}, "invalid"},
	} {
		var e *control.Error
		if err := cl.Answer(t.Context(), x.id, x.q); !errors.As(err, &e) || e.Code != x.code {
			t.Errorf("%s: got %v, want %s", name, err, x.code)
		}
	}
	if err := cl.Answer(t.Context(), p.ID, control.AnswerRequest{Digest: p.Digest, Allow: true, Scope: "session", Operator: "ada"}); err != nil {
		t.Fatal(err)
	}
	if out := got(t, c); !out.Allow {
		t.Errorf("got %+v", out)
	}
	ss, err := cl.Standing(t.Context())
	if err != nil || len(ss) != 1 || ss[0].Operator != "ada" || ss[0].Scope != "session" || !ss[0].Allow || ss[0].Binary != p.Binary {
		t.Fatalf("got %+v, %v", ss, err)
	}
	if s, err := cl.Revoke(t.Context(), ss[0].ID, "eve"); err != nil || s.Host != p.Host || strings.Join(*rechecked, " ") != "a1" {
		t.Errorf("got %+v, %v, rechecked %v", s, err, *rechecked)
	}
	var e *control.Error
	if _, err := cl.Revoke(t.Context(), ss[0].ID, "eve"); !errors.As(err, &e) || e.Code != "not_found" {
		t.Errorf("got %v", err)
	}
	d.ask(base())
	d.book.set(errDisk, nil)
	p = d.one().shown()
	if err := cl.Answer(t.Context(), p.ID, control.AnswerRequest{Digest: p.Digest, Scope: "once", Operator: "ada"}); !errors.As(err, &e) || e.Code != "internal" {
		t.Errorf("got %v", err)
	}
}

// What is not an answer, byte for byte, is refused.
func TestHandlerStrict(t *testing.T) {
	d, _, _ := served(t)
	d.ask(base())
	p := d.one()
	good := `{"digest":"` + p.Digest + `","allow":true,"scope":"once","operator":"ada"}`
	h := Handler(d.Book, func(string) {})
	for name, body := range map[string]string{
		"empty": "", "null": "null", "twice": good + good, "key twice": strings.Replace(good, `"allow":true`, `"allow":false,"allow":true`, 1),
		"case": strings.Replace(good, `"allow":true`, `"allow":false,"Allow":true`, 1), "unknown": strings.Replace(good, `"allow"`, `"x":1,"allow"`, 1),
	} {
		w := &answerWriter{h: http.Header{}}
		r, _ := http.NewRequest("POST", "/v1/approvals/"+p.ID, strings.NewReader(body))
		h.ServeHTTP(w, r)
		if w.status != 400 {
			t.Errorf("%s: got %d", name, w.status)
		}
	}
	if d.one().ID != p.ID {
		t.Error("one of them was taken for an answer")
	}
}

type answerWriter struct {
	h      http.Header
	status int
}

func (w *answerWriter) Header() http.Header         { return w.h }
func (w *answerWriter) Write(b []byte) (int, error) { return len(b), nil }
func (w *answerWriter) WriteHeader(s int)           { w.status = s }
