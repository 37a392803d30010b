package support

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/clawbox/clawbox/appliance/config"
)

// removed stands in for a secret.
const removed = "[removed]"

// shortest is the length below which a value is no secret but a word that occurs
// everywhere.
const shortest = 6

// learn collects the secrets that the appliance keeps, so that none of them
// leaves, wherever it may have been printed.
func (p *pack) learn() {
	files, _ := filepath.Glob(filepath.Join(p.cfg.Paths.Keys, "*")) // the pattern is good
	for _, u := range p.cfg.Upstreams {
		files = append(files, u.KeyFile)
		if x, err := url.Parse(u.URL); err == nil && x.User != nil {
			pass, _ := x.User.Password()
			p.secret(pass)
			p.secret(x.User.Username())
		}
	}
	for _, c := range p.cfg.Credentials {
		files = append(files, c.KeyFile)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		p.secret(string(b))
		for _, l := range strings.Fields(string(b)) {
			p.secret(l)
		}
	}
	p.environments()
	// Long ones first: a part of one must not hide the whole.
	slices.SortFunc(p.known, func(a, b string) int { return len(b) - len(a) })
}

// environments learns every value that an agent is given, by the configuration
// or by its record.
func (p *pack) environments() {
	agents := slices.Clone(p.cfg.Agents)
	records, _ := filepath.Glob(filepath.Join(p.cfg.Paths.State, "agents", "*", "agent.json")) // the pattern is good
	for _, r := range records {
		b, err := os.ReadFile(r)
		var a config.Agent // of the same words: command, args, env
		if err == nil && json.Unmarshal(b, &struct {
			Command, Args, Env *[]string
		}{&a.Command, &a.Args, &a.Env}) == nil {
			agents = append(agents, a)
		}
	}
	for _, a := range agents {
		for _, e := range a.Env {
			_, v, _ := strings.Cut(e, "=")
			p.secret(v)
		}
		for _, v := range slices.Concat(a.Command, a.Args) {
			if _, value, ok := strings.Cut(v, "="); ok {
				p.secret(value)
			}
		}
	}
}

// secret adds the forms in which a value may show up.
func (p *pack) secret(s string) {
	if s = strings.TrimSpace(s); len(s) < shortest {
		return
	}
	q, _ := json.Marshal(s) // a string: can't fail
	for _, form := range []string{
		s, strings.Trim(string(q), `"`), url.QueryEscape(s), url.PathEscape(s),
		base64.StdEncoding.EncodeToString([]byte(s)), base64.RawURLEncoding.EncodeToString([]byte(s)),
	} {
		if !slices.Contains(p.known, form) {
			p.known = append(p.known, form)
		}
	}
}

// clean replaces every known secret in b.
func (p *pack) clean(b []byte, e *Entry) string {
	s := string(b)
	for _, k := range p.known {
		if n := strings.Count(s, k); n > 0 {
			e.Removed += n
			s = strings.ReplaceAll(s, k, removed)
		}
	}
	return s
}
