package egress

import (
	"strings"
	"testing"
	"time"

	"github.com/clawbox/clawbox/appliance/holds"
	"github.com/clawbox/clawbox/policies"
)

// An operator who lets another program reach an inspected destination, for
// once or for the session, was shown that rule with its calls: it holds.
func TestHeldProgramStaysInspected(t *testing.T) {
	for _, scope := range []holds.Scope{holds.Once, holds.Session} {
		t.Run(string(scope), func(t *testing.T) {
			l, site := inspectLab(t, hello200, func(c *Config, _ *holdsConfig) {
				c.Who = whois(Caller{PID: 7, UID: 1000, Comm: "curl", Binary: "/usr/bin/curl"})
			})
			r := ruleFor("http", policies.CallRule{Method: "GET", Path: "/v1/**"})
			r.Binaries = []string{"/usr/bin/claw"}
			l.network(policies.Network{Default: policies.Hold, Allow: []policies.HostRule{r}})
			done := make(chan int, 1)
			c := l.client(false)
			go func() {
				st, _, _ := do(t, c, "GET", "https://a.example/v1/a", "")
				done <- st
			}()
			p := one(t, l)
			if err := l.holds.Answer(t.Context(), p.ID, holds.Answer{Digest: p.Digest, Allow: true, Scope: scope, Operator: "op"}); err != nil {
				t.Fatal(err)
			}
			if st := <-done; st != 200 {
				t.Fatalf("GET /v1/a: got %d", st)
			}
			if st, body, _ := do(t, c, "DELETE", "https://a.example/v2", ""); st != 403 || !strings.Contains(body, policies.ReasonCallUnlisted) {
				t.Errorf("DELETE /v2: got %d %s", st, body)
			}
			// A reload that forbids the call holds for what was let in, too.
			r.Calls = []policies.CallRule{{Method: "GET", Path: "/v3"}}
			l.network(policies.Network{Default: policies.Hold, Allow: []policies.HostRule{r}})
			l.proxy.Recheck("a1")
			c.Timeout = 2 * time.Second
			if st, body, _ := do(t, c, "GET", "https://a.example/v1/a", ""); st == 200 {
				t.Errorf("after the reload: got %d %s", st, body)
			}
			if n := site.count(); n != 1 {
				t.Errorf("%d requests reached the site", n)
			}
		})
	}
}
