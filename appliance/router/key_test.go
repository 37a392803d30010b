package router

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// An upstream that repeats its credential, in any form of answer, shows it
// neither to the agent nor to who reads the ledger.
func TestKeyStaysOut(t *testing.T) {
	const key = "the-upstream-credential"
	raw := func(f func(w io.Writer, auth string)) http.HandlerFunc {
		return func(w http.ResponseWriter, q *http.Request) {
			c, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			f(rw, q.Header.Get("Authorization"))
			rw.Flush()
		}
	}
	for name, x := range map[string]struct {
		reply  http.HandlerFunc
		status int
		want   string
	}{
		"body": {func(w http.ResponseWriter, q *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("X-Request-Id", q.Header.Get("Authorization"))
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprintf(w, `{"error":{"message":"Incorrect key: %s"}}`, q.Header.Get("Authorization"))
		}, 401, "Incorrect key: Bearer ***"},
		"stream": {func(w http.ResponseWriter, q *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			fmt.Fprintf(w, "data: {\"x\":\"%s\"}\n\ndata: [DONE]\n\n", q.Header.Get("Authorization"))
		}, 200, "[DONE]"},
		"status line": {raw(func(w io.Writer, auth string) { fmt.Fprintf(w, "%s %s\r\n\r\n", auth, strings.Repeat("x", 10_000)) }), 502, "upstream_down"},
		"header line": {raw(func(w io.Writer, auth string) { fmt.Fprintf(w, "HTTP/1.1 200 OK\r\n%s\r\n\r\n", auth) }), 502, "upstream_down"},
		"packed": {func(w http.ResponseWriter, q *http.Request) {
			w.Header().Set("Content-Encoding", "br")
			io.WriteString(w, "x")
		}, 502, "upstream_down"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.reply = x.reply
			st, body := s.post("/v1/chat/completions", chat("far", "hello"))
			if st != x.status || !strings.Contains(body, x.want) || strings.Contains(body, key) {
				t.Errorf("got %d %s", st, body)
			}
			for _, r := range s.records(2) {
				if all := fmt.Sprintf("%+v", r); strings.Contains(all, key) || len(all) > 3000 {
					t.Errorf("on the ledger: %.300s", all)
				}
			}
		})
	}
}
