package egress

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/clawbox/clawbox/policies"
)

// The budget and the credentials of the rule that lets a call pass count,
// wherever it stands among the rules for the host.
func TestBudgetOfTheRuleThatLets(t *testing.T) {
	free := ruleFor("mcp", policies.CallRule{Tool: []string{"write_*"}})
	dear := ruleFor("mcp", policies.CallRule{Tool: []string{"read_*"}})
	dear.Budget.PerMinute = 1
	for name, rs := range map[string][]policies.HostRule{"first": {dear, free}, "last": {free, dear}} {
		t.Run(name, func(t *testing.T) {
			l, _ := inspectLab(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "{}") })
			l.network(allow(rs...))
			c := l.client(true)
			call := func(tools ...string) string {
				var ms []string
				for _, x := range tools {
					ms = append(ms, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"`+x+`"}}`)
				}
				_, body, _ := do(t, c, "POST", "https://a.example/", "["+strings.Join(ms, ",")+"]", "Content-Type", "application/json")
				return body
			}
			for i, x := range []struct {
				tools []string
				over  bool
			}{{[]string{"write_a"}, false}, {[]string{"write_a"}, false}, {[]string{"write_a", "read_a"}, false}, {[]string{"write_a", "read_a"}, true}, {[]string{"read_a"}, true}, {[]string{"write_a"}, false}} {
				if body := call(x.tools...); strings.Contains(body, "net.budget") != x.over {
					t.Errorf("%d %v: got %s", i, x.tools, body)
				}
			}
		})
	}
}

// Bytes count for the rule of the path, also where another one governs the
// connection.
func TestBytesOfThePath(t *testing.T) {
	open, dear := ruleFor("http"), ruleFor("http")
	open.Path, dear.Path = "/open/**", "/dear/**"
	dear.Budget.Down, dear.Budget.Up = 100_000, 100_000
	for name, rs := range map[string][]policies.HostRule{"first": {dear, open}, "last": {open, dear}} {
		for _, up := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				l, _ := inspectLab(t, func(w http.ResponseWriter, r *http.Request) {
					if !up {
						_, _ = w.Write(make([]byte, 60_000))
					}
				})
				l.network(allow(rs...))
				var body string
				if up {
					body = strings.Repeat("x", 60_000)
				}
				var st []int
				for range 3 {
					c := l.client(false)
					n, got, _ := do(t, c, "POST", "https://a.example/dear/x", body)
					if !up && len(got) != 60_000 && n == 200 {
						n = 0
					}
					st = append(st, n)
				}
				if st[0] != 200 || st[2] == 200 {
					t.Errorf("up %v: got %v, want the budget to end it", up, st)
				}
			})
		}
	}
}

// A credential of one tool's rule does not go with another tool's call.
func TestCredentialOfTheRuleThatLets(t *testing.T) {
	l, site := credentialLab(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "{}") })
	with, without := ruleFor("mcp", policies.CallRule{Tool: []string{"read_*"}}), ruleFor("mcp", policies.CallRule{Tool: []string{"show_*"}})
	with.Credentials = []string{"key"}
	l.mu.Lock()
	l.pol = &policies.Policy{Name: "test", Credentials: []policies.Credential{{Name: "key"}}, Network: allow(with, without)}
	l.mu.Unlock()
	for tool, want := range map[string]string{"read_a": "Bearer " + secret, "show_a": ""} {
		was := site.count()
		_, body, _ := do(t, l.client(true), "POST", "https://a.example/", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"`+tool+`"}}`,
			"Content-Type", "application/json", "Authorization", "Bearer "+l.proxy.Placeholder("a1", "key"))
		if sent := site.count() > was; sent != (want != "") {
			t.Errorf("%s: sent %v: %s", tool, sent, body)
		} else if q, _ := site.last(); sent && q.Header.Get("Authorization") != want {
			t.Errorf("%s: the server saw %v", tool, q.Header)
		}
	}
}
