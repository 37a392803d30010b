package router

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/clawbox/clawbox/policies"
)

// A loop of refused calls writes its records no faster than the pace, also
// when the client hangs up instead of waiting.
func TestDenialsArePaced(t *testing.T) {
	s := newSite(t)
	h := &handler{s.router, Agent{ID: "a1", Policy: func() *policies.Policy { return s.policy }}}
	start := time.Now()
	const n = DenyBurst + 25
	for range n {
		q := httptest.NewRequest("GET", "/v1/chat/completions", nil)
		h.infer(httptest.NewRecorder(), q)
	}
	took, least := time.Since(start), (n-DenyBurst)*DenyEvery
	if got := len(s.book.all()); got != n {
		t.Errorf("got %d records, want %d", got, n)
	}
	if took < least { // a bound from below: a slow machine can't break it
		t.Errorf("took %v, want at least %v", took, least)
	}
}

// A large body that is refused takes more turns.
func TestDenialsCostBytes(t *testing.T) {
	s := newSite(t)
	start := time.Now()
	s.post("/v1/chat/completions", chat("other", strings.Repeat("x", 8*turnBytes)))
	s.router.mu.Lock()
	p := s.router.meters["a1"].denials
	s.router.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if used := p.next.Sub(start.Add(-DenyBurst * DenyEvery)); used < 9*DenyEvery {
		t.Errorf("took turns of %v, want 9", used)
	}
}

// Nothing that an agent may put into a refused call makes its record large.
func TestDeniedRecordsAreSmall(t *testing.T) {
	s := newSite(t)
	ctrl := strings.Repeat(`\u0001`, 5000)
	long := strings.Repeat("m", 5000)
	for _, body := range []string{
		`{"model":"` + ctrl + `"}`, `{"model":"` + ctrl + `","n":1000}`, `{"model":"` + ctrl + `","stream":3}`,
		`{"model":"` + long + `"}`, `{"model":"near","` + long + `":1,"` + long + `":2}`,
		`{"model":"` + strings.Repeat("m", 256) + `"}`,
	} {
		if st, b := s.post("/v1/chat/completions", body, "User-Agent", long); st/100 != 4 {
			t.Errorf("got %d %s", st, b)
		}
	}
	for _, hdr := range []string{"Content-Type", "Content-Encoding"} {
		s.post("/v1/chat/completions", chat("near", "x"), hdr, long)
	}
	for _, path := range []string{"/v1/chat/completions", "/v1/models"} {
		q, _ := http.NewRequest(strings.Repeat("M", 5000), s.front.URL+path, nil)
		if resp, err := http.DefaultClient.Do(q); err != nil || resp.StatusCode != 405 {
			t.Errorf("%s: got %v %v", path, resp, err)
		}
	}
	for _, r := range s.records(10) {
		b, err := json.Marshal(r)
		if err != nil || len(b) > 1500 {
			t.Errorf("a record of %d bytes, %v: %.300s", len(b), err, b)
		}
		if !modelName(r.Model) && r.Model != "" {
			t.Errorf("model %.20q in a record", r.Model)
		}
	}
}
