package registry

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
)

// Right is what one may do in a repository.
type Right string

// The rights. Push brings tags, too, and moves them.
const (
	Pull   Right = "pull"
	Push   Right = "push"
	Delete Right = "delete"
)

// Rule allows something; all rules that match a request add up, and what no
// rule allows is denied.
type Rule struct {
	// Who is "loopback" (whoever connects from this host), "anyone",
	// "user:NAME" (with a password) or "cert:NAME" (with a certificate, by its
	// common name). NAME may be "*".
	Who string `json:"who" yaml:"who"`
	// Repos is a repository, "PREFIX/**" for all below, or "**" for all.
	Repos string  `json:"repos" yaml:"repos"`
	May   []Right `json:"may" yaml:"may"`
}

// LoopbackPulls is the rule of a registry that was given none.
var LoopbackPulls = Rule{Who: "loopback", Repos: "**", May: []Right{Pull}}

// ParseRule reads "WHO REPOS RIGHT,RIGHT…", such as "user:* team/** pull,push".
func ParseRule(s string) (Rule, error) {
	f := strings.Fields(s)
	if len(f) != 3 {
		return Rule{}, fmt.Errorf(`rule %.200q: want "WHO REPOS RIGHT,RIGHT…", such as "user:* team/** pull,push"`, s)
	}
	r := Rule{Who: f[0], Repos: f[1]}
	for _, m := range strings.Split(f[2], ",") {
		r.May = append(r.May, Right(m))
	}
	return r, r.Check()
}

// Check refuses a rule that could be meant in another way than it works.
func (r Rule) Check() error {
	kind, name, named := strings.Cut(r.Who, ":")
	switch {
	case kind == "loopback" && !named, kind == "anyone" && !named:
	case (kind == "user" || kind == "cert") && name != "":
	default:
		return fmt.Errorf(`rule for %.80q: want "loopback", "anyone", "user:NAME" or "cert:NAME"`, r.Who)
	}
	if base := strings.TrimSuffix(r.Repos, "/**"); r.Repos != "**" && !goodName(base) {
		return fmt.Errorf(`rule for %s: repositories %.80q: want a repository, "PREFIX/**" or "**"`, r.Who, r.Repos)
	}
	if len(r.May) == 0 {
		return fmt.Errorf("rule for %s: it allows nothing: want pull, push or delete", r.Who)
	}
	for _, m := range r.May {
		if m != Pull && m != Push && m != Delete {
			return fmt.Errorf("rule for %s: right %.40q: want pull, push or delete", r.Who, m)
		}
	}
	return nil
}

func (r Rule) covers(name string) bool {
	if p, ok := strings.CutSuffix(r.Repos, "**"); ok {
		return strings.HasPrefix(name, p)
	}
	return name == r.Repos
}

// client is who sent a request.
type client struct {
	user, cert string // proven names, or ""
	loopback   bool
	addr       string // without its port
}

// String names the client, for limits and logs.
func (c client) String() string {
	switch {
	case c.user != "":
		return "user:" + c.user
	case c.cert != "":
		return "cert:" + c.cert
	}
	return c.addr
}

// is says whether a rule is about c.
func (c client) is(who string) bool {
	kind, name, _ := strings.Cut(who, ":")
	switch kind {
	case "anyone":
		return true
	case "loopback":
		return c.loopback
	case "user":
		return c.user != "" && (name == "*" || name == c.user)
	case "cert":
		return c.cert != "" && (name == "*" || name == c.cert)
	}
	return false
}

// gate decides.
type gate struct {
	rules []Rule
	users *Users
}

func (g gate) may(c client, name string, r Right) bool {
	return slices.ContainsFunc(g.rules, func(x Rule) bool {
		return c.is(x.Who) && x.covers(name) && slices.Contains(x.May, r)
	})
}

// known says whether any rule is about c.
func (g gate) known(c client) bool {
	return slices.ContainsFunc(g.rules, func(x Rule) bool { return c.is(x.Who) })
}

// errUnauthorized asks for a name and password.
func (g gate) errUnauthorized(w http.ResponseWriter) error {
	if g.users != nil {
		w.Header().Set("WWW-Authenticate", `Basic realm="clawbox registry", charset="UTF-8"`)
	}
	return refuse(http.StatusUnauthorized, codeUnauthorized, "no rule of this registry allows this without proof of who asks: log in, or use a client certificate")
}

// client finds out who sent r. A password that is wrong is an error, also
// where none is needed.
func (g gate) client(w http.ResponseWriter, r *http.Request) (client, error) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	ip := net.ParseIP(host)
	c := client{addr: host, loopback: ip != nil && ip.IsLoopback()}
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		c.cert = r.TLS.VerifiedChains[0][0].Subject.CommonName
	}
	if r.Header.Get("Authorization") == "" {
		return c, nil
	}
	user, pass, ok := r.BasicAuth()
	if ok && user == "" && pass == "" {
		return c, nil // what skopeo sends when it was asked and has none
	}
	if !ok || g.users == nil {
		return c, g.errUnauthorized(w)
	}
	switch err := g.users.Verify(r.Context(), user, pass); {
	case errors.Is(err, errCrowd):
		return c, refuse(http.StatusTooManyRequests, codeTooMany, "too many log-ins at once: try again")
	case err != nil:
		return c, g.errUnauthorized(w)
	}
	c.user = user
	return c, nil
}
