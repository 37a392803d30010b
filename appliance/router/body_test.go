package router

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/policies"
)

// unread fails the test when a body is read.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body was read")
	return 0, io.EOF
}

func (s *site) send(body io.Reader, size int64) (int, string) {
	s.t.Helper()
	q, err := http.NewRequest("POST", "http://inference.local/v1/chat/completions", body)
	if err != nil {
		s.t.Fatal(err)
	}
	q.ContentLength = size
	q.Header.Set("Content-Type", "application/json")
	w := &answerTo{h: http.Header{}}
	s.router.Handler(Agent{ID: "a1", Policy: func() *policies.Policy { return s.policy }}).ServeHTTP(w, q)
	return w.status, w.body.String()
}

// answerTo is a ResponseWriter in memory.
type answerTo struct {
	h      http.Header
	status int
	body   strings.Builder
}

func (a *answerTo) Header() http.Header         { return a.h }
func (a *answerTo) WriteHeader(n int)           { a.status = n }
func (a *answerTo) Write(b []byte) (int, error) { return a.body.Write(b) }

// What is refused whatever the body says is refused unread.
func TestRefusedUnread(t *testing.T) {
	s := newSite(t)
	s.policy.Inference.Budget = policies.ModelBudget{Requests: 2}
	if st, b := s.send(unread{t}, 1<<20+1); st != 413 {
		t.Errorf("too large: got %d %s", st, b)
	}
	s.post("/v1/chat/completions", chat("other", "x"))
	if st, b := s.send(unread{t}, 100); st != 429 || !strings.Contains(b, "budget.requests") {
		t.Errorf("spent: got %d %s", st, b)
	}
}

// Bodies on their way are bounded together, and what is over is given back.
func TestBytesInFlight(t *testing.T) {
	s := newSite(t)
	s.router.max = MaxBody
	pr, pw := io.Pipe()
	codes := make(chan int, 2)
	go func() { st, _ := s.send(pr, MaxBody); codes <- st }()
	qr, qw := io.Pipe()
	go func() { st, _ := s.send(qr, -1); codes <- st }() // says no length: counts as the most
	eventually(t, func() bool {
		s.router.mu.Lock()
		defer s.router.mu.Unlock()
		m := s.router.meters["a1"]
		return m != nil && m.bytes == 2*MaxBody
	})
	if st, b := s.send(unread{t}, 1); st != 429 || !strings.Contains(b, "infer.busy") {
		t.Errorf("got %d %s, want it refused unread", st, b)
	}
	pw.Close()
	qw.Close()
	for range 2 {
		if st := <-codes; st != 400 {
			t.Errorf("an empty body: got %d", st)
		}
	}
	if st, b := s.post("/v1/chat/completions", chat("near", "x")); st != 200 {
		t.Errorf("got %d %s", st, b)
	}
	eventually(t, func() bool {
		s.router.mu.Lock()
		defer s.router.mu.Unlock()
		m := s.router.meters["a1"]
		return m.bytes == 0 && m.open == 0
	})
}
